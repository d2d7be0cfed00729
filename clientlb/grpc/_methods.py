"""The four kinds of methods of the sync channel, as stubs call them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from clientlb.call import call
from clientlb.drive import drive
from clientlb.errors import NotSentError
from clientlb.grpc._exchange import Exchange
from clientlb.grpc._future import BalancedFuture, BalancedStream
from clientlb.grpc._links import Link
from clientlb.grpc._requests import Requests
from clientlb.hedging import drive_hedged
from clientlb.node import Node
from clientlb.policy import Request as AskedFor

if TYPE_CHECKING:
    from clientlb.grpc._channel import Channel

# generic for type checkers, but not when the program runs
if TYPE_CHECKING:
    UnaryUnaryBase: TypeAlias = grpc.UnaryUnaryMultiCallable[Any, Any]
    UnaryStreamBase: TypeAlias = grpc.UnaryStreamMultiCallable[Any, Any]
    StreamUnaryBase: TypeAlias = grpc.StreamUnaryMultiCallable[Any, Any]
    StreamStreamBase: TypeAlias = grpc.StreamStreamMultiCallable[Any, Any]
else:
    UnaryUnaryBase = grpc.UnaryUnaryMultiCallable
    UnaryStreamBase = grpc.UnaryStreamMultiCallable
    StreamUnaryBase = grpc.StreamUnaryMultiCallable
    StreamStreamBase = grpc.StreamStreamMultiCallable


class Method:
    """A method of the service, at whichever endpoint.

    Args:
        channel: The balanced channel.
        arity: Name of the method of `grpc.Channel` that makes its like, such as `"unary_unary"`.
        name: Full name of the method.
        arguments: The serializers, and whatever else generated code gives.
    """

    def __init__(self, channel: Channel, arity: str, name: str, *arguments: Any) -> None:
        self.channel = channel
        self._arity = arity
        self.single = arity.endswith("_unary")
        """There is one response, so that a time for the whole call makes sense by default."""
        self._name = name
        self._arguments = arguments
        self._idempotent = channel.idempotence.of(name)
        self._reference = weakref.ref(self)

    def at(self, node: Node) -> Any:
        """The same method of the channel to one endpoint."""
        link = self.channel.links[node]
        return link.methods.get(self._reference) or self._open(link)

    def _open(self, link: Link[grpc.Channel]) -> Any:
        made = getattr(link.channel, self._arity)(self._name, *self._arguments)
        link.add(self._reference, made)
        return made

    def _asked(self, request: Any, timeout: float | None, metadata: Any, *arguments: Any) -> AskedFor | None:
        """What a call says about itself."""
        assert self.channel.ask is not None
        return self.channel.ask(self._name, None if isinstance(request, Requests) else request, metadata)

    def _block(self, form: str | None, request: Any, *arguments: Any) -> Any:
        """Make a call on the thread of the caller."""
        channel = self.channel
        balancer = channel.balancer()
        exchange = Exchange(self, form, balancer, request, *arguments)
        steps = call(
            balancer,
            idempotent=self._idempotent,
            deadline=exchange.deadline,
            attempt_timeout=exchange.attempt_timeout,
            whole=True,
            request=None if channel.ask is None else self._asked(request, *arguments),
        )
        try:
            if self._idempotent and balancer.options.retry.hedge is not None and self._arity == "unary_unary":
                return drive_hedged(steps, balancer, exchange.launch, exchange.classify_one)
            return drive(steps, balancer, exchange.start, exchange.classify)
        except NotSentError as error:
            raise exchange.not_sent(error) from error
        finally:
            if channel.links.leaving:
                channel.links.tidy()

    def _start(self, kind: Callable[..., Any], form: str | None, request: Any, *arguments: Any) -> Any:
        """Start a call that goes on by itself."""
        channel = self.channel
        balancer = channel.balancer()
        exchange = Exchange(self, form, balancer, request, *arguments)
        steps = call(
            balancer,
            idempotent=self._idempotent,
            deadline=exchange.deadline,
            attempt_timeout=exchange.attempt_timeout,
            whole=True,
            request=None if channel.ask is None else self._asked(request, *arguments),
        )
        return kind(exchange, steps)


class UnaryUnary(Method, UnaryUnaryBase):
    """One request, one response."""

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._block(None, request, timeout, metadata, credentials, wait_for_ready, compression)

    def with_call(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._block("with_call", request, timeout, metadata, credentials, wait_for_ready, compression)

    def future(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._start(
            BalancedFuture, "future", request, timeout, metadata, credentials, wait_for_ready, compression
        )


class UnaryStream(Method, UnaryStreamBase):
    """One request, a stream of responses."""

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._start(BalancedStream, None, request, timeout, metadata, credentials, wait_for_ready, compression)


class StreamUnary(Method, StreamUnaryBase):
    """A stream of requests, one response."""

    def __call__(
        self,
        request_iterator: Iterable[Any],
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        requests = Requests(request_iterator)
        return self._block(None, requests, timeout, metadata, credentials, wait_for_ready, compression)

    def with_call(
        self,
        request_iterator: Iterable[Any],
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        requests = Requests(request_iterator)
        return self._block("with_call", requests, timeout, metadata, credentials, wait_for_ready, compression)

    def future(
        self,
        request_iterator: Iterable[Any],
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        requests = Requests(request_iterator)
        return self._start(
            BalancedFuture, "future", requests, timeout, metadata, credentials, wait_for_ready, compression
        )


class StreamStream(Method, StreamStreamBase):
    """A stream of requests, a stream of responses."""

    def __call__(
        self,
        request_iterator: Iterable[Any],
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        requests = Requests(request_iterator)
        return self._start(BalancedStream, None, requests, timeout, metadata, credentials, wait_for_ready, compression)
