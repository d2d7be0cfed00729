"""Endpoints that come and go, connectivity, forks: the life of the channels underneath."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path

import grpc
import pytest

import clientlb
import clientlb.grpc
import clientlb.grpc.aio
from clientlb.testing import ManualDiscovery
from tests.grpc.caller import answered_by_all
from tests.servers.process import wait_until

ROOT = Path(__file__).parents[2]


def _is_closed(channel: grpc.Channel) -> bool:
    try:
        channel.unary_unary("/shop.Orders/Get")(b"", timeout=10)
    except ValueError as error:
        return "closed" in str(error)
    except grpc.RpcError:
        return False
    return False


def test_a_leavers_channel_is_closed_after_its_last_call(connect, discovery, pb, pair):
    leaver, stayer = pair
    discovery.set("orders", [leaver.address])
    orders = connect()
    links = orders.channel.links
    stream = orders.List(pb.Request(count=3))
    assert next(stream).port == leaver.port
    (channel,) = links.channels
    discovery.set("orders", [stayer.address])
    assert links.channels == [channel]
    assert links.current == []
    assert orders.Get(pb.Request()).port == stayer.port
    assert len(links.channels) == 2
    assert [reply.number for reply in stream] == [1, 2]
    wait_until(lambda: channel not in links.channels, what="the channel of the leaver is closed")
    wait_until(lambda: _is_closed(channel), what="its channel is closed")


def test_an_idle_leavers_channel_is_closed_at_once(connect, discovery, pb, pair):
    discovery.set("orders", [server.address for server in pair])
    orders = connect()
    answered_by_all(lambda: orders.Get(pb.Request()).port, {server.port for server in pair})
    kept = list(orders.channel.links.channels)
    discovery.set("orders", [pair[1].address])
    wait_until(lambda: len(orders.channel.links.channels) == 1)
    assert orders.channel.links.channels[0] in kept  # survivors keep their connection
    assert orders.Get(pb.Request()).port == pair[1].port


def test_a_leavers_channel_is_closed_with_the_balanced_one(connect, discovery, pb, pair):
    leaver, stayer = pair
    discovery.set("orders", [leaver.address])
    orders = connect()
    orders.Get(pb.Request())
    (channel,) = orders.channel.links.channels
    busy = threading.Event()
    orders.channel.after(0.0, busy.wait)  # on the thread that is to close it
    discovery.set("orders", [stayer.address])
    orders.channel.close()
    busy.set()
    assert _is_closed(channel)


async def test_an_aio_leavers_channel_is_closed_after_its_last_call(aconnect, discovery, pb, pair):
    leaver, stayer = pair
    discovery.set("orders", [leaver.address])
    orders = aconnect()
    stream = orders.List(pb.Request(count=3))
    assert (await anext(aiter(stream))).port == leaver.port
    links = orders.channel.links()
    (channel,) = links.channels
    discovery.set("orders", [stayer.address])
    assert (await orders.Get(pb.Request())).port == stayer.port
    assert channel in links.channels
    assert [reply.number async for reply in stream] == [1, 2]
    assert channel not in links.channels
    await asyncio.sleep(0)
    with pytest.raises(grpc.aio.UsageError, match="closed"):
        channel.unary_unary("/shop.Orders/Get")(b"")


def test_a_call_that_loses_the_race_with_close_gets_what_a_closed_channel_gives(connect, discovery, pb, pair):
    discovery.set("orders", [server.address for server in pair])
    orders = connect()
    answered = orders.Get(pb.Request()).port
    links = orders.channel.links
    (other,) = [node for node in links.balancer.nodes if node.endpoint.port != answered]
    for channel in links.take_all():
        channel.close()
    with pytest.raises(ValueError, match="closed"):
        links[other]


async def test_so_it_does_in_an_event_loop(aconnect, discovery, pb, pair):
    discovery.set("orders", [pair[0].address])
    orders = aconnect()
    await orders.Get(pb.Request())
    links = orders.channel.links()
    (node,) = links.balancer.nodes
    channels = links.take_all()
    with pytest.raises(grpc.aio.UsageError, match="closed"):
        links[node]
    for channel in channels:
        await channel.close()


def test_a_new_endpoint_gets_calls_at_once(connect, discovery, pb, pair):
    discovery.set("orders", [pair[0].address])
    orders = connect()
    orders.Get(pb.Request())
    discovery.set("orders", [server.address for server in pair])
    answered_by_all(lambda: orders.Get(pb.Request()).port, {server.port for server in pair})


def test_stubs_made_for_every_call_leave_nothing_behind(connect, stub_class, discovery, pb, pair):
    discovery.set("orders", [pair[0].address])
    channel = connect().channel
    for _ in range(3):
        stub = stub_class(channel)
        stub.Get(pb.Request())
    (link,) = channel.links.values()
    assert len(link.methods) == 1
    left = weakref.ref(channel.links.channels[0])
    discovery.set("orders", [pair[1].address])
    stub.Get(pb.Request())
    del link
    gc.collect()
    wait_until(lambda: left() is None)


def test_connectivity_is_that_of_the_best_endpoint(connect, discovery, pb, pair, nobody):
    discovery.set("orders", [nobody, pair[0].address])
    channel = connect().channel
    states: list[grpc.ChannelConnectivity] = []
    channel.subscribe(states.append)
    assert states == [grpc.ChannelConnectivity.IDLE]
    grpc.channel_ready_future(channel).result(timeout=10)
    wait_until(lambda: states[-1] is grpc.ChannelConnectivity.READY)
    discovery.set("orders", [])
    wait_until(lambda: states[-1] is grpc.ChannelConnectivity.IDLE)
    channel.unsubscribe(states.append)
    channel.close()


def test_a_subscriber_hears_of_the_end(connect, discovery, pair):
    discovery.set("orders", [pair[0].address])
    channel = connect().channel
    states: list[grpc.ChannelConnectivity] = []
    channel.subscribe(states.append, try_to_connect=True)
    wait_until(lambda: states[-1] is grpc.ChannelConnectivity.READY)
    channel.close()
    assert states[-1] is grpc.ChannelConnectivity.SHUTDOWN


def test_subscribers_cost_one_thread(connect, discovery, pair, nobody):
    # gRPC's own way costs one per endpoint, which dies with a traceback when that endpoint's channel closes too soon
    discovery.set("orders", [nobody, *(server.address for server in pair)])
    channel = connect().channel
    before = set(threading.enumerate())
    states: list[grpc.ChannelConnectivity] = []
    channel.subscribe(states.append, try_to_connect=True)
    wait_until(lambda: states[-1] is grpc.ChannelConnectivity.READY)
    assert len(set(threading.enumerate()) - before) <= 1
    channel.unsubscribe(states.append)
    wait_until(lambda: not set(threading.enumerate()) - before, what="its thread has ended")


def test_a_subscriber_that_fails_keeps_nobody_from_hearing(connect, discovery, pair, caplog):
    def fails(state: grpc.ChannelConnectivity) -> None:
        raise ValueError(state)

    discovery.set("orders", [pair[0].address])
    channel = connect().channel
    states: list[grpc.ChannelConnectivity] = []
    channel.subscribe(fails)
    channel.subscribe(states.append, try_to_connect=True)
    wait_until(lambda: states[-1] is grpc.ChannelConnectivity.READY)
    assert "a subscriber to the connectivity of a gRPC channel failed" in caplog.text


def test_subscribers_do_not_keep_a_channel(services, discovery, pair):
    discovery.set("orders", [pair[0].address])
    before = set(threading.enumerate())
    channel = clientlb.grpc.channel("orders", services)
    channel.subscribe(lambda state: None)
    assert set(threading.enumerate()) - before
    del channel
    gc.collect()
    wait_until(lambda: not set(threading.enumerate()) - before, what="nobody looks any more")


async def test_aio_connectivity_is_that_of_the_best_endpoint(aconnect, discovery, pb, pair, nobody):
    discovery.set("orders", [])
    channel = aconnect().channel
    assert channel.get_state() is grpc.ChannelConnectivity.IDLE
    waiting = asyncio.ensure_future(channel.channel_ready())
    await asyncio.sleep(0.01)
    discovery.set("orders", [nobody, pair[0].address])
    await asyncio.wait_for(waiting, 10)
    assert channel.get_state() is grpc.ChannelConnectivity.READY
    change = asyncio.ensure_future(channel.wait_for_state_change(grpc.ChannelConnectivity.READY))
    await asyncio.sleep(0.01)
    await channel.close()
    await asyncio.wait_for(change, 10)
    assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
    with pytest.raises(clientlb.ClosedError):
        await channel.channel_ready()


def test_a_channel_that_nobody_holds_hears_nothing_more(services, discovery, pair):
    discovery.set("orders", [pair[0].address])
    hooks = len(services._hooks)
    clientlb.grpc.channel("orders", services)
    gc.collect()
    discovery.set("orders", [pair[1].address])
    assert len(services._hooks) == hooks


def test_nothing_runs_after_close(services, discovery, stub_class, pb, pair, nobody):
    discovery.set("orders", [nobody, pair[0].address])
    before = set(threading.enumerate())
    for _ in range(20):
        with clientlb.grpc.channel("orders", services) as channel:
            for _ in range(2):
                stub_class(channel).Get.future(pb.Request()).result(10)
        left = set(threading.enumerate()) - before
        assert not [thread for thread in left if thread.name.startswith("clientlb-grpc")]


def test_a_forked_child_has_channels_of_its_own(stubs, pair):
    script = f"""
        import os, sys
        sys.path.insert(0, {str(stubs)!r})
        import orders_pb2 as pb, orders_pb2_grpc
        import clientlb, clientlb.grpc

        services = clientlb.Services("static://{pair[0].address},{pair[1].address}")
        channel = clientlb.grpc.channel("orders", services, idempotent=True)
        orders = orders_pb2_grpc.OrdersStub(channel)
        before = channel.links
        assert orders.Get(pb.Request(id="parent"), timeout=10).id == "parent"
        pid = os.fork()
        if pid == 0:
            good = orders.Get(pb.Request(id="child"), timeout=10).id == "child" and channel.links is not before
            os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert orders.Get(pb.Request(id="again"), timeout=10).id == "again"
        assert channel.links is before
        print("both called")
        channel.close()
        services.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert "both called" in done.stdout, done.stderr


def test_a_forked_child_does_not_free_channels_that_its_parent_has_left_to_the_garbage_collector():
    script = """
        import asyncio, contextlib, gc, os, signal
        import grpc.aio
        import clientlb
        from clientlb.testing import ManualDiscovery

        class Cycle:
            pass

        async def call_nobody():
            cycle = Cycle()
            cycle.itself, cycle.channel = cycle, grpc.aio.insecure_channel("127.0.0.1:1")
            with contextlib.suppress(grpc.RpcError):
                await cycle.channel.unary_unary("/a/b")(b"", timeout=0.2)

        gc.disable()
        asyncio.run(call_nobody())
        services = clientlb.Services(ManualDiscovery({"orders": ["127.0.0.1:1"]}))
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)  # without care it waits for ever
            gc.collect()
            os._exit(0)
        print("ended with", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        os._exit(0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert "ended with 0" in done.stdout, done.stderr


def test_channels_of_an_endpoint_that_came_back_are_new(connect, discovery, pb, pair):
    discovery.set("orders", [pair[0].address])
    orders = connect()
    orders.Get(pb.Request())
    (before,) = orders.channel.links.channels
    discovery.set("orders", [pair[1].address])
    discovery.set("orders", [pair[0].address])
    assert orders.Get(pb.Request()).port == pair[0].port
    (after,) = orders.channel.links.channels
    assert after is not before


def test_imports_nothing_at_import_of_clientlb():
    code = "import sys, clientlb; assert 'grpc' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_manual_discovery_is_left_open(discovery: ManualDiscovery, services, pair):
    discovery.set("orders", [pair[0].address])
    clientlb.grpc.channel("orders", services).close()
    assert discovery.watched("orders") == 1
