"""Outbox: events are noted under the balancer's lock, and go out in that order after it was released."""

from __future__ import annotations

import threading
from collections import deque

from clientlb import events


class Outbox:
    """Keeps the events of one service until they are delivered.

    Attributes:
        pending: Events that are yet to go out. It stays the same object.
    """

    __slots__ = ("_delivering", "_hook", "pending")

    def __init__(self, hook: events.EventHook | None) -> None:
        self._hook = hook
        self.pending: deque[events.Event] = deque()
        self._delivering = threading.Lock()

    def note(self, event: events.Event) -> None:
        """Note what happened, under the lock."""
        self.pending.append(event)

    def deliver(self) -> None:
        """Send out events in the order in which things happened, whichever threads were at it.

        One thread at a time does it, also for the others. A hook that causes an event gets it when it has returned.
        """
        while self.pending and self._delivering.acquire(blocking=False):
            try:
                while self.pending:
                    self.emit(self.pending.popleft())
            finally:
                self._delivering.release()

    def emit(self, event: events.Event) -> None:
        """Send out one event at once, past those that are pending."""
        if self._hook is not None:
            self._hook(event)

    def after_fork(self) -> None:
        """In a forked child: what happened in the parent is told there."""
        self.pending.clear()
        self._delivering = threading.Lock()
