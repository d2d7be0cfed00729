"""The sockets and threads of a `ScriptedServer`: one life of it, from listening to being gone."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from clientlb.testing.servers import Reaction, SeenRequest


class Listener:
    """Listens until `close`; a thread for each connection.

    Args:
        host, port: Where; another socket of this process may hold the port.
        react: Says how a request is answered.
    """

    def __init__(self, host: str, port: int, react: Callable[[SeenRequest], Reaction]) -> None:
        self.react = react
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._socket.bind((host, port))
            self._socket.listen(128)
        except BaseException:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._accept, name="clientlb-scripted-server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Break everything; returns when no thread is left."""
        self.over.set()
        _shut(self._socket)  # wakes `accept`
        self._thread.join()
        self._socket.close()
        with self._lock:
            connections = dict(self._connections)
        for connection in connections:
            _shut(connection)
        for thread in connections.values():
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, address = self._socket.accept()
            except OSError:
                return
            thread = threading.Thread(
                target=self._serve, args=(connection, address), name="clientlb-scripted-connection", daemon=True
            )
            with self._lock:
                self._connections[connection] = thread
            thread.start()

    def _serve(self, connection: socket.socket, address: Any) -> None:
        with connection:
            try:
                _Handler(connection, address, self)  # type: ignore[arg-type]  # it asks nothing of a server but this
            except OSError:
                pass  # the client has hung up, or this server is gone
            finally:
                _shut(connection)
                with self._lock:
                    self._connections.pop(connection, None)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    server: Any

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._do
        raise AttributeError(name)

    def _do(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        reaction = self.server.react(SeenRequest(self.command, self.path, headers, self._body(headers)))
        gone = self.server.over.wait(None if reaction.seconds == float("inf") else reaction.seconds)
        if gone or reaction.hang_up:
            self.close_connection = True
            return
        self.send_response(reaction.status)
        for name, value in reaction.headers.items():
            self.send_header(name, value)
        has_body = reaction.status >= 200 and reaction.status not in (204, 304)
        if has_body:
            self.send_header("Content-Length", str(len(reaction.body)))
        self.end_headers()
        if has_body and self.command != "HEAD":
            self.wfile.write(reaction.body)

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        parts = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(parts)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def _shut(socket_: socket.socket) -> None:
    with contextlib.suppress(OSError):
        socket_.shutdown(socket.SHUT_RDWR)
