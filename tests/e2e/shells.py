"""The shells under test, all in the same form: `load` is a call that is idempotent, `store` one that is not.

Both return the name of the server that answered. The decorator's functions make plain calls over a fresh connection,
as a user of some other client library would.
"""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import grpc
import grpc.aio

import clientlb
import clientlb.grpc
import clientlb.grpc.aio
from tests.e2e.server import GRPC_SERVICE

TIMEOUT = 10.0
SETTLED = clientlb.Options(guard=clientlb.GuardOptions(settle=0))
"""For registries that work. On a slow machine connecting to one may take longer than a second: an outage, after which
whoever leaves would stay in the list for half a minute."""
LOAD, STORE = f"/{GRPC_SERVICE}/Load", f"/{GRPC_SERVICE}/Store"


@dataclass(frozen=True)
class Calls:
    load: Callable[[], str]
    store: Callable[[], str]


@dataclass(frozen=True)
class AsyncCalls:
    load: Callable[[], Awaitable[str]]
    store: Callable[[], Awaitable[str]]


def text_of(response: Any) -> str:
    assert response.status_code == 200, f"{response}: {response.extensions['clientlb']}"
    return str(response.text)


@contextmanager
def http_sync(flavour: str, services: clientlb.Services, service: str) -> Iterator[Calls]:
    with import_module(f"clientlb.{flavour}").Client(services, timeout=TIMEOUT) as client:
        url = f"http://{service}/orders/7"
        yield Calls(lambda: text_of(client.get(url)), lambda: text_of(client.post(url, content=b"42")))


@asynccontextmanager
async def http_async(flavour: str, services: clientlb.Services, service: str) -> AsyncIterator[AsyncCalls]:
    async with import_module(f"clientlb.{flavour}").AsyncClient(services, timeout=TIMEOUT) as client:
        url = f"http://{service}/orders/7"

        async def load() -> str:
            return text_of(await client.get(url))

        async def store() -> str:
            return text_of(await client.post(url, content=b"42"))

        yield AsyncCalls(load, store)


@contextmanager
def grpc_sync(services: clientlb.Services, service: str) -> Iterator[Calls]:
    with clientlb.grpc.channel(service, services, idempotent={LOAD}) as channel:
        load: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(LOAD)
        store: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(STORE)
        yield Calls(lambda: load(b"7", timeout=TIMEOUT).decode(), lambda: store(b"7", timeout=TIMEOUT).decode())


@asynccontextmanager
async def grpc_async(services: clientlb.Services, service: str) -> AsyncIterator[AsyncCalls]:
    async with clientlb.grpc.aio.channel(service, services, idempotent={LOAD}) as channel:
        call_load: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(LOAD)
        call_store: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(STORE)

        async def load() -> str:
            return (await call_load(b"7", timeout=TIMEOUT)).decode()

        async def store() -> str:
            return (await call_store(b"7", timeout=TIMEOUT)).decode()

        yield AsyncCalls(load, store)


@contextmanager
def decorator_sync(services: clientlb.Services, service: str) -> Iterator[Calls]:
    def ask(endpoint: clientlb.Endpoint, method: str) -> str:
        connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=TIMEOUT)
        try:
            connection.request(method, "/orders/7")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    load = services.balanced(service, idempotent=True)(ask)
    store = services.balanced(service)(ask)
    yield Calls(lambda: load("GET"), lambda: store("POST"))


@asynccontextmanager
async def decorator_async(services: clientlb.Services, service: str) -> AsyncIterator[AsyncCalls]:
    async def ask(endpoint: clientlb.Endpoint, method: str) -> str:
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        try:
            writer.write(f"{method} /orders/7 HTTP/1.1\r\nContent-Length: 0\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.partition(b"Content-Length:")[2].split(b"\r\n")[0])
            return (await reader.readexactly(length)).decode()
        finally:
            writer.close()

    load = services.balanced(service, idempotent=True)(ask)
    store = services.balanced(service)(ask)
    yield AsyncCalls(lambda: load("GET"), lambda: store("POST"))


SYNC: dict[str, Callable[[clientlb.Services, str], AbstractContextManager[Calls]]] = {
    "httpx sync": partial(http_sync, "httpx"),
    "httpx2 sync": partial(http_sync, "httpx2"),
    "grpc sync": grpc_sync,
    "decorator def": decorator_sync,
}
ASYNC: dict[str, Callable[[clientlb.Services, str], AbstractAsyncContextManager[AsyncCalls]]] = {
    "httpx async": partial(http_async, "httpx"),
    "httpx2 async": partial(http_async, "httpx2"),
    "grpc aio": grpc_async,
    "decorator async def": decorator_async,
}
SHELLS = tuple(shell for pair in zip(SYNC, ASYNC, strict=True) for shell in pair)
REGISTRIES = ("dir", "zookeeper", "consul")


def speaks_grpc(shell: str) -> bool:
    return shell.startswith("grpc")


def call_once(shell: str, services: clientlb.Services, service: str) -> str:
    """One idempotent call through a shell; returns who answered, or raises what the shell raises."""
    if shell in SYNC:
        with SYNC[shell](services, service) as calls:
            return calls.load()

    async def run() -> str:
        async with ASYNC[shell](services, service) as calls:
            return await calls.load()

    return asyncio.run(run())
