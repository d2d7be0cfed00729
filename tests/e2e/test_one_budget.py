"""Whatever makes the calls of a service, HTTP, gRPC or a function: one budget pays for their retries and hedges."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from tenacity import stop_after_attempt, wait_none

import clientlb
import clientlb.grpc
from clientlb.httpx import Client
from clientlb.testing import ManualDiscovery, ScriptedServer

ALLOWED = 10
OPTIONS = clientlb.Options(
    policy="round_robin",
    health=clientlb.HealthOptions(consecutive_failures=1000, connect_failures=1000),
    guard=clientlb.GuardOptions(hold=0, settle=0, keep_ratio=0, empty_hold=0),
    retry=clientlb.RetryOptions(
        stop=stop_after_attempt(4),
        wait=wait_none(),
        budget=clientlb.BudgetOptions(ratio=0.0, reserve=ALLOWED / 10),
        hedge=clientlb.HedgeOptions(delay=0.1),
    ),
)


@pytest.fixture
def unavailable() -> Iterator[tuple[str, list[str]]]:
    """The address of a gRPC server that turns every call away, and the calls that it got."""
    seen: list[str] = []

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            seen.append(details.method)
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: context.abort(grpc.StatusCode.UNAVAILABLE, "full")
            )

    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, [Handler()])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}", seen
        server.stop(None).wait()


def test_retries_and_hedges_of_all_callers_share_one_budget(unavailable: tuple[str, list[str]]) -> None:
    address, seen = unavailable
    registry = ManualDiscovery()
    tried: list[int] = []
    with (
        ScriptedServer() as a,
        ScriptedServer() as b,
        clientlb.Services(registry, options=OPTIONS) as services,
        Client(services, timeout=10) as http,
        clientlb.grpc.channel("orders", services, idempotent=True) as channel,
    ):

        @services.balanced("orders", idempotent=True)
        def broken(endpoint: clientlb.Endpoint) -> None:
            tried.append(endpoint.port)
            raise ConnectionResetError

        def slow_call() -> int:
            """A call of two servers, both of which take their time; how often it was hedged."""
            registry.set("orders", [a.address, b.address])
            for server in (a, b):
                server.slow(0.5, times=None)
            answer = http.get("http://orders/slow")
            for server in (a, b):
                server.reset()
            return int(answer.extensions["clientlb"].hedges)

        def attempts() -> list[int]:
            """How many attempts a call makes that fails everywhere: of the function, over HTTP, over gRPC."""
            registry.set("orders", [a.address])
            tried.clear()
            with pytest.raises(ConnectionResetError):
                broken()
            a.fail(times=None)
            assert http.get("http://orders/").status_code == 503
            asked = len(a.requests)
            a.reset()
            registry.set("orders", [address])
            seen.clear()
            with pytest.raises(grpc.RpcError):
                channel.unary_unary("/Orders/Get")(b"", timeout=10)
            return [len(tried), asked, len(seen)]

        assert slow_call() == 1
        assert attempts() == [4, 4, 4]
        stats = services["orders"].stats()
        assert stats.retries + stats.hedges == ALLOWED
        assert attempts() == [1, 1, 1]
        assert slow_call() == 0
        stats = services["orders"].stats()
        assert stats.retries + stats.hedges == ALLOWED
        assert stats.retries_denied == 3
