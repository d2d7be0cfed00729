"""Whoever closes has everything back: no thread, no socket, no file descriptor stays behind."""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from clientlb import Services
from tests.e2e.fleet import Fleet, fleet_in
from tests.e2e.shells import SHELLS, call_once, speaks_grpc
from tests.servers.process import wait_until

ROUNDS = 3


@pytest.fixture(scope="module")
def fleet(registry: str) -> Iterator[Fleet]:
    with fleet_in(registry, size=1, spares=0) as fleet:
        yield fleet


def held() -> Counter[str]:
    """What this process holds: its threads by name and its file descriptors by kind, numbers left out."""
    kinds = [f"thread {thread.name}" for thread in threading.enumerate()]
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            kinds.append(f"descriptor {os.readlink(f'/proc/self/fd/{descriptor}')}")
        except FileNotFoundError:
            continue  # the one that listed the folder
    return Counter(re.sub(r"\d+", "N", kind) for kind in kinds)


@pytest.mark.parametrize("shell", SHELLS, scope="class")
class TestEachShell:
    def test_nothing_is_left_behind(self, shell: str, fleet: Fleet) -> None:
        service = fleet.rpc if speaks_grpc(shell) else fleet.web

        def use() -> None:
            with Services(fleet.registry) as services:
                assert call_once(shell, services, service) in fleet.names
                running = [thread.name for thread in threading.enumerate() if thread.name.startswith("clientlb-")]
                assert running, "the watch has a thread that tells whose it is"

        use()  # what libraries make once and keep, they have now
        before = held()
        for _ in range(ROUNDS):
            use()
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("clientlb-")]
        try:
            wait_until(lambda: not held() - before, 5.0)  # kazoo's threads and gRPC's core end in their own time
        except AssertionError:
            pytest.fail(f"left behind after {ROUNDS} rounds: {held() - before}")
