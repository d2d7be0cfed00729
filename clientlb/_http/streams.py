"""The streams of httpcore's connections, and what dials them: they keep to the time that an attempt has left.

A timeout that is `Remaining` is asked anew before every wait, so that a server that answers byte by byte cannot take
longer than the attempt may. If the attempt can be ended early, what a sync stream waits for is cut short.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from clientlb._http.timeouts import Remaining

_SLICE = 2**18
"""Bytes that are written at once: after each of them the clock is read again."""


def _now(timeout: float | None) -> float | None:
    return timeout.now() if type(timeout) is Remaining else timeout


class Stream:
    """The sync one."""

    __slots__ = ("_stream", "close", "get_extra_info")

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.close = stream.close
        self.get_extra_info = stream.get_extra_info

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """As that of httpcore."""
        found: bytes
        if type(timeout) is not Remaining:
            found = self._stream.read(max_bytes, timeout)
        elif (interrupt := timeout.timeouts.interrupt) is None:
            found = self._stream.read(max_bytes, timeout.now())
        else:
            with interrupt.watching(self.get_extra_info("socket")):
                found = self._stream.read(max_bytes, timeout.now())
        return found

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """As that of httpcore."""
        if type(timeout) is not Remaining:
            self._stream.write(buffer, timeout)
        elif timeout.timeouts.interrupt is None and len(buffer) <= _SLICE:
            self._stream.write(buffer, timeout.now())
        else:
            for start in range(0, len(buffer), _SLICE):
                with self._watched(timeout):
                    self._stream.write(buffer[start : start + _SLICE], timeout.now())

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> Stream:
        """As that of httpcore, but an interrupt closes the connection as well, which nobody knows yet."""
        try:
            if type(timeout) is not Remaining:
                return Stream(self._stream.start_tls(ssl_context, server_hostname, timeout))
            # TLS takes the original socket
            with self.get_extra_info("socket").dup() as handle, self._watched(timeout, handle):
                return Stream(self._stream.start_tls(ssl_context, server_hostname, timeout.now()))
        except BaseException:
            self.close()
            raise

    def _watched(self, timeout: Remaining, connection: Any = None) -> AbstractContextManager[None]:
        """For as long as a thread waits for something here: the attempt may be ended early."""
        interrupt = timeout.timeouts.interrupt
        return nullcontext() if interrupt is None else interrupt.watching(connection or self.get_extra_info("socket"))


class AsyncStream:
    """The async one. It needs no more than the right timeout, for its task can be cancelled."""

    __slots__ = ("_stream", "aclose", "get_extra_info")

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.aclose = stream.aclose
        self.get_extra_info = stream.get_extra_info

    def read(self, max_bytes: int, timeout: float | None = None) -> Any:
        """As that of httpcore."""
        return self._stream.read(max_bytes, timeout.now() if type(timeout) is Remaining else timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> Any:
        """As that of httpcore."""
        return self._stream.write(buffer, timeout.now() if type(timeout) is Remaining else timeout)

    async def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncStream:
        """As that of httpcore, but a cancellation closes the connection as well, which nobody knows yet."""
        try:
            return AsyncStream(await self._stream.start_tls(ssl_context, server_hostname, _now(timeout)))
        except BaseException:
            await self.aclose()
            raise


class Dialler:
    """A network backend of httpcore that notes when a connection was made.

    So an attempt that broke can tell whether its connection was a new one: it was not if none was made meanwhile.

    Args:
        backend: Makes the connections.

    Attributes:
        latest: Another object after every new connection; two threads cannot make it the same one again.
    """

    __slots__ = ("_backend", "latest")

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.latest = object()

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, **options: Any) -> Any:
        """As that of httpcore."""
        stream = self._backend.connect_tcp(host, port, _now(timeout), **options)
        self.latest = object()
        return Stream(stream)

    def connect_unix_socket(self, path: str, timeout: float | None = None, **options: Any) -> Any:
        """As that of httpcore."""
        stream = self._backend.connect_unix_socket(path, _now(timeout), **options)
        self.latest = object()
        return Stream(stream)

    def sleep(self, seconds: float) -> Any:
        """As that of httpcore."""
        return self._backend.sleep(seconds)


class AsyncDialler(Dialler):
    """The async one."""

    __slots__ = ()

    async def connect_tcp(self, host: str, port: int, timeout: float | None = None, **options: Any) -> Any:
        """As that of httpcore."""
        stream = await self._backend.connect_tcp(host, port, _now(timeout), **options)
        self.latest = object()
        return AsyncStream(stream)

    async def connect_unix_socket(self, path: str, timeout: float | None = None, **options: Any) -> Any:
        """As that of httpcore."""
        stream = await self._backend.connect_unix_socket(path, _now(timeout), **options)
        self.latest = object()
        return AsyncStream(stream)
