"""Client → A, which serves and calls B → B, each a process of its own: A's call ends when the client's time is over."""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

import clientlb
import clientlb.httpx
from clientlb.serving import DEADLINE_HEADER
from clientlb.serving.wsgi import DeadlineMiddleware
from clientlb.testing import ManualDiscovery
from tests.http.conftest import ROOT, Process
from tests.servers.process import wait_until

KINDS = ["fastapi", "starlette", "flask", "wsgi"]
Relay = Callable[..., str]


@pytest.fixture(scope="module")
def stock() -> Iterator[Process]:
    """B."""
    server = Process("b")
    yield server
    server.stop()


@pytest.fixture(scope="module", params=KINDS)
def relay(request: pytest.FixtureRequest, stock: Process) -> Iterator[Relay]:
    """Starts an A, one per kind and header; returns its address."""
    processes = []

    @functools.cache
    def start(header: str = "") -> str:
        command = [sys.executable, "-m", "tests.serving.relay", request.param, header, stock.address]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        return f"127.0.0.1:{int(process.stdout.readline())}"

    yield start
    for process in processes:
        process.communicate()


def ask(address: str, path: str) -> httpx.Response:
    """Ask A without a deadline."""
    return httpx.get(f"http://{address}{path}", trust_env=False, timeout=10)


def client_of(address: str, header: str = DEADLINE_HEADER) -> clientlb.httpx.Client:
    options = clientlb.Options(deadline_header=header, retry=clientlb.RetryOptions(stop=lambda state: True))
    return clientlb.httpx.Client(clientlb.Services(ManualDiscovery({"relay": [address]}), options=options), timeout=10)


@pytest.mark.parametrize("path", ["/relay", "/blocking"])
def test_a_call_made_on_the_way_never_outlives_the_one_that_is_served(relay: Relay, stock: Process, path: str) -> None:
    address = relay()
    seen, before = stock.figures()["calls"].get("/hung-up", 0), ask(address, "/last").json()
    with client_of(address) as http:
        assert http.get("http://relay/left").json() is None  # and everything is imported and connected
        began = time.monotonic()
        with clientlb.deadline(1.5), pytest.raises(httpx.ReadTimeout):
            http.get(f"http://relay{path}")
        assert time.monotonic() - began < 4
    wait_until(lambda: ask(address, "/last").json() != before, what="the call of A has ended")
    made = ask(address, "/last").json()
    assert made["error"] == "ReadTimeout"
    assert 0.2 < made["seconds"] < 4, "its own timeout is 30 s, and B answers after 5"
    wait_until(lambda: stock.figures()["calls"].get("/hung-up") == seen + 1, what="B sees that A has hung up")


def test_it_holds_while_the_body_is_made(relay: Relay) -> None:
    with client_of(relay()) as http, clientlb.deadline(20):
        parts = [float(part) for part in http.get("http://relay/stream").text.split()]
    assert len(parts) == 3
    assert 15 < parts[2] < parts[1] < parts[0] <= 20


@pytest.mark.parametrize("header", ["X-Time-Left", "X-Envoy-Expected-Rq-Timeout-Ms"])
def test_the_header_has_any_name(relay: Relay, header: str) -> None:
    with client_of(relay(header), header) as http, clientlb.deadline(20):
        assert 15 < http.get("http://relay/left").json() <= 20


def test_nonsense_is_no_deadline(relay: Relay) -> None:
    address = relay()
    for value in ("soon", "-1", "nan", "inf", "", "1e400"):
        answer = httpx.get(f"http://{address}/left", headers={DEADLINE_HEADER: value}, trust_env=False)
        assert answer.json() is None, value


def test_one_request_tells_no_other(relay: Relay) -> None:
    """On one connection, which a server may serve with one thread and one task."""
    address = relay()
    with httpx.Client(base_url=f"http://{address}", trust_env=False) as http:
        for _ in range(3):
            assert 4 < http.get("/left", headers={DEADLINE_HEADER: "5000"}).json() <= 5
            assert http.get("/stream", headers={DEADLINE_HEADER: "5000"}).text.count("\n") == 3
            assert http.get("/left").json() is None
            assert http.get("/stream").text == "None\n" * 3


@pytest.mark.parametrize("relay", ["fastapi"], indirect=True)
def test_background_tasks_have_the_time_they_need(relay: Relay) -> None:
    address = relay()
    answer = httpx.get(f"http://{address}/background", headers={DEADLINE_HEADER: "5000"}, trust_env=False)
    assert 4 < answer.json() <= 5
    wait_until(lambda: "left" in ask(address, "/last").json(), what="the background task has run")
    assert ask(address, "/last").json()["left"] is None


def test_a_finished_answer_is_handed_on_as_it_is() -> None:
    """Servers send a list with its Content-Length, and a file in a way of their own."""

    class Wrapper:
        pass

    environ = {"HTTP_X_REQUEST_TIMEOUT_MS": "1000", "wsgi.file_wrapper": Wrapper}
    for answer in ([b"x"], (b"x",), Wrapper()):
        assert DeadlineMiddleware(lambda environ, start_response, answer=answer: answer)(environ, print) is answer


def test_the_answer_is_closed() -> None:
    closed = []

    class Parts:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"a", b"b"])

        def close(self) -> None:
            closed.append(clientlb.time_remaining())

    environ = {"HTTP_X_REQUEST_TIMEOUT_MS": "1000"}
    answer = DeadlineMiddleware(lambda environ, start_response: Parts())(environ, print)
    assert list(answer) == [b"a", b"b"]
    answer.close()  # type: ignore[attr-defined]
    assert closed == [None]
