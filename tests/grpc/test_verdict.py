"""What the end of an attempt means; targets and channel arguments. Pure."""

from __future__ import annotations

import grpc
import pytest

from clientlb import Endpoint, Outcome
from clientlb.grpc._connectivity import State, aggregate
from clientlb.grpc._requests import KEPT, AsyncRequests, Requests
from clientlb.grpc._target import options_of, target_of
from clientlb.grpc._verdict import Idempotence, metadata_of_attempt, verdict

CODES = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED"})
HERE = Endpoint("10.0.0.1", 50051)
REFUSED = "failed to connect to all addresses; last error: UNKNOWN: ipv4:{}: Failed to connect to remote host: refused"


@pytest.mark.parametrize(
    ("code", "details", "outcome", "sent"),
    [
        ("OK", None, Outcome.SUCCESS, True),
        ("NOT_FOUND", "", Outcome.SUCCESS, True),
        ("ABORTED", "", Outcome.SUCCESS, True),
        ("CANCELLED", "", Outcome.IGNORED, True),
        ("CANCELLED", "Locally cancelled by application!", Outcome.IGNORED, True),
        ("CANCELLED", "Channel closed!", Outcome.IGNORED, True),
        ("CANCELLED", "CANCELLED", Outcome.RETRYABLE, True),
        ("UNKNOWN", "Exception calling application: x", Outcome.FAILURE, True),
        ("UNKNOWN", "Exception iterating requests!", Outcome.IGNORED, True),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", Outcome.FAILURE, True),
        ("INTERNAL", "", Outcome.FAILURE, True),
        ("INTERNAL", "Exception serializing request!", Outcome.IGNORED, True),
        ("INTERNAL", "Exception deserializing response!", Outcome.IGNORED, True),
        ("DATA_LOSS", "", Outcome.FAILURE, True),
        ("UNAVAILABLE", "Socket closed", Outcome.RETRYABLE, True),
        ("UNAVAILABLE", None, Outcome.RETRYABLE, True),
        ("RESOURCE_EXHAUSTED", "quota", Outcome.RETRYABLE, True),
        ("RESOURCE_EXHAUSTED", "CLIENT: Received message larger than max (5 vs. 4)", Outcome.IGNORED, True),
        ("UNAVAILABLE", REFUSED.format("10.0.0.1:50051"), Outcome.RETRYABLE, False),
        # the endpoint answered with the status of a server behind it: the call was received
        ("UNAVAILABLE", REFUSED.format("10.0.0.2:50051"), Outcome.RETRYABLE, True),
        ("UNAVAILABLE", REFUSED.format("110.0.0.1:50051"), Outcome.RETRYABLE, True),
        ("UNAVAILABLE", "recvmsg: ipv4:10.0.0.1:50051: Connection reset by peer", Outcome.RETRYABLE, True),
        ("INTERNAL", REFUSED.format("10.0.0.1:50051"), Outcome.FAILURE, True),
    ],
)
def test_verdict(code, details, outcome, sent):
    found = verdict(grpc.StatusCode[code], details, (), HERE, CODES)
    assert (found.outcome, found.sent) == (outcome, sent)


def test_only_the_codes_of_the_options_are_retried():
    assert verdict(grpc.StatusCode.UNAVAILABLE, "", (), HERE, frozenset()).outcome is Outcome.FAILURE
    assert verdict(grpc.StatusCode.ABORTED, "", (), HERE, frozenset({"ABORTED"})).outcome is Outcome.RETRYABLE


def test_an_ipv6_address_is_recognised_as_grpc_writes_it():
    details = REFUSED.format("%5B::1%5D:50051").replace("ipv4", "ipv6")
    assert not verdict(grpc.StatusCode.UNAVAILABLE, details, (), Endpoint("::1", 50051), CODES).sent


def test_a_host_name_gets_no_benefit_of_the_doubt():
    named = Endpoint("orders-1", 50051)
    assert verdict(grpc.StatusCode.UNAVAILABLE, REFUSED.format("10.0.0.1:50051"), (), named, CODES).sent


@pytest.mark.parametrize(
    ("value", "outcome", "seconds"),
    [
        ("50", Outcome.RETRYABLE, 0.05),
        ("0", Outcome.RETRYABLE, 0.0),
        ("-1", Outcome.FAILURE, None),
        ("x", Outcome.FAILURE, None),
    ],
)
def test_pushback(value, outcome, seconds):
    trailing = (("other", "1"), ("grpc-retry-pushback-ms", value))
    found = verdict(grpc.StatusCode.UNAVAILABLE, "", trailing, HERE, CODES)
    assert (found.outcome, found.retry_after) == (outcome, seconds)


def test_a_server_learns_about_earlier_attempts():
    mine = (("who", "me"),)
    assert metadata_of_attempt(mine, 1) is mine
    assert metadata_of_attempt(mine, 3) == (("who", "me"), ("grpc-previous-rpc-attempts", "2"))
    assert metadata_of_attempt(None, 2) == (("grpc-previous-rpc-attempts", "1"),)


def test_idempotence_by_name():
    some = Idempotence(["shop.Orders/Get", "/shop.Orders/List"])
    assert [some.of(f"/shop.Orders/{name}") for name in ("Get", "List", "Add")] == [True, True, False]
    assert some.of(b"/shop.Orders/Get")
    assert Idempotence(True).of("/any/Thing")
    assert not Idempotence(False).of("/any/Thing")


@pytest.mark.parametrize(
    ("endpoint", "target"),
    [
        (Endpoint("10.0.0.1", 1), "ipv4:10.0.0.1:1"),
        (Endpoint("::1", 1), "ipv6:[::1]:1"),
        (Endpoint("orders-1.local", 1), "dns:///orders-1.local:1"),
    ],
)
def test_target(endpoint, target):
    assert target_of(endpoint) == target


def test_the_users_channel_arguments_win():
    ours = dict(options_of("orders", None, secure=True))
    assert ours["grpc.enable_http_proxy"] == 0
    assert ours["grpc.use_local_subchannel_pool"] == 1
    assert ours["grpc.ssl_target_name_override"] == "orders"
    assert ours["grpc.keepalive_time_ms"] > 300_000  # servers punish pings that come more often
    assert ours["grpc.keepalive_permit_without_calls"] == 0
    mixed = options_of(
        "orders", [("grpc.enable_http_proxy", 1), ("my.own", "x"), ("SingleThreadedUnaryStream", 1)], secure=False
    )
    assert [value for key, value in mixed if key == "grpc.enable_http_proxy"] == [1]
    assert ("my.own", "x") in mixed
    assert "SingleThreadedUnaryStream" not in dict(mixed)
    assert "grpc.ssl_target_name_override" not in dict(mixed)


def test_aggregate():
    assert aggregate([]) is State.IDLE
    assert aggregate([State.TRANSIENT_FAILURE, State.IDLE]) is State.IDLE
    assert aggregate([State.CONNECTING, State.IDLE]) is State.CONNECTING
    assert aggregate([State.TRANSIENT_FAILURE, State.READY]) is State.READY
    assert aggregate([State.TRANSIENT_FAILURE]) is State.TRANSIENT_FAILURE


def test_the_first_requests_of_a_stream_can_be_sent_again():
    requests = Requests(iter(range(KEPT + 2)))
    abandoned = iter(requests)
    assert [next(abandoned) for _ in range(3)] == [0, 1, 2]
    assert requests.replayable
    successor = iter(requests)
    assert next(abandoned) == 3  # it was waiting for this one when it was given up; it is not lost
    assert list(successor) == list(range(KEPT + 2))
    assert not requests.replayable


def test_a_short_stream_can_always_be_sent_again():
    requests = Requests([1, 2])
    assert list(requests) == list(requests) == [1, 2]
    assert requests.replayable
    assert list(Requests([])) == []


async def test_the_same_for_coroutines():
    async def source():
        for number in range(KEPT + 2):
            yield number

    for stream in (source(), range(KEPT + 2)):
        requests = AsyncRequests(stream)
        abandoned = aiter(requests)
        assert [await anext(abandoned) for _ in range(3)] == [0, 1, 2]
        successor = aiter(requests)
        assert await anext(abandoned) == 3
        assert [number async for number in successor] == list(range(KEPT + 2))
        assert not requests.replayable
    short = AsyncRequests([1, 2])
    assert [n async for n in short] == [n async for n in short] == [1, 2]
