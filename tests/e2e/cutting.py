"""A cable between somebody and a server that a test can cut: a TCP proxy on a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

_CHUNK = 64 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER with no time: the other side is sent a reset


class CuttingProxy:
    """Listens on `port` of the loopback interface and forwards every connection to `target`.

    Args:
        target: Port of the server, on the loopback interface.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._whole = asyncio.Event()
        self._whole.set()
        self._resetting = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), daemon=True)

    def cut(self) -> None:
        """From now on nothing passes in either direction, and nobody is told.

        A new connection is made, for the system makes it, but remains silent.
        """
        self._do(self._whole.clear)

    def reset(self) -> None:
        """From now on every connection is reset, old ones and new ones."""

        def reset() -> None:
            self._resetting = True
            self._abort()

        self._do(reset)

    def mend(self) -> None:
        """Everything passes again; what was held up by `cut` first, as TCP itself would send it again."""

        def mend() -> None:
            self._resetting = False
            self._whole.set()

        self._do(mend)

    def _do(self, what: Callable[[], None]) -> None:
        done = threading.Event()

        def do() -> None:
            what()
            done.set()

        self._loop.call_soon_threadsafe(do)
        assert done.wait(5.0)

    def _abort(self) -> None:
        for writer in self._writers:
            with contextlib.suppress(OSError):  # closed already
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()

    async def _run(self) -> None:
        server = await asyncio.start_server(self._serve, sock=self._listener)
        await self._ending.wait()
        server.close()
        self._whole.set()
        self._abort()
        await asyncio.gather(*self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = asyncio.current_task()
        assert serving is not None
        self._serving.add(serving)
        self._writers.add(writer)
        try:
            if self._resetting:
                self._abort()
                return
            await self._whole.wait()
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(target_writer)
            try:
                await asyncio.gather(self._pump(reader, target_writer), self._pump(target_reader, writer))
            finally:
                self._writers.discard(target_writer)
                target_writer.close()
        except OSError:
            pass  # one of the two hung up, or the server does not listen
        finally:
            self._writers.discard(writer)
            writer.close()
            self._serving.discard(serving)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_CHUNK):
                await self._whole.wait()
                writer.write(data)
                await writer.drain()
            await self._whole.wait()
        finally:
            writer.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._ending.set)
        self._thread.join(5.0)
        self._loop.close()
