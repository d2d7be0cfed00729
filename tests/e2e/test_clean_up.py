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


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("clientlb-")]


@pytest.mark.parametrize("shell", SHELLS, scope="class")
class TestEachShell:
    def test_nothing_is_left_behind(self, shell: str, fleet: Fleet) -> None:
        service = fleet.rpc if speaks_grpc(shell) else fleet.web

        def use() -> None:
            with Services(fleet.registry) as services:
                assert call_once(shell, services, service) in fleet.names
                assert our_threads(), "the watch has a thread that tells whose it is"

        use()  # what libraries make once and keep, they have now
        wait_until(lambda: not our_threads(), 5.0, "no thread of ours is left")
        before = held()
        for _ in range(ROUNDS):
            use()
        try:
            # not at once: closing does not wait for a registry that may hang
            wait_until(lambda: not our_threads() and not held() - before, 5.0)
        except AssertionError:
            pytest.fail(f"left behind after {ROUNDS} rounds: {held() - before}, {our_threads()}")
