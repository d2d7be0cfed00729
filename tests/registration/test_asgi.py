"""ASGI applications under a real uvicorn, and the protocol without one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from clientlb.errors import ConfigurationError
from clientlb.registration.asgi import Registered
from tests.registration.programs import Callers, ask, program
from tests.servers.process import free_ports

FASTAPI = """
import asyncio, contextlib, os
from fastapi import FastAPI
from clientlb.registration.asgi import Registered

@contextlib.asynccontextmanager
async def lifespan(app):
    print("started", flush=True)
    yield
    print("stopped", flush=True)

app = FastAPI(lifespan=lifespan)

@app.get("/")
async def answer(pause: float = 0.02):
    await asyncio.sleep(pause)
    return "served"

options = dict(port=int(os.environ["PORT"]), to=os.environ["REGISTRY"], propagation=2.0, readiness="/ready")
app.add_middleware(Registered, service="orders", **options)
"""


def test_fastapi_leaves_without_losing_a_call(tmp_path: Path) -> None:
    """As a middleware; tests/e2e/test_rolling_restart.py wraps its application."""
    [port] = free_ports(1)
    (tmp_path / "shop.py").write_text(FASTAPI)
    command = [sys.executable, "-m", "uvicorn", "shop:app", "--app-dir", str(tmp_path), "--port", str(port)]
    registry = tmp_path / "registry"
    variables = {"PORT": str(port), "REGISTRY": f"dir://{registry}"}
    with program(command, registry, **variables) as server:
        server.wait_announced()
        assert ask(port)[:2] == (200, '"served"')  # announced means that it listens
        assert ask(port, "/ready")[:2] == (200, "ready")
        callers = Callers(server, port)
        slow = Callers(server, port, count=1, path="/?pause=3")  # longer than the propagation time
        server.send()
        server.wait_withdrawn()
        assert ask(port, "/ready")[:2] == (503, "leaving")
        assert ask(port)[2]["connection"] == "close"
        assert server.wait() == -15  # as uvicorn ends without us
        callers.check()
        slow.check()
        assert "stopped" in server.output


async def without_lifespan(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    assert scope["type"] == "http", "as Django says it"
    await send({"type": "http.response.start", "status": 204})
    await send({"type": "http.response.body"})


class Server:
    """What an ASGI server says to an application, and hears from it."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.said = iter(["lifespan.startup", "lifespan.shutdown"])
        self.at_shutdown: Any = lambda: None

    async def receive(self) -> MutableMapping[str, Any]:
        kind = next(self.said)
        if kind == "lifespan.shutdown":
            await self.at_shutdown()
        return {"type": kind}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.sent.append(message["type"])


async def test_an_application_without_lifespan_is_registered(tmp_path: Path) -> None:
    server = Server()
    listener = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    app = Registered(without_lifespan, "orders", port=port, to=f"dir://{tmp_path}", signals=())

    async def at_shutdown() -> None:
        assert app.registration is not None
        assert await asyncio.to_thread(app.registration.wait, 10)
        await app({"type": "http", "path": "/", "method": "GET", "http_version": "1.1"}, server.receive, server.send)

    server.at_shutdown = at_shutdown
    async with listener:
        await app({"type": "lifespan"}, server.receive, server.send)
    assert server.sent == [
        "lifespan.startup.complete",
        "http.response.start",
        "http.response.body",
        "lifespan.shutdown.complete",
    ]
    assert app.registration is not None
    assert app.registration.leaving
    assert not list((tmp_path / "orders").iterdir())


async def test_it_is_not_announced_before_it_listens(tmp_path: Path) -> None:
    [port] = free_ports(1)
    asked: list[bool] = []
    app = Registered(
        without_lifespan, "orders", port=port, to=f"dir://{tmp_path}", self_test=lambda: asked.append(True)
    )
    server = Server()

    async def at_shutdown() -> None:
        assert app.registration is not None
        assert not await asyncio.to_thread(app.registration.wait, 0.2)
        assert not asked
        listener = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", port)
        assert await asyncio.to_thread(app.registration.wait, 10)
        assert asked
        listener.close()

    server.at_shutdown = at_shutdown
    await app({"type": "lifespan"}, server.receive, server.send)


@pytest.mark.parametrize("has_lifespan", [True, False])
async def test_a_server_that_cannot_be_registered_does_not_start(has_lifespan: bool) -> None:
    """Else a server would serve for ever, and nobody would find it."""

    async def starts(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        await receive()
        try:
            await send({"type": "lifespan.startup.complete"})
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": repr(error)})  # as Starlette does
            raise

    server, app = Server(), Registered(starts if has_lifespan else without_lifespan, "orders", port=1, to="nosuch://h")
    with pytest.raises(ConfigurationError, match="unknown scheme 'nosuch'"):
        await app({"type": "lifespan"}, server.receive, server.send)
    assert server.sent == ["lifespan.startup.failed"]


async def test_an_application_that_cannot_start_is_not_registered(tmp_path: Path) -> None:
    async def broken(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed"})
        raise RuntimeError("no database")

    server, app = Server(), Registered(broken, "orders", port=1, to=f"dir://{tmp_path}")
    with pytest.raises(RuntimeError, match="no database"):
        await app({"type": "lifespan"}, server.receive, server.send)
    assert app.registration is None
    assert server.sent == ["lifespan.startup.failed"]
