"""What happened in a run, and the figures that follow from it. Everything is kept, so that any question can be asked.

A call that failed has an infinite latency: percentiles are over all calls, so an error can never look fast.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from math import ceil, inf
from typing import NamedTuple

from clientlb.events import Event
from clientlb.simulation.server import Server
from clientlb.simulation.setting import Setting


def quantile(ordered: Sequence[float], fraction: float) -> float:
    """The smallest value that at least `fraction` of the ordered values do not exceed; 0 if there are none."""
    return ordered[max(0, ceil(fraction * len(ordered)) - 1)] if ordered else 0.0


class Record:
    """Takes down what happens. Written by clients and world, read by `Result`.

    Attributes:
        waited_for: Calls of the measured time that have not ended yet.
    """

    __slots__ = (
        "_measure_until",
        "attempts",
        "began",
        "events",
        "in_flight",
        "latencies",
        "numbers",
        "servers",
        "waited_for",
    )

    def __init__(self, measure_until: float) -> None:
        self._measure_until = measure_until
        self.waited_for: int = 0
        self.began: array[float] = array("d")
        self.latencies: array[float] = array("d")
        self.attempts: array[float] = array("d")
        self.servers: array[int] = array("L")
        self.events: list[tuple[float, Event]] = []
        self.in_flight: list[tuple[float, tuple[int, ...]]] = []
        self.numbers: dict[Server, int] = {}

    def call_began(self, now: float) -> None:
        """A call begins."""
        if now < self._measure_until:
            self.waited_for += 1

    def call_ended(self, began: float, latency: float) -> None:
        """A call has ended."""
        if began < self._measure_until:
            self.waited_for -= 1
        self.began.append(began)
        self.latencies.append(latency)

    def attempt(self, now: float, server: Server) -> None:
        """An attempt is sent to a server."""
        self.attempts.append(now)
        self.servers.append(self.numbers[server])

    def event(self, now: float, event: Event) -> None:
        """A balancer says something."""
        self.events.append((now, event))

    def sample(self, now: float, in_flight: tuple[int, ...]) -> None:
        """So many queries are in flight at the servers."""
        self.in_flight.append((now, in_flight))


class Moment(NamedTuple):
    """A slice of time in a run."""

    second: float
    """When it began."""
    calls: int
    lost: int
    attempts: int
    p50: float
    p99: float


class Result:
    """The figures of one run. Times are in seconds; what was not measured (the warm-up) does not count.

    Attributes:
        setting: The fleet.
        policy: Name of the policy.
        seed: Of the run.
        servers: The replicas; the position of each is its number in the record.
        probes: Questions that the policy asked servers about their load, in the whole run.
    """

    def __init__(
        self, setting: Setting, policy: str, seed: int, record: Record, servers: Sequence[Server], probes: int
    ) -> None:
        self.setting: Setting = setting
        self.policy: str = policy
        self.seed: int = seed
        self.servers: tuple[Server, ...] = tuple(servers)
        self.probes: int = probes
        self._record = record

    def latencies(self, since: float | None = None, until: float | None = None) -> list[float]:
        """Latencies of the calls that began in a time (default: all that is measured), in order; `inf` is an error."""
        first = self.setting.warm_up if since is None else since
        end = self.setting.ends if until is None else until
        record = self._record
        return sorted(
            latency for began, latency in zip(record.began, record.latencies, strict=True) if first <= began < end
        )

    @cached_property
    def _latencies(self) -> list[float]:
        return self.latencies()

    @property
    def calls(self) -> int:
        """Calls."""
        return len(self._latencies)

    @property
    def lost(self) -> int:
        """Calls that failed, after whatever retries they had."""
        return self.calls - bisect_left(self._latencies, inf)

    @property
    def lost_share(self) -> float:
        """Calls that failed, as a share of all."""
        return self.lost / self.calls if self.calls else 0.0

    def quantile(self, fraction: float) -> float:
        """Latency of a call; `inf` where that is an error."""
        return quantile(self._latencies, fraction)

    def within(self, seconds: float) -> float:
        """Share of the calls that succeeded in this time."""
        return bisect_left(self._latencies, seconds) / self.calls if self.calls else 0.0

    def attempts(
        self, servers: Sequence[Server] | None = None, since: float | None = None, until: float | None = None
    ) -> int:
        """Attempts sent to these servers (default: to anyone) in a time (default: all that is measured)."""
        first = self.setting.warm_up if since is None else since
        end = self.setting.ends if until is None else until
        wanted = {self._record.numbers[server] for server in (self.servers if servers is None else servers)}
        record = self._record
        return sum(
            first <= moment < end and number in wanted
            for moment, number in zip(record.attempts, record.servers, strict=True)
        )

    @property
    def attempts_per_call(self) -> float:
        """Attempts per call."""
        return self.attempts() / self.calls if self.calls else 0.0

    @property
    def probes_per_call(self) -> float:
        """Questions about load per call, over the whole run."""
        return self.probes / max(1, len(self._record.began))

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """Share of the attempts that each server got."""
        counts = Counter(
            number
            for moment, number in zip(self._record.attempts, self._record.servers, strict=True)
            if self.setting.warm_up <= moment < self.setting.ends
        )
        total = max(1, counts.total())
        return tuple(counts[number] / total for number in range(len(self.servers)))

    @cached_property
    def _in_flight(self) -> list[int]:
        return sorted(
            count for moment, counts in self._record.in_flight if moment >= self.setting.warm_up for count in counts
        )

    def in_flight_quantile(self, fraction: float) -> float:
        """Queries in flight at a server, sampled ten times a second at all of them."""
        return quantile(self._in_flight, fraction)

    def in_flight_tail(self, count: int) -> float:
        """Share of these samples in which a server had at least so many queries in flight."""
        return 1.0 - bisect_left(self._in_flight, count) / max(1, len(self._in_flight))

    def events(self, kind: type[Event], since: float | None = None) -> int:
        """How often balancers said such a thing in a time (default: all that is measured)."""
        first = self.setting.warm_up if since is None else since
        return sum(moment >= first and isinstance(event, kind) for moment, event in self._record.events)

    def timeline(self, width: float = 1.0) -> list[Moment]:
        """The whole run, warm-up included, in slices of `width` seconds by the time at which calls began."""
        slices = ceil(self.setting.ends / width)
        latencies: list[list[float]] = [[] for _ in range(slices)]
        attempts = [0] * slices
        for began, latency in zip(self._record.began, self._record.latencies, strict=True):
            if began < self.setting.ends:
                latencies[int(began / width)].append(latency)
        for moment in self._record.attempts:
            if moment < self.setting.ends:
                attempts[int(moment / width)] += 1
        timeline = []
        for number, found in enumerate(latencies):
            found.sort()
            lost = len(found) - bisect_left(found, inf)
            p50, p99 = quantile(found, 0.5), quantile(found, 0.99)
            timeline.append(Moment(number * width, len(found), lost, attempts[number], p50, p99))
        return timeline

    @cached_property
    def digest(self) -> str:
        """A fingerprint of everything that happened: equal when two runs were equal to the last bit."""
        record = self._record
        found = hashlib.sha256()
        for column in (record.began, record.latencies, record.attempts, record.servers):
            found.update(column.tobytes())
        found.update(repr(record.in_flight).encode())
        return found.hexdigest()
