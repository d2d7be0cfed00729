"""The async clients run where those of httpx do: asyncio, uvloop, trio. Cancellation leaves nothing behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import httpx
import httpx2
import pytest
import trio

import clientlb
import clientlb.httpx
import clientlb.httpx2
from clientlb.testing import ManualDiscovery
from tests.http.conftest import Process
from tests.servers.process import free_ports, wait_until

LIBRARY = {clientlb.httpx: httpx, clientlb.httpx2: httpx2}
Run = Callable[[Callable[[], Awaitable[Any]]], Any]


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine function in an event loop of each kind."""

    def run(function: Callable[[], Awaitable[Any]]) -> Any:
        if request.param == "trio":
            return trio.run(function)
        return anyio.run(function, backend_options={"use_uvloop": request.param == "uvloop"})

    return run


@pytest.fixture(params=[clientlb.httpx, clientlb.httpx2], ids=["httpx", "httpx2"])
def flavour(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


@pytest.fixture
def own_server(start: Callable[..., Process]) -> Process:
    return start("own")


@pytest.fixture
def services(own_server: Process) -> Iterator[clientlb.Services]:
    options = clientlb.Options(policy="round_robin", health=clientlb.HealthOptions(consecutive_failures=1000))
    with clientlb.Services(ManualDiscovery({"orders": [own_server.address]}), options=options) as services:
        yield services


def in_flight(services: clientlb.Services) -> int:
    return sum(node.in_flight for node in services["orders"].nodes)


def failures(services: clientlb.Services) -> int:
    return sum(endpoint.failures for endpoint in services["orders"].stats().endpoints)


def sockets() -> int:
    """How many this process has open."""
    gc.collect()
    descriptors = Path("/proc/self/fd")
    return sum(is_socket(path) for path in descriptors.iterdir())


def is_socket(descriptor: Path) -> bool:
    try:
        return str(descriptor.readlink()).startswith("socket:")
    except FileNotFoundError:  # that of the listing itself
        return False


def pools(client: Any) -> list[Any]:
    """The connection pools of a client's balanced transport."""
    shell = next(iter(mount for mount in client._mounts if hasattr(mount, "_shell")))._shell
    return [link.transport._pool for links in shell._by_loop.values() for link in links._links.values()]


def test_calls_bodies_and_errors(run: Run, flavour: ModuleType, services: clientlb.Services) -> None:
    async def body() -> Any:
        yield b"one"
        yield b"two"

    async def main() -> None:
        async with flavour.AsyncClient(services, timeout=5) as http:
            assert (await http.get("http://orders/x")).json()["target"] == "/x"
            assert (await http.put("http://orders/", content=body())).json()["body"] == "onetwo"
            async with http.stream("GET", "http://orders/stream?chunks=3") as response:
                assert len([part async for part in response.aiter_raw()]) >= 1
            async with http.stream("GET", "http://orders/stream?chunks=1000&pause=0.01") as response:
                async for _ in response.aiter_raw():
                    break
            with pytest.raises(LIBRARY[flavour].RemoteProtocolError):
                await http.get("http://orders/break")
            with anyio.move_on_after(0.2) as scope:
                await http.get("http://orders/sleep?seconds=30")
            assert scope.cancelled_caught

    run(main)
    assert in_flight(services) == 0
    assert failures(services) == 1  # the broken body, and nothing else


def test_a_retry_sleeps_and_goes_elsewhere(run: Run, flavour: ModuleType, own_server: Process) -> None:
    addresses = [own_server.address, f"127.0.0.1:{free_ports(1)[0]}"]
    with clientlb.Services(ManualDiscovery({"orders": addresses})) as services:

        async def main() -> list[int]:
            async with flavour.AsyncClient(services) as http:
                refused = [(await http.post("http://orders/", content=b"x")).status_code for _ in range(4)]
                slept = (await http.get("http://orders/status?status=503")).status_code
                return [*refused, slept]

        assert run(main) == [200] * 4 + [503]


def test_a_call_waits_for_the_first_list(run: Run, flavour: ModuleType, own_server: Process) -> None:
    registry = ManualDiscovery()
    with clientlb.Services(registry, options=clientlb.Options(wait_for_endpoints=30)) as services:
        soon = threading.Timer(0.1, registry.set, ("orders", [own_server.address]))

        async def main() -> Any:
            soon.start()
            async with flavour.AsyncClient(services) as http:
                return (await http.get("http://orders/")).json()["server"]

        assert run(main) == "own"
        soon.join()


def test_waiting_for_the_first_list_ends(run: Run, flavour: ModuleType) -> None:
    async def main() -> None:
        options = clientlb.Options(wait_for_endpoints=0.05)
        async with (
            clientlb.Services(ManualDiscovery(), options=options) as services,
            flavour.AsyncClient(services) as http,
        ):
            with pytest.raises(flavour.NoEndpointsError):
                await http.get("http://orders/")
            with anyio.move_on_after(0.01):
                await http.get("http://orders/")

    run(main)


def test_the_decorator_runs_there_too(run: Run, services: clientlb.Services) -> None:
    tried: list[str] = []

    @services.balanced("orders", idempotent=True)
    async def load(endpoint: clientlb.Endpoint) -> str:
        tried.append(endpoint.address)
        if len(tried) == 1:
            raise ConnectionResetError
        return endpoint.address

    async def main() -> str:
        return await load()

    assert run(main) == tried[0]
    assert len(tried) == 2


@pytest.mark.parametrize("path", ["sleep?seconds=30", "stream?chunks=1000&pause=0.05"])
def test_two_hundred_cancelled_calls_leave_nothing_behind(
    run: Run, flavour: ModuleType, services: clientlb.Services, path: str
) -> None:
    before = sockets()

    async def main() -> None:
        async with flavour.AsyncClient(services, timeout=60) as http:
            assert (await http.get("http://orders/")).status_code == 200
            async with anyio.create_task_group() as group:
                for number in range(200):
                    group.start_soon(cancelled, http, number)
            assert in_flight(services) == 0
            for pool in pools(http):
                assert not pool._requests
                assert all(connection.is_idle() or connection.is_closed() for connection in pool.connections)
            assert (await http.get("http://orders/")).status_code == 200

    async def cancelled(http: Any, number: int) -> None:
        # so short that some are cancelled while they connect, so long that some wait for an answer, or for a connection
        with anyio.move_on_after(0.002 * number):
            await http.get(f"http://orders/{path}")
            raise AssertionError("the answer takes longer than this")

    run(main)
    assert in_flight(services) == 0
    assert failures(services) == 0
    assert sockets() == before


def test_loops_in_threads_share_one_services(flavour: ModuleType, services: clientlb.Services) -> None:
    """Three kinds of event loop and plain threads at once, over one `Services` and one async client."""
    shared = flavour.AsyncClient(services)
    statuses: list[int] = []
    ready, leave = threading.Barrier(7), threading.Event()

    async def calls() -> None:
        statuses.extend([(await shared.get("http://orders/")).status_code for _ in range(30)])
        ready.wait()  # each loop is still there when the client is closed in one of them
        await anyio.to_thread.run_sync(leave.wait)

    def sync_calls() -> None:
        with flavour.Client(services) as http:
            statuses.extend(http.get("http://orders/").status_code for _ in range(30))

    def close_in_a_seventh_loop() -> None:
        ready.wait()
        anyio.run(shared.aclose)
        anyio.run(shared.aclose)

    loops = [lambda uvloop=uvloop: anyio.run(calls, backend_options={"use_uvloop": uvloop}) for uvloop in (True, False)]
    targets = [*loops * 2, lambda: trio.run(calls), lambda: trio.run(calls), sync_calls, sync_calls]
    threads = [threading.Thread(target=target) for target in targets]
    for thread in threads:
        thread.start()
    close_in_a_seventh_loop()
    wait_until(
        lambda: not any(connection for pool in pools(shared) for connection in pool.connections),
        what="the connections of all loops are closed, each in its own",
    )
    leave.set()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 30 * 8
    assert in_flight(services) == 0


def test_runs_that_are_over_are_forgotten(run: Run, flavour: ModuleType, services: clientlb.Services) -> None:
    client = flavour.AsyncClient(services)

    async def call() -> None:
        assert (await client.get("http://orders/")).status_code == 200

    for _ in range(3):
        run(call)
    assert len(pools(client)) == 1  # only the last run's: it is noticed when the next one begins
    run(client.aclose)
