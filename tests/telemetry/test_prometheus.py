"""What Prometheus would see: most tests scrape a registry, the first one a real `/metrics` after real calls."""

from __future__ import annotations

import gc
import random
import socket
import subprocess
import sys
import threading
import urllib.request
import weakref
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from clientlb import events, histogram
from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError, DiscoveryError
from clientlb.options import Options
from clientlb.outcome import Outcome
from clientlb.retry_options import BudgetOptions, RetryOptions
from clientlb.services import Services
from clientlb.telemetry.prometheus import PrometheusSink
from clientlb.testing import FakeClock, ManualDiscovery

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Samples:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples), "a series appeared twice"
    return found


def scrape(registry: CollectorRegistry) -> Samples:
    return parse(generate_latest(registry).decode())


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples["clientlb_" + name, frozenset({"service": "orders", **labels}.items())]


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def discovery() -> ManualDiscovery:
    return ManualDiscovery({"orders": ["10.0.0.1:80"]})


@pytest.fixture
def services(clock: FakeClock, discovery: ManualDiscovery) -> Iterator[Services]:
    with Services(discovery, clock=clock, rng=random.Random(1)) as services:
        yield services


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def call(services: Services, clock: FakeClock, seconds: float = 0.001, outcome: Outcome = Outcome.SUCCESS) -> None:
    pick = services["orders"].pick()
    clock.advance(seconds)
    pick.release(outcome)


def test_a_real_scrape_after_real_calls(server: str, registry: CollectorRegistry) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but it does not listen: connections are refused
        dead = f"127.0.0.1:{taken.getsockname()[1]}"
        options = Options(retry=RetryOptions(budget=BudgetOptions(reserve=1000)), policy="round_robin")
        with Services(f"static://{server},{dead}", options=options) as services, PrometheusSink(services, registry):

            @services.balanced("orders", idempotent=True)
            def ask(endpoint: Endpoint) -> int:
                with urllib.request.urlopen(f"http://{endpoint.address}/", timeout=5) as response:
                    status: int = response.status
                    return status

            assert [ask() for _ in range(20)] == [200] * 20
            exporter, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{exporter.server_port}/metrics", timeout=5) as response:
                    samples = parse(response.read().decode())
            finally:
                exporter.shutdown()
                exporter.server_close()
                thread.join()
    retries = value(samples, "retries_total")
    assert retries >= 5
    assert value(samples, "calls_total") == 20
    assert value(samples, "failures_total") == 0
    assert value(samples, "retries_denied_total") == 0
    assert value(samples, "hedges_denied_total") == 0
    assert value(samples, "hedges_total") == 0
    assert value(samples, "throttled_total") == 0
    assert value(samples, "attempt_duration_seconds_count") == 20 + retries
    assert value(samples, "attempt_duration_seconds_bucket", le="+Inf") == 20 + retries
    assert value(samples, "attempt_duration_seconds_sum") > 0
    assert value(samples, "in_flight") == 0
    assert value(samples, "endpoints", state="closed") == 1
    assert value(samples, "endpoints", state="open") == 1
    assert value(samples, "endpoints", state="half-open") == 0
    assert value(samples, "circuit_transitions_total", to="open") == 1
    assert value(samples, "discovery_age_seconds") == 0
    assert value(samples, "discovery_errors_total") == 0


def test_latencies_are_counted_at_exact_boundaries(
    services: Services, clock: FakeClock, registry: CollectorRegistry
) -> None:
    latencies = (0.0001, 0.003, 0.003, 0.2, 100.0)
    with PrometheusSink(services, registry):
        for seconds in latencies:
            call(services, clock, seconds)
        samples = scrape(registry)
    name = "clientlb_attempt_duration_seconds_bucket"
    buckets = {dict(labels)["le"]: count for (sample, labels), count in samples.items() if sample == name}
    assert len(buckets) == 17
    edges = {histogram.upper_bound(index) for index in range(histogram.BUCKETS)}
    for boundary, count in buckets.items():
        if boundary != "+Inf":
            assert float(boundary) in edges
        assert count == sum(seconds <= float(boundary) for seconds in latencies)
    assert value(samples, "attempt_duration_seconds_sum") == pytest.approx(sum(latencies), rel=0.05)


def test_in_flight_and_breakers(services: Services, clock: FakeClock, registry: CollectorRegistry) -> None:
    with PrometheusSink(services, registry):
        for _ in range(5):
            call(services, clock, outcome=Outcome.FAILURE)
        samples = scrape(registry)
        assert value(samples, "endpoints", state="open") == 1
        assert value(samples, "failures_total") == 5
        clock.advance(60)
        probe = services["orders"].pick()
        samples = scrape(registry)
        assert value(samples, "in_flight") == 1
        assert value(samples, "endpoints", state="half-open") == 1
        probe.release()
        samples = scrape(registry)
    assert value(samples, "in_flight") == 0
    assert value(samples, "endpoints", state="closed") == 1
    assert [value(samples, "circuit_transitions_total", to=to) for to in ("open", "half-open", "closed")] == [1, 1, 1]


def test_discovery(
    services: Services, discovery: ManualDiscovery, clock: FakeClock, registry: CollectorRegistry
) -> None:
    with PrometheusSink(services, registry):
        call(services, clock)
        assert value(scrape(registry), "discovery_age_seconds") == 0
        assert value(scrape(registry), "discovery_stale") == 0
        discovery.fail("orders", DiscoveryError("gone"))
        assert value(scrape(registry), "discovery_stale") == 1
        assert value(scrape(registry), "discovery_limbo") == 0
        discovery.fail("orders", DiscoveryError("still gone"))
        clock.advance(30)
        samples = scrape(registry)
        assert value(samples, "discovery_age_seconds") == 30
        assert value(samples, "discovery_errors_total") == 1
        discovery.set("orders", ["10.0.0.1:80"])
        assert value(scrape(registry), "discovery_age_seconds") == 0


def test_a_list_that_never_arrived_has_no_age(clock: FakeClock, registry: CollectorRegistry) -> None:
    with Services(ManualDiscovery(), clock=clock) as services, PrometheusSink(services, registry):
        assert services["orders"].endpoints == ()
        samples = scrape(registry)
    assert value(samples, "calls_total") == 0
    assert not [name for name, _ in samples if name == "clientlb_discovery_age_seconds"]


def test_counters_never_go_back(services: Services, clock: FakeClock, registry: CollectorRegistry) -> None:
    """An attempt has failed, its retry is counted and under way: for a moment there are fewer calls than before."""
    balancer = services["orders"]
    with PrometheusSink(services, registry):
        call(services, clock, outcome=Outcome.FAILURE)
        before = scrape(registry)
        balancer.retrying.count_retry(events.Retried("orders", balancer.endpoints[0], 1, "503", 0.0))
        assert (balancer.stats().calls, balancer.stats().failures) == (0, 0)
        meanwhile = scrape(registry)
        call(services, clock)
        after = scrape(registry)
    for samples in (before, meanwhile, after):
        assert value(samples, "calls_total") == 1
        assert value(samples, "failures_total") == 1
    assert value(after, "retries_total") == 1


def test_endpoints_are_labelled_only_when_asked(
    services: Services, clock: FakeClock, discovery: ManualDiscovery, registry: CollectorRegistry
) -> None:
    discovery.set("orders", [Endpoint("10.0.0.1", 80, id="old"), Endpoint("10.0.0.1", 80, id="new")])
    with PrometheusSink(services, registry):
        call(services, clock)
        assert not [labels for _, labels in scrape(registry) if "endpoint" in dict(labels)]
    with PrometheusSink(services, registry, endpoint_label=True):
        call(services, clock, outcome=Outcome.FAILURE)
        held = services["orders"].pick()
        samples = scrape(registry)
        held.release()
    assert value(samples, "endpoint_attempts_total", endpoint="10.0.0.1:80") == 2
    assert value(samples, "endpoint_failures_total", endpoint="10.0.0.1:80") == 1
    assert value(samples, "endpoint_in_flight", endpoint="10.0.0.1:80") == 1


def test_each_registry_may_have_a_sink(services: Services, clock: FakeClock, registry: CollectorRegistry) -> None:
    other = CollectorRegistry()
    with PrometheusSink(services, registry), PrometheusSink(services, other):
        call(services, clock)
        assert scrape(registry) == scrape(other)


def test_a_second_sink_on_a_registry_is_refused_and_harms_nothing(
    services: Services, clock: FakeClock, registry: CollectorRegistry
) -> None:
    with PrometheusSink(services, registry):
        with pytest.raises(ConfigurationError, match=r"clientlb already .*registry of its own"):
            PrometheusSink(services, registry)
        call(services, clock)
        assert value(scrape(registry), "calls_total") == 1


def test_close_takes_the_metrics_away(services: Services, clock: FakeClock, registry: CollectorRegistry) -> None:
    Counter("shop_orders", "of somebody else", registry=registry)
    sink = PrometheusSink(services, registry)
    call(services, clock)
    sink.close()
    sink.close()
    assert {name for name, _ in scrape(registry)} == {"shop_orders_total", "shop_orders_created"}
    with PrometheusSink(services, registry):
        assert value(scrape(registry), "calls_total") == 1


def test_a_closed_sink_is_kept_by_nobody(services: Services, clock: FakeClock, registry: CollectorRegistry) -> None:
    sink, kept = PrometheusSink(services, registry), PrometheusSink(services, CollectorRegistry())
    closed, still_open = weakref.ref(sink), weakref.ref(kept)
    sink.close()
    del sink, kept
    gc.collect()
    assert closed() is None, "the services still send it their events"
    assert still_open() is not None


def test_importing_registers_nothing() -> None:
    program = (
        "import clientlb.telemetry.prometheus, prometheus_client;"
        "text = prometheus_client.generate_latest(prometheus_client.REGISTRY).decode();"
        "assert 'process_' in text and 'clientlb' not in text, text"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
