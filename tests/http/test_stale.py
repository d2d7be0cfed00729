"""A connection that was kept for the next call and has broken meanwhile is told apart from a server that is broken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import clientlb
from clientlb.testing import ManualDiscovery
from tests.http.conftest import Kind, Process

BREAKS = {"drop": "RemoteProtocolError", "reset": "ReadError"}


class One:
    """Services over one server, whose breaker opens at the first failure."""

    def __init__(self, server: Process) -> None:
        options = clientlb.Options(health=clientlb.HealthOptions(consecutive_failures=1))
        self.server = server
        self.services = clientlb.Services(ManualDiscovery({"orders": [server.address]}), options=options)
        self.before = server.figures()

    def calls(self, path: str) -> int:
        return int(self.server.figures()["calls"].get(path, 0) - self.before["calls"].get(path, 0))

    @property
    def failures(self) -> int:
        return self.services["orders"].stats().endpoints[0].failures

    @property
    def retries(self) -> int:
        return self.services["orders"].stats().retries


@pytest.fixture
def one(shared_servers: dict[str, Process]) -> Iterator[One]:
    one = One(shared_servers["a"])
    with one.services:
        yield one
        assert [node.in_flight for node in one.services["orders"].nodes] == [0]


def reasons(response: Any) -> list[str]:
    return [tried.reason for tried in response.extensions["clientlb"].attempts]


@pytest.mark.parametrize("how", BREAKS)
async def test_a_get_is_repeated_at_once_and_nobody_is_blamed(kind: Kind, one: One, how: str) -> None:
    async with kind.client(one.services) as http:
        await http.get("http://orders/")
        response = await http.get(f"http://orders/{how}?kept=1")
    assert response.status_code == 200
    assert reasons(response) == [f"{BREAKS[how]} on a kept connection", ""]
    assert one.failures == 0
    assert one.retries == 1
    assert one.calls(f"/{how}") == 2


@pytest.mark.parametrize("how", BREAKS)
async def test_a_post_is_not_repeated_for_it_may_have_been_read(kind: Kind, one: One, how: str) -> None:
    async with kind.client(one.services) as http:
        await http.get("http://orders/")
        with pytest.raises(getattr(kind.library, BREAKS[how])) as caught:
            await http.post(f"http://orders/{how}?kept=1", content=b"pay")
    assert "not idempotent" in caught.value.__notes__[0]
    assert one.calls(f"/{how}") == 1
    assert one.failures == 0


@pytest.mark.parametrize("how", BREAKS)
async def test_a_new_connection_that_breaks_is_the_servers_fault(kind: Kind, one: One, how: str) -> None:
    async with kind.client(one.services) as http:
        with pytest.raises(getattr(kind.library, BREAKS[how])):
            await http.get(f"http://orders/{how}")
    assert one.failures == 3  # all attempts met a new connection


async def test_only_once_so_that_a_deadly_request_does_not_kill_everybody(kind: Kind, one: One) -> None:
    async with kind.client(one.services, limits=kind.library.Limits(max_connections=1)) as http:
        await http.get("http://orders/")
        with pytest.raises(kind.library.RemoteProtocolError) as caught:
            await http.get("http://orders/drop")
    assert caught.value.__notes__[0].count(" at 127.") == 4  # the one that is not counted, and three
    assert caught.value.__notes__[0].count("kept connection") == 1
    assert one.failures == 3


async def test_nonsense_on_a_kept_connection_is_evidence(kind: Kind, one: One) -> None:
    async with kind.client(one.services) as http:
        await http.get("http://orders/")
        with pytest.raises(kind.library.RemoteProtocolError):
            await http.post("http://orders/nonsense?kept=1")
    assert one.failures == 1


async def test_a_timeout_on_a_kept_connection_is_evidence(kind: Kind, one: One) -> None:
    async with kind.client(one.services) as http:
        await http.get("http://orders/")
        with pytest.raises(kind.library.ReadTimeout):
            await http.post("http://orders/sleep?seconds=3&kept=1", timeout=0.2)
    assert one.failures == 1


async def test_a_body_that_breaks_on_a_kept_connection_is_evidence(kind: Kind, one: One) -> None:
    async with kind.client(one.services) as http:
        await http.get("http://orders/")
        with pytest.raises(kind.library.RemoteProtocolError):
            await http.get("http://orders/break?kept=1")
    assert one.failures == 1


async def test_a_connection_closed_while_idle_is_replaced_before_anything_is_sent(kind: Kind, one: One) -> None:
    """For any method: httpx looks before it sends. So a server's keep-alive timeout costs nothing."""
    async with kind.client(one.services) as http:
        await http.get("http://orders/last")
        one.server.figures()  # by its answer the close has arrived, too
        response = await http.post("http://orders/", content=b"pay")
    assert reasons(response) == [""]
    assert one.failures == 0


async def test_a_one_shot_body_is_not_sent_twice(kind: Kind, one: One) -> None:
    async with kind.client(one.services) as http:
        await http.get("http://orders/")
        with pytest.raises(kind.library.RemoteProtocolError) as caught:
            await http.request("PUT", "http://orders/drop?kept=1", content=kind.body(b"one", b"shot"))
    assert "one-shot" in caught.value.__notes__[0]
    assert one.failures == 0


async def test_without_retries_the_error_comes_out(kind: Kind, one: One) -> None:
    async with kind.client(one.services) as http:
        await http.get("http://orders/")
        with pytest.raises(kind.library.RemoteProtocolError):
            await http.get("http://orders/drop?kept=1", extensions={"clientlb": {"retry": False}})
    assert one.failures == 0


async def test_of_a_users_own_transport_the_age_is_not_known(kind: Kind, one: One) -> None:
    own = getattr(kind.library, "AsyncHTTPTransport" if kind.is_async else "HTTPTransport")
    async with kind.client(one.services, inner=lambda _: own()) as http:
        await http.get("http://orders/")
        assert (await http.get("http://orders/drop?kept=1")).status_code == 200
    assert one.failures == 1


async def test_what_the_body_raises_is_not_taken_for_a_broken_connection(kind: Kind, one: One) -> None:
    async with kind.client(one.services) as http:
        await http.get("http://orders/")
        with pytest.raises(kind.library.ReadError):
            await http.request("PUT", "http://orders/", content=kind.body(b"x", kind.library.ReadError("of another")))
    assert one.failures == 0
    assert one.retries == 0


async def test_a_server_killed_under_kept_connections_costs_no_get_and_no_new_blame(kind: Kind, start: Any) -> None:
    killed, survivor = start("a"), start("b")
    options = clientlb.Options(policy="round_robin")
    addresses = [killed.address, survivor.address]
    with clientlb.Services(ManualDiscovery({"orders": addresses}), options=options) as services:
        async with kind.client(services) as http:
            for _ in range(4):
                await http.get("http://orders/")
            killed.kill()
            for _ in range(6):  # POSTs too: httpx sees that the connection is closed, and a new one is refused
                assert (await http.post("http://orders/", content=b"x")).json()["server"] == "b"
