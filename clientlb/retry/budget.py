"""The retry budget of a service: retries are paid for by calls (after Finagle's `RetryBudget`).

Retries multiply the load exactly when servers are in trouble. A budget bounds the factor: with a ratio of 0.2 a service
that fails completely sees 1.2 times its ordinary load, however many attempts a call is allowed.

The window is short, because all that has gathered in it is spent in the first moment of an outage: a ratio of 0.2 over
10 s is two seconds' worth of calls at once. A service of few calls gathers next to nothing in so short a time. So there
is a reserve, counted over 10 s. Unlike Finagle's it is a floor, as in Envoy, and no addition: a process with many calls
has no need of it.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

_SLICES = 10
"""Of the shorter one of the two windows."""
RESERVE_WINDOW = 10.0
"""Seconds over which the reserve counts (Finagle's)."""


class RetryBudget:
    """Counts calls and retries in slices of time.

    A retry is allowed while `retries + 1 <= ratio * calls` over the window, or `retries + 1 <= reserve * 10` over 10 s.

    Args:
        ratio: Retries allowed per call.
        reserve: Retries per second that are allowed however few the calls are.
        window: Seconds over which the calls count.
        now: Seconds of the clock.

    Attributes:
        calls: Calls in the current slice. Whoever makes a call adds one: the hot path has no time for more.
        ends: When the current slice ends; `advance` is due then.
    """

    __slots__ = ("_allowance", "_full", "_in_reserve", "_in_window", "_ratio", "_retries", "_slice", "calls", "ends")

    def __init__(self, ratio: float, reserve: float, window: float, now: float) -> None:
        self._ratio = ratio
        self._allowance = reserve * RESERVE_WINDOW
        self._slice = min(window, RESERVE_WINDOW) / _SLICES
        self._in_window = round(window / self._slice) - 1
        self._in_reserve = round(RESERVE_WINDOW / self._slice) - 1
        self._full: deque[tuple[int, int]] = deque(maxlen=max(self._in_window, self._in_reserve))  # the latest first
        self._retries = 0
        self.calls: int = 0
        self.ends: float = now + self._slice

    def advance(self, now: float) -> None:
        """Begin a new slice if the current one has ended."""
        if now < self.ends:
            return
        passed = int((now - self.ends) / self._slice) + 1
        full = self._full
        full.appendleft((self.calls, self._retries))
        full.extendleft([(0, 0)] * min(passed - 1, full.maxlen or 0))
        self.calls = self._retries = 0
        self.ends += passed * self._slice

    def balance(self, now: float) -> float:
        """How many retries are allowed at this moment."""
        self.advance(now)
        recent = list(islice(self._full, self._in_window))
        earned = self._ratio * (self.calls + sum(calls for calls, _ in recent)) - sum(retries for _, retries in recent)
        reserved = self._allowance - sum(retries for _, retries in islice(self._full, self._in_reserve))
        return max(0.0, max(earned, reserved) - self._retries)

    def withdraw(self, now: float) -> bool:
        """Take one retry out of the budget; False when there is none left."""
        if self.balance(now) < 1.0:
            return False
        self._retries += 1
        return True

    def give_back(self) -> None:
        """Put back what was just taken: there was nobody to be tried."""
        self._retries -= 1
