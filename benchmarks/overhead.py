"""What clientlb adds to a call: time per call through clientlb / time per call of the bare client, against one server.

The HTTP server is nginx, the gRPC server a Python one in another process. Both sides have the same settings and one
connection, make the same calls one after the other, and swap who begins in every round. Rounds are many and short: the
median then leaves out those that something else on the machine has disturbed.

    httpx.sync, httpx.async, httpx2.sync, httpx2.async, grpc.sync, grpc.aio    the ratios
    KIND.bare_us      microseconds of a bare call
    KIND.added_us     microseconds that clientlb adds to it: the median of the per-round differences
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
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
TIMEOUT = 10.0
HTTP_SETTINGS: dict[str, Any] = {"timeout": TIMEOUT, "trust_env": False}
GRPC_SETTINGS = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
ANCHORS = {
    "httpx": "1.00-1.02: prototype; 1.09: building a new Request alone",
    "httpx2": "1.00-1.02: prototype, with httpx",
    "grpc": "1.00-1.01: prototype",
}

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
def http_sync(bare: Any, ours: Any, port: int, services: Services) -> Iterator[tuple[Slice, Slice]]:
    with bare.Client(**HTTP_SETTINGS) as client, ours.Client(services, **HTTP_SETTINGS) as balanced:
        address, name = f"http://localhost:{port}/items/7", f"http://{SERVICE}/items/7"
        yield blocking(lambda: client.get(address)), blocking(lambda: balanced.get(name))


@contextmanager
def http_async(bare: Any, ours: Any, port: int, services: Services) -> Iterator[tuple[Slice, Slice]]:
    client, balanced = bare.AsyncClient(**HTTP_SETTINGS), ours.AsyncClient(services, **HTTP_SETTINGS)
    address, name = f"http://localhost:{port}/items/7", f"http://{SERVICE}/items/7"
    with asyncio.Runner() as runner:
        yield awaiting(runner, lambda: client.get(address)), awaiting(runner, lambda: balanced.get(name))
        runner.run(client.aclose())
        runner.run(balanced.aclose())


def echo(channel: Any) -> Callable[[], Any]:
    """A call as a generated stub makes it."""
    method = channel.unary_unary(origins.METHOD, None, None, _registered_method=True)
    return lambda: method(b'{"id": 7, "state": "shipped"}', timeout=TIMEOUT)


@contextmanager
def grpc_sync(port: int, services: Services) -> Iterator[tuple[Slice, Slice]]:
    with (
        grpc.insecure_channel(f"127.0.0.1:{port}", GRPC_SETTINGS) as channel,
        clientlb.grpc.channel(SERVICE, services, options=GRPC_SETTINGS) as balanced,
    ):
        yield blocking(echo(channel)), blocking(echo(balanced))


@contextmanager
def grpc_aio(port: int, services: Services) -> Iterator[tuple[Slice, Slice]]:
    async def make(channel: Callable[..., Any], *arguments: Any) -> Any:
        return channel(*arguments, options=GRPC_SETTINGS)  # in the event loop that it belongs to

    with asyncio.Runner() as runner:
        channel = runner.run(make(grpc.aio.insecure_channel, f"127.0.0.1:{port}"))
        balanced = runner.run(make(clientlb.grpc.aio.channel, SERVICE, services))
        yield awaiting(runner, echo(channel)), awaiting(runner, echo(balanced))
        runner.run(channel.close())
        runner.run(balanced.close())


# ---------------------------------------------------------------------- measuring


def compare(report: common.Report, kind: str, sides: Any, rounds: int, port: int, *flavour: Any) -> None:
    """Measure one kind of client and add its figures."""
    with Services(f"static://127.0.0.1:{port}") as services, sides(*flavour, port, services) as (bare, ours):
        for _ in range(WARM_UP):
            bare()
            ours()
        measured = common.alternate({"bare": bare, "ours": ours}, rounds)
        counted = services[SERVICE].stats()
    made = (WARM_UP + rounds) * CALLS
    if counted.calls != made or counted.failures:
        common.refuse(f"{kind}: of {made} calls {counted.calls} were balanced and {counted.failures} failed")
    differences = [mine - other for mine, other in zip(measured["ours"], measured["bare"], strict=True)]
    report.add_ratio(kind, measured["ours"], measured["bare"], target=1.05, anchor=ANCHORS[kind.partition(".")[0]])
    report.add(f"{kind}.bare_us", statistics.median(measured["bare"]))
    report.add(f"{kind}.added_us", statistics.median(differences))


def main() -> None:
    arguments = common.arguments(__doc__)
    rounds = 150 if arguments.quick else 700
    report = common.Report("overhead", packages=("httpx", "httpx2", "grpcio"))
    program = origins.find_nginx()
    with ExitStack() as servers:
        if program is not None:
            port = servers.enter_context(origins.nginx(program))
            for name, bare, ours in (("httpx", httpx, clientlb.httpx), ("httpx2", httpx2, clientlb.httpx2)):
                compare(report, f"{name}.sync", http_sync, rounds, port, bare, ours)
                compare(report, f"{name}.async", http_async, rounds, port, bare, ours)
        port = servers.enter_context(origins.grpc_echo())
        compare(report, "grpc.sync", grpc_sync, rounds, port)
        compare(report, "grpc.aio", grpc_aio, rounds, port)
    report.print(arguments.json)
    if program is None:
        print("no nginx (run benchmarks/proxies.sh, or put it on PATH): the HTTP figures are missing", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
