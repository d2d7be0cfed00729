"""Connections are kept per endpoint, closed when the endpoint leaves, and belong to one process and one event loop."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType

import pytest

import clientlb
import clientlb.httpx
import clientlb.httpx2
from clientlb.testing import ManualDiscovery
from tests.http.conftest import Kind, Process, settle
from tests.http.server import HOSTS
from tests.servers.process import wait_until

Start = Callable[..., Process]
IN_TURN = clientlb.Options(policy="round_robin")


def open_connections(server: Process) -> int:
    return server.figures()["open"] - 1  # the question itself has one


@pytest.fixture(scope="module")
def module_server() -> Iterator[Process]:
    server = Process("a")
    yield server
    server.stop()


@pytest.fixture
def server(module_server: Process) -> Process:
    """Nobody but the test is connected to it."""
    wait_until(lambda: open_connections(module_server) == 0, what="the connections of earlier tests are closed")
    return module_server


@pytest.fixture
def registry(server: Process) -> ManualDiscovery:
    """`orders` has thirty endpoints."""
    return ManualDiscovery({"orders": [f"{host}:{server.port}" for host in HOSTS]})


@pytest.fixture
def services(registry: ManualDiscovery) -> Iterator[clientlb.Services]:
    with clientlb.Services(registry, options=IN_TURN) as services:
        yield services


async def test_every_endpoint_keeps_its_connection(kind: Kind, server: Process, services: clientlb.Services) -> None:
    before = server.figures()
    limits = kind.library.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=60)
    async with kind.client(services, limits=limits) as http:  # as by default, but for a machine that takes its time
        for _ in range(300):
            await http.get("http://orders/")
        after = server.figures()
    assert after["calls"]["/"] - before["calls"].get("/", 0) == 300
    assert after["opened"] - before["opened"] - 1 == len(HOSTS)
    wait_until(lambda: open_connections(server) == 0, what="the client's connections are closed")


STAYING = HOSTS[: 2 * len(HOSTS) // 3]
"""So many that the guard believes at once that the others have left."""


async def test_connections_to_endpoints_that_left_are_closed(
    kind: Kind, server: Process, registry: ManualDiscovery, services: clientlb.Services
) -> None:
    async with kind.client(services) as http:
        for _ in HOSTS:
            await http.get("http://orders/")
        assert open_connections(server) == len(HOSTS)
        registry.set("orders", [f"{host}:{server.port}" for host in STAYING])
        # no call has to come for that
        left = partial(wait_until, lambda: open_connections(server) == len(STAYING), what="leavers are closed")
        await asyncio.to_thread(left)
        await http.get("http://orders/")


async def test_a_call_to_an_endpoint_that_left_finishes_first(
    kind: Kind, server: Process, registry: ManualDiscovery, services: clientlb.Services
) -> None:
    registry.set("orders", [f"{HOSTS[0]}:{server.port}"])
    async with kind.client(services) as http:
        async with http.stream("http://orders/stream?chunks=3&pause=0.1") as response:
            successor = f"{HOSTS[1]}:{server.port}"
            registry.set("orders", [f"{HOSTS[0]}:{server.port}", successor])
            registry.set("orders", [successor])
            await http.get("http://orders/")
            assert open_connections(server) == 2
            parts = [part async for part in http.chunks(response)]
            assert b"".join(parts).count(b";") == 3
        wait_until(lambda: open_connections(server) == 1, what="the connection to the one that left is closed")


async def test_only_so_many_idle_connections_are_kept(kind: Kind, server: Process, services: clientlb.Services) -> None:
    async with kind.client(services, max_idle=4) as http:
        for _ in range(3 * len(HOSTS)):
            await http.get("http://orders/")
        wait_until(lambda: open_connections(server) <= 5, what="four idle ones and the last one")


@pytest.mark.parametrize("max_idle", [-1, 1.5, None])
def test_max_idle_must_be_possible(kind: Kind, services: clientlb.Services, max_idle: object) -> None:
    with pytest.raises(clientlb.ConfigurationError, match="max_idle"):
        kind.client_type(services, max_idle=max_idle)


async def test_an_interrupted_call_gives_its_connection_back(
    kind: Kind, registry: ManualDiscovery, services: clientlb.Services
) -> None:
    class Interrupt(BaseException):
        pass

    closed: list[str] = []

    class Inner(kind.library.MockTransport):  # type: ignore[misc, name-defined]
        def __init__(self, endpoint: clientlb.Endpoint) -> None:
            super().__init__(self.answer)
            self.host = endpoint.host

        def answer(self, request: object) -> object:
            if self.host == HOSTS[0]:
                raise Interrupt
            return kind.library.Response(200)

        def close(self) -> None:
            closed.append(self.host)

        async def aclose(self) -> None:
            closed.append(self.host)

    registry.set("orders", [HOSTS[0] + ":80"])
    async with kind.client(services, inner=Inner) as http:
        with pytest.raises(Interrupt):
            await http.get("http://orders/")
        registry.set("orders", [HOSTS[0] + ":80", HOSTS[1] + ":80"])
        registry.set("orders", [HOSTS[1] + ":80"])
        await http.get("http://orders/")
        assert closed == [HOSTS[0]]
    assert closed == HOSTS[:2]


async def test_a_call_that_is_ended_by_closing_the_client_is_not_made_again(
    kind: Kind, server: Process, services: clientlb.Services
) -> None:
    before = server.figures()["calls"].get("/linger", 0)
    async with kind.client(services) as http:
        get = http.client.get if kind.is_async else partial(asyncio.to_thread, http.client.get)
        call = asyncio.create_task(get("http://orders/linger?seconds=10"))
        began = partial(wait_until, lambda: server.figures()["calls"].get("/linger", 0) > before, what="the call runs")
        await asyncio.to_thread(began)
        await http.close()
        with pytest.raises(kind.library.ReadError):
            await call
    assert services["orders"].stats().failures == 0  # it was our own doing
    assert sum(endpoint.failures for endpoint in services["orders"].stats().endpoints) == 0
    wait_until(lambda: open_connections(server) == 0, what="no connection is left")


async def test_a_transport_that_cannot_be_closed_harms_no_call(
    kind: Kind, registry: ManualDiscovery, services: clientlb.Services
) -> None:
    base = kind.library.MockTransport

    class Stubborn(base):  # type: ignore[misc, valid-type]
        def close(self) -> None:
            raise OSError("no")

        async def aclose(self) -> None:
            raise OSError("no")

    async with kind.client(services, inner=lambda _: Stubborn(lambda _: kind.library.Response(200))) as http:
        for _ in HOSTS:
            await http.get("http://orders/")
        registry.set("orders", ["127.0.0.1:1"])
        assert (await http.get("http://orders/")).status_code == 200


@pytest.fixture
def own_server(start: Start) -> Process:
    """For tests whose connections nobody closes: they belong to a child or to an event loop that has ended."""
    return start("own")


@pytest.fixture
def own_services(own_server: Process) -> Iterator[clientlb.Services]:
    endpoints = [f"{host}:{own_server.port}" for host in HOSTS]
    with clientlb.Services(ManualDiscovery({"orders": endpoints}), options=IN_TURN) as services:
        yield services


def test_a_forked_child_connects_anew(kind: Kind, own_server: Process, own_services: clientlb.Services) -> None:
    client = kind.client_type(own_services)

    def call_once() -> dict[str, int]:
        async def call() -> dict[str, int]:
            answer: dict[str, int] = (await settle(client.get("http://orders/"))).json()
            return answer

        return asyncio.run(call())

    for _ in HOSTS:
        call_once()
    before = own_server.figures()["opened"]
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, json.dumps([call_once()["server"] for _ in HOSTS]).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert json.loads(pipe.read()) == ["own"] * len(HOSTS)
    os.waitpid(pid, 0)
    opened = own_server.figures()["opened"]
    assert opened - before - 1 == len(HOSTS)  # the child has touched none of the parent's connections
    if kind.is_async:
        return  # each asyncio.run of the parent has connections of its own anyhow
    for _ in HOSTS:
        assert call_once()["server"] == "own"
    assert own_server.figures()["opened"] == opened + 1
    client.close()


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("flavour", [clientlb.httpx, clientlb.httpx2])
def test_an_async_client_serves_many_event_loops(
    flavour: ModuleType, at_once: bool, own_services: clientlb.Services
) -> None:
    client = flavour.AsyncClient(own_services)
    statuses: list[int] = []

    async def calls() -> None:
        statuses.extend([(await client.get("http://orders/")).status_code for _ in range(40)])

    if at_once:
        threads = [threading.Thread(target=asyncio.run, args=(calls(),)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        for _ in range(3):
            asyncio.run(calls())
    assert statuses == [200] * 120
    asyncio.run(client.aclose())
