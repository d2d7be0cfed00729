"""Servers that refuse, fail, die and come back: what is repeated, what is not, and what is remembered. Both kinds of
channels go through the same tests; `Caller` is what differs.
"""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest

from tests.grpc.caller import KINDS, Caller
from tests.servers.process import wait_until


@pytest.fixture(params=KINDS)
def caller(request, services, stub_class):
    made = Caller(request.param, services, stub_class)
    yield made
    made.close()
    wait_until(lambda: sum(node.in_flight for node in services["orders"].nodes) == 0, what="nothing in flight")


def test_a_refused_connection_costs_no_call_of_any_arity(caller, discovery, pb, pair, nobody, failures):
    discovery.set("orders", [nobody, pair[0].address])
    caller.connect()
    many = [pb.Request(id=str(number)) for number in range(3)]
    for _ in range(2):  # round robin: one of the two begins where nobody listens
        assert caller.get(pb.Request(id="a")).port == pair[0].port
        assert len(caller.list(pb.Request(count=3))) == 3
        assert caller.add(iter(many)).number == 3
        assert [reply.id for reply in caller.chat(iter(many))] == ["0", "1", "2"]
    assert failures() >= 1


def test_a_refused_connection_everywhere_is_unavailable(caller, discovery, pb, nobody):
    discovery.set("orders", [nobody])
    caller.connect()
    with pytest.raises(grpc.RpcError) as caught:
        caller.get(pb.Request())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "attempt 3" in "".join(caught.value.__notes__)
    with pytest.raises(grpc.RpcError) as caught:
        caller.list(pb.Request())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_killed_server_costs_no_idempotent_call(caller, discovery, services, pb, own_pair):
    dying, other = own_pair
    discovery.set("orders", [dying.address])
    caller.connect(idempotent={"shop.Orders/Get", "/shop.Orders/List"})
    discovery.set("orders", [dying.address, other.address])
    dying.kill()
    assert {caller.get(pb.Request(id="a"), timeout=20).port for _ in range(6)} == {other.port}
    assert all(len(caller.list(pb.Request(count=2))) == 2 for _ in range(4))
    assert services["orders"].stats().retries > 0


def test_a_call_that_was_sent_is_not_repeated_unless_it_is_idempotent(caller, discovery, pb, own_pair):
    discovery.set("orders", [server.address for server in own_pair])
    caller.connect(idempotent=["shop.Orders/List"])
    with pytest.raises(grpc.RpcError) as caught:
        caller.get(pb.Request(act="die"), timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "not idempotent" in "".join(caught.value.__notes__)
    wait_until(lambda: sum(server.running for server in own_pair) == 1)
    # a second attempt would have killed the other server, before its call ended
    assert caller.get(pb.Request(id="alive")).id == "alive"


def test_an_idempotent_call_is_repeated_as_often_as_it_kills(caller, discovery, pb, own_pair):
    discovery.set("orders", [server.address for server in own_pair])
    caller.connect(idempotent=True)
    with pytest.raises(grpc.RpcError):
        caller.get(pb.Request(act="die"), timeout=20)
    wait_until(lambda: not any(server.running for server in own_pair))


def test_a_code_is_retried_only_if_the_method_is_idempotent(caller, discovery, pb, pair, seen):
    discovery.set("orders", [server.address for server in pair])
    caller.connect()
    with pytest.raises(grpc.RpcError):
        caller.get(pb.Request(id=f"never twice {id(caller)}", act="fail once", argument="UNAVAILABLE"))
    assert sum(seen(server, f"never twice {id(caller)}") for server in pair) == 1
    caller.connect(idempotent=True)
    for code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED"):
        assert caller.get(pb.Request(id=f"{code} {id(caller)}", act="fail once", argument=code))
    with pytest.raises(grpc.RpcError):
        caller.get(pb.Request(id=f"internal {id(caller)}", act="fail once", argument="INTERNAL"))
    assert sum(seen(server, f"internal {id(caller)}") for server in pair) == 1


def test_a_server_learns_how_many_attempts_there_were(caller, discovery, pb, pair):
    discovery.set("orders", [pair[0].address])
    caller.connect(idempotent=True, options=[("grpc.enable_retries", 0)])
    reply = caller.get(pb.Request(id=f"again {id(caller)}", act="fail once", argument="UNAVAILABLE"))
    assert reply.metadata["grpc-previous-rpc-attempts"] == "1"


def test_a_later_attempt_has_the_time_that_is_left(caller, discovery, pb, pair, services):
    discovery.set("orders", [server.address for server in pair])
    caller.connect(idempotent=True)
    with pytest.raises(grpc.RpcError) as caught:
        caller.get(pb.Request(act="sleep and fail", argument="1"), timeout=1.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert services["orders"].stats().retries <= 1  # on a busy machine even the first attempt may take too long


def test_the_deadline_spans_all_attempts(caller, discovery, pb, pair):
    discovery.set("orders", [server.address for server in pair])
    caller.connect(idempotent=True)
    with pytest.raises(grpc.RpcError) as caught:
        caller.get(pb.Request(act="push back", argument="60000"), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # at once: the pause would outlast the deadline
    assert "deadline" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("pushback", ["-1", "soon"])
def test_a_server_may_ask_not_to_retry(caller, discovery, services, pb, pair, pushback):
    discovery.set("orders", [server.address for server in pair])
    caller.connect(idempotent=True)
    with pytest.raises(grpc.RpcError, match="asked to push back"):
        caller.get(pb.Request(act="push back", argument=pushback))
    assert services["orders"].stats().retries == 0


def test_a_server_may_ask_to_retry_later(caller, discovery, services, pb, pair):
    discovery.set("orders", [server.address for server in pair])
    caller.connect(idempotent=True)
    with pytest.raises(grpc.RpcError, match="asked to push back"):
        caller.get(pb.Request(act="push back", argument="20"))
    assert services["orders"].stats().retries == 2
    with pytest.raises(grpc.RpcError, match="asked to push back"):
        caller.list(pb.Request(act="push back", argument="20"))
    assert services["orders"].stats().retries == 4


def test_a_stream_that_breaks_off_raises_and_is_remembered(caller, discovery, services, pb, own_pair):
    discovery.set("orders", [own_pair[0].address])
    caller.connect(idempotent=True)
    came: list[Any] = []
    with pytest.raises(grpc.RpcError) as caught:
        caller.list(pb.Request(act="break off", count=3), came)
    assert [reply.number for reply in came] == [0, 1, 2]
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    wait_until(lambda: services["orders"].stats().endpoints[0].failures == 1)
    assert services["orders"].stats().retries == 0


def test_a_stream_that_fails_before_its_first_message_is_repeated(caller, discovery, services, pb, pair):
    discovery.set("orders", [server.address for server in pair])
    caller.connect(idempotent=True)
    request = pb.Request(id=f"first {id(caller)}", act="fail once", argument="UNAVAILABLE", count=2)
    assert [reply.number for reply in caller.list(request)] == [0, 1]
    assert services["orders"].stats().retries >= 1


def test_a_stream_that_answers_an_error_later_does_not_count_if_it_is_the_callers(
    caller, discovery, pb, pair, failures
):
    discovery.set("orders", [pair[0].address])
    caller.connect(idempotent=True)
    with pytest.raises(grpc.RpcError, match="asked to fail later"):
        caller.list(pb.Request(act="fail later", argument="NOT_FOUND", count=2))
    assert failures() == 0
    with pytest.raises(grpc.RpcError, match="asked to fail later"):
        caller.list(pb.Request(act="fail later", argument="UNAVAILABLE", count=2))
    wait_until(lambda: failures() == 1)


def test_a_long_request_stream_is_not_repeated_in_its_midst(caller, discovery, services, pb, pair):
    discovery.set("orders", [server.address for server in pair])
    caller.connect(idempotent=True)
    long = [pb.Request(id="x")] * 30 + [pb.Request(id=f"late {id(caller)}", act="fail once", argument="UNAVAILABLE")]
    with pytest.raises(grpc.RpcError, match="asked to fail once"):
        caller.add(iter(long))
    assert services["orders"].stats().retries == 0
    short = [pb.Request(id="x"), pb.Request(id=f"soon {id(caller)}", act="fail once", argument="UNAVAILABLE")]
    assert caller.add(iter(short)).number == 2


def test_a_restarted_server_gets_calls_again_soon(caller, discovery, pb, own_pair):
    server = own_pair[0]
    discovery.set("orders", [server.address])
    caller.connect(idempotent=True)
    caller.get(pb.Request())
    server.kill()
    for _ in range(3):
        with pytest.raises(grpc.RpcError):
            caller.get(pb.Request(), timeout=5)
    server.start()

    def answers() -> bool:
        try:
            return bool(caller.get(pb.Request(), timeout=5).port == server.port)
        except grpc.RpcError:
            return False

    wait_until(answers, timeout=20.0, what="the restarted server answers")


def test_wait_for_ready_waits_for_the_endpoint_that_was_picked(caller, discovery, pb, own_pair):
    server = own_pair[0]
    server.kill()
    discovery.set("orders", [server.address])
    caller.connect()
    with pytest.raises(grpc.RpcError) as caught:
        caller.get(pb.Request(), wait_for_ready=True, timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    server.launch()
    assert caller.get(pb.Request(id="patient"), wait_for_ready=True, timeout=30).id == "patient"


def test_repeated_failures_eject_an_endpoint(caller, discovery, services, pb, pair, nobody):
    discovery.set("orders", [nobody, pair[0].address])
    caller.connect()
    for _ in range(12):
        caller.get(pb.Request())
    assert services["orders"].stats().retries == 5  # then the breaker opened, and nobody asked there any more
