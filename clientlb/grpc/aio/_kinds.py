"""The four kinds of aio calls: what a caller does with one response or many, and with requests written one by one."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any

import grpc.aio

from clientlb.call import Attempt, Steps
from clientlb.drive import add_note
from clientlb.grpc.aio._call import BalancedCall
from clientlb.outcome import SUCCEEDED, Outcome

if TYPE_CHECKING:
    from clientlb.grpc.aio._channel import LoopLinks

_SUCCESS = Outcome.SUCCESS
_IGNORED = Outcome.IGNORED


class _UnaryResponse(BalancedCall):
    """One response: the call is awaited. When it is dropped it runs to its end all the same, as in grpc.aio."""

    _awaited: Any = None  # the call of the attempt whose end `__await__` is going to hear of

    def _listen(self, inner: Any) -> None:
        # Nearly every call is awaited at once, and whoever awaits hears of the end first hand. A callback would make a
        # cycle of garbage of every call, so the next turn of the event loop sees whether one is needed
        links = self._links
        links.loop.call_soon(links.look_at_fresh)
        links.fresh.append(self)

    def listen_unless_awaited(self) -> None:
        """See to it that the end of the attempt is heard of."""
        inner = self._inner
        if inner is not None and inner is not self._awaited and not self._ended:
            self._keep()
            inner.add_done_callback(self._inner_ended)

    def _inner_ended(self, inner: Any) -> None:
        if inner is self._inner and inner is not self._awaited:
            self.attempt_ended(self._attempt)

    def __await__(self) -> Generator[Any, None, Any]:
        while True:
            inner = self._inner
            if inner is None or self._ended:
                try:
                    inner = yield from self._current().__await__()
                except asyncio.CancelledError:
                    self.cancel()
                    raise
            self._awaited = inner
            fresh = self._links.fresh
            if fresh and fresh[-1] is self:
                fresh.pop()
            try:
                response = yield from inner.__await__()
            except grpc.aio.AioRpcError as error:
                attempt = self._attempt
                assert attempt is not None
                if not self._superseded(inner, attempt):
                    add_note(error, attempt)
                    raise
            except asyncio.CancelledError as error:
                if self._inner is inner or not self._goes_on_without(self._given_up):
                    self._abort(error)
                    raise
            except BaseException as error:  # an interceptor's own
                self._abort(error)
                raise
            else:
                if self._pick is None:
                    self.attempt_ended(self._attempt, SUCCEEDED)
                elif not self._ended:
                    self._pick.release(_SUCCESS)
                    self._end()
                return response

    def cancel(self) -> bool:
        """Cancel the call, whatever attempt it is at. Returns False when it has ended already."""
        if self._links.fresh:  # a task that is cancelled before it began serializes nothing
            self._links.loop.call_soon(self._links.look_at_fresh)
        return super().cancel()

    def _abort(self, error: BaseException) -> None:
        if self._ended:
            return
        self._cancelled = isinstance(error, asyncio.CancelledError)
        if self._inner is not None and not self._inner.done():
            self._inner.cancel()
        self.abandon()
        self._end()

    def abandon(self) -> None:
        """Nobody will hear of the end of the attempt that runs."""
        self._steps.close()
        if self._attempt is not None:
            self._attempt.pick.release(_IGNORED)


class Ending:
    """What is to be done at the end of an attempt of a stream, whether or not somebody still wants to know.

    The channel holds it while the attempt runs, so that pick and steps are never garbage by themselves. It does not
    hold the call: a dropped stream is cancelled.
    """

    __slots__ = ("_attempt", "_links", "_reference", "_steps")

    def __init__(self, call: _StreamResponse, links: LoopLinks, steps: Steps, attempt: Attempt) -> None:
        self._reference = weakref.ref(call)
        self._links = links
        self._steps = steps
        self._attempt = attempt
        links.running.add(self)

    def __call__(self, inner: Any) -> None:
        """The attempt has ended."""
        self._links.running.discard(self)
        call = self._reference()
        if call is not None and not call.dropped:
            call.attempt_ended(self._attempt)
            return
        # nobody wanted to know; this may be garbage collection at work, where no lock may be taken
        try:
            self._links.loop.call_soon_threadsafe(self.abandon)
        except RuntimeError:  # the loop is closed
            self.abandon()

    def abandon(self) -> None:
        """The caller has dropped the call."""
        self._steps.close()
        self._attempt.pick.release(_IGNORED)
        if self._links.leaving:
            self._links.tidy()


class _StreamResponse(BalancedCall):
    """A stream of responses: the call is iterated over, or read. When it is dropped it is cancelled."""

    dropped = False  # nobody refers to it any more
    _iterator: Any = None
    _iterated: Any = None

    def __del__(self) -> None:
        if not self._ended and self._inner is not None:
            self.dropped = True
            with contextlib.suppress(Exception):
                self._inner.cancel()

    def _listen(self, inner: Any) -> None:
        assert self._attempt is not None
        inner.add_done_callback(Ending(self, self._links, self._steps, self._attempt))

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
            response = await self._persist(ask, self._exchange.seconds_to_first_message)
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

    def _listen(self, inner: Any) -> None:
        # The serializer of the request (`LoopLinks.looking`) looks at fresh calls, if it is surely called in the next
        # turn of the event loop, for `call_soon` costs half as much as a call
        links = self._links
        if links.intercepted or links.loop.get_task_factory() is not None:
            super()._listen(inner)
        else:
            links.fresh.append(self)


class UnaryStreamCall(_StreamResponse, grpc.aio.UnaryStreamCall):  # type: ignore[type-arg]
    """A call with one request and a stream of responses."""


class StreamUnaryCall(_StreamRequest, _UnaryResponse, grpc.aio.StreamUnaryCall):  # type: ignore[type-arg]
    """A call with a stream of requests and one response."""


class StreamStreamCall(_StreamRequest, _StreamResponse, grpc.aio.StreamStreamCall):  # type: ignore[type-arg]
    """A call with streams both ways."""
