"""The guard with real registries: what they do after an outage costs no endpoint."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kazoo.client import KazooClient

from clientlb import GuardOptions, Options, Services, events
from tests.servers.consul import ConsulServer
from tests.servers.process import wait_until
from tests.servers.zookeeper import ZooKeeperServer


class Listed:
    """A service as a client sees it, with all that happened to its list."""

    def __init__(self, url: str, service: str, **guard: float) -> None:
        self.events: list[events.Event] = []
        options = Options(guard=GuardOptions(**guard))
        self.services = Services(url, options=options, hooks=[self.events.append])
        self.balancer = self.services[service]

    @property
    def ports(self) -> set[int]:
        self.balancer.pick(wait=10).release()  # a call goes through, whatever the registry says
        return {endpoint.port for endpoint in self.balancer.endpoints}

    def seen(self, kind: type[events.Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def becomes(self, *ports: int, within: float = 15.0) -> None:
        wait_until(lambda: self.ports == set(ports), within, f"the list is {ports}")

    @property
    def smallest(self) -> int:
        """The shortest list since it was complete."""
        sizes = [change.size for change in self.seen(events.EndpointsChanged)]
        return min(sizes[sizes.index(max(sizes)) :])


@contextmanager
def listed(url: str, service: str, **guard: float) -> Iterator[Listed]:
    client = Listed(url, service, **guard)
    with client.services:
        yield client


Write = Callable[..., None]


@pytest.fixture(params=["zookeeper", "consul"])
def registry(request: pytest.FixtureRequest, service: str) -> Iterator[tuple[str, Write]]:
    """A registry's URL, and a function that makes it name exactly these ports."""
    named: set[int] = set()
    server = request.getfixturevalue(request.param)
    if request.param == "consul":

        def write(*ports: int) -> None:
            for port in set(ports) - named:
                _put(server, "register", {"Name": service, "ID": f"{service}-{port}", "Port": port})
            for port in named - set(ports):
                _put(server, f"deregister/{service}-{port}")
            named.clear()
            named.update(ports)

        yield server.url, write
        write()
        return
    client = KazooClient(server.hosts)
    client.start()
    client.ensure_path(f"/services/{service}")

    def write_nodes(*ports: int) -> None:
        transaction = client.transaction()
        for port in set(ports) - named:
            transaction.create(f"/services/{service}/{port}", b'{"host": "127.0.0.1", "port": %d}' % port)
        for port in named - set(ports):
            transaction.delete(f"/services/{service}/{port}")
        transaction.commit()
        named.clear()
        named.update(ports)

    yield server.url, write_nodes
    client.stop()
    client.close()


def _put(server: ConsulServer, path: str, body: Any = None) -> None:
    server.request("PUT", f"/v1/agent/service/{path}", body)


def test_minority_leaves_at_once_and_a_majority_only_after_its_time(registry: tuple[str, Write], service: str) -> None:
    url, write = registry
    write(1, 2, 3, 4, 5)
    with listed(url, service, hold=2) as client:
        client.becomes(1, 2, 3, 4, 5)
        write(1, 2, 3, 4)
        client.becomes(1, 2, 3, 4)
        assert client.seen(events.RemovalHeld) == []
        write(1)
        wait_until(lambda: client.seen(events.RemovalHeld), what="the removal is held")
        client.becomes(1)
        assert client.balancer.limbo == ()
        assert "mass" in {event.reason for event in client.seen(events.RemovalHeld)}


def test_empty_list_is_held(registry: tuple[str, Write], service: str) -> None:
    url, write = registry
    write(1, 2)
    with listed(url, service, keep_ratio=1) as client:  # one of them may be seen to leave before the other
        client.becomes(1, 2)
        write()
        wait_until(lambda: len(client.balancer.limbo) == 2, what="all are held")
        assert client.ports == {1, 2}
        write(1, 2)
        wait_until(lambda: client.balancer.limbo == (), what="all are back")
        assert client.smallest == 2


def test_wiped_consul_costs_no_endpoint(own_consul: ConsulServer, service: str) -> None:
    for port in (1, 2, 3):
        _put(own_consul, "register", {"Name": service, "ID": f"{port}", "Port": port})
    with listed(own_consul.url, service) as client:
        client.becomes(1, 2, 3)
        own_consul.kill()
        own_consul.wipe()
        own_consul.start()
        wait_until(lambda: len(client.balancer.limbo) == 3, 20, "the new registry has named nobody")
        assert client.ports == {1, 2, 3}
        assert client.smallest == 3


def test_list_never_shrinks_while_leases_of_consul_run_out(own_consul: ConsulServer, service: str) -> None:
    ports = (1, 2, 3, 4, 5)

    def renew(*some: int) -> None:
        for port in some:
            own_consul.request("PUT", f"/v1/agent/check/pass/service:{port}")

    for port in ports:
        description = {"Name": service, "ID": f"{port}", "Port": port, "Check": {"TTL": "300s"}}
        _put(own_consul, "register", description)
    renew(*ports)
    with listed(own_consul.url, service) as client:
        client.becomes(*ports)
        own_consul.kill()
        wait_until(lambda: client.balancer.registry_state == "failing", what="the outage is noticed")
        own_consul.start()  # knows everybody, and that nobody has renewed yet
        for port in ports:
            own_consul.request("PUT", f"/v1/agent/check/fail/service:{port}")
        wait_until(lambda: len(client.balancer.limbo) == 5, 20, "all leases have run out")
        assert client.ports == set(ports)
        renew(1, 2)
        wait_until(lambda: len(client.balancer.limbo) == 3, what="two are back")
        assert client.ports == set(ports)
        renew(3, 4, 5)
        wait_until(lambda: client.balancer.limbo == (), what="all are back")
        assert client.smallest == 5


def test_list_never_shrinks_while_sessions_of_zookeeper_expire(own_zookeeper: ZooKeeperServer, service: str) -> None:
    path = f"/services/{service}"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.registrars", own_zookeeper.hosts, path, "4"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as registrars:
        assert registrars.stdin is not None
        assert registrars.stdout is not None
        try:
            assert registrars.stdout.readline() == b"ready\n"
            with listed(f"{own_zookeeper.url}?session_timeout=4", service) as client:
                client.becomes(1, 2, 3, 4, 5)
                registrars.send_signal(signal.SIGSTOP)  # what waits for the server in its sockets would renew sessions
                own_zookeeper.signal(signal.SIGSTOP)
                time.sleep(5)  # the outage itself: longer than the sessions of 4 s
                own_zookeeper.signal(signal.SIGCONT)
                wait_until(lambda: client.seen(events.RemovalHeld), 30, "the registry names fewer")
                assert client.ports == {1, 2, 3, 4, 5}
                registrars.send_signal(signal.SIGCONT)
                wait_until(lambda: client.balancer.limbo == (), 60, "all are back")
                assert client.ports == {1, 2, 3, 4, 5}
                assert client.smallest == 5
                assert len(client.seen(events.HeldReturned)) >= 1
        finally:
            registrars.stdin.close()
            registrars.kill()
