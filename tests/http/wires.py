"""Connections that are only in memory, and tasks that are cancelled at a chosen one of the points where they wait.

Everything here waits, as real connections may: each `await` of a client is a point where a cancellation can arrive.
"""

from __future__ import annotations

import asyncio
import contextlib
import types
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import anyio
import anyio.lowlevel
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import trio

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"he", b"llo"


async def waiting() -> None:
    """Whatever comes next takes a while, and does not happen to who is cancelled meanwhile."""
    await anyio.lowlevel.checkpoint()


async def done() -> None:
    """It has happened: who is cancelled now, by a scope, hears of it at its next wait, as with trio and anyio."""
    await anyio.lowlevel.cancel_shielded_checkpoint()


class Wire:
    """One connection, to a server that answers every request with `ANSWER`."""

    def __init__(self) -> None:
        self.closed = False
        self._answers: list[bytes] = []

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            await waiting()
            self._answers += ANSWER
            await done()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        await waiting()
        part = self._answers.pop(0)
        await done()
        return part

    async def aclose(self) -> None:
        self.closed = True
        await anyio.lowlevel.checkpoint()

    async def start_tls(self, *arguments: Any, **options: Any) -> Wire:
        await waiting()
        await done()
        return self

    def get_extra_info(self, info: str) -> Any:
        return False if info == "is_readable" else None


class H2Wire:
    """One connection to a server that speaks HTTP/2.

    It answers with what the header `x-name` says, and that alone shows whether it understands the client's headers.
    `/hang` it never answers, `/held` when it is told to, and of `/large` it sends as much as it may, without an end.
    """

    def __init__(self) -> None:
        self.closed = False
        self.state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.state.initiate_connection()
        self.resets = 0
        self.held: list[tuple[int, str]] = []
        self._changed = anyio.Event()
        self._out = self.state.data_to_send()

    def answer(self, stream: int, name: str) -> None:
        with contextlib.suppress(h2.exceptions.StreamClosedError):
            self.state.send_headers(stream, [(":status", "200")])
            self.state.send_data(stream, name.encode(), end_stream=True)
        self._say()

    def release(self) -> None:
        """Answer what was held."""
        held, self.held = self.held, []
        for stream, name in held:
            self.answer(stream, name)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await waiting()
        for event in self.state.receive_data(buffer):
            self.resets += isinstance(event, h2.events.StreamReset)
            if isinstance(event, h2.events.RequestReceived):
                self._obey(event.stream_id, dict(event.headers))
        self._say()
        await done()

    def _obey(self, stream: int, headers: dict[str, str]) -> None:
        path, name = headers[":path"], headers.get("x-name", "")
        if path == "/":
            self.answer(stream, name)
        elif path == "/held":
            self.held.append((stream, name))
        elif path == "/large":
            self.state.send_headers(stream, [(":status", "200")])
            for _ in range(16):
                self.state.send_data(stream, b"x" * 16_384)

    def _say(self) -> None:
        self._out += self.state.data_to_send()
        self._changed.set()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        await waiting()
        while not self._out and not self.closed:
            self._changed = anyio.Event()
            await self._changed.wait()
        part, self._out = self._out[:max_bytes], self._out[max_bytes:]
        await done()
        return part

    async def aclose(self) -> None:
        self.closed = True
        self._changed.set()
        await anyio.lowlevel.checkpoint()

    def get_extra_info(self, info: str) -> Any:
        return False if info == "is_readable" else None  # what has come unasked is read with the next answer


class Net:
    """A network backend of httpcore that opens such connections."""

    def __init__(self, wire: Callable[[], Any] = Wire) -> None:
        self.wires: list[Any] = []
        self._wire = wire

    async def connect_tcp(self, *arguments: Any, **options: Any) -> Any:
        await waiting()
        self.wires.append(wire := self._wire())
        try:
            await done()
        except BaseException:  # a real one is closed by the garbage collector
            wire.closed = True
            raise
        return wire

    @property
    def open(self) -> int:
        return sum(not wire.closed for wire in self.wires)


class SyncNet:
    """The same for threads; Ctrl-C can be pressed before or after each thing that may take a while."""

    def __init__(self) -> None:
        self.wires: list[SyncWire] = []
        self._left: int | None = None

    def interrupt_in(self, steps: int | None) -> None:
        """Interrupt after so many of the points, or not at all."""
        self._left = steps

    def wait(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left == -1:
                raise KeyboardInterrupt

    def connect_tcp(self, *arguments: Any, **options: Any) -> Any:
        self.wait()
        self.wires.append(SyncWire(self))
        return self.wires[-1]

    @property
    def open(self) -> int:
        return sum(not wire.closed for wire in self.wires)


class SyncWire:
    def __init__(self, net: SyncNet) -> None:
        self.closed = False
        self._net = net
        self._answers: list[bytes] = []

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            self._net.wait()
            self._answers += ANSWER
            self._net.wait()

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._net.wait()
        part = self._answers.pop(0)
        self._net.wait()
        return part

    def close(self) -> None:
        self.closed = True
        self._net.wait()

    def start_tls(self, *arguments: Any, **options: Any) -> SyncWire:
        self._net.wait()
        self._net.wait()
        return self

    def get_extra_info(self, info: str) -> Any:
        return False if info == "is_readable" else None


@types.coroutine
def stepping(function: Coroutine[Any, Any, Any], step: Callable[[int], None]) -> Generator[Any, Any, Any]:
    """Run a coroutine; `step` is called with 0, 1, ... each time that it is about to wait."""
    number = 0
    resume: Callable[[], Any] = lambda: function.send(None)  # noqa: E731
    while True:
        try:
            trap = resume()
        except StopIteration as end:
            return end.value
        step(number)
        number += 1
        try:
            sent = yield trap
        except BaseException as error:
            resume = lambda error=error: function.throw(error)  # noqa: E731
        else:
            resume = lambda sent=sent: function.send(sent)  # noqa: E731


class Cancel(ABC):
    """How a task is cancelled: `run` runs a coroutine until `now` is called, and says whether it came to its end."""

    loop: str

    @abstractmethod
    async def run(self, call: Callable[[], Awaitable[object]]) -> bool:
        """Run it; True if it came to its end."""

    @abstractmethod
    def now(self) -> None:
        """Cancel it."""


class ByScope(Cancel):
    """As anyio and trio do it: whoever shields itself is not disturbed."""

    loop = "asyncio"

    def __init__(self) -> None:
        self._scope = anyio.CancelScope()

    async def run(self, call: Callable[[], Awaitable[object]]) -> bool:
        with self._scope:
            await call()
            return True
        return False

    def now(self) -> None:
        # not from within the task: anyio would let it go on to its next wait
        asyncio.get_running_loop().call_soon(self._scope.cancel)


class InTrio(ByScope):
    loop = "trio"

    def __init__(self) -> None:
        self._scope = trio.CancelScope()  # type: ignore[assignment]

    def now(self) -> None:
        self._scope.cancel()


class ByTask(Cancel):
    """As asyncio does it: shields of anyio's are no help."""

    loop = "asyncio"

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None

    async def run(self, call: Callable[[], Awaitable[object]]) -> bool:
        async def awaited() -> None:
            await call()

        self._task = asyncio.ensure_future(awaited())
        await asyncio.wait([self._task])
        if self._task.cancelled():
            return False
        self._task.result()
        return True

    def now(self) -> None:
        assert self._task is not None
        asyncio.get_running_loop().call_soon(self._task.cancel)


WAYS: dict[str, type[Cancel]] = {"trio": InTrio, "anyio": ByScope, "asyncio": ByTask}


def run(way: type[Cancel], main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a coroutine function in the event loop of a kind of cancellation."""
    return trio.run(main) if way.loop == "trio" else anyio.run(main)
