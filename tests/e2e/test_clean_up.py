"""Whoever closes has everything back: no thread, no socket, no file descriptor stays behind."""

from __future__ import annotations

import json
import os
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from clientlb import Endpoint, Services
from tests.conftest import running
from tests.e2e.fleet import Fleet, fleet_in
from tests.e2e.shells import SHELLS, call_once, speaks_grpc
from tests.servers.dns import DnsServer
from tests.servers.process import wait_until

ROUNDS = 3


@pytest.fixture(scope="module")
def fleet(registry: str) -> Iterator[Fleet]:
    with fleet_in(registry, size=1, spares=0) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Endpoint]]:
    """Where one server is found: by HTTP as `web`, by gRPC as `rpc`."""
    registry = f"dir://{tmp_path_factory.mktemp('registry')}"
    with fleet_in(registry, size=1, spares=0) as fleet:
        with Services(registry) as services:
            found = {}
            for kind, service in (("web", fleet.web), ("rpc", fleet.rpc)):
                with services[service].pick() as pick:
                    found[kind] = pick.endpoint
        yield found


@pytest.fixture(scope="module")
def nameserver() -> Iterator[DnsServer]:
    with running(DnsServer()) as server:
        yield server


def held() -> Counter[str]:
    """What this process holds: its threads by name and its file descriptors by kind, numbers left out."""
    kinds = [f"thread {thread.name}" for thread in threading.enumerate()]
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            kinds.append(f"descriptor {os.readlink(f'/proc/self/fd/{descriptor}')}")
        except FileNotFoundError:
            continue  # the one that listed the folder
    return Counter(re.sub(r"\d+", "N", kind) for kind in kinds)


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("clientlb-")]


def check(shell: str, registry: str, service: str, *, has_thread: bool = True) -> None:
    """Call a service, close everything, and again; what is there afterwards was there before."""

    def use() -> None:
        with Services(registry) as services:
            assert call_once(shell, services, service)
            assert bool(our_threads()) is has_thread, "the watch has a thread that tells whose it is"

    use()  # what libraries make once and keep, they have now
    wait_until(lambda: not our_threads(), 30, "no thread of ours is left")
    before = held()
    for _ in range(ROUNDS):
        use()
    try:
        # not at once: closing does not wait for a registry that may hang
        wait_until(lambda: not our_threads() and not held() - before)
    except AssertionError:
        pytest.fail(f"left behind after {ROUNDS} rounds: {held() - before}, {our_threads()}")


@pytest.mark.parametrize("shell", SHELLS, scope="class")
class TestEachShell:
    def test_nothing_is_left_behind(self, shell: str, fleet: Fleet) -> None:
        check(shell, fleet.registry, fleet.rpc if speaks_grpc(shell) else fleet.web)

    @pytest.mark.parametrize("kind", ["static", "file", "dns", "dns+srv"])
    def test_nor_by_registries_where_nobody_registers(
        self, shell: str, kind: str, server: dict[str, Endpoint], nameserver: DnsServer, tmp_path: Path
    ) -> None:
        endpoint = server["rpc" if speaks_grpc(shell) else "web"]
        if kind == "static":
            url = f"static://{endpoint.host}:{endpoint.port}"
        elif kind == "file":
            (tmp_path / "services.json").write_text(json.dumps([f"{endpoint.host}:{endpoint.port}"]))
            url = f"file://{tmp_path}/services.json"
        elif kind == "dns":
            nameserver.serve("orders.test. 5 IN A 127.0.0.1")
            url = f"dns://{{service}}.test:{endpoint.port}?resolver={nameserver.address}"
        else:
            nameserver.serve(f"_x._tcp.orders.test. 5 IN SRV 0 1 {endpoint.port} a.test.", "a.test. 5 IN A 127.0.0.1")
            url = f"dns+srv://_x._tcp.{{service}}.test?resolver={nameserver.address}"
        check(shell, url, "orders", has_thread=kind != "static")
