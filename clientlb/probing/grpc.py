"""The probe over gRPC: the unary method `/clientlb.Load/Probe`, and the server interceptors that answer it.

In the language of Protocol Buffers, a request is empty and an answer is

    message Load { optional fixed32 in_flight = 1; optional double latency = 2; }

which is 14 bytes whatever the numbers are, so neither side needs generated code.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

try:
    import grpc
    import grpc.aio
except ImportError as _error:
    raise ImportError("this needs grpcio: pip install 'clientlb[grpc]'", name=_error.name) from _error

from clientlb.endpoint import Endpoint
from clientlb.probing.asker import Asker
from clientlb.probing.http import checked
from clientlb.probing.load import Load
from clientlb.probing.meter import LoadMeter

__all__ = ["METHOD", "AioLoadInterceptor", "GrpcProbe", "LoadInterceptor"]

METHOD = "/clientlb.Load/Probe"
"""The method that is asked."""

_LAYOUT = struct.Struct("<BIBd")
_IN_FLIGHT, _LATENCY = 0x0D, 0x11  # tags: field 1 of four bytes, field 2 of eight
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)

if TYPE_CHECKING:
    _Asker = Asker["_Channel"]
else:
    _Asker = Asker


def _answer_of(load: Load) -> bytes:
    """The bytes of an answer."""
    return _LAYOUT.pack(_IN_FLIGHT, min(load.in_flight, 0xFFFFFFFF), _LATENCY, load.latency)


def _load_in(answer: bytes) -> Load:
    """Read the bytes of an answer. Raises ValueError or struct.error if it is none."""
    first, in_flight, second, latency = _LAYOUT.unpack(answer)
    if (first, second) != (_IN_FLIGHT, _LATENCY):
        raise ValueError(f"no load: {answer!r}")
    return checked(Load(in_flight, latency))


class _Channel:
    """A channel and the method on it."""

    __slots__ = ("channel", "method")

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel: grpc.Channel = channel
        self.method: Any = channel.unary_unary(METHOD)


class GrpcProbe(_Asker):
    """Asks servers over gRPC, on one channel per endpoint that is kept.

    Args:
        credentials: As for `grpc.secure_channel`. None (default) means plain text, except for endpoints whose registry
            says that they speak TLS: those get the default credentials.
        server_name: The `:authority`, which certificates have to be for (default: the endpoint's address).
        timeout: Seconds that an answer may take (default 0.05; the paper has 0.003 within a data centre).
        threads: That ask (default 4).
        backlog: Questions that may wait; more are dropped (default 64).

    Raises:
        ConfigurationError: A value is out of its range.
    """

    keeps_connection: ClassVar[bool] = True

    def __init__(
        self,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        server_name: str | None = None,
        timeout: float = 0.05,
        threads: int = 4,
        backlog: int = 64,
    ) -> None:
        super().__init__(timeout=timeout, threads=threads, backlog=backlog)
        self._credentials = credentials
        authority = (("grpc.default_authority", server_name),) if server_name else ()
        self._options: list[tuple[str, Any]] = [*_OPTIONS, *authority]

    def connect(self, endpoint: Endpoint) -> _Channel:
        """Open a channel to an endpoint."""
        credentials = self._credentials
        if credentials is None and endpoint.secure:
            credentials = grpc.ssl_channel_credentials()
        if credentials is None:
            return _Channel(grpc.insecure_channel(endpoint.address, self._options))
        return _Channel(grpc.secure_channel(endpoint.address, credentials, self._options))

    def load(self, connection: _Channel) -> Load:
        """Ask."""
        return _load_in(connection.method(b"", timeout=self.timeout))

    def disconnect(self, connection: _Channel) -> None:
        """Close a channel."""
        connection.channel.close()

    def forsake(self, connection: _Channel | None) -> None:
        """In a forked child: keep a channel of the parent for ever, since gRPC may neither use nor free it here."""
        _never_freed.append(connection)


_never_freed: list[object] = []


class LoadInterceptor(grpc.ServerInterceptor):
    """Counts the calls of a `grpc.Server` and answers probes.

        server = grpc.server(pool, interceptors=[LoadInterceptor()])

    Calls that wait for a thread of the server are not counted, and a probe waits behind them.

    Args:
        meter: What counts; to share it with another way in (default: one of its own).
    """

    def __init__(self, meter: LoadMeter | None = None) -> None:
        self.meter: LoadMeter = meter or LoadMeter()

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Find who handles a call."""
        if handler_call_details.method == METHOD:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: _answer_of(self.meter.load()))
        handler = continuation(handler_call_details)
        return handler and _counted(handler, self._single, self._stream)

    def _single(self, behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def handle(request: Any, context: Any) -> Any:
            running, succeeded = self.meter.began(), False
            try:
                answer = behaviour(request, context)
                succeeded = context.code() in _FINE
            finally:
                running.end(telling=succeeded)
            return answer

        return handle

    def _stream(self, behaviour: Callable[[Any, Any], Iterator[Any]]) -> Callable[[Any, Any], Iterator[Any]]:
        def handle(request: Any, context: Any) -> Iterator[Any]:
            running = self.meter.began()
            try:
                yield from behaviour(request, context)
            finally:
                running.end(telling=False)

        return handle


class AioLoadInterceptor(grpc.aio.ServerInterceptor):
    """Counts the calls of a `grpc.aio.Server` and answers probes.

        server = grpc.aio.server(interceptors=[AioLoadInterceptor()])

    Args:
        meter: What counts; to share it with another way in (default: one of its own).
    """

    def __init__(self, meter: LoadMeter | None = None) -> None:
        self.meter: LoadMeter = meter or LoadMeter()

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Find who handles a call."""
        if handler_call_details.method == METHOD:
            return grpc.unary_unary_rpc_method_handler(self._answer)
        handler = await continuation(handler_call_details)
        return handler and _counted(handler, self._single, self._stream)

    async def _answer(self, request: bytes, context: Any) -> bytes:
        return _answer_of(self.meter.load())

    def _single(self, behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        async def handle(request: Any, context: Any) -> Any:
            running, succeeded = self.meter.began(), False
            try:
                answer = await behaviour(request, context)
                succeeded = context.code() in _FINE
            finally:
                running.end(telling=succeeded)
            return answer

        return handle

    def _stream(self, behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        async def handle(request: Any, context: Any) -> AsyncIterator[Any]:
            running = self.meter.began()
            try:
                answers = behaviour(request, context)
                if hasattr(answers, "__aiter__"):
                    async for answer in answers:
                        yield answer
                else:
                    await answers  # writes with context.write()
            finally:
                running.end(telling=False)

        return handle


_FINE = (None, 0, grpc.StatusCode.OK)
"""Codes of a call that went well, as `context.code()` has them before the answer is sent."""

Wrap = Callable[[Callable[[Any, Any], Any]], Callable[[Any, Any], Any]]


def _counted(handler: Any, single: Wrap, stream: Wrap) -> Any:
    """The same handler, with what it does wrapped."""
    kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
    wrap = stream if handler.response_streaming else single
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(wrap(getattr(handler, kind)), handler.request_deserializer, handler.response_serializer)
