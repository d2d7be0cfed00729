"""The four kinds of methods of the aio channel, as stubs call them."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import grpc.aio

from clientlb.call import Attempt, Steps, call
from clientlb.deadlines import expiry
from clientlb.grpc._links import Link
from clientlb.grpc._method import BalancedMethod
from clientlb.grpc._requests import AsyncRequests
from clientlb.grpc.aio._call import BalancedCall
from clientlb.grpc.aio._exchange import WRITTEN, Exchange, stream_of
from clientlb.grpc.aio._hedged import HedgedCall
from clientlb.grpc.aio._kinds import StreamStreamCall, StreamUnaryCall, UnaryStreamCall, UnaryUnaryCall
from clientlb.node import Node
from clientlb.outcome import Outcome

if TYPE_CHECKING:
    from clientlb.grpc.aio._channel import Channel, LoopLinks

_IGNORED = Outcome.IGNORED
_new = object.__new__

# generic for type checkers, but not when the program runs
if TYPE_CHECKING:
    UnaryUnaryBase: TypeAlias = grpc.aio.UnaryUnaryMultiCallable[Any, Any]
    UnaryStreamBase: TypeAlias = grpc.aio.UnaryStreamMultiCallable[Any, Any]
    StreamUnaryBase: TypeAlias = grpc.aio.StreamUnaryMultiCallable[Any, Any]
    StreamStreamBase: TypeAlias = grpc.aio.StreamStreamMultiCallable[Any, Any]
else:
    UnaryUnaryBase = grpc.aio.UnaryUnaryMultiCallable
    UnaryStreamBase = grpc.aio.UnaryStreamMultiCallable
    StreamUnaryBase = grpc.aio.StreamUnaryMultiCallable
    StreamStreamBase = grpc.aio.StreamStreamMultiCallable


class Method(BalancedMethod):
    """A method of the aio channel."""

    kind: type[BalancedCall]

    def __init__(self, channel: Channel, arity: str, name: str, *arguments: Any) -> None:
        super().__init__(channel, arity, name, *arguments)
        self._channel = channel
        self._streams = arity.startswith("stream_")

    def at(self, links: LoopLinks, node: Node) -> Any:
        """The same method of the channel to one endpoint."""
        link = links[node]
        return link.methods.get(self._reference) or self._open(links, link)

    def _open(self, links: LoopLinks, link: Link[grpc.aio.Channel]) -> Any:
        return link.function(
            self._reference, lambda: self._make(links, link.channel), connected=links.is_connected(link)
        )

    def _make(self, links: LoopLinks, channel: grpc.aio.Channel) -> Any:
        return getattr(channel, self._arity)(self._name, *self._arguments)

    def steps(self, exchange: Exchange, begun: Attempt | None) -> Steps:
        """The steps of a call, or what is left of them after the attempt that was begun."""
        ask = self._channel.ask
        return call(
            exchange.balancer,
            idempotent=self.idempotent,
            replayable=exchange.replayable,
            deadline=exchange.deadline,
            attempt_timeout=exchange.attempt_timeout,
            whole=True,
            request=None if ask is None else ask(self._name, exchange.message, exchange.metadata),
            begun=begun,
            patient=exchange.patient,
        )

    def _start(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        balancer = self._channel.balancer()
        links = self._channel.links()
        timeout, _ = self.times(timeout)
        arguments = (request, timeout, metadata, credentials, wait_for_ready, compression)
        repeatable = self.idempotent and request is not WRITTEN
        pick = balancer.try_pick((), repeatable) if self.short else None
        if pick is not None and not wait_for_ready:
            pick = links.settle(pick, repeatable)
        return self.kind(self, links, arguments, pick)


class _UnaryResponse(Method):
    def _start(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        """Start a call."""
        channel = self._channel
        balancer = channel.watching or channel.balancer()
        links = channel.links()
        first = timeout
        if self.limited or expiry() is not None:
            timeout, first = self.times(timeout)
        arguments = (request, timeout, metadata, credentials, wait_for_ready, compression)
        pick = None
        if self.short and (first is None or first > 0):
            pick = balancer.try_pick((), self.idempotent and request is not WRITTEN)
        if pick is None:
            if self.hedged:
                exchange = Exchange(self, links, None, *arguments)
                return HedgedCall(exchange, self.steps(exchange, None))
            return self.kind(self, links, arguments)
        link = links.get(pick.node)
        function = None if link is None else link.methods.get(self._reference)
        if function is None and not wait_for_ready:
            pick = links.settle(pick, self.idempotent and request is not WRITTEN)
        try:
            # where f is no function, CPython makes a tuple and a dict for `f(x)` and calls from C; not so for this
            inner = (function or self.at(links, pick.node)).__call__(
                stream_of(request) if self._streams else request,
                timeout=first,
                metadata=metadata,
                credentials=credentials,
                wait_for_ready=wait_for_ready,
                compression=compression,
            )
        except BaseException:
            pick.release(_IGNORED)
            raise
        made: BalancedCall = _new(self.kind)
        made.begin(self, links, arguments, pick, inner)
        if function is None:
            made.watch_connection(pick)
        return made


class _StreamRequest(Method):
    def __call__(
        self,
        request_iterator: AsyncIterable[Any] | Iterable[Any] | None = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        requests = WRITTEN if request_iterator is None else AsyncRequests(request_iterator)
        return self._start(
            requests,
            timeout=timeout,
            metadata=metadata,
            credentials=credentials,
            wait_for_ready=wait_for_ready,
            compression=compression,
        )


class UnaryUnary(_UnaryResponse, UnaryUnaryBase):
    """One request, one response."""

    kind: type[BalancedCall] = UnaryUnaryCall
    __call__: Callable[..., Any] = _UnaryResponse._start

    def _make(self, links: LoopLinks, channel: grpc.aio.Channel) -> Any:
        serializer, *others = self._arguments
        return channel.unary_unary(self._name, links.looking(serializer), *others)


class UnaryStream(Method, UnaryStreamBase):
    """One request, a stream of responses."""

    kind: type[BalancedCall] = UnaryStreamCall
    __call__: Callable[..., Any] = Method._start


class StreamUnary(_StreamRequest, _UnaryResponse, StreamUnaryBase):
    """A stream of requests, one response."""

    kind: type[BalancedCall] = StreamUnaryCall


class StreamStream(_StreamRequest, StreamStreamBase):
    """A stream of requests, a stream of responses."""

    kind: type[BalancedCall] = StreamStreamCall
