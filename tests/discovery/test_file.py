"""Endpoints in a file that somebody else writes."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from clientlb.discovery.file import MAX_FILE_BYTES, FileDiscovery
from clientlb.endpoint import Endpoint
from clientlb.errors import ClosedError, ConfigurationError, DiscoveryError
from clientlb.testing import DiscoveryContract, RecordingListener

INTERVAL = 0.02


def replace(path: Path, text: str) -> None:
    draft = path.with_name("draft")
    draft.write_text(text)
    os.replace(draft, path)


def entry(endpoint: Endpoint) -> dict[str, Any]:
    fields = {"weight": endpoint.weight, "zone": endpoint.zone, "version": endpoint.version}
    return {"host": endpoint.host, "port": endpoint.port, "id": endpoint.id} | {k: v for k, v in fields.items() if v}


class TestContract(DiscoveryContract):
    breakable = True
    can_be_malformed = True

    @pytest.fixture(autouse=True)
    def file(self, tmp_path: Path) -> None:
        self.path = tmp_path / "services.json"
        self.services: dict[str, list[Any]] = {}
        self.broken = False
        self.write()

    def write(self) -> None:
        replace(self.path, "{" if self.broken else json.dumps(self.services))

    def make_discovery(self) -> FileDiscovery:
        return FileDiscovery(self.path, interval=INTERVAL)

    def put(self, service: str, endpoints: Sequence[Endpoint]) -> None:
        self.services[service] = [entry(endpoint) for endpoint in endpoints]
        self.write()

    def put_malformed(self, service: str) -> None:
        self.services[service].append({"host": "10.0.0.1", "port": 70000})
        self.write()

    def break_registry(self) -> None:
        self.broken = True
        self.write()

    def mend_registry(self) -> None:
        self.broken = False
        self.write()


class TestContractWhenTheFileVanishes(TestContract):
    def write(self) -> None:
        if self.broken:
            self.path.unlink()
        else:
            super().write()


@contextlib.contextmanager
def watching(path: Path, service: str = "orders") -> Iterator[RecordingListener]:
    with contextlib.closing(FileDiscovery(path, interval=INTERVAL)) as discovery:
        listener = RecordingListener()
        discovery.resolver(service).start(listener)
        yield listener


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.json", '{"orders": ["10.0.0.1:80", {"host": "10.0.0.2", "port": 81}], "users": []}'),
        ("s.json", '["10.0.0.1:80", "10.0.0.2:81"]'),
        ("s.json", '[{"address": "10.0.0.1", "port": 80}, "10.0.0.2:81"]'),
        ("s.toml", 'orders = ["10.0.0.1:80", {host = "10.0.0.2", port = 81}]'),
        ("s.toml", '[[orders]]\nhost = "10.0.0.1"\nport = 80\n[[orders]]\nhost = "10.0.0.2"\nport = 81\n'),
        ("services", '{"orders": ["10.0.0.1:80", "10.0.0.2:81"]}'),
    ],
)
def test_forms_of_the_file(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with watching(path) as seen:
        (update,) = seen.updates  # before start() returned
        assert sorted(map(str, update)) == ["10.0.0.1:80", "10.0.0.2:81"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.json", "", "cannot be parsed"),
        ("s.json", "not json", "cannot be parsed"),
        ("s.json", "[" * 100_000, "cannot be parsed"),
        ("s.json", '"10.0.0.1:80"', "a list of endpoints was expected for orders, not str"),
        ("s.json", "null", "a list of endpoints was expected for orders, not NoneType"),
        ("s.json", '{"orders": "10.0.0.1:80"}', "a list of endpoints was expected for orders, not str"),
        ("s.json", '{"orders": {"host": "h", "port": 1}}', "a list of endpoints was expected for orders, not dict"),
        ("s.toml", "orders = [", "cannot be parsed"),
        ("s.toml", '["10.0.0.1:80"]\norders', "cannot be parsed"),
    ],
)
def test_what_is_no_such_file(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with watching(path) as seen:
        (error,) = seen.errors
        assert isinstance(error, DiscoveryError)
        assert message in str(error)
        assert path.as_uri() in str(error)
        assert not seen.updates


def test_what_cannot_be_read(tmp_path: Path) -> None:
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    os.mkfifo(tmp_path / "pipe.json")
    for path, message in [
        (tmp_path / "missing.json", "No such file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe.json", "not a regular file"),
        (huge, "more than"),
    ]:
        with watching(path) as seen:
            assert message in str(seen.errors[0])


def test_bad_entries_among_good_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "s.json"
    path.write_text('{"orders": ["10.0.0.1:80", "10.0.0.2", 7, {"host": "h", "port": 0}, null, "10.0.0.3:80"]}')
    with watching(path) as seen:
        seen.wait_for_addresses("10.0.0.1:80", "10.0.0.3:80")
        lines = [record.getMessage() for record in caplog.records]
        assert [line.partition("entry ")[2].partition(" is")[0] for line in lines] == ["2", "3", "4", "5"]
        replace(path, '{"orders": ["10.0.0.1:80"]}')
        seen.wait_for_addresses("10.0.0.1:80")
        assert len(caplog.records) == 4
        assert not seen.errors


def test_a_service_that_leaves_the_file_has_no_endpoints(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text('{"orders": ["10.0.0.1:80"]}')
    with watching(path) as seen:
        replace(path, '{"users": ["10.0.0.1:80"]}')
        seen.wait_for_addresses()


def test_a_file_that_is_written_in_place(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text('["10.0.0.1:80"]')
    with watching(path) as seen:
        path.write_text('["10.0.0.2:80"]')
        seen.wait_for_addresses("10.0.0.2:80")


def test_a_link_that_is_pointed_elsewhere(tmp_path: Path) -> None:
    """How Kubernetes replaces a ConfigMap."""
    path = tmp_path / "s.json"
    for number in (1, 2):
        (tmp_path / f"v{number}").write_text(f'["10.0.0.{number}:80"]')
    path.symlink_to("v1")
    with watching(path) as seen:
        (tmp_path / "link").symlink_to("v2")
        os.replace(tmp_path / "link", path)
        seen.wait_for_addresses("10.0.0.2:80")


def test_a_file_of_the_same_size_and_time(tmp_path: Path) -> None:
    """As archives and `cp -p` leave them."""
    path, other = tmp_path / "s.json", tmp_path / "other"
    for number, file in enumerate((path, other), 1):
        file.write_text(f'["10.0.0.{number}:80"]')
        os.utime(file, (1000, 1000))
    with watching(path) as seen:
        os.replace(other, path)
        seen.wait_for_addresses("10.0.0.2:80")


def test_the_same_file_after_an_outage_says_that_it_is_over(tmp_path: Path) -> None:
    path, away = tmp_path / "s.json", tmp_path / "away"
    path.write_text('["10.0.0.1:80"]')
    with watching(path) as seen:
        path.rename(away)
        seen.wait_for(lambda it: it.errors)
        away.rename(path)
        seen.wait_for(lambda it: len(it.updates) == 2)
        assert seen.updates[0] == seen.updates[1]


def test_news_of_the_same_trouble_does_not_pile_up(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text("{")
    with watching(path) as seen, watching(path) as control:
        replace(path, "[[")
        replace(path, '["10.0.0.1:80"]')
        control.wait_for_addresses("10.0.0.1:80")
        seen.wait_for_addresses("10.0.0.1:80")
        assert len(seen.errors) <= 2


def file_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "clientlb-file"]


def test_one_thread_from_the_first_resolver_to_the_last(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text('["10.0.0.1:80"]')
    discovery = FileDiscovery(path, interval=3600.0)
    resolvers = [discovery.resolver(name) for name in ("orders", "users", "stock")]
    assert not file_threads()
    for resolver in resolvers:
        resolver.start(RecordingListener())
    (thread,) = file_threads()
    assert thread.daemon
    for resolver in resolvers:
        resolver.close()
    thread.join(10)
    assert not thread.is_alive()

    again = discovery.resolver("orders")
    again.start(RecordingListener())
    (thread,) = file_threads()
    discovery.close()
    thread.join(10)
    assert not thread.is_alive()
    again.close()
    assert not file_threads()


def test_what_was_closed_does_not_start_again(tmp_path: Path) -> None:
    discovery = FileDiscovery(tmp_path / "s.json", interval=INTERVAL)
    resolver, other = discovery.resolver("orders"), discovery.resolver("orders")
    resolver.close()
    with pytest.raises(ClosedError):
        resolver.start(RecordingListener())
    discovery.close()
    with pytest.raises(ClosedError):
        other.start(RecordingListener())
    assert not file_threads()


@pytest.mark.parametrize("interval", [0, -1.0, float("nan"), float("inf"), "1", True])
def test_an_interval_that_cannot_be(tmp_path: Path, interval: Any) -> None:
    with pytest.raises(ConfigurationError, match="interval is a number of seconds"):
        FileDiscovery(tmp_path / "s.json", interval=interval)


@pytest.mark.parametrize("path", ["", "a\0b", None, 5])
def test_a_path_that_cannot_be(path: Any) -> None:
    with pytest.raises(ConfigurationError, match="is not a path"):
        FileDiscovery(path)
