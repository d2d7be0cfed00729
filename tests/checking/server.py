"""A server that is checked: `python -m tests.checking.server KIND PORT [CERTIFICATE KEY]`. It says when it is ready.

KIND is `http`; `grpc`, with the standard health service; `grpc-mute`, without; `grpc-silent`, whose health service
never says anything. It obeys lines on its standard input and answers each with one line; it ends when that does.

    status 503        HTTP: answer so from now on         say NOT_SERVING   gRPC: be so from now on
    hang              HTTP: answer nothing from now on    watching          gRPC: how many listen
    seen              HTTP: what the last request was, and how many there were
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


class Http:
    def __init__(self) -> None:
        self.status = 200
        self.awake = asyncio.Event()
        self.awake.set()
        self.count = 0
        self.last: dict[str, Any] = {}

    async def serve(self, port: int, *files: str) -> None:
        context = None
        if files:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*files)
            context.sni_callback = lambda tls, name, _: self.last.update(server_name=name)
        await asyncio.start_server(self.connected, "127.0.0.1", port, ssl=context)
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            word, *rest = line.split()
            if word == "status":
                self.status = int(rest[0])
            elif word == "hang":
                self.awake.clear()
            print(json.dumps({"count": self.count, **self.last}), flush=True)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
            self.count += 1
            self.last |= {"first": first, "headers": dict(line.split(": ", 1) for line in lines)}
            await self.awake.wait()
            writer.write(f"HTTP/1.1 {self.status} Whatever\r\nContent-Length: 2\r\n\r\nok".encode())
            await reader.read()  # a server that leaves the connection open
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()


class Silent(health_pb2_grpc.HealthServicer):
    def Check(self, request: Any, context: Any) -> Any:
        over = threading.Event()
        context.add_callback(over.set)
        over.wait()

    def Watch(self, request: Any, context: Any) -> Iterator[Any]:
        over = threading.Event()
        context.add_callback(over.set)
        over.wait()
        yield from ()


class Counting(health.HealthServicer):
    """The health service of grpcio, whose `Watch` is counted while it runs."""

    running = 0

    def Watch(self, request: Any, context: Any, send_response_callback: Any = None) -> Any:
        def ended() -> None:
            type(self).running -= 1

        type(self).running += 1
        context.add_callback(ended)
        return super().Watch(request, context, send_response_callback)

    Watch.experimental_non_blocking = True  # type: ignore[attr-defined]


def serve_grpc(kind: str, port: int, *files: str) -> None:
    server = grpc.server(ThreadPoolExecutor(8))
    servicer: Any = Silent() if kind == "grpc-silent" else Counting()
    if kind != "grpc-mute":
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if files:
        certificate, key = (Path(file).read_bytes() for file in files)
        server.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([(key, certificate)]))
    else:
        server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    print("ready", flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "say":
            name = rest[1] if len(rest) > 1 else ""
            servicer.set(name, health_pb2.HealthCheckResponse.ServingStatus.Value(rest[0]))
        print(json.dumps({"watching": Counting.running}), flush=True)
    server.stop(None)


if __name__ == "__main__":
    kind, port, *files = sys.argv[1:]
    if kind == "http":
        asyncio.run(Http().serve(int(port), *files))
    else:
        serve_grpc(kind, int(port), *files)
