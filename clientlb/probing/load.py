"""How loaded a server is, by its own requests. Pure: `now` is an argument.

Wydrowski et al.: "Load is not what you should balance: Introducing Prequal" (NSDI '24), section 4: each finished
request records its latency and the requests that were in flight at its arrival. What a probe is told is the number in
flight now, and the median of recent latencies at or near that number.
"""

from __future__ import annotations

from collections import deque
from heapq import nsmallest
from statistics import median
from typing import NamedTuple

_REMEMBERED = 128
"""Finished requests that are remembered. (The paper does not say; ours.)"""
_SAMPLES = 8
"""Latencies that an estimate is the median of. (Ours.)"""
_EXPIRY = 10.0
"""Seconds. A server that was slow and is avoided since must not be called slow for ever. (Ours, as in `LeastTime`.)"""


class Load(NamedTuple):
    """What a probe is told.

    Attributes:
        in_flight: Requests that the server works on now.
        latency: Seconds that a request takes there now; 0 when it finished none lately, so that somebody tries.
    """

    in_flight: int
    latency: float


class LoadEstimate:
    """What a server knows of its own load. Not thread-safe; `LoadMeter` is.

    Attributes:
        in_flight: Requests that have begun and not ended.
    """

    __slots__ = ("_finished", "in_flight")

    def __init__(self) -> None:
        self.in_flight: int = 0
        self._finished: deque[tuple[float, int, float]] = deque(maxlen=_REMEMBERED)

    def began(self) -> int:
        """Count a request in; returns how many are in flight with it."""
        self.in_flight += 1
        return self.in_flight

    def ended(self, found: int, seconds: float | None, now: float) -> None:
        """Count a request out.

        Args:
            found: What `began` returned for it.
            seconds: What it took; None if that says nothing, because it failed or was a stream.
            now: Seconds of any clock that goes forward.
        """
        self.in_flight -= 1
        if seconds is not None:
            self._finished.append((now, found, seconds))

    def estimate(self, now: float) -> Load:
        """The load now."""
        here = self.in_flight + 1  # what the next request would find, itself included
        fresh = [each for each in reversed(self._finished) if now - each[0] <= _EXPIRY]
        nearest = nsmallest(_SAMPLES, fresh, key=lambda each: abs(each[1] - here))  # stable: the latest of equals
        return Load(self.in_flight, median(seconds for _, _, seconds in nearest) if nearest else 0.0)
