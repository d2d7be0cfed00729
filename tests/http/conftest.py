"""Real servers in other processes, and the four clients behind one face, so that each test is written once."""

from __future__ import annotations

import contextlib
import inspect
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest

import clientlb
import clientlb.httpx
import clientlb.httpx2
from clientlb.testing import ManualDiscovery

ROOT = Path(__file__).parents[2]


class Process:
    """One `tests.http.server`."""

    def __init__(self, name: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "tests.http.server", name, *arguments]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.name = name
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.address = f"127.0.0.1:{self.port}"

    def kill(self) -> None:
        self._process.kill()
        self.stop()

    def stop(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Let it hang: its port takes connections, and nobody answers."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def figures(self) -> dict[str, Any]:
        """What the server has seen; asking opens one more connection and makes one more call of `/figures`."""
        answer: dict[str, Any] = httpx.get(f"http://{self.address}/figures", trust_env=False).json()
        return answer


async def settle(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


@dataclass(frozen=True)
class Http:
    """A client, sync or async, with one way to use it."""

    client: Any

    async def request(self, method: str, url: str, **arguments: Any) -> Any:
        return await settle(self.client.request(method, url, **arguments))

    async def get(self, url: str, **arguments: Any) -> Any:
        return await self.request("GET", url, **arguments)

    async def post(self, url: str, **arguments: Any) -> Any:
        return await self.request("POST", url, **arguments)

    @contextlib.asynccontextmanager
    async def stream(self, url: str) -> AsyncIterator[Any]:
        response = await settle(self.client.send(self.client.build_request("GET", url), stream=True))
        try:
            yield response
        finally:
            await settle(response.aclose() if hasattr(self.client, "aclose") else response.close())

    async def chunks(self, response: Any) -> AsyncIterator[bytes]:
        if hasattr(self.client, "aclose"):
            async for chunk in response.aiter_raw():
                yield chunk
        else:
            for chunk in response.iter_raw():
                yield chunk

    async def close(self) -> None:
        await settle(self.client.aclose() if hasattr(self.client, "aclose") else self.client.close())


@dataclass(frozen=True)
class Kind:
    """One of the four: a flavour, sync or async."""

    library: ModuleType
    """httpx or httpx2"""
    ours: ModuleType
    """clientlb.httpx or clientlb.httpx2"""
    is_async: bool

    @property
    def client_type(self) -> Any:
        return self.ours.AsyncClient if self.is_async else self.ours.Client

    @property
    def ordinary_client_type(self) -> Any:
        return self.library.AsyncClient if self.is_async else self.library.Client

    @property
    def transport_type(self) -> Any:
        return self.ours.AsyncTransport if self.is_async else self.ours.Transport

    def body(self, *chunks: bytes | Exception) -> Any:
        """A one-shot request body; an exception among the chunks is raised."""

        def sync_body() -> Iterator[bytes]:
            for chunk in chunks:
                if isinstance(chunk, Exception):
                    raise chunk
                yield chunk

        async def async_body() -> AsyncIterator[bytes]:
            for chunk in sync_body():
                yield chunk

        return async_body() if self.is_async else sync_body()

    @contextlib.asynccontextmanager
    async def client(self, services: clientlb.Services, **arguments: Any) -> AsyncIterator[Http]:
        http = Http(self.client_type(services, **arguments))
        try:
            yield http
        finally:
            await http.close()

    @contextlib.asynccontextmanager
    async def over(self, transport: Any, **arguments: Any) -> AsyncIterator[Http]:
        """An ordinary client over a transport of ours."""
        http = Http(self.ordinary_client_type(transport=transport, **arguments))
        try:
            yield http
        finally:
            await http.close()


_FLAVOURS = {"httpx": (httpx, clientlb.httpx), "httpx2": (httpx2, clientlb.httpx2)}


@pytest.fixture(params=[f"{flavour}-{kind}" for flavour in _FLAVOURS for kind in ("sync", "async")])
def kind(request: pytest.FixtureRequest) -> Kind:
    flavour, _, kind = request.param.partition("-")
    return Kind(*_FLAVOURS[flavour], is_async=kind == "async")


@pytest.fixture(scope="session")
def shared_servers() -> Iterator[dict[str, Process]]:
    """Two servers that no test stops."""
    servers = {name: Process(name) for name in "ab"}
    try:
        yield servers
    finally:
        for server in servers.values():
            server.stop()


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Starts servers of a test's own."""
    with contextlib.ExitStack() as stack:

        def start(name: str, *arguments: str) -> Process:
            server = Process(name, *arguments)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def trust(certificate: tuple[str, str]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate[0])


@pytest.fixture
def registry(shared_servers: dict[str, Process]) -> ManualDiscovery:
    """Knows `orders` on both shared servers and `payments` on the second one."""
    a, b = shared_servers.values()
    return ManualDiscovery({"orders": [a.address, b.address], "payments": [b.address]})


@pytest.fixture
def services(registry: ManualDiscovery) -> Iterator[clientlb.Services]:
    # in turn: what these tests say about both servers must not depend on which one answered faster
    with clientlb.Services(registry, options=clientlb.Options(policy="round_robin")) as services:
        yield services


@pytest.fixture
def nobody_in_flight(services: clientlb.Services) -> Iterator[None]:
    """Afterwards no call is in flight anywhere."""
    yield
    figures = {
        (name, node.endpoint): node.in_flight for name in ("orders", "payments") for node in services[name].nodes
    }
    assert not any(figures.values()), figures
