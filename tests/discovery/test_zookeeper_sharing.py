"""One session and one thread for everybody in a process who uses the same ZooKeeper."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from kazoo.client import KazooClient

from clientlb.discovery.zookeeper import ZooKeeperDiscovery
from clientlb.endpoint import Endpoint
from clientlb.registration import register
from clientlb.registration.zookeeper import ZooKeeperRegistrar
from tests.conftest import running
from tests.discovery.watching import QUICK, Watched, watching
from tests.discovery.zookeeper_writing import put, writing
from tests.servers.process import wait_until
from tests.servers.zookeeper import ZooKeeperServer


@pytest.fixture(scope="module")
def server() -> Iterator[ZooKeeperServer]:
    """A server that nobody else uses, so that its sessions can be counted."""
    with running(ZooKeeperServer()) as server:
        yield server


def expect_sessions(server: ZooKeeperServer, count: int) -> None:
    wait_until(lambda: server.sessions == count, what=f"{count} sessions")


def test_discovery_and_registration_share_a_session(server: ZooKeeperServer, service: str) -> None:
    with watching(ZooKeeperDiscovery(server.hosts), service) as seen:
        with (
            watching(ZooKeeperDiscovery(server.hosts, "/services"), service) as too,
            register(service, port=1, to=server.url) as mine,
            register(service, port=2, to=server.url),
        ):
            assert mine.wait(10)
            seen.expect(1, 2)
            too.expect(1, 2)
            expect_sessions(server, 1)
        seen.expect(timeout=6.0)  # their nodes are gone, and the session is not
        expect_sessions(server, 1)
        with (
            register(service, port=3, to=server.url, ttl=4.0),
            watching(ZooKeeperDiscovery(server.hosts, session_timeout=4.0), service) as too,
        ):
            for each in (seen, too):
                each.expect(3)
            expect_sessions(server, 2)  # who wants another session timeout needs another session
    expect_sessions(server, 0)


def test_what_was_shared_is_made_again(server: ZooKeeperServer, service: str) -> None:
    with writing(server.hosts) as client:
        for port in (1, 2):
            put(client, service, port)
            with watching(ZooKeeperDiscovery(server.hosts), service) as seen:
                seen.expect(*range(1, port + 1))
            expect_sessions(server, 1)


def test_other_options_are_another_session(server: ZooKeeperServer, service: str) -> None:
    with (
        watching(ZooKeeperDiscovery(server.hosts), service) as seen,
        watching(ZooKeeperDiscovery(server.hosts, credentials="me:s3cret"), service) as other,
    ):
        for each in (seen, other):
            each.expect()
        expect_sessions(server, 2)


def test_kinds_of_watches_do_not_disturb_each_other(server: ZooKeeperServer, service: str) -> None:
    """Of one session and node, the servers keep one kind of watch, and remove all of them together."""
    with (
        writing(server.hosts) as client,
        watching(ZooKeeperDiscovery(server.hosts, persistent_watches=False), service) as one_shot,
        watching(ZooKeeperDiscovery(server.hosts), f"{service}-other"),  # so that the session stays
    ):
        # It has asked for the node by now, which is not there. Had the node come between its two questions, a watch of
        # its data would stay, which the servers do name.
        one_shot.expect()
        with watching(ZooKeeperDiscovery(server.hosts), service) as persistent:
            for port in (1, 2, 3):
                put(client, service, port)
                for seen in (one_shot, persistent):
                    seen.expect(*range(1, port + 1))
        # the servers name no watches for children, so this is the persistent one
        wait_until(lambda: f"/services/{service}\n" not in server.ask("wchp"), what="it has left")
        put(client, service, 4)
        one_shot.expect(1, 2, 3, 4)


def test_two_discoveries_with_one_client(server: ZooKeeperServer, service: str) -> None:
    with writing(server.hosts) as client:
        first, second = (ZooKeeperDiscovery(server.hosts, client=client, persistent_watches=True) for _ in range(2))
        with watching(first, service) as seen:
            seen.expect()
            for name in (service, f"{service}-other"):  # when it reads the other one, it has left this one
                resolver, too = second.resolver(name), Watched()
                resolver.start(too)
                too.expect()
                resolver.close()
            put(client, service, 1)
            seen.expect(1)
            ear = client._connection._read_watch_event
            assert len(ear.heard) == 2
            second.close()
            assert len(ear.heard) == 1
            assert client._connection._read_watch_event is ear  # one, however many there have been


def test_closing_one_watch_leaves_the_others(server: ZooKeeperServer, service: str) -> None:
    discovery = ZooKeeperDiscovery(server.hosts)
    with writing(server.hosts) as client, watching(discovery, service) as seen:
        same, other = Watched(), Watched()
        resolvers = discovery.resolver(service), discovery.resolver(f"{service}-other")
        for resolver, listener in zip(resolvers, (same, other), strict=True):
            resolver.start(listener)
            listener.expect()
        for resolver in resolvers:
            resolver.close()
        wait_until(lambda: f"{service}-other" not in server.ask("wchp"), what="the server forgot it too")
        put(client, service, 1)
        seen.expect(1)
        assert (same.ports, other.ports) == (set(), set())
        resolver = discovery.resolver(f"{service}-other")  # watched again
        resolver.start(other)
        other.expect()
        put(client, f"{service}-other", 2)
        other.expect(2)
        resolver.close()


def test_thousand_services(server: ZooKeeperServer, service: str) -> None:
    count = 1000
    discovery = ZooKeeperDiscovery(server.hosts)
    listeners = [Watched() for _ in range(count)]
    threads = threading.active_count()
    with ExitStack() as closing:
        closing.callback(discovery.close)
        client = closing.enter_context(writing(server.hosts))
        client.ensure_path("/services")
        creations = [
            client.create_async(f"/services/{service}-{n}{node}", data)
            for first in range(0, count, 50)
            for node, data in (("", b""), ("/a", b'{"host": "10.0.0.1", "port": 80}'))
            for n in range(first, first + 50)
        ]
        for creation in creations:
            creation.get(10)
        started = time.process_time()
        for n, listener in enumerate(listeners):
            discovery.resolver(f"{service}-{n}").start(listener)
        wait_until(lambda: all(each.ports == {80} for each in listeners), 30, "all first lists")
        assert time.process_time() - started < 10
        assert threading.active_count() < threads + 10
        client.create(f"/services/{service}-500/b", b'{"host": "10.0.0.1", "port": 81}')
        listeners[500].expect(80, 81)
        assert sum(len(each.updates) for each in listeners) == count + 1  # one change, one delivery
        server.restart()
        client = closing.enter_context(writing(server.hosts))  # the old one takes its time to come back
        for n in (0, 999):
            client.create(f"/services/{service}-{n}/b", b'{"host": "10.0.0.1", "port": 82}')
        listeners[0].expect(80, 82)
        listeners[999].expect(80, 82)
        assert listeners[1].ports == {80}
        started = time.monotonic()
        discovery.close()
        assert time.monotonic() - started < QUICK


def test_closing_while_the_server_hangs(own_zookeeper: ZooKeeperServer, service: str) -> None:
    discovery, registrar = ZooKeeperDiscovery(own_zookeeper.hosts), ZooKeeperRegistrar(own_zookeeper.hosts)
    resolver, seen = discovery.resolver(service), Watched()
    resolver.start(seen)
    registrar.announce(service, Endpoint("10.0.0.1", 80), 10.0)
    seen.expect(80)
    own_zookeeper.signal(signal.SIGSTOP)
    try:
        for closing in (resolver, registrar, discovery):
            started = time.monotonic()
            closing.close()
            assert time.monotonic() - started < 2.0  # kazoo waits for seven seconds
    finally:
        own_zookeeper.signal(signal.SIGCONT)


def test_node_of_a_registration_that_ended_in_an_outage(own_zookeeper: ZooKeeperServer, service: str) -> None:
    """The session goes on, for somebody else uses it; the node must not."""
    with watching(ZooKeeperDiscovery(own_zookeeper.hosts), service) as seen:
        with register(service, port=80, to=own_zookeeper.url, id="one") as mine:
            assert mine.wait(10)
            seen.expect(80)
            own_zookeeper.kill()
            seen.expect_error("no session")
        own_zookeeper.start()
        seen.expect()


def test_client_of_the_user_hears_its_own_watches(server: ZooKeeperServer, service: str) -> None:
    """Also with persistent watches on it, and what was ours ends with us."""
    path = f"/services/{service}"
    with writing(server.hosts) as client:
        put(client, service, 1)
        theirs: list[str] = []
        discovery = ZooKeeperDiscovery(server.hosts, client=client, persistent_watches=True)
        with watching(discovery, service) as seen:
            seen.expect(1)
            client.get(f"{path}/1", watch=lambda event: theirs.append(event.path))
            put(client, service, 1, 2)
            seen.expect(1, 2)
            wait_until(lambda: theirs == [f"{path}/1"], what="their own watch")
        assert isinstance(client, KazooClient)
        assert client.connected
