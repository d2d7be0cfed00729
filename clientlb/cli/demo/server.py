"""One server process of the demo: `python -m clientlb.cli.demo.server --kind http --service web --registry URL`.

A real server on a real port that announces itself, does a few milliseconds of pretended work per call, and leaves
gracefully on SIGTERM: out of the registry, on serving until everybody knows, then finish what is under way, then end.
Its standard input is the remote control (`delay 0.1` makes it slow). Its end means that the demo is gone, however that
happened, and then the server goes at once: no server outlives the demo.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
from collections.abc import Awaitable
from typing import Any, Protocol

from clientlb.registration import register

METHOD = "/demo.Ledger/Post"
"""The gRPC method of the demo; requests and answers are bytes."""

LEASE = 3.0
"""Seconds after which a killed server is out of the registry."""

PROPAGATION = 0.7
"""Seconds for which a server that left the registry goes on serving those who have not heard of it."""

LONGEST_DRAIN = 5.0
PATIENCE = 10.0


class Work:
    """What a call does here: it takes `delay` seconds, give or take a half."""

    def __init__(self, delay: float) -> None:
        self.delay = delay

    async def do(self) -> None:
        """Work for one call."""
        await asyncio.sleep(self.delay * random.uniform(0.5, 1.5))


class Server(Protocol):
    """What the two kinds have in common."""

    async def start(self) -> int:
        """Accept calls; returns the port."""

    async def drain(self) -> None:
        """Take no more calls and finish those under way."""


class HttpServer:
    """A small HTTP/1.1 server: keep-alive, any method and path, answers 200."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._busy: set[asyncio.Task[Any]] = set()
        self._draining = False

    async def start(self) -> int:
        """Accept calls; returns the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def drain(self) -> None:
        """Take no more connections and finish the calls under way."""
        self._draining = True
        self._server.close()
        if self._busy:
            await asyncio.wait(self._busy, timeout=LONGEST_DRAIN)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not self._draining:
                length = _content_length(await reader.readuntil(b"\r\n\r\n"))
                answering = asyncio.ensure_future(self._answer(reader, writer, length))
                self._busy.add(answering)
                answering.add_done_callback(self._busy.discard)
                await answering
        except (OSError, EOFError, ValueError):
            pass  # the client hung up, or speaks no HTTP
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int) -> None:
        await reader.readexactly(length)
        await self._work.do()
        connection = b"close" if self._draining else b"keep-alive"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: %s\r\n\r\nok\n" % connection)
        await writer.drain()


class GrpcServer:
    """A gRPC server with the one method `METHOD`."""

    def __init__(self, work: Work) -> None:
        import grpc
        import grpc.aio

        async def post(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            await work.do()
            return request

        _, service, method = METHOD.split("/")
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(post)
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))

    async def start(self) -> int:
        """Accept calls; returns the port."""
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return port

    async def drain(self) -> None:
        """Take no more calls and finish those under way."""
        await self._server.stop(LONGEST_DRAIN)


async def serve(server: Server, work: Work, service: str, registry: str) -> int:
    """Serve until SIGTERM or until the demo is gone; returns the exit status."""
    told_to_leave = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told_to_leave.set)
    port = await server.start()
    registration = register(service, host="127.0.0.1", port=port, to=registry, ttl=LEASE, timeout=2.0)
    async with registration:
        if not await asyncio.to_thread(registration.wait, PATIENCE):
            print(f"not announced: {registration.last_error}", file=sys.stderr)
            return 1
        print(json.dumps({"port": port, "id": registration.endpoint.id}), flush=True)
        leaving = await _first(told_to_leave.wait(), obey(work))
    if leaving:
        await asyncio.sleep(PROPAGATION)
        await server.drain()
    return 0


async def obey(work: Work) -> bool:
    """Do what the remote control says, until it is gone; returns False."""
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        command, _, value = line.decode().partition(" ")
        if command == "delay":
            work.delay = float(value)
    return False


async def _first(*waiting: Awaitable[bool]) -> bool:
    """The result of whichever comes first."""
    tasks = [asyncio.ensure_future(each) for each in waiting]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return done.pop().result()


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


def main() -> int:
    """Run the server; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m clientlb.cli.demo.server")
    parser.add_argument("--kind", choices=["http", "grpc"], required=True)
    parser.add_argument("--service", required=True)
    parser.add_argument("--registry", required=True)
    parser.add_argument("--delay", type=float, default=0.005, help="seconds of work per call")
    options = parser.parse_args()

    async def run() -> int:
        work = Work(options.delay)
        server = HttpServer(work) if options.kind == "http" else GrpcServer(work)
        return await serve(server, work, options.service, options.registry)

    return asyncio.run(run())


if __name__ == "__main__":
    sys.exit(main())
