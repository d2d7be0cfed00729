"""The four kinds of methods of the sync channel, as stubs call them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from clientlb.call import Attempt, Steps, call
from clientlb.deadlines import expiry
from clientlb.drive import drive
from clientlb.errors import NotSentError
from clientlb.grpc._errors import LocalRpcError
from clientlb.grpc._exchange import Exchange
from clientlb.grpc._future import BalancedFuture, BalancedStream
from clientlb.grpc._links import Link
from clientlb.grpc._method import BalancedMethod
from clientlb.grpc._requests import Requests
from clientlb.hedging import drive_hedged
from clientlb.node import Node
from clientlb.outcome import Outcome
from clientlb.pick import Pick
from clientlb.trace import Trace

if TYPE_CHECKING:
    from clientlb.grpc._channel import Channel

_SUCCESS = Outcome.SUCCESS  # see clientlb.balancer
_IGNORED = Outcome.IGNORED

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


class Method(BalancedMethod):
    """A method of the sync channel."""

    def __init__(self, channel: Channel, arity: str, name: str, *arguments: Any) -> None:
        super().__init__(channel, arity, name, *arguments)
        self.channel: Channel = channel

    def at(self, node: Node) -> Any:
        """The same method of the channel to one endpoint."""
        link = self.channel.links[node]
        return link.methods.get(self._reference) or self._open(link)

    def _open(self, link: Link[grpc.Channel]) -> Any:
        def make() -> Any:
            return getattr(link.channel, self._arity)(self._name, *self._arguments)

        return link.function(self._reference, make, connected=self.channel.links.is_connected(link))

    def _block(self, form: str | None, request: Any, timeout: float | None, metadata: Any, *arguments: Any) -> Any:
        """Make a call on the thread of the caller."""
        channel = self.channel
        balancer = channel.watching or channel.balancer()
        first = timeout
        if self.limited or expiry() is not None:
            timeout, first = self.times(timeout)
        pick = balancer.try_pick((), self.idempotent) if self.short and (first is None or first > 0) else None
        if pick is None:
            return self._drive(Exchange(self, form, balancer, request, timeout, metadata, *arguments))
        link = channel.links.get(pick.node)
        function = None if link is None else link.methods.get(self._reference)
        if function is None:
            return self._connect(pick, Exchange(self, form, balancer, request, timeout, metadata, *arguments))
        try:
            sent = iter(request) if type(request) is Requests else request
            credentials, wait_for_ready, compression = arguments
            if form is None:  # `function(...)` would be a call from C: see `clientlb.grpc.aio._methods`
                answer = function.__call__(sent, first, metadata, credentials, wait_for_ready, compression)
            else:
                answer = function.with_call(sent, first, metadata, credentials, wait_for_ready, compression)
        except Exception as error:
            failed = error
        except BaseException:
            pick.release(_IGNORED)
            raise
        else:
            pick.release(_SUCCESS)
            if channel.links.leaving:
                channel.links.tidy()
            return answer
        exchange = Exchange(self, form, balancer, request, timeout, metadata, *arguments, since=pick.started)
        exchange.failed = failed
        del failed  # kept, it would refer to itself through its traceback
        return self._drive(exchange, Attempt(pick, 1, Trace(balancer.service)))

    def _connect(self, pick: Pick, exchange: Exchange) -> Any:
        """Make a call whose endpoint is not known to be connected."""
        if not exchange.patient:
            pick = self.channel.links.settle(pick, self.idempotent)
        return self._drive(exchange, Attempt(pick, 1, Trace(exchange.balancer.service)))

    def _drive(self, exchange: Exchange, begun: Attempt | None = None) -> Any:
        """Make a call, or what is left of it after the attempt that has failed."""
        steps = self._steps(exchange, begun)
        try:
            if self.hedged:
                return drive_hedged(steps, self.channel, exchange.launch, exchange.classify_one)
            if exchange.balancer.wants_reports:
                return drive(steps, self.channel, exchange.start_and_hear, exchange.classify)
            return drive(steps, self.channel, exchange.start, exchange.classify)
        except NotSentError as error:
            if self.channel.closed:
                raise LocalRpcError(grpc.StatusCode.CANCELLED, "Channel closed!") from error  # gRPC's own words
            raise exchange.not_sent(error) from error
        finally:
            if self.channel.links.leaving:
                self.channel.links.tidy()

    def _steps(self, exchange: Exchange, begun: Attempt | None = None) -> Steps:
        ask = self.channel.ask
        return call(
            exchange.balancer,
            idempotent=self.idempotent,
            deadline=exchange.deadline,
            attempt_timeout=exchange.attempt_timeout,
            whole=True,
            request=None if ask is None else ask(self._name, exchange.message, exchange.metadata),
            begun=begun,
            patient=exchange.patient,
        )

    def _start(self, kind: Callable[..., Any], form: str | None, request: Any, timeout: Any, *arguments: Any) -> Any:
        """Start a call that goes on by itself."""
        balancer = self.channel.balancer()
        exchange = Exchange(self, form, balancer, request, self.times(timeout)[0], *arguments)
        pick = balancer.try_pick((), self.idempotent) if self.short else None
        if pick is None:
            return kind(exchange, self._steps(exchange))
        if not exchange.patient:
            pick = self.channel.links.settle(pick, self.idempotent)
        return kind(exchange, self._steps(exchange, Attempt(pick, 1, Trace(balancer.service))))


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
