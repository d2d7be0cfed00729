"""The time of calls: deadlines that they have and inherit, attempts that take too long, servers that hang."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from tenacity.stop import stop_after_attempt
from tenacity.wait import wait_none

import clientlb
import clientlb.grpc
from clientlb.testing import ManualDiscovery
from tests.grpc.caller import KINDS, Caller, answered_by_all
from tests.grpc.conftest import HERE, OrdersServer
from tests.servers.process import wait_until

RETRY = clientlb.RetryOptions(
    stop=stop_after_attempt(3), wait=wait_none(), budget=clientlb.BudgetOptions(ratio=1.0, reserve=1000)
)
SLOW, LATE = 10, 8.0
"""Seconds that a slow answer takes, and in which all is over if nobody waits for it."""
ENOUGH = 0.75
"""Seconds in which a server that is not slow answers for sure."""
CALM = clientlb.HealthOptions(consecutive_failures=1000, connect_failures=1000)


@pytest.fixture(params=KINDS)
def over(request: pytest.FixtureRequest, stub_class: Any) -> Callable[..., contextlib.AbstractContextManager[Caller]]:
    """A caller with options of its own, in turn over some addresses. Afterwards nothing is in flight."""

    @contextlib.contextmanager
    def over(addresses: Sequence[str], *, idempotent: bool = True, **options: Any) -> Iterator[Any]:
        merged = clientlb.Options(**{"policy": "round_robin", "retry": RETRY, "health": CALM, **options})
        with clientlb.Services(ManualDiscovery({"orders": list(addresses)}), options=merged) as services:
            caller = Caller(request.param, services, stub_class)
            caller.balancer = services["orders"]
            caller.connect(idempotent=idempotent)
            try:
                yield caller
                wait_until(lambda: sum(node.in_flight for node in services["orders"].nodes) == 0)
            finally:
                caller.close()

    return over


def remaining(reply: Any) -> float:
    """What the server says of the time that its call has; what gRPC gives to one without a deadline is no time."""
    seconds = float(reply.metadata["time remaining"])
    return seconds if seconds < 1e6 else float("inf")


def test_the_earliest_of_three_deadlines_counts(over, pb, pair):
    with over([pair[0].address], deadline=200) as caller:
        with clientlb.deadline(100):
            assert 50 < remaining(caller.get(pb.Request())) <= 102
            assert 20 < remaining(caller.get(pb.Request(), timeout=50)) <= 51
            assert 50 < remaining(caller.get(pb.Request(), timeout=600)) <= 102
        assert 150 < remaining(caller.get(pb.Request())) <= 204
        assert 150 < remaining(caller.add(iter([pb.Request()]), timeout=600)) <= 204


def test_a_stream_takes_what_it_inherits_but_no_deadline_of_the_service(over, pb, pair):
    with over([pair[0].address], deadline=20) as caller:
        assert remaining(caller.list(pb.Request(count=1))[0]) == float("inf")
        with clientlb.deadline(100):
            assert 50 < remaining(caller.list(pb.Request(count=1))[0]) <= 102
            assert 50 < remaining(caller.chat(iter([pb.Request()]))[0]) <= 102


def test_a_deadline_that_is_over_sends_nothing_and_blames_nobody(over, pb, pair, seen):
    with over([pair[0].address]) as caller:
        for within, arguments in ((0.0, {}), (60.0, {"timeout": 0.0})):
            with clientlb.deadline(within), pytest.raises(clientlb.DeadlineExceededError) as caught:
                caller.get(pb.Request(id="too late"), **arguments)
            assert isinstance(caught.value, grpc.RpcError)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert seen(pair[0], "too late") == 0
        assert caller.balancer.stats().failures == 0


def test_the_deadline_ends_a_call_in_the_midst_of_its_attempts(over, pb, pair):
    with over([server.address for server in pair], attempt_timeout=0.4) as caller:
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            caller.get(pb.Request(act="sleep", argument=str(SLOW)), timeout=0.6)
        assert 0.55 < time.monotonic() - began < LATE
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "attempt timeout" in "".join(caught.value.__notes__)


def test_a_deadline_that_leaves_less_time_than_usual_is_no_evidence(over, pb, pair):
    with over([pair[0].address]) as caller:
        caller.get(pb.Request())
        usual = [caller.balancer.pick() for _ in range(40)]
        time.sleep(0.5)
        for pick in usual:
            pick.release()
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as caught:
                caller.get(pb.Request(act="sleep", argument="2"), timeout=0.1)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert caller.balancer.stats().failures == 0


def test_an_attempt_that_is_cut_short_goes_elsewhere_and_is_evidence(over, pb, pair):
    slow, fast = pair
    request = pb.Request(act="sleep at", argument=f"{slow.port} {SLOW}")
    with over([slow.address, fast.address], attempt_timeout=ENOUGH) as caller:
        answered_by_all(lambda: caller.get(pb.Request()).port, {slow.port, fast.port})
        began = time.monotonic()
        assert {caller.get(request).port for _ in range(2)} == {fast.port}
        assert caller.add(iter([request])).port == caller.add(iter([request])).port == fast.port
        assert time.monotonic() - began < LATE
        failures = {endpoint.endpoint: endpoint.failures for endpoint in caller.balancer.stats().endpoints}
        assert failures[slow.address] >= 2
        assert failures[fast.address] == 0


def test_an_attempt_that_is_cut_short_is_not_repeated_unless_it_may_be(over, pb, pair, seen):
    slow, fast = pair
    request = pb.Request(id="once", act="sleep at", argument=f"{slow.port} {SLOW}")
    with over([slow.address, fast.address], attempt_timeout=ENOUGH, idempotent=False) as caller:
        answered_by_all(lambda: caller.get(pb.Request()).port, {slow.port, fast.port})
        codes = []
        for _ in range(2):
            try:
                caller.get(request)
            except grpc.RpcError as error:
                codes.append(error.code())
        assert codes == [grpc.StatusCode.DEADLINE_EXCEEDED]
        with pytest.raises(grpc.RpcError) as caught:
            caller.list(pb.Request(act="sleep", argument=str(SLOW)))
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "not idempotent" in "".join(caught.value.__notes__)


def test_a_stream_that_does_not_begin_in_time_begins_elsewhere(over, pb, pair):
    slow, fast = pair
    request = pb.Request(act="sleep at", argument=f"{slow.port} {SLOW}", count=3)
    with over([slow.address, fast.address], attempt_timeout=ENOUGH) as caller:
        began = time.monotonic()
        for _ in range(2):
            assert [reply.port for reply in caller.list(request)] == [fast.port] * 3
            assert [reply.port for reply in caller.chat(iter([request] * 2))] == [fast.port] * 2
        assert time.monotonic() - began < LATE


def test_a_stream_that_has_begun_may_take_its_time(over, pb, pair):
    requests = [pb.Request(), pb.Request(act="sleep", argument=str(1.5 * ENOUGH))]
    with over([pair[0].address], attempt_timeout=ENOUGH) as caller:
        assert len(caller.chat(iter(requests))) == 2
        assert caller.balancer.stats().failures == 0


def test_a_server_that_hangs_costs_no_idempotent_call(over, pb, own_pair):
    hung, other = own_pair
    with over([hung.address, other.address], attempt_timeout=0.3, health=clientlb.HealthOptions()) as caller:
        answered_by_all(lambda: caller.get(pb.Request()).port, {hung.port, other.port})
        hung.signal(signal.SIGSTOP)
        try:
            assert {caller.get(pb.Request(), timeout=10).port for _ in range(12)} == {other.port}
            assert {caller.add(iter([pb.Request()]), timeout=10).port for _ in range(4)} == {other.port}
            assert {caller.list(pb.Request(count=1), timeout=10)[0].port for _ in range(4)} == {other.port}
            assert {caller.chat(iter([pb.Request()]), timeout=10)[0].port for _ in range(4)} == {other.port}
            states = {endpoint.endpoint: endpoint.state for endpoint in caller.balancer.stats().endpoints}
            assert states[hung.address] != states[other.address]
        finally:
            hung.signal(signal.SIGCONT)


def test_a_client_refuses_calls_of_a_service_that_turns_them_away(over, pb, pair):
    throttle = clientlb.ThrottleOptions(k=1.1, least=10)
    with over([pair[0].address], throttle=throttle, idempotent=False) as caller:
        refused = []
        for _ in range(200):
            with pytest.raises(grpc.RpcError) as caught:
                caller.get(pb.Request(act="fail", argument="RESOURCE_EXHAUSTED"))
            refused.append(isinstance(caught.value, clientlb.ThrottledError))
        assert not any(refused[:9])
        assert sum(refused[100:]) > 50
        kinds = {error.code() for error in [caught.value]}
        assert kinds <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_attempts_after_the_first_avoid_the_failure_domain(over, pb, pair, nobody):
    endpoints = [
        clientlb.Endpoint("127.0.0.1", int(nobody.split(":")[1]), zone="a"),
        clientlb.Endpoint("127.0.0.1", pair[0].port, zone="a"),
        clientlb.Endpoint("127.0.0.1", pair[1].port, zone="b"),
    ]
    retry = clientlb.RetryOptions(stop=stop_after_attempt(3), wait=wait_none(), avoid=("zone",))
    with over(endpoints, retry=retry) as caller:
        repeated: list[int] = []

        def again() -> bool:
            before = caller.balancer.stats().retries
            port = caller.get(pb.Request()).port
            if caller.balancer.stats().retries > before:
                repeated.append(port)
            return len(repeated) == 2

        wait_until(again, what="two calls that began where nobody listens")
        assert set(repeated) == {pair[1].port}


class RelayServer(OrdersServer):
    """A server that calls another one on the way."""

    def __init__(self, stubs: Path, upstream: str, kind: str) -> None:
        super().__init__(stubs)
        self._upstream, self._kind = upstream, kind

    def command(self) -> Sequence[str]:
        server = str(HERE / "relay_server.py")
        return [sys.executable, server, str(self._stubs), str(self.port), self._upstream, self._kind]


@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_calls_of_a_server_inherit_the_deadline_of_the_call_that_it_serves(kind, stubs, stub_class, pb, pair):
    relay = RelayServer(stubs, pair[0].address, kind)
    relay.start()
    try:
        with grpc.insecure_channel(relay.address) as channel:
            stub = stub_class(channel)
            one, many = pb.Request(), [pb.Request()] * 2
            for seconds in (30.0, 12.0):
                replies = [
                    stub.Get(one, timeout=seconds),
                    *stub.List(pb.Request(count=2), timeout=seconds),
                    stub.Add(iter(many), timeout=seconds),
                    *stub.Chat(iter(many), timeout=seconds),
                ]
                assert len(replies) == 6
                assert all(seconds - 5 < remaining(reply) < seconds * 1.02 for reply in replies)
            assert remaining(stub.Get(one)) == float("inf")  # the one before has left nothing behind
    finally:
        relay.stop()
