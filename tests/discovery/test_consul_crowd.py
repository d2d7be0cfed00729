"""More services than connections: an agent's limit is kept, everybody has a turn, and closing is quick."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterator

import pytest

from clientlb.discovery import open_discovery
from clientlb.discovery.consul import ConsulDiscovery
from clientlb.endpoint import Endpoint
from clientlb.registration import register
from clientlb.registration.consul import ConsulRegistrar
from tests.conftest import running
from tests.discovery.scripted_agent import Reply, ScriptedAgent, entry
from tests.discovery.watching import QUICK, Watched
from tests.servers.consul import ConsulServer
from tests.servers.process import wait_until


@pytest.fixture
def narrow() -> Iterator[ConsulServer]:
    """An agent that takes 40 connections from us: four times what is asked for, as up to 20 were seen for a moment."""
    with running(ConsulServer(dev=True, extra={"limits": {"http_max_conns_per_client": 40}})) as server:
        yield server


def test_sixty_services_and_registrations_over_few_connections(narrow: ConsulServer, service: str) -> None:
    names = [f"{service}-{number}" for number in range(60)]
    registrar = ConsulRegistrar("127.0.0.1", narrow.port)
    discovery = open_discovery(f"{narrow.url}?max_connections=10&turn_within=1")
    watches = {name: Watched() for name in names}
    with register("other", port=1, to=narrow.url, ttl=1.0) as other:
        for name, watch in watches.items():
            discovery.resolver(name).start(watch)
        wait_until(lambda: all(watch.ports == set() for watch in watches.values()), 30, "all have their first list")
        for port in (80, 81):
            for name in names:
                registrar.announce(name, Endpoint("10.0.0.1", port, f"{name}-{port}"), 60.0)
        wait_until(lambda: all(watch.ports == {80, 81} for watch in watches.values()), 30, "all see both instances")
        assert other.last_error is None
    started = time.monotonic()
    discovery.close()
    assert time.monotonic() - started < QUICK
    assert not [error for watch in watches.values() for error in watch.errors]
    registrar.close()


def asks(agent: ScriptedAgent) -> dict[str, list[float]]:
    """Service -> how long each of its questions that had an index would have waited, in seconds."""
    waits = defaultdict(list)
    for path, query in zip(agent.paths, agent.queries, strict=True):
        if query["index"] != "0":
            waits[path.partition("?")[0].rpartition("/")[2]].append(float(query["wait"].removesuffix("ms")) / 1000)
    return waits


def test_turns_are_fair_and_end_when_the_crowd_leaves(service: str) -> None:
    held = threading.Semaphore(0)

    def script(query: dict[str, str]) -> Reply:
        if query["index"] != "0":
            held.acquire(timeout=float(query["wait"].removesuffix("ms")) / 1000)
        return Reply([entry(80)])

    with ScriptedAgent(script) as agent:
        discovery = ConsulDiscovery("127.0.0.1", agent.port, max_connections=4, turn_within=0.5, wait=30.0)
        resolvers = [discovery.resolver(f"{service}-{number}") for number in range(12)]
        listeners = [Watched() for _ in resolvers]
        for resolver, listener in zip(resolvers, listeners, strict=True):
            resolver.start(listener)
        wait_until(lambda: all(listener.ports == {80} for listener in listeners), 30, "all have a list")
        wait_until(lambda: len(asks(agent)) >= 9, 30, "those without a connection of their own take turns")
        for _ in range(3):
            held.release()  # whoever waited for the full time may take turns too
        wait_until(lambda: len(asks(agent)) == 12, 30, "everybody had a turn")
        assert max(waits[-1] for waits in asks(agent).values()) <= 1.0
        for resolver in resolvers[2:]:
            resolver.close()
        wait_until(lambda: asks(agent)[f"{service}-0"][-1] == 30.0, 30, "nobody is in a hurry any more")
        wait_until(lambda: asks(agent)[f"{service}-1"][-1] == 30.0, 30, "nobody is in a hurry any more")
        wait_until(lambda: len(crew()) == 2, 30, "two watches need two threads")
        discovery.close()
        wait_until(lambda: not crew(), 30, "the threads ended")


def test_a_new_watch_waits_for_nobody(service: str) -> None:
    over = threading.Event()

    def script(query: dict[str, str]) -> Reply:
        if query["index"] != "0":
            over.wait(30)
        return Reply([entry(80)])

    with ScriptedAgent(script) as agent:
        discovery = ConsulDiscovery("127.0.0.1", agent.port, max_connections=8, turn_within=100.0)
        try:
            for number in range(12):
                discovery.resolver(f"{service}-{number}").start(Watched())
            wait_until(lambda: len(asks(agent)) == 7, 30, "all that may wait do")
            late = Watched()
            discovery.resolver(f"{service}-late").start(late)
            late.expect(80, timeout=20.0)
        finally:
            over.set()
            discovery.close()


def crew() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("clientlb-consul-")]


def test_two_hundred_watches_close_at_once(consul: ConsulServer, service: str) -> None:
    """With the default of 64 connections: far from an agent's limit of 200, and closed in half a second."""
    listeners = [Watched() for _ in range(200)]
    discovery = open_discovery(consul.url)
    resolvers = [discovery.resolver(f"{service}-{number}") for number in range(200)]
    for resolver, listener in zip(resolvers, listeners, strict=True):
        resolver.start(listener)
    wait_until(lambda: all(listener.ports == set() for listener in listeners), 20, "all have their first list")
    assert len(crew()) <= 64
    started = time.monotonic()
    for resolver in resolvers[:100]:
        resolver.close()
    discovery.close()
    assert time.monotonic() - started < QUICK
    assert not [error for listener in listeners for error in listener.errors]


def test_an_error_of_one_service_is_its_own(service: str, caplog: pytest.LogCaptureFixture) -> None:
    """A listener that raises ends nothing, not even with one thread for all."""

    class Raising(Watched):
        def update(self, endpoints: object) -> None:
            raise RuntimeError("a bug of the user")

    with ScriptedAgent(lambda query: Reply([entry(80)])) as agent, caplog.at_level(logging.ERROR, "clientlb"):
        discovery = ConsulDiscovery("127.0.0.1", agent.port, max_connections=1, turn_within=0.1)
        other = Watched()
        discovery.resolver(f"{service}-1").start(Raising())
        discovery.resolver(f"{service}-2").start(other)
        other.expect(80)
        wait_until(lambda: "a bug of the user" in caplog.text, 30, "it is in the log")
        discovery.close()
