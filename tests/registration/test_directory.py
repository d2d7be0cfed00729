"""Servers that are found through a directory: from `register` in one process to the list in another."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clientlb.discovery.directory import DirectoryDiscovery
from clientlb.endpoint import Endpoint
from clientlb.errors import InvalidEndpointError, RegistrationError
from clientlb.registration import register
from clientlb.registration.directory import SWEEP_AFTER, DirectoryRegistrar
from clientlb.testing import FakeClock, RecordingListener

PATIENCE = 15.0
A = Endpoint("127.0.0.1", 7001, "a")


@contextlib.contextmanager
def watching(root: Path, service: str = "orders") -> Iterator[RecordingListener]:
    root.mkdir(exist_ok=True)
    with contextlib.closing(DirectoryDiscovery(root, interval=0.02)) as discovery:
        listener = RecordingListener()
        discovery.resolver(service).start(listener)
        yield listener


def files(root: Path, service: str = "orders") -> list[str]:
    return sorted(os.listdir(root / service))


def test_registered_is_found_and_closed_is_gone(tmp_path: Path) -> None:
    url = f"dir://{tmp_path}"
    with watching(tmp_path) as seen:
        with register("orders", port=7001, to=url, weight=2.0, zone="z", metadata={"k": "v"}) as first:
            seen.wait_for_addresses("127.0.0.1:7001")
            assert seen.endpoints == (first.endpoint,)
            with register("orders", port=7002, to=url):
                seen.wait_for_addresses("127.0.0.1:7001", "127.0.0.1:7002")
            seen.wait_for_addresses("127.0.0.1:7001")
        seen.wait_for_addresses()
    assert files(tmp_path) == []


async def test_async_with(tmp_path: Path) -> None:
    async with register("orders", port=7001, to=f"dir://{tmp_path}") as registration:
        assert registration.wait(PATIENCE)
        assert len(files(tmp_path)) == 1
    assert files(tmp_path) == []


def test_the_lease_is_kept_alive(tmp_path: Path) -> None:
    """Longer than one lease, and without a gap in the list."""
    renewed = threading.Event()

    class Counting(DirectoryRegistrar):
        announcements = 0

        def announce(self, service: str, endpoint: Endpoint, ttl: float) -> None:
            super().announce(service, endpoint, ttl)
            self.announcements += 1
            if self.announcements == 5:
                renewed.set()

    with watching(tmp_path) as seen, register("orders", port=7001, to=Counting(tmp_path), ttl=2.4) as registration:
        seen.wait_for_addresses("127.0.0.1:7001")
        assert renewed.wait(PATIENCE)
        assert seen.updates[-1] == (registration.endpoint,)
        assert len(seen.updates) <= 2


SERVER = """
import sys, threading
from clientlb.registration import register
with register("orders", port=int(sys.argv[2]), to=sys.argv[1], ttl=0.6) as registration:
    registration.wait(10)
    print("registered", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def server_process(root: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, f"dir://{root}", str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "registered\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)


def test_a_server_that_is_killed_is_gone_when_its_lease_ends(tmp_path: Path) -> None:
    with watching(tmp_path) as seen, server_process(tmp_path, 7001) as killed, server_process(tmp_path, 7002):
        seen.wait_for_addresses("127.0.0.1:7001", "127.0.0.1:7002", timeout=PATIENCE)
        killed.send_signal(signal.SIGKILL)
        seen.wait_for_addresses("127.0.0.1:7002", timeout=PATIENCE)


def test_a_server_that_ends_is_gone_at_once(tmp_path: Path) -> None:
    with watching(tmp_path) as seen, server_process(tmp_path, 7001) as leaving:
        seen.wait_for_addresses("127.0.0.1:7001", timeout=PATIENCE)
        leaving.communicate(timeout=PATIENCE)
        assert leaving.returncode == 0
        assert files(tmp_path) == []
        seen.wait_for_addresses(timeout=PATIENCE)


def test_a_registry_that_is_wiped_is_filled_again(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    with watching(root) as seen, register("orders", port=7001, to=f"dir://{root}", ttl=0.3):
        seen.wait_for_addresses("127.0.0.1:7001")
        root.rename(tmp_path / "away")
        seen.wait_for(lambda it: len(it.updates) > 1 or it.errors)
        seen.wait_for_addresses("127.0.0.1:7001")
        seen.wait_for(lambda it: (root / "orders").exists() and files(root))


def test_a_registry_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "registry"
    root.write_text("a file")
    with register("orders", port=7001, to=f"dir://{root}", ttl=0.3) as registration:
        assert not registration.wait(0.05)
        root.unlink()
        assert registration.wait(PATIENCE)
    assert "is not announced" in caplog.text
    assert files(root) == []


def test_errors_say_where(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    root.write_text("a file")
    registrar = DirectoryRegistrar(root)
    with pytest.raises(RegistrationError, match=f"dir://{root}: Not a directory"):
        registrar.announce("orders", A, 10.0)
    with pytest.raises(RegistrationError, match=f"dir://{root}: Not a directory"):
        registrar.withdraw("orders", A)
    with pytest.raises(InvalidEndpointError, match="too much metadata"):
        DirectoryRegistrar(tmp_path).announce("orders", Endpoint("h", 80, metadata={"k": "v" * 70_000}), 10.0)


def test_withdrawing_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    DirectoryRegistrar(tmp_path).withdraw("orders", A)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "orders" / "a.json" / "in the way").mkdir(parents=True)
    with pytest.raises(RegistrationError):
        DirectoryRegistrar(tmp_path).announce("orders", A, 10.0)
    assert files(tmp_path) == ["a.json"]


def test_a_very_long_id_is_an_error_and_no_crash(tmp_path: Path) -> None:
    with pytest.raises(RegistrationError, match="File name too long"):
        DirectoryRegistrar(tmp_path).announce("orders", Endpoint("h", 80, "x" * 300), 10.0)


def test_what_died_long_ago_is_swept(tmp_path: Path) -> None:
    clock = FakeClock(100_000.0)
    registrar = DirectoryRegistrar(tmp_path, clock=clock)
    registrar.announce("orders", A, 10.0)
    (tmp_path / "orders" / ".draft-1-x.json").write_text("{")
    os.utime(tmp_path / "orders" / ".draft-1-x.json", (100_000, 100_000))
    (tmp_path / "orders" / "for-ever.json").write_text('{"host": "h", "port": 1}')
    (tmp_path / "orders" / "README").write_text("not ours")
    clock.advance(SWEEP_AFTER)
    DirectoryRegistrar(tmp_path, clock=clock).announce("orders", Endpoint("127.0.0.1", 7002, "b"), 10.0)
    assert files(tmp_path) == [".draft-1-x.json", "README", "a.json", "b.json", "for-ever.json"]
    clock.advance(60.0)
    DirectoryRegistrar(tmp_path, clock=clock).announce("orders", Endpoint("127.0.0.1", 7003, "c"), 10.0)
    assert files(tmp_path) == ["README", "b.json", "c.json", "for-ever.json"]


def test_readers_never_see_half_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registrar = DirectoryRegistrar(tmp_path)
    big = Endpoint("127.0.0.1", 7001, "a", metadata={str(number): "x" * 100 for number in range(300)})
    registrar.announce("orders", big, 10.0)
    discovery = DirectoryDiscovery(tmp_path, interval=0.001)
    with contextlib.closing(discovery):
        listener = RecordingListener()
        discovery.resolver("orders").start(listener)
        for ttl in range(10, 310):
            registrar.announce("orders", big, float(ttl))
        registrar.announce("orders", Endpoint("127.0.0.1", 7002, "b"), 10.0)
        listener.wait_for_addresses("127.0.0.1:7001", "127.0.0.1:7002")
    assert [len(update) for update in listener.updates] == [1, 2]
    assert not caplog.records
