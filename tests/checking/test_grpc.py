"""Listening to the health service of real gRPC servers in other processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from clientlb import Endpoint, GrpcCheck, events
from clientlb.checking.grpc import _request, _status_in
from tests.checking.conftest import threads
from tests.servers.process import free_ports, wait_until

Make = Callable[..., Any]
QUICK: dict[str, Any] = {"timeout": 10.0, "interval": 0.3}


def test_what_a_server_says_holds_at_once(serve: Make, watched: Make) -> None:
    one, other = serve("grpc"), serve("grpc")
    orders = watched(GrpcCheck(timeout=10.0))
    orders.set(one.endpoint(), other.endpoint())
    orders.wait_for_passes()
    one.tell("say NOT_SERVING")
    orders.wait_for(events.Ejected)
    assert orders.reasons() == ["active check failed: it says NOT_SERVING"]
    assert "it says NOT_SERVING; it is back when it says so" in orders.balancer.explain()
    for _ in range(10):
        with orders.balancer.pick() as pick:
            assert pick.endpoint == other.endpoint()
    one.tell("say SERVING")
    orders.wait_for(events.Restored)
    assert orders.healthy == 2
    assert one.tell("watching") == {"watching": 1}
    orders.set(other.endpoint())
    wait_until(lambda: one.tell("watching") == {"watching": 0}, 30, "the stream of one that left has ended")


def test_it_may_be_asked_instead(serve: Make, watched: Make) -> None:
    server = serve("grpc")
    orders = watched(GrpcCheck(watch=False, timeout=10.0, interval=0.1))
    orders.set(server.endpoint())
    orders.wait_for_passes(2)
    server.tell("say NOT_SERVING")
    orders.wait_for(events.Ejected)
    assert orders.reasons() == ["active check failed 3 times: it says NOT_SERVING"]
    server.tell("say SERVING")
    orders.wait_for(events.Restored)
    server.kill()
    orders.wait_for(events.Ejected, 2)
    assert orders.reasons()[1].startswith("active check failed 3 times: UNAVAILABLE: ")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("grpc", "NOT_FOUND"), ("grpc-silent", "no answer within 0.5 s"), ("grpc-mute", None)],
)
def test_what_an_answer_means(serve: Make, watched: Make, kind: str, reason: str | None) -> None:
    server = serve(kind)
    orders = watched(GrpcCheck(watch=False, name="shop.Orders", timeout=0.5, interval=0.1))
    orders.set(server.endpoint())
    if reason is None:
        orders.wait_for_passes(3)
        assert orders.healthy == 1
    else:
        orders.wait_for(events.Ejected)
        assert reason in orders.reasons()[0]


def test_a_service_of_its_own_name(serve: Make, watched: Make) -> None:
    server = serve("grpc")
    orders = watched(GrpcCheck(name="shop.Orders", timeout=10.0))
    orders.set(server.endpoint())
    orders.wait_for(events.Ejected)
    assert orders.reasons() == ["active check failed: it says SERVICE_UNKNOWN"]
    server.tell("say SERVING shop.Orders")
    orders.wait_for(events.Restored)


def test_a_server_without_the_health_service_passes(
    serve: Make, watched: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve("grpc-mute")
    orders = watched(GrpcCheck(**QUICK))
    orders.set(server.endpoint())
    orders.wait_for_passes()
    wait_until(lambda: threads() == ["clientlb-checks"], 30, "nobody listens any more")
    assert orders.healthy == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"orders: {server.endpoint()} has no health service, so it passes for healthy"
    ]


def test_a_server_that_is_silent_fails(serve: Make, watched: Make) -> None:
    server = serve("grpc-silent")
    orders = watched(GrpcCheck(timeout=0.5, interval=0.1, unhealthy=2))
    orders.set(server.endpoint())
    orders.wait_for(events.Ejected)
    assert orders.reasons() == ["active check failed 2 times: no answer within 0.5 s"]


def test_a_server_that_dies_is_out_and_back_when_it_is_back(serve: Make, watched: Make) -> None:
    server = serve("grpc")
    orders = watched(GrpcCheck(**QUICK))
    orders.set(server.endpoint())
    orders.wait_for_passes()
    server.kill()
    orders.wait_for(events.Ejected)
    (reason,) = orders.reasons()
    assert reason.startswith("active check failed 3 times: UNAVAILABLE: ")
    assert "; next check in " in orders.balancer.explain() or "; a check is under way" in orders.balancer.explain()
    server.start()
    orders.wait_for(events.Restored)


def test_tls_is_for_the_name_of_the_service(serve: Make, watched: Make, certificate: tuple[str, str]) -> None:
    with open(certificate[0], "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    server = serve("grpc", *certificate)
    orders = watched(GrpcCheck(credentials=credentials, timeout=10.0))
    orders.set(server.endpoint())
    orders.wait_for_passes()
    other = watched(GrpcCheck(credentials=credentials, server_name="payments", **QUICK))
    other.set(server.endpoint())
    other.wait_for(events.Ejected)
    assert "UNAVAILABLE" in other.reasons()[0]


def test_all_that_listens_ends_with_close(serve: Make, watched: Make) -> None:
    server, (port,) = serve("grpc"), free_ports(1)
    before = threading.active_count()
    orders = watched(GrpcCheck(**QUICK))
    orders.set(*(server.endpoint(id=str(number)) for number in range(20)), Endpoint("127.0.0.1", port))
    orders.wait_for(events.Ejected)
    assert server.tell("watching") == {"watching": 20}
    began = time.monotonic()
    orders.services.close()
    assert time.monotonic() - began < 5.0
    assert threads() == []
    wait_until(lambda: threading.active_count() <= before, 30, "the threads of gRPC have ended")
    wait_until(lambda: server.tell("watching") == {"watching": 0}, 30, "nobody listens")


@pytest.mark.parametrize("name", ["", "shop.Orders", "x" * 127, "x" * 128, "ö" * 200])
def test_the_question_is_as_protocol_buffers_have_it(name: str) -> None:
    assert _request(name) == health_pb2.HealthCheckRequest(service=name).SerializeToString()


@pytest.mark.parametrize("status", [0, 1, 2, 3])
def test_so_is_the_answer(status: Any) -> None:
    assert _status_in(health_pb2.HealthCheckResponse(status=status).SerializeToString()) == status
