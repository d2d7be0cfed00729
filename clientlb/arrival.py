"""Arrival: threads and coroutines wait here for the first list of endpoints."""

from __future__ import annotations

import threading
from collections.abc import Callable

from clientlb.aio import AsyncWaiters

SPARE_AFTER = 0.3
"""Seconds that a call waits for the registry before a list of an earlier time has to do. A local registry answers in
30 ms, and nobody waits gladly for a call that could be made."""


class Arrival:
    """Whether there are endpoints, and those who wait for that.

    Args:
        want_spare: Called when somebody has waited for so long that a list of an earlier time has to do.
    """

    __slots__ = ("_event", "_waiters", "_want_spare")

    def __init__(self, want_spare: Callable[[], None]) -> None:
        self._want_spare = want_spare
        self.after_fork()

    def note(self, arrived: bool) -> None:
        """Note whether there are endpoints now, under the balancer's lock; see `wake`."""
        if arrived:
            self._event.set()
        else:
            self._event.clear()

    def wake(self) -> None:
        """Wake the coroutines that wait, if there are endpoints. Without the lock."""
        if self._event.is_set():
            self._waiters.wake()

    def wait(self, timeout: float) -> bool:
        """Block until a list of endpoints has arrived, at most `timeout` seconds."""
        patience = min(timeout, SPARE_AFTER)
        if self._event.wait(patience):
            return True
        self._want_spare()
        return self._event.wait(timeout - patience)

    async def wait_async(self, timeout: float) -> bool:
        """The same for a coroutine; blocks no event loop."""
        arrived = self._event.is_set
        patience = min(timeout, SPARE_AFTER)
        if not arrived():
            await self._waiters.wait(arrived, patience)
        if not arrived():
            self._want_spare()
            await self._waiters.wait(arrived, timeout - patience)
        return arrived()

    def after_fork(self) -> None:
        """In a forked child: nobody waits yet, and nothing is known."""
        self._event = threading.Event()
        self._waiters = AsyncWaiters()
