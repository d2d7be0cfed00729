"""The four kinds of methods of the aio channel, as stubs call them."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import grpc.aio

from clientlb.call import call
from clientlb.grpc._links import Link
from clientlb.grpc._requests import AsyncRequests
from clientlb.grpc.aio._call import BalancedCall
from clientlb.grpc.aio._exchange import Exchange
from clientlb.grpc.aio._hedged import HedgedCall
from clientlb.grpc.aio._kinds import StreamStreamCall, StreamUnaryCall, UnaryStreamCall, UnaryUnaryCall
from clientlb.node import Node

if TYPE_CHECKING:
    from clientlb.grpc.aio._channel import Channel, LoopLinks

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


class Method:
    """A method of the service, at whichever endpoint.

    Args:
        channel: The balanced channel.
        arity: Name of the method of `grpc.aio.Channel` that makes its like, such as `"unary_unary"`.
        name: Full name of the method.
        arguments: The serializers, and whatever else generated code gives.
    """

    kind: type[BalancedCall]

    def __init__(self, channel: Channel, arity: str, name: str, *arguments: Any) -> None:
        self._channel = channel
        self._arity = arity
        self.single = arity.endswith("_unary")
        """There is one response, so that a time for the whole call makes sense by default."""
        self._name = name
        self._arguments = arguments
        self._idempotent = channel.idempotence.of(name)
        self._reference = weakref.ref(self)

    def at(self, links: LoopLinks, node: Node) -> Any:
        """The same method of the channel to one endpoint."""
        link = links[node]
        return link.methods.get(self._reference) or self._open(link)

    def _open(self, link: Link[grpc.aio.Channel]) -> Any:
        made = getattr(link.channel, self._arity)(self._name, *self._arguments)
        link.add(self._reference, made)
        return made

    def _start(
        self,
        request: Any,
        timeout: float | None,
        metadata: Any,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
        compression: grpc.Compression | None,
        *,
        replayable: bool = True,
    ) -> Any:
        balancer = self._channel.balancer()
        exchange = Exchange(
            self,
            balancer,
            self._channel.links(),
            request,
            timeout,
            metadata,
            credentials,
            wait_for_ready,
            compression,
        )
        ask = self._channel.ask
        message = None if isinstance(request, AsyncRequests) else request
        steps = call(
            balancer,
            idempotent=self._idempotent,
            replayable=replayable,
            deadline=exchange.deadline,
            attempt_timeout=exchange.attempt_timeout,
            whole=True,
            request=None if ask is None else ask(self._name, message, metadata),
        )
        if self._idempotent and balancer.options.retry.hedge is not None and self._arity == "unary_unary":
            return HedgedCall(exchange, steps)
        return self.kind(exchange, steps)


class _UnaryRequest(Method):
    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._start(request, timeout, metadata, credentials, wait_for_ready, compression)


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
        if request_iterator is None:
            return self._start(None, timeout, metadata, credentials, wait_for_ready, compression, replayable=False)
        requests = AsyncRequests(request_iterator)
        return self._start(requests, timeout, metadata, credentials, wait_for_ready, compression)


class UnaryUnary(_UnaryRequest, UnaryUnaryBase):
    """One request, one response."""

    kind: type[BalancedCall] = UnaryUnaryCall


class UnaryStream(_UnaryRequest, UnaryStreamBase):
    """One request, a stream of responses."""

    kind: type[BalancedCall] = UnaryStreamCall


class StreamUnary(_StreamRequest, StreamUnaryBase):
    """A stream of requests, one response."""

    kind: type[BalancedCall] = StreamUnaryCall


class StreamStream(_StreamRequest, StreamStreamBase):
    """A stream of requests, a stream of responses."""

    kind: type[BalancedCall] = StreamStreamCall
