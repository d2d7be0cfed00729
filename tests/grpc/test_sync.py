"""The sync channel through generated stubs: what a caller sees when nothing is wrong, and how calls end."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import grpc
import pytest

import clientlb
import clientlb.grpc
from clientlb.discovery.snapshot import SnapshotFiles
from clientlb.testing import ManualDiscovery
from tests.grpc.caller import answered_by_all
from tests.servers.process import wait_until


@pytest.fixture(autouse=True)
def _known(discovery: ManualDiscovery, pair) -> None:
    discovery.set("orders", [server.address for server in pair])


def test_all_four_arities_are_balanced(connect, pb, pair, in_flight):
    orders = connect()
    ports = {server.port for server in pair}
    answered_by_all(lambda: orders.Get(pb.Request(id="a"), timeout=10).port, ports)
    assert {orders.Get.with_call(pb.Request(id="a"))[0].port for _ in range(4)} == ports
    assert {orders.Get.future(pb.Request(id="a")).result(10).port for _ in range(4)} == ports
    lists = [[reply.number for reply in orders.List(pb.Request(count=3))] for _ in range(2)]
    assert lists == [[0, 1, 2], [0, 1, 2]]
    assert {next(orders.List(pb.Request(count=1))).port for _ in range(4)} == ports
    many = [pb.Request(id=str(number)) for number in range(20)]
    assert orders.Add(iter(many)).number == 20
    assert orders.Add.with_call(iter(many))[0].number == 20
    assert orders.Add.future(iter(many)).result(10).number == 20
    assert [reply.id for reply in orders.Chat(iter(many))] == [request.id for request in many]
    wait_until(lambda: in_flight() == 0, what="nothing in flight")


def test_an_empty_stream_of_responses_just_ends(connect, pb, in_flight):
    stream = connect().List(pb.Request(count=0))
    assert list(stream) == []
    assert stream.code() is grpc.StatusCode.OK
    wait_until(lambda: in_flight() == 0)


def test_metadata_goes_both_ways_unchanged(connect, pb):
    orders = connect()
    reply, call = orders.Get.with_call(
        pb.Request(act="greet"), metadata=(("who", "me"), ("raw-bin", b"\x00\xff")), timeout=10
    )
    assert reply.metadata["who"] == "me"
    assert reply.metadata["raw-bin"] == str(b"\x00\xff")
    assert ("greeting", "hello") in [tuple(pair) for pair in call.initial_metadata()]
    assert ("farewell", "goodbye") in [tuple(pair) for pair in call.trailing_metadata()]
    stream = orders.List(pb.Request(act="greet", count=1))
    assert ("greeting", "hello") in [tuple(pair) for pair in stream.initial_metadata()]
    assert len(list(stream)) == 1
    assert ("farewell", "goodbye") in [tuple(pair) for pair in stream.trailing_metadata()]


def test_the_authority_is_the_name_of_the_service(services):
    from clientlb.grpc._target import options_of

    assert dict(options_of("orders", None, secure=False))["grpc.default_authority"] == "orders"
    assert dict(options_of("orders", [("grpc.default_authority", "mine")], secure=False)) == {
        **dict(options_of("orders", None, secure=False)),
        "grpc.default_authority": "mine",
    }


def test_compression_reaches_the_server(connect, pb):
    orders = connect(compression=grpc.Compression.Gzip)
    assert orders.Get(pb.Request(id="x" * 10000), compression=grpc.Compression.Deflate).id == "x" * 10000


HOWS = {
    "call": lambda orders, request: orders.Get(request),
    "with_call": lambda orders, request: orders.Get.with_call(request),
    "future": lambda orders, request: orders.Get.future(request).result(10),
    "stream": lambda orders, request: next(orders.List(request)),
}


@pytest.mark.parametrize("how", HOWS)
def test_an_error_is_the_servers_own(connect, pb, how, in_flight):
    orders = connect()
    request = pb.Request(act="fail", argument="FAILED_PRECONDITION", count=1)
    with pytest.raises(grpc.RpcError) as caught:
        HOWS[how](orders, request)
    error = caught.value
    assert isinstance(error, grpc.Call)
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == "asked to fail"
    trailing = [tuple(pair) for pair in error.trailing_metadata()]
    assert ("why", "asked to") in trailing
    assert ("grpc-status-details-bin", b"\x08\x05\xff") in trailing
    wait_until(lambda: in_flight() == 0)


def test_a_callers_own_mistakes_do_not_count_against_the_endpoint(connect, pb, failures):
    orders = connect()
    for code in ("NOT_FOUND", "INVALID_ARGUMENT", "UNAUTHENTICATED", "ABORTED", "CANCELLED"):
        with pytest.raises(grpc.RpcError):
            orders.Get(pb.Request(act="fail", argument=code))
    with pytest.raises(grpc.RpcError, match="serializing"):
        orders.Get("no message")
    assert failures() == 0
    for code in ("INTERNAL", "UNKNOWN", "DATA_LOSS", "UNAVAILABLE"):
        with pytest.raises(grpc.RpcError):
            orders.Get(pb.Request(act="fail", argument=code))
    assert failures() == 4


def test_a_deadline_ends_a_call_and_is_evidence(connect, pb, in_flight, failures):
    orders = connect(idempotent=True)
    request = pb.Request(act="sleep", argument="3")
    for ended in (
        lambda: orders.Get(request, timeout=0.2),
        lambda: orders.Get.future(request, timeout=0.2).result(10),
        lambda: next(orders.List(pb.Request(act="sleep", argument="3", count=1), timeout=0.2)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            ended()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: in_flight() == 0)
    assert failures() == 3


def test_a_future_tells_about_itself(connect, pb, in_flight):
    orders = connect()
    future = orders.Get.future(pb.Request(act="sleep", argument="0.2"), timeout=30)
    assert isinstance(future, grpc.Call)
    assert isinstance(future, grpc.Future)
    assert (future.done(), future.running(), future.is_active(), future.cancelled()) == (False, True, True, False)
    assert 0 < future.time_remaining() <= 30
    called = threading.Event()
    plain = threading.Event()
    future.add_done_callback(lambda it: called.set() if it is future else None)
    assert future.add_callback(plain.set)
    with pytest.raises(grpc.FutureTimeoutError):
        future.result(timeout=0.01)
    assert future.exception(timeout=10) is None
    assert future.traceback() is None
    assert called.wait(10)
    assert plain.wait(10)
    assert (future.done(), future.running(), future.is_active()) == (True, False, False)
    assert future.code() is grpc.StatusCode.OK
    assert not future.add_callback(plain.set)
    assert not future.cancel()
    late = []
    future.add_done_callback(late.append)
    assert late == [future]
    assert in_flight() == 0


def test_a_failed_future_has_its_error(connect, pb):
    future = connect().Get.future(pb.Request(act="fail", argument="NOT_FOUND"))
    error = future.exception(timeout=10)
    assert isinstance(error, grpc.RpcError)
    assert error.code() is future.code() is grpc.StatusCode.NOT_FOUND
    assert future.details() == "asked to fail"
    assert future.traceback(timeout=10) is not None
    with pytest.raises(grpc.RpcError) as caught:
        future.result()
    assert caught.value is error


def test_cancelling_a_future_gives_back_its_place(connect, pb, in_flight, failures):
    future = connect(idempotent=True).Get.future(pb.Request(act="sleep", argument="3"))
    assert in_flight() == 1
    assert future.cancel()
    with pytest.raises(grpc.FutureCancelledError):
        future.result(10)
    assert future.cancelled()
    assert future.code() is grpc.StatusCode.CANCELLED
    wait_until(lambda: in_flight() == 0)
    assert failures() == 0


def test_a_stream_is_in_flight_until_it_ends(connect, pb, in_flight):
    stream = connect().List(pb.Request(count=3))
    assert next(stream).number == 0
    assert in_flight() == 1
    assert [reply.number for reply in stream] == [1, 2]
    wait_until(lambda: in_flight() == 0)


def test_cancelling_a_stream_gives_back_its_place(connect, pb, in_flight, failures):
    stream = connect().List(pb.Request(count=100000))
    next(stream)
    assert stream.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        list(stream)
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    assert stream.cancelled()
    wait_until(lambda: in_flight() == 0)
    assert failures() == 0


def test_a_dropped_stream_gives_back_its_place(connect, pb, in_flight, failures):
    stream = connect().List(pb.Request(count=100000))
    next(stream)
    assert in_flight() == 1
    del stream
    gc.collect()
    wait_until(lambda: in_flight() == 0)
    assert failures() == 0


def test_a_dropped_future_still_calls_back(connect, pb):
    done = threading.Event()
    connect().Get.future(pb.Request(act="sleep", argument="0.1")).add_done_callback(lambda _: done.set())
    gc.collect()
    assert done.wait(10)


def test_interceptors_see_a_call_once(connect, pb):
    calls = []

    class Interceptor(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
        def intercept_unary_unary(self, continuation, details, request):
            calls.append(details.method)
            return continuation(details, request)

        def intercept_unary_stream(self, continuation, details, request):
            calls.append(details.method)
            return continuation(details, request)

    orders = connect(interceptors=[Interceptor()], idempotent=True)
    assert orders.Get(pb.Request(id="intercepted", act="fail once", argument="UNAVAILABLE")).id == "intercepted"
    assert orders.Get.future(pb.Request(id="b")).result(10).id == "b"
    assert len(list(orders.List(pb.Request(count=2)))) == 2
    assert calls == ["/shop.Orders/Get", "/shop.Orders/Get", "/shop.Orders/List"]


def test_many_threads_share_a_channel(connect, pb, in_flight):
    orders = connect()
    errors = []

    def work():
        try:
            for _ in range(25):
                orders.Get(pb.Request(id="a"), timeout=30)
        except grpc.RpcError as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert in_flight() == 0


def test_close_cancels_what_runs_and_refuses_what_comes(services, stub_class, pb, in_flight):
    channel = clientlb.grpc.channel("orders", services)
    orders = stub_class(channel)
    future = orders.Get.future(pb.Request(act="sleep", argument="3"))
    stream = orders.List(pb.Request(count=100000))
    next(stream)
    channel.close()
    channel.close()
    assert future.code() is grpc.StatusCode.CANCELLED
    assert stream.code() is grpc.StatusCode.CANCELLED
    wait_until(lambda: in_flight() == 0)
    for call in (orders.Get, orders.Get.future, orders.List):
        with pytest.raises(ValueError, match="closed channel") as caught:
            call(pb.Request())
        assert isinstance(caught.value, clientlb.ClosedError)
    with clientlb.grpc.channel("orders", services) as another:
        assert stub_class(another).Get(pb.Request(id="still open")).id == "still open"


def test_close_cancels_what_waits_for_endpoints(discovery, services, stub_class, pb):
    discovery.set("orders", [])
    channel = clientlb.grpc.channel("orders", services)
    orders = stub_class(channel)
    with ThreadPoolExecutor(2) as threads:
        calls = [
            threads.submit(orders.Get, pb.Request(), timeout=10, wait_for_ready=True),
            threads.submit(orders.Add, iter([pb.Request()]), timeout=10, wait_for_ready=True),
        ]
        assert not wait(calls, timeout=0.2).done
        channel.close()
        for call in calls:
            assert call.exception(5).code() is grpc.StatusCode.CANCELLED


def test_who_does_not_block_gets_the_list_of_an_earlier_time_too(tmp_path, stub_class, pb, pair):
    files = SnapshotFiles(tmp_path, str(ManualDiscovery()))
    files.save("orders", (clientlb.Endpoint("127.0.0.1", pair[0].port),))
    for form in ("future", "stream"):
        with (
            clientlb.Services(ManualDiscovery(), snapshots=tmp_path) as services,  # it says nothing
            clientlb.grpc.channel("orders", services) as channel,
        ):
            orders = stub_class(channel)
            call = orders.Get.future(pb.Request()) if form == "future" else orders.List(pb.Request(count=1))
            assert (call.result(10) if form == "future" else next(call)).port == pair[0].port


def test_closing_the_services_ends_what_waits_for_endpoints(discovery, services, connect, pb):
    discovery.set("orders", [])
    orders = connect()
    future = orders.Get.future(pb.Request(), timeout=10, wait_for_ready=True)
    with pytest.raises(grpc.FutureTimeoutError):
        future.result(0.1)
    services.close()
    assert isinstance(future.exception(5), clientlb.ClosedError)


def test_closed_services_refuse(connect, services, pb):
    orders = connect()
    services.close()
    with pytest.raises(clientlb.ClosedError):
        orders.Get(pb.Request())


@pytest.mark.parametrize("wrong", ["shop.Orders/Get", 7, ["Get"], [b"shop.Orders/Get"]])
def test_idempotent_has_to_be_method_names(services, wrong):
    with pytest.raises(clientlb.ConfigurationError, match="idempotent"):
        clientlb.grpc.channel("orders", services, idempotent=wrong)


def test_no_endpoints_is_an_rpc_error_that_says_who_and_where(discovery, stub_class, pb):
    options = clientlb.Options(wait_for_endpoints=0.1)
    with (
        clientlb.Services(ManualDiscovery(), options=options) as nobody,
        clientlb.grpc.channel("orders", nobody) as channel,
    ):
        orders = stub_class(channel)
        for call in (orders.Get, lambda it: orders.Get.future(it).result(10), lambda it: next(orders.List(it))):
            with pytest.raises(clientlb.NoEndpointsError) as caught:
                call(pb.Request())
            error = caught.value
            assert isinstance(error, grpc.RpcError)
            assert isinstance(error, grpc.Call)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert "'orders'" in error.details()
            assert "manual://" in error.details()
        stream = orders.List(pb.Request())
        assert stream.code() is grpc.StatusCode.UNAVAILABLE
        assert tuple(stream.initial_metadata()) == ()


def test_the_deadline_may_come_before_the_endpoints(discovery, connect, pb):
    discovery.set("orders", [])
    orders = connect()
    for call in (orders.Get, lambda it, timeout: orders.Get.future(it, timeout=timeout).result(10)):
        with pytest.raises(clientlb.NoEndpointsError) as caught:
            call(pb.Request(), timeout=0.1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_calls_wait_for_the_first_list(discovery, connect, pb, pair):
    discovery.set("orders", [])
    orders = connect()
    future = orders.Get.future(pb.Request(id="early"))
    stream = orders.List(pb.Request(count=2))
    waiting = orders.Get.future(pb.Request(id="impatient"))
    assert waiting.cancel()
    assert waiting.cancelled()
    with pytest.raises(grpc.FutureCancelledError):
        waiting.result()
    threading.Timer(0.05, discovery.set, ("orders", [pair[0].address])).start()
    assert orders.Get(pb.Request(id="blocking")).id == "blocking"
    assert future.result(10).id == "early"
    assert len(list(stream)) == 2
