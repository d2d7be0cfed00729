"""HTTP/2: what a server did not take is sent elsewhere, with all its body; what it may have taken is not."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import clientlb
import clientlb.httpx
import clientlb.httpx2
from clientlb.testing import ManualDiscovery
from tests.http.conftest import Http, Kind
from tests.http.h2_server import H2Server, Seen
from tests.servers.process import wait_until

FLAVOURS = (clientlb.httpx, clientlb.httpx2)
IN_TURN = clientlb.Options(policy="round_robin", health=clientlb.HealthOptions(consecutive_failures=1000))


class Fleet:
    """Scripted servers behind `orders`, in turn."""

    def __init__(self, *servers: H2Server) -> None:
        self.servers = servers
        self.services = clientlb.Services(ManualDiscovery({"orders": [s.address for s in servers]}), options=IN_TURN)

    @property
    def failures(self) -> int:
        return sum(endpoint.failures for endpoint in self.services["orders"].stats().endpoints)

    @property
    def seen(self) -> list[tuple[str, bytes]]:
        return [(seen.method, seen.body) for server in self.servers for seen in server.seen]


@contextlib.contextmanager
def fleet(*scripts: Any) -> Iterator[Fleet]:
    with contextlib.ExitStack() as stack:
        fleet = Fleet(*(stack.enter_context(H2Server(script)) for script in scripts))
        stack.enter_context(fleet.services)
        yield fleet
        assert all(node.in_flight == 0 for node in fleet.services["orders"].nodes)


@contextlib.asynccontextmanager
async def client(kind: Kind, fleet: Fleet, **settings: Any) -> AsyncIterator[Http]:
    settings = settings or {"http1": False, "http2": True}
    async with kind.client(fleet.services, timeout=5, **settings) as http:
        yield http


def answers(seen: Seen) -> str:
    return "answer"


def second_on_a_connection(action: str) -> Any:
    """Answers every other request with an action: the first one that a connection brings is answered well."""
    return lambda seen: action if seen.stream == 3 and seen.connection == 1 else "answer"


@pytest.mark.parametrize("action", ["refuse", "none"])
async def test_what_was_not_taken_is_sent_elsewhere_whatever_it_is(kind: Kind, action: str) -> None:
    with fleet(lambda seen: action, answers) as both:
        async with client(kind, both) as http:
            responses = [await http.post("http://orders/", content=b"pay") for _ in range(4)]
        assert [response.json()["body"] for response in responses] == [3] * 4
        assert [response.http_version for response in responses] == ["HTTP/2"] * 4
        tried = [[attempt.reason for attempt in response.extensions["clientlb"].attempts] for response in responses]
        assert ["RemoteProtocolError", ""] in tried
        assert max(map(len, tried)) == 2


async def test_a_refused_stream_says_nothing_about_connections(kind: Kind) -> None:
    with fleet(lambda seen: "refuse" if seen.stream == 1 else "answer", answers) as both:
        async with client(kind, both) as http:
            responses = [await http.post("http://orders/", content=b"pay") for _ in range(10)]
        # one that cannot be connected to is avoided; this one is picked in its turn
        assert {response.extensions["clientlb"].endpoint.address for response in responses[2:]} == {
            server.address for server in both.servers
        }


@pytest.mark.parametrize("action", ["cancel", "maybe this", "hang up"])
async def test_what_may_have_been_taken_is_sent_again_only_if_it_may_be(kind: Kind, action: str) -> None:
    with fleet(lambda seen: action, answers) as both:
        async with client(kind, both) as http:
            assert [(await http.get("http://orders/")).status_code for _ in range(4)] == [200] * 4
            errors = []
            for _ in range(4):
                try:
                    await http.post("http://orders/", content=b"pay")
                except kind.library.RemoteProtocolError as error:
                    errors.append(error)
        assert len(errors) == 2
        assert "not idempotent" in errors[0].__notes__[0]
        assert both.seen.count(("POST", b"pay")) == 4


@pytest.mark.parametrize("action", ["last", "full", "not this", "in peace", "half way"])
async def test_a_server_that_goes_away_in_good_manners_costs_no_call(kind: Kind, action: str) -> None:
    with fleet(second_on_a_connection(action)) as one:
        async with client(kind, one) as http:
            for _ in range(6):
                assert (await http.post("http://orders/", content=b"pay")).json()["body"] == 3
        assert one.servers[0].connections == 2


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_of_two_that_share_a_connection_one_is_answered_and_one_sent_again(flavour: Any) -> None:
    actions = {3: "leave", 5: "not both"}
    with fleet(lambda seen: actions.get(seen.stream, "answer") if seen.connection == 1 else "answer") as one:
        async with flavour.AsyncClient(one.services, http1=False, http2=True, timeout=5) as http:
            await http.get("http://orders/")
            both = await asyncio.gather(*(http.post("http://orders/", content=b"pay") for _ in range(2)))
        tried = [[attempt.reason for attempt in response.extensions["clientlb"].attempts] for response in both]
        assert sorted(tried) == [[""], ["RemoteProtocolError on a kept connection", ""]]
        assert one.failures == 0
        assert one.servers[0].connections == 2


async def test_a_server_that_takes_not_even_one_request_fails(kind: Kind) -> None:
    with fleet(lambda seen: "none") as one:
        async with client(kind, one) as http:
            with pytest.raises(kind.library.RemoteProtocolError, match="GOAWAY: the server takes no more requests"):
                await http.post("http://orders/", content=b"pay")
        assert one.failures > 0


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_file_that_was_not_taken_is_read_from_where_it_was(flavour: Any) -> None:
    with fleet(second_on_a_connection("not this")) as one:
        with flavour.Client(one.services, http1=False, http2=True) as http:
            for _ in range(3):
                file = io.BytesIO(b"skipped" + b"x" * 200_000)
                file.seek(7)
                length = {"Content-Length": "200000"}
                assert http.post("http://orders/", content=file, headers=length).json()["body"] == 200_000
        assert one.failures == 0


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_file_or_a_list_is_sent_again_like_bytes(flavour: Any) -> None:
    with fleet(lambda seen: "maybe this", answers) as both:
        with flavour.Client(both.services, http1=False, http2=True) as http:
            for body in (io.BytesIO(b"12345"), [b"12", b"345"], (b"12345",)):
                response = http.put("http://orders/", content=body)
                assert response.json()["body"] == 5
        assert len(both.seen) > 3


async def a_stream_that_was_not_taken_is_not_sent_empty(kind: Kind, body: Any, said: str, **settings: Any) -> None:
    with fleet(second_on_a_connection("not this")) as one:
        async with client(kind, one, **settings) as http:
            await http.post("http://orders/", content=b"first")
            with pytest.raises(kind.library.RemoteProtocolError, match=said) as caught:
                await http.request("PUT", "http://orders/", content=body)
        assert "cannot be sent again" in caught.value.__notes__[0]
        assert one.seen == [("POST", b"first"), ("PUT", b"one")]
        assert one.failures == 0


@pytest.mark.parametrize("what", ["generator", "pipe"])
async def test_a_stream_that_was_not_taken_is_not_sent_empty(kind: Kind, what: str) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    class AsyncPipe:
        def __init__(self) -> None:
            self._pipe = Pipe(b"one")

        async def aread(self, size: int) -> bytes:
            return self._pipe.read(size)

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield self._pipe.read()

    pipe = AsyncPipe() if kind.is_async else Pipe(b"one")
    body = kind.body(b"one") if what == "generator" else pipe
    await a_stream_that_was_not_taken_is_not_sent_empty(kind, body, "did not take this one")


async def test_a_transport_of_the_user_does_not_send_it_empty_either(kind: Kind) -> None:
    plain = kind.library.AsyncHTTPTransport if kind.is_async else kind.library.HTTPTransport
    await a_stream_that_was_not_taken_is_not_sent_empty(
        kind, kind.body(b"one"), "cannot be read again", inner=lambda endpoint: plain(http1=False, http2=True)
    )


async def test_a_connection_is_kept(kind: Kind) -> None:
    with fleet(answers) as one:
        async with client(kind, one) as http:
            for body in (b"", b"x", b"x" * 500_000, b"x"):
                assert (await http.post("http://orders/", content=body)).json()["body"] == len(body)
        assert one.servers[0].connections == 1


async def test_a_goodbye_to_an_idle_connection_is_heard(kind: Kind) -> None:
    with fleet(lambda seen: "hang up later" if seen.stream == 3 else "answer") as one:
        async with client(kind, one) as http:
            for _ in range(6):
                response = await http.post("http://orders/", content=b"pay")
                assert [tried.reason for tried in response.extensions["clientlb"].attempts] == [""]
                wait_until(lambda: not one.servers[0].saying_goodbye, what="the server has closed the connection")
        assert one.servers[0].connections == 3
