"""Connecting goes on in the background: no call waits long for an endpoint while another one is connected."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tenacity.stop import stop_after_attempt

import clientlb
import clientlb.grpc
import clientlb.grpc.aio
from clientlb.grpc._links import Links
from clientlb.testing import ManualDiscovery
from tests.grpc.caller import KINDS, Caller
from tests.servers.process import wait_until

LATE = 10.0
"""Seconds in which a call ends that does not wait for the address where nobody answers, which would take its 20."""


@pytest.fixture
def hole() -> Iterator[str]:
    """An address where nobody answers: the queue of the socket is full, so the kernel drops what comes."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        with pytest.raises(TimeoutError):
            socket.create_connection(listener.getsockname(), 0.2)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(params=KINDS)
def calling(request: pytest.FixtureRequest, stub_class: Any) -> Any:
    """Makes callers that take the endpoints in turn."""

    @contextlib.contextmanager
    def calling(*addresses: str, **options: Any) -> Iterator[Any]:
        discovery = ManualDiscovery({"orders": list(addresses)})
        merged = clientlb.Options(**{"policy": "round_robin", **options})
        with clientlb.Services(discovery, options=merged) as services:
            caller: Any = Caller(request.param, services, stub_class)
            caller.discovery = discovery
            caller.balancer = services["orders"]
            caller.connect()
            try:
                yield caller
                wait_until(lambda: sum(node.in_flight for node in services["orders"].nodes) == 0)
            finally:
                caller.close()

    return calling


def longest(calls: Any) -> float:
    """Seconds of the call that took longest."""
    seconds = []
    for call in calls:
        began = time.monotonic()
        call()
        seconds.append(time.monotonic() - began)
    return max(seconds)


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_an_address_where_nobody_answers_costs_no_call_more_than_a_moment(calling, pb, pair, hole, first):
    addresses = [hole, pair[0].address] if first else [pair[0].address, hole]
    requests = [pb.Request(id=str(number)) for number in range(3)]
    with calling(*addresses) as caller:
        one = pb.Request(count=2)
        kinds = [
            lambda: caller.get(one, timeout=20),
            lambda: caller.list(one, timeout=20),
            lambda: caller.add(iter(requests), timeout=20),
            lambda: caller.chat(iter(requests), timeout=20),
        ]
        assert longest(kinds * 3) < LATE
        assert caller.add(iter(requests), timeout=20).number == 3


@pytest.mark.parametrize("arity", ["get", "list", "add", "chat"])
def test_the_very_first_call_of_any_arity_is_moved(calling, pb, pair, hole, arity):
    request = pb.Request(count=1)
    for addresses in ([hole, pair[0].address], [pair[0].address, hole]):  # one of them begins in the hole
        with calling(*addresses) as caller:
            began = time.monotonic()
            getattr(caller, arity)(request if arity in ("get", "list") else iter([request]), timeout=20)
            assert time.monotonic() - began < LATE


def test_a_new_endpoint_is_connected_to_in_the_background(calling, pb, pair, hole):
    with calling(pair[0].address) as caller:
        caller.get(pb.Request())
        caller.discovery.set("orders", [pair[0].address, pair[1].address, hole])
        assert longest([lambda: caller.get(pb.Request(), timeout=20)] * 9) < LATE
        wait_until(lambda: {caller.get(pb.Request()).port for _ in range(6)} == {server.port for server in pair})
        assert caller.balancer.stats().failures == 0  # nobody was sent there, so nobody is blamed


@pytest.mark.parametrize("before", [1, 2, 3])
def test_calls_are_moved_at_once_and_everybody_else_gets_some(before):
    discovery = ManualDiscovery({"orders": ["127.0.0.1:1"]})
    states = {1: grpc.ChannelConnectivity.READY, 2: grpc.ChannelConnectivity.CONNECTING}
    with clientlb.Services(discovery, options=clientlb.Options(policy="round_robin")) as services:
        balancer = services["orders"]
        links = Links(balancer, lambda endpoint: endpoint.port, list, lambda port: states.get(port, states[1]))

        def call() -> int:
            with links.settle(balancer.pick(), True) as pick:
                return pick.endpoint.port

        assert [call() for _ in range(before)] == [1] * before
        discovery.set("orders", [f"127.0.0.1:{port}" for port in (1, 2, 3)])
        assert {call() for _ in range(12)} == {1, 3}


def test_who_is_alone_is_waited_for(calling, pb, hole):
    with calling(hole, retry=clientlb.RetryOptions(stop=stop_after_attempt(1))) as caller:
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            caller.get(pb.Request(), timeout=0.8)
        assert time.monotonic() - began > 0.7
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_few_endpoints_are_connected_to_with_the_first_call_and_not_all(stub_class, pb, pair):
    addresses = [f"127.0.1.{last}:9" for last in range(1, 60)] + [pair[0].address]
    options = clientlb.Options(retry=clientlb.RetryOptions(transparent=100))
    with (
        clientlb.Services(ManualDiscovery({"orders": addresses}), options=options) as services,
        clientlb.grpc.channel("orders", services) as channel,
    ):
        stub_class(channel).Get(pb.Request(), timeout=20)
        tried = services["orders"].stats().retries + 1
        # three besides the first one, and one more for an attempt that was moved
        assert min(tried, 4) <= len(channel.links.channels) <= 2 * tried + 3
