"""Node: an endpoint plus its live state. It survives every update that still has the endpoint.

With thousands of endpoints the pick is bound by cache misses, not by arithmetic. So an ordinary successful call touches
as little of a node as it can: its score, its calls in flight and one counter of its histogram. All other figures are
derived from the histogram when somebody asks.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import inf

from clientlb import histogram
from clientlb.endpoint import Endpoint
from clientlb.health.breaker import Breaker

_ONE = 1.0  # one object for all nodes of weight 1: fewer cache misses


class Node:
    """Live state of one endpoint. Only the balancer and its policy change it, under the balancer's lock.

    Attributes:
        endpoint: What discovery says.
        inverse_weight: 1 / weight.
        in_flight: Calls that were picked and not yet released.
        score: What a learning policy knows, in a measure of its own; -inf is nothing.
        breaker: Whether the endpoint may be tried.
        connected: It has answered before, so that an answer no longer has the making of the connection in it.
        troubled: The breaker is not closed, or has counted a failure: a success is news to it.
        failures: Attempts that failed, since the start.
        counts: Histogram of all attempts since the start; None before the first one.
        window: Number of the figures window in which `counts` was last saved.
    """

    __slots__ = (
        "_saved",
        "breaker",
        "connected",
        "counts",
        "endpoint",
        "failures",
        "in_flight",
        "inverse_weight",
        "score",
        "troubled",
        "window",
    )

    def __init__(self, endpoint: Endpoint) -> None:
        self.describe(endpoint)
        self.in_flight: int = 0
        self.score: float = -inf
        self.breaker: Breaker = Breaker()
        self.connected: bool = False
        self.troubled: bool = False
        self.failures: int = 0
        self.counts: array[int] | None = None
        self.window: int = -1
        self._saved: tuple[_Saved, _Saved] | None = None

    def describe(self, endpoint: Endpoint) -> None:
        """Take over what discovery now says of the same server: weight, zone, metadata."""
        self.endpoint: Endpoint = endpoint
        self.inverse_weight: float = _ONE if endpoint.weight == 1.0 else 1.0 / endpoint.weight

    @property
    def attempts(self) -> int:
        """Attempts that succeeded or failed, since the start."""
        return 0 if self.counts is None else sum(self.counts)

    def enter_window(self, window: Window) -> array[int]:
        """Save the counters at the start of a figures window; returns the histogram to count in."""
        if self.counts is None:
            self.counts = histogram.new_counts()
            saved = _NOTHING_YET
        else:
            saved = _Saved(self.failures, self.counts[:])
        # the older of the two is where `recent` counts from: one to two windows ago
        previous = self._saved[1] if self._saved is not None and self.window == window.previous else saved
        self._saved = (previous, saved)
        self.window = window.number
        return self.counts

    def count_with_care(self, seconds: float) -> None:
        """Count a latency beyond the last bucket, or one too many for a counter of 4 bytes."""
        assert self.counts is not None
        index = histogram.bucket(seconds)
        try:
            self.counts[index] += 1
        except OverflowError:
            self.counts = histogram.widened(self.counts)
            self.counts[index] += 1

    def recent(self, window: Window) -> tuple[Sequence[int], int]:
        """Histogram and failures of the current figures window and the one before."""
        if self.counts is None or self._saved is None:
            return (), 0
        if self.window == window.number:
            since = self._saved[0]
        elif self.window == window.previous:
            since = self._saved[1]
        else:
            return (), 0
        return histogram.difference(self.counts, since.counts), self.failures - since.failures

    def __repr__(self) -> str:
        return f"<Node {self.endpoint} {self.breaker.state.value}, {self.in_flight} in flight>"


class _Saved:
    """The counters of a node at the start of a window."""

    __slots__ = ("counts", "failures")

    def __init__(self, failures: int, counts: array[int]) -> None:
        self.failures = failures
        self.counts = counts


_NOTHING_YET = _Saved(0, histogram.new_counts())


class Window:
    """The figures windows of a balancer, `LENGTH` seconds each. `stats()` looks at the current one and the one before.

    Attributes:
        number: Number of the current window. It wraps at 256, because Python has those integers ready: comparing a
            node's window with it touches no memory of the node's own.
        previous: Number of the window before.
        ends: When the current window ends.
    """

    __slots__ = ("_began", "_previous_began", "ends", "number", "previous")

    LENGTH = 10.0

    def __init__(self, now: float) -> None:
        self.number: int = 0
        self.previous: int = 255
        self.ends: float = now + self.LENGTH
        self._began = now
        self._previous_began = now

    def advance(self, now: float) -> None:
        """Begin a new window if the current one has ended. After a silence of two windows the old ones are void."""
        if now < self.ends:
            return
        silent = now >= self.ends + self.LENGTH
        self.previous = (self.number + 1) % 256 if silent else self.number
        self.number = (self.previous + 1) % 256
        self._previous_began = now - self.LENGTH if silent else self._began
        self._began = now
        self.ends = now + self.LENGTH

    def seconds(self, now: float) -> float:
        """Seconds that the current window and the one before cover until now."""
        return max(now - self._previous_began, 1e-3)
