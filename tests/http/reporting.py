"""A server that reports as busy as it is told: `python -m tests.http.reporting asgi|wsgi UTILIZATION`."""

from __future__ import annotations

import socket
import sys
import threading
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import uvicorn

from clientlb.load import LoadRecorder, asgi, wsgi

kind, utilization = sys.argv[1], float(sys.argv[2])
recorder = LoadRecorder(utilization=lambda: utilization)


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": sys.argv[2].encode()})


def wsgi_app(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", str(len(sys.argv[2])))])
    return [sys.argv[2].encode()]


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def serve() -> None:
    if kind == "wsgi":
        server = make_server("127.0.0.1", 0, wsgi.Reported(wsgi_app, recorder), handler_class=Quiet)
        print(server.server_port, flush=True)
        server.serve_forever()
    else:
        listening = socket.create_server(("127.0.0.1", 0))
        print(listening.getsockname()[1], flush=True)
        app = asgi.Reported(asgi_app, recorder)
        config = uvicorn.Config(app, log_level="error", lifespan="off")
        uvicorn.Server(config).run([listening])


if __name__ == "__main__":
    threading.Thread(target=serve, daemon=True).start()
    sys.stdin.read()  # until whoever started this ends
