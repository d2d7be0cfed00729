"""The functions of examples/any_client.py against real servers: a good one, one that is gone, one that answers 404."""

from __future__ import annotations

import importlib
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import aiohttp
import pytest
import requests

from clientlb import Services
from clientlb.testing import ManualDiscovery, ScriptedServer

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(EXAMPLES)
    yield importlib.import_module("any_client")
    for name in ("any_client", "http_client"):
        sys.modules.pop(name, None)


@contextmanager
def servers() -> Iterator[tuple[Services, ScriptedServer, ScriptedServer]]:
    """A service of two HTTP servers, of which nobody listens at the first."""
    with ScriptedServer() as gone, ScriptedServer() as good:
        gone.refuse()
        with Services(ManualDiscovery({"orders": [gone.address, good.address]})) as services:
            yield services, gone, good


Get = Callable[[str], str]


def check(get: Get, services: Services, good: ScriptedServer, failure: type[Exception]) -> None:
    assert {get("/items/7") for _ in range(20)} == {good.address}
    assert {request.path for request in good.requests} == {"/items/7"}
    assert services.stats()["orders"].retries > 0
    good.answer(404, times=None)
    with pytest.raises(failure, match="404"):
        get("/items/8")
    good.fail(times=1)
    good.answer(200, "again", times=None)
    assert get("/items/9") == "again"  # repeated after the 503


def test_urllib(example: ModuleType) -> None:
    with servers() as (services, _, good):
        check(example.by_urllib(services), services, good, OSError)


def test_requests(example: ModuleType) -> None:
    with servers() as (services, _, good), requests.Session() as session:
        check(example.by_requests(services, session), services, good, requests.HTTPError)


async def test_aiohttp(example: ModuleType) -> None:
    with servers() as (services, _, good):
        async with aiohttp.ClientSession() as session:
            get = example.by_aiohttp(services, session)
            assert {await get("/items/7") for _ in range(20)} == {good.address}
            assert services.stats()["orders"].retries > 0
            good.answer(404, times=None)
            with pytest.raises(aiohttp.ClientResponseError, match="404"):
                await get("/items/8")


class Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"heard " + self.rfile.readline())


class Silent(socketserver.StreamRequestHandler):
    """Closes the connection without a word, when it has read what it was told."""

    def handle(self) -> None:
        self.rfile.readline()
        self.rfile.readline()


@contextmanager
def listening(handler: type[socketserver.BaseRequestHandler]) -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def test_a_raw_socket(example: ModuleType) -> None:
    with (
        listening(Echo) as echo,
        listening(Silent) as silent,
        Services(ManualDiscovery({"orders": [echo, silent]})) as services,
    ):
        ask = example.by_socket(services)
        assert {ask("hello") for _ in range(20)} == {"heard hello"}
        assert services.stats()["orders"].retries > 0
