"""One thread with an event loop, for backends whose library is asynchronous: many waits, none of which blocks."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from clientlb.errors import ClosedError

_JOIN_PATIENCE = 0.5

Task = Future[None]


class TaskThread:
    """Runs coroutines on one daemon thread, from the first that is started to the last that is stopped.

    A forked child begins without any: what was started in the parent runs there only.

    Args:
        name: The thread is named `clientlb-NAME`.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._tasks: set[Task] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> Task:
        """Run a coroutine until it is stopped. It has to deal with its own errors.

        Raises:
            ClosedError: After `close()`.
        """
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            if self._closed:
                raise ClosedError(f"the watch of {self._name} is closed")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_run, args=(self._loop,), name=f"clientlb-{self._name}", daemon=True
                )
                self._thread.start()
            task = asyncio.run_coroutine_threadsafe(work(), self._loop)
            self._tasks.add(task)
            return task

    def stop(self, task: Task) -> None:
        """Cancel a task. Unknown ones are ignored. Ends the thread if it was the last one."""
        if self._pid == os.getpid():
            self._cancel({task})

    def close(self) -> None:
        """Cancel everything, for good. Idempotent."""
        self._closed = True
        if self._pid == os.getpid():
            self._cancel(None)

    def _cancel(self, tasks: set[Task] | None) -> None:
        ended = None
        with self._lock:
            ending = set(self._tasks) if tasks is None else self._tasks & tasks
            self._tasks -= ending
            for task in ending:
                task.cancel()
            if self._loop is not None and not self._tasks:
                self._loop.call_soon_threadsafe(self._loop.stop)
                ended, self._thread, self._loop = self._thread, None, None
        if ended is not None and ended is not threading.current_thread():
            ended.join(_JOIN_PATIENCE)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
        loop.run_until_complete(_end_tasks())
    finally:
        loop.close()


async def _end_tasks() -> None:
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
