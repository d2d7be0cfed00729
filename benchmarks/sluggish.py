"""A server process of `slow_server.py`: it answers after a while, over HTTP and gRPC, and becomes slower when told.

Run as a program: `sluggish.py SECONDS SLOTS`. It works on `SLOTS` calls at a time, and its work is sleep, so its
capacity is its own, however many processes share the machine. It prints its two ports. A line on stdin multiplies the
time that calls take from then on; it ends when its stdin is closed.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import origins

RESPONSE = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"id":"7"}'


class Sluggish:
    """The process, as the benchmark sees it. Entering waits until it serves.

    Attributes:
        ports: By protocol: `"httpx"`, `"grpc"`.
    """

    def __init__(self, seconds: float, slots: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(seconds), str(slots)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ports: dict[str, int] = {}

    def slow_down(self, factor: float) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{factor}\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()

    def hang(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        self.ports = json.loads(self._process.stdout.readline())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()  # it may hang
        self._process.wait(10)
        self._process.stdin.close()
        self._process.stdout.close()


class _Server:
    def __init__(self, seconds: float, slots: int) -> None:
        self._seconds = seconds
        self._slots = asyncio.Semaphore(slots)

    async def work(self) -> None:
        async with self._slots:
            await asyncio.sleep(self._seconds)

    async def call(self, request: bytes, context: Any) -> bytes:
        await self.work()
        return request

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await self.work()
                writer.write(RESPONSE)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def listen(self) -> None:
        line = sys.stdin.readline()
        if line:
            self._seconds *= float(line)
        else:
            asyncio.get_running_loop().stop()


async def _main(seconds: str, slots: str) -> None:
    server = _Server(float(seconds), int(slots))
    http = await asyncio.start_server(server.connection, "127.0.0.1", 0, backlog=1024)
    service: Any = grpc.unary_unary_rpc_method_handler(server.call)
    rpc = grpc.aio.server()
    _, package, method = origins.METHOD.split("/")
    rpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(package, {method: service}),))
    port = rpc.add_insecure_port("127.0.0.1:0")
    await rpc.start()
    asyncio.get_running_loop().add_reader(sys.stdin, server.listen)
    print(json.dumps({"httpx": http.sockets[0].getsockname()[1], "grpc": port}), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        asyncio.run(_main(*sys.argv[1:]))
    except RuntimeError:
        pass  # stdin was closed
