"""A server that makes a call while it serves one: `python -m tests.serving.relay KIND HEADER ADDRESS`.

KIND is `fastapi` (under uvicorn), `starlette` (the same, with a `BaseHTTPMiddleware`), `flask` or `wsgi` (both under
werkzeug's server). It calls the service `stock`, which is at ADDRESS, and prints its port. It ends with its standard
input.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import BackgroundTasks, FastAPI
from fastapi.responses import StreamingResponse

import clientlb
from clientlb.httpx import AsyncClient, Client
from clientlb.serving import asgi, wsgi
from clientlb.testing import ManualDiscovery

SLOW = "http://stock/linger?seconds=5"
last: dict[str, Any] = {}
"""What became of the latest call that was made here, or what a background task had."""


def note(began: float, error: Exception | None) -> dict[str, Any]:
    last.clear()
    last.update(error=type(error).__name__, seconds=time.monotonic() - began)
    return last


def ask(http: Client) -> dict[str, Any]:
    began = time.monotonic()
    try:
        http.get(SLOW)
    except Exception as error:
        return note(began, error)
    return note(began, None)


def parts() -> Iterator[str]:
    for _ in range(3):
        time.sleep(0.05)
        yield f"{clientlb.time_remaining()}\n"


def fastapi_app(services: clientlb.Services, header: dict[str, str], kind: str) -> Any:
    app = FastAPI()
    http, blocking = AsyncClient(services, timeout=30), Client(services, timeout=30)

    @app.get("/left")
    async def left() -> Any:
        return clientlb.time_remaining()

    @app.get("/relay")
    async def relay() -> Any:
        began = time.monotonic()
        try:
            await http.get(SLOW)
        except Exception as error:
            return note(began, error)
        return note(began, None)

    @app.get("/blocking")  # in a thread of the framework's
    def relay_in_a_thread() -> Any:
        return ask(blocking)

    @app.get("/stream")
    async def stream() -> Any:
        async def body() -> AsyncIterator[str]:
            for part in parts():
                yield part

        return StreamingResponse(body())

    @app.get("/background")
    async def background(tasks: BackgroundTasks) -> Any:
        tasks.add_task(lambda: last.update(left=clientlb.time_remaining()))
        return clientlb.time_remaining()

    @app.get("/last")
    async def show() -> Any:
        return last

    if kind == "starlette":

        @app.middleware("http")
        async def between(request: Any, call_next: Any) -> Any:
            return await call_next(request)

    app.add_middleware(asgi.DeadlineMiddleware, **header)
    return app


def flask_app(services: clientlb.Services, header: dict[str, str]) -> Any:
    from flask import Flask, Response, stream_with_context

    app = Flask(__name__)
    http = Client(services, timeout=30)
    views = {
        "/left": lambda: json.dumps(clientlb.time_remaining()),
        "/relay": lambda: ask(http),
        "/blocking": lambda: ask(http),
        "/stream": lambda: Response(stream_with_context(parts())),
        "/last": lambda: last,
    }
    for path, view in views.items():
        app.add_url_rule(path, path, view)
    app.wsgi_app = wsgi.DeadlineMiddleware(app.wsgi_app, **header)  # type: ignore[method-assign]
    return app


def bare_app(services: clientlb.Services, header: dict[str, str]) -> Any:
    http = Client(services, timeout=30)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        path = environ["PATH_INFO"]
        if path == "/stream":
            return (part.encode() for part in parts())
        answers = {"/left": clientlb.time_remaining, "/last": lambda: last}
        return [json.dumps(answers.get(path, lambda: ask(http))()).encode()]

    return wsgi.DeadlineMiddleware(app, **header)


def main(kind: str, header: str, address: str) -> None:
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    named = {"header": header} if header else {}
    services = clientlb.Services(ManualDiscovery({"stock": [address]}))
    if kind in ("flask", "wsgi"):
        from werkzeug.serving import make_server

        app = flask_app(services, named) if kind == "flask" else bare_app(services, named)
        server = make_server("127.0.0.1", 0, app, threaded=True)
        print(server.server_port, flush=True)
        server.serve_forever()
    else:
        import uvicorn

        with socket.create_server(("127.0.0.1", 0)) as listener:
            print(listener.getsockname()[1], flush=True)
            config = uvicorn.Config(fastapi_app(services, named, kind), log_level="warning")
            uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
