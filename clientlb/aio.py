"""Lets coroutines of many event loops wait for something that a thread announces."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable


class AsyncWaiters:
    """Coroutines that wait for a condition; `wake` may be called from any thread."""

    __slots__ = ("_futures", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._futures: set[asyncio.Future[None]] = set()

    async def wait(self, condition: Callable[[], bool], timeout: float) -> None:
        """Wait until `wake` is called, at most `timeout` seconds; return at once if the condition already holds."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._futures.add(future)
        try:
            if not condition():  # asked again: it may have come true before the future was added
                await asyncio.wait([future], timeout=timeout)
        finally:
            with self._lock:
                self._futures.discard(future)

    def wake(self) -> None:
        """Wake everybody who waits."""
        with self._lock:
            futures, self._futures = self._futures, set()
        for future in futures:
            try:
                future.get_loop().call_soon_threadsafe(_finish, future)
            except RuntimeError:
                pass  # its loop was closed meanwhile, so nobody waits any more


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
