"""A server that answers probes, or does not: `python -m tests.probing.server KIND SECONDS`. It says its port.

KIND is `asgi`, `wsgi`, `grpc` or `grpc.aio`; with `-mute` at its end it knows nothing of probes. Every call takes
SECONDS. It ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import grpc
import grpc.aio
import uvicorn

from clientlb.probing.asgi import Probed as ProbedAsgi
from clientlb.probing.grpc import AioLoadInterceptor, LoadInterceptor
from clientlb.probing.wsgi import Probed as ProbedWsgi

kind, seconds = sys.argv[1].removesuffix("-mute"), float(sys.argv[2])
mute = sys.argv[1].endswith("-mute")


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise ValueError("no lifespan")
    await asyncio.sleep(seconds)
    status = 404 if scope["path"].startswith("/.well-known") else 200
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def serve_asgi() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(asgi_app if mute else ProbedAsgi(asgi_app), log_level="error"))
    running = asyncio.ensure_future(server.serve([listening]))
    print(listening.getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.should_exit = True
    await running


def wsgi_app(environ: Any, start_response: Any) -> list[bytes]:
    time.sleep(seconds)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


class _Threads(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


def serve_wsgi() -> None:
    app = wsgi_app if mute else ProbedWsgi(wsgi_app)
    server = make_server("127.0.0.1", 0, app, _Threads, _Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()


def handlers(answer: Any) -> tuple[grpc.GenericRpcHandler, ...]:
    return (
        grpc.method_handlers_generic_handler("probing.Orders", {"Get": grpc.unary_unary_rpc_method_handler(answer)}),
    )


def serve_grpc() -> None:
    def answer(request: bytes, context: Any) -> bytes:
        time.sleep(seconds)
        return b"ok"

    server = grpc.server(ThreadPoolExecutor(16), handlers(answer), [] if mute else [LoadInterceptor()])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()


async def serve_grpc_aio() -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        await asyncio.sleep(seconds)
        return b"ok"

    server = grpc.aio.server(None, handlers(answer), [] if mute else [AioLoadInterceptor()])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


with contextlib.suppress(KeyboardInterrupt):
    if kind == "asgi":
        asyncio.run(serve_asgi())
    elif kind == "wsgi":
        serve_wsgi()
    elif kind == "grpc":
        serve_grpc()
    else:
        asyncio.run(serve_grpc_aio())
