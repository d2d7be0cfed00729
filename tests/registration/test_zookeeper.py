"""Registration in real ZooKeeper servers: the node is there, survives what it should and ends when it should."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from kazoo.client import KazooClient

from clientlb.discovery import Discovery, open_discovery
from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError, RegistrationError
from clientlb.registration import register
from clientlb.registration.zookeeper import ZooKeeperRegistrar
from clientlb.testing import RegistrarContract
from tests.discovery.watching import QUICK, watching
from tests.registration.leaving import registered_process
from tests.servers.process import free_ports, wait_until
from tests.servers.zookeeper import ZooKeeperServer


@contextmanager
def observing(server: ZooKeeperServer, **more: Any) -> Iterator[KazooClient]:
    client = KazooClient(server.hosts, connection_retry={"max_tries": -1, "max_delay": 0.5}, **more)
    client.start(15)
    try:
        yield client
    finally:
        client.stop()
        client.close()


class TestContract(RegistrarContract):
    """The checks that every registrar has to pass."""

    secret = "s3cret"

    @pytest.fixture(autouse=True)
    def _registry(self, zookeeper: ZooKeeperServer, service: str) -> None:
        self.url = f"zookeeper://me:{self.secret}@{zookeeper.hosts}/contract/{service}"

    def make_registrar(self) -> ZooKeeperRegistrar:
        return ZooKeeperRegistrar.from_url(self.url)

    def make_discovery(self) -> Discovery:
        return open_discovery(self.url)


def names(client: KazooClient, service: str) -> list[str]:
    path = f"/services/{service}"
    return list(client.get_children(path)) if client.exists(path) else []


def test_what_is_written(zookeeper: ZooKeeperServer, service: str) -> None:
    with (
        observing(zookeeper) as client,
        register(service, port=80, to=zookeeper.url, host="10.0.0.1", id="a/b", zone="z1", weight=2.5) as mine,
    ):
        assert mine.wait(10)
        data, stat = client.get(f"/services/{service}/a%2Fb")
        curator = json.loads(data)
        assert (curator["name"], curator["address"], curator["port"]) == (service, "10.0.0.1", 80)
        assert stat.ephemeralOwner
        with watching(open_discovery(zookeeper.url), service) as seen:
            seen.expect(80)
            (endpoint,) = seen.endpoints or ()
        assert (endpoint.zone, endpoint.weight, endpoint.started_at) == ("z1", 2.5, mine.endpoint.started_at)
    wait_until(lambda: mine.last_error is None)


def test_default_host(zookeeper: ZooKeeperServer, service: str) -> None:
    with register(service, port=80, to=zookeeper.url) as mine:
        assert mine.endpoint.host == "127.0.0.1"
        assert mine.wait(10)


def test_leaving_is_seen_at_once(zookeeper: ZooKeeperServer, service: str) -> None:
    with watching(open_discovery(zookeeper.url), service) as seen:
        with register(service, port=80, to=zookeeper.url) as mine:
            assert mine.wait(10)
            seen.expect(80)
        seen.expect(timeout=6.0)  # not only when a session of 10 s ends


def test_killed_process_is_gone_after_its_session(zookeeper: ZooKeeperServer, service: str) -> None:
    with (
        watching(open_discovery(zookeeper.url), service) as seen,
        registered_process(service, 80, zookeeper.url, ttl=1.5) as process,
    ):
        seen.expect(80)
        process.send_signal(signal.SIGKILL)
        seen.expect()


def test_two_servers_share_a_registrar(zookeeper: ZooKeeperServer, service: str) -> None:
    registrar = ZooKeeperRegistrar.from_url(zookeeper.url)
    with watching(open_discovery(zookeeper.url), service) as seen:
        with register(service, port=1, to=registrar), register(service, port=2, to=registrar):
            seen.expect(1, 2)
        seen.expect()
    registrar.close()
    with pytest.raises(RegistrationError, match="closed"):
        registrar.announce(service, Endpoint("10.0.0.1", 1), 5.0)


def test_node_of_a_predecessor_is_replaced(zookeeper: ZooKeeperServer, service: str) -> None:
    with observing(zookeeper) as client, observing(zookeeper, timeout=2.0) as predecessor:
        path = f"/services/{service}/one"
        predecessor.create(path, b"old", ephemeral=True, makepath=True)
        with register(service, port=80, to=zookeeper.url, id="one", ttl=3.0) as mine:
            assert mine.wait(10)
            data, stat = client.get(path)
            assert json.loads(data)["port"] == 80
            assert stat.ephemeralOwner != predecessor.client_id[0]
            predecessor.stop()
            assert names(client, service) == ["one"]


def test_deleted_node_comes_back(zookeeper: ZooKeeperServer, service: str) -> None:
    path = f"/services/{service}"
    with observing(zookeeper) as client, register(service, port=80, to=zookeeper.url, ttl=30.0, id="one") as mine:
        assert mine.wait(10)
        for _ in range(2):
            before = owner(client, service)
            removal = client.transaction()  # the service too, and quicker than we are
            removal.delete(f"{path}/one")
            removal.delete(path)
            assert removal.commit() == [True, True]
            wait_until(lambda: names(client, service) == ["one"], what="it is back")
            assert owner(client, service) == before


def test_what_changed_is_written(zookeeper: ZooKeeperServer, service: str) -> None:
    registrar = ZooKeeperRegistrar(zookeeper.hosts)
    with watching(open_discovery(zookeeper.url), service) as seen:
        for weight in (1.0, 3.0):
            registrar.announce(service, Endpoint("10.0.0.1", 80, "one", weight=weight), 5.0)
            wait_until(
                lambda weight=weight: [each.weight for each in seen.endpoints or ()] == [weight], what=str(weight)
            )
    registrar.close()


def test_server_killed_and_restarted(own_zookeeper: ZooKeeperServer, service: str) -> None:
    with (
        watching(open_discovery(own_zookeeper.url), service) as seen,
        register(service, port=80, to=own_zookeeper.url, ttl=4.0) as mine,
    ):
        assert mine.wait(10)
        seen.expect(80)
        own_zookeeper.restart()
        with observing(own_zookeeper) as client:
            client.create(f"/services/{service}/other", b'{"host": "10.0.0.1", "port": 81}')
            seen.expect(80, 81)
            owner = client.get(f"/services/{service}/{mine.endpoint.id}")[1].ephemeralOwner
            assert owner
        assert all(endpoints for endpoints in seen.updates[1:])


def test_session_that_the_server_ended(own_zookeeper: ZooKeeperServer, service: str) -> None:
    registrar = ZooKeeperRegistrar(own_zookeeper.hosts)
    with (
        observing(own_zookeeper) as client,
        register(service, port=80, to=registrar, id="one") as mine,
        watching(open_discovery(own_zookeeper.url), service) as seen,
    ):
        assert mine.wait(10)
        seen.expect(80)
        first = owner(client, service)
        end_session(own_zookeeper.hosts, client_of(registrar))
        wait_until(lambda: owner(client, service) not in (first, None), 3.0, "registered again, in a new session")
        seen.expect(80)
    registrar.close()


def test_session_that_ended_while_the_server_hung(own_zookeeper: ZooKeeperServer, service: str) -> None:
    with observing(own_zookeeper) as client, register(service, port=80, to=own_zookeeper.url, ttl=1.0) as mine:
        assert mine.wait(10)
        path = f"/services/{service}/{mine.endpoint.id}"
        own_zookeeper.signal(signal.SIGSTOP)
        time.sleep(2.0)  # longer than the session: the server then ends it
        own_zookeeper.signal(signal.SIGCONT)
        wait_until(lambda: client.connected, what="the observer is back")
        wait_until(lambda: client.exists(path), what="registered again")


def test_two_servers_with_one_id_do_not_fight_without_end(
    zookeeper: ZooKeeperServer, service: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = f"/services/{service}/one"
    with observing(zookeeper) as client, ExitStack() as closing:
        created: list[int] = []

        def look(event: Any = None) -> None:
            stat = client.exists(path, watch=look)
            if stat is not None and stat.czxid not in created:
                created.append(stat.czxid)

        look()
        registrars = [ZooKeeperRegistrar(zookeeper.hosts, session_timeout=timeout) for timeout in (4.0, 5.0)]
        mine = [closing.enter_context(register(service, port=80, to=registrar, id="one")) for registrar in registrars]
        wait_until(lambda: any("same id" in str(each.last_error) for each in mine), what="they noticed")
        started = time.monotonic()
        before = len(created)
        wait_until(lambda: time.monotonic() > started + 2.0, what="two seconds of it")
        assert len(created) < before + 5
        assert client.exists(path)  # all the same there is always one
        assert "does another server have the same id?" in caplog.text
    for registrar in registrars:
        registrar.close()


def test_closed_while_it_announces(own_zookeeper: ZooKeeperServer, service: str) -> None:
    """The session goes on, for somebody else uses it; the node that came late must not."""
    registrar, one = ZooKeeperRegistrar(own_zookeeper.hosts), Endpoint("10.0.0.1", 80, "one")
    with watching(open_discovery(own_zookeeper.url), service) as seen, observing(own_zookeeper) as client:
        seen.expect()
        registrar.announce(service, Endpoint("10.0.0.1", 81, "two"), 10.0)
        own_zookeeper.signal(signal.SIGSTOP)
        announcing = threading.Thread(target=registrar.announce, args=(service, one, 10.0))
        announcing.start()
        wait_until(lambda: len(registrar._nodes) == 2, what="it is at it")
        registrar.close()
        own_zookeeper.signal(signal.SIGCONT)
        announcing.join()
        wait_until(lambda: names(client, service) == [], what="the node is gone")


def test_detached_registrations_are_forgotten(zookeeper: ZooKeeperServer) -> None:
    registrar, woken = ZooKeeperRegistrar(zookeeper.hosts), threading.Event()
    registrar.attach(woken.set)
    registrar.detach(woken.set)
    registrar.detach(woken.set)
    registrar.announce("orders", Endpoint("10.0.0.1", 80, "detached"), 10.0)
    assert not woken.is_set()
    registrar.close()


def owner(client: KazooClient, service: str) -> int | None:
    stat = client.exists(f"/services/{service}/one")
    return stat and stat.ephemeralOwner


def client_of(registrar: ZooKeeperRegistrar) -> KazooClient:
    assert registrar._loan is not None
    return registrar._loan.value.client


def end_session(hosts: str, client: KazooClient) -> None:
    """Take over the session of a client, and end it: so it expires without a wait."""
    thief = KazooClient(hosts, client_id=client.client_id)
    thief.start()
    thief.stop()
    thief.close()


def test_unreachable(service: str) -> None:
    hosts = f"127.0.0.1:{free_ports(1)[0]}"
    registrar = ZooKeeperRegistrar(hosts)
    with pytest.raises(RegistrationError, match=f"no session with ZooKeeper at {hosts}"):
        registrar.announce(service, Endpoint("10.0.0.1", 80), 5.0)
    with pytest.raises(RegistrationError, match="no session"):
        registrar.withdraw(service, Endpoint("10.0.0.1", 80))
    started = time.monotonic()
    registrar.close()
    assert time.monotonic() - started < QUICK


def test_service_that_cannot_be() -> None:
    with pytest.raises(ConfigurationError, match="not a path"):
        ZooKeeperRegistrar("zk1").announce("a//b", Endpoint("10.0.0.1", 80), 5.0)
