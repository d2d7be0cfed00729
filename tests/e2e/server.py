"""A server process of the end-to-end tests: HTTP and gRPC on two ports, registered as two services.

`python -m tests.e2e.server NAME REGISTRY WEB RPC TTL`. It says `ready` when it listens, registers when told `join`, and
then says when (seconds of the monotonic clock, which all processes share). Every call is answered with its name.
SIGTERM makes it leave gracefully: out of the registry, on serving until everybody knows, finish what is under way, end.
It ends at once when its standard input does, so it cannot outlive the test that started it.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import grpc.aio

from clientlb.registration import Registration, register

WORK = 0.005
"""Seconds that a call takes here, so that a kill hits calls under way."""

PROPAGATION = 0.5
"""Seconds for which a server that left the registry goes on serving those who have not heard of it."""

LONGEST_DRAIN = 5.0
GRPC_SERVICE = "e2e.Orders"
GRPC_METHODS = ("Load", "Store")


class HttpServer:
    """Keep-alive, any method and path; the answer is 200 and the server's name."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()
        self._busy = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def drain(self) -> None:
        self._draining = True
        self._server.close()
        await asyncio.wait_for(self._idle.wait(), LONGEST_DRAIN)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not self._draining:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                _, _, length = head.partition(b"content-length:")
                self._busy += 1
                self._idle.clear()
                try:
                    await reader.readexactly(int(length.split(b"\r\n")[0]) if length else 0)
                    await asyncio.sleep(WORK)
                    connection = b"close" if self._draining else b"keep-alive"
                    writer.write(
                        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: %s\r\n\r\n%s"
                        % (len(self._name), connection, self._name)
                    )
                    await writer.drain()
                finally:
                    self._busy -= 1
                    if not self._busy:
                        self._idle.set()
        except (OSError, EOFError):
            pass  # the client hung up
        finally:
            writer.close()


def grpc_server(name: str) -> grpc.aio.Server:
    """A gRPC server with the methods `GRPC_METHODS`; requests and answers are bytes."""

    async def answer(request: bytes, context: Any) -> bytes:
        await asyncio.sleep(WORK)
        return name.encode()

    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        method: grpc.unary_unary_rpc_method_handler(answer) for method in GRPC_METHODS
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(GRPC_SERVICE, handlers),))
    return server


async def announced(registration: Registration) -> float:
    """When the registry took the announcement."""

    def wait() -> float:
        registration.wait()
        return time.monotonic()

    return await asyncio.to_thread(wait)


async def serve(name: str, registry: str, web: str, rpc: str, ttl: str) -> None:
    told_to_leave = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told_to_leave.set)
    http, grpc_ = HttpServer(name), grpc_server(name)
    ports = {web: await http.start(), rpc: grpc_.add_insecure_port("127.0.0.1:0")}
    await grpc_.start()
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print("ready", flush=True)
    if await commands.readline() != b"join\n":
        return
    registrations = [
        register(service, host="127.0.0.1", port=port, id=f"{name}-{service}", to=registry, ttl=float(ttl))
        for service, port in ports.items()
    ]
    times = await first_of(asyncio.gather(*map(announced, registrations)), commands.read)
    if times is None:
        return
    print(json.dumps(dict(zip(ports, times, strict=True))), flush=True)
    if not await first_of(told_to_leave.wait(), commands.read):
        return
    await asyncio.gather(*(registration.aclose() for registration in registrations))
    await asyncio.sleep(PROPAGATION)
    await asyncio.gather(http.drain(), grpc_.stop(LONGEST_DRAIN))


async def first_of(wanted: Any, end: Callable[[], Coroutine[Any, Any, bytes]]) -> Any:
    """What `wanted` gives; None if standard input ends first."""
    tasks = asyncio.ensure_future(wanted), asyncio.ensure_future(end())
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return tasks[0].result() if tasks[0] in done else None


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
