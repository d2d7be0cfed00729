"""A program that forks while it has connections and an open response: `python -m tests.http.forking FLAVOUR KIND`.

Locks of the parent are held by another thread at the moment of the fork; in the child they are never free again. The
child says what came of it by its exit status: 0, or 1 with a traceback, or it hangs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from clientlb import Services
from clientlb.testing import ManualDiscovery, ScriptedServer

PATIENCE = 20


def in_a_child(work: Callable[[], None]) -> None:
    """Work in a forked child; it must succeed, and end as programs do."""
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        return
    signal.alarm(PATIENCE)  # it hangs
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


@contextmanager
def held_elsewhere(*locks: Any) -> Iterator[None]:
    """Another thread has these locks."""
    taken, over = threading.Event(), threading.Event()

    def hold() -> None:
        for lock in locks:
            lock.acquire()
        taken.set()
        over.wait()
        for lock in locks:
            lock.release()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()


def near_end(response: Any) -> tuple[str, int]:
    """The client's address of the connection that a response came through."""
    address: tuple[str, int] = response.extensions["network_stream"].get_extra_info("client_addr")
    return address


def pool_lock(link: Any) -> Any:
    return link.transport._pool._optional_thread_lock._lock


def blocking(flavour: str, service_url: str, ordinary_url: str, services: Services) -> None:
    http = import_module(f"clientlb.{flavour}").Client(services, timeout=10.0)
    service, ordinary = (near_end(http.get(url)) for url in (service_url, ordinary_url))
    unfinished = http.send(http.build_request("GET", service_url), stream=True)
    parts = unfinished.iter_raw(1)
    next(parts)
    links = http._mounts[next(iter(http._mounts))]._links
    [link] = links._links.values()

    def child() -> None:
        parts.close()
        unfinished.close()
        assert near_end(http.get(service_url)) != service
        assert near_end(http.get(ordinary_url)) != ordinary
        assert [node.in_flight for node in services["orders"].nodes] == [0]
        http.close()

    with held_elsewhere(links._lock, pool_lock(link), services["orders"]._roster.lock):
        in_a_child(child)
    assert [node.in_flight for node in services["orders"].nodes] == [1]
    assert b"".join(parts), "the rest"
    assert [node.in_flight for node in services["orders"].nodes] == [0]
    assert near_end(http.get(service_url)) == service, "the parent's connections are unharmed"
    assert near_end(http.get(ordinary_url)) == ordinary
    http.close()


def asynchronous(flavour: str, service_url: str, ordinary_url: str, services: Services) -> None:
    http = import_module(f"clientlb.{flavour}").AsyncClient(services, timeout=10.0)
    state: dict[str, Any] = {}

    async def begin() -> None:
        state["service"], state["ordinary"] = [near_end(await http.get(url)) for url in (service_url, ordinary_url)]
        state["unfinished"] = await http.send(http.build_request("GET", service_url), stream=True)

    async def child() -> None:
        await state["unfinished"].aclose()
        assert near_end(await http.get(service_url)) != state["service"]
        assert near_end(await http.get(ordinary_url)) != state["ordinary"]
        assert [node.in_flight for node in services["orders"].nodes] == [0]
        await http.aclose()

    async def end() -> None:
        assert [node.in_flight for node in services["orders"].nodes] == [1]
        assert await state["unfinished"].aread()
        assert [node.in_flight for node in services["orders"].nodes] == [0]
        assert near_end(await http.get(service_url)) == state["service"]
        assert near_end(await http.get(ordinary_url)) == state["ordinary"]
        await http.aclose()

    with asyncio.Runner() as runner:
        runner.run(begin())
        shell = http._mounts[next(iter(http._mounts))]
        [links] = shell._by_loop.values()
        with held_elsewhere(links._lock, shell._lock, services["orders"]._roster.lock):
            in_a_child(lambda: asyncio.run(child()))
        runner.run(end())


def main(flavour: str, kind: str) -> None:
    with ScriptedServer() as server:
        registry = ManualDiscovery({"orders": [server.endpoint]})
        urls = "http://orders/", f"http://{server.address}/"
        with Services(registry) as services:
            (blocking if kind == "sync" else asynchronous)(flavour, *urls, services)


if __name__ == "__main__":
    main(*sys.argv[1:])
