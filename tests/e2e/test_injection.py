"""No registry can send a client anywhere but to a host: no file, no local socket, no other resolver."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from clientlb import Services
from tests.e2e.server import GRPC_METHODS, GRPC_SERVICE
from tests.e2e.shells import ASYNC, SYNC, speaks_grpc

SHELLS = [shell for shell in (*SYNC, *ASYNC) if not shell.startswith("decorator")]
CALLS = 10


class Good(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"good")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def http_port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Good) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture(scope="module")
def grpc_port() -> Iterator[int]:
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(lambda request, context: b"good")
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(GRPC_SERVICE, dict.fromkeys(GRPC_METHODS, handler)),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket of this machine that listens: nobody must come."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        listener.setblocking(False)
        yield listener


def put(folder: Path, trap: str, good: int) -> None:
    """Register a good instance, and one for each way to smuggle something else into a host."""
    hosts = (
        f"unix:{trap}",
        f"unix://{trap}",
        trap,
        "file:///etc",
        "user:pw@127.0.0.1",
        "127.0.0.1\r\nX: y",
        f"127.0.0.1:{good}/",
        "unix-abstract:x",
        "dns:///localhost",
        "ipv4:1.2.3.4",
        "ipv4:127.0.0.1",
        "vsock:1:2",
        "127.0.0.1,unix:x",
    )
    folder.mkdir()
    for number, host in enumerate(hosts):
        documents = (
            {"host": host, "port": good},
            {"name": "x", "id": "x", "address": host, "port": good, "payload": None},
            {"serviceEndpoint": {"host": host, "port": good}, "status": "ALIVE"},
        )
        for kind, document in enumerate(documents):
            (folder / f"{number}-{kind}.json").write_text(json.dumps(document))
        (folder / f"{number}-plain.json").write_text(f"{host}:{good}", newline="")
    (folder / "good.json").write_text(json.dumps({"host": "127.0.0.1", "port": good}))


@pytest.mark.parametrize("shell", SHELLS)
def test_only_the_good_server_is_called(
    shell: str, tmp_path: Path, trap: socket.socket, http_port: int, grpc_port: int
) -> None:
    good = grpc_port if speaks_grpc(shell) else http_port
    put(tmp_path / "orders", trap.getsockname(), good)
    with Services(f"dir://{tmp_path}") as services:
        if shell in SYNC:
            with SYNC[shell](services, "orders") as calls:
                answers = [calls.load() for _ in range(CALLS)]
        else:

            async def run() -> list[str]:
                async with ASYNC[shell](services, "orders") as calls:
                    return [await calls.load() for _ in range(CALLS)]

            answers = asyncio.run(run())
        stats = services["orders"].stats()
    assert answers == ["good"] * CALLS
    assert [each.endpoint for each in stats.endpoints] == [f"127.0.0.1:{good}"]
    with pytest.raises(BlockingIOError):
        trap.accept()
