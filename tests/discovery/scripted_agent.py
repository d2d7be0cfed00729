"""An HTTP server that answers as the test says: for what a real Consul cannot be made to answer."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit


@dataclass
class Reply:
    """What the agent answers; `index` None leaves the header out."""

    entries: Any = field(default_factory=list)
    index: int | None = 1
    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)


def entry(
    port: Any = 8080, *, id: str = "one", node: Any = "n1", address: Any = "10.0.0.1", **more: Any
) -> dict[str, Any]:
    """One passing instance, as `/v1/health/service` shows it."""
    service = {"ID": id, "Address": address, "Port": port, "Tags": [], "Meta": {}, **more}
    return {
        "Node": {"Node": node, "Address": "10.9.9.9"},
        "Service": service,
        "Checks": [{"CheckID": "serfHealth", "Status": "passing"}],
    }


class ScriptedAgent:
    """Answers every GET with `script(query)`; keeps paths, queries and headers."""

    def __init__(
        self, script: Callable[[dict[str, str]], Reply], family: socket.AddressFamily = socket.AF_INET
    ) -> None:
        self.paths: list[str] = []
        self.queries: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        agent = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                query = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
                agent.paths.append(self.path)
                agent.queries.append(query)
                agent.headers.append({name.lower(): value for name, value in self.headers.items()})
                reply = script(query)
                body = json.dumps(reply.entries).encode() if reply.body is None else reply.body
                self.send_response(reply.status)
                if reply.index is not None:
                    self.send_header("X-Consul-Index", str(reply.index))
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            address_family = family

        host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        self._server = Server((host, 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"consul://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
