"""The server processes of the demo: start, kill, slow down, ask to leave. Whatever happens, they end with the demo."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Self

from clientlb.endpoint import Endpoint
from clientlb.errors import ClientLBError, RegistrationError
from clientlb.registration import open_registrar

_TIME_TO_START = 20.0
_TIME_TO_END = 3.0


class ServerProcess:
    """One server, as the demo sees it.

    Attributes:
        name: What people call it, such as `web-1`.
        endpoint: Where it listens, under the identity that it has in the registry.
        started: When it was announced, in seconds of `time.monotonic`.
    """

    def __init__(self, name: str, service: str, process: asyncio.subprocess.Process, endpoint: Endpoint) -> None:
        self.name = name
        self.service = service
        self.endpoint = endpoint
        self.started: float = time.monotonic()
        self.killed: bool = False
        self._process = process

    async def kill(self) -> None:
        """SIGKILL: it disappears without a word."""
        self.killed = True
        with contextlib.suppress(ProcessLookupError):  # somebody else was faster
            self._process.kill()
        await self._process.wait()

    async def slow_down(self, delay: float) -> None:
        """From now on each call takes it `delay` seconds."""
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):  # it is gone
            self._process.stdin.write(f"delay {delay}\n".encode())
            await self._process.stdin.drain()

    async def leave(self) -> int:
        """SIGTERM: it leaves gracefully. Returns its exit status."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        return await self._process.wait()

    async def end(self) -> None:
        """Let it go at once, and kill it if it does not."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _TIME_TO_END)
        except TimeoutError:
            await self.kill()


class Fleet:
    """All servers of the demo.

    Args:
        registry: URL of the registry where they announce themselves.
        folder: Where they put what they have to complain about.
    """

    def __init__(self, registry: str, folder: Path) -> None:
        self.servers: dict[str, ServerProcess] = {}
        self._registry = registry
        self._folder = folder
        self._starting: set[asyncio.subprocess.Process] = set()

    async def start(self, kind: str, name: str, service: str, delay: float) -> ServerProcess:
        """Start a server; returns when it is in the registry.

        Raises:
            RegistrationError: It did not come up; the message has its own last words.
        """
        complaints = self._folder / f"{name}.log"
        with complaints.open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "clientlb.cli.demo.server"),
                *("--kind", kind, "--service", service, "--registry", self._registry, "--delay", str(delay)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C is for the demo, which then lets its servers go
            )
        self._starting.add(process)
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), _TIME_TO_START)
        except TimeoutError:
            line = b""
        if not line:
            words = complaints.read_text(errors="replace").strip().splitlines()
            raise RegistrationError(f"the server {name} did not start: {words[-1] if words else 'it said nothing'}")
        announced = json.loads(line)
        endpoint = Endpoint("127.0.0.1", announced["port"], announced["id"])
        server = self.servers[name] = ServerProcess(name, service, process, endpoint)
        self._starting.discard(process)
        return server

    @property
    def names(self) -> dict[str, str]:
        """Name of each server by its address."""
        return {server.endpoint.address: server.name for server in self.servers.values()}

    async def close(self) -> None:
        """End all servers, and take what the killed ones left behind out of the registry."""
        for process in self._starting:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        await asyncio.gather(*(server.end() for server in self.servers.values()))
        await asyncio.to_thread(self._clean_up)

    def _clean_up(self) -> None:
        """What cannot be removed ends with its lease."""
        with contextlib.suppress(ClientLBError), contextlib.closing(open_registrar(self._registry)) as registrar:
            for server in self.servers.values():
                if server.killed:
                    registrar.withdraw(server.service, server.endpoint)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
