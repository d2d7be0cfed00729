"""A second attempt beside one that is late: the faster answer counts, the other is cancelled, and nothing is left."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

import clientlb
import clientlb.grpc
import clientlb.grpc.aio
from clientlb.grpc import _exchange
from clientlb.grpc.aio import _exchange as aio_exchange
from clientlb.testing import ManualDiscovery
from tests.grpc.caller import Caller, answered_by_all, until
from tests.grpc.conftest import OrdersServer
from tests.servers.process import wait_until

SLOW, LATE = 10, 8.0
"""Seconds that a slow answer takes, and in which all is over if nobody waits for it."""
CALM = clientlb.HealthOptions(consecutive_failures=1000, connect_failures=1000)
Over = Callable[..., Any]


@pytest.fixture(params=["call", "aio"])
def over(request: pytest.FixtureRequest, stub_class: Any) -> Over:
    """A caller of hedged calls, in turn over some servers. Afterwards no call is in flight, and no thread is left."""

    @contextmanager
    def over(*servers: OrdersServer | str, delay: float = 0.1, **more: Any) -> Iterator[Any]:
        retry = clientlb.RetryOptions(
            hedge=clientlb.HedgeOptions(delay=delay), budget=clientlb.BudgetOptions(ratio=1.0, reserve=1000)
        )
        options = clientlb.Options(policy="round_robin", health=CALM, retry=retry)
        addresses = [server if isinstance(server, str) else server.address for server in servers]
        before = threads()
        with clientlb.Services(ManualDiscovery({"orders": addresses}), options=options) as services:
            caller: Any = Caller(request.param, services, stub_class)
            caller.balancer = services["orders"]
            caller.connect(idempotent=True, **more)
            try:
                yield caller
                wait_until(lambda: sum(node.in_flight for node in services["orders"].nodes) == 0)
            finally:
                caller.close()
        wait_until(lambda: threads() <= before, what="no thread left")

    return over


def threads() -> set[threading.Thread]:
    """All but the one that grpc.aio has for the whole process."""
    return {thread for thread in threading.enumerate() if "_poll_wrapper" not in thread.name}


def at(server: OrdersServer, seconds: float) -> dict[str, str]:
    return {"act": "sleep at", "argument": f"{server.port} {seconds}"}


def test_the_faster_answer_counts_and_the_other_attempt_is_cancelled(over, pb, pair):
    slow, fast = pair
    with over(slow, fast) as caller:
        began = time.monotonic()
        assert [caller.get(pb.Request(id="a", **at(slow, SLOW))).port for _ in range(4)] == [fast.port] * 4
        assert time.monotonic() - began < LATE
        figures = caller.balancer.stats()
        assert caller.balancer.stats().hedges >= 2
        assert figures.failures == 0
        assert sum(node.in_flight for node in caller.balancer.nodes) == 0  # at once, not when the slow server is done


def test_a_server_that_hangs_is_waited_for_no_longer_than_the_delay(over, pb, own_pair):
    hung, other = own_pair
    with over(hung, other) as caller:
        answered_by_all(lambda: caller.get(pb.Request()).port, {hung.port, other.port})
        hung.signal(signal.SIGSTOP)
        try:
            assert {caller.get(pb.Request(), timeout=10).port for _ in range(6)} == {other.port}
        finally:
            hung.signal(signal.SIGCONT)


def test_the_last_failure_stands(over, pb, pair):
    with over(*pair, delay=0.05) as caller:
        with pytest.raises(grpc.RpcError) as caught:
            caller.get(pb.Request(act="sleep and fail", argument="0.2"))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == "asked to sleep and fail"
        assert "clientlb: service 'orders': attempt 1" in "".join(caught.value.__notes__)


def test_a_method_that_may_not_be_repeated_is_not_hedged(over, pb, pair):
    slow, _ = pair
    with over(*pair, delay=0.05) as caller:
        caller.connect(idempotent=False)
        answered_by_all(lambda: caller.get(pb.Request(**at(slow, 0.3))).port, {server.port for server in pair})
        assert caller.balancer.stats().hedges == 0


def test_one_endpoint_gets_one_attempt(over, pb, pair):
    with over(pair[0], delay=0.05) as caller:
        assert caller.get(pb.Request(id="alone", act="sleep", argument="0.3")).port == pair[0].port
        assert caller.balancer.stats().hedges == 0


def test_the_deadline_ends_all_attempts(over, pb, pair):
    with over(*pair, delay=0.05) as caller:
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            caller.get(pb.Request(act="sleep", argument=str(SLOW)), timeout=0.4)
        assert time.monotonic() - began < LATE
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        with clientlb.deadline(0.0), pytest.raises(clientlb.DeadlineExceededError):
            caller.get(pb.Request())


def test_a_second_attempt_that_cannot_be_started_leaves_the_first_alone(over, pb, pair, monkeypatch):
    for exchange in (_exchange.Exchange, aio_exchange.Exchange):

        def start(self, attempt, start=exchange.start):
            if attempt.number > 1:
                raise RuntimeError("can't start new thread")
            return start(self, attempt)

        monkeypatch.setattr(exchange, "start", start)
    with over(*pair) as caller:
        slow = pair[0]
        for _ in range(2):  # one of the two goes there first
            assert caller.get(pb.Request(**at(slow, 0.3))).port
        assert caller.balancer.stats().hedges == 0


@contextmanager
def hedged_channel(servers: Sequence[Any], delay: float) -> Iterator[tuple[Any, clientlb.Services]]:
    retry = clientlb.RetryOptions(hedge=clientlb.HedgeOptions(delay=delay))
    options = clientlb.Options(policy="round_robin", retry=retry)
    addresses = [server.address for server in servers]
    with (
        clientlb.Services(ManualDiscovery({"orders": addresses}), options=options) as services,
        clientlb.grpc.channel("orders", services, idempotent=True) as channel,
    ):
        yield channel, services


def test_with_call_has_the_call_that_answered(pb, pair, stub_class):
    slow, fast = pair
    with hedged_channel(pair, delay=0.1) as (channel, _):
        for _ in range(2):
            reply, call = stub_class(channel).Get.with_call(pb.Request(**at(slow, SLOW)))
            assert reply.port == fast.port
            assert call.code() is grpc.StatusCode.OK


def test_a_future_has_one_attempt_at_a_time(pb, pair, stub_class):
    with hedged_channel(pair, delay=0.05) as (channel, services):
        futures = [stub_class(channel).Get.future(pb.Request(act="sleep", argument="0.3")) for _ in range(2)]
        assert {future.result().port for future in futures} == {server.port for server in pair}
        assert services["orders"].stats().hedges == 0


async def hedged_stub(services: clientlb.Services, stub_class: Any) -> tuple[Any, Any]:
    channel = clientlb.grpc.aio.channel("orders", services, idempotent=True)
    return channel, stub_class(channel)


@pytest.fixture(params=[0.1])
def hedging(pair, request: pytest.FixtureRequest) -> Iterator[clientlb.Services]:
    """Hedges after 0.1 s, or as long as the test's parameter says."""
    retry = clientlb.RetryOptions(hedge=clientlb.HedgeOptions(delay=request.param))
    options = clientlb.Options(policy="round_robin", retry=retry)
    addresses = [server.address for server in pair]
    with clientlb.Services(ManualDiscovery({"orders": addresses}), options=options) as services:
        yield services


def running(services: clientlb.Services) -> int:
    return sum(node.in_flight for node in services["orders"].nodes)


async def test_a_hedged_call_is_a_call(hedging, stub_class, pb, pair):
    channel, stub = await hedged_stub(hedging, stub_class)
    ended: list[Any] = []
    call = stub.Get(pb.Request(act="greet"), timeout=20)
    call.add_done_callback(ended.append)
    assert isinstance(call, grpc.aio.UnaryUnaryCall)
    assert 15 < call.time_remaining() <= 20
    await call.wait_for_connection()
    assert (await call).port in {server.port for server in pair}
    assert await call.code() is grpc.StatusCode.OK
    assert await call.details() == ""
    assert (await call.initial_metadata())["greeting"] == "hello"
    assert (await call.trailing_metadata())["farewell"] == "goodbye"
    assert call.done()
    assert not call.cancelled()
    assert not call.cancel()
    assert ended == [call]
    failing = stub.Get(pb.Request(act="fail", argument="NOT_FOUND"))
    assert await failing.code() is grpc.StatusCode.NOT_FOUND
    assert (await failing.trailing_metadata())["why"] == "asked to"
    assert "asked to fail" in await failing.debug_error_string()
    await channel.close()


async def test_a_cancelled_hedged_call_leaves_nothing_in_flight(hedging, stub_class, pb):
    channel, stub = await hedged_stub(hedging, stub_class)
    call = stub.Get(pb.Request(act="sleep", argument=str(SLOW)))
    await until(lambda: running(hedging) == 2)
    assert call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert call.cancelled()
    assert await call.code() is grpc.StatusCode.CANCELLED
    assert running(hedging) == 0
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stub.Get(pb.Request(act="sleep", argument=str(SLOW))), 0.3)
    assert running(hedging) == 0
    await channel.close()


async def test_closing_the_channel_ends_hedged_calls(hedging, stub_class, pb):
    channel, stub = await hedged_stub(hedging, stub_class)
    call = stub.Get(pb.Request(act="sleep", argument=str(SLOW)))
    dropped = stub.Get(pb.Request(act="sleep", argument=str(SLOW)))
    await until(lambda: running(hedging) == 4)
    del dropped
    began = time.monotonic()
    await channel.close()
    assert time.monotonic() - began < LATE
    assert await call.code() is grpc.StatusCode.CANCELLED
    assert running(hedging) == 0


@pytest.mark.parametrize("hedging", [60.0], indirect=True)  # or a slow moment would have two attempts
async def test_hedged_calls_that_nobody_awaits_run_to_their_end(hedging, stub_class, pb, pair, seen):
    channel, stub = await hedged_stub(hedging, stub_class)
    stub.Get(pb.Request(id="hedged and forgotten"))
    stub.Get(pb.Request(act="fail", argument="NOT_FOUND"))
    await until(lambda: sum(each.calls for each in hedging["orders"].stats().endpoints) == 2)
    assert running(hedging) == 0
    assert sum(seen(server, "hedged and forgotten") for server in pair) == 1
    await channel.close()
