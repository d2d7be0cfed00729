"""A modelled server: processor sharing over a number of cores that changes under it.

With n queries in flight and C cores, every query runs at `speed * min(1, C / n)`: one core at most for one query, and
no queue but the sharing itself. All queries progress equally, so the server keeps one *progress*: the core-seconds
that a query would have received by now which was there from the beginning. A query that arrives is done when the
progress has grown by its work. So an arrival, a departure and a change of capacity are each O(log n).
"""

from __future__ import annotations

import enum
from collections import deque
from heapq import heappop, heappush
from math import inf
from statistics import median
from typing import Final, Protocol

from clientlb.endpoint import Endpoint
from clientlb.outcome import SUCCEEDED, Cause, Outcome, Verdict
from clientlb.simulation.loop import Loop

REFUSED: Final = Verdict(Outcome.RETRYABLE, "ConnectError", sent=False, cause=Cause.CONNECT)
BROKEN: Final = Verdict(Outcome.RETRYABLE, "ReadError")
FAILED: Final = Verdict(Outcome.RETRYABLE, "503")
TURNED_AWAY: Final = Verdict(Outcome.RETRYABLE, "429", cause=Cause.OVERLOAD)
FAILS_AFTER = 0.001
"""Seconds after which a failing server answers, and one that turns a query away."""

_ROUNDING = 1e-9
_SAMPLES = 8
"""Latencies that an estimate is made of; so many are kept for each number of queries in flight."""


class Condition(enum.Enum):
    """What a server does with queries."""

    SERVING = "serving"
    FAILING = "failing"
    """Answers at once, with an error."""
    SILENT = "silent"
    """Accepts everything and answers nothing."""
    DOWN = "down"
    """Refuses connections."""


class Query(Protocol):
    """One attempt of a call, as its server sees it.

    Attributes:
        ends_at: The progress of the server at which it is done.
        arrived_at: When it arrived.
        found: How many were in flight with it at its arrival, itself included.
    """

    ends_at: float
    arrived_at: float
    found: int

    def answered(self, verdict: Verdict) -> None:
        """Take the answer of the server."""


class Server:
    """One replica.

    Args:
        loop: Runs it.
        endpoint: Where clients find it.
        capacity: Cores that it may use now; `inf` when queries do not hinder each other.
        speed: Core-seconds of work done per second and core: 0.5 is a replica that is twice as slow.
        hobble: Factor on the capacity while there are more queries than cores (isolation that is paid for).
        cancels: It drops a query whose client has stopped waiting, rather than to finish it for nobody.
        limit: Queries in flight above which it turns every other one away.

    Attributes:
        condition: What it does with queries.
        least_work: Queries that arrive have at least this much work.
        in_flight: Queries being worked on ("RIF", requests in flight).
        finished: Queries answered, well or not.
    """

    __slots__ = (
        "_capacity",
        "_checked_at",
        "_heap",
        "_history",
        "_hobble",
        "_loop",
        "_progress",
        "_rate",
        "_speed",
        "_touched_at",
        "_turn",
        "_used",
        "cancels",
        "condition",
        "endpoint",
        "finished",
        "in_flight",
        "least_work",
        "limit",
    )

    def __init__(
        self,
        loop: Loop,
        endpoint: Endpoint,
        capacity: float = inf,
        *,
        speed: float = 1.0,
        hobble: float = 1.0,
        cancels: bool = True,
        limit: float = inf,
    ) -> None:
        self.endpoint: Endpoint = endpoint
        self.condition: Condition = Condition.SERVING
        self.cancels: bool = cancels
        self.limit: float = limit
        self.least_work: float = 0.0
        self.in_flight: int = 0
        self.finished: int = 0
        self._loop = loop
        self._capacity = capacity
        self._speed = speed
        self._hobble = hobble
        self._rate = speed
        self._progress = 0.0
        self._used = 0.0
        self._touched_at = loop.now
        self._checked_at = inf  # the earliest moment for which a look at the head of the heap is planned
        self._heap: list[tuple[float, int, Query]] = []
        self._turn = 0
        self._history: dict[int, deque[float]] | None = None

    # ------------------------------------------------------------------ queries

    def arrive(self, query: Query, work: float) -> None:
        """Take a query of `work` core-seconds. It is answered through `Query.answered`, never before this returns."""
        query.arrived_at = self._loop.now
        condition = self.condition
        if condition is Condition.SERVING and self.in_flight >= self.limit:
            query.found = self.in_flight
            self._loop.after(FAILS_AFTER, self._turn_away, query)
        elif condition is Condition.SERVING:
            self._advance()
            self.in_flight += 1
            query.found = self.in_flight
            query.ends_at = self._progress + (work if work > self.least_work else self.least_work)
            self._turn += 1
            heappush(self._heap, (query.ends_at, self._turn, query))
            self._plan()
        elif condition is Condition.FAILING:
            query.found = 1
            self._loop.after(FAILS_AFTER, self._fail, query)
        elif condition is Condition.DOWN:
            self._loop.after(0.0, _refuse, query)

    def abandon(self, query: Query) -> None:
        """The client has stopped waiting for a query that was not answered."""
        if self.cancels and query.ends_at < inf:
            self._advance()
            query.ends_at = inf  # what is left of it in the heap is thrown away when its turn comes
            self.in_flight -= 1
            self._plan()

    def stop(self) -> None:
        """Die: connections break, and new ones are refused."""
        for query in self._drop_all():
            self._loop.after(0.0, _break, query)
        self.condition = Condition.DOWN

    def fall_silent(self) -> None:
        """Answer nothing any more, not even what is in flight, and go on accepting."""
        self._drop_all()
        self.condition = Condition.SILENT

    def _drop_all(self) -> list[Query]:
        self._advance()
        dropped = [query for ends_at, _, query in self._heap if query.ends_at == ends_at]
        self._heap.clear()
        self.in_flight = 0
        for query in dropped:
            query.ends_at = inf
        return dropped

    # ------------------------------------------------------------------ what happens to it

    @property
    def capacity(self) -> float:
        """Cores that it may use now."""
        return self._capacity

    @capacity.setter
    def capacity(self, cores: float) -> None:
        self._advance()
        self._capacity = cores
        self._plan()

    @property
    def speed(self) -> float:
        """Core-seconds of work done per second and core."""
        return self._speed

    @speed.setter
    def speed(self, speed: float) -> None:
        self._advance()
        self._speed = speed
        self._plan()

    # ------------------------------------------------------------------ what it tells those who ask

    @property
    def used(self) -> float:
        """Core-seconds used so far."""
        self._advance()
        return self._used

    def remember_latencies(self) -> None:
        """Keep the latencies that `latency_estimate` is made of. Costs time, so only where somebody asks for it."""
        if self._history is None:
            self._history = {}

    def latency_estimate(self) -> float:
        """Seconds that a query should take now: the median of the last ones that found as many in flight, or nearly.

        0 when it has answered nothing yet. Prequal's probes ask for this.
        """
        history = self._history
        if not history:
            return 0.0
        found: list[float] = []
        here = self.in_flight + 1
        furthest = max(abs(max(history) - here), abs(min(history) - here))
        for distance in range(furthest + 1):
            for level in {here - distance, here + distance}:
                found += history.get(level, ())
            if len(found) >= _SAMPLES:
                break
        return median(found)

    # ------------------------------------------------------------------ the sharing

    def _advance(self) -> None:
        """Bring progress up to now."""
        now = self._loop.now
        passed = now - self._touched_at
        if passed > 0.0:
            self._touched_at = now
            in_flight = self.in_flight
            if in_flight:
                self._progress += passed * self._rate
                capacity = self._capacity
                self._used += passed * (in_flight if in_flight < capacity else capacity)

    def _plan(self) -> None:
        """Plan the next look at the head of the heap, unless one is planned that is early enough.

        Looks that come too early plan the next one; that is cheaper than to plan anew at every arrival.
        """
        heap = self._heap
        while heap and heap[0][2].ends_at != heap[0][0]:
            heappop(heap)
        in_flight = self.in_flight
        capacity = self._capacity
        self._rate = rate = self._speed if in_flight <= capacity else self._speed * self._hobble * capacity / in_flight
        if heap and rate > 0.0:
            moment = self._loop.now + (heap[0][0] - self._progress) / rate
            if moment < self._checked_at:
                self._checked_at = moment
                self._loop.at(moment, self._look, moment)

    def _look(self, planned_for: float) -> None:
        """Answer what is done."""
        if planned_for != self._checked_at:
            return  # an earlier look was planned since, and took over
        self._checked_at = inf
        self._advance()
        heap = self._heap
        done = self._progress + _ROUNDING
        answered: list[Query] = []
        while heap and heap[0][0] <= done:
            ends_at, _, query = heappop(heap)
            if query.ends_at == ends_at:
                query.ends_at = inf
                self.in_flight -= 1
                answered.append(query)
        self._plan()
        for query in answered:
            self._answer(query, SUCCEEDED)

    def _fail(self, query: Query) -> None:
        self._answer(query, FAILED)

    def _turn_away(self, query: Query) -> None:
        self._answer(query, TURNED_AWAY)

    def _answer(self, query: Query, verdict: Verdict) -> None:
        self.finished += 1
        if self._history is not None:
            level = self._history.setdefault(query.found, deque(maxlen=_SAMPLES))
            level.append(self._loop.now - query.arrived_at)
        query.answered(verdict)

    def __repr__(self) -> str:
        return f"<Server {self.endpoint.id} {self.condition.value}, {self.in_flight} in flight>"


def _refuse(query: Query) -> None:
    query.answered(REFUSED)


def _break(query: Query) -> None:
    query.answered(BROKEN)
