"""The hop that clientlb saves: four servers, called through clientlb, or through a local proxy that balances over them.

The bare client calls the proxy (HAProxy, nginx, Envoy; each with one thread, keep-alive and least requests); for gRPC
that is HAProxy and Envoy. `direct` is the bare client that knows one server only. The servers answer at once: nginx for
HTTP, Python for gRPC. Calls are made in a closed loop by one client, with one or 32 at a time (threads or tasks). All
ways alternate within a round, each with the same number of calls.

    KIND.VIA.p50_ms, .p99_ms          latency of a call; KIND is httpx.sync, .async, grpc.sync or .aio, with @1 or @32
    KIND.VIA.cpu_us                   processor time per call of everything involved: client, proxy and servers
    KIND.VIA.calls_per_cpu_s          the same the other way round: calls per second of processor time
    KIND.p50_to_best_proxy, .cpu_...  clientlb / the proxy with the best median
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import common
import grpc
import grpc.aio
import httpx
import origins
import proxies

import clientlb.grpc
import clientlb.grpc.aio
import clientlb.httpx
from clientlb import Services

SERVICE = "orders"
SERVERS = 4
TIMEOUT = 10.0
CALLS = {1: 48, 32: 128}
"""Calls of one way in one round, by how many are made at a time."""
HTTP_SETTINGS: dict[str, Any] = {
    "timeout": TIMEOUT,
    "trust_env": False,
    "limits": httpx.Limits(max_connections=100, max_keepalive_connections=100),  # 20 by default: fewer than 32
}
GRPC_SETTINGS = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
BODY = b'{"id": 7, "state": "shipped"}'
SYNC_HTTP_TARGET = 0.82  # a hop costs 87 us, 1.25 times a bare call, so no client can be better than 0.80


@dataclass
class Slice:
    """What one way did in one round."""

    latencies: list[float]
    cpu: float

    @property
    def p50(self) -> float:
        return statistics.median(self.latencies)

    @property
    def cpu_per_call(self) -> float:
        return self.cpu / len(self.latencies)


Way = Callable[[], Slice]


def measured(make_calls: Callable[[], list[float]], pids: Sequence[int]) -> Way:
    def measure() -> Slice:
        before = common.processor_seconds(pids)
        latencies = make_calls()
        return Slice(latencies, common.processor_seconds(pids) - before)

    return measure


def timed(call: Callable[[], object], count: int) -> list[float]:
    latencies = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        latencies.append(time.perf_counter() - began)
    return latencies


def blocking(call: Callable[[], object], at_a_time: int, threads: ThreadPoolExecutor) -> Callable[[], list[float]]:
    count = CALLS[at_a_time]
    if at_a_time == 1:
        return lambda: timed(call, count)

    def make_calls() -> list[float]:
        running = [threads.submit(timed, call, count // at_a_time) for _ in range(at_a_time)]
        return [latency for each in running for latency in each.result()]

    return make_calls


def awaiting(
    call: Callable[[], Awaitable[object]], at_a_time: int, runner: asyncio.Runner
) -> Callable[[], list[float]]:
    count = CALLS[at_a_time] // at_a_time

    async def task(latencies: list[float]) -> None:
        for _ in range(count):
            began = time.perf_counter()
            await call()
            latencies.append(time.perf_counter() - began)

    async def make_calls() -> list[float]:
        latencies: list[float] = []
        await asyncio.gather(*(task(latencies) for _ in range(at_a_time)))
        return latencies

    return lambda: runner.run(make_calls())


# ---------------------------------------------------------------------- the calls, by way

Calls = dict[str, Callable[[], Any]]
"""One call by way."""


@contextmanager
def http_sync(via: dict[str, int], services: Services) -> Iterator[Calls]:
    with ExitStack() as clients:
        calls: Calls = {}
        for way, port in via.items():
            client = clients.enter_context(httpx.Client(**HTTP_SETTINGS))
            calls[way] = lambda client=client, url=f"http://localhost:{port}/items/7": client.get(url)
        balanced = clients.enter_context(clientlb.httpx.Client(services, **HTTP_SETTINGS))
        yield calls | {"clientlb": lambda: balanced.get(f"http://{SERVICE}/items/7")}


@contextmanager
def http_async(via: dict[str, int], services: Services, runner: asyncio.Runner) -> Iterator[Calls]:
    clients = {way: httpx.AsyncClient(**HTTP_SETTINGS) for way in via}
    balanced = clientlb.httpx.AsyncClient(services, **HTTP_SETTINGS)
    calls: Calls = {
        way: lambda client=clients[way], url=f"http://localhost:{port}/items/7": client.get(url)
        for way, port in via.items()
    }
    yield calls | {"clientlb": lambda: balanced.get(f"http://{SERVICE}/items/7")}
    for client in (*clients.values(), balanced):
        runner.run(client.aclose())


def echo(channel: Any) -> Callable[[], Any]:
    """A call as a generated stub makes it."""
    method = channel.unary_unary(origins.METHOD, None, None, _registered_method=True)
    return lambda: method(BODY, timeout=TIMEOUT)


@contextmanager
def grpc_sync(via: dict[str, int], services: Services) -> Iterator[Calls]:
    with ExitStack() as channels:
        calls: Calls = {
            way: echo(channels.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}", GRPC_SETTINGS)))
            for way, port in via.items()
        }
        balanced = channels.enter_context(clientlb.grpc.channel(SERVICE, services, options=GRPC_SETTINGS))
        yield calls | {"clientlb": echo(balanced)}


@contextmanager
def grpc_aio(via: dict[str, int], services: Services, runner: asyncio.Runner) -> Iterator[Calls]:
    async def make(channel: Callable[..., Any], *arguments: Any) -> Any:
        return channel(*arguments, options=GRPC_SETTINGS)  # in the event loop that it belongs to

    channels = {way: runner.run(make(grpc.aio.insecure_channel, f"127.0.0.1:{port}")) for way, port in via.items()}
    channels["clientlb"] = runner.run(make(clientlb.grpc.aio.channel, SERVICE, services))
    yield {way: echo(channel) for way, channel in channels.items()}
    for channel in channels.values():
        runner.run(channel.close())


# ---------------------------------------------------------------------- measuring


def compare(report: common.Report, kind: str, ways: dict[str, Way], rounds: int) -> None:
    """Measure all ways of one kind and add their figures."""
    for way in ways.values():  # connections are made
        way()
        way()
    slices = common.alternate(ways, rounds)
    for way, each in slices.items():
        latencies = [latency for part in each for latency in part.latencies]
        report.add(f"{kind}.{way}.p50_ms", common.percentile(latencies, 50) * 1e3)
        report.add(f"{kind}.{way}.p99_ms", common.percentile(latencies, 99) * 1e3)
        cpu = sum(part.cpu for part in each)
        report.add(f"{kind}.{way}.cpu_us", cpu * 1e6 / len(latencies))
        report.add(f"{kind}.{way}.calls_per_cpu_s", len(latencies) / cpu)
    for measure, limit in (("p50", SYNC_HTTP_TARGET if kind == "httpx.sync@1" else 1.0), ("cpu_per_call", 1.0)):
        by_way = {way: [getattr(part, measure) for part in each] for way, each in slices.items()}
        through = [way for way in by_way if way in proxies.PROXIES]
        if through:
            best = min(through, key=lambda way: statistics.median(by_way[way]))
            name = f"{kind}.{measure.partition('_')[0]}_to_best_proxy"
            report.add_ratio(name, by_way["clientlb"], by_way[best], target=limit, anchor=f"1: {best}")


def compare_protocol(report: common.Report, protocol: str, ports: list[int], names: Sequence[str], rounds: int) -> None:
    """Measure HTTP or gRPC: sync and async, one call at a time and 32."""
    services_url = f"static://{','.join(f'127.0.0.1:{port}' for port in ports)}"
    with ExitStack() as running:
        via = {"direct": ports[0]}
        for name in names:
            program = proxies.find(name)
            if program is not None:
                via[name] = running.enter_context(proxies.PROXIES[name](program, ports, grpc=protocol == "grpc"))
        services = running.enter_context(Services(services_url))
        threads = running.enter_context(ThreadPoolExecutor(max(CALLS)))
        runner = running.enter_context(asyncio.Runner())
        sync, other, suffix = (http_sync, http_async, "async") if protocol == "httpx" else (grpc_sync, grpc_aio, "aio")
        pids = common.processes()
        for at_a_time in CALLS:
            with sync(via, services) as calls:
                ways = {way: measured(blocking(call, at_a_time, threads), pids) for way, call in calls.items()}
                compare(report, f"{protocol}.sync@{at_a_time}", ways, rounds)
            with other(via, services, runner) as calls:
                ways = {way: measured(awaiting(call, at_a_time, runner), pids) for way, call in calls.items()}
                compare(report, f"{protocol}.{suffix}@{at_a_time}", ways, rounds)
        failures = services[SERVICE].stats().failures
        if failures:
            common.refuse(f"{protocol}: {failures} calls failed")


def main() -> None:
    arguments = common.arguments(__doc__)
    rounds = 9 if arguments.quick else 60
    report = common.Report("hop", packages=("httpx", "grpcio"))
    missing = [name for name in proxies.PROXIES if proxies.find(name) is None]
    nginx = proxies.find("nginx")
    with ExitStack() as servers:
        if nginx is not None:
            ports = [servers.enter_context(origins.nginx(nginx)) for _ in range(SERVERS)]
            compare_protocol(report, "httpx", ports, ("haproxy", "nginx", "envoy"), rounds)
    with ExitStack() as servers:
        ports = [servers.enter_context(origins.grpc_echo()) for _ in range(SERVERS)]
        compare_protocol(report, "grpc", ports, ("haproxy", "envoy"), rounds)
    report.print(arguments.json)
    if missing:
        what = " Without nginx the HTTP figures are missing." if nginx is None else ""
        print(
            f"not compared with {', '.join(missing)}: run benchmarks/proxies.sh, or put it on PATH.{what}",
            file=sys.stderr,
        )
        raise SystemExit(1)


if __name__ == "__main__":
    main()
