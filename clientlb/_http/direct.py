"""What carries an attempt to one endpoint: httpcore's connection pool by default, or the `inner` transport of a user.

httpx's own `HTTPTransport` is a layer over such a pool. It wants a request of httpx with another URL, and wraps what
comes back once more. A shell has to do both anyway, so it talks to the pool directly, which pays for most of what
balancing costs: 20 µs of a call of 400.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from clientlb._http import http2, pools
from clientlb._http.http2 import AsyncLastingBackend, LastingBackend
from clientlb._http.message import copy_to
from clientlb._http.place import Place, below
from clientlb._http.streams import AsyncDialler, Dialler
from clientlb._http.verdict import has_no_room
from clientlb.aio import in_trio
from clientlb.endpoint import Endpoint

if TYPE_CHECKING:
    from clientlb._http.flavour import Flavour

_ERRORS = (
    "TimeoutException",
    "ConnectTimeout",
    "ReadTimeout",
    "WriteTimeout",
    "PoolTimeout",
    "NetworkError",
    "ConnectError",
    "ReadError",
    "WriteError",
    "ProxyError",
    "UnsupportedProtocol",
    "ProtocolError",
    "LocalProtocolError",
    "RemoteProtocolError",
)
_new = object.__new__
_MOST_CONNECTIONS, _MOST_IDLE = 100, 20  # of one endpoint; httpx's defaults


class CoreErrors:
    """The exceptions of httpcore, as those of httpx that have the same names.

    Args:
        module: `httpx` or `httpx2`.
        core: `httpcore` or `httpcore2`.
    """

    def __init__(self, module: ModuleType, core: ModuleType) -> None:
        self._theirs: dict[type, type[Exception]] = {
            getattr(core, name): getattr(module, name) for name in _ERRORS if hasattr(core, name)
        }
        self.kinds: tuple[type[Exception], ...] = tuple(self._theirs)

    def translated(self, error: Exception) -> Exception:
        """The exception that httpx has for it; the same one if it is none of httpcore's."""
        for kind in type(error).__mro__:
            if kind in self._theirs:
                return self._theirs[kind](str(error))
        return error


class _Direct:
    """The connections to one endpoint.

    Args:
        flavour: Of the client.
        endpoint: Where to.
        settings: `verify`, `http1`, `http2` and perhaps `limits`, as `Settings.arguments` makes them.
        place: Where to, beyond host and port.

    Attributes:
        aborted: Makes the error of an attempt that is ended early, which cuts its connection; None if that must not be,
            because calls over HTTP/2 share one.
        dialler: Its `latest` is another object after every new connection.
    """

    __slots__ = ("_core", "_errors", "_host", "_pool", "_port", "_prefix", "_response", "aborted", "dialler")

    def __init__(self, flavour: Flavour, endpoint: Endpoint, place: Place, settings: Mapping[str, Any]) -> None:
        limits = settings.get("limits") or flavour.module.Limits(
            max_connections=_MOST_CONNECTIONS, max_keepalive_connections=_MOST_IDLE
        )
        self._core = flavour.core
        self._errors = flavour.core_errors
        self._response = flavour.module.Response
        self._host = endpoint.host.encode()
        self._port = endpoint.port
        self._prefix = place.base_path
        self.dialler = self._new_dialler()
        self.aborted: Callable[[str], Exception] | None = None if settings["http2"] else flavour.core.ReadError
        self._pool = self._pool_type(settings["http2"])(
            ssl_context=settings["verify"],
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            http1=settings["http1"],
            http2=settings["http2"],
            uds=place.uds,
            network_backend=self._backend() if settings["http2"] else self.dialler,
        )

    def _new_dialler(self) -> Dialler:
        return Dialler(self._core.SyncBackend())

    def _backend(self) -> Any:
        return LastingBackend(self.dialler, self._core)

    def _pool_type(self, multiplexes: bool) -> Any:
        return (http2 if multiplexes else pools).sync_pool(self._core)

    def _without_room(self, error: Exception) -> list[Any]:
        """Connections on which a server that goes away takes no more requests. httpcore never reads its goodbye."""
        if not error.args or not has_no_room(error.args[0]):
            return []
        return [connection for connection in self._pool.connections if connection.is_idle()]

    def _addressed(self, request: Any, scheme: bytes, changes: Mapping[str, Any]) -> Any:
        """A request of httpcore's. Its constructors check every part anew, which takes 3 to 6 µs: httpx has done it."""
        core = self._core
        stream, extensions, headers = request.stream, request.extensions, request.headers
        if changes:
            stream = changes.get("stream", stream)
            extensions = changes.get("extensions", extensions)
            headers = changes.get("headers", headers)
        url = _new(core.URL)
        url.scheme = scheme
        url.host = self._host
        url.port = self._port
        if "target" in extensions:
            url.target = extensions["target"]
        elif self._prefix:
            url.target = below(self._prefix, request.url.raw_path)
        else:
            url.target = request.url.raw_path
        made = _new(core.Request)
        made.method = request.method.encode("ascii")
        made.url = url
        made.headers = headers.raw
        made.stream = stream
        made.extensions = extensions
        return made


class Direct(_Direct):
    """The sync one."""

    __slots__ = ()

    def send(self, request: Any, scheme: bytes, changes: Mapping[str, Any]) -> Any:
        """Send the caller's request to the endpoint; the stream of the response is httpcore's.

        Args:
            request: The caller's, which is not changed.
            scheme: Of the URL.
            changes: Attributes of the request that differ: `stream`, `extensions`, `headers`.
        """
        addressed = self._addressed(request, scheme, changes)
        try:
            try:
                answer = self._pool.handle_request(addressed)
            except BaseException:
                self._pool.clean_up(addressed)
                raise
        except self._errors.kinds as error:
            full = self._without_room(error)
            if not full:
                raise self._errors.translated(error) from error
            for connection in full:
                connection.close()
            return self.send(request, scheme, changes)
        return self._response(answer.status, headers=answer.headers, stream=answer.stream, extensions=answer.extensions)

    def clean_up(self, stream: Any) -> None:
        """After an interrupt in the stream of a response, or while it was closed: leave nothing of it behind."""
        self._pool.clean_up(stream._pool_request.request)

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()


class AsyncDirect(_Direct):
    """The async one."""

    __slots__ = ()

    def _new_dialler(self) -> Dialler:
        return AsyncDialler(self._core.TrioBackend() if in_trio() else self._core.AnyIOBackend())

    def _backend(self) -> Any:
        return AsyncLastingBackend(self.dialler, self._core)

    def _pool_type(self, multiplexes: bool) -> Any:
        return (http2 if multiplexes else pools).async_pool(self._core)

    async def send(self, request: Any, scheme: bytes, changes: Mapping[str, Any]) -> Any:
        """As that of `Direct`."""
        addressed = self._addressed(request, scheme, changes)
        try:
            try:
                answer = await self._pool.handle_async_request(addressed)
            except BaseException:
                await self._pool.clean_up(addressed)
                raise
        except self._errors.kinds as error:
            full = self._without_room(error)
            if not full:
                raise self._errors.translated(error) from error
            for connection in full:
                await connection.aclose()
            return await self.send(request, scheme, changes)
        return self._response(answer.status, headers=answer.headers, stream=answer.stream, extensions=answer.extensions)

    async def clean_up(self, stream: Any) -> None:
        """After a cancellation in the stream of a response, or while it was closed: leave nothing of it behind."""
        await self._pool.clean_up(stream._pool_request.request)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.aclose()


class _Unknown:
    """How old the connections of a user's transport are is not known: any may be new."""

    @property
    def latest(self) -> object:
        """Another object every time."""
        return object()


class _Through:
    """An endpoint behind a transport of httpx's kind.

    Args:
        flavour: Of the client.
        endpoint: Where to.
        transport: What a user's `inner` made for it.
    """

    __slots__ = ("_address", "_transport", "_url")

    aborted = None
    dialler = _Unknown()

    def __init__(self, flavour: Flavour, endpoint: Endpoint, transport: Any) -> None:
        self._url = flavour.url
        self._address = {"raw_host": endpoint.host.encode(), "port": endpoint.port}
        self._transport = transport

    def _addressed(self, request: Any, scheme: bytes, changes: Mapping[str, Any]) -> Any:
        return copy_to(request, self._url, scheme, self._address, changes)


class Through(_Through):
    """The sync one."""

    __slots__ = ()

    def send(self, request: Any, scheme: bytes, changes: Mapping[str, Any]) -> Any:
        """As that of `Direct`."""
        return self._transport.handle_request(self._addressed(request, scheme, changes))

    def clean_up(self, stream: Any) -> None:
        """Nothing: what the transport leaves behind is its own affair."""

    def close(self) -> None:
        """Close the transport."""
        self._transport.close()


class AsyncThrough(_Through):
    """The async one."""

    __slots__ = ()

    def send(self, request: Any, scheme: bytes, changes: Mapping[str, Any]) -> Any:
        """As that of `Direct`; a coroutine."""
        return self._transport.handle_async_request(self._addressed(request, scheme, changes))

    async def clean_up(self, stream: Any) -> None:
        """Nothing: what the transport leaves behind is its own affair."""

    async def aclose(self) -> None:
        """Close the transport."""
        await self._transport.aclose()
