"""The retry budget of a service: retries are paid for by calls (Finagle's `RetryBudget`).

Retries multiply the load exactly when servers are in trouble. A budget bounds the factor: with a ratio of 0.2 a service
that fails completely sees 1.2 times its ordinary load (plus the reserve), however many attempts a call is allowed.
"""

from __future__ import annotations

from collections import deque

_SLICES = 10


class RetryBudget:
    """Counts calls and retries over a sliding window of ten slices.

    A retry is allowed while `retries + 1 <= ratio * calls + reserve * window`, all counted over the window.

    Args:
        ratio: Retries allowed per call.
        reserve: Retries per second that are always allowed.
        window: Seconds.
        now: Seconds of the clock.

    Attributes:
        calls: Calls in the current slice. Whoever makes a call adds one: the hot path has no time for more.
        ends: When the current slice ends; `advance` is due then.
    """

    __slots__ = ("_allowance", "_full", "_ratio", "_retries", "_slice", "calls", "ends")

    def __init__(self, ratio: float, reserve: float, window: float, now: float) -> None:
        self._ratio = ratio
        self._allowance = reserve * window
        self._slice = window / _SLICES
        self._full: deque[tuple[int, int]] = deque(maxlen=_SLICES - 1)
        self._retries = 0
        self.calls: int = 0
        self.ends: float = now + self._slice

    def advance(self, now: float) -> None:
        """Begin a new slice if the current one has ended."""
        if now < self.ends:
            return
        passed = int((now - self.ends) / self._slice) + 1
        self._full.append((self.calls, self._retries))
        self._full.extend([(0, 0)] * min(passed - 1, _SLICES))
        self.calls = self._retries = 0
        self.ends += passed * self._slice

    def balance(self, now: float) -> float:
        """How many retries are allowed at this moment."""
        self.advance(now)
        calls = self.calls + sum(calls for calls, _ in self._full)
        retries = self._retries + sum(retries for _, retries in self._full)
        return self._ratio * calls + self._allowance - retries

    def withdraw(self, now: float) -> bool:
        """Take one retry out of the budget; False when there is none left."""
        if self.balance(now) < 1.0:
            return False
        self._retries += 1
        return True
