"""ZooKeeper discovery against real servers that are killed, stopped, wiped and outvoted."""

from __future__ import annotations

import gc
import json
import logging
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any
from urllib.parse import quote

import pytest
from kazoo.security import OPEN_ACL_UNSAFE, make_acl, make_digest_acl

from clientlb.discovery import Discovery, open_discovery
from clientlb.discovery._zookeeper_agenda import View
from clientlb.discovery._zookeeper_client import Connection
from clientlb.discovery._zookeeper_sharing import Loan
from clientlb.discovery._zookeeper_watcher import Watcher
from clientlb.discovery.decode import encode_instance
from clientlb.discovery.zookeeper import ZooKeeperDiscovery, ZooKeeperResolver
from clientlb.endpoint import Endpoint
from clientlb.errors import ClosedError, ConfigurationError
from clientlb.testing import DiscoveryContract
from tests.conftest import running
from tests.discovery.forking import run_forking
from tests.discovery.watching import QUICK, Watched, watching
from tests.discovery.zookeeper_writing import check_churn, put, writing
from tests.servers.process import free_ports, wait_until
from tests.servers.zookeeper import OldZooKeeper, ZooKeeperEnsemble, ZooKeeperServer


@pytest.fixture(scope="module")
def breaking() -> Iterator[ZooKeeperServer]:
    with running(ZooKeeperServer()) as server:
        yield server


class TestContract(DiscoveryContract):
    """The checks that every backend has to pass, on a server that they may kill."""

    breakable = True
    can_be_malformed = True
    secret = "s3cret"

    @pytest.fixture(autouse=True)
    def _server(self, breaking: ZooKeeperServer) -> Iterator[None]:
        self.server = breaking
        with writing(breaking.hosts) as self.client:
            yield

    def make_discovery(self) -> Discovery:
        return open_discovery(self.server.url.replace("://", f"://me:{self.secret}@"))

    def put(self, service: str, endpoints: Sequence[Endpoint]) -> None:
        path, wanted = f"/services/{service}", {endpoint.id: endpoint for endpoint in endpoints}
        self.client.ensure_path(path)
        for name in self.client.get_children(path):
            if name not in wanted:
                self.client.delete(f"{path}/{name}")
        for id, endpoint in wanted.items():
            data = encode_instance(service, endpoint)
            if self.client.exists(f"{path}/{id}"):
                self.client.set(f"{path}/{id}", data)
            else:
                self.client.create(f"{path}/{id}", data)

    def put_malformed(self, service: str) -> None:
        self.client.create(f"/services/{service}/bad", b"nonsense")

    def break_registry(self) -> None:
        self.server.kill()

    def mend_registry(self) -> None:
        self.server.start()
        wait_until(lambda: self.client.connected, what="the writer is back")


@pytest.fixture(params=["persistent", "one-shot"])
def discover(request: pytest.FixtureRequest) -> Callable[..., ZooKeeperDiscovery]:
    """Make a discovery that uses the one or the other kind of watches."""

    def make(server: ZooKeeperServer | ZooKeeperEnsemble, **options: Any) -> ZooKeeperDiscovery:
        persistent = request.param == "persistent"
        return ZooKeeperDiscovery(server.hosts, persistent_watches=persistent, **options)

    return make


Discover = Callable[..., ZooKeeperDiscovery]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("zookeeper://zk1", "zookeeper://zk1:2181/services"),
        ("zookeeper://zk1:1,zk2:2", "zookeeper://zk1:1,zk2:2/services"),
        ("zookeeper://zk1:1,zk2/a/b/?session_timeout=4", "zookeeper://zk1:1,zk2:2181/a/b"),
        ("zookeeper://me:s%40cret@zk1/", "zookeeper://zk1:2181/services"),
        ("zookeeper://me:s%2Fcr,et@zk1/a%40b", "zookeeper://zk1:2181/a@b"),
        ("zookeeper://[::1]:2181", "zookeeper://[::1]:2181/services"),
    ],
)
def test_url(url: str, shown: str) -> None:
    assert str(open_discovery(url)) == shown


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("zookeeper://", "no hosts"),
        ("zookeeper:///services", "no hosts"),
        ("zookeeper://zk1:0", "not host:port"),
        ("zookeeper://zk1:70000", "not host:port"),
        ("zookeeper://zk1:port", "not host:port"),
        ("zookeeper://:2181", "not host:port"),
        ("zookeeper://zk1/a//b", "not a path"),
        ("zookeeper://zk1/a/../b", "not a path"),
        ("zookeeper://zk1?session_timeout=never", "session_timeout"),
        ("zookeeper://zk1?session_timeout=0", "session_timeout"),
        ("zookeeper://zk1?timeout=3", "unknown option 'timeout'"),
        ("zookeeper://zk1?format=morse", "unknown format 'morse'"),
        ("zookeeper://me:s3cret@zk1:0", "not host:port"),
        ("zookeeper://me:s3cret/x@zk1", "%2F"),
        ("zookeeper://me:x/s3cret@zk1", "%2F"),
        ("zookeeper://me:x?s3cret=1@zk1", "%2F"),
        ("zookeeper://me:x#s3cret@zk1", "%2F"),
        ("zookeeper://me:s3cret@zk1/a@b", "%40"),
        ("zookeeper://me:s3,cret@zk1:0", "'zk1:0' is not host:port"),
    ],
)
def test_bad_url(url: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        open_discovery(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "hosts",
    [
        "user:s3cret@zk1:2181",
        "user:s3cret@zk1:0",
        "user:s3cret/x@zk1",
        "user:s3cret,x@zk1",
        "zk1:2181,user:s3cret@zk2",
        ["zk1", "user:s3cret@zk2"],
    ],
)
def test_password_among_the_hosts_is_not_repeated(hosts: str | list[str]) -> None:
    with pytest.raises(ConfigurationError, match="credentials") as caught:
        ZooKeeperDiscovery(hosts)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("service", ["", "/", "a//b", "..", "a/../b", "a\0b", "a\x7f", "a\udc80", "\U0001f600"])
def test_bad_service_name(service: str) -> None:
    with pytest.raises(ConfigurationError, match="not a path"):
        ZooKeeperDiscovery("zk1").resolver(service)


def test_more_instances_than_go_at_once(zookeeper: ZooKeeperServer, service: str, discover: Discover) -> None:
    ports = range(1000, 1300)
    with writing(zookeeper.hosts) as client:
        put(client, service, *ports)
        with watching(discover(zookeeper), service) as seen:
            seen.expect(*ports)
            client.delete(f"/services/{service}/1007")
            seen.expect(*(port for port in ports if port != 1007))


def test_service_that_is_removed_and_made_again(zookeeper: ZooKeeperServer, service: str, discover: Discover) -> None:
    with writing(zookeeper.hosts) as client, watching(discover(zookeeper), service) as seen:
        seen.expect()
        for port in (1, 2, 3):
            put(client, service, port)
            seen.expect(port)
            client.delete(f"/services/{service}", recursive=True)
            seen.expect()
        assert not seen.errors


def test_instance_replaced_between_two_reads(zookeeper: ZooKeeperServer, service: str, discover: Discover) -> None:
    with writing(zookeeper.hosts) as client:
        put(client, service, 1, 2)
        with watching(discover(zookeeper), service) as seen:
            seen.expect(1, 2)
            for host in ("10.0.0.2", "10.0.0.3", "10.0.0.4"):
                # in one transaction, so that no reader can see the moment without it
                swap = client.transaction()
                swap.delete(f"/services/{service}/1")
                swap.create(f"/services/{service}/1", encode_instance(service, Endpoint(host, 1)))
                swap.commit()
                wait_until(lambda host=host: host in {each.host for each in seen.endpoints or ()}, what=host)
            seen.expect(1, 2)


def test_bad_instances_among_good_ones(
    zookeeper: ZooKeeperServer, service: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = {
        "not-json": b"{nonsense",
        "not-utf8": b"\xff\xfe\x00",
        "empty": b"",
        "list": b"[1, 2]",
        "port-0": json.dumps({"host": "10.0.0.1", "port": 0}).encode(),
        "port-70000": json.dumps({"host": "10.0.0.1", "port": 70000}).encode(),
        "no-host": json.dumps({"port": 80}).encode(),
        "huge": b'"' + b"x" * (1024 * 1024 - 500) + b'"',
    }
    with writing(zookeeper.hosts) as client:
        put(client, service, 1, 2)
        for name, data in bad.items():
            client.create(f"/services/{service}/{name}", data)
        with caplog.at_level(logging.WARNING, "clientlb"), watching(open_discovery(zookeeper.url), service) as seen:
            seen.expect(1, 2)
            put(client, service, 3)
            seen.expect(1, 2, 3)
            for name in bad:
                assert sum(name in record.getMessage() for record in caplog.records) == 1, name
            client.set(f"/services/{service}/list", encode_instance(service, Endpoint("10.0.0.1", 4)))
            seen.expect(1, 2, 3, 4)
            assert not seen.errors


def test_formats_that_need_more_than_one_node_or_none(
    zookeeper: ZooKeeperServer, service: str, discover: Discover
) -> None:
    """Dubbo's instances are in the names; the weights of a ServerSet in nodes of their own."""
    path = f"/services/{service}"

    def weights() -> dict[int, float]:
        return {endpoint.port: endpoint.weight for endpoint in seen.endpoints or ()}

    with writing(zookeeper.hosts) as client, watching(discover(zookeeper), service) as seen:
        for port in (1, 2):
            member = {"serviceEndpoint": {"host": "10.0.0.1", "port": port}, "status": "ALIVE", "shard": port}
            client.create(f"{path}/member_{port:010}", json.dumps(member).encode(), makepath=True)
        provider = f"{path}/{quote('dubbo://10.0.0.1:3/Orders?timestamp=1&weight=200', safe='')}"
        client.create(provider)
        wait_until(lambda: weights() == {1: 1.0, 2: 1.0, 3: 2.0}, what="three instances")
        vector = {"vector": [{"select": "shard=2", "weight": 0.5, "priority": 1}]}
        client.create(f"{path}/vector_1", json.dumps(vector).encode())
        wait_until(lambda: weights() == {1: 1.0, 2: 0.5, 3: 2.0}, what="the vector")
        client.delete(f"{path}/vector_1")
        client.delete(provider)
        wait_until(lambda: weights() == {1: 1.0, 2: 1.0}, what="neither")


def test_format_of_the_user(zookeeper: ZooKeeperServer, service: str) -> None:
    def decode(id: str, data: bytes) -> Endpoint:
        return Endpoint("10.0.0.1", int(data), "same")  # an id that is not the name, so that two may be one

    with writing(zookeeper.hosts) as client:
        for name, data in {"a": b"1", "b": b"1", "c": b"2", "d": b"x"}.items():
            client.create(f"/services/{service}/{name}", data, makepath=True)
        with watching(ZooKeeperDiscovery(zookeeper.hosts, format=decode), service) as seen:
            seen.expect(1, 2)
            assert len(seen.endpoints or ()) == 2
        with watching(open_discovery(f"{zookeeper.url}?format=address"), service) as seen:
            seen.expect()
            client.set(f"/services/{service}/d", b"10.0.0.1:80")
            seen.expect(80)


def test_client_of_the_user(zookeeper: ZooKeeperServer, service: str) -> None:
    with writing(zookeeper.hosts) as client:
        put(client, service, 1)
        with watching(ZooKeeperDiscovery(zookeeper.hosts, client=client), service) as seen:
            seen.expect(1)
            put(client, service, 2)
            seen.expect(1, 2)
        assert sorted(client.get_children(f"/services/{service}")) == ["1", "2"]  # it still works: it is the user's


def test_credentials(zookeeper: ZooKeeperServer, service: str) -> None:
    with writing(zookeeper.hosts) as client:
        put(client, service, 1)
        secret = encode_instance(service, Endpoint("10.0.0.1", 2))
        client.create(f"/services/{service}/2", secret, acl=[make_digest_acl("me", "s3cret", read=True)])
        with watching(open_discovery(zookeeper.url), service) as seen:
            seen.expect(1)
            client.delete(f"/services/{service}/1")
            message = seen.expect_error(f"/services/{service} failed", "none of the instances may be read (NoAuth")
            assert zookeeper.hosts in message
            put(client, service, 3)
            seen.expect(3)
            put(client, service, 1)
            client.delete(f"/services/{service}/3")
        authority = zookeeper.url.replace("://", "://me:s3cret@")
        with watching(open_discovery(authority), service) as seen:
            seen.expect(1, 2)


def test_instance_that_may_not_be_read(
    zookeeper: ZooKeeperServer, service: str, discover: Discover, caplog: pytest.LogCaptureFixture
) -> None:
    unreadable, path = [make_acl("world", "anyone", admin=True)], f"/services/{service}"
    discovery = discover(zookeeper)
    resolver, seen = discovery.resolver(service), Watched()
    with writing(zookeeper.hosts) as client, closing(discovery), caplog.at_level(logging.WARNING, "clientlb"):
        put(client, service, 1)
        for name in ("denied", "passing"):
            client.create(f"{path}/{name}", encode_instance(service, Endpoint("10.0.0.1", 9)), acl=unreadable)
        resolver.start(seen)
        seen.expect(1)
        for ports in ((1, 2), (1, 2, 3)):  # the service is watched as ever
            put(client, service, ports[-1])
            seen.expect(*ports)
        assert resolver.skipped == 2
        assert resolver.remarks() == ["2 instances could not be read"]
        assert sum("'denied' is left out" in record.getMessage() for record in caplog.records) == 1
        client.delete(f"{path}/passing")
        client.set_acls(f"{path}/denied", OPEN_ACL_UNSAFE)  # which ZooKeeper tells nobody
        seen.expect(1, 2, 3, 9)
        wait_until(lambda: resolver.skipped == 0, what="none is left out")
        assert not seen.errors


def test_names_that_are_too_long_for_one_request(zookeeper: ZooKeeperServer, service: str) -> None:
    ports = range(1, 601)
    with writing(zookeeper.hosts) as client:
        client.ensure_path(f"/services/{service}")
        for port in ports:  # each letter has three bytes
            data = b'{"host": "10.0.0.1", "port": %d}' % port
            client.create(f"/services/{service}/{port}{'€' * 1000}", data)
        with watching(ZooKeeperDiscovery(zookeeper.hosts), service) as seen:
            seen.expect(*ports)
            assert not seen.errors


def test_closed_while_it_starts(zookeeper: ZooKeeperServer, service: str) -> None:
    """By another thread, just before the watch begins."""

    class ClosingFirst(Watcher):
        def __init__(self, watcher: Watcher, resolver: ZooKeeperResolver) -> None:
            self.watcher, self.resolver = watcher, resolver

        def add(self, view: View) -> None:
            self.resolver.close()
            self.watcher.add(view)

        def remove(self, view: View) -> None:
            self.watcher.remove(view)

    class Closing(ZooKeeperDiscovery):
        def began(self, resolver: ZooKeeperResolver) -> Loan[Watcher]:
            self.loan = super().began(resolver)
            return Loan(ClosingFirst(self.loan.value, resolver), self.loan.give_back)

    with closing(Closing(zookeeper.hosts)) as discovery:
        discovery.resolver(service).start(Watched())
        assert not list(discovery.loan.value._agenda)


def test_fork(zookeeper: ZooKeeperServer, service: str) -> None:
    with writing(zookeeper.hosts) as client:
        put(client, service, 1)
        program = run_forking(zookeeper.url, service)
        try:
            assert program.stdout is not None
            lines = iter(program.stdout.readline, "")
            assert next(lines).split() == ["child", "1"]
            assert next(lines).split() == ["parent", "0"]
            put(client, service, 2)  # the child closed everything it had; the parent's watch is alive
            assert next(lines).split() == ["parent", "1", "2"]
        finally:
            program.kill()
            program.communicate()


FORKING_WITH_A_CLIENT = """
import os, sys
from kazoo.client import KazooClient
from clientlb.discovery.zookeeper import ZooKeeperDiscovery
from clientlb.endpoint import Endpoint
from clientlb.registration.zookeeper import ZooKeeperRegistrar
from clientlb.testing import RecordingListener

hosts, service = sys.argv[1:]
client = KazooClient(hosts)
client.start()
discovery, registrar = ZooKeeperDiscovery(hosts, client=client), ZooKeeperRegistrar(hosts, client=client)
child = os.fork()
if not child:  # it has the client, but not the client's threads
    status = 1
    try:
        seen = RecordingListener()
        discovery.resolver(service).start(seen)
        registrar.announce(service, Endpoint("10.0.0.1", 80), 10.0)
        seen.wait_for_addresses("10.0.0.1:80")
        status = 0
    finally:
        os._exit(status)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_client_of_the_user_that_a_fork_left_behind(zookeeper: ZooKeeperServer, service: str) -> None:
    """It is not used there, also when nobody used it before the fork."""
    program = [sys.executable, "-c", FORKING_WITH_A_CLIENT, zookeeper.hosts, service]
    subprocess.run(program, check=True, timeout=60)


def test_after_close(zookeeper: ZooKeeperServer, service: str) -> None:
    discovery = open_discovery(zookeeper.url)
    resolver = discovery.resolver(service)
    discovery.close()
    with pytest.raises(ClosedError):
        resolver.start(Watched())


def test_unreachable(service: str) -> None:
    hosts = ",".join(f"127.0.0.1:{port}" for port in free_ports(2))
    with watching(ZooKeeperDiscovery(hosts), service) as seen:
        message = seen.expect_error("no session with ZooKeeper")
        assert all(host in message for host in hosts.split(","))
        assert seen.ports is None


def test_trouble_with_a_new_client_does_not_end_the_watch(
    own_zookeeper: ZooKeeperServer, service: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[int] = []

    def fail(self: Connection) -> None:
        attempts.append(1)
        raise OSError("no more file descriptors")

    with writing(own_zookeeper.hosts) as client:
        put(client, service, 1)
        with caplog.at_level(logging.ERROR, "clientlb"), watching(open_discovery(own_zookeeper.url), service) as seen:
            seen.expect(1)
            monkeypatch.setattr(Connection, "tend", fail)
            own_zookeeper.kill()
            seen.expect_error("no session with ZooKeeper")
            wait_until(lambda: len(attempts) > 2, what="it goes on")
            own_zookeeper.start()
            wait_until(lambda: client.connected, what="the writer is back")
            put(client, service, 2)
            seen.expect(1, 2)
        assert sum("stumbled" in record.getMessage() for record in caplog.records) == 1


def test_closed_watches_are_forgotten(zookeeper: ZooKeeperServer, service: str) -> None:
    with writing(zookeeper.hosts) as client:
        client.create(f"/services/{service}", b"", acl=[make_digest_acl("me", "s3cret", read=True)], makepath=True)
    discovery = ZooKeeperDiscovery(zookeeper.hosts)
    try:
        resolver, listener = discovery.resolver(service), Watched()
        resolver.start(listener)
        listener.expect_error("NoAuth")
        forgotten = weakref.ref(resolver)
        resolver.close()
        del resolver

        def gone() -> bool:
            gc.collect()
            return forgotten() is None

        wait_until(gone, what="nothing holds it")
    finally:
        discovery.close()


def test_kill_and_restart(own_zookeeper: ZooKeeperServer, service: str) -> None:
    with writing(own_zookeeper.hosts) as client:
        put(client, service, 1, 2)
        with watching(open_discovery(own_zookeeper.url), service) as seen:
            seen.expect(1, 2)
            own_zookeeper.kill()
            seen.expect_error("no session with ZooKeeper")
            assert seen.ports == {1, 2}
            own_zookeeper.start()
            wait_until(lambda: client.connected, what="the writer is back")
            put(client, service, 3)
            seen.expect(1, 2, 3)


def test_churn_loses_nothing(own_zookeeper: ZooKeeperServer, service: str, discover: Discover) -> None:
    """Random changes from two writers and a crash of the server: in the end the list is what is there."""
    check_churn(own_zookeeper, discover(own_zookeeper), service, seed=1, instances=60, changes=300, crashes=1)


def test_hanging_server(own_zookeeper: ZooKeeperServer, service: str) -> None:
    with writing(own_zookeeper.hosts) as client:
        put(client, service, 1)
    discovery = open_discovery(f"{own_zookeeper.url}?session_timeout=2")
    with watching(discovery, service) as seen:
        seen.expect(1)
        own_zookeeper.signal(signal.SIGSTOP)
        try:
            seen.expect_error("no session with ZooKeeper")
            assert seen.ports == {1}
            started = time.monotonic()
            discovery.close()
            assert time.monotonic() - started < QUICK
        finally:
            own_zookeeper.signal(signal.SIGCONT)


def test_wiped_server(own_zookeeper: ZooKeeperServer, service: str) -> None:
    with writing(own_zookeeper.hosts) as client:
        put(client, service, *range(1, 30))
    discovery = ZooKeeperDiscovery(own_zookeeper.hosts, rebuild_after=2.0)
    with watching(discovery, service) as seen:
        seen.expect(*range(1, 30))
        own_zookeeper.kill()
        own_zookeeper.wipe()
        own_zookeeper.start()
        # It refuses the old session, which knows of a later state of the world than it has itself.
        with writing(own_zookeeper.hosts) as client:
            put(client, service, 77)
        seen.expect(77)


def test_leader_killed(zookeeper_cluster: ZooKeeperEnsemble, service: str) -> None:
    with writing(zookeeper_cluster.hosts) as client:
        put(client, service, 1, 2)
        with watching(open_discovery(zookeeper_cluster.url), service) as seen:
            seen.expect(1, 2)
            zookeeper_cluster.leader().kill()
            zookeeper_cluster.leader()
            wait_until(lambda: client.connected, what="the writer is back")
            assert seen.ports == {1, 2}
            put(client, service, 3)
            seen.expect(1, 2, 3)


def test_server_before_3_6(zookeeper: ZooKeeperServer, service: str, caplog: pytest.LogCaptureFixture) -> None:
    with running(OldZooKeeper(zookeeper)) as old, writing(zookeeper.hosts) as client:
        put(client, service, 1)
        with caplog.at_level(logging.INFO, "clientlb"), watching(ZooKeeperDiscovery(old.hosts), service) as seen:
            seen.expect(1)
            put(client, service, 2)
            seen.expect(1, 2)
            client.delete(f"/services/{service}", recursive=True)
            seen.expect()
            put(client, service, 3)
            seen.expect(3)
            assert not seen.errors
        assert len(old.refused) == 1  # it is not tried again and again: every try costs the connection
        assert sum("without persistent watches" in record.getMessage() for record in caplog.records) == 1


def test_quorum_lost(zookeeper_cluster: ZooKeeperEnsemble, service: str) -> None:
    with watching(open_discovery(zookeeper_cluster.url), service) as seen:
        with writing(zookeeper_cluster.hosts) as client:
            put(client, service, 1, 2)
            seen.expect(1, 2)
        first, second, _ = zookeeper_cluster.servers
        for server in (first, second):
            server.kill()
        seen.expect_error("no session with ZooKeeper")
        assert seen.ports == {1, 2}
        for server in (first, second):
            server.launch()
        for server in (first, second):
            server.wait_ready()
        with writing(zookeeper_cluster.hosts) as client:
            put(client, service, 3)
        seen.expect(1, 2, 3)


def test_session_that_the_server_ended(own_zookeeper: ZooKeeperServer, service: str, discover: Discover) -> None:
    """What changed between two sessions is seen, also what looks as if it had not."""
    with writing(own_zookeeper.hosts) as client:
        put(client, service, 1, 2)
        with watching(discover(own_zookeeper, session_timeout=1.0), service) as seen:
            seen.expect(1, 2)
            own_zookeeper.signal(signal.SIGSTOP)
            time.sleep(2.0)  # longer than the session
            own_zookeeper.signal(signal.SIGCONT)
            wait_until(lambda: client.connected, what="the writer is back")
            client.delete(f"/services/{service}/2")
            put(client, service, 1, host="10.0.0.9")
            wait_until(lambda: [(e.host, e.port) for e in seen.endpoints or ()] == [("10.0.0.9", 1)], what="the news")
            seen.expect(1)
