"""What is repeated on another endpoint and what is not, with servers that really die, refuse and misbehave."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import clientlb
from clientlb.testing import ManualDiscovery
from tests.http.conftest import Http, Kind, Process
from tests.servers.process import free_ports

Start = Callable[..., Process]
PATIENT = clientlb.Options(policy="round_robin", health=clientlb.HealthOptions(consecutive_failures=1000))


class Fleet:
    """Services over some servers, in turn, whose breakers do not interfere."""

    def __init__(self, *servers: Process, others: tuple[str, ...] = ()) -> None:
        self.servers = servers
        addresses = [*(each.address for each in servers), *others]
        self.services = clientlb.Services(ManualDiscovery({"orders": addresses}), options=PATIENT)
        self._before = {each.name: each.figures()["calls"] for each in servers}

    def calls(self, path: str) -> dict[str, int]:
        """How often each server was called with this path, since the start of the test."""
        now = {each.name: each.figures()["calls"] for each in self.servers}
        return {name: calls.get(path, 0) - self._before[name].get(path, 0) for name, calls in now.items()}

    @property
    def failures(self) -> int:
        return sum(endpoint.failures for endpoint in self.services["orders"].stats().endpoints)

    @property
    def in_flight(self) -> int:
        return sum(node.in_flight for node in self.services["orders"].nodes)


@pytest.fixture
def pair(shared_servers: dict[str, Process]) -> Iterator[Fleet]:
    fleet = Fleet(*shared_servers.values())
    with fleet.services:
        yield fleet
        assert fleet.in_flight == 0


@pytest.fixture
def half_refused(shared_servers: dict[str, Process]) -> Iterator[Fleet]:
    """One server, and one address where nobody listens."""
    fleet = Fleet(shared_servers["a"], others=(f"127.0.0.1:{free_ports(1)[0]}",))
    with fleet.services:
        yield fleet
        assert fleet.in_flight == 0


async def test_a_killed_server_costs_no_idempotent_call(kind: Kind, start: Start) -> None:
    killed, survivor = start("a"), start("b")
    fleet = Fleet(killed, survivor)
    async with kind.client(fleet.services) as http:
        assert {(await http.get("http://orders/")).json()["server"] for _ in range(4)} == {"a", "b"}
        killed.kill()
        traces = [(await http.get("http://orders/")).extensions["clientlb"] for _ in range(10)]
    assert fleet.in_flight == 0
    fleet.services.close()
    assert all(trace.endpoint.address == survivor.address for trace in traces)
    retried = [trace for trace in traces if len(trace.attempts) > 1]
    assert retried
    assert all(trace.attempts[0].endpoint.address == killed.address for trace in retried)
    assert all(trace.attempts[0].reason for trace in retried)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_what_may_have_arrived_is_not_repeated(kind: Kind, pair: Fleet, method: str) -> None:
    async with kind.client(pair.services) as http:
        errors = []
        for _ in range(4):
            try:
                await http.request(method, "http://orders/drop?at=a", content=b"pay")
            except kind.library.RemoteProtocolError as error:
                errors.append(error)
    assert len(errors) == 2
    assert sum(pair.calls("/drop").values()) == 4
    assert "not idempotent" in errors[0].__notes__[0]
    assert str(errors[0].request.url) == "http://orders/drop?at=a"


@pytest.mark.parametrize(
    "arguments",
    [
        {"extensions": {"clientlb": {"idempotent": True}}},
        {"extensions": {"clientlb": clientlb.CallOptions(idempotent=True)}},
        {"headers": {"Idempotency-Key": "7"}},
        {"headers": {"x-idempotency-key": "7"}},
    ],
)
async def test_unless_the_call_says_that_it_may_be(kind: Kind, pair: Fleet, arguments: dict[str, Any]) -> None:
    async with kind.client(pair.services) as http:
        answers = [await http.post("http://orders/drop?at=a", content=b"pay", **arguments) for _ in range(4)]
    assert [answer.json()["server"] for answer in answers] == ["b"] * 4
    assert [answer.json()["body"] for answer in answers] == ["pay"] * 4
    assert pair.calls("/drop")["a"] >= 1


async def test_a_call_can_be_less_than_its_method(kind: Kind, pair: Fleet) -> None:
    async def attempt(http: Http, options: dict[str, bool]) -> str:
        try:
            answer = await http.get("http://orders/drop?at=a", extensions={"clientlb": options})
        except kind.library.RemoteProtocolError as error:
            return type(error).__name__
        return str(answer.json()["server"])

    async with kind.client(pair.services) as http:
        for options in ({"idempotent": False}, {"retry": False}):
            answers = [await attempt(http, options) for _ in range(2)]
            assert sorted(answers) == ["RemoteProtocolError", "b"]


async def test_what_was_refused_is_repeated_whatever_it_is(kind: Kind, half_refused: Fleet) -> None:
    async with kind.client(half_refused.services) as http:
        for _ in range(4):
            assert (await http.post("http://orders/x", content=b"pay")).json()["body"] == "pay"
            # nothing of a one-shot body was read before the connection was refused
            body = kind.body(b"p", b"ay")
            assert (await http.post("http://orders/x", content=body)).json()["body"] == "pay"
    assert half_refused.calls("/x") == {"a": 8}
    assert half_refused.failures >= 2


async def test_a_one_shot_body_that_was_sent_ends_in_the_first_error(kind: Kind, pair: Fleet) -> None:
    async with kind.client(pair.services) as http:
        with pytest.raises(kind.library.RemoteProtocolError) as caught:
            await http.request("PUT", "http://orders/drop", content=kind.body(b"one", b"shot"))
    assert "one-shot" in caught.value.__notes__[0]
    assert sum(pair.calls("/drop").values()) == 1


async def test_a_form_with_files_is_sent_again_as_a_whole(kind: Kind, pair: Fleet) -> None:
    async with kind.client(pair.services) as http:
        files = {"file": ("f.txt", io.BytesIO(b"the file"))}
        for _ in range(2):
            answer = await http.request("PUT", "http://orders/drop?at=a", data={"n": "1"}, files=files)
            assert answer.json()["server"] == "b"
            assert "the file" in answer.json()["body"]
    assert pair.calls("/drop")["a"] >= 1


async def test_what_the_body_itself_raises_is_no_fault_of_the_server(kind: Kind, pair: Fleet) -> None:
    async with kind.client(pair.services) as http:
        for error in (ValueError("mine"), kind.library.ReadError("of somebody else's response"), OSError("my disk")):
            with pytest.raises(type(error)) as caught:
                await http.request("PUT", "http://orders/", content=kind.body(b"x", error))
            assert caught.value is error
    assert pair.failures == 0


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_some_statuses_are_worth_another_server(kind: Kind, pair: Fleet, status: int) -> None:
    async with kind.client(pair.services) as http:
        answers = [await http.get(f"http://orders/status?at=a&status={status}") for _ in range(4)]
    assert [answer.json()["server"] for answer in answers] == ["b"] * 4
    assert [answer.extensions["clientlb"].attempts[0].reason for answer in answers].count(str(status)) >= 1
    assert pair.failures >= 1


async def test_the_last_answer_is_given_to_the_caller(kind: Kind, pair: Fleet) -> None:
    async with kind.client(pair.services) as http:
        answer = await http.get("http://orders/status?status=503")
    assert answer.status_code == 503
    assert answer.json()["server"] in "ab"
    assert len(answer.extensions["clientlb"].attempts) == 3


@pytest.mark.parametrize(("status", "failures"), [(500, 1), (404, 0), (401, 0)])
async def test_other_statuses_are_answers(kind: Kind, pair: Fleet, status: int, failures: int) -> None:
    async with kind.client(pair.services) as http:
        answer = await http.get(f"http://orders/status?status={status}")
    assert answer.status_code == status
    assert len(answer.extensions["clientlb"].attempts) == 1
    assert pair.failures == failures


async def test_a_server_may_ask_to_wait_but_not_for_long(kind: Kind, pair: Fleet) -> None:
    async with kind.client(pair.services) as http:
        url = "http://orders/status?status=503&at=a"
        soon = [await http.get(f"{url}&header=Retry-After: 0") for _ in range(2)]
        late = [await http.get(f"{url}&header=Retry-After: 60") for _ in range(2)]
    assert [answer.status_code for answer in soon] == [200, 200]
    assert sorted(answer.status_code for answer in late) == [200, 503]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"idempotant": True}, "idempotant do not exist; known: attempt_timeout, deadline, idempotent, key"),
        ({"idempotent": "yes"}, "give True, False or None"),
        ({"retry": 3}, "give RetryOptions"),
        ("idempotent", "give a mapping"),
    ],
)
async def test_wrong_options_of_a_call(kind: Kind, pair: Fleet, options: object, complaint: str) -> None:
    async with kind.client(pair.services) as http:
        with pytest.raises(clientlb.ConfigurationError, match=complaint):
            await http.get("http://orders/", extensions={"clientlb": options})
    assert pair.calls("/") == {"a": 0, "b": 0}


async def test_the_clients_own_mistakes_are_no_fault_of_the_server(kind: Kind, pair: Fleet) -> None:
    async with kind.client(pair.services) as http:
        with pytest.raises(kind.library.LocalProtocolError):
            await http.get("http://orders/", headers={"X-Bad": "a\nb"})
    assert pair.failures == 0


async def test_a_read_timeout_is_a_failure_and_repeated(kind: Kind, pair: Fleet) -> None:
    async with kind.client(pair.services, timeout=0.3) as http:
        answers = [await http.get("http://orders/sleep?at=a&seconds=3") for _ in range(2)]
    assert [answer.json()["server"] for answer in answers] == ["b", "b"]
    reasons = [tried.reason for answer in answers for tried in answer.extensions["clientlb"].attempts]
    assert "ReadTimeout" in reasons
