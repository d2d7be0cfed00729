"""The scripted server does what it was told, and leaves nothing behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

import clientlb
from clientlb.httpx import Client
from clientlb.testing import ManualDiscovery, ScriptedServer
from tests.servers.process import wait_until


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def http(server: ScriptedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{server.address}", trust_env=False, timeout=10) as client:
        yield client


def test_answers_with_its_address_and_remembers_what_it_was_asked(server: ScriptedServer, http: httpx.Client) -> None:
    assert http.get("/v1/items?limit=2", headers={"X-Kind": "small"}).text == server.address
    assert http.post("/v1/items", content=iter([b"4", b"2"])).text == server.address
    assert http.put("/v1/items/7", content=b"43").status_code == 200
    assert http.head("/v1/items/7").headers["Content-Length"] == str(len(server.address))
    seen = server.requests
    assert [(each.method, each.path, each.body) for each in seen] == [
        ("GET", "/v1/items?limit=2", b""),
        ("POST", "/v1/items", b"42"),
        ("PUT", "/v1/items/7", b"43"),
        ("HEAD", "/v1/items/7", b""),
    ]
    assert seen[0].headers["x-kind"] == "small"


def test_follows_its_script_and_then_answers_as_ever(server: ScriptedServer, http: httpx.Client) -> None:
    server.fail(times=2)
    server.answer(201, "made", headers={"X-Made": "yes"})
    server.slow(0.01)
    answers = [http.get("/") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [503, 503, 201, 200, 200]
    assert (answers[2].text, answers[2].headers["X-Made"]) == ("made", "yes")
    server.answer(204, times=None)
    assert [http.get("/").status_code for _ in range(3)] == [204] * 3
    server.reset()
    assert server.requests == []
    assert http.get("/").text == server.address


def test_hangs_until_it_is_gone(server: ScriptedServer, http: httpx.Client) -> None:
    server.hang()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(http.get, "/")
        wait_until(lambda: server.requests)
        assert not waiting.done()
        server.refuse()
        with pytest.raises(httpx.RemoteProtocolError):
            waiting.result(10)
    with pytest.raises(httpx.ConnectError):
        http.get("/")
    server.accept()
    assert http.get("/").text == server.address


def test_hangs_up(server: ScriptedServer, http: httpx.Client) -> None:
    server.hang_up()
    with pytest.raises(httpx.RemoteProtocolError):
        http.get("/")
    assert http.get("/").text == server.address


def test_a_balanced_client_goes_around_it() -> None:
    with (
        ScriptedServer() as bad,
        ScriptedServer() as good,
        clientlb.Services(ManualDiscovery({"orders": [bad.endpoint, good.endpoint]})) as services,
        Client(services) as http,
    ):
        bad.fail(times=None)
        assert {http.get("http://orders/").text for _ in range(10)} == {good.address}
        assert bad.requests
        bad.refuse()
        assert http.post("http://orders/").text == good.address


def test_nothing_is_left_after_close() -> None:
    def held() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    before = held()
    server = ScriptedServer()
    server.hang(times=None)
    with httpx.Client(trust_env=False) as http, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(http.get, f"http://{server.address}/") for _ in range(2)]
        wait_until(lambda: len(server.requests) == 2)
        server.close()
        server.close()
        for each in waiting:
            assert isinstance(each.exception(10), httpx.TransportError)
    assert held() == before
    with pytest.raises(clientlb.ClosedError):
        server.accept()


def test_ipv6_and_what_cannot_be_right() -> None:
    with ScriptedServer("::1") as server, httpx.Client(trust_env=False) as http:
        assert http.get(f"http://{server.address}/").text == server.address
        with pytest.raises(clientlb.ConfigurationError, match="times"):
            server.fail(times=0)
        with pytest.raises(clientlb.ConfigurationError, match="seconds"):
            server.slow(-1)
