"""What clientlb adds to a call: time per call through clientlb / time per call of the bare client, against one server.

The HTTP server is nginx, the gRPC server a Python one in another process. Both sides have the same settings and one
connection, make the same calls one after the other, and swap who begins in every round. Rounds are many and short: the
median then leaves out those that something else on the machine has disturbed.

    httpx.sync, httpx.async, httpx2.sync, httpx2.async, grpc.sync, grpc.aio    the ratios
    grpc.sync.100, grpc.aio.100    the same when the service has 100 endpoints, which are the one server under 100
                      addresses. The bare client takes turns with 100 channels: connections that are seldom used are
                      slower, whoever uses them
    KIND.bare_us      microseconds of a bare call
    KIND.added_us     microseconds that clientlb adds to it: the median of the per-round differences
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import common
import grpc
import grpc.aio
import httpx
import httpx2
import origins

import clientlb.grpc
import clientlb.grpc.aio
import clientlb.httpx
import clientlb.httpx2
from clientlb import Services

SERVICE = "orders"
CALLS = 20
WARM_UP = 5
MANY = 100
TIMEOUT = 10.0
HTTP_SETTINGS: dict[str, Any] = {"timeout": TIMEOUT, "trust_env": False}
GRPC_SETTINGS = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
ANCHORS = {
    "httpx": "1.00-1.02: prototype; 1.09: building a new Request alone",
    "httpx2": "1.00-1.02: prototype, with httpx",
    "grpc": "1.00-1.01: prototype",
}

TARGET = 1.02

Slice = Callable[[], float]
"""Makes CALLS calls; gives microseconds per call."""


def blocking(call: Callable[[], object]) -> Slice:
    def measure() -> float:
        began = time.perf_counter()
        for _ in range(CALLS):
            call()
        return (time.perf_counter() - began) * 1e6 / CALLS

    return measure


def awaiting(runner: asyncio.Runner, call: Callable[[], Awaitable[object]]) -> Slice:
    async def make_calls() -> float:
        began = time.perf_counter()
        for _ in range(CALLS):
            await call()
        return (time.perf_counter() - began) * 1e6 / CALLS

    return lambda: runner.run(make_calls())


# ---------------------------------------------------------------------- the six kinds: a bare side and ours


@contextmanager
def http_sync(bare: Any, ours: Any, servers: list[str], services: Services) -> Iterator[tuple[Slice, Slice]]:
    with bare.Client(**HTTP_SETTINGS) as client, ours.Client(services, **HTTP_SETTINGS) as balanced:
        address, name = f"http://{servers[0]}/items/7", f"http://{SERVICE}/items/7"
        yield blocking(lambda: client.get(address)), blocking(lambda: balanced.get(name))


@contextmanager
def http_async(bare: Any, ours: Any, servers: list[str], services: Services) -> Iterator[tuple[Slice, Slice]]:
    client, balanced = bare.AsyncClient(**HTTP_SETTINGS), ours.AsyncClient(services, **HTTP_SETTINGS)
    address, name = f"http://{servers[0]}/items/7", f"http://{SERVICE}/items/7"
    with asyncio.Runner() as runner:
        yield awaiting(runner, lambda: client.get(address)), awaiting(runner, lambda: balanced.get(name))
        runner.run(client.aclose())
        runner.run(balanced.aclose())


def echo(channels: Sequence[Any]) -> Callable[[], Any]:
    """Calls as a generated stub makes them, of each channel in turn."""
    methods = [channel.unary_unary(origins.METHOD, None, None, _registered_method=True) for channel in channels]
    following = itertools.cycle(methods).__next__
    return lambda: following()(b'{"id": 7, "state": "shipped"}', timeout=TIMEOUT)


@contextmanager
def grpc_sync(servers: list[str], services: Services) -> Iterator[tuple[Slice, Slice]]:
    with ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(server, GRPC_SETTINGS)) for server in servers]
        balanced = stack.enter_context(clientlb.grpc.channel(SERVICE, services, options=GRPC_SETTINGS))
        yield blocking(echo(channels)), blocking(echo([balanced]))


@contextmanager
def grpc_aio(servers: list[str], services: Services) -> Iterator[tuple[Slice, Slice]]:
    async def make(channel: Callable[..., Any], *arguments: Any) -> Any:
        return channel(*arguments, options=GRPC_SETTINGS)  # in the event loop that it belongs to

    with asyncio.Runner() as runner:
        channels = [runner.run(make(grpc.aio.insecure_channel, server)) for server in servers]
        balanced = runner.run(make(clientlb.grpc.aio.channel, SERVICE, services))
        yield awaiting(runner, echo(channels)), awaiting(runner, echo([balanced]))
        for channel in (*channels, balanced):
            runner.run(channel.close())


# ---------------------------------------------------------------------- measuring


def compare(report: common.Report, kind: str, sides: Any, rounds: int, servers: list[str], *flavour: Any) -> None:
    """Measure one kind of client and add its figures."""
    with Services(f"static://{','.join(servers)}") as services, sides(*flavour, servers, services) as (bare, ours):
        warm_up = WARM_UP * len(servers)  # so that there is a connection to all but every endpoint
        for _ in range(warm_up):
            bare()
            ours()
        measured = common.alternate({"bare": bare, "ours": ours}, rounds)
        counted = services[SERVICE].stats()
    made = (warm_up + rounds) * CALLS
    if counted.calls != made or counted.failures:
        common.refuse(f"{kind}: of {made} calls {counted.calls} were balanced and {counted.failures} failed")
    differences = [mine - other for mine, other in zip(measured["ours"], measured["bare"], strict=True)]
    protocol = kind.partition(".")[0]
    report.add_ratio(kind, measured["ours"], measured["bare"], target=TARGET, anchor=ANCHORS[protocol])
    report.add(f"{kind}.bare_us", statistics.median(measured["bare"]))
    report.add(f"{kind}.added_us", statistics.median(differences))


def main() -> None:
    arguments = common.arguments(__doc__)
    rounds = 150 if arguments.quick else 700
    report = common.Report("overhead", packages=("httpx", "httpx2", "grpcio"))
    program = origins.find_nginx()
    with ExitStack() as servers:
        if program is not None:
            nginx = [f"127.0.0.1:{servers.enter_context(origins.nginx(program))}"]
            for name, bare, ours in (("httpx", httpx, clientlb.httpx), ("httpx2", httpx2, clientlb.httpx2)):
                compare(report, f"{name}.sync", http_sync, rounds, nginx, bare, ours)
                compare(report, f"{name}.async", http_async, rounds, nginx, bare, ours)
        port = servers.enter_context(origins.grpc_echo(MANY))
        addresses = [f"{host}:{port}" for host in origins.loopback_hosts(MANY)]
        for name, sides in (("grpc.sync", grpc_sync), ("grpc.aio", grpc_aio)):
            compare(report, name, sides, rounds, addresses[:1])
            compare(report, f"{name}.{MANY}", sides, rounds, addresses)
    report.print(arguments.json)
    if program is None:
        print("no nginx (run benchmarks/proxies.sh, or put it on PATH): the HTTP figures are missing", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
