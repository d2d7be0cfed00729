"""The figures that tell whether a service is well, as frozen values."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from clientlb import histogram
from clientlb.figures import Figures, Snapshot
from clientlb.node import Node

if TYPE_CHECKING:
    from clientlb.balancer import Balancer


@dataclass(frozen=True, slots=True)
class EndpointStats:
    """Figures of one endpoint. Rates and latencies cover the last 10 to 20 seconds; latencies are in seconds.

    Attributes:
        calls: Attempts since the start, without ignored ones.
        failures: Attempts that failed since the start.
        median: Time to the head of the response; None when there were no calls. p99 and max likewise.
        state: `"closed"`, `"open"` or `"half-open"`: the state of the breaker.
    """

    endpoint: str
    state: str
    in_flight: int
    calls: int
    failures: int
    calls_per_second: float
    failures_per_second: float
    median: float | None
    p99: float | None
    max: float | None


@dataclass(frozen=True, slots=True)
class ServiceStats:
    """Figures of one service. Rates and latencies cover the last 10 to 20 seconds; latencies are in seconds.

    Attributes:
        calls: Calls since the start: attempts, less those that repeated another one or ran beside it.
        failures: Calls that failed since the start, after their retries.
        retries: Attempts that repeated another one since the start.
        retries_denied: Retries that the budget did not allow.
        hedges: Attempts that were started beside one that was late.
        hedges_denied: Those that the budget did not allow.
        throttled: Calls that were refused here, and are in no other figure; see `ThrottleOptions`.
        median: Time of an attempt to the head of the response. p99 and max likewise.
        healthy: Endpoints whose breaker is closed.
        age: Seconds for which the registry could not confirm the list; 0 while it can, None before the first list.
        stale: The registry cannot confirm the list now.
        limbo: Endpoints that are used although the registry no longer names them; see `GuardOptions`.
        registry_state: `"waiting"`, `"ok"`, `"failing"` or `"cached"`; see `Balancer.registry_state`.
        calls_per_second: Attempts per second. failures_per_second likewise.
        counts: Attempts by latency since the start; see `clientlb.histogram`.
    """

    service: str
    in_flight: int
    calls: int
    failures: int
    retries: int
    retries_denied: int
    hedges: int
    hedges_denied: int
    throttled: int
    calls_per_second: float
    failures_per_second: float
    median: float | None
    p99: float | None
    max: float | None
    healthy: int
    age: float | None
    stale: bool
    limbo: int
    registry_state: str
    counts: tuple[int, ...]
    endpoints: tuple[EndpointStats, ...]


_MOST_LEAVERS = 1000


class Totals:
    """What endpoints that left had counted, so that the counters of a service never go back."""

    __slots__ = ("counts", "failures", "leavers")

    def __init__(self) -> None:
        self.failures: int = 0
        self.counts: array[int] = histogram.new_counts()
        self.leavers: list[Node] = []

    def add(self, nodes: Iterable[Node], figures: Figures) -> None:
        """Keep nodes that left until their last calls have ended. Adding them up takes long, so it is put off."""
        self.leavers = [*self.leavers, *nodes]
        if len(self.leavers) > _MOST_LEAVERS:
            self.settle(figures)

    def settled(self, figures: Figures) -> Totals:
        """A copy that does not change, after adding up the leavers whose calls have all ended."""
        self.settle(figures)
        copied = Totals()
        copied.failures, copied.counts, copied.leavers = self.failures, self.counts, self.leavers
        return copied

    def settle(self, figures: Figures) -> None:
        """Add up the leavers whose calls have all ended."""
        ended = [node.column for node in self.leavers if node.in_flight == 0]
        if ended:
            counts, failures = figures.take_out(ended)
            self.counts = histogram.add(self.counts, counts)
            self.failures += failures
            self.leavers = [node for node in self.leavers if node.in_flight > 0]


class Counted(NamedTuple):
    """What was counted of one service."""

    nodes: tuple[Node, ...]
    """Its endpoints."""
    gone: Totals
    """What endpoints that left had counted."""
    now: Snapshot
    """The counters now."""
    before: Snapshot
    """The counters from which on rates and latencies are taken."""
    seconds: float
    """The time between the two."""


def summarise(balancer: Balancer, everything: Counted) -> ServiceStats:
    """Put the figures of a service together, without the lock: with thousands of endpoints this takes long."""
    nodes, gone, counted, before, seconds = everything
    endpoints = tuple(_endpoint(node, counted, before, seconds) for node in nodes)
    everybody = (*nodes, *gone.leavers)
    columns = [node.column for node in everybody]
    attempts, failed = counted.of(columns)
    attempts_before, failed_before = before.of(columns)
    recent = histogram.difference(attempts, attempts_before)
    recent_failures = failed - failed_before
    counts, failures = histogram.add(gone.counts, attempts), gone.failures + failed
    median, p99, longest = histogram.quantiles(recent, (0.5, 0.99, 1.0))
    retrying = balancer.retrying
    retries = retrying.retries
    return ServiceStats(
        service=balancer.service,
        in_flight=sum(node.in_flight for node in everybody),
        calls=sum(counts) - retries - retrying.hedges,
        failures=max(0, failures - retries - retrying.failures_absorbed),
        retries=retries,
        retries_denied=retrying.retries_denied,
        hedges=retrying.hedges,
        hedges_denied=retrying.hedges_denied,
        throttled=retrying.throttled,
        calls_per_second=sum(recent) / seconds,
        failures_per_second=recent_failures / seconds,
        median=median,
        p99=p99,
        max=longest,
        healthy=sum(1 for stats in endpoints if stats.state == "closed"),
        age=balancer.age,
        stale=balancer.stale,
        limbo=len(balancer.limbo),
        registry_state=balancer.registry_state,
        counts=tuple(counts),
        endpoints=endpoints,
    )


def _endpoint(node: Node, counted: Snapshot, before: Snapshot, seconds: float) -> EndpointStats:
    attempts, failures = counted.of([node.column])
    attempts_before, failures_before = before.of([node.column])
    recent = histogram.difference(attempts, attempts_before)
    median, p99, longest = histogram.quantiles(recent, (0.5, 0.99, 1.0))
    return EndpointStats(
        endpoint=node.endpoint.address,
        state=node.breaker.state.value,
        in_flight=node.in_flight,
        calls=sum(attempts),
        failures=failures,
        calls_per_second=sum(recent) / seconds,
        failures_per_second=(failures - failures_before) / seconds,
        median=median,
        p99=p99,
        max=longest,
    )
