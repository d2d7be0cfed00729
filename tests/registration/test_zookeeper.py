"""Registration in real ZooKeeper servers: the node is there, survives what it should and ends when it should."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kazoo.client import KazooClient

from clientlb.discovery import open_discovery
from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError, RegistrationError
from clientlb.registration import register
from clientlb.registration.zookeeper import ZooKeeperRegistrar
from tests.discovery.watching import watching
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
        seen.expect(timeout=2.0)


def test_killed_process_is_gone_after_its_session(zookeeper: ZooKeeperServer, service: str) -> None:
    with (
        watching(open_discovery(zookeeper.url), service) as seen,
        registered_process(service, 80, zookeeper.url, ttl=1.5) as process,
    ):
        seen.expect(80)
        process.send_signal(signal.SIGKILL)
        seen.expect(timeout=10.0)


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
    with observing(zookeeper) as client, register(service, port=80, to=zookeeper.url, ttl=6.0) as mine:
        assert mine.wait(10)
        for _ in range(2):
            client.delete(f"/services/{service}", recursive=True)
            wait_until(lambda: len(names(client, service)) == 1, what="it is back")


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
    with observing(own_zookeeper) as client, register(service, port=80, to=own_zookeeper.url, ttl=2.0) as mine:
        assert mine.wait(10)
        own_zookeeper.signal(signal.SIGSTOP)
        time.sleep(4.0)  # longer than the session: the server then ends it
        own_zookeeper.signal(signal.SIGCONT)
        wait_until(lambda: client.connected, what="the observer is back")
        path = f"/services/{service}/{mine.endpoint.id}"
        wait_until(lambda: client.exists(path), what="registered again")


def test_unreachable(service: str) -> None:
    hosts = f"127.0.0.1:{free_ports(1)[0]}"
    registrar = ZooKeeperRegistrar(hosts)
    with pytest.raises(RegistrationError, match=f"no session with ZooKeeper at {hosts}"):
        registrar.announce(service, Endpoint("10.0.0.1", 80), 5.0)
    with pytest.raises(RegistrationError, match="no session"):
        registrar.withdraw(service, Endpoint("10.0.0.1", 80))
    started = time.monotonic()
    registrar.close()
    assert time.monotonic() - started < 1.0


def test_service_that_cannot_be() -> None:
    with pytest.raises(ConfigurationError, match="not a path"):
        ZooKeeperRegistrar("zk1").announce("a//b", Endpoint("10.0.0.1", 80), 5.0)
