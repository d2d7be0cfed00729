"""gRPC servers that say in trailers how busy they are: both kinds of servers and channels, all kinds of calls."""

import sys
from collections import Counter
from functools import partial

import grpc
import pytest

import clientlb
from clientlb.node import LoadReport
from clientlb.orca import of_trailers
from clientlb.policy import WeightedRoundRobin
from tests.grpc.conftest import HERE, OrdersServer
from tests.servers.process import running_together


class ReportingServer(OrdersServer):
    def command(self):
        return [
            sys.executable,
            str(HERE / "reporting_server.py"),
            str(self._stubs),
            str(self.port),
            *self._arguments,
        ]


@pytest.fixture(scope="module", params=["sync", "aio"])
def unequal(request, stubs):
    """A server that is at 20 %, and one that is at 80 % with the same calls."""
    with running_together([ReportingServer(stubs, request.param, load) for load in ("0.2", "0.8")]) as servers:
        yield servers


@pytest.fixture
def hedge():
    return None


@pytest.fixture
def services(discovery, unequal, hedge):
    discovery.set("orders", [server.address for server in unequal])
    policy = partial(WeightedRoundRobin, blackout=0, update_every=1e-6)
    options = clientlb.Options(policy=policy, retry=clientlb.RetryOptions(hedge=hedge))
    with clientlb.Services(discovery, options=options) as made:
        yield made


def check_reports(services, unequal):
    busy = {node.endpoint.port: node.report.utilization for node in services["orders"].nodes}
    assert busy == {unequal[0].port: 0.2, unequal[1].port: 0.8}
    for node in services["orders"].nodes:
        assert node.report.qps > 0
        node.report = None


def check_shares(counted, unequal):
    assert counted[unequal[0].port] > 2 * counted[unequal[1].port] > 0


def test_every_kind_of_call_hears_the_report(services, unequal, connect, pb):
    stub = connect()
    request = pb.Request(id="a", count=2)
    for call in (
        lambda: stub.Get(request),
        lambda: stub.Get.with_call(request)[0],
        lambda: stub.Get.future(request).result(),
        lambda: list(stub.List(request)),
        lambda: stub.Add(iter([request])),
        lambda: list(stub.Chat(iter([request]))),
    ):
        for _ in range(30):
            answer = call()
            assert answer[0].id if isinstance(answer, list) else answer.id == "a"
        check_reports(services, unequal)


async def test_every_kind_of_aio_call_hears_the_report(services, unequal, aconnect, pb):
    stub = aconnect()
    request = pb.Request(id="a", count=2)

    async def read(stream):
        answers = [answer async for answer in stream]
        return answers[-1]

    for call in (
        lambda: stub.Get(request),
        lambda: read(stub.List(request)),
        lambda: stub.Add(iter([request])),
        lambda: read(stub.Chat(iter([request]))),
    ):
        for _ in range(30):
            assert (await call()).id == "a"
        check_reports(services, unequal)


HEDGED = pytest.mark.parametrize("hedge", [clientlb.HedgeOptions(delay=20)])


@HEDGED
def test_hedged_calls_hear_the_report(services, unequal, connect, pb):
    stub = connect(idempotent=True)
    for call in (lambda: stub.Get(pb.Request(id="a")), lambda: stub.Get.with_call(pb.Request(id="a"))[0]):
        for _ in range(30):
            assert call().id == "a"
        check_reports(services, unequal)


@HEDGED
async def test_hedged_aio_calls_hear_the_report(services, unequal, aconnect, pb):
    stub = aconnect(idempotent=True)
    for _ in range(30):
        assert (await stub.Get(pb.Request(id="a"))).id == "a"
    check_reports(services, unequal)


def test_calls_follow_what_servers_report(services, unequal, connect, pb):
    stub = connect()
    check_shares(Counter(stub.Get(pb.Request(id="a")).port for _ in range(120)), unequal)


async def test_aio_calls_follow_what_servers_report(services, unequal, aconnect, pb):
    stub = aconnect()
    check_shares(Counter([(await stub.Get(pb.Request(id="a"))).port for _ in range(120)]), unequal)


def test_the_report_comes_with_a_failure_too_and_beside_the_handlers_own(services, unequal, connect, pb):
    stub = connect()
    for _ in range(20):
        with pytest.raises(grpc.RpcError) as failed:
            stub.Get(pb.Request(act="fail", argument="INVALID_ARGUMENT"))
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert dict(failed.value.trailing_metadata())["of"] == "the handler"
    assert isinstance(services["orders"].nodes[0].report, LoadReport)
    _, call = stub.Get.with_call(pb.Request(id="a"))
    assert dict(call.trailing_metadata())["of"] == "the handler"
    assert of_trailers(call.trailing_metadata(), 0.0) is not None


async def test_an_aio_failure_reports_too(services, unequal, aconnect, pb):
    stub = aconnect()
    for _ in range(20):
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Get(pb.Request(act="fail", argument="NOT_FOUND"))
    assert all(isinstance(node.report, LoadReport) for node in services["orders"].nodes)


def test_nobody_looks_for_reports_that_nobody_wants(discovery, unequal, stub_class, pb):
    discovery.set("orders", [server.address for server in unequal])
    with (
        clientlb.Services(discovery) as services,
        clientlb.grpc.channel("orders", services) as channel,
    ):
        assert stub_class(channel).Get(pb.Request(id="a")).id == "a"
        assert all(node.report is None for node in services["orders"].nodes)
