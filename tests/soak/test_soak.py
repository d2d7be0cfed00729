"""Minutes of traffic while servers crash, leave and come, and their registry with them. No call may fail.

`SOAK_SECONDS` says how long each registry is soaked (default 120). What happens is random, from a seed that the
failure names.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from pathlib import Path

import pytest

from clientlb import Services
from tests.conftest import running
from tests.e2e.fleet import Fleet, fleet_in
from tests.e2e.shells import REGISTRIES
from tests.e2e.traffic import Traffic
from tests.servers.consul import ConsulServer
from tests.servers.process import wait_until
from tests.servers.zookeeper import ZooKeeperServer

SECONDS = float(os.environ.get("SOAK_SECONDS", "120"))
SEED = int(os.environ.get("SOAK_SEED", str(time.time_ns() % 10_000)))
SHELLS = ("httpx async", "httpx2 sync", "grpc aio", "grpc sync")


@pytest.mark.parametrize("kind", REGISTRIES)
def test_nothing_costs_a_call(kind: str, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    happened: list[str] = []
    with contextlib.ExitStack() as stack:
        registry = {"zookeeper": ZooKeeperServer, "consul": ConsulServer}.get(kind)
        server = stack.enter_context(running(registry())) if registry else None
        url = server.url if server else f"dir://{tmp_path}"
        descriptors, threads = count_descriptors(), threading.active_count()
        with fleet_in(url, size=4, spares=2) as fleet, Services(url) as services:
            with contextlib.ExitStack() as calling:
                traffics = [calling.enter_context(Traffic(shell, services, fleet)) for shell in SHELLS]
                for traffic in traffics:
                    traffic.wait_endpoints(4)
                end = time.monotonic() + SECONDS
                while time.monotonic() < end:
                    act = rng.choice(["crash", "leave", "crash", "leave"] + ["registry"] * bool(server))
                    happened.append(act)
                    if server is not None and act == "registry":
                        server.kill()
                        for traffic in traffics:
                            traffic.wait_calls(100)
                        server.start()
                    else:
                        change(fleet, act, rng)
                    for traffic in traffics:
                        traffic.wait_endpoints(4)
                        traffic.wait_served_by(*fleet.names, timeout=60)
                        traffic.check_no_failures()
            for traffic in traffics:
                traffic.check_no_failures()
                traffic.check_nothing_in_flight()
        wait_until(lambda: threading.active_count() <= threads, 15, f"{threads} threads are left")
        wait_until(lambda: count_descriptors() <= descriptors, 15, f"{descriptors} descriptors are left")
    calls = sum(len(traffic.calls) for traffic in traffics)
    print(f"\n{kind}, seed {SEED}: {calls} calls, {len(happened)} things happened, no call failed")


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
