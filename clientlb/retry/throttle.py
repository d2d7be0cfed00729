"""Client-side throttling: a client whose calls are turned away makes fewer of them by itself.

After "Handling Overload" (Site Reliability Engineering, chapter 21): a server spends work even on the calls that it
turns away. A client that sees more than half of its calls fail refuses the surplus itself, with the probability

    max(0, (requests - k * accepts) / (requests + 1))

over the last two minutes. So a server that accepts a rate of c is sent about k * c, however many calls are wanted.
"""

from __future__ import annotations

import random
from collections import deque

from clientlb.options import ThrottleOptions

_SLICES = 24


class Throttle:
    """Counts requests and accepts over a sliding window of 24 slices.

    Args:
        options: The numbers.
        now: Seconds of the clock.
    """

    __slots__ = ("_accepts", "_ends", "_full", "_least", "_multiplier", "_now", "_requests", "_slice")

    def __init__(self, options: ThrottleOptions, now: float) -> None:
        self._multiplier = options.k
        self._least = options.least
        self._slice = options.window / _SLICES
        self._ends = now + self._slice
        self._full: deque[tuple[int, int]] = deque(maxlen=_SLICES - 1)
        self._now = [0, 0]
        self._requests = self._accepts = 0  # of the full slices

    def probability(self, now: float) -> float:
        """How likely the next call is to be refused."""
        self._advance(now)
        requests, accepts = self._requests + self._now[0], self._accepts + self._now[1]
        if requests < self._least:
            return 0.0
        return max(0.0, (requests - self._multiplier * accepts) / (requests + 1))

    def admit(self, now: float, rng: random.Random) -> bool:
        """Whether a call may be made. It counts as wanted either way."""
        probability = self.probability(now)
        self._now[0] += 1
        return probability <= 0.0 or rng.random() >= probability

    def unsent(self, now: float) -> None:
        """A call that might be made was not: nobody was there to turn it away, so it does not count."""
        self._advance(now)
        self._now[0] -= 1

    def accepted(self, now: float) -> None:
        """A call was not turned away."""
        self._advance(now)
        self._now[1] += 1

    def _advance(self, now: float) -> None:
        if now < self._ends:
            return
        passed = int((now - self._ends) / self._slice) + 1
        self._full.append((self._now[0], self._now[1]))
        self._full.extend([(0, 0)] * min(passed - 1, _SLICES))
        self._now = [0, 0]
        self._requests = sum(requests for requests, _ in self._full)
        self._accepts = sum(accepts for _, accepts in self._full)
        self._ends += passed * self._slice
