"""Failures of one endpoint in ten slices of a window, and among how many attempts they were.

A success costs nothing here, not even at an endpoint that fails now and then: the balancer counts attempts anyway
(`clientlb.figures`), so it is enough to look at that counter when something fails. Failures are exact to the slice.
Attempts are exact between any two looks; where the window begins between two of them, they are taken as spread evenly.

Averages that fade are no substitute. After 40 s of success they take 200 failures within 0.1 s for a success rate of
0.99, and one failure after a minute of silence for 0.13 (Finagle's; Linkerd left them for slices in 2026).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeAlias

from clientlb.health_options import RatioOptions

SLICES = 10

Look: TypeAlias = tuple[float, int]
"""A moment, and how many attempts there had been."""


class _Slice:
    __slots__ = ("attempts", "failures", "moment", "number")

    def __init__(self, number: int, moment: float, attempts: int) -> None:
        self.number: int = number
        self.moment: float = moment
        self.attempts: int = attempts  # before its first failure
        self.failures: int = 0


class Window:
    """The window of one endpoint."""

    __slots__ = ("_begins", "_slices")

    def __init__(self) -> None:
        self._slices: deque[_Slice] = deque()
        self._begins: Look | None = None

    def begin(self, now: float, attempts: int) -> None:
        """Forget what was before this moment, at which there had been so many attempts."""
        self._slices.clear()
        self._begins = (now, attempts)

    def failed(
        self, now: float, options: RatioOptions, attempts: Callable[[], int], history: Callable[[], Iterable[Look]]
    ) -> tuple[int, int] | None:
        """Take note of a failure. Returns failures and attempts in the window, if these are too many.

        Args:
            now: Seconds of the clock.
            options: Of the rule.
            attempts: Says how many attempts there have been, this one included.
            history: Says how many there had been at earlier moments.
        """
        width = options.window / SLICES
        number = int(now / width)
        slices = self._slices
        while slices and slices[0].number <= number - SLICES:
            slices.popleft()
        if not slices or slices[-1].number != number:
            slices.append(_Slice(number, now, attempts() - 1))
        slices[-1].failures += 1
        bearable = 1.0 - options.success + 1e-9  # 1.0 - 0.8 is less than 0.2
        failures = sum(each.failures for each in slices)
        if failures <= bearable * options.calls:  # however few the calls were
            return None
        total = attempts()
        start = (number - SLICES + 1) * width
        if self._begins is not None and self._begins[0] > start:
            before = self._begins[1]
        else:
            before = self._attempts_at(start, (now, total), history())
        calls = max(failures, total - before)
        return (failures, calls) if calls >= options.calls and failures > bearable * calls else None

    def _attempts_at(self, moment: float, last: Look, history: Iterable[Look]) -> int:
        """How many attempts there had been at a moment, by what is known of the time around it."""
        known = sorted({*history, *((each.moment, each.attempts) for each in self._slices), last})
        if self._begins is not None:
            known = [self._begins, *(look for look in known if look[0] > self._begins[0])]
        earlier = [look for look in known if look[0] <= moment]
        if not earlier:
            return known[0][1]
        since, count = earlier[-1]
        until, later = next((look for look in known if look[0] > moment), last)
        share = (moment - since) / (until - since) if until > since else 1.0
        return count + round(share * (later - count))
