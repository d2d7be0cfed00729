"""Names in DNS, asked of a real nameserver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import clientlb
from clientlb.discovery import open_discovery
from clientlb.discovery._dns_lookup import Addresses, Target, nameserver_address, servers_of, weights_of
from clientlb.discovery.dns import MAX_INTERVAL, MIN_INTERVAL, DnsDiscovery, SrvDiscovery
from clientlb.endpoint import Endpoint
from clientlb.errors import ClosedError, ConfigurationError
from clientlb.testing import DiscoveryContract, RecordingListener
from tests.conftest import running
from tests.discovery.watching import QUICK, Watched, watching
from tests.servers.dns import DnsServer
from tests.servers.process import wait_until

SOON = 0.02


@pytest.fixture(scope="module")
def shared() -> Iterator[DnsServer]:
    with running(DnsServer()) as server:
        yield server


@pytest.fixture
def server(shared: DnsServer) -> Iterator[DnsServer]:
    shared.serve()
    (shared.folder / "questions").write_text("")
    yield shared
    shared.signal(signal.SIGCONT)


def by_address(server: DnsServer, name: str = "{service}.test", **options: Any) -> DnsDiscovery:
    options = {"min_interval": SOON, "timeout": 1.0} | options
    return DnsDiscovery(name, 80, nameservers=[server.address], **options)


def by_srv(server: DnsServer, name: str = "_grpc._tcp.{service}.test", **options: Any) -> SrvDiscovery:
    options = {"min_interval": SOON, "timeout": 1.0} | options
    return SrvDiscovery(name, nameservers=[server.address], **options)


# --- the contract ----------------------------------------------------------------------------------------------------


class Zone(DiscoveryContract):
    """What both kinds have in common: the content of a zone, and an outage."""

    breakable = True

    @pytest.fixture(autouse=True)
    def zone(self, server: DnsServer) -> None:
        self.server = server
        self.content: dict[str, list[str]] = {}
        self.fails: list[str] = []

    def records(self, service: str, endpoint: Endpoint) -> list[str]:
        raise AssertionError("a subclass says what stands in the zone")

    def put(self, service: str, endpoints: Sequence[Endpoint]) -> None:
        self.content[service] = [line for endpoint in endpoints for line in self.records(service, endpoint)]
        self.write()

    def write(self) -> None:
        self.server.serve(*{line for lines in self.content.values() for line in lines}, fails=self.fails)

    def break_registry(self) -> None:
        self.fails = ["contract.test.", "_grpc._tcp.contract.test."]
        self.write()

    def mend_registry(self) -> None:
        self.fails = []
        self.write()


class TestAddresses(Zone):
    def make_discovery(self) -> DnsDiscovery:
        return by_address(self.server, max_interval=SOON)

    def records(self, service: str, endpoint: Endpoint) -> list[str]:
        return [f"{service}.test. 0 IN A 10.0.0.{endpoint.port - 7000}"]

    def describe(self, endpoint: Endpoint) -> object:
        return endpoint.port - 7000 if endpoint.port > 7000 else int(endpoint.host.rpartition(".")[2])

    def _find(self, seen: RecordingListener, wanted: Endpoint) -> Endpoint:
        return next(it for it in seen.endpoints or () if self.describe(it) == self.describe(wanted))


class TestSrv(Zone):
    def make_discovery(self) -> SrvDiscovery:
        return by_srv(self.server, max_interval=SOON)

    def records(self, service: str, endpoint: Endpoint) -> list[str]:
        return [
            f"_grpc._tcp.{service}.test. 0 IN SRV 0 {endpoint.weight:.0f} {endpoint.port} host.test.",
            f"host.test. 0 IN A {endpoint.host}",
        ]

    def describe(self, endpoint: Endpoint) -> object:
        return (endpoint.host, endpoint.port)


class TestSilence(TestAddresses):
    """The same, when an outage means that nobody answers at all."""

    def make_discovery(self) -> DnsDiscovery:
        return by_address(self.server, max_interval=SOON, timeout=0.3)

    def break_registry(self) -> None:
        self.server.signal(signal.SIGSTOP)

    def mend_registry(self) -> None:
        self.server.signal(signal.SIGCONT)


# --- what an answer means --------------------------------------------------------------------------------------------


def test_ipv6_counts_when_there_is_no_ipv4(server: DnsServer) -> None:
    server.serve("a.test. 0 IN A 10.0.0.1", "a.test. 0 IN AAAA fd00::1", "b.test. 0 IN AAAA fd00::2")
    for family, both, alone in [
        ("any", ["10.0.0.1:80"], ["[fd00::2]:80"]),
        ("4", ["10.0.0.1:80"], []),
        ("6", ["[fd00::1]:80"], ["[fd00::2]:80"]),
        ("both", ["10.0.0.1:80", "[fd00::1]:80"], ["[fd00::2]:80"]),
    ]:
        with (
            watching(by_address(server, family=family), "a") as a,
            watching(by_address(server, family=family), "b") as b,
        ):
            a.wait_for_addresses(*both)
            b.wait_for_addresses(*alone)


def test_a_new_order_of_the_same_addresses_is_no_news(server: DnsServer) -> None:
    lines = [f"a.test. 0 IN A 10.0.0.{number}" for number in (2, 9, 10)]
    server.serve(*lines)
    with watching(by_address(server), "a") as seen:
        seen.wait_for_addresses("10.0.0.2:80", "10.0.0.9:80", "10.0.0.10:80")
        server.serve(*reversed(lines))
        asked = len(server.questions())
        wait_until(lambda: len(server.questions()) > asked + 3)
        assert len(seen.updates) == 1


def test_a_name_without_addresses_is_an_answer(server: DnsServer) -> None:
    server.serve("a.test. 0 IN A 10.0.0.1")
    with watching(by_address(server), "a") as seen:
        seen.wait_for_addresses("10.0.0.1:80")
        server.serve("a.test. 0 IN TXT nothing")
        seen.wait_for_addresses()
        assert not seen.errors


@pytest.mark.parametrize(
    ("how", "message"), [("fails", "no nameserver could answer (SERVFAIL)"), ("silent", "no answer within 1")]
)
def test_no_answer_is_an_error(server: DnsServer, how: str, message: str) -> None:
    server.serve("a.test. 0 IN A 10.0.0.1", **{how: ["a.test."]})  # type: ignore[arg-type]
    with watching(by_address(server), "a") as seen:
        assert "dns://{service}.test:80: A a.test: " in seen.expect_error(message)
        assert not seen.updates


def test_a_server_that_is_not_there(server: DnsServer) -> None:
    with running(DnsServer()) as own:
        own.serve("a.test. 0 IN A 10.0.0.1")
        with watching(by_address(own, timeout=0.3, max_interval=0.1), "a") as seen:
            seen.wait_for_addresses("10.0.0.1:80")
            own.kill()
            seen.expect_error("A a.test")
            own.start()
            seen.wait_for(lambda it: len(it.updates) == 2)
            assert seen.updates[0] == seen.updates[1]


def test_a_second_nameserver_answers_for_the_first(server: DnsServer) -> None:
    server.serve("a.test. 0 IN A 10.0.0.1")
    with running(DnsServer()) as own:
        own.serve(fails=["a.test."])
        with watching(DnsDiscovery("a.test", 80, nameservers=[own.address, server.address]), "x") as seen:
            seen.wait_for_addresses("10.0.0.1:80")


def test_an_answer_that_is_too_long_comes_by_tcp(server: DnsServer) -> None:
    server.serve(*(f"a.test. 0 IN A 10.0.0.{number}" for number in range(1, 101)))
    with watching(by_address(server), "a") as seen:
        seen.wait_for(lambda it: it.updates)
        assert len(seen.updates[0]) == 100
        assert server.questions()[:2] == ["a.test. A udp", "a.test. A tcp"]


def test_search_domains(server: DnsServer) -> None:
    server.serve("a.near.test. 0 IN A 10.0.0.1", "a. 0 IN A 10.0.0.9", "b.far.test. 0 IN A 10.0.0.2")
    url = f"dns://:80?resolver={server.address}&search=near.test,far.test&min_interval={SOON}"
    for service, found in [("a", "10.0.0.1:80"), ("b", "10.0.0.2:80"), ("a.", "10.0.0.9:80")]:
        with watching(open_discovery(url), service) as seen:
            seen.wait_for_addresses(found)


def test_a_nameserver_of_choice_is_asked_for_the_name_as_it_is(server: DnsServer) -> None:
    with watching(open_discovery(f"dns://:80?resolver={server.address}"), "a") as seen:
        seen.wait_for_addresses()
        assert set(server.questions()) == {"a. A udp"}


# --- SRV -------------------------------------------------------------------------------------------------------------


def test_srv_records(server: DnsServer) -> None:
    server.serve(
        "_grpc._tcp.a.test. 0 IN SRV 10 3 7001 x.test.",
        "_grpc._tcp.a.test. 0 IN SRV 10 1 7002 y.test.",
        "_grpc._tcp.a.test. 0 IN SRV 20 1 7003 z.test.",
        "x.test. 0 IN A 10.0.0.1",
        "x.test. 0 IN A 10.0.0.2",
        "y.test. 0 IN AAAA fd00::1",
        "z.test. 0 IN A 10.0.0.3",
    )
    with watching(by_srv(server), "a") as seen:
        seen.wait_for_addresses("10.0.0.1:7001", "10.0.0.2:7001", "[fd00::1]:7002")
        assert [endpoint.weight for endpoint in seen.updates[0]] == [1.5, 1.5, 1.0]
        assert seen.updates[0][0].metadata == {"target": "x.test", "priority": "10"}
        assert seen.updates[0][0].id == "10.0.0.1:7001"


def test_targets_that_the_answer_brings_along_are_not_asked_for(server: DnsServer) -> None:
    records = ["_grpc._tcp.a.test. 0 IN SRV 0 0 7001 x.test.", "x.test. 60 IN A 10.0.0.1"]
    server.serve(*records)
    with watching(by_srv(server), "a") as seen:
        seen.wait_for_addresses("10.0.0.1:7001")
        assert set(server.questions()) == {"_grpc._tcp.a.test. SRV udp"}


def test_targets_are_asked_for_once_in_their_time_for_all_services(server: DnsServer) -> None:
    names = ("a", "b")
    records = [f"_grpc._tcp.{name}.test. 0 IN SRV 0 0 7001 x.test." for name in names]
    server.serve(*records, "x.test. 60 IN A 10.0.0.1", additional=False)
    discovery = by_srv(server)
    with watching(discovery, "a") as a:
        a.wait_for_addresses("10.0.0.1:7001")
        b = Watched()
        discovery.resolver("b").start(b)
        b.wait_for_addresses("10.0.0.1:7001")
        wait_until(lambda: len(server.questions()) > 8)
        assert server.questions().count("x.test. A udp") == 1


def test_a_target_that_cannot_be_resolved_again_keeps_its_addresses(server: DnsServer) -> None:
    records = [f"_grpc._tcp.a.test. 0 IN SRV 0 0 7001 {name}.test." for name in "xy"]
    records += ["x.test. 0 IN A 10.0.0.1", "y.test. 0 IN A 10.0.0.2"]
    server.serve(*records, additional=False)
    with watching(by_srv(server), "a") as seen:
        seen.wait_for_addresses("10.0.0.1:7001", "10.0.0.2:7001")
        server.serve(
            *records,
            "_grpc._tcp.a.test. 0 IN SRV 0 0 7003 z.test.",
            "z.test. 0 IN A 10.0.0.3",
            additional=False,
            fails=["x.test."],
        )
        seen.wait_for_addresses("10.0.0.1:7001", "10.0.0.2:7001", "10.0.0.3:7003")
        server.serve(*records[:2], records[3], additional=False)  # x is gone, by an answer
        seen.wait_for_addresses("10.0.0.2:7001")


def test_a_target_that_never_could_be_resolved_is_left_out_with_one_line(
    server: DnsServer, caplog: pytest.LogCaptureFixture
) -> None:
    records = [f"_grpc._tcp.a.test. 0 IN SRV 0 0 7001 {name}.test." for name in "xy"]
    server.serve(*records, "y.test. 0 IN A 10.0.0.2", additional=False, fails=["x.test."])
    with watching(by_srv(server), "a") as seen:
        seen.wait_for_addresses("10.0.0.2:7001")
        wait_until(lambda: server.questions().count("x.test. A udp") > 2)
        (record,) = caplog.records
        assert "the target x.test. is left out" in record.getMessage()
        server.serve(*records, additional=False, fails=["x.test.", "y.test."])
        wait_until(lambda: server.questions().count("y.test. A udp") > 2)
        assert len(seen.updates) == 1


def test_no_address_of_any_target_is_an_error(server: DnsServer) -> None:
    server.serve("_grpc._tcp.a.test. 0 IN SRV 0 0 7001 x.test.", additional=False, fails=["x.test."])
    with watching(by_srv(server), "a") as seen:
        seen.expect_error("x.test", "SERVFAIL")
        assert not seen.updates


def test_the_root_as_target_says_that_there_is_no_service(server: DnsServer) -> None:
    server.serve("_grpc._tcp.a.test. 0 IN SRV 0 0 0 .")
    with watching(by_srv(server), "a") as seen:
        seen.wait_for_addresses()
        assert not seen.errors


def test_a_record_that_no_server_can_have(server: DnsServer, caplog: pytest.LogCaptureFixture) -> None:
    server.serve(
        "_grpc._tcp.a.test. 0 IN SRV 0 0 0 x.test.",
        "_grpc._tcp.a.test. 0 IN SRV 0 0 7001 x.test.",
        "x.test. 0 IN A 10.0.0.1",
    )
    with watching(by_srv(server), "a") as seen:
        seen.wait_for_addresses("10.0.0.1:7001")
        asked = len(server.questions())
        wait_until(lambda: len(server.questions()) > asked + 2)
        (record,) = caplog.records
        assert "port 0" in record.getMessage()


def target(name: str, *, priority: int = 0, weight: int = 0, port: int = 80) -> Target:
    return Target(name, port, priority, weight)


def hosts(**known: str) -> dict[str, Addresses]:
    return {name: Addresses(tuple(text.split())) for name, text in known.items()}


@pytest.mark.parametrize(
    ("weights", "shares"),
    [([], []), ([0, 0], [1, 1]), ([50, 50], [1, 1]), ([33], [1]), ([0, 1], [1, 1]), ([0, 10, 20], [1, 10, 20])],
)
def test_weights(weights: list[int], shares: list[float]) -> None:
    assert weights_of([target("x", weight=weight) for weight in weights]) == shares


def test_the_best_priority_that_has_an_address_counts() -> None:
    targets = [target("c", priority=5), target("b", priority=2), target("a", priority=1)]
    for known, wanted in [
        (hosts(a="10.0.0.1", b="10.0.0.2", c="10.0.0.3"), ["10.0.0.1"]),
        (hosts(a="", b="10.0.0.2", c="10.0.0.3"), ["10.0.0.2"]),
        (hosts(a="", b="", c="10.0.0.3"), ["10.0.0.3"]),
        (hosts(a="", b="", c=""), []),
    ]:
        assert [endpoint.host for endpoint in servers_of(targets, known)[0]] == wanted


@given(
    st.lists(
        st.builds(Target, st.sampled_from("abc"), st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 65535))
    )
)
def test_no_record_breaks_the_others(targets: list[Target]) -> None:
    endpoints, bad = servers_of(targets, hosts(a="10.0.0.1", b="10.0.0.2 10.0.0.3", c=""))
    assert all(endpoint.weight > 0 for endpoint in endpoints)
    assert bool(bad) <= any(not found.port for found in targets)


# --- when it is asked ------------------------------------------------------------------------------------------------


def test_the_ttl_decides_within_bounds() -> None:
    discovery = DnsDiscovery("a.test", 80)
    for ttl, least in [(0, MIN_INTERVAL), (None, MIN_INTERVAL), (30, 30.0), (86400, MAX_INTERVAL)]:
        pauses = {discovery._pause(ttl) for _ in range(100)}
        assert least <= min(pauses) < max(pauses) <= least * 1.1


def test_an_answer_is_kept_for_its_time(server: DnsServer) -> None:
    server.serve("a.test. 60 IN A 10.0.0.1", "b.test. 0 IN A 10.0.0.2")
    discovery = by_address(server)
    with watching(discovery, "a") as a:
        a.wait_for_addresses("10.0.0.1:80")
        b = Watched()
        discovery.resolver("b").start(b)
        wait_until(lambda: server.questions().count("b.test. A udp") > 3)
        assert server.questions().count("a.test. A udp") == 1


# --- threads and life ------------------------------------------------------------------------------------------------


def dns_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "clientlb-dns"]


def test_a_silent_name_holds_up_no_other_and_all_share_one_thread(server: DnsServer) -> None:
    records = [f"s{number}.test. 0 IN A 10.0.0.{number}" for number in range(1, 41)]
    server.serve(*records, silent=["s0.test."])
    discovery = by_address(server, timeout=30.0, max_interval=0.2)
    seen = [Watched() for _ in range(41)]
    for number, listener in enumerate(seen):
        discovery.resolver(f"s{number}").start(listener)
    for number, listener in enumerate(seen[1:], 1):
        listener.wait_for_addresses(f"10.0.0.{number}:80")
    assert not seen[0].updates
    (thread,) = dns_threads()
    assert thread.daemon
    started = time.monotonic()
    discovery.close()
    assert time.monotonic() - started < QUICK
    thread.join(10)
    assert not dns_threads()


def test_the_thread_ends_with_the_last_watch_and_starts_again(server: DnsServer) -> None:
    server.serve("a.test. 0 IN A 10.0.0.1")
    discovery = by_address(server)
    for _ in range(3):
        seen, resolver = Watched(), discovery.resolver("a")
        resolver.start(seen)
        seen.wait_for_addresses("10.0.0.1:80")
        resolver.close()
        assert not dns_threads()
    discovery.close()
    with pytest.raises(ClosedError):
        discovery.resolver("a").start(Watched())
    with pytest.raises(ClosedError):
        resolver.start(Watched())


def test_a_forked_child_asks_for_itself(server: DnsServer) -> None:
    server.serve("a.test. 0 IN A 10.0.0.1")
    program = (
        "import os, sys\n"
        "from clientlb.discovery import open_discovery\n"
        "from clientlb.testing import RecordingListener\n"
        "discovery = open_discovery(sys.argv[1])\n"
        "def look():\n"
        "    seen, resolver = RecordingListener(), discovery.resolver('a')\n"
        "    resolver.start(seen)\n"
        "    seen.wait_for_addresses('10.0.0.1:80')\n"
        "    return seen, resolver\n"
        "seen, resolver = look()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    look(), resolver.close(), discovery.close()\n"
        "    print('child', flush=True)\n"
        "    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "print('parent', flush=True)\n"
        "seen.wait_for_addresses('10.0.0.2:80')\n"
        "print('parent sees', flush=True)\n"
    )
    url = f"dns://{{service}}.test:80?resolver={server.address}&min_interval={SOON}"
    with subprocess.Popen([sys.executable, "-c", program, url], stdout=subprocess.PIPE, text=True) as running_program:
        assert running_program.stdout is not None
        assert running_program.stdout.readline() == "child\n"
        assert running_program.stdout.readline() == "parent\n"
        server.serve("a.test. 0 IN A 10.0.0.2")
        assert running_program.stdout.readline() == "parent sees\n"
    assert running_program.returncode == 0


def test_no_descriptor_is_left(server: DnsServer) -> None:
    server.serve("a.test. 0 IN A 10.0.0.1")
    with watching(by_address(server), "a") as seen:  # what is opened once and for all
        seen.wait_for_addresses("10.0.0.1:80")
    before = len(os.listdir("/proc/self/fd"))
    with watching(by_address(server), "a") as seen:
        seen.wait_for_addresses("10.0.0.1:80")
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_services_by_dns(server: DnsServer) -> None:
    server.serve(
        "_http._tcp.orders.test. 0 IN SRV 0 1 8080 one.test.",
        "_http._tcp.orders.test. 0 IN SRV 0 3 8080 two.test.",
        "one.test. 0 IN A 10.0.0.1",
        "two.test. 0 IN A 10.0.0.2",
    )
    url = f"dns+srv://_http._tcp.{{service}}.test?resolver={server.address}"
    with clientlb.Services(url) as services, services["orders"].pick() as pick:
        assert str(pick.endpoint) in ("10.0.0.1:8080", "10.0.0.2:8080")


# --- URLs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "service", "name"),
    [
        ("dns://orders.test:80", "users", "orders.test"),
        ("dns://:80", "orders.test.", "orders.test."),
        ("dns://{service}.prod.svc:80", "orders", "orders.prod.svc"),
        ("dns://%7Bservice%7D.prod.svc:80/", "orders", "orders.prod.svc"),
        ("dns+srv://_grpc._tcp.{service}.test?resolver=10.0.0.1", "orders", "_grpc._tcp.orders.test"),
        ("dns+srv://", "_grpc._tcp.orders.test", "_grpc._tcp.orders.test"),
    ],
)
def test_the_name_of_a_service(url: str, service: str, name: str) -> None:
    assert open_discovery(url)._name_of(service) == name  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("dns://orders.test", "needs the port of the servers"),
        ("dns://", "needs the port of the servers"),
        ("dns://orders.test:0", "needs the port of the servers"),
        ("dns://orders.test:70000", "Port out of range"),
        ("dns://orders.test:http", "Port could not be cast"),
        ("dns:///orders.test:80", "takes a name"),
        ("dns://10.0.0.53/orders.test:80", "takes a name"),
        ("dns://user:sesame@orders.test:80", "takes a name"),
        ("dns://a..b:80", "not a DNS name"),
        (f"dns://{'a' * 64}:80", "not a DNS name"),
        ("dns://10.0.0.1:80", "static://"),
        ("dns://[::1]:80", "static://"),
        ("dns+srv://_grpc._tcp.orders.test:80", "has no port"),
        ("dns://a:80?resolver=ns.test", "the IP address of a nameserver"),
        ("dns://a:80?resolver=10.0.0.1:0", "the IP address of a nameserver"),
        ("dns://a:80?resolver=10.0.0.1,", "the IP address of a nameserver"),
        ("dns://a:80?search=a..b", "not a DNS name"),
        ("dns://a:80?family=ipv4", "family is one of any, 4, 6, both"),
        ("dns://a:80?min_interval=0", "min_interval is a number of seconds"),
        ("dns://a:80?min_interval=90", "max_interval is a number of seconds, at least 90"),
        ("dns://a:80?timeout=x", "timeout is a number of seconds"),
        ("dns://a:80?ttl=5", "unknown option 'ttl'"),
    ],
)
def test_urls_that_cannot_be(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_discovery(url)
    assert message in str(caught.value)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("service", ["", ".", "a..b", "a" * 64, "10.0.0.1", "::1", None])
def test_services_that_cannot_be_a_name(service: Any) -> None:
    with pytest.raises(ConfigurationError):
        DnsDiscovery(port=80).resolver(service)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1", ("10.0.0.1", 53)),
        ("10.0.0.1:5353", ("10.0.0.1", 5353)),
        ("fd00::1", ("fd00::1", 53)),
        ("[fd00::1]", ("fd00::1", 53)),
        ("[fd00::1]:5353", ("fd00::1", 5353)),
    ],
)
def test_addresses_of_nameservers(text: str, address: tuple[str, int]) -> None:
    assert nameserver_address(text) == address


def test_names_for_people() -> None:
    for url in ("dns://{service}.test:80", "dns://:80", "dns+srv://_grpc._tcp.{service}.test", "dns+srv://"):
        assert str(open_discovery(url)) == url
