"""The aio channel through generated stubs: what a caller sees when nothing is wrong, and how calls end."""

from __future__ import annotations

import asyncio
import gc
import threading

import grpc
import grpc.aio
import pytest

import clientlb
import clientlb.grpc.aio
from clientlb.testing import ManualDiscovery
from tests.grpc.caller import answered_by_all_async, until


@pytest.fixture(autouse=True)
def _known(discovery: ManualDiscovery, pair) -> None:
    discovery.set("orders", [server.address for server in pair])


async def test_all_four_arities_are_balanced(aconnect, pb, pair, in_flight):
    orders = aconnect()
    ports = {server.port for server in pair}

    async def port() -> int:
        return (await orders.Get(pb.Request(id="a"), timeout=10)).port

    await answered_by_all_async(port, ports)
    assert [[reply.number async for reply in orders.List(pb.Request(count=3))] for _ in range(2)] == [[0, 1, 2]] * 2
    many = [pb.Request(id=str(number)) for number in range(20)]
    assert (await orders.Add(iter(many))).number == 20
    assert [reply.id async for reply in orders.Chat(iter(many))] == [request.id for request in many]

    async def asynchronous():
        for request in many:
            yield request

    assert (await orders.Add(asynchronous())).number == 20
    assert [reply.id async for reply in orders.Chat(asynchronous())] == [request.id for request in many]
    await until(lambda: in_flight() == 0)


async def test_reading_and_writing_by_hand(aconnect, pb, in_flight):
    orders = aconnect()
    chat = orders.Chat()
    await chat.wait_for_connection()
    for number in range(3):
        await chat.write(pb.Request(id=str(number)))
        assert (await chat.read()).id == str(number)
    assert in_flight() == 1
    await chat.done_writing()
    assert await chat.read() is grpc.aio.EOF
    assert await chat.code() is grpc.StatusCode.OK
    assert in_flight() == 0
    add = orders.Add()
    await add.write(pb.Request())
    await add.write(pb.Request())
    await add.done_writing()
    assert (await add).number == 2
    listing = orders.List(pb.Request(count=1))
    assert (await listing.read()).number == 0
    assert await listing.read() is grpc.aio.EOF


async def test_calls_are_the_abstract_calls_of_grpc(aconnect, pb):
    orders = aconnect()
    calls = [orders.Get(pb.Request()), orders.List(pb.Request()), orders.Add(iter([])), orders.Chat(iter([]))]
    kinds = [grpc.aio.UnaryUnaryCall, grpc.aio.UnaryStreamCall, grpc.aio.StreamUnaryCall, grpc.aio.StreamStreamCall]
    for call, kind in zip(calls, kinds, strict=True):
        assert isinstance(call, kind)
        assert await call.code() is grpc.StatusCode.OK
        assert call.done()


async def test_metadata_goes_both_ways_unchanged(aconnect, pb):
    orders = aconnect()
    call = orders.Get(pb.Request(act="greet"), metadata=(("who", "me"), ("raw-bin", b"\x00\xff")), timeout=10)
    reply = await call
    assert reply.metadata["who"] == "me"
    assert reply.metadata["raw-bin"] == str(b"\x00\xff")
    assert (await call.initial_metadata())["greeting"] == "hello"
    assert (await call.trailing_metadata())["farewell"] == "goodbye"
    with_object = await orders.Get(pb.Request(), metadata=grpc.aio.Metadata(("who", "me")))
    assert with_object.metadata["who"] == "me"
    stream = orders.List(pb.Request(act="greet", count=1))
    assert (await stream.initial_metadata())["greeting"] == "hello"
    assert len([reply async for reply in stream]) == 1
    assert (await stream.trailing_metadata())["farewell"] == "goodbye"


async def test_compression_reaches_the_server(aconnect, pb):
    orders = aconnect(compression=grpc.Compression.Gzip)
    assert (await orders.Get(pb.Request(id="x" * 10000), compression=grpc.Compression.Deflate)).id == "x" * 10000


@pytest.mark.parametrize("how", ["await", "iterate", "read"])
async def test_an_error_is_the_servers_own(aconnect, pb, how, in_flight):
    orders = aconnect()
    request = pb.Request(act="fail", argument="FAILED_PRECONDITION", count=1)
    call = orders.Get(request) if how == "await" else orders.List(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call if how == "await" else anext(aiter(call)) if how == "iterate" else call.read())
    error = caught.value
    assert error.code() is await call.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == await call.details() == "asked to fail"
    assert error.trailing_metadata()["why"] == "asked to"
    assert error.trailing_metadata()["grpc-status-details-bin"] == b"\x08\x05\xff"
    assert (await call.trailing_metadata())["why"] == "asked to"
    assert "asked to fail" in await call.debug_error_string()
    assert in_flight() == 0


async def test_a_deadline_ends_a_call_and_is_evidence(aconnect, pb, in_flight, failures):
    orders = aconnect(idempotent=True)
    for call in (
        orders.Get(pb.Request(act="sleep", argument="3"), timeout=0.2),
        anext(aiter(orders.List(pb.Request(act="sleep", argument="3", count=1), timeout=0.2))),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert in_flight() == 0
    assert failures() == 2


async def test_a_call_tells_about_itself(aconnect, pb, in_flight):
    call = aconnect().Get(pb.Request(id="a", act="sleep", argument="0.1"), timeout=30)
    done = []
    call.add_done_callback(done.append)
    assert (call.done(), call.cancelled()) == (False, False)
    assert 0 < call.time_remaining() <= 30
    first, second = await asyncio.gather(_result(call), _result(call))
    assert first.id == second.id == "a"
    assert done == [call]
    call.add_done_callback(done.append)
    assert done == [call, call]
    assert call.done()
    assert not call.cancel()
    assert in_flight() == 0


async def _result(call):
    return await call


async def test_cancelling_a_call_gives_back_its_place(aconnect, pb, in_flight, failures):
    call = aconnect(idempotent=True).Get(pb.Request(act="sleep", argument="3"))
    await asyncio.sleep(0)
    assert in_flight() == 1
    assert call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert call.cancelled()
    assert await call.code() is grpc.StatusCode.CANCELLED
    assert in_flight() == 0
    assert failures() == 0


async def test_cancelling_the_task_cancels_the_call(aconnect, pb, in_flight, failures):
    orders = aconnect(idempotent=True)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(orders.Get(pb.Request(act="sleep", argument="3")), 0.1)
    assert in_flight() == 0
    stream = orders.List(pb.Request(act="sleep", argument="3", count=1))
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(anext(aiter(stream)), 0.1)
    assert in_flight() == 0
    assert stream.cancelled()
    assert failures() == 0


async def test_a_stream_is_in_flight_until_it_ends(aconnect, pb, in_flight, failures):
    orders = aconnect()
    stream = orders.List(pb.Request(count=3))
    assert (await anext(aiter(stream))).number == 0
    assert in_flight() == 1
    assert [reply.number async for reply in stream] == [1, 2]
    assert in_flight() == 0
    cancelled = orders.List(pb.Request(count=100000))
    await anext(aiter(cancelled))
    cancelled.cancel()
    assert in_flight() == 0
    assert failures() == 0


async def test_a_dropped_stream_gives_back_its_place(aconnect, pb, in_flight, failures):
    stream = aconnect().List(pb.Request(count=100000))
    await anext(aiter(stream))
    assert in_flight() == 1
    del stream
    gc.collect()
    await until(lambda: in_flight() == 0)
    assert failures() == 0


async def test_a_dropped_call_runs_to_its_end(aconnect, pb, pair, in_flight, seen):
    orders = aconnect()
    done = []
    orders.Get(pb.Request(id="fire and forget", act="sleep", argument="0.1"))
    orders.List(pb.Request(count=0)).add_done_callback(done.append)
    gc.collect()
    await until(lambda: in_flight() == 0)
    assert sum(seen(server, "fire and forget") for server in pair) == 1
    assert [await call.code() for call in done] == [grpc.StatusCode.OK]


def _at_once(loop, coroutine, **options):
    """A task factory as eager as the one of Python 3.12: the first step runs before the task is returned."""
    if getattr(coroutine, "__qualname__", "") != "UnaryUnaryCall._invoke":
        return asyncio.Task(coroutine, loop=loop, **options)
    waits_for = coroutine.send(None)
    waits_for._asyncio_future_blocking = False

    async def go_on():
        try:
            await waits_for
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value

    return asyncio.Task(go_on(), loop=loop, **options)


@pytest.mark.parametrize("how", ["plain", "cancelled", "intercepted", "answered", "eager"])
async def test_the_end_of_a_call_that_is_kept_and_not_awaited_is_heard_of(how, aconnect, pb, in_flight, services):
    class Interceptor(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, details, request):
            return pb.Reply() if how == "answered" else await continuation(details, request)

    orders = aconnect(interceptors=[Interceptor()] if how in ("intercepted", "answered") else ())
    await orders.Get(pb.Request())
    if how == "eager":
        asyncio.get_running_loop().set_task_factory(_at_once)
    calls = [orders.Get(pb.Request(id=str(number))) for number in range(4)]
    assert in_flight() == 4
    if how == "cancelled":
        assert all(call.cancel() for call in calls)
    await until(lambda: in_flight() == 0)
    asyncio.get_running_loop().set_task_factory(None)
    assert all(call.done() for call in calls)
    assert services["orders"].stats().calls == (1 if how == "cancelled" else 5)


def test_a_closed_event_loop_leaves_no_call_in_flight(services, stub_class, pb, in_flight):
    channel = clientlb.grpc.aio.channel("orders", services)
    orders = stub_class(channel)
    kept = []

    async def begin() -> None:
        kept.append(orders.Get(pb.Request(act="sleep", argument="1")))
        await until(lambda: in_flight() == 1)
        kept.append(orders.Get(pb.Request(act="sleep", argument="1")))

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()
    assert in_flight() == 2

    async def call_and_close() -> str:
        reply = await orders.Get(pb.Request(id="another loop"), timeout=20)
        await channel.close()
        return reply.id

    assert asyncio.run(call_and_close()) == "another loop"
    assert in_flight() == 0


async def test_interceptors_see_every_attempt(aconnect, pb, in_flight):
    seen = []

    class Unary(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, details, request):
            seen.append(details.method)
            return await continuation(details, request)

    class Stream(grpc.aio.UnaryStreamClientInterceptor):
        async def intercept_unary_stream(self, continuation, details, request):
            return await continuation(details, request)

    orders = aconnect(interceptors=[Unary(), Stream()], idempotent=True)
    assert (await orders.Get(pb.Request(id="aio", act="fail once", argument="UNAVAILABLE"))).id == "aio"
    assert len(seen) in (2, 3)  # each server fails once, and the first to be asked has answered by the third
    assert len([reply async for reply in orders.List(pb.Request(count=2))]) == 2
    with pytest.raises(grpc.aio.AioRpcError, match="asked to fail"):
        await orders.Get(pb.Request(act="fail", argument="NOT_FOUND"))
    await until(lambda: in_flight() == 0)


async def test_an_interceptor_that_raises_or_answers_itself(aconnect, pb, in_flight, failures):
    class Moody(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, details, request):
            if request.id == "bad":
                raise KeyError("moody")
            return pb.Reply(id="from the interceptor")

    orders = aconnect(interceptors=[Moody()], idempotent=True)
    with pytest.raises(KeyError, match="moody"):
        await orders.Get(pb.Request(id="bad"))
    assert (await orders.Get(pb.Request())).id == "from the interceptor"
    await until(lambda: in_flight() == 0)
    assert failures() == 0


async def test_many_tasks_share_a_channel(aconnect, pb, in_flight):
    orders = aconnect()
    replies = await asyncio.gather(*(_result(orders.Get(pb.Request(id=str(n)), timeout=30)) for n in range(200)))
    assert [reply.id for reply in replies] == [str(n) for n in range(200)]
    assert in_flight() == 0


def test_every_event_loop_has_its_own_connections(services, stub_class, pb):
    channel = clientlb.grpc.aio.channel("orders", services)
    orders = stub_class(channel)

    async def call() -> str:
        return (await orders.Get(pb.Request(id="a"), timeout=20)).id

    answers = [asyncio.run(call()), asyncio.run(call())]
    thread = threading.Thread(target=lambda: answers.append(asyncio.run(call())))
    thread.start()
    thread.join()
    asyncio.run(channel.close())
    assert answers == ["a", "a", "a"]


async def test_close_cancels_what_runs_and_refuses_what_comes(services, stub_class, pb, in_flight):
    channel = clientlb.grpc.aio.channel("orders", services)
    orders = stub_class(channel)
    call = orders.Get(pb.Request(act="sleep", argument="3"))
    stream = orders.List(pb.Request(count=100000))
    await anext(aiter(stream))
    await channel.close()
    await channel.close()
    assert await call.code() is grpc.StatusCode.CANCELLED
    assert await stream.code() is grpc.StatusCode.CANCELLED
    assert in_flight() == 0
    with pytest.raises(grpc.aio.UsageError) as caught:
        orders.Get(pb.Request())
    assert isinstance(caught.value, clientlb.ClosedError)
    async with clientlb.grpc.aio.channel("orders", services) as another:
        assert (await stub_class(another).Get(pb.Request(id="still open"))).id == "still open"


async def test_close_with_grace_lets_calls_finish(services, stub_class, pb, pair, seen):
    channel = clientlb.grpc.aio.channel("orders", services)
    call = stub_class(channel).Get(pb.Request(id="finished", act="sleep", argument="0.5"))
    await until(lambda: any(seen(server, "finished") for server in pair))
    await channel.close(grace=20)
    assert (await call).id == "finished"


@pytest.mark.parametrize("hedged", [False, True])
async def test_calls_that_wait_for_endpoints_have_the_grace_as_well(stub_class, pb, pair, hedged):
    retry = clientlb.RetryOptions(hedge=clientlb.HedgeOptions(delay=20) if hedged else None)
    discovery = ManualDiscovery()
    with clientlb.Services(discovery, options=clientlb.Options(retry=retry, wait_for_endpoints=60)) as services:
        channel = clientlb.grpc.aio.channel("orders", services, idempotent=True)
        orders = stub_class(channel)
        call, stream = orders.Get(pb.Request(id="early")), orders.List(pb.Request(count=2))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(channel.close(grace=60))
        await asyncio.sleep(0)
        with pytest.raises(grpc.aio.UsageError):
            orders.Get(pb.Request())
        discovery.set("orders", [pair[0].address])
        assert (await call).id == "early"
        assert len([reply async for reply in stream]) == 2
        await closing


async def test_the_grace_of_calls_that_wait_for_endpoints_ends(services, discovery, stub_class, pb):
    discovery.set("orders", [])
    channel = clientlb.grpc.aio.channel("orders", services)
    call = stub_class(channel).Get(pb.Request(), wait_for_ready=True)
    await channel.close(grace=0.05)
    assert call.cancelled()


async def test_no_endpoints_is_an_rpc_error_that_says_who_and_where(stub_class, pb):
    options = clientlb.Options(wait_for_endpoints=0.1)
    with clientlb.Services(ManualDiscovery(), options=options) as nobody:
        async with clientlb.grpc.aio.channel("orders", nobody) as channel:
            orders = stub_class(channel)
            for call in (orders.Get(pb.Request()), anext(aiter(orders.List(pb.Request())))):
                with pytest.raises(clientlb.NoEndpointsError) as caught:
                    await call
                error = caught.value
                assert isinstance(error, grpc.aio.AioRpcError)
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                assert "'orders'" in error.details()
                assert "manual://" in error.details()
            call = orders.Get(pb.Request())
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            assert "'orders'" in await call.details()
            assert len(await call.initial_metadata()) == 0


async def test_the_deadline_may_come_before_the_endpoints(discovery, aconnect, pb):
    discovery.set("orders", [])
    with pytest.raises(clientlb.NoEndpointsError) as caught:
        await aconnect().Get(pb.Request(), timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_calls_wait_for_the_first_list(discovery, aconnect, pb, pair):
    discovery.set("orders", [])
    orders = aconnect()
    call = orders.Get(pb.Request(id="early"))
    stream = orders.List(pb.Request(count=2))
    chat = orders.Chat()
    impatient = orders.Get(pb.Request(id="impatient"))
    assert impatient.cancel()
    assert await impatient.code() is grpc.StatusCode.CANCELLED
    with pytest.raises(asyncio.CancelledError):
        await impatient
    asyncio.get_running_loop().call_later(0.05, discovery.set, "orders", [pair[0].address])
    await chat.write(pb.Request(id="written early"))
    assert (await chat.read()).id == "written early"
    assert (await call).id == "early"
    assert len([reply async for reply in stream]) == 2


async def test_close_does_not_wait_for_endpoints(discovery, services, stub_class, pb):
    discovery.set("orders", [])
    channel = clientlb.grpc.aio.channel("orders", services)
    call = stub_class(channel).Get(pb.Request())
    await channel.close()
    assert call.cancelled()  # it would have failed when its time was over
