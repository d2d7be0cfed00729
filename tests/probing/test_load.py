"""What a server knows of its load, and how its requests are counted."""

import os
import threading

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from clientlb.probing import Load, LoadEstimate, LoadMeter
from clientlb.probing.asgi import Probed as ProbedAsgi
from clientlb.probing.grpc import _answer_of as grpc_answer_of
from clientlb.probing.grpc import _load_in as grpc_load_in
from clientlb.probing.http import answer_of as http_answer_of
from clientlb.probing.http import load_in as http_load_in
from clientlb.probing.wsgi import Probed as ProbedWsgi


def test_the_median_of_those_that_found_as_many():
    estimate = LoadEstimate()
    for number in range(20):  # alone: 10 ms; as the fifth: 50 ms
        for found, seconds in ((1, 0.010), (5, 0.050)):
            estimate.began()
            estimate.ended(found, seconds, number * 0.01)
    assert estimate.estimate(1.0) == Load(0, 0.010)
    for _ in range(4):
        estimate.began()
    assert estimate.estimate(1.0) == Load(4, 0.050)


def test_the_latest_count_and_the_nearest_stand_in():
    estimate = LoadEstimate()
    for number in range(40):
        estimate.began()
        estimate.ended(3, 0.1 if number < 20 else 0.2, number * 0.01)
    assert estimate.estimate(1.0) == Load(0, 0.2)


def test_what_is_old_is_forgotten_so_that_somebody_tries():
    estimate = LoadEstimate()
    assert estimate.estimate(0.0) == Load(0, 0.0)
    estimate.began()
    estimate.ended(1, 2.0, 5.0)
    assert estimate.estimate(14.9) == Load(0, 2.0)
    assert estimate.estimate(15.1) == Load(0, 0.0)


def test_a_failure_is_counted_out_and_not_fast():
    estimate = LoadEstimate()
    estimate.ended(estimate.began(), None, 0.0)
    assert estimate.estimate(0.0) == Load(0, 0.0)


def test_a_request_ends_once():
    meter = LoadMeter()
    first, second = meter.began(), meter.began()
    first.end()
    first.end()
    assert meter.load().in_flight == 1
    second.end(telling=False)
    assert meter.load().in_flight == 0


def test_many_threads_count_exactly():
    meter = LoadMeter()

    def work():
        for _ in range(2000):
            meter.began().end()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.load().in_flight == 0


def test_a_forked_worker_counts_its_own():
    meter = LoadMeter()
    running = meter.began()
    child = os.fork()
    if not child:
        found = meter.load().in_flight
        running.end()  # the parent's; it is none of the child's
        os._exit(found + meter.load().in_flight)
    assert os.waitpid(child, 0)[1] == 0
    assert meter.load().in_flight == 1


@pytest.mark.parametrize(("write", "read"), [(http_answer_of, http_load_in), (grpc_answer_of, grpc_load_in)])
def test_answers_are_read_as_they_were_written(write, read):
    for load in (Load(0, 0.0), Load(3, 0.0121), Load(2**32 - 1, 1e6)):
        assert read(write(load)) == load


@pytest.mark.parametrize(
    "body", [b"", b"ok", b"[]", b'{"in_flight": -1, "latency": 1}', b'{"in_flight": 1, "latency": NaN}']
)
def test_what_is_no_answer_is_refused(body):
    with pytest.raises((ValueError, KeyError, TypeError)):
        http_load_in(body)


def test_the_answer_of_grpc_is_a_protobuf_message():
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto(name="load.proto", package="clientlb", syntax="proto2")
    message = file.message_type.add(name="Answer")
    message.field.add(name="in_flight", number=1, type=7, label=1)  # fixed32, optional
    message.field.add(name="latency", number=2, type=1, label=1)  # double, optional
    pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("clientlb.Answer"))
    for load in (Load(0, 0.0), Load(7, 0.25)):
        read = kind.FromString(grpc_answer_of(load))
        assert (read.in_flight, read.latency) == load
        assert grpc_load_in(kind(in_flight=load.in_flight, latency=load.latency).SerializeToString()) == load


class TestAsgi:
    async def ask(self, app, path="/", status=200):
        said = []

        async def send(message):
            said.append(message)

        await app({"type": "http", "path": path, "method": "GET"}, None, send)
        return said

    async def test_requests_are_counted_and_probes_are_not(self):
        async def app(scope, receive, send):
            assert probed.meter.load().in_flight == 1
            await send({"type": "http.response.start", "status": 200})

        probed = ProbedAsgi(app)
        await self.ask(probed)
        (start, body) = await self.ask(probed, "/.well-known/clientlb-load")
        assert start["status"] == 200
        load = http_load_in(body["body"])
        assert load.in_flight == 0
        assert 0 < load.latency < 1

    @pytest.mark.parametrize("raises", [True, False])
    async def test_a_failure_is_not_fast(self, raises):
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200 if raises else 503})
            if raises:
                raise RuntimeError

        probed = ProbedAsgi(app)
        try:
            await self.ask(probed)
        except RuntimeError:
            assert raises
        assert probed.meter.load() == Load(0, 0.0)

    async def test_other_scopes_pass(self):
        async def app(scope, receive, send):
            assert probed.meter.load().in_flight == 0
            passed.append(scope["type"])

        passed, probed = [], ProbedAsgi(app)
        await probed({"type": "lifespan"}, None, None)
        assert passed == ["lifespan"]


GET = {"PATH_INFO": "/", "REQUEST_METHOD": "GET"}


class TestWsgi:
    def test_a_request_ends_when_its_answer_was_sent(self):
        def app(environ, start_response):
            start_response("200 OK", [])
            return [b"ok"]

        probed = ProbedWsgi(app)
        answer = probed(GET, lambda *_: None)
        assert len(answer) == 1
        assert probed.meter.load().in_flight == 1
        assert list(answer) == [b"ok"]
        answer.close()
        load = http_load_in(b"".join(probed({**GET, "PATH_INFO": "/.well-known/clientlb-load"}, lambda *_: None)))
        assert load.in_flight == 0
        assert load.latency > 0

    def test_failures_are_not_fast(self):
        def fails(environ, start_response):
            start_response("500 Oh", [])
            return iter([b"no"])

        def raises(environ, start_response):
            raise RuntimeError

        probed = ProbedWsgi(fails)
        probed(GET, lambda *_: None).close()
        assert probed.meter.load() == Load(0, 0.0)
        probed = ProbedWsgi(raises)
        with pytest.raises(RuntimeError):
            probed(GET, lambda *_: None)
        assert probed.meter.load() == Load(0, 0.0)
