"""What a gRPC call says about itself reaches the policy, through both kinds of channel and all four arities."""

from __future__ import annotations

from functools import partial

import grpc
import pytest

import clientlb
import clientlb.grpc
import clientlb.grpc.aio
from clientlb import ConfigurationError, Endpoint
from clientlb.policy import Filter
from clientlb.testing import ManualDiscovery


def services_of(pair, policy):
    endpoints = [Endpoint("127.0.0.1", server.port, version=str(n)) for n, server in enumerate(pair, 1)]
    return clientlb.Services(ManualDiscovery({"orders": endpoints}), options=clientlb.Options(policy=policy))


def by_id(method, request, metadata):
    assert method.startswith("/shop.Orders/")
    return dict(metadata or ()).get("user") if request is None else request.id


def test_a_key_stays_at_one_server_and_keys_are_spread(pair, stub_class, pb):
    with (
        services_of(pair, "ring_hash") as services,
        clientlb.grpc.channel("orders", services, key=by_id) as channel,
    ):
        orders = stub_class(channel)
        homes = {}
        for id in map(str, range(12)):
            request, many = pb.Request(id=id, count=1), [pb.Request(id=id)]
            user = (("user", id),)
            homes[id] = {
                orders.Get(request, timeout=10).port,
                orders.Get.with_call(request)[0].port,
                orders.Get.future(request).result(10).port,
                next(orders.List(request)).port,
                orders.Add(iter(many), metadata=user).port,
                next(orders.Chat(iter(many), metadata=user)).port,
            }
        assert all(len(ports) == 1 for ports in homes.values())
        assert set.union(*homes.values()) == {server.port for server in pair}


async def test_so_it_does_for_coroutines(pair, stub_class, pb):
    with services_of(pair, "rendezvous") as services:
        async with clientlb.grpc.aio.channel("orders", services, key=by_id) as channel:
            orders = stub_class(channel)
            homes = {}
            for id in map(str, range(12)):
                request, many = pb.Request(id=id, count=1), [pb.Request(id=id)]
                user = (("user", id),)
                homes[id] = {
                    (await orders.Get(request, timeout=10)).port,
                    *[reply.port async for reply in orders.List(request)],
                    (await orders.Add(iter(many), metadata=user)).port,
                    *[reply.port async for reply in orders.Chat(iter(many), metadata=user)],
                }
            assert all(len(ports) == 1 for ports in homes.values())
            assert set.union(*homes.values()) == {server.port for server in pair}


async def test_a_filter_picks_servers(pair, stub_class, pb):
    with services_of(pair, partial(Filter, "round_robin", "fail")) as services:
        with clientlb.grpc.channel("orders", services, where={"version": "2"}) as channel:
            assert {stub_class(channel).Get(pb.Request(), timeout=10).port for _ in range(4)} == {pair[1].port}
        with clientlb.grpc.channel("orders", services, where={"version": "3"}) as channel:
            orders = stub_class(channel)
            for ended in (orders.Get.future(pb.Request()), orders.List(pb.Request(count=1))):
                assert ended.code() is grpc.StatusCode.UNAVAILABLE
            with pytest.raises(grpc.RpcError, match="version=3"):
                orders.Get(pb.Request())
        where = lambda method, request, metadata: {"version": request.argument}  # noqa: E731
        async with clientlb.grpc.aio.channel("orders", services, where=where) as channel:
            orders = stub_class(channel)
            assert (await orders.Get(pb.Request(argument="1"), timeout=10)).port == pair[0].port
            with pytest.raises(grpc.aio.AioRpcError, match="version=3") as caught:
                await orders.Get(pb.Request(argument="3"), timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_what_cannot_be_right_is_said_at_once(pair, stub_class, pb):
    with services_of(pair, "round_robin") as services:
        with pytest.raises(ConfigurationError, match="the key of a call is a float"):
            clientlb.grpc.channel("orders", services, key=1.5)
        for asked, words in (
            ({"where": {"version": "2"}}, "wrap it in Filter"),
            ({"key": lambda *call: 1.5}, "the key of a call is a float"),
        ):
            channel = clientlb.grpc.channel("orders", services, **asked)
            with channel, pytest.raises(ConfigurationError, match=words):
                stub_class(channel).Get(pb.Request(), timeout=10)
        assert sum(node.in_flight for node in services["orders"].nodes) == 0
