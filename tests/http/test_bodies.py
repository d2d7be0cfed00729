"""A call is in flight until its body ends, however it ends."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

import clientlb
import clientlb.httpx
import clientlb.httpx2
from tests.http.conftest import Kind
from tests.servers.process import wait_until

pytestmark = pytest.mark.usefixtures("nobody_in_flight")


def in_flight(services: clientlb.Services) -> int:
    return sum(node.in_flight for node in services["orders"].nodes)


def failures(services: clientlb.Services) -> int:
    return sum(endpoint.failures for endpoint in services["orders"].stats().endpoints)


async def test_a_body_is_streamed_down(kind: Kind, services: clientlb.Services) -> None:
    async with kind.client(services) as http, http.stream("http://orders/stream?chunks=5&pause=0.01") as response:
        assert in_flight(services) == 1
        parts = [part async for part in http.chunks(response)]
        assert in_flight(services) == 0
    assert b"".join(parts).count(b";") == 5


async def test_a_body_is_streamed_up(kind: Kind, services: clientlb.Services) -> None:
    async with kind.client(services) as http:
        answer = await http.post("http://orders/", content=kind.body(b"one", b"two"))
    assert answer.json()["body"] == "onetwo"
    assert answer.json()["headers"]["transfer-encoding"] == "chunked"


async def test_leaving_a_body_early_is_no_failure(kind: Kind, services: clientlb.Services) -> None:
    async with kind.client(services) as http:
        async with http.stream("http://orders/stream?chunks=1000&pause=0.01") as response:
            async for _ in http.chunks(response):
                break
            assert in_flight(services) == 1
        assert in_flight(services) == 0
        async with http.stream("http://orders/stream?chunks=1000&pause=0.01"):
            pass
    assert failures(services) == 0


async def test_a_body_that_breaks_off_is_a_failure_of_the_server(kind: Kind, services: clientlb.Services) -> None:
    async with kind.client(services) as http:
        with pytest.raises(kind.library.RemoteProtocolError, match="complete message body") as caught:
            await http.get("http://orders/break")
    assert type(caught.value) is kind.library.RemoteProtocolError
    assert failures(services) == 1


async def test_a_timeout_within_the_body(kind: Kind, services: clientlb.Services) -> None:
    async with kind.client(services, timeout=0.2) as http:
        with pytest.raises(kind.library.ReadTimeout):
            await http.get("http://orders/stream?chunks=2&pause=3")
    assert failures(services) == 1


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
async def test_answers_without_a_body(kind: Kind, services: clientlb.Services, method: str) -> None:
    async with kind.client(services) as http:
        assert (await http.request(method, "http://orders/")).status_code == 200


async def test_an_answer_that_was_made_with_its_body(kind: Kind, services: clientlb.Services) -> None:
    def inner(endpoint: clientlb.Endpoint) -> object:
        return kind.library.MockTransport(lambda request: kind.library.Response(200, json={"at": str(endpoint)}))

    async with kind.client(services, inner=inner) as http:
        async with http.stream("http://orders/") as response:
            assert response.is_closed
            assert in_flight(services) == 0
        statuses = itertools.cycle([503, 200])
        mock = kind.library.MockTransport(lambda request: kind.library.Response(next(statuses), text="x"))
    async with kind.client(services, inner=lambda endpoint: mock) as http:
        assert (await http.get("http://orders/")).text == "x"


class Interrupt(BaseException):
    """Ctrl-C, as it reaches code that runs."""


def test_an_interrupted_call_is_no_evidence(services: clientlb.Services) -> None:
    def body() -> Iterator[bytes]:
        yield b"x"
        raise Interrupt

    for module in (clientlb.httpx, clientlb.httpx2):
        with module.Client(services) as http, pytest.raises(Interrupt):
            http.put("http://orders/", content=body())
        assert in_flight(services) == 0
        assert failures(services) == 0


@pytest.mark.parametrize("path", ["sleep?seconds=30", "stream?chunks=1000&pause=0.05"])
@pytest.mark.parametrize("module", [clientlb.httpx, clientlb.httpx2])
async def test_a_cancelled_call_is_no_evidence(module: Any, services: clientlb.Services, path: str) -> None:
    async with module.AsyncClient(services) as http:
        task = asyncio.create_task(http.get(f"http://orders/{path}"))
        await asyncio.wait([task], timeout=0.2)  # by now it waits for the head or for the rest of the body
        assert in_flight(services) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert in_flight(services) == 0
        assert failures(services) == 0


async def test_many_calls_at_once(kind: Kind, services: clientlb.Services) -> None:
    async with kind.client(services) as http:
        answers = await asyncio.gather(*(http.get(f"http://orders/{n}") for n in range(100)))
    assert [answer.json()["target"] for answer in answers] == [f"/{n}" for n in range(100)]
    wait_until(lambda: in_flight(services) == 0, what="nobody in flight")
