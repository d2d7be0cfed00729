"""Corners that programs rely on: rich status, interceptors of every kind, old connections, waiting."""

from __future__ import annotations

import asyncio
import collections
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio
import pytest
from grpc_status import rpc_status
from tenacity.stop import stop_after_attempt
from tenacity.wait import wait_none

import clientlb
import clientlb.grpc
import clientlb.grpc.aio
from clientlb.grpc._connectivity import await_connection
from clientlb.grpc._links import Link
from clientlb.testing import ManualDiscovery
from tests.grpc.caller import until
from tests.grpc.conftest import OrdersServer
from tests.servers.process import wait_until


@pytest.fixture
def known(discovery, pair) -> None:
    discovery.set("orders", [server.address for server in pair])


@pytest.fixture
def ageing(stubs, discovery):
    """Two servers that close every connection after 0.3 s, with GOAWAY."""
    servers = [OrdersServer(stubs, "ageing"), OrdersServer(stubs, "ageing")]
    try:
        for server in servers:
            server.start()
        discovery.set("orders", [server.address for server in servers])
        yield servers
    finally:
        for server in servers:
            server.stop()


def _told(status, pb) -> str:
    detail = pb.Request()
    assert status.message == "asked to be rich"
    assert status.details[0].Unpack(detail)
    return detail.id


HOWS = {
    "call": lambda orders, request: orders.Get(request, timeout=20),
    "future": lambda orders, request: orders.Get.future(request, timeout=20).result(),
    "unary_stream": lambda orders, request: list(orders.List(request, timeout=20)),
    "stream_unary": lambda orders, request: orders.Add(iter([request]), timeout=20),
    "stream_stream": lambda orders, request: list(orders.Chat(iter([request]), timeout=20)),
}


@pytest.mark.parametrize("how", HOWS)
def test_rich_status(known, connect, pb, how):
    with pytest.raises(grpc.RpcError) as caught:
        HOWS[how](connect(idempotent=True), pb.Request(act="rich", count=1))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert _told(rpc_status.from_call(caught.value), pb) == "in the details"


async def test_rich_status_for_coroutines(known, aconnect, pb):
    orders = aconnect(idempotent=True)
    for call in (orders.Get(pb.Request(act="rich")), orders.Add(iter([pb.Request(act="rich")]))):
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        assert _told(await rpc_status.aio.from_call(call), pb) == "in the details"
    stream = orders.Chat(iter([pb.Request(act="rich")]))
    with pytest.raises(grpc.aio.AioRpcError):
        await stream.read()
    assert _told(await rpc_status.aio.from_call(stream), pb) == "in the details"


class _Named(collections.namedtuple("_Named", "method timeout metadata credentials wait_for_ready compression")):
    """Details of a call with metadata of an interceptor's own."""


def _named(details):
    return _Named(details.method, details.timeout, (("by", "interceptor"),), None, details.wait_for_ready, None)


def test_intercept_channel_on_top_of_every_arity(known, connect, stub_class, pb, in_flight):
    class Every(
        grpc.UnaryUnaryClientInterceptor,
        grpc.UnaryStreamClientInterceptor,
        grpc.StreamUnaryClientInterceptor,
        grpc.StreamStreamClientInterceptor,
    ):
        def intercept_unary_unary(self, continuation, details, request):
            return continuation(_named(details), request)

        intercept_unary_stream = intercept_stream_unary = intercept_stream_stream = intercept_unary_unary

    orders = stub_class(grpc.intercept_channel(connect().channel, Every(), Every()))
    one = [pb.Request(count=1)]
    replies = [
        orders.Get(one[0], timeout=20),
        orders.Get.with_call(one[0], timeout=20)[0],
        orders.Get.future(one[0], timeout=20).result(),
        *orders.List(one[0], timeout=20),
        orders.Add(iter(one), timeout=20),
        orders.Add.with_call(iter(one), timeout=20)[0],
        orders.Add.future(iter(one), timeout=20).result(),
        *orders.Chat(iter(one), timeout=20),
    ]
    assert [reply.metadata["by"] for reply in replies] == ["interceptor"] * 8
    wait_until(lambda: in_flight() == 0)


async def test_aio_interceptors_of_every_arity(known, aconnect, pb, in_flight):
    def named(details):
        return grpc.aio.ClientCallDetails(
            details.method, details.timeout, grpc.aio.Metadata(("by", "interceptor")), None, details.wait_for_ready
        )

    class Unary(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, details, request):
            return await continuation(named(details), request)

    class UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
        async def intercept_unary_stream(self, continuation, details, request):
            return await continuation(named(details), request)

    class StreamUnary(grpc.aio.StreamUnaryClientInterceptor):
        async def intercept_stream_unary(self, continuation, details, requests):
            return await continuation(named(details), requests)

    class StreamStream(grpc.aio.StreamStreamClientInterceptor):
        async def intercept_stream_stream(self, continuation, details, requests):
            return await continuation(named(details), requests)

    orders = aconnect(interceptors=[Unary(), UnaryStream(), StreamUnary(), StreamStream()])
    one = [pb.Request(count=1)]
    replies = [
        await orders.Get(one[0], timeout=20),
        *[reply async for reply in orders.List(one[0], timeout=20)],
        await orders.Add(iter(one), timeout=20),
        *[reply async for reply in orders.Chat(iter(one), timeout=20)],
    ]
    assert [reply.metadata["by"] for reply in replies] == ["interceptor"] * 4
    await until(lambda: in_flight() == 0)


# ---------------------------------------------------------------------- streams that end early, endpoints that leave


class Talk:
    """Requests that are said one by one."""

    def __init__(self, pb) -> None:
        self._pb = pb
        self._said = collections.deque()
        self._changed = threading.Condition()

    def say(self, id: str | None) -> None:
        with self._changed:
            self._said.append(id)
            self._changed.notify()

    def __iter__(self):
        return self

    def __next__(self):
        with self._changed:
            self._changed.wait_for(lambda: self._said)
            id = self._said.popleft()
        if id is None:
            raise StopIteration
        return self._pb.Request(id=id)


def test_a_chat_cancelled_half_way_gives_back_its_place(known, connect, pb, in_flight, failures):
    talk = Talk(pb)
    chat = connect().Chat(talk)
    talk.say("first")
    assert next(chat).id == "first"
    assert in_flight() == 1
    assert chat.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        next(chat)
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    talk.say(None)
    wait_until(lambda: in_flight() == 0)
    assert failures() == 0


def test_draining_never_cancels_a_chat(connect, discovery, pb, pair):
    discovery.set("orders", [pair[0].address])
    orders = connect()
    talk = Talk(pb)
    chat = orders.Chat(talk)
    talk.say("before")
    assert next(chat).port == pair[0].port
    (channel,) = orders.channel.links.channels
    discovery.set("orders", [pair[1].address])
    for number in range(50):
        assert orders.Get(pb.Request()).port == pair[1].port
        talk.say(str(number))
        reply = next(chat)
        assert (reply.id, reply.port) == (str(number), pair[0].port)
    assert channel in orders.channel.links.channels
    talk.say(None)
    assert list(chat) == []
    assert chat.code() is grpc.StatusCode.OK
    wait_until(lambda: channel not in orders.channel.links.channels)


async def test_draining_never_cancels_an_aio_chat(aconnect, discovery, pb, pair, in_flight):
    discovery.set("orders", [pair[0].address])
    orders = aconnect()
    chat, cancelled = orders.Chat(), orders.Chat()
    for call in (chat, cancelled):
        await call.write(pb.Request(id="before"))
        assert (await call.read()).port == pair[0].port
    discovery.set("orders", [pair[1].address])
    for number in range(50):
        assert (await orders.Get(pb.Request())).port == pair[1].port
        await chat.write(pb.Request(id=str(number)))
        reply = await chat.read()
        assert (reply.id, reply.port) == (str(number), pair[0].port)
    assert cancelled.cancel()
    assert await cancelled.code() is grpc.StatusCode.CANCELLED
    await chat.done_writing()
    assert await chat.read() is grpc.aio.EOF
    assert await chat.code() is grpc.StatusCode.OK
    links = orders.channel.links()
    await until(lambda: len(links.channels) == 1)
    assert in_flight() == 0


def test_connections_that_grow_old_cost_no_call(ageing, connect, pb, services):
    orders = connect()  # nothing is idempotent

    def call(number: int) -> str:
        return str(orders.Get(pb.Request(act="sleep", argument="0.005"), timeout=30).metadata["the peer"])

    with ThreadPoolExecutor(4) as pool:
        peers = list(pool.map(call, range(600)))
    assert len(set(peers)) > 2  # or the servers closed nothing
    assert services["orders"].stats().retries == 0


async def test_connections_that_grow_old_cost_no_aio_call(ageing, aconnect, pb, services):
    orders = aconnect()
    peers = set()

    async def call() -> None:
        for _ in range(100):
            reply = await orders.Get(pb.Request(act="sleep", argument="0.005"), timeout=30)
            peers.add(reply.metadata["the peer"])

    await asyncio.gather(*(call() for _ in range(6)))
    assert len(peers) > 2
    assert services["orders"].stats().retries == 0


# ---------------------------------------------------------------------- retries of the core


def test_the_cores_own_retries_are_off_unless_asked_for(connect, discovery, pb, pair, seen):
    discovery.set("orders", [pair[0].address])
    policy = {
        "maxAttempts": 3,
        "initialBackoff": "0.01s",
        "maxBackoff": "0.01s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    config = json.dumps({"methodConfig": [{"name": [{"service": "shop.Orders"}], "retryPolicy": policy}]})
    request = pb.Request(id="retried by the core", act="fail once", argument="UNAVAILABLE")
    with pytest.raises(grpc.RpcError):
        connect().Get(pb.Request(id="not retried", act="fail once", argument="UNAVAILABLE"), timeout=20)
    assert connect(options=[("grpc.service_config", config)]).Get(request, timeout=20).id == "retried by the core"
    assert (seen(pair[0], "not retried"), seen(pair[0], "retried by the core")) == (1, 2)
    off = [("grpc.service_config", config), ("grpc.enable_retries", 0)]
    with pytest.raises(grpc.RpcError):
        connect(options=off).Get(pb.Request(id="off", act="fail once", argument="UNAVAILABLE"), timeout=20)


# ---------------------------------------------------------------------- waiting


@pytest.fixture
def impatient():
    """Services that wait for endpoints for a moment only."""
    discovery = ManualDiscovery()
    with clientlb.Services(discovery, options=clientlb.Options(wait_for_endpoints=0.01)) as services:
        yield discovery, services


def test_wait_for_ready_waits_for_endpoints_too(impatient, stub_class, pb, pair):
    discovery, services = impatient
    with clientlb.grpc.channel("orders", services) as channel:
        orders = stub_class(channel)
        with pytest.raises(clientlb.NoEndpointsError) as caught:
            orders.Get(pb.Request(), timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        for call in (orders.Get, lambda it, **how: orders.Get.future(it, **how).result()):
            with pytest.raises(clientlb.NoEndpointsError) as caught:
                call(pb.Request(), timeout=0.1, wait_for_ready=True)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        dropped = orders.Get.future(pb.Request(), wait_for_ready=True)
        assert dropped.cancel()
        future = orders.Get.future(pb.Request(id="future"), wait_for_ready=True)
        stream = orders.List(pb.Request(count=2), timeout=30, wait_for_ready=True)
        timer = threading.Timer(0.3, discovery.set, ("orders", [pair[0].address]))
        timer.start()
        assert orders.Get(pb.Request(id="call"), wait_for_ready=True).id == "call"
        assert future.result(20).id == "future"
        assert len(list(stream)) == 2
        timer.join()


async def test_so_it_does_for_coroutines(impatient, stub_class, pb, pair):
    discovery, services = impatient
    async with clientlb.grpc.aio.channel("orders", services) as channel:
        orders = stub_class(channel)
        with pytest.raises(clientlb.NoEndpointsError) as caught:
            await orders.Get(pb.Request(), timeout=0.1, wait_for_ready=True)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        call = orders.Get(pb.Request(id="call"), wait_for_ready=True)
        stream = orders.List(pb.Request(count=2), timeout=30, wait_for_ready=True)
        asyncio.get_running_loop().call_later(0.3, discovery.set, "orders", [pair[0].address])
        assert (await call).id == "call"
        assert len([reply async for reply in stream]) == 2


# ---------------------------------------------------------------------- connections and health


@pytest.fixture
def strict(own_pair):
    """Services that eject for an hour, so that nothing but a connection brings an endpoint back."""
    health = clientlb.HealthOptions(consecutive_failures=2, open_for=3600, open_for_max=3600)
    retry = clientlb.RetryOptions(
        stop=stop_after_attempt(3), wait=wait_none(), budget=clientlb.BudgetOptions(reserve=1000)
    )
    options = clientlb.Options(policy="round_robin", health=health, retry=retry)
    discovery = ManualDiscovery({"orders": [server.address for server in own_pair]})
    with clientlb.Services(discovery, options=options) as services:
        yield services


def test_an_endpoint_is_used_again_when_it_is_connected(strict, own_pair, stub_class, pb):
    ports = {server.port for server in own_pair}
    with clientlb.grpc.channel("orders", strict, idempotent={"shop.Orders/Get"}) as channel:
        orders = stub_class(channel)

        def ask(count: int) -> set[int]:
            return {orders.Get(pb.Request(), timeout=20).port for _ in range(count)}

        assert ask(4) == ports
        own_pair[0].kill()
        wait_until(lambda: ask(1) and _ejected(strict["orders"].stats()) == 1)
        before = strict["orders"].stats().retries
        assert ask(20) == {own_pair[1].port}
        assert strict["orders"].stats().retries == before  # nobody so much as asks
        own_pair[0].start()
        # also for calls that may not be repeated: a connection is more than a guess
        wait_until(lambda: {next(orders.List(pb.Request(count=1))).port for _ in range(4)} == ports, timeout=20.0)
        assert _ejected(strict["orders"].stats()) == 0
        wait_until(lambda: not any(link.awaited for link in channel.links.values()))


async def test_so_it_is_for_coroutines(strict, own_pair, stub_class, pb):
    ports = {server.port for server in own_pair}
    async with clientlb.grpc.aio.channel("orders", strict, idempotent={"shop.Orders/Get"}) as channel:
        orders = stub_class(channel)

        async def ask(count: int) -> set[int]:
            return {(await orders.Get(pb.Request(), timeout=20)).port for _ in range(count)}

        async def ejection() -> None:
            while _ejected(strict["orders"].stats()) == 0:
                await ask(1)

        assert await ask(4) == ports
        own_pair[0].kill()
        await asyncio.wait_for(ejection(), 20)
        assert await ask(10) == {own_pair[1].port}
        own_pair[0].start()

        async def comeback() -> None:
            while {(await orders.List(pb.Request(count=1)).read()).port for _ in range(4)} != ports:
                await ask(1)

        await asyncio.wait_for(comeback(), 20)
        own_pair[0].kill()
        await asyncio.wait_for(ejection(), 20)
        links = channel.links()
        await until(lambda: any(link.awaited for link in links.values()))
        await asyncio.wait_for(channel.close(), 20)  # which ends the wait for a connection


def _ejected(stats) -> int:
    return sum(endpoint.state != "closed" for endpoint in stats.endpoints)


class Scripted:
    """A channel whose states the test tells, and the thread that looks at them."""

    def __init__(self, *states: grpc.ChannelConnectivity) -> None:
        self._channel = self
        self._states = list(states)
        self.planned: list = []

    def check_connectivity_state(self, try_to_connect: bool) -> int:
        assert try_to_connect
        if not self._states:
            raise ValueError("closed")
        return self._states.pop(0).value[0]

    def run(self, seconds, function) -> None:
        self.planned.append(function)

    def play(self) -> None:
        while self.planned:
            self.planned.pop(0)()


def test_only_a_connection_that_was_missing_is_news():
    State = grpc.ChannelConnectivity
    failing = (State.IDLE, State.CONNECTING, State.TRANSIENT_FAILURE, State.CONNECTING)
    news: list[bool] = []
    for states in ((State.READY,), failing, (*failing, State.SHUTDOWN), (*failing, State.READY)):
        scripted = Scripted(*states)
        link = Link(scripted)
        await_connection(link, scripted, lambda: news.append(True))
        await_connection(link, scripted, lambda: news.append(True))
        assert len(scripted.planned) <= 1
        assert news == []
        scripted.play()
        assert not link.awaited
    assert news == [True]
    scripted = Scripted(*failing, State.READY)
    await_connection(Link(scripted), scripted, lambda: news.append(True))
    scripted.play()
    assert news == [True]  # a channel that nobody holds is not looked at
