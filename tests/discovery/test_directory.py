"""The embedded registry, from the reader's side. Who counts as alive is decided by `Roll`, without waiting."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clientlb.discovery.decode import MAX_INSTANCE_BYTES
from clientlb.discovery.directory import DirectoryDiscovery
from clientlb.discovery.leases import (
    Lease,
    Roll,
    lease_id,
    lease_name,
    read_lease,
    service_directory,
    write_lease,
)
from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError, DiscoveryError
from clientlb.registration.directory import DirectoryRegistrar
from clientlb.testing import DiscoveryContract, FakeClock, RecordingListener

INTERVAL = 0.02


class TestContract(DiscoveryContract):
    breakable = True
    can_be_malformed = True

    @pytest.fixture(autouse=True)
    def registry(self, tmp_path: Path) -> None:
        self.root = tmp_path / "registry"
        self.root.mkdir()
        self.present: dict[str, dict[str, Endpoint]] = {}

    def make_discovery(self) -> DirectoryDiscovery:
        return DirectoryDiscovery(self.root, interval=INTERVAL)

    def put(self, service: str, endpoints: Sequence[Endpoint]) -> None:
        registrar = DirectoryRegistrar(self.root)
        wanted = {endpoint.id: endpoint for endpoint in endpoints}
        for id, endpoint in self.present.get(service, {}).items():
            if id not in wanted:
                registrar.withdraw(service, endpoint)
        for endpoint in endpoints:
            registrar.announce(service, endpoint, 600.0)
        self.present[service] = wanted

    def put_malformed(self, service: str) -> None:
        for number, data in enumerate((b"", b"not json", b"[]", b'{"host": "h", "port": 0}', b"x" * 1_000_000)):
            (self.root / service / f"bad-{number}.json").write_bytes(data)

    def break_registry(self) -> None:
        self.root.rename(self.root.with_name("away"))

    def mend_registry(self) -> None:
        self.root.with_name("away").rename(self.root)

    def describe(self, endpoint: Endpoint) -> object:
        return endpoint


# --- who counts as alive ---------------------------------------------------------------------------------------------


def alive(roll: Roll, leases: dict[str, Lease], now: float) -> list[str]:
    return sorted(roll.call(leases, now)[0])


def test_a_lease_counts_until_it_expires() -> None:
    roll = Roll(0.1)
    leases = {"a": Lease(b"", expires_at=105.0, ttl=10.0), "b": Lease(b"", expires_at=103.0, ttl=10.0), "c": Lease(b"")}
    counted, first_end = roll.call(leases, 102.5)
    assert sorted(counted) == ["a", "b", "c"]
    assert first_end == pytest.approx(0.5)
    counted, first_end = roll.call(leases, 103.0)
    assert sorted(counted) == ["a", "c"]
    assert first_end == pytest.approx(2.0)
    counted, first_end = roll.call({"c": leases["c"]}, 103.1)
    assert (sorted(counted), first_end) == (["c"], None)


def test_a_reader_that_starts_believes_no_expired_lease() -> None:
    assert alive(Roll(0.1), {"a": Lease(b"", expires_at=99.0, ttl=10.0)}, 100.0) == []


def test_a_reader_that_slept_gives_the_living_time_to_renew() -> None:
    roll = Roll(0.1)
    leases = {"a": Lease(b"", expires_at=105.0, ttl=9.0), "dead": Lease(b"", expires_at=99.0, ttl=9.0)}
    assert alive(roll, leases, 100.0) == ["a"]
    assert alive(roll, leases, 500.0) == ["a"]  # everything slept: the owner may renew within 9 / 3 s
    for now in (501.0, 502.0, 503.0):
        assert alive(roll, leases, now) == ["a"]
    assert alive(roll, leases, 503.2) == []


def test_an_owner_that_renews_after_the_sleep_never_left() -> None:
    roll = Roll(0.1)
    assert alive(roll, {"a": Lease(b"", expires_at=105.0, ttl=9.0)}, 100.0) == ["a"]
    assert alive(roll, {"a": Lease(b"", expires_at=105.0, ttl=9.0)}, 500.0) == ["a"]
    assert alive(roll, {"a": Lease(b"", expires_at=511.0, ttl=9.0)}, 502.0) == ["a"]
    assert alive(roll, {"a": Lease(b"", expires_at=511.0, ttl=9.0)}, 502.9) == ["a"]


def test_an_awake_reader_gives_no_extra_time() -> None:
    roll = Roll(0.1)
    leases = {"a": Lease(b"", expires_at=100.5, ttl=9.0)}
    assert alive(roll, leases, 100.0) == ["a"]
    assert alive(roll, leases, 100.6) == []
    assert alive(roll, leases, 600.0) == []  # gone before the sleep: the sleep brings nobody back


# --- names and files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../evil", "..", ".", "/etc", "a/b", ".hidden", "orders\0", "ö", "%2e%2e", "a b"])
def test_no_name_leaves_its_directory(tmp_path: Path, name: str) -> None:
    for path in (service_directory(tmp_path, name), tmp_path / lease_name(name)):
        assert path.parent == tmp_path
        assert not path.name.startswith(".")
        assert "\0" not in path.name


@given(st.text(min_size=1))
def test_every_id_is_read_back_from_its_file_name(id: str) -> None:
    assert "/" not in lease_name(id)
    assert lease_id(lease_name(id)) == id


@pytest.mark.parametrize("name", [".draft-1-a.json", ".json", "notes.txt", "a.json~", "a.json.swp"])
def test_other_files_are_no_leases(name: str) -> None:
    assert lease_id(name) is None


@pytest.mark.parametrize("service", ["", None, 5])
def test_a_service_has_a_name(tmp_path: Path, service: str) -> None:
    with pytest.raises(ConfigurationError):
        DirectoryDiscovery(tmp_path).resolver(service)


@pytest.mark.parametrize(
    ("data", "expires_at", "ttl"),
    [
        (b"", math.inf, 0.0),
        (b"[1]", math.inf, 0.0),
        (b"[" * 60_000, math.inf, 0.0),
        (b"{}", math.inf, 0.0),
        (b'{"expires_at": "soon", "ttl": null}', math.inf, 0.0),
        (b'{"expires_at": true, "ttl": NaN}', math.inf, 0.0),
        (b'{"expires_at": 1' + b"0" * 400 + b"}", math.inf, 0.0),
        (b'{"expires_at": 5, "ttl": 2.5}', 5.0, 2.5),
        (b'{"expires_at": 5, "x": "' + b"x" * 70_000 + b'"}', math.inf, 0.0),
    ],
)
def test_times_of_a_lease(data: bytes, expires_at: float, ttl: float) -> None:
    assert read_lease(data) == Lease(data, expires_at, ttl)


# --- the directory ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def watching(discovery: DirectoryDiscovery, service: str = "orders") -> Iterator[RecordingListener]:
    with contextlib.closing(discovery), contextlib.closing(discovery.resolver(service)) as resolver:
        listener = RecordingListener()
        resolver.start(listener)
        yield listener


def put(root: Path, name: str, data: bytes) -> None:
    (root / "orders").mkdir(exist_ok=True)
    draft = root / "orders" / ".draft"
    draft.write_bytes(data)
    draft.rename(root / "orders" / name)


def test_the_first_list_is_there_when_start_returns(tmp_path: Path) -> None:
    put(tmp_path, "a.json", b'{"host": "10.0.0.1", "port": 80}')
    with watching(DirectoryDiscovery(tmp_path, interval=3600)) as seen:
        assert seen.updates == [(Endpoint("10.0.0.1", 80, "a"),)]


def test_an_expired_lease_leaves_the_list_when_it_expires_and_not_at_the_next_interval(tmp_path: Path) -> None:
    soon = write_lease(Endpoint("10.0.0.1", 80, "a"), expires_at=time.time() + 0.3, ttl=0.3)
    put(tmp_path, "a.json", soon)
    put(tmp_path, "b.json", b'{"host": "10.0.0.2", "port": 80}')
    with watching(DirectoryDiscovery(tmp_path, interval=3600)) as seen:
        seen.wait_for_addresses("10.0.0.2:80")
        assert not seen.errors


def test_the_clock_decides(tmp_path: Path) -> None:
    clock = FakeClock(100.0)
    put(tmp_path, "a.json", write_lease(Endpoint("10.0.0.1", 80, "a"), expires_at=100.5, ttl=1.0))
    with watching(DirectoryDiscovery(tmp_path, interval=INTERVAL, clock=clock)) as seen:
        seen.wait_for_addresses("10.0.0.1:80")
        clock.advance(0.6)
        seen.wait_for_addresses()
        put(tmp_path, "a.json", write_lease(Endpoint("10.0.0.1", 80, "a"), expires_at=110.0, ttl=10.0))
        seen.wait_for_addresses("10.0.0.1:80")


def test_a_lease_that_is_renewed_is_no_news(tmp_path: Path) -> None:
    registrar = DirectoryRegistrar(tmp_path)
    endpoint, other = Endpoint("10.0.0.1", 80, "a"), Endpoint("10.0.0.2", 80, "b")
    registrar.announce("orders", endpoint, 10.0)
    with watching(DirectoryDiscovery(tmp_path, interval=INTERVAL)) as seen:
        for ttl in (11.0, 12.0, 13.0):
            registrar.announce("orders", endpoint, ttl)
        registrar.announce("orders", other, 10.0)
        seen.wait_for_addresses("10.0.0.1:80", "10.0.0.2:80")
        assert seen.updates == [(endpoint,), (endpoint, other)]


def test_a_file_that_is_written_in_place_is_read_again(tmp_path: Path) -> None:
    """The directory, which is all that is looked at most of the time, does not show it."""
    put(tmp_path, "a.json", b'{"host": "10.0.0.1", "port": 80}')
    for folder in (tmp_path / "orders", tmp_path):
        os.utime(folder, (1000, 1000))  # quiet for long
    with watching(DirectoryDiscovery(tmp_path, interval=INTERVAL)) as seen:
        for number in (2, 3):
            (tmp_path / "orders" / "a.json").write_text(f'{{"host": "10.0.0.{number}", "port": 80}}')
            seen.wait_for_addresses(f"10.0.0.{number}:80")


def test_a_quiet_directory_that_changes_within_one_tick_of_its_clock(tmp_path: Path) -> None:
    """Several changes that leave the same time: the last one counts all the same."""
    put(tmp_path, "a.json", b'{"host": "10.0.0.1", "port": 80}')
    with watching(DirectoryDiscovery(tmp_path, interval=0.001)) as seen:
        now = time.time_ns()
        for number in range(2, 30):
            put(tmp_path, "a.json", f'{{"host": "10.0.0.{number}", "port": 80}}'.encode())
            os.utime(tmp_path / "orders", ns=(now, now))
        seen.wait_for_addresses("10.0.0.29:80")


def test_the_same_leases_are_not_counted_again_until_one_ends() -> None:
    roll = Roll(0.1)
    leases = {"a": Lease(b"", expires_at=100.5, ttl=9.0), "b": Lease(b"")}
    counted, _ = roll.call(leases, 100.0)
    assert roll.call(leases, 100.4)[0] is counted
    assert sorted(roll.call(leases, 100.5)[0]) == ["b"]
    assert roll.call(dict(leases), 100.6)[0] is not counted


def test_foreign_files_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "a.json", b'{"host": "10.0.0.1", "port": 80}')
    for name in (".draft-1-b.json", "README", "c.json~"):
        put(tmp_path, name, b'{"host": "10.0.0.9", "port": 80}')
    (tmp_path / "orders" / "folder.json").mkdir()
    (tmp_path / "orders" / "dangling.json").symlink_to("nowhere")
    os.mkfifo(tmp_path / "orders" / "pipe.json")
    with watching(DirectoryDiscovery(tmp_path, interval=INTERVAL)) as seen:
        seen.wait_for_addresses("10.0.0.1:80")
        assert not seen.errors
        assert not caplog.records


def test_a_malformed_file_costs_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "a.json", b'{"host": "10.0.0.1", "port": 80}')
    put(tmp_path, "bad.json", b'{"host": "10.0.0.1", "port": 70000}')
    with watching(DirectoryDiscovery(tmp_path, interval=INTERVAL)) as seen:
        put(tmp_path, "b.json", b'{"host": "10.0.0.2", "port": 80}')
        seen.wait_for_addresses("10.0.0.1:80", "10.0.0.2:80")
        (record,) = caplog.records
        assert "'bad'" in record.getMessage()


def test_a_long_file_is_not_cut_to_fit(tmp_path: Path) -> None:
    put(tmp_path, "a.json", b'{"host": "10.0.0.1", "port": 80}')
    put(tmp_path, "long.json", b'{"host": "10.0.0.1", "port": 80}' + b" " * MAX_INSTANCE_BYTES)
    with watching(DirectoryDiscovery(tmp_path)) as seen:
        assert [endpoint.id for endpoint in seen.updates[0]] == ["a"]


def test_a_registry_that_is_moved_away_during_a_look_is_not_an_empty_one(tmp_path: Path) -> None:
    """Away and back, as fast as it goes, under a reader that looks all the time."""
    root, away = tmp_path / "registry", tmp_path / "away"
    root.mkdir()
    for number in range(20):
        put(root, f"{number}.json", b'{"host": "10.0.0.1", "port": 80}')
    with watching(DirectoryDiscovery(root, interval=0.001)) as seen:
        for _ in range(2000):
            root.rename(away)
            away.rename(root)
        put(root, "last.json", b'{"host": "10.0.0.2", "port": 80}')
        seen.wait_for(lambda it: len(it.updates[-1]) == 21)
        assert {len(update) for update in seen.updates} == {20, 21}


def test_a_missing_root_is_an_error_until_it_is_there(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    with watching(DirectoryDiscovery(root, interval=INTERVAL)) as seen:
        (error,) = seen.errors
        assert isinstance(error, DiscoveryError)
        assert str(root) in str(error)
        assert not seen.updates
        DirectoryRegistrar(root).announce("orders", Endpoint("10.0.0.1", 80, "a"), 10.0)
        seen.wait_for_addresses("10.0.0.1:80")


def test_a_service_directory_that_is_removed_is_an_empty_service(tmp_path: Path) -> None:
    put(tmp_path, "a.json", b'{"host": "10.0.0.1", "port": 80}')
    with watching(DirectoryDiscovery(tmp_path, interval=INTERVAL)) as seen:
        seen.wait_for_addresses("10.0.0.1:80")
        shutil.rmtree(tmp_path / "orders")
        seen.wait_for_addresses()
        assert not seen.errors


def test_a_root_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    root.write_text("")
    with watching(DirectoryDiscovery(root, interval=INTERVAL)) as seen:
        assert "Not a directory" in str(seen.errors[0])


def test_names_that_need_quoting(tmp_path: Path) -> None:
    service, id = "../team/orders v2", "10.0.0.1:80/é"
    DirectoryRegistrar(tmp_path).announce(service, Endpoint("10.0.0.1", 80, id), 10.0)
    assert os.listdir(tmp_path) == ["%2E" + quote(service, safe="")[1:]]
    with watching(DirectoryDiscovery(tmp_path, interval=INTERVAL), service) as seen:
        (update,) = seen.updates
        assert update[0].id == id


def test_many_resolvers_share_one_thread(tmp_path: Path) -> None:
    discovery = DirectoryDiscovery(tmp_path, interval=INTERVAL)
    before = set(threading.enumerate())
    for number in range(20):
        discovery.resolver(f"service-{number}").start(RecordingListener())
    (thread,) = set(threading.enumerate()) - before
    assert thread.name == "clientlb-dir"
    discovery.close()
    thread.join(10)
    assert not thread.is_alive()


def test_a_forked_child_watches_for_itself(tmp_path: Path) -> None:
    """What the parent watched stays the parent's; a resolver that the child makes works in the child."""
    put(tmp_path, "a.json", b'{"host": "10.0.0.1", "port": 80}')
    discovery = DirectoryDiscovery(tmp_path, interval=INTERVAL)
    with watching(discovery) as seen:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                listener = RecordingListener()
                resolver = discovery.resolver("orders")
                resolver.start(listener)
                put(tmp_path, "b.json", b'{"host": "10.0.0.2", "port": 80}')
                listener.wait_for_addresses("10.0.0.1:80", "10.0.0.2:80")
                resolver.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        seen.wait_for_addresses("10.0.0.1:80", "10.0.0.2:80")


def test_what_is_in_a_file(tmp_path: Path) -> None:
    """The documented form: other languages write it too."""
    endpoint = Endpoint("10.0.0.1", 80, "a", weight=2.0, zone="z", secure=True, started_at=5.0, metadata={"k": "v"})
    assert json.loads(write_lease(endpoint, expires_at=12.5, ttl=10.0)) == {
        "host": "10.0.0.1",
        "port": 80,
        "id": "a",
        "secure": True,
        "metadata": {"k": "v", "weight": "2.0", "zone": "z", "started_at": "5.0"},
        "expires_at": 12.5,
        "ttl": 10.0,
    }
