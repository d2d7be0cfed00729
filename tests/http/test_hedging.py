"""A second attempt beside one that is late: the faster answer counts, the other attempt is ended, nothing is left."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import importlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
import trio

import clientlb
from clientlb.testing import ManualDiscovery
from tests.http.conftest import ROOT, Http, Kind, Process
from tests.servers.process import open_descriptors, wait_until

Start = Callable[..., Process]
SLOW = "http://orders/linger?at=a&seconds=5"
CALM = clientlb.HealthOptions(consecutive_failures=1000, connect_failures=1000)
GENEROUS = clientlb.BudgetOptions(ratio=1.0, reserve=1000.0)


def hedged(delay: float = 0.05, **more: Any) -> clientlb.RetryOptions:
    return clientlb.RetryOptions(**{"budget": GENEROUS, "hedge": clientlb.HedgeOptions(delay=delay), **more})


@contextlib.contextmanager
def over(
    *servers: Process | str, retry: clientlb.RetryOptions | None = None, **more: Any
) -> Iterator[clientlb.Services]:
    """Services over some servers, in turn. Afterwards no call is in flight, and no thread is left."""
    addresses = [each if isinstance(each, str) else each.address for each in servers]
    options = clientlb.Options(policy="round_robin", health=CALM, retry=retry or hedged(), **more)
    with clientlb.Services(ManualDiscovery({"orders": addresses}), options=options) as services:
        yield services
        assert in_flight(services) == 0
    assert threads() == []


def in_flight(services: clientlb.Services) -> int:
    return sum(node.in_flight for node in services["orders"].nodes)


def lingers(server: Process) -> bool:
    """Whether the request has reached the server."""
    return server.figures()["calls"].get("/linger", 0) > 0


def failures(services: clientlb.Services) -> int:
    return sum(endpoint.failures for endpoint in services["orders"].stats().endpoints)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "clientlb-hedge"]


def sockets() -> int:
    gc.collect()
    return len(open_descriptors("socket"))


def hung_up(server: Process) -> int:
    return int(server.figures()["calls"].get("/hung-up", 0))


async def first_at_a(http: Http, url: str = SLOW, **arguments: Any) -> Any:
    """The answer to a call whose first attempt went to `a`; in turn, that is every second call at the latest."""
    for _ in range(3):
        began = time.monotonic()
        answer = await http.get(url, **arguments)
        if answer.extensions["clientlb"].hedges:
            assert time.monotonic() - began < 3, "it did not wait for the slow server"
            return answer
    raise AssertionError("no call was hedged")


async def test_the_faster_answer_counts_and_the_slow_server_sees_the_client_hang_up(kind: Kind, start: Start) -> None:
    a, b = start("a"), start("b")
    with over(a, b) as services:
        async with kind.client(services) as http:
            answer = await first_at_a(http)
            assert answer.json()["server"] == "b"
            trace = answer.extensions["clientlb"]
            assert trace.hedges == 1
            assert [str(tried.endpoint) for tried in trace.attempts] == [a.address, b.address]
            assert [tried.reason for tried in trace.attempts] == ["superseded", ""]
            assert trace.endpoint.address == b.address
            wait_until(lambda: hung_up(a) == 1, what="the slow server sees that the client has hung up")
            assert in_flight(services) == 0
            assert (await http.get("http://orders/")).status_code == 200, "the client goes on"
        assert services["orders"].stats().hedges == 1
        assert failures(services) == 0, "being slower is no failure"


async def test_the_body_of_the_faster_answer_can_be_read(kind: Kind, shared_servers: dict[str, Process]) -> None:
    with over(*shared_servers.values()) as services:
        async with kind.client(services) as http:
            for _ in range(3):
                async with http.stream("http://orders/linger?at=a&seconds=5") as response:
                    assert in_flight(services) == 1
                    assert b"".join([part async for part in http.chunks(response)]).startswith(b"{")


async def test_an_answer_that_comes_in_time_is_not_hedged(kind: Kind, shared_servers: dict[str, Process]) -> None:
    with over(*shared_servers.values(), retry=hedged(delay=3.0)) as services:
        async with kind.client(services) as http:
            for _ in range(4):
                answer = await http.get("http://orders/stream?chunks=3&pause=0.01")
                assert len(answer.content) == 9
                assert len(answer.extensions["clientlb"].attempts) == 1
        assert services["orders"].stats().hedges == 0


@pytest.mark.parametrize("what", ["method", "body", "options"])
async def test_what_must_not_be_repeated_is_not_hedged(
    kind: Kind, shared_servers: dict[str, Process], what: str
) -> None:
    url = "http://orders/sleep?seconds=0.3"
    with over(*shared_servers.values()) as services:
        async with kind.client(services) as http:
            for _ in range(2):
                if what == "method":
                    answer = await http.post(url, content=b"pay")
                elif what == "body":
                    answer = await http.request("PUT", url, content=kind.body(b"one", b"shot"))
                else:
                    answer = await http.get(url, extensions={"clientlb": {"idempotent": False}})
                assert len(answer.extensions["clientlb"].attempts) == 1
        assert services["orders"].stats().hedges == 0


async def test_one_call_alone_may_be_hedged(kind: Kind, shared_servers: dict[str, Process]) -> None:
    with over(*shared_servers.values(), retry=clientlb.RetryOptions(budget=GENEROUS)) as services:
        async with kind.client(services) as http:
            answer = await first_at_a(http, extensions={"clientlb": {"retry": hedged()}})
            assert answer.json()["server"] == "b"


async def test_there_is_no_second_attempt_at_the_same_server(kind: Kind, shared_servers: dict[str, Process]) -> None:
    with over(shared_servers["a"]) as services:
        async with kind.client(services) as http:
            answer = await http.get("http://orders/sleep?seconds=0.3")
            assert len(answer.extensions["clientlb"].attempts) == 1
        assert services["orders"].stats().hedges == 0


async def test_the_budget_of_the_service_bounds_hedges(kind: Kind, shared_servers: dict[str, Process]) -> None:
    budget = clientlb.BudgetOptions(ratio=0.0, reserve=0.2)  # two in ten seconds
    with over(*shared_servers.values(), retry=hedged(budget=budget)) as services:
        async with kind.client(services) as http:
            for _ in range(5):
                await http.get("http://orders/sleep?seconds=0.2")
        assert services["orders"].stats().hedges == 2


async def test_when_both_fail_the_last_error_comes_out(kind: Kind, shared_servers: dict[str, Process]) -> None:
    once = hedged(stop=lambda state: True)
    with over(*shared_servers.values(), retry=once, attempt_timeout=0.8) as services:
        async with kind.client(services) as http:
            with pytest.raises(kind.library.ReadTimeout) as caught:
                await http.get("http://orders/sleep?seconds=5")
            assert "attempt 2" in caught.value.__notes__[0]
            answer = await http.get("http://orders/status?status=503")
            assert answer.status_code == 503
            assert answer.json()["server"] in "ab"
        assert failures(services) == 2 + len(answer.extensions["clientlb"].attempts)


async def test_a_failure_lets_the_other_attempt_go_on(kind: Kind, shared_servers: dict[str, Process]) -> None:
    with over(*shared_servers.values(), attempt_timeout=5.0) as services:
        async with kind.client(services) as http:
            for _ in range(2):
                answer = await http.get("http://orders/sleep?seconds=0.3")
                assert answer.status_code == 200


async def test_a_deadline_ends_all_attempts(kind: Kind, shared_servers: dict[str, Process]) -> None:
    with over(*shared_servers.values()) as services:
        async with kind.client(services, timeout=None) as http:
            began = time.monotonic()
            with clientlb.deadline(0.8), pytest.raises(kind.library.ReadTimeout):
                await http.get("http://orders/linger?seconds=10")
            assert 0.75 < time.monotonic() - began < 5


@pytest.fixture
def unread() -> Iterator[str]:
    """The address of a port that takes connections and reads nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


async def test_an_attempt_that_writes_is_ended(kind: Kind, unread: str, start: Start) -> None:
    with over(unread, start("b")) as services:
        async with kind.client(services, timeout=None) as http:
            answers = [await http.request("PUT", "http://orders/echo", content=b"x" * 20_000_000) for _ in range(2)]
        assert sum(answer.extensions["clientlb"].hedges for answer in answers) >= 1
        assert {answer.extensions["clientlb"].endpoint.address == unread for answer in answers} == {False}


async def test_an_attempt_that_shakes_hands_is_ended(
    kind: Kind, unread: str, start: Start, certificate: tuple[str, str], trust: ssl.SSLContext
) -> None:
    b = start("b", *certificate)
    with over(unread, b) as services:
        async with kind.client(services, timeout=None, verify=trust) as http:
            answers = [await http.get("https://orders/") for _ in range(2)]
        assert sum(answer.extensions["clientlb"].hedges for answer in answers) >= 1
        assert {answer.extensions["clientlb"].endpoint.address for answer in answers} == {b.address}


@pytest.mark.parametrize(("calls", "secure"), [(300, False), (100, True)], ids=["http", "https"])
async def test_many_calls_leave_nothing_behind(
    kind: Kind, start: Start, certificate: tuple[str, str], trust: ssl.SSLContext, calls: int, secure: bool
) -> None:
    a, b = (start(name, *(certificate if secure else ())) for name in "ab")
    scheme = "https" if secure else "http"
    before = sockets()
    with over(a, b, retry=hedged(delay=0.002)) as services:
        async with kind.client(services, timeout=30, verify=trust) as http:
            urls = [f"{scheme}://orders/linger?at=a&seconds={0.0005 * (number % 20)}" for number in range(calls)]
            assert await many(kind, http, urls) == {200: calls}
            assert in_flight(services) == 0
        assert services["orders"].stats().hedges > calls // 20
        assert failures(services) == 0
    wait_until(lambda: sockets() == before, what="every connection is closed")


async def many(kind: Kind, http: Http, urls: list[str]) -> dict[int, int]:
    """Make calls, twenty at once; how often each status came."""
    statuses: list[int] = []
    if kind.is_async:
        waiting = iter(urls)

        async def calls() -> None:
            for url in waiting:
                statuses.append((await http.get(url)).status_code)

        await asyncio.gather(*(calls() for _ in range(20)))
    else:
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            statuses += [answer.status_code for answer in pool.map(http.client.get, urls)]
    return {status: statuses.count(status) for status in set(statuses)}


# ---------------------------------------------------------------------- calls that are given up, clients that close


async def test_cancelling_the_call_ends_every_attempt(kind: Kind, start: Start) -> None:
    if not kind.is_async:
        return await asyncio.to_thread(closing_ends_every_attempt, kind, start)
    a, b = start("a"), start("b")
    with over(a, b) as services:
        async with kind.client(services, timeout=None) as http:
            call = asyncio.create_task(http.get("http://orders/linger?seconds=5"))
            await asyncio.to_thread(wait_until, lambda: lingers(a) and lingers(b), what="both attempts run")
            assert in_flight(services) == 2
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert in_flight(services) == 0
            wait_until(lambda: hung_up(a) == hung_up(b) == 1, what="both servers see that the client has hung up")
            assert (await http.get("http://orders/")).status_code == 200
        assert failures(services) == 0
    return None


def closing_ends_every_attempt(kind: Kind, start: Start) -> None:
    """A thread cannot be cancelled; closing the client is what ends its calls."""
    a, b = start("a"), start("b")
    errors: list[BaseException] = []
    with over(a, b) as services:
        client = kind.client_type(services, timeout=None)

        def call() -> None:
            try:
                client.get("http://orders/linger?seconds=5")
            except (kind.library.TransportError, clientlb.ClosedError) as error:
                errors.append(error)

        caller = threading.Thread(target=call)
        caller.start()
        wait_until(lambda: lingers(a) and lingers(b), what="both attempts run")
        began = time.monotonic()
        client.close()
        caller.join()
        assert time.monotonic() - began < 3
        assert [type(error) for error in errors] in ([kind.library.ReadError], [clientlb.ClosedError])
        assert threads() == []
        wait_until(lambda: hung_up(a) == hung_up(b) == 1, what="both servers see that the client has hung up")
        assert failures(services) == 0


@pytest.mark.parametrize("flavour", ["httpx", "httpx2"])
def test_ctrl_c_ends_every_attempt(flavour: str, start: Start) -> None:
    a, b = start("a"), start("b")
    with over(a, b) as services, importlib.import_module(f"clientlb.{flavour}").Client(services, timeout=None) as http:
        later = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        later.start()
        with pytest.raises(KeyboardInterrupt):
            http.get("http://orders/linger?seconds=5")
        later.join()
        assert in_flight(services) == 0
        wait_until(lambda: hung_up(a) == hung_up(b) == 1, what="both servers see that the client has hung up")
        assert http.get("http://orders/").status_code == 200


@pytest.mark.parametrize("flavour", ["httpx", "httpx2"])
def test_a_forked_child_hedges_with_threads_of_its_own(flavour: str, shared_servers: dict[str, Process]) -> None:
    """In a process of its own, which forks while it has threads for attempts, some of them at work."""
    addresses = [server.address for server in shared_servers.values()]
    command = [sys.executable, "-m", "tests.http.hedging_fork", flavour, *addresses]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "child hedged\nparent hedged\n"), done.stderr


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
@pytest.mark.parametrize("flavour", ["httpx", "httpx2"])
def test_in_every_event_loop(flavour: str, backend: str, start: Start) -> None:
    a, b = start("a"), start("b")

    async def main() -> None:
        async with importlib.import_module(f"clientlb.{flavour}").AsyncClient(services, timeout=None) as client:
            http = Http(client)
            assert (await first_at_a(http)).json()["server"] == "b"
            wait_until(lambda: hung_up(a) == 1, what="the slow server sees that the client has hung up")
            with anyio.move_on_after(0.3) as scope:
                await http.get("http://orders/linger?seconds=5")
            assert scope.cancelled_caught
            assert in_flight(services) == 0
            # in a thread, for connections are closed by the event loop
            await anyio.to_thread.run_sync(wait_until, lambda: hung_up(a) == 2 and hung_up(b) == 1)
            with clientlb.deadline(0.3), pytest.raises(importlib.import_module(flavour).ReadTimeout) as caught:
                await http.get("http://orders/linger?seconds=5")
            assert len(caught.value.__notes__) == 1
            answer = await http.get("http://orders/status?status=503")
            assert answer.status_code == 503
            assert (await http.get("http://orders/")).status_code == 200

    with over(a, b) as services:
        if backend == "trio":
            trio.run(main)
        else:
            anyio.run(main, backend_options={"use_uvloop": backend == "uvloop"})


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_decorator_in_every_event_loop(backend: str) -> None:
    retry = hedged(stop=lambda state: True)
    ended: list[str] = []
    with over("127.0.0.1:1", "127.0.0.1:2", retry=retry) as services:

        @services.balanced("orders", idempotent=True)
        async def load(endpoint: clientlb.Endpoint, name: str) -> str:
            try:
                await anyio.sleep(5 if name == "both" or endpoint.port == 1 else 0.01)
            finally:
                ended.append(endpoint.address)
            return endpoint.address

        @services.balanced("orders", deadline=0.2)
        async def slow(endpoint: clientlb.Endpoint) -> None:
            await anyio.sleep(5)

        async def main() -> None:
            assert {await load("one") for _ in range(2)} == {"127.0.0.1:2"}
            assert set(ended) == {"127.0.0.1:1", "127.0.0.1:2"}
            ended.clear()
            with anyio.move_on_after(0.3):
                await load("both")
            assert sorted(ended) == ["127.0.0.1:1", "127.0.0.1:2"]
            with pytest.raises(TimeoutError):
                await slow()

        anyio.run(main, backend=backend)


# ---------------------------------------------------------------------- throttling


async def test_a_service_that_turns_everything_away_is_left_alone(
    kind: Kind, shared_servers: dict[str, Process]
) -> None:
    once = clientlb.RetryOptions(stop=lambda state: True)
    throttle = clientlb.ThrottleOptions(k=2.0, least=10)
    a = shared_servers["a"]
    with over(a, retry=once, throttle=throttle) as services:
        async with kind.client(services) as http:
            for _ in range(20):
                assert (await http.get("http://orders/")).status_code == 200
            before = a.figures()["calls"].get("/status", 0)
            refused = []
            for _ in range(300):
                try:
                    assert (await http.get("http://orders/status?status=503")).status_code == 503
                except kind.ours.ThrottledError as error:
                    refused.append(error)
            sent = a.figures()["calls"]["/status"] - before
    assert sent + len(refused) == 300
    assert isinstance(refused[0], kind.library.ConnectError)
    assert isinstance(refused[0], clientlb.ThrottledError)
    assert "'orders'" in str(refused[0])
    # twice the twenty that were accepted are sent at least, and then fewer and fewer: about 20 * 2 * log(320 / 40) more
    assert 20 <= sent < 180
