"""The four kinds of aio calls: what a caller does with one response or many, and with requests written one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any

import grpc.aio

from clientlb.call import Attempt, Steps
from clientlb.drive import add_note
from clientlb.grpc.aio._call import BalancedCall
from clientlb.outcome import Outcome

if TYPE_CHECKING:
    from clientlb.grpc.aio._exchange import Exchange

_IGNORED = Outcome.IGNORED


class _UnaryResponse(BalancedCall):
    """One response: the call is awaited."""

    ends_when_dropped = False

    def __await__(self) -> Generator[Any, None, Any]:
        while True:
            inner = self._inner
            if inner is None or self._error is not None:
                try:
                    inner = yield from self._current().__await__()
                except asyncio.CancelledError:
                    self.cancel()
                    raise
            attempt = self._attempt
            assert attempt is not None
            try:
                response = yield from inner.__await__()
            except grpc.aio.AioRpcError as error:
                if not self._superseded(inner, attempt):
                    add_note(error, attempt)
                    raise
            except BaseException as error:  # cancelled, or an interceptor's own
                self._abort(attempt, error)
                raise
            else:
                self.attempt_ended(attempt)
                return response

    def _abort(self, attempt: Attempt, error: BaseException) -> None:
        if self._ended:
            return
        self._cancelled = isinstance(error, asyncio.CancelledError)
        if self._inner is not None and not self._inner.done():
            self._inner.cancel()
        self._steps.close()
        attempt.pick.release(_IGNORED)
        self._end()


class _StreamResponse(BalancedCall):
    """A stream of responses: the call is iterated over, or read."""

    def __init__(self, exchange: Exchange, steps: Steps) -> None:
        self._iterator: Any = None
        self._iterated: Any = None
        super().__init__(exchange, steps)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._committed:
            return await self._iterator_of(self._inner).__anext__()
        return await self._receive(lambda inner: self._iterator_of(inner).__anext__())

    async def read(self) -> Any:
        """The next response, or `grpc.aio.EOF` after the last one."""
        if self._committed:
            return await self._inner.read()
        return await self._receive(lambda inner: inner.read())

    def _iterator_of(self, inner: Any) -> Any:
        if self._iterated is not inner:
            self._iterator = aiter(inner)
            self._iterated = inner
        return self._iterator

    async def _receive(self, ask: Callable[[Any], Awaitable[Any]]) -> Any:
        try:
            response = await self._persist(ask)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if response is not grpc.aio.EOF:
            self._commit()
        return response


class _StreamRequest(BalancedCall):
    """A stream of requests that the caller writes one by one, unless an iterator was given."""

    async def write(self, request: Any) -> None:
        """Send one request; returns when gRPC has taken it."""
        await (await self._current()).write(request)

    async def done_writing(self) -> None:
        """Say that no more requests will come. Idempotent."""
        await (await self._current()).done_writing()


class UnaryUnaryCall(_UnaryResponse, grpc.aio.UnaryUnaryCall):  # type: ignore[type-arg]
    """A call with one request and one response."""


class UnaryStreamCall(_StreamResponse, grpc.aio.UnaryStreamCall):  # type: ignore[type-arg]
    """A call with one request and a stream of responses."""


class StreamUnaryCall(_StreamRequest, _UnaryResponse, grpc.aio.StreamUnaryCall):  # type: ignore[type-arg]
    """A call with a stream of requests and one response."""


class StreamStreamCall(_StreamRequest, _StreamResponse, grpc.aio.StreamStreamCall):  # type: ignore[type-arg]
    """A call with streams both ways."""
