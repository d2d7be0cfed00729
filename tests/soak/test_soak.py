"""Minutes of traffic while servers crash, leave and come, and their registry with them. No call may fail.

`SOAK_SECONDS` says how long each registry is soaked (default 120). What happens is random, from a seed that the
failure names.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from clientlb import Services
from tests.conftest import running
from tests.e2e.faults import History
from tests.e2e.fleet import Fleet, fleet_in
from tests.e2e.traffic import Traffic
from tests.servers.consul import ConsulCluster, ConsulServer
from tests.servers.process import ServerProcess, wait_until
from tests.servers.zookeeper import ZooKeeperServer

SECONDS = float(os.environ.get("SOAK_SECONDS", "120"))
SEED = int(os.environ.get("SOAK_SEED", str(time.time_ns() % 10_000)))
SHELLS = ("httpx async", "httpx2 sync", "grpc aio", "grpc sync")
KINDS = ("dir", "zookeeper", "consul", "consul with two agents")
NODE_LOST_AFTER = 8.0  # seconds: by then Consul has told everybody that a node is gone


@contextmanager
def registry(kind: str, folder: Path) -> Iterator[tuple[str, str, ServerProcess | None]]:
    """The URL for the callers, the one for the servers, and what may be killed."""
    with ExitStack() as stack:
        if kind == "dir":
            yield f"dir://{folder}", f"dir://{folder}", None
        elif kind == "consul with two agents":
            cluster = stack.enter_context(running(ConsulCluster()))
            callers, servers, _ = cluster.servers
            yield callers.url, servers.url, servers
        else:
            server = stack.enter_context(running({"zookeeper": ZooKeeperServer, "consul": ConsulServer}[kind]()))
            yield server.url, server.url, server


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_costs_a_call(kind: str, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    happened: list[str] = []
    with registry(kind, tmp_path) as (url, servers_url, server):
        descriptors, threads = count_descriptors(), threading.active_count()
        with fleet_in(servers_url, size=4, spares=2) as fleet:
            history = History(fleet)
            with Services(url, hooks=[history]) as services:
                with ExitStack() as calling:
                    traffics = [calling.enter_context(Traffic(shell, services, fleet)) for shell in SHELLS]
                    end = time.monotonic() + SECONDS
                    while True:
                        for traffic in traffics:
                            traffic.wait_only_confirmed(fleet.names)
                            traffic.wait_served_by(*fleet.names, timeout=60)
                            traffic.check_no_failures()
                        # a registry that was never seen to fail is believed when it says that few of many are gone
                        believed = kind == "consul with two agents"
                        assert believed or not history.losses, f"{history.losses} served when let go: {happened}"
                        if time.monotonic() > end:
                            break
                        act = rng.choice(["crash", "leave", "crash", "leave"] + ["registry"] * bool(server))
                        happened.append(act)
                        if server is not None and act == "registry":
                            restart(server, traffics, rng)
                        else:
                            change(fleet, act, rng)
                for traffic in traffics:
                    traffic.check_no_failures()
                    traffic.check_nothing_in_flight()
        wait_until(lambda: threading.active_count() <= threads, 15, f"{threads} threads are left")
        wait_until(lambda: count_descriptors() <= descriptors, 15, f"{descriptors} descriptors are left")
    calls = sum(len(traffic.calls) for traffic in traffics)
    print(f"\n{kind}, seed {SEED}: {calls} calls, {len(happened)} things happened, no call failed")


def restart(server: ServerProcess, traffics: list[Traffic], rng: random.Random) -> None:
    """Kill the registry, or the part of it in which the servers are, and start it again at once or much later."""
    server.kill()
    if rng.random() < 0.5:
        traffics[0].go_on(time.monotonic() + NODE_LOST_AFTER)
    for traffic in traffics:
        traffic.wait_calls(100)
    server.start()


def change(fleet: Fleet, act: str, rng: random.Random) -> None:
    """Let one or two servers go, and have them replaced."""
    for _ in range(rng.choice([1, 1, 2])):
        if act == "crash":
            fleet.kill(rng.choice(sorted(fleet.names)))
        else:
            fleet.lose_one()
    fleet.fill()


def count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
