"""Real servers in other processes that are checked, and what is seen of that."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import clientlb
from clientlb import Endpoint, HealthOptions, Options, Services, events
from clientlb.check_options import Check
from clientlb.testing import ManualDiscovery
from tests.servers.process import free_ports, open_descriptors, wait_until

ROOT = Path(__file__).parents[2]


class CheckedServer:
    """A server on a port of its own. It may be killed and started again."""

    def __init__(self, kind: str, *files: str) -> None:
        self._kind, self._files = kind, files
        (self.port,) = free_ports(1)
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.checking.server", self._kind, str(self.port), *self._files]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def tell(self, line: str) -> dict[str, Any]:
        """Tell the server something; returns its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        return json.loads(self._process.stdout.readline())  # type: ignore[no-any-return]

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def stop(self) -> None:
        self._process.communicate()  # closes its standard input and waits

    def endpoint(self, **facts: Any) -> Endpoint:
        return Endpoint("127.0.0.1", self.port, **facts)


@pytest.fixture
def serve() -> Iterator[Callable[..., CheckedServer]]:
    """Starts a server."""
    with contextlib.ExitStack() as running:

        def serve(kind: str, *files: str) -> CheckedServer:
            server = CheckedServer(kind, *files)
            running.callback(server.stop)
            return server

        yield serve


class Watched:
    """A service whose endpoints are checked, and its events. An endpoint may be ejected though no other one passes."""

    def __init__(self, check: Check | None, *, suspend: bool = False, **health: Any) -> None:
        self.events: list[events.Event] = []
        self.discovery = ManualDiscovery()
        options = Options(
            policy="round_robin",
            health=HealthOptions(check=check, suspend=suspend, **health),
            guard=clientlb.GuardOptions(hold=0, empty_hold=0),
        )
        self.services = Services(self.discovery, options=options, hooks=[self.events.append])
        self.balancer = self.services["orders"]

    def set(self, *endpoints: Endpoint) -> None:
        self.discovery.set("orders", list(endpoints))

    def reasons(self, kind: type[events.Event] = events.Ejected) -> list[str]:
        return [getattr(event, "reason", "") for event in self.events if isinstance(event, kind)]

    def wait_for(self, kind: type[events.Event], times: int = 1) -> None:
        wait_until(lambda: len(self.reasons(kind)) >= times, 20, f"{times} x {kind.__name__}")

    def wait_for_passes(self, passes: int = 1) -> None:
        def passed() -> bool:
            checkups = [node.breaker.checkup for node in self.balancer.nodes]
            return all(checkup is not None and checkup.passes >= passes for checkup in checkups)

        wait_until(passed, 20, f"{passes} passes of everybody")

    @property
    def healthy(self) -> int:
        return self.balancer.stats().healthy


@pytest.fixture
def watched() -> Iterator[Callable[..., Watched]]:
    """Begins to check a service."""
    with contextlib.ExitStack() as open_ones:

        def watched(check: Check | None, **health: Any) -> Watched:
            made = Watched(check, **health)
            open_ones.callback(made.services.close)
            return made

        yield watched


def threads() -> list[str]:
    """The threads of checks that run in this process."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("clientlb-check")]


def descriptors() -> list[str]:
    """What this process has open, apart from files."""
    return open_descriptors("socket", "anon_inode", "pipe")
