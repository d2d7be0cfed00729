"""Exposes what clientlb does as Prometheus metrics. Needs the extra `prometheus`.

A sink is a custom collector: it reads `Services.stats()` when Prometheus scrapes, so a call pays nothing for it. Only
facts that `stats()` does not keep (a breaker that opened, a registry that failed) are counted from events. Nothing is
made at import, so any number of registries can have a sink each. prometheus_client's multiprocess mode ignores custom
collectors: there, scrape each process by itself.

    clientlb_calls_total{service}                        calls, whatever number of attempts they took
    clientlb_failures_total{service}                     calls that failed in the end
    clientlb_retries_total{service}                      attempts that repeated another one
    clientlb_retries_denied_total{service}               retries that the budget did not allow
    clientlb_hedges_total{service}                       attempts that were started beside one that was late
    clientlb_hedges_denied_total{service}                such attempts that the budget did not allow
    clientlb_throttled_total{service}                    calls that were refused here (`ThrottleOptions`)
    clientlb_attempt_duration_seconds{service}           histogram: time of an attempt to the head of the response
    clientlb_in_flight{service}                          attempts under way
    clientlb_endpoints{service,state}                    endpoints by state of their breaker
    clientlb_circuit_transitions_total{service,to}       breakers that opened, half-opened, closed
    clientlb_would_eject_total{service,rule}             ejections by rules that are on trial (`HealthOptions.dry_run`)
    clientlb_ejection_suspended_total{service}           how often the trouble looked like our own
    clientlb_discovery_age_seconds{service}              for how long the registry could not confirm the list
    clientlb_discovery_stale{service}                    1 while the registry cannot confirm the list, else 0
    clientlb_discovery_limbo{service}                    endpoints in use that the registry no longer names
    clientlb_discovery_errors_total{service}             how often the registry began to fail
    clientlb_endpoint_attempts_total{service,endpoint}   these three only with endpoint_label=True
    clientlb_endpoint_failures_total{service,endpoint}
    clientlb_endpoint_in_flight{service,endpoint}
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from types import TracebackType
from typing import TYPE_CHECKING, Self

try:
    from prometheus_client import REGISTRY, CollectorRegistry
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as _error:
    raise ImportError("this needs prometheus_client: pip install 'clientlb[prometheus]'", name=_error.name) from _error

from clientlb import events, histogram
from clientlb.errors import ConfigurationError
from clientlb.health_options import RULES

if TYPE_CHECKING:
    from clientlb.services import Services
    from clientlb.stats import EndpointStats, ServiceStats

__all__ = ["PrometheusSink"]

_STATES = ("closed", "open", "half-open")
_TRANSITIONS: dict[type[events.Event], str] = {
    events.Ejected: "open",
    events.Probing: "half-open",
    events.Restored: "closed",
}

# One boundary per octave, from 0.5 ms to 16.8 s. They are edges of our own buckets, so the counts are exact.
_BOUNDARIES = tuple(octave * histogram.PER_OCTAVE - 1 for octave in range(9, 25))


class PrometheusSink(Collector):
    """Puts the metrics of a `Services` on a Prometheus registry until `close()`.

    Args:
        services: Whose calls to expose.
        registry: Where to put them (default: prometheus_client's own `REGISTRY`).
        endpoint_label: Also expose attempts, failures and calls in flight by endpoint (default False: the number of
            series then grows with the fleet and with every deployment).

    Raises:
        ConfigurationError: The registry has metrics of these names already, such as those of another sink.
    """

    def __init__(
        self, services: Services, registry: CollectorRegistry | None = None, *, endpoint_label: bool = False
    ) -> None:
        self._services = services
        self._registry = REGISTRY if registry is None else registry
        self._endpoint_label = endpoint_label
        self._lock = threading.RLock()  # the garbage collector may end a call, which may be an event, at any time
        self._transitions: Counter[tuple[str, str]] = Counter()
        self._discovery_errors: Counter[str] = Counter()
        self._would_eject: Counter[tuple[str, str]] = Counter()
        self._suspensions: Counter[str] = Counter()
        self._reported: dict[tuple[str, str], float] = {}
        try:
            self._registry.register(self)
        except ValueError as error:
            raise ConfigurationError(
                f"the Prometheus registry has metrics of clientlb already ({error}); close the other sink first, or"
                " give each sink a registry of its own"
            ) from None
        self._closed = False
        self._hook = self._count  # kept: hooks are removed by identity, and each look at a method makes a new object
        services.add_hook(self._hook)

    def close(self) -> None:
        """Take the metrics off the registry and the hook off the services. Idempotent."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self._registry.unregister(self)
            self._services.remove_hook(self._hook)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _count(self, event: events.Event) -> None:
        to = _TRANSITIONS.get(type(event))
        with self._lock:
            if to is not None:
                self._transitions[event.service, to] += 1
            elif isinstance(event, events.DiscoveryFailed):
                self._discovery_errors[event.service] += 1
            elif isinstance(event, events.WouldEject):
                self._would_eject[event.service, event.rule] += 1
            elif isinstance(event, events.EjectionSuspended):
                self._suspensions[event.service] += 1

    def describe(self) -> Iterator[Metric]:
        """The names of all metrics, which the registry checks for duplicates. Reads no figures."""
        return self._families({})

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now. Called at every scrape."""
        return self._families(self._services.stats())

    def _families(self, stats: dict[str, ServiceStats]) -> Iterator[Metric]:
        yield from self._calls(stats)
        yield _durations(stats)
        yield from _gauges(stats)
        yield from self._events(stats)
        if self._endpoint_label:
            yield from _by_endpoint(stats)

    def _calls(self, stats: dict[str, ServiceStats]) -> Iterator[Metric]:
        calls = _counter("calls", "Calls, whatever number of attempts they took")
        failures = _counter("failures", "Calls that failed after their retries")
        retries = _counter("retries", "Attempts that repeated another one")
        denied = _counter("retries_denied", "Retries that the retry budget did not allow")
        hedges = _counter("hedges", "Attempts that were started beside one that was late")
        hedges_denied = _counter("hedges_denied", "Such attempts that the retry budget did not allow")
        throttled = _counter("throttled", "Calls that were refused because the service turns most calls away")
        for name, service in stats.items():
            calls.add_metric([name], self._never_back("calls", name, service.calls))
            failures.add_metric([name], self._never_back("failures", name, service.failures))
            retries.add_metric([name], service.retries)
            hedges.add_metric([name], self._never_back("hedges", name, service.hedges))
            hedges_denied.add_metric([name], service.hedges_denied)
            throttled.add_metric([name], service.throttled)
            denied.add_metric([name], service.retries_denied)
        return iter((calls, failures, retries, denied, hedges, hedges_denied, throttled))

    def _never_back(self, metric: str, service: str, value: float) -> float:
        """A counter that goes back is a restart to Prometheus, and calls less retries does, while a retry is under way.

        Two scrapes may run at once, hence the lock.
        """
        with self._lock:
            value = self._reported[metric, service] = max(value, self._reported.get((metric, service), 0.0))
        return value

    def _events(self, stats: dict[str, ServiceStats]) -> Iterator[Metric]:
        transitions = _counter("circuit_transitions", "Changes of breakers, by the state that they changed to", "to")
        errors = _counter("discovery_errors", "How often the registry began to fail")
        trials = _counter("would_eject", "Ejections that rules on trial would have made", "rule")
        suspensions = _counter("ejection_suspended", "How often trouble looked like the client's own")
        for name in stats:
            with self._lock:
                would = {rule: self._would_eject[name, rule] for rule in RULES}
                suspended = self._suspensions[name]
                changes = [self._transitions[name, state] for state in _STATES]
                failed = self._discovery_errors[name]
            for state, count in zip(_STATES, changes, strict=True):
                transitions.add_metric([name, state], count)
            errors.add_metric([name], failed)
            for rule, count in would.items():
                trials.add_metric([name, rule], count)
            suspensions.add_metric([name], suspended)
        return iter((transitions, errors, trials, suspensions))


def _counter(name: str, documentation: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"clientlb_{name}", documentation, labels=["service", *labels])


def _gauge(name: str, documentation: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"clientlb_{name}", documentation, labels=["service", *labels])


def _gauges(stats: dict[str, ServiceStats]) -> Iterator[Metric]:
    in_flight = _gauge("in_flight", "Attempts under way")
    endpoints = _gauge("endpoints", "Endpoints by the state of their breaker", "state")
    age = _gauge("discovery_age_seconds", "For how long the registry could not confirm the list; 0 while it can")
    stale = _gauge("discovery_stale", "1 while the registry cannot confirm the list, else 0")
    limbo = _gauge("discovery_limbo", "Endpoints in use that the registry no longer names")
    for name, service in stats.items():
        in_flight.add_metric([name], service.in_flight)
        states = Counter(endpoint.state for endpoint in service.endpoints)
        for state in _STATES:
            endpoints.add_metric([name, state], states[state])
        if service.age is not None:
            age.add_metric([name], service.age)
        stale.add_metric([name], float(service.stale))
        limbo.add_metric([name], service.limbo)
    return iter((in_flight, endpoints, age, stale, limbo))


def _durations(stats: dict[str, ServiceStats]) -> Metric:
    family = HistogramMetricFamily(
        "clientlb_attempt_duration_seconds", "Time of an attempt to the head of the response", labels=["service"]
    )
    for name, service in stats.items():
        family.add_metric([name], _cumulative(service.counts), histogram.total_seconds(service.counts))
    return family


def _cumulative(counts: Sequence[int]) -> list[tuple[str, float]]:
    running = list(accumulate(counts))
    buckets = [(str(histogram.upper_bound(index)), float(running[index])) for index in _BOUNDARIES]
    return [*buckets, ("+Inf", float(running[-1]))]


def _by_endpoint(stats: dict[str, ServiceStats]) -> Iterator[Metric]:
    attempts = _counter("endpoint_attempts", "Attempts at the endpoint", "endpoint")
    failures = _counter("endpoint_failures", "Attempts at the endpoint that failed", "endpoint")
    in_flight = _gauge("endpoint_in_flight", "Attempts under way at the endpoint", "endpoint")
    for name, service in stats.items():
        for address, group in _by_address(service.endpoints).items():
            attempts.add_metric([name, address], sum(endpoint.calls for endpoint in group))
            failures.add_metric([name, address], sum(endpoint.failures for endpoint in group))
            in_flight.add_metric([name, address], sum(endpoint.in_flight for endpoint in group))
    return iter((attempts, failures, in_flight))


def _by_address(endpoints: Sequence[EndpointStats]) -> dict[str, list[EndpointStats]]:
    """Two registrations may share an address (a restarted server); a series must not appear twice."""
    groups: dict[str, list[EndpointStats]] = {}
    for endpoint in endpoints:
        groups.setdefault(endpoint.endpoint, []).append(endpoint)
    return groups
