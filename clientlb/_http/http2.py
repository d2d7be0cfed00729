"""What httpcore leaves open about HTTP/2: servers that go away, threads that share a connection, writes that fail.

A server that goes away says so, answers what it has taken, and closes. httpcore fails those requests as well; see
`clientlb._http.goodbye` for what is done instead. httpcore also fails to write a frame that nobody needs any more (a
window update), and with it every call whose answer is there to be read. So a write that fails is kept back: what has
come is read, and then the end of the connection, which says the same. And httpcore does not listen while nobody uses a
connection: the next request is lost. So an idle connection on which something has come is not used again, as with
HTTP/1.1. What has come is a goodbye, or a ping that nobody answers and that makes the server close it as well.

httpcore's sync connections let threads allocate streams and write frames in each other's middle: calls fail, and a
response may reach the wrong one (httpx2, issue 1153). So of a sync client one call at a time uses a connection; others
open more of them, as with HTTP/1.1. In an event loop calls share a connection, as they should; what a call that is cut
short owes to the others is in `clientlb._http.cut_short`.
"""

from __future__ import annotations

import threading
from functools import cache
from types import ModuleType
from typing import Any

from clientlb._http import cut_short, pools
from clientlb._http.goodbye import Goodbye, NotTaken

_SILENT = Goodbye()


class _Kept:
    """A connection that is not used again once the server has said something unasked; the base class is httpcore's."""

    _connection: Any
    _core: ModuleType

    @property
    def _goodbye(self) -> Goodbye:
        connection = self._connection  # None until it is connected
        return _SILENT if connection is None else connection._network_stream.goodbye

    def is_available(self) -> bool:
        """Whether the pool may give it to a call."""
        return not self._goodbye.said and super().is_available()  # type: ignore[misc]

    def has_expired(self) -> bool:
        """As that of httpcore."""
        if super().has_expired():  # type: ignore[misc]
            return True
        connection = self._connection
        if connection is None or not connection.is_idle():
            return False
        return self._goodbye.said or bool(connection._network_stream.get_extra_info("is_readable"))

    def _told(self, error: Exception) -> Exception:
        """The error of a request, after what the server has said about it."""
        stream = getattr(error.args[0], "stream_id", None) if error.args else None
        if stream is None or not self._goodbye.excludes(stream):
            return error
        return self._core.RemoteProtocolError(NotTaken(stream))  # type: ignore[no-any-return]


class _Alone(_Kept):
    """One for one call at a time."""

    _entering = False
    _turn: threading.Lock

    @property
    def _is_free(self) -> bool:
        connection = self._connection
        return not self._entering and (connection is None or connection.is_idle())

    def handle_request(self, request: Any) -> Any:
        """As that of httpcore; the pool goes on to another connection if this one is in use."""
        core = self._core
        with self._turn:
            if not self._is_free:
                raise core.ConnectionNotAvailable
            self._entering = True
        try:
            return super().handle_request(request)  # type: ignore[misc]
        except (core.RemoteProtocolError, core.LocalProtocolError) as error:
            raise self._told(error) from None
        finally:
            self._entering = False

    def is_available(self) -> bool:
        """As above."""
        return self._is_free and super().is_available()

    def can_multiplex(self) -> bool:
        """As that of httpcore2."""
        return False


class _Shared(_Kept):
    """One for all calls of an event loop."""

    async def handle_async_request(self, request: Any) -> Any:
        """As that of httpcore."""
        core = self._core
        if self._goodbye.said:
            raise core.ConnectionNotAvailable
        try:
            return await super().handle_async_request(request)  # type: ignore[misc]
        except (core.RemoteProtocolError, core.LocalProtocolError) as error:
            raise self._told(error) from None


class _Pool:
    """A pool of such connections; the base class is httpcore's."""

    _kind: type[_Kept]

    def create_connection(self, origin: Any) -> Any:
        """As that of httpcore."""
        connection = super().create_connection(origin)  # type: ignore[misc]
        connection.__class__ = self._kind  # its constructor takes a dozen arguments, which the pool knows
        connection._turn = threading.Lock()
        return connection


@cache
def sync_pool(core: ModuleType) -> Any:
    """The class of a pool for a sync client that may speak HTTP/2.

    Args:
        core: `httpcore` or `httpcore2`.
    """
    alone = type("Connection", (_Alone, cut_short.sync_base(core)), {"_core": core})
    return type("Pool", (_Pool, pools.sync_pool(core)), {"_kind": alone})


@cache
def async_pool(core: ModuleType) -> Any:
    """The same for an async client."""
    shared = type("Connection", (_Shared, cut_short.async_base(core)), {"_core": core})
    return type("Pool", (_Pool, pools.async_pool(core)), {"_kind": shared})


class Lasting:
    """A stream of httpcore's that can still be read when a write has failed, or the server has said goodbye.

    Args:
        stream: What it is about.
        core: `httpcore` or `httpcore2`.

    Attributes:
        goodbye: What the server has said.
    """

    def __init__(self, stream: Any, core: ModuleType) -> None:
        self._stream = stream
        self._core = core
        self._broken = False
        self.goodbye = Goodbye()

    def read(self, max_bytes: int, timeout: float | None = None) -> Any:
        """As that of httpcore."""
        heard: bytes = self.goodbye.refusals()
        while not heard:
            data = self._stream.read(max_bytes, timeout)
            heard = self._heard(data)
            if not data:
                break
        return heard

    def _heard(self, data: bytes) -> bytes:
        """What httpcore may see; at the end of the connection, nothing or why it ended."""
        goodbye = self.goodbye
        heard = goodbye.heard(data) if data else goodbye.refusals()
        if not data and not heard and goodbye.reason:
            raise self._core.RemoteProtocolError(f"Server disconnected after GOAWAY, {goodbye.reason}")
        return heard

    def write(self, buffer: bytes, timeout: float | None = None) -> Any:
        """As that of httpcore, but silent if the connection is broken."""
        self.goodbye.sent(buffer)
        if not self._broken:
            try:
                self._stream.write(buffer, timeout)
            except self._core.WriteError:
                self._broken = True

    def close(self) -> None:
        """As that of httpcore."""
        self._stream.close()

    def start_tls(self, *arguments: Any, **options: Any) -> Any:
        """As that of httpcore."""
        return type(self)(self._stream.start_tls(*arguments, **options), self._core)

    def get_extra_info(self, info: str) -> Any:
        """As that of httpcore."""
        return self._stream.get_extra_info(info)


class AsyncLasting(Lasting):
    """The async one."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """As that of httpcore."""
        heard: bytes = self.goodbye.refusals()
        while not heard:
            data = await self._stream.read(max_bytes, timeout)
            heard = self._heard(data)
            if not data:
                break
        return heard

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """As that of httpcore, but silent if the connection is broken."""
        self.goodbye.sent(buffer)
        if not self._broken:
            try:
                await self._stream.write(buffer, timeout)
            except self._core.WriteError:
                self._broken = True

    async def aclose(self) -> None:
        """As that of httpcore."""
        await self._stream.aclose()

    async def start_tls(self, *arguments: Any, **options: Any) -> AsyncLasting:
        """As that of httpcore."""
        return AsyncLasting(await self._stream.start_tls(*arguments, **options), self._core)


class LastingBackend:
    """A network backend of httpcore whose streams last.

    Args:
        backend: Makes the connections.
        core: `httpcore` or `httpcore2`.
    """

    def __init__(self, backend: Any, core: ModuleType) -> None:
        self._backend = backend
        self._core = core

    def connect_tcp(self, *arguments: Any, **options: Any) -> Any:
        """As that of httpcore."""
        return Lasting(self._backend.connect_tcp(*arguments, **options), self._core)

    def connect_unix_socket(self, *arguments: Any, **options: Any) -> Any:
        """As that of httpcore."""
        return Lasting(self._backend.connect_unix_socket(*arguments, **options), self._core)

    def sleep(self, seconds: float) -> Any:
        """As that of httpcore."""
        return self._backend.sleep(seconds)


class AsyncLastingBackend(LastingBackend):
    """The async one."""

    async def connect_tcp(self, *arguments: Any, **options: Any) -> Any:
        """As that of httpcore."""
        return AsyncLasting(await self._backend.connect_tcp(*arguments, **options), self._core)

    async def connect_unix_socket(self, *arguments: Any, **options: Any) -> Any:
        """As that of httpcore."""
        return AsyncLasting(await self._backend.connect_unix_socket(*arguments, **options), self._core)
