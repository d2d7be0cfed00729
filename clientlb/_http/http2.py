"""What httpcore leaves open about HTTP/2: connections that were closed, threads that share one, writes that fail.

A server says goodbye on a connection while nobody uses it, and httpcore does not listen: the next request is lost. So
an idle connection on which something has come is not used again, as with HTTP/1.1. What has come is a goodbye, or a
ping that nobody answers and that makes the server close the connection as well.

httpcore's sync connections let threads allocate streams and write frames in each other's middle: calls fail, and a
response may reach the wrong one (httpx2, issue 1153). So of a sync client one call at a time uses a connection; others
open more of them, as with HTTP/1.1. In an event loop calls share a connection, as they should.

A server that goes away answers what it has begun, and closes. httpcore then fails to write a frame that nobody needs
any more (a window update), and with it every call whose answer is there to be read. So a write that fails is kept
back: what has come is read, and then the end of the connection, which says the same.
"""

from __future__ import annotations

import threading
from types import ModuleType
from typing import Any

from clientlb._http import pools


class _Kept:
    """A connection that is not used again once the server has said something unasked; the base class is httpcore's."""

    _connection: Any

    def has_expired(self) -> bool:
        """As that of httpcore."""
        if super().has_expired():  # type: ignore[misc]
            return True
        connection = self._connection  # None until it is connected
        stream = getattr(connection, "_network_stream", None)
        return stream is not None and connection.is_idle() and bool(stream.get_extra_info("is_readable"))


class _Alone(_Kept):
    """One for one call at a time."""

    _entering = False
    _busy: type[Exception]
    _turn: threading.Lock

    @property
    def _is_free(self) -> bool:
        connection = self._connection
        return not self._entering and (connection is None or connection.is_idle())

    def handle_request(self, request: Any) -> Any:
        """As that of httpcore; the pool goes on to another connection if this one is in use."""
        with self._turn:
            if not self._is_free:
                raise self._busy
            self._entering = True
        try:
            return super().handle_request(request)  # type: ignore[misc]
        finally:
            self._entering = False

    def is_available(self) -> bool:
        """Whether the pool may give it to a call."""
        return self._is_free and super().is_available()  # type: ignore[misc]

    def can_multiplex(self) -> bool:
        """As that of httpcore2."""
        return False


class _Pool:
    """A pool of such connections; the base class is httpcore's."""

    _kind: type[_Kept]

    def create_connection(self, origin: Any) -> Any:
        """As that of httpcore."""
        connection = super().create_connection(origin)  # type: ignore[misc]
        connection.__class__ = self._kind  # its constructor takes a dozen arguments, which the pool knows
        connection._turn = threading.Lock()
        return connection


def sync_pool(core: ModuleType) -> Any:
    """The class of a pool for a sync client that may speak HTTP/2.

    Args:
        core: `httpcore` or `httpcore2`.
    """
    alone = type("Connection", (_Alone, core.HTTPConnection), {"_busy": core.ConnectionNotAvailable})
    return type("Pool", (_Pool, pools.sync_pool(core)), {"_kind": alone})


def async_pool(core: ModuleType) -> Any:
    """The same for an async client."""
    kept = type("Connection", (_Kept, core.AsyncHTTPConnection), {})
    return type("Pool", (_Pool, pools.async_pool(core)), {"_kind": kept})


class Lasting:
    """A stream of httpcore's that can still be read when a write has failed.

    Args:
        stream: What it is about.
        failed: httpcore's `WriteError`.
    """

    def __init__(self, stream: Any, failed: type[Exception]) -> None:
        self._stream = stream
        self._failed = failed
        self._broken = False

    def read(self, max_bytes: int, timeout: float | None = None) -> Any:
        """As that of httpcore."""
        return self._stream.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> Any:
        """As that of httpcore, but silent if the connection is broken."""
        if not self._broken:
            try:
                self._stream.write(buffer, timeout)
            except self._failed:
                self._broken = True

    def close(self) -> None:
        """As that of httpcore."""
        self._stream.close()

    def start_tls(self, *arguments: Any, **options: Any) -> Any:
        """As that of httpcore."""
        return type(self)(self._stream.start_tls(*arguments, **options), self._failed)

    def get_extra_info(self, info: str) -> Any:
        """As that of httpcore."""
        return self._stream.get_extra_info(info)


class AsyncLasting(Lasting):
    """The async one."""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """As that of httpcore, but silent if the connection is broken."""
        if not self._broken:
            try:
                await self._stream.write(buffer, timeout)
            except self._failed:
                self._broken = True

    async def aclose(self) -> None:
        """As that of httpcore."""
        await self._stream.aclose()

    async def start_tls(self, *arguments: Any, **options: Any) -> AsyncLasting:
        """As that of httpcore."""
        return AsyncLasting(await self._stream.start_tls(*arguments, **options), self._failed)


class LastingBackend:
    """A network backend of httpcore whose streams last.

    Args:
        backend: Makes the connections.
        failed: httpcore's `WriteError`.
    """

    def __init__(self, backend: Any, failed: type[Exception]) -> None:
        self._backend = backend
        self._failed = failed

    def connect_tcp(self, *arguments: Any, **options: Any) -> Any:
        """As that of httpcore."""
        return Lasting(self._backend.connect_tcp(*arguments, **options), self._failed)

    def connect_unix_socket(self, *arguments: Any, **options: Any) -> Any:
        """As that of httpcore."""
        return Lasting(self._backend.connect_unix_socket(*arguments, **options), self._failed)

    def sleep(self, seconds: float) -> Any:
        """As that of httpcore."""
        return self._backend.sleep(seconds)


class AsyncLastingBackend(LastingBackend):
    """The async one."""

    async def connect_tcp(self, *arguments: Any, **options: Any) -> Any:
        """As that of httpcore."""
        return AsyncLasting(await self._backend.connect_tcp(*arguments, **options), self._failed)

    async def connect_unix_socket(self, *arguments: Any, **options: Any) -> Any:
        """As that of httpcore."""
        return AsyncLasting(await self._backend.connect_unix_socket(*arguments, **options), self._failed)
