"""The calls of the aio channel: each attempt is a call of `grpc.aio`, and the caller's object stands in front of them.

When an attempt ends, its callback asks the steps of the call (`clientlb.call`) what follows, as in
`clientlb.grpc._future`, which has the picture; here everything happens on the thread of the event loop, so there is no
lock. No task is made for a call: a pause between attempts is a timer, and only waiting for an endpoint takes one.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from clientlb.call import Attempt, Sleep, Step, Steps
from clientlb.drive import add_note
from clientlb.errors import NotSentError
from clientlb.grpc._errors import STUCK
from clientlb.grpc._links import PATIENCE
from clientlb.grpc._sending import CUT_OFF, LATE, STILL_CONNECTING, TIMED_OUT
from clientlb.grpc._verdict import not_again
from clientlb.grpc.aio._exchange import Exchange
from clientlb.grpc.aio._status import LOCALLY_CANCELLED, Told
from clientlb.outcome import Outcome, Verdict
from clientlb.pick import Pick
from clientlb.trace import Trace

if TYPE_CHECKING:
    from clientlb.grpc.aio._channel import LoopLinks
    from clientlb.grpc.aio._methods import Method

_log = logging.getLogger("clientlb.grpc")

_SUCCESS = Outcome.SUCCESS


class BalancedCall(grpc.aio.Call):
    """What all four kinds have in common: a `grpc.aio.Call` over the attempts of one call.

    Steps and exchange cost more than all the rest of a call that succeeds at once. So a call whose first attempt runs
    already gets them when something else comes of it.

    Args:
        method: What is called.
        links: The channels of this event loop.
        arguments: Of the call: request, timeout, metadata, credentials, wait_for_ready and compression.
        pick: Where the first attempt goes, if that is known.
    """

    # how every call begins; most end without having changed more than one of these
    _watched = False  # there is more to do at its end than to say so
    _paused: Step | None = None
    _committed = False
    _given_up: Attempt | None = None  # it did not begin to answer in time, or could not be sent
    _cancelled = False
    _ended = False
    _error: Exception | None = None  # the end of a call that has no attempt to show for it
    _callbacks: tuple[Callable[[Any], None], ...] = ()
    _news: asyncio.Future[None] | None = None
    _waiting: asyncio.Task[None] | None = None

    def __init__(
        self,
        method: Method,
        links: LoopLinks,
        arguments: tuple[Any, ...],
        pick: Pick | None = None,
    ) -> None:
        self._method = method
        self._links = links
        self._arguments = arguments
        self._pick = pick  # of an attempt that was made without steps
        self._inner: Any = None  # the call of the attempt that runs or was the last one
        try:
            self._follow(self._first_step())
        except NotSentError as error:
            self._give_up(error)
        except BaseException:
            self._steps.close()
            raise

    def begin(self, method: Method, links: LoopLinks, arguments: tuple[Any, ...], pick: Pick, inner: Any) -> None:
        """In place of `__init__`, which costs more: the first attempt runs."""
        self._method = method
        self._links = links
        self._arguments = arguments
        self._pick = pick
        self._inner = inner
        self._ended = False  # it is read several times; CPython 3.11 takes long for that of the class
        self._listen(inner)

    @cached_property
    def _exchange(self) -> Exchange:
        since = None if self._pick is None else self._pick.started
        return Exchange(self._method, self._links, since, *self._arguments)

    @cached_property
    def _attempt(self) -> Attempt | None:
        """The attempt that runs or was the last one."""
        return None if self._pick is None else Attempt(self._pick, 1, Trace(self._links.balancer.service))

    @cached_property
    def _steps(self) -> Steps:
        steps = self._method.steps(self._exchange, self._attempt)
        if self._attempt is not None:
            next(steps)  # which is that attempt
        return steps

    def _first_step(self) -> Step | None:
        steps = self._steps
        return next(steps) if self._attempt is None else self._attempt

    # ------------------------------------------------------------------ attempts

    def _follow(self, step: Step | None) -> None:
        """Do what the steps of the call ask for."""
        if type(step) is Attempt:
            self._inner = inner = self._exchange.start(step)
            self._attempt = step
            self._pick = None
            if self._news is not None:
                self._announce()
            self._listen(inner)
            self.watch_connection(step.pick)
        elif step is not None:
            self._pause(step)

    def _follow_unheard(self, step: Step | None) -> None:
        """The same in a callback, where an error is raised to nobody."""
        try:
            self._follow(step)
        except Exception as error:
            self._give_up(error)

    @abstractmethod
    def _listen(self, inner: Any) -> None:
        """See to it that the end of an attempt is heard of."""

    def _pause(self, step: Step) -> None:
        self._paused = step
        self._watched = True
        links = self._links
        links.paused.add(self)
        if type(step) is Sleep:
            links.loop.call_later(step.seconds, self._resume, step)
        else:
            self._waiting = links.spawn(self._wait_for_endpoints(step))

    async def _wait_for_endpoints(self, step: Step) -> None:
        await self._links.balancer.wait_async(step.seconds)  # type: ignore[union-attr]
        self._resume(step)

    def _resume(self, step: Step) -> None:
        """Go on after a pause; does nothing if the call was cancelled meanwhile."""
        if self._paused is not step or self._ended:
            return
        self._paused = None
        self._links.paused.discard(self)
        try:
            following = next(self._steps)
        except Exception as error:
            self._give_up(error)
        else:
            self._follow_unheard(following)

    def attempt_ended(self, attempt: Attempt | None, found: Verdict | None = None) -> None:
        """Give the verdict on an attempt and do what follows; only the first time.

        Args:
            attempt: The attempt.
            found: The verdict, if it is known; None asks the attempt.
        """
        inner = self._inner
        if attempt is None or self._attempt is not attempt or self._ended or inner is None:
            return
        if found is None and self._given_up is attempt:
            return  # its verdict comes
        steps = self._steps  # they say when an attempt that was made without them has taken too long
        if self._links.balancer.wants_reports:
            self._exchange.hear(attempt, inner)
        if found is None:
            found = self._exchange.verdict(attempt, inner)
        if self._committed:
            found = not_again(found)
        elif self._cancelled:
            steps.close()
            self._end()
            return
        try:
            following = steps.send(found)
        except Exception as error:  # there is nobody left to send the next attempt to
            self._inner = None
            self._give_up(error)
            return
        if following is not None:
            self._inner = None
            self._follow_unheard(following)
        elif self._given_up is attempt:  # what gRPC says is that we have cancelled it
            unavailable, late = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED
            gone = _error(late, LATE) if found is TIMED_OUT else _error(unavailable, STUCK)
            add_note(gone, attempt)
            self._inner = None
            self._give_up(gone)
        else:
            self._end()

    def _superseded(self, inner: Any, attempt: Attempt) -> bool:
        """An attempt has failed: whether the call goes on all the same. Its callback may not have come yet."""
        self.attempt_ended(attempt)
        return self._inner is not inner

    def _commit(self) -> None:
        """Something came from the server of this attempt, so it stands."""
        if not self._committed and not self._ended:
            assert self._attempt is not None
            self._committed = True
            self._attempt.pick.observe(_SUCCESS)

    def _give_up(self, error: Exception) -> None:
        """End the call with an error that is no attempt's."""
        self._steps.close()
        if not self._ended:
            self._error = self._exchange.not_sent(error) if isinstance(error, NotSentError) else error
        self._end()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        if self._links.leaving:
            self._links.tidy()
        if self._watched:
            self._tell()

    def _tell(self) -> None:
        """Let everybody know that the call has ended."""
        links = self._links
        links.running.discard(self)
        links.paused.discard(self)
        self._paused = None
        if self._waiting is not None and self._error is not None:
            self._waiting.cancel()
        self._announce()
        callbacks, self._callbacks = self._callbacks, ()
        for callback in callbacks:
            try:
                callback(self)
            except Exception:
                _log.exception("a callback of a gRPC call failed")

    def _keep(self) -> None:
        """Go on also when the caller drops the call."""
        self._watched = True
        self._links.running.add(self)

    # ------------------------------------------------------------------ waiting

    def _announce(self) -> None:
        news, self._news = self._news, None
        if news is not None and not news.done():
            news.set_result(None)

    async def _hear(self) -> None:
        """Wait until something happens to the call."""
        if self._news is None:
            self._watched = True
            self._news = self._links.loop.create_future()
        await asyncio.shield(self._news)

    async def _current(self) -> Any:
        """The attempt that runs or was the last one; waits while there is none."""
        while self._inner is None and not self._ended:
            await self._hear()
        if self._error is not None:
            self._raise_error()
        return self._inner

    def _raise_error(self) -> None:
        if self._cancelled:
            raise asyncio.CancelledError
        assert self._error is not None
        raise self._error

    async def _last(self) -> Any:
        """The attempt that has the status of the call; waits for the end."""
        while not self._ended:
            inner = self._inner
            if inner is None:
                await self._hear()
            else:
                await inner.code()
                if self._inner is inner:
                    assert self._attempt is not None
                    self.attempt_ended(self._attempt)
        if self._error is None:
            return self._inner
        if isinstance(self._error, grpc.aio.AioRpcError):
            return Told(self._error)
        raise self._error

    async def _persist(self, ask: Callable[[Any], Awaitable[Any]], seconds: float | None = None) -> Any:
        """Ask the attempt that runs, and the next one if that fails and another one follows.

        Args:
            ask: What to ask it.
            seconds: How long an attempt may take to answer; None: as long as it likes.
        """
        while True:
            inner = await self._current()
            attempt = self._attempt
            assert attempt is not None
            timer = None if seconds is None else self._links.loop.call_later(seconds, self._is_late, attempt)
            try:
                return await ask(inner)
            except grpc.aio.AioRpcError as error:
                if not self._superseded(inner, attempt):
                    add_note(error, attempt)
                    raise
            except asyncio.CancelledError:
                if not self._goes_on_without(attempt):
                    raise
            finally:
                if timer is not None:
                    timer.cancel()

    def _goes_on_without(self, attempt: Attempt | None) -> bool:
        """Whether it is this attempt that was cancelled, and not whoever waits for it."""
        task = asyncio.current_task()
        return attempt is not None and self._given_up is attempt and not (task is not None and task.cancelling())

    def _is_late(self, attempt: Attempt) -> None:
        """The first message of an attempt should have come by now: if it has not, end the attempt."""
        inner = self._inner
        if self._attempt is attempt and inner is not None and not self._committed and not self._ended:
            self._given_up = attempt
            inner.cancel()
            self.attempt_ended(attempt, TIMED_OUT)

    def watch_connection(self, pick: Pick) -> None:
        """See to it that the attempt does not wait long for a connection while another endpoint has one."""
        if not self._links[pick.node].methods and not self._exchange.patient:
            self._links.loop.call_later(PATIENCE, _move_if_stuck, weakref.ref(self), pick)

    def move_if_stuck(self, pick: Pick) -> None:
        """End an attempt whose endpoint is still connecting while another one is connected."""
        attempt, inner, links = self._attempt, self._inner, self._links
        if attempt is None or attempt.pick is not pick or inner is None or self._committed or self._ended:
            return
        if links.is_stuck(pick.node):
            self._given_up = attempt
            inner.cancel()
            # if it has connected meanwhile, it may have been sent
            self.attempt_ended(attempt, STILL_CONNECTING if links.is_stuck(pick.node) else CUT_OFF)
        elif not inner.done() and not links.is_connected(links[pick.node]):
            self.watch_connection(pick)

    # ------------------------------------------------------------------ grpc.aio.Call

    async def code(self) -> grpc.StatusCode:
        """The status code; waits for the end of the call."""
        return await (await self._last()).code()  # type: ignore[no-any-return]

    async def details(self) -> str:
        """The details of the status; waits for the end of the call."""
        return await (await self._last()).details()  # type: ignore[no-any-return]

    async def debug_error_string(self) -> str:
        """gRPC's own words about the status; waits for the end of the call."""
        return await (await self._last()).debug_error_string()  # type: ignore[no-any-return]

    async def trailing_metadata(self) -> Any:
        """What the server sent last; waits for the end of the call."""
        return await (await self._last()).trailing_metadata()

    async def initial_metadata(self) -> Any:
        """What the server sent first; waits for it."""
        while True:
            if self._ended:
                return await (await self._last()).initial_metadata()
            inner = await self._current()
            attempt = self._attempt
            assert attempt is not None
            metadata = await inner.initial_metadata()
            if self._inner is not inner:
                continue
            if metadata:
                self._commit()
                return metadata
            if not inner.done() or not self._superseded(inner, attempt):
                return metadata

    async def wait_for_connection(self) -> None:
        """Wait until the call has reached a server.

        Raises:
            grpc.aio.AioRpcError: It has failed.
        """
        await self._persist(lambda inner: inner.wait_for_connection())

    def cancelled(self) -> bool:
        """Whether the call was cancelled."""
        return self._cancelled if self._inner is None else bool(self._inner.cancelled())

    def done(self) -> bool:
        """Whether the call has ended."""
        return self._ended

    def time_remaining(self) -> float | None:
        """Seconds until the deadline of the whole call; None without one."""
        return self._exchange.time_remaining()

    def cancel(self) -> bool:
        """Cancel the call, whatever attempt it is at. Returns False when it has ended already."""
        if self._ended:
            return False
        self._cancelled = True
        if self._inner is not None:
            self._inner.cancel()
        else:
            self._give_up(LOCALLY_CANCELLED)
        return True

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Call `callback(self)` at the end of the call, or now when it has ended."""
        if self._ended:
            callback(self)
        else:
            self._keep()  # a callback is awaited even if the caller drops the call
            self._callbacks = (*self._callbacks, callback)

    def __repr__(self) -> str:
        if self._inner is None:
            return f"<{type(self).__name__} {'ended' if self._ended else 'waiting'}>"
        return f"<{type(self).__name__} of {self._inner!r}>"


def _error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, details=details)


def _move_if_stuck(reference: weakref.ref[BalancedCall], pick: Pick) -> None:
    call = reference()
    if call is not None:
        call.move_if_stuck(pick)
