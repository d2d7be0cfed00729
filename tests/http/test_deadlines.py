"""A call ends in time, whatever it waits for; an attempt that takes too long is made elsewhere; servers are told."""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tenacity import stop_after_attempt, wait_fixed

import clientlb
from clientlb.testing import ManualDiscovery
from tests.http.conftest import Http, Kind, Process

Start = Callable[..., Process]
SOON, LATE = 0.5, 4.0
"""Seconds: a deadline, and when a call with that deadline is late. Most of the difference is for slow machines."""
CALM = clientlb.HealthOptions(consecutive_failures=1000, connect_failures=1000)


def options(**more: Any) -> clientlb.Options:
    return clientlb.Options(policy="round_robin", health=CALM, **more)


@contextlib.contextmanager
def over(*servers: Process | str, **more: Any) -> Iterator[clientlb.Services]:
    """Services over some servers, in turn. Afterwards no call is in flight."""
    addresses = [each if isinstance(each, str) else each.address for each in servers]
    with clientlb.Services(ManualDiscovery({"orders": addresses}), options=options(**more)) as services:
        yield services
        assert not any(node.in_flight for node in services["orders"].nodes)


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    began = time.monotonic()
    yield
    taken = time.monotonic() - began
    assert SOON * 0.9 < taken < LATE, taken


@contextlib.contextmanager
def deaf(backlog: int = 100) -> Iterator[str]:
    """The address of a port that takes connections and does nothing with them; without a backlog it takes none."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=backlog))
        if backlog == 0:
            for _ in range(2):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def failures(services: clientlb.Services) -> int:
    return sum(endpoint.failures for endpoint in services["orders"].stats().endpoints)


async def outcome(kind: Kind, http: Http, method: str, url: str, **arguments: Any) -> Exception:
    """The timeout in which a call ends."""
    with pytest.raises(kind.library.TimeoutException) as caught:
        await http.request(method, url, **arguments)
    return caught.value


# ---------------------------------------------------------------------- the deadline of a call

PER_CALL = {"extensions": {"clientlb": {"deadline": SOON}}}


@pytest.mark.parametrize("how", ["service", "call", "inherited"])
async def test_a_call_ends_in_time(kind: Kind, shared_servers: dict[str, Process], how: str) -> None:
    with over(*shared_servers.values(), deadline=SOON if how == "service" else None) as services:
        async with kind.client(services, timeout=None) as http:
            inherited = clientlb.deadline(SOON if how == "inherited" else math.inf)
            with in_time(), inherited:
                error = await outcome(
                    kind, http, "GET", "http://orders/sleep?seconds=5", **(PER_CALL if how == "call" else {})
                )
        assert isinstance(error, kind.library.ReadTimeout)
        assert "attempt 1" in error.__notes__[0]
        assert "the deadline would pass first" in error.__notes__[0]
        assert failures(services) == 1


@pytest.mark.parametrize(
    "path",
    ["drip?pause=0.05", "stream?chunks=1000&pause=0.05", "stream?chunks=2&pause=5"],
    ids=["head", "drip", "stop"],
)
async def test_an_answer_in_pieces_ends_in_time(kind: Kind, shared_servers: dict[str, Process], path: str) -> None:
    with over(*shared_servers.values(), deadline=SOON) as services, in_time():
        async with kind.client(services, timeout=None) as http:
            assert isinstance(await outcome(kind, http, "GET", f"http://orders/{path}"), kind.library.ReadTimeout)


async def test_a_body_that_its_reader_is_slow_with_ends_in_time(kind: Kind, shared_servers: dict[str, Process]) -> None:
    with over(shared_servers["a"], deadline=SOON) as services, in_time():
        async with kind.client(services) as http, http.stream("http://orders/stream?chunks=20&pause=0.05") as response:
            with pytest.raises(kind.library.ReadTimeout):
                async for _ in http.chunks(response):
                    pass


async def test_a_body_that_is_not_taken_ends_in_time(kind: Kind, start: Start) -> None:
    with over(start("a"), deadline=SOON) as services, in_time():
        async with kind.client(services, timeout=None) as http:
            error = await outcome(kind, http, "PUT", "http://orders/deaf", content=b"x" * 20_000_000)
            assert isinstance(error, (kind.library.WriteTimeout, kind.library.ReadTimeout))


@pytest.mark.parametrize(("backlog", "scheme"), [(0, "http"), (100, "https")], ids=["tcp", "tls"])
async def test_connecting_ends_in_time(kind: Kind, backlog: int, scheme: str) -> None:
    with deaf(backlog) as address, over(address, deadline=SOON) as services, in_time():
        async with kind.client(services, timeout=None) as http:
            error = await outcome(kind, http, "GET", f"{scheme}://orders/")
            assert isinstance(error, kind.library.ConnectTimeout)


async def test_waiting_for_a_connection_of_the_pool_ends_in_time(
    kind: Kind, shared_servers: dict[str, Process]
) -> None:
    limits = kind.library.Limits(max_connections=1)
    with over(shared_servers["a"], deadline=SOON) as services:
        async with (
            kind.client(services, timeout=None, limits=limits) as http,
            http.stream("http://orders/stream?chunks=2&pause=0"),
        ):
            with in_time():
                assert isinstance(await outcome(kind, http, "GET", "http://orders/"), kind.library.PoolTimeout)


@pytest.mark.parametrize("whose", ["ours", "the client's"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_an_attempt_that_finds_no_connection_free_is_made_elsewhere(
    kind: Kind, method: str, whose: str, shared_servers: dict[str, Process]
) -> None:
    limits = kind.library.Limits(max_connections=1)
    timeout = None if whose == "ours" else kind.library.Timeout(None, pool=SOON)
    with over(*shared_servers.values(), attempt_timeout=SOON if whose == "ours" else None) as services:
        async with (
            kind.client(services, timeout=timeout, limits=limits) as http,
            http.stream("http://orders/stream?chunks=2&pause=0") as response,
        ):
            full = response.extensions["clientlb"].endpoint
            traces = [(await http.request(method, "http://orders/")).extensions["clientlb"] for _ in range(2)]
    assert all(trace.endpoint != full for trace in traces)
    assert [tried.reason for trace in traces for tried in trace.attempts if tried.endpoint == full] == ["PoolTimeout"]


async def test_pauses_between_attempts_count(kind: Kind, shared_servers: dict[str, Process]) -> None:
    retry = clientlb.RetryOptions(stop=stop_after_attempt(100), wait=wait_fixed(1.2))
    with over(*shared_servers.values(), deadline=2.0, retry=retry) as services:
        async with kind.client(services) as http:
            began = time.monotonic()
            answer = await http.get("http://orders/status?status=503")
            assert time.monotonic() - began < LATE
    trace = answer.extensions["clientlb"]
    assert len(trace.attempts) == 2
    assert "the deadline would pass first" in str(trace)


async def test_waiting_for_the_first_list_counts(kind: Kind) -> None:
    with clientlb.Services(ManualDiscovery(), options=options(deadline=SOON, wait_for_endpoints=30)) as services:
        async with kind.client(services) as http:
            with in_time(), pytest.raises(kind.ours.NoEndpointsError, match="orders"):
                await http.get("http://orders/")


@pytest.mark.parametrize(
    "timeouts",
    [{"timeout": SOON, "extensions": {"clientlb": {"deadline": 30}}}, {"timeout": 30, **PER_CALL}],
    ids=["httpx", "clientlb"],
)
async def test_the_smaller_limit_counts(
    kind: Kind, shared_servers: dict[str, Process], timeouts: dict[str, Any]
) -> None:
    with over(shared_servers["a"]) as services, in_time():
        async with kind.client(services) as http:
            once = {**timeouts["extensions"]["clientlb"], "retry": False}
            arguments = {"timeout": timeouts["timeout"], "extensions": {"clientlb": once}}
            error = await outcome(kind, http, "GET", "http://orders/sleep?seconds=5", **arguments)
            assert isinstance(error, kind.library.ReadTimeout)


async def test_a_deadline_that_is_over(kind: Kind, shared_servers: dict[str, Process]) -> None:
    with over(shared_servers["a"]) as services:
        async with kind.client(services) as http:
            before = shared_servers["a"].figures()["calls"].get("/over", 0)
            with clientlb.deadline(0), pytest.raises(kind.ours.DeadlineExceededError, match="'orders'") as caught:
                await http.get("http://orders/over")
            assert isinstance(caught.value, kind.library.ConnectTimeout)
            assert isinstance(caught.value, clientlb.DeadlineExceededError)
            assert caught.value.request.url.host == "orders"
            assert (await http.get("http://orders/")).status_code == 200
        assert shared_servers["a"].figures()["calls"].get("/over", 0) == before
        assert failures(services) == 0


async def test_infinity_is_no_deadline(kind: Kind, shared_servers: dict[str, Process]) -> None:
    with over(shared_servers["a"], deadline=0.1, attempt_timeout=0.1) as services:
        async with kind.client(services) as http:
            unlimited = {"clientlb": {"deadline": math.inf, "attempt_timeout": math.inf}}
            answer = await http.get("http://orders/sleep?seconds=0.3", extensions=unlimited)
            assert answer.status_code == 200


# ---------------------------------------------------------------------- the timeout of an attempt


async def test_a_hung_server_costs_no_idempotent_call(kind: Kind, start: Start) -> None:
    hung, well = start("a"), start("b")
    with over(hung, well, attempt_timeout=0.75) as services:
        async with kind.client(services) as http:
            assert {(await http.get("http://orders/")).json()["server"] for _ in range(2)} == {"a", "b"}
            with hung.stopped():
                answers = [await http.get("http://orders/") for _ in range(6)]
        assert [answer.json()["server"] for answer in answers] == ["b"] * 6
        reasons = [[tried.reason for tried in answer.extensions["clientlb"].attempts] for answer in answers]
        assert failures(services) == reasons.count(["ReadTimeout", ""]) >= 1
        assert [reason for reason in reasons if reason not in ([""], ["ReadTimeout", ""])] == []


async def test_an_attempt_that_took_too_long_is_not_repeated_if_that_is_unsafe(
    kind: Kind, shared_servers: dict[str, Process]
) -> None:
    a, b = shared_servers.values()
    with over(a, b, attempt_timeout=SOON) as services:
        before = [each.figures()["calls"].get("/sleep", 0) for each in (a, b)]
        async with kind.client(services) as http:
            with in_time():
                error = await outcome(kind, http, "POST", "http://orders/sleep?seconds=5", content=b"pay")
        assert "not idempotent" in error.__notes__[0]
        after = [each.figures()["calls"].get("/sleep", 0) for each in (a, b)]
        assert sum(after) - sum(before) == 1
        assert failures(services) == 1


async def test_the_timeout_of_an_attempt_ends_with_the_head(kind: Kind, shared_servers: dict[str, Process]) -> None:
    with over(shared_servers["a"], attempt_timeout=SOON) as services:
        async with kind.client(services) as http:
            answer = await http.get("http://orders/stream?chunks=6&pause=0.1")
            assert answer.content.count(b";") == 6
            assert answer.extensions["clientlb"].seconds < SOON


# ---------------------------------------------------------------------- what the server is told


@pytest.mark.parametrize(("name", "unit"), [("X-Time-Left", 1.0), ("X-Time-Left-Ms", 0.001)])
async def test_a_server_is_told_how_much_time_is_left(
    kind: Kind, shared_servers: dict[str, Process], name: str, unit: float
) -> None:
    def told(answer: Any) -> float:
        return float(answer.json()["headers"][name.lower()]) * unit

    async with contextlib.AsyncExitStack() as stack:
        services = stack.enter_context(over(*shared_servers.values(), deadline_header=name))
        http = await stack.enter_async_context(kind.client(services))
        assert name.lower() not in (await http.get("http://orders/echo")).json()["headers"]
        with clientlb.deadline(10):
            assert 5 < told(await http.get("http://orders/echo")) <= 10
            retry = clientlb.RetryOptions(wait=wait_fixed(0.2))
            later = await http.get(
                "http://orders/status?at=a&status=503", extensions={"clientlb": {"retry": retry, "deadline": 8}}
            )
            if len(later.extensions["clientlb"].attempts) == 1:  # it came to b at once
                later = await http.get(
                    "http://orders/status?at=a&status=503", extensions={"clientlb": {"retry": retry, "deadline": 8}}
                )
            assert 5 < told(later) <= 7.8
            less = await http.get("http://orders/echo", headers={name: str(round(2 / unit))})
            assert told(less) == 2
            more = await http.get("http://orders/echo", headers={name: str(round(60 / unit))})
            assert told(more) <= 10
        passed_on = await http.get("http://orders/echo", headers={name: "17"})
        assert passed_on.json()["headers"][name.lower()] == "17"
        timed = await http.get("http://orders/echo", extensions={"clientlb": {"attempt_timeout": 3, "deadline": 9}})
        assert 1 < told(timed) <= 3
