"""The server processes of a test: a few that serve, and spares that are warm and only have to register."""

from __future__ import annotations

import contextlib
import itertools
import json
import select
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clientlb import Endpoint

TTL = 2.0
"""Seconds after which a killed server is out of the registry, if a fleet is not told otherwise."""

_PATIENCE = 30.0
_ROOT = Path(__file__).parents[2]


class Server:
    """One process of `tests.e2e.server`."""

    def __init__(self, name: str, registry: str, web: str, rpc: str, ttl: float) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `end`
        self._ready = False
        self._times: dict[str, float] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.server", name, registry, web, rpc, str(ttl)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=_ROOT,
            start_new_session=True,  # a Ctrl-C at the terminal is for pytest, which then ends us
        )

    def join(self) -> None:
        """Tell it to register; `joined` waits until it has."""
        if not self._ready:
            assert self._line() == "ready"
            self._ready = True
        assert self._process.stdin is not None
        self._process.stdin.write(b"join\n")
        self._process.stdin.flush()

    def joined(self) -> dict[str, float]:
        """When it was registered as what, in seconds of the monotonic clock."""
        if not self._times:
            self._times = json.loads(self._line())
        return self._times

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self._process.kill()
        self._process.wait()

    def leave(self) -> None:
        """SIGTERM: leave gracefully. Returns when it has ended."""
        self._process.terminate()
        status = self._process.wait(_PATIENCE)
        assert status == 0, f"server {self.name} ended with {status}:\n{self._complaints()}"

    def end(self) -> None:
        self.kill()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._log.close()

    def _line(self) -> str:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], _PATIENCE)
        line = self._process.stdout.readline().decode().strip() if readable else ""
        assert line, f"server {self.name} says nothing:\n{self._complaints()}"
        return line

    def _complaints(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-3000:]


def names_of(endpoints: Iterable[Endpoint]) -> set[str]:
    """The servers behind endpoints: an id is `NAME-SERVICE`, in Consul after its node and the service."""
    return {endpoint.id.rpartition(":")[2].partition("-")[0] for endpoint in endpoints}


class Fleet:
    """All servers of one pair of services (`web` speaks HTTP, `rpc` gRPC) in one registry.

    Args:
        registry: Its URL.
        size: Servers that serve.
        spares: Servers that are kept warm besides.
        ttl: Seconds after which a killed server is out of the registry.
    """

    def __init__(self, registry: str, *, size: int = 3, spares: int = 2, ttl: float = TTL) -> None:
        suffix = uuid.uuid4().hex[:8]
        self.registry, self.web, self.rpc = registry, f"web-{suffix}", f"rpc-{suffix}"
        self.size = size
        self._ttl = ttl
        self.serving: list[Server] = []
        self._numbers = itertools.count(1)
        self._all: list[Server] = []
        self._spares: list[Server] = []
        for _ in range(size + spares):
            self._start_spare()

    def _start_spare(self) -> None:
        server = Server(f"s{next(self._numbers)}", self.registry, self.web, self.rpc, self._ttl)
        self._all.append(server)
        self._spares.append(server)

    def add(self) -> Server:
        """Tell the spare that has been warm for longest to register. It counts as serving from now."""
        server = self._spares.pop(0)
        self._start_spare()
        server.join()
        self.serving.append(server)
        return server

    def fill(self) -> None:
        """Have the full number of servers again, all registered."""
        added = []
        while len(self.serving) < self.size:
            server = self._spares.pop(0)
            server.join()
            self.serving.append(server)
            added.append(server)
        for server in added:
            server.joined()
            self._start_spare()

    def kill(self, name: str) -> Server:
        """SIGKILL one of those that serve."""
        [server] = [server for server in self.serving if server.name == name]
        self.serving.remove(server)
        server.kill()
        return server

    def lose_one(self) -> Server:
        """Let one leave gracefully; returns when it has ended."""
        server = self.serving.pop(0)
        server.leave()
        return server

    @property
    def names(self) -> set[str]:
        """The names of those that serve."""
        return {server.name for server in self.serving}

    def end(self) -> None:
        for server in self._all:
            server.end()


@contextmanager
def fleet_in(registry: str, *, size: int = 3, spares: int = 2, ttl: float = TTL) -> Iterator[Fleet]:
    """A fleet that serves."""
    fleet = Fleet(registry, size=size, spares=spares, ttl=ttl)
    try:
        fleet.fill()
        yield fleet
    finally:
        fleet.end()
