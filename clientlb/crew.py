"""Threads for attempts that run side by side. They come with the work, and go when there was none for a second.

Only hedged calls of synchronous code need them. All are daemons: a program need not wait for an attempt that nobody
waits for any more.
"""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from clientlb.errors import ClosedError

_IDLE = 1.0
MOST = 256


class Errand(Future[Any]):
    """An attempt on a thread of its own.

    Args:
        function: What is to be done.
        interrupt: Ends it early, if there is a way to; called from another thread.
    """

    def __init__(self, function: Callable[[], Any], interrupt: Callable[[], None] | None) -> None:
        super().__init__()
        self._function = contextvars.copy_context().run, function
        self._interrupt = interrupt

    def cancel(self) -> bool:
        """Do not begin, or end early. What it returns all the same is for whoever listens."""
        if super().cancel():
            return True
        if self._interrupt is not None and not self.done():
            self._interrupt()
        return False

    def run(self) -> None:
        """Do it, on this thread."""
        if not self.set_running_or_notify_cancel():
            return
        run, function = self._function
        try:
            result = run(function)
        except BaseException as error:
            self.set_exception(error)
        else:
            self.set_result(result)


class Crew:
    """Runs errands, each on a thread of its own."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Errand] = deque()
        self._running: set[Errand] = set()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._closed = False

    @property
    def full(self) -> bool:
        """Whether so many errands run that a call should do without."""
        return self._closed or len(self._running) + len(self._waiting) >= MOST

    def send(self, function: Callable[[], Any], interrupt: Callable[[], None] | None = None) -> Errand:
        """Let a thread do something; it inherits the context variables.

        Args:
            function: What.
            interrupt: Ends it early, if there is a way to.

        Raises:
            ClosedError: After `close`.
        """
        errand = Errand(function, interrupt)
        with self._changed:
            if self._closed:
                raise ClosedError("the client was closed during the call")
            self._waiting.append(errand)
            if len(self._waiting) > self._idle:
                thread = threading.Thread(target=self._work, name="clientlb-hedge", daemon=True)
                try:
                    thread.start()
                except BaseException:  # the system has no more of them
                    self._waiting.remove(errand)
                    raise
                self._threads.add(thread)  # which waits for the lock
            else:
                self._changed.notify()
        return errand

    def close(self, timeout: float = 5.0) -> None:
        """End every errand that can be ended early, and wait for the threads. Idempotent.

        Args:
            timeout: The longest to wait for each thread, in seconds.
        """
        with self._changed:
            self._closed = True
            running, waiting = list(self._running), list(self._waiting)
            self._waiting.clear()
            threads = list(self._threads)
            self._changed.notify_all()
        for errand in (*waiting, *running):
            errand.cancel()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(timeout)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                if not self._waiting and not self._closed:
                    self._changed.wait(_IDLE)
                self._idle -= 1
                if not self._waiting:
                    self._threads.discard(threading.current_thread())
                    return
                errand = self._waiting.popleft()
                self._running.add(errand)
            errand.run()
            with self._changed:
                self._running.discard(errand)
            del errand  # it holds a response, which must not live until the next one comes
