"""A call that is cut short leaves nothing behind, wherever that happens: each point at which it waits is tried."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import anyio
import httpcore
import httpcore2
import httpx
import httpx2
import pytest

import clientlb
import clientlb.httpx
import clientlb.httpx2
from clientlb.testing import ManualDiscovery
from tests.http.wires import WAYS, Cancel, Net, SyncNet, run, stepping

Pieces = tuple[ModuleType, ModuleType, ModuleType]
FLAVOURS: dict[str, Pieces] = {
    "httpx": (clientlb.httpx, httpx, httpcore),
    "httpx2": (clientlb.httpx2, httpx2, httpcore2),
}
TRUST = ssl.create_default_context()
URL = {"http": "http://orders/", "https": "https://orders/"}


@pytest.fixture(params=FLAVOURS)
def pieces(request: pytest.FixtureRequest) -> Pieces:
    return FLAVOURS[request.param]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> type[Cancel]:
    return WAYS[request.param]


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch, pieces: Pieces) -> Callable[[Any], None]:
    """Gives all clients another network."""

    def plug(net: Any) -> None:
        for name in ("AnyIOBackend", "TrioBackend", "SyncBackend"):
            monkeypatch.setattr(pieces[2], name, lambda: net)

    return plug


class Bench:
    """A client with room for one connection, and what is left in it."""

    def __init__(self, pieces: Pieces, net: Any, *, is_async: bool = True, **arguments: Any) -> None:
        ours, library, _ = pieces
        registry = ManualDiscovery({"orders": ["127.0.0.1:1"]})
        self.net = net
        self.services = clientlb.Services(registry)
        make = ours.AsyncClient if is_async else ours.Client
        arguments = {"limits": library.Limits(max_connections=1), **arguments}
        # whoever waits for a place in the pool waits in vain
        self.http = make(self.services, verify=TRUST, timeout=library.Timeout(5, pool=0.2), **arguments)

    @property
    def pool(self) -> Any:
        shell = next(mount for mount in self.http._mounts if hasattr(mount, "_shell"))._shell
        (links,) = shell._all_links()
        (link,) = links._links.values()
        assert link.calls == 0
        return link.transport._pool

    def check(self) -> None:
        """Nothing is in use."""
        assert sum(node.in_flight for node in self.services["orders"].nodes) == 0
        assert not self.pool._requests
        assert all(each.is_idle() or each.is_closed() for each in self.pool.connections), self.pool.connections
        assert self.net.open == sum(not each.is_closed() for each in self.pool.connections)

    async def usable(self, url: str) -> None:
        """After all: the next call finds a place, and closing closes everything."""
        self.check()
        assert (await self.http.get(url)).content == b"hello"
        self.check()
        await self.http.aclose()
        assert self.net.open == 0
        self.services.close()

    def usable_sync(self, url: str) -> None:
        """The same for a sync client."""
        self.check()
        assert self.http.get(url).content == b"hello"
        self.check()
        self.http.close()
        assert self.net.open == 0
        self.services.close()


def at_every_step(try_one: Callable[[int], bool]) -> None:
    """Try a call that is cancelled at its first step, its second and so on, until one comes to its end before that."""
    step = 0
    while not try_one(step):
        step += 1
    assert step >= 3


@pytest.mark.parametrize("calls_before", [0, 1], ids=["new connection", "kept connection"])
@pytest.mark.parametrize("scheme", URL)
@pytest.mark.parametrize("often", [False, True], ids=["once", "again and again"])
def test_a_cancelled_call_leaves_nothing(
    plug: Callable[[Any], None], pieces: Pieces, way: type[Cancel], scheme: str, often: bool, calls_before: int
) -> None:
    url = URL[scheme]

    def try_one(step: int) -> bool:
        async def main() -> bool:
            plug(net := Net())
            bench, cancel = Bench(pieces, net), way()
            for _ in range(calls_before):
                await bench.http.get(url)

            def on_step(number: int) -> None:
                if number == step or (often and number > step):
                    cancel.now()

            ended = await cancel.run(lambda: stepping(bench.http.get(url), on_step))
            await bench.usable(url)
            return ended

        ended: bool = run(way, main)
        return ended

    at_every_step(try_one)


def test_a_cancelled_call_that_waits_for_a_connection_leaves_nothing(
    plug: Callable[[Any], None], pieces: Pieces, way: type[Cancel]
) -> None:
    """It may have been given one in the same moment: by a call that ends, each of whose steps is tried."""

    def try_one(step: int) -> bool:
        async def main() -> bool:
            plug(net := Net())
            bench, cancel = Bench(pieces, net), way()
            cancelled = False

            async def wait() -> None:
                async with anyio.create_task_group() as group:
                    with anyio.CancelScope():
                        await cancel.run(lambda: bench.http.get("http://orders/"))
                    group.cancel_scope.cancel()

            def on_step(number: int) -> None:
                nonlocal cancelled
                if number == step:
                    cancelled = True
                    cancel.now()

            async with anyio.create_task_group() as group:
                request = bench.http.build_request("GET", "http://orders/")
                response = await bench.http.send(request, stream=True)
                group.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                await stepping(response.aclose(), on_step)
                if not cancelled:  # but before it goes on
                    cancel.now()
            await bench.usable("http://orders/")
            return not cancelled

        ended: bool = run(way, main)
        return ended

    for _ in range(5):  # trio throws dice about who is next
        step = 0
        while not try_one(step):
            step += 1


@contextmanager
def released_too_late(monkeypatch: pytest.MonkeyPatch, core: ModuleType, kind: str) -> Iterator[list[Any]]:
    """Who waited too long for a connection is given one before it has gone: what the list does is done just then."""
    then: list[Any] = []
    pool = __import__(f"{core.__name__}._{kind}.connection_pool", fromlist=["_"])
    waiter = pool.AsyncPoolRequest if kind == "async" else pool.PoolRequest
    ordinary = waiter.wait_for_connection

    def wait(self: Any, timeout: float | None = None) -> Any:
        try:
            return ordinary(self, timeout)
        except core.PoolTimeout:
            then.pop()()
            raise

    async def wait_async(self: Any, timeout: float | None = None) -> Any:
        try:
            return await ordinary(self, timeout)
        except core.PoolTimeout:
            await then.pop()()
            raise

    with monkeypatch.context() as patch:
        patch.setattr(waiter, "wait_for_connection", wait_async if kind == "async" else wait)
        yield then


async def test_a_call_that_is_given_a_connection_too_late_leaves_nothing(
    plug: Callable[[Any], None], pieces: Pieces, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug(net := Net())
    bench = Bench(pieces, net)
    await bench.http.get("http://orders/")
    response = await bench.http.send(bench.http.build_request("GET", "http://orders/"), stream=True)
    with released_too_late(monkeypatch, pieces[2], "async") as then:
        then.append(response.aclose)
        with pytest.raises(pieces[1].PoolTimeout):
            await bench.http.get("http://orders/", extensions={"clientlb": {"retry": False}})
    await bench.usable("http://orders/")


def test_a_call_that_is_given_a_connection_too_late_leaves_nothing_in_threads(
    plug: Callable[[Any], None], pieces: Pieces, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug(net := SyncNet())
    bench = Bench(pieces, net, is_async=False)
    response = bench.http.send(bench.http.build_request("GET", "http://orders/"), stream=True)
    with released_too_late(monkeypatch, pieces[2], "sync") as then:
        then.append(response.close)
        with pytest.raises(pieces[1].PoolTimeout):
            bench.http.get("http://orders/", extensions={"clientlb": {"retry": False}})
    bench.usable_sync("http://orders/")


@pytest.mark.parametrize("calls_before", [0, 1], ids=["new connection", "kept connection"])
@pytest.mark.parametrize("scheme", URL)
def test_an_interrupted_call_leaves_nothing(
    plug: Callable[[Any], None], pieces: Pieces, scheme: str, calls_before: int
) -> None:
    url = URL[scheme]

    def try_one(step: int) -> bool:
        plug(net := SyncNet())
        bench = Bench(pieces, net, is_async=False)
        for _ in range(calls_before):
            bench.http.get(url)
        net.interrupt_in(step)
        try:
            bench.http.get(url)
            ended = True
        except KeyboardInterrupt:
            ended = False
        net.interrupt_in(None)
        bench.usable_sync(url)
        return ended

    at_every_step(try_one)
