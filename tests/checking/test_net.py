"""Checks over HTTP and TCP of real servers in other processes."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from clientlb import Endpoint, HttpCheck, TcpCheck, events
from clientlb.checking.net import words_of
from tests.checking.conftest import threads
from tests.servers.process import free_ports, wait_until

OFTEN: dict[str, Any] = {"interval": 0.1, "timeout": 5.0}
Make = Callable[..., Any]


def nobody() -> Endpoint:
    """An address where nobody listens."""
    (port,) = free_ports(1)
    return Endpoint("127.0.0.1", port)


def test_a_server_that_says_503_is_out_until_it_says_200(serve: Make, watched: Make) -> None:
    one, other = serve("http"), serve("http")
    check = HttpCheck("/healthz?deep=1", headers={"X-From": "clientlb", "user-agent": "me"}, **OFTEN)
    orders = watched(check, suspend=True)
    orders.set(one.endpoint(), other.endpoint())
    orders.wait_for_passes(2)
    assert orders.healthy == 2
    one.tell("status 503")
    orders.wait_for(events.Ejected)
    assert orders.reasons() == ["active check failed 3 times: answered 503"]
    assert orders.balancer.explain().count("check passed") == 1
    for _ in range(10):
        with orders.balancer.pick() as pick:
            assert pick.endpoint == other.endpoint()
    one.tell("status 204")
    orders.wait_for(events.Restored)
    assert orders.healthy == 2
    seen = one.tell("seen")
    assert seen["first"] == "GET /healthz?deep=1 HTTP/1.1"
    assert seen["headers"] == {
        "Host": "orders",
        "User-Agent": "me",
        "Accept": "*/*",
        "X-From": "clientlb",
        "Connection": "close",
    }
    assert sum(each.calls for each in orders.balancer.stats().endpoints) == 10


def test_which_statuses_pass_is_an_option(serve: Make, watched: Make) -> None:
    server = serve("http")
    server.tell("status 429")
    orders = watched(HttpCheck(method="HEAD", statuses={200, 429}, server_name="shop", **OFTEN))
    orders.set(server.endpoint())
    orders.wait_for_passes(3)
    server.tell("status 201")
    orders.wait_for(events.Ejected)
    assert server.tell("seen")["first"] == "HEAD / HTTP/1.1"
    assert server.tell("seen")["headers"]["Host"] == "shop"


def test_a_server_that_hangs_is_out_and_holds_up_no_other_check(serve: Make, watched: Make) -> None:
    hanging, other = serve("http"), serve("http")
    hanging.tell("hang")
    orders = watched(HttpCheck(interval=0.1, timeout=0.6))
    orders.set(hanging.endpoint(), other.endpoint())
    orders.wait_for(events.Ejected)
    assert orders.reasons() == ["active check failed 3 times: no answer within 0.6 s"]
    assert other.tell("seen")["count"] > 2 * hanging.tell("seen")["count"]


@pytest.mark.parametrize("check", [HttpCheck(**OFTEN), TcpCheck(**OFTEN)], ids=["http", "tcp"])
def test_where_nobody_listens_the_connection_is_refused(watched: Make, check: Any) -> None:
    orders = watched(check)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=answering(listening), daemon=True).start()
        orders.set(nobody(), Endpoint("127.0.0.1", listening.getsockname()[1]))
        orders.wait_for(events.Ejected)
        assert orders.reasons() == ["active check failed 3 times: connection refused"]
        assert orders.healthy == 1


def answering(listening: socket.socket, answer: bytes = b"HTTP/1.0 200\r\n\r\n") -> Callable[[], None]:
    """A server that is done with each connection when it has answered."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                try:
                    connection.recv(4096)
                    connection.sendall(answer)
                except OSError:
                    continue

    return serve


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "the connection was closed without an answer"),
        (b"HTTP/1.1 2", "the connection was closed without an answer"),
        (b"SSH-2.0-x\r\n\r\n", "its answer is no HTTP"),
        (b"HTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 418 Teapot\r\n\r\n", "answered 418"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, "its answer is no HTTP"),
    ],
    ids=["nothing", "half a line", "another protocol", "an announcement", "an endless head"],
)
def test_what_is_no_good_answer_fails(watched: Make, answer: bytes, reason: str) -> None:
    orders = watched(HttpCheck(**OFTEN))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=answering(listening, answer), daemon=True).start()
        orders.set(Endpoint("127.0.0.1", listening.getsockname()[1]))
        orders.wait_for(events.Ejected)
    assert orders.reasons() == [f"active check failed 3 times: {reason}"]


def test_another_port_may_be_checked(serve: Make, watched: Make) -> None:
    server, address = serve("http"), nobody()
    orders = watched(HttpCheck(port=server.port, **OFTEN))
    orders.set(address)
    orders.wait_for_passes(3)
    assert orders.healthy == 1


def test_tls_is_for_the_name_of_the_service(serve: Make, watched: Make, certificate: tuple[str, str]) -> None:
    server = serve("http", *certificate)
    orders = watched(HttpCheck(verify=certificate[0], **OFTEN))
    orders.set(server.endpoint(secure=True))
    orders.wait_for_passes(2)
    seen = server.tell("seen")
    assert (seen["server_name"], seen["headers"]["Host"]) == ("orders", "orders")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "its certificate is refused: self-signed certificate"),
        ({"server_name": "payments"}, "its certificate is refused: Hostname mismatch"),
        ({"secure": False}, "the connection was closed without an answer"),
    ],
    ids=["an unknown authority", "another name", "no TLS"],
)
def test_tls_that_is_not_right_fails(
    serve: Make, watched: Make, certificate: tuple[str, str], settings: dict[str, Any], reason: str
) -> None:
    server = serve("http", *certificate)
    context = ssl.create_default_context(cafile=certificate[0])
    trust = {"verify": context} if settings else {}
    orders = watched(HttpCheck(**trust, **settings, **OFTEN))
    orders.set(server.endpoint(secure=True))
    orders.wait_for(events.Ejected)
    assert orders.reasons()[0].startswith(f"active check failed 3 times: {reason}")


def test_tls_may_go_unverified(serve: Make, watched: Make, certificate: tuple[str, str]) -> None:
    server = serve("http", *certificate)
    orders = watched(HttpCheck(secure=True, verify=False, server_name="whoever", **OFTEN))
    orders.set(server.endpoint())
    orders.wait_for_passes(2)
    assert server.tell("seen")["headers"]["Host"] == "whoever"


def test_names_are_looked_up_and_all_their_addresses_tried(serve: Make, watched: Make) -> None:
    server = serve("http")  # listens on 127.0.0.1 only; `localhost` may be ::1 as well
    orders = watched(HttpCheck(**OFTEN))
    orders.set(Endpoint("localhost", server.port))
    orders.wait_for_passes(2)
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert words_of(unknown, TcpCheck()) == "its host is unknown: Name or service not known"


def test_one_that_joins_is_checked_at_once_and_one_that_left_no_more(serve: Make, watched: Make) -> None:
    one, other = serve("http"), serve("http")
    orders = watched(HttpCheck(interval=60.0))
    orders.set(one.endpoint())
    orders.wait_for_passes()
    began = time.monotonic()
    orders.set(one.endpoint(), other.endpoint())
    orders.wait_for_passes()
    assert time.monotonic() - began < 10.0
    assert other.tell("seen")["count"] == 1
    often = watched(HttpCheck(**OFTEN))
    often.set(one.endpoint())
    often.wait_for_passes(2)
    often.set(other.endpoint())
    often.wait_for_passes(2)
    count = one.tell("seen")["count"]
    often.wait_for_passes(6)
    assert one.tell("seen")["count"] == count


@pytest.mark.parametrize("suspend", [True, False])
def test_when_all_checks_fail_everybody_is_used(watched: Make, suspend: bool) -> None:
    orders = watched(TcpCheck(**OFTEN), suspend=suspend)
    orders.set(nobody(), nobody())
    orders.wait_for(*((events.Panicked, 1) if suspend else (events.Ejected, 2)))
    assert orders.healthy == (2 if suspend else 0)
    picked = {orders.balancer.pick().endpoint for _ in range(4)}
    assert len(picked) == 2
    assert orders.reasons(events.Panicked) == [""]


def test_on_trial_nobody_is_ejected(watched: Make) -> None:
    orders = watched(TcpCheck(**OFTEN), dry_run={"check"})
    orders.set(nobody())
    orders.wait_for(events.WouldEject)
    assert orders.healthy == 1
    assert orders.reasons() == []


def test_without_a_check_there_is_no_thread(watched: Make) -> None:
    orders = watched(None)
    orders.set(nobody())
    assert threads() == []


def test_a_thousand_endpoints_are_checked_within_the_interval(serve: Make, watched: Make) -> None:
    server = serve("http")
    orders = watched(HttpCheck(interval=3.0, timeout=10.0))
    orders.set(*(Endpoint("127.0.0.1", server.port, id=str(number)) for number in range(1000)))
    wait_until(lambda: server.tell("seen")["count"] >= 1000, 60, "a check of everybody")
    orders.wait_for_passes()
    assert threads() == ["clientlb-checks"]
    assert orders.healthy == 1000
