"""A call without a thread of its own: `future()` and response streams. Each attempt is a future of gRPC's.

When an attempt ends, gRPC's callback asks the steps of the call (`clientlb.call`) what follows. A response stream is
*committed* once the caller was given something that came from a server, a message or metadata: then that attempt
stands, whatever happens to it.

    attempt runs --ends--> verdict --> the next attempt, or a pause and then the next attempt, or the end
         |
         +--message or metadata--> committed --ends--> the end

Nothing here refers strongly to the caller's object while an attempt runs, unless the caller wants to be called back: an
abandoned call is cancelled by garbage collection, as gRPC's own are.
"""

from __future__ import annotations

import functools
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc

from clientlb.call import Attempt, Step, Steps, Wait
from clientlb.drive import add_note
from clientlb.errors import NotSentError
from clientlb.grpc._errors import LocalRpcError, StuckRpcError
from clientlb.grpc._links import PATIENCE
from clientlb.grpc._sending import LATE, TIMED_OUT
from clientlb.grpc._verdict import not_again
from clientlb.outcome import Outcome

if TYPE_CHECKING:
    from clientlb.grpc._exchange import Exchange

_log = logging.getLogger("clientlb.grpc")

_SUCCESS = Outcome.SUCCESS
_IGNORED = Outcome.IGNORED


class BalancedFuture(grpc.Call, grpc.Future):  # type: ignore[type-arg]
    """A running call, as `future()` returns it.

    Args:
        exchange: What is to be sent, and where.
        steps: From `clientlb.call`.
    """

    def __init__(self, exchange: Exchange, steps: Steps) -> None:
        self._exchange = exchange
        self._steps = steps
        self._changed = threading.Condition()
        self._attempt: Attempt | None = None
        self._inner: Any = None  # the future of the attempt that runs or was the last one
        self._paused: Step | None = None
        self._committed = False
        self._late: Attempt | None = None
        self._moved: Attempt | None = None
        self._cancelled = False
        self._ended = False
        self._error: Exception | None = None  # the end of a call that has no attempt to show for it
        self._callbacks: list[Callable[[], None]] = []
        try:
            self._follow(next(steps))
        except NotSentError as error:
            self._give_up(error)
        except BaseException:
            steps.close()
            raise

    # ------------------------------------------------------------------ attempts

    def _follow(self, step: Step | None) -> None:
        """Do what the steps of the call ask for."""
        if type(step) is Attempt:
            self._send(step)
        elif step is not None:
            self._pause(step)

    def _follow_unheard(self, step: Step | None) -> None:
        """The same on a thread that is not the caller's, where an error is raised to nobody."""
        try:
            self._follow(step)
        except Exception as error:
            self._give_up(error)

    def _send(self, attempt: Attempt) -> None:
        if self.done():
            return
        inner = self._exchange.start(attempt)
        with self._changed:
            if self._ended or self._cancelled:
                inner.cancel()
            if self._ended:
                return
            self._inner = inner
            self._attempt = attempt
            self._changed.notify_all()
        ended = functools.partial(_attempt_ended, weakref.ref(self), self._exchange, self._steps, attempt)
        if not inner.add_callback(ended):
            self.attempt_ended(attempt)
        elif not self._exchange.patient and not self._exchange.is_connected(attempt):
            self._watch_connection(attempt)

    def _watch_connection(self, attempt: Attempt) -> None:
        reference = weakref.ref(self)

        def look() -> None:
            call = reference()
            if call is not None:
                call.move_if_stuck(attempt)

        self._exchange.after(PATIENCE, look)

    def move_if_stuck(self, attempt: Attempt) -> None:
        """End an attempt whose endpoint is still connecting while another one is connected."""
        exchange = self._exchange
        with self._changed:
            inner = self._inner
            if self._attempt is not attempt or inner is None or self._committed or self._ended:
                return
        if exchange.is_stuck(attempt):
            with self._changed:
                self._moved = attempt
            inner.cancel()  # and its callback has the verdict
        elif not exchange.is_connected(attempt):
            self._watch_connection(attempt)

    def _pause(self, step: Step) -> None:
        with self._changed:
            if self._ended:
                return
            self._paused = step
        resume = functools.partial(self._resume, step)
        self._exchange.pause(self, resume, step.seconds, for_endpoints=type(step) is Wait)  # type: ignore[union-attr]

    def _resume(self, step: Step) -> None:
        """Go on after a pause; does nothing if that has happened already."""
        with self._changed:
            if self._paused is not step or self._ended:
                return
            self._paused = None
            try:
                following = next(self._steps)
            except Exception as error:
                failed: Exception | None = error
            else:
                failed = None
        self._exchange.resumed(self)
        if failed is not None:
            self._give_up(failed)
        else:
            self._follow_unheard(following)

    def attempt_ended(self, attempt: Attempt) -> None:
        """Give the verdict on an attempt and do what follows; only the first time."""
        with self._changed:
            inner = self._inner
            if self._attempt is not attempt or self._ended or inner is None:
                return
            if self._moved is attempt:
                found = self._exchange.stuck(attempt)
            else:
                found = TIMED_OUT if self._late is attempt else self._exchange.verdict(attempt, inner)
            following: Step | None = None
            failed: Exception | None = None
            if self._committed:
                found = not_again(found)
            if self._cancelled and not self._committed:
                self._steps.close()
            else:
                try:
                    following = self._steps.send(found)
                except Exception as error:  # there is nobody left to send the next attempt to
                    failed = error
                if following is None and not self._committed and found.outcome is not _SUCCESS:
                    # what gRPC says of these is that we have cancelled them
                    if self._moved is attempt:
                        failed = StuckRpcError(found)
                    elif self._late is attempt:
                        failed = LocalRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, LATE)
                    add_note(failed or inner, attempt)
            if following is not None or failed is not None:
                self._inner = None
        if failed is not None:
            self._give_up(failed)
        elif following is None:
            self._end()
        else:
            self._follow_unheard(following)

    def _commit(self, attempt: Attempt) -> bool:
        """Something came from the server of this attempt. Returns False when the attempt was given up already."""
        with self._changed:
            if self._attempt is not attempt or self._inner is None:
                return False
            if not self._committed and not self._ended:
                self._committed = True
                attempt.pick.observe(_SUCCESS)
            return True

    def _give_up(self, error: Exception) -> None:
        """End the call with an error that is no attempt's."""
        with self._changed:
            self._steps.close()
            if not self._ended:
                self._error = self._exchange.not_sent(error) if isinstance(error, NotSentError) else error
        self._end()

    def _end(self) -> None:
        with self._changed:
            if self._ended:
                return
            self._ended = True
            self._paused = None
            self._changed.notify_all()
            callbacks, self._callbacks = self._callbacks, []
        self._exchange.ended(self)
        for callback in callbacks:  # without the lock: they are the caller's
            try:
                callback()
            except Exception:
                _log.exception("a callback of a gRPC call failed")

    # ------------------------------------------------------------------ waiting

    def _wait(self, condition: Callable[[], object], timeout: float | None = None) -> None:
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                raise grpc.FutureTimeoutError

    def _current(self) -> tuple[Any, Attempt]:
        """The attempt that runs or was the last one; waits while there is none."""
        with self._changed:
            self._changed.wait_for(lambda: self._inner is not None or self._ended)
            if self._error is not None:
                raise self._error
            assert self._attempt is not None
            return self._inner, self._attempt

    def _last(self, timeout: float | None = None) -> Any:
        """What has the status of the call; waits for the end."""
        self._wait(lambda: self._ended, timeout)
        if self._error is None:
            return self._inner
        if isinstance(self._error, grpc.RpcError):
            return self._error
        raise self._error

    # ------------------------------------------------------------------ grpc.Call

    def code(self) -> grpc.StatusCode:
        """The status code; waits for the end of the call."""
        return self._last().code()  # type: ignore[no-any-return]

    def details(self) -> str:
        """The details of the status; waits for the end of the call."""
        return self._last().details()  # type: ignore[no-any-return]

    def debug_error_string(self) -> str:
        """gRPC's own words about the status; waits for the end of the call."""
        return self._last().debug_error_string()  # type: ignore[no-any-return]

    def trailing_metadata(self) -> Any:
        """What the server sent last; waits for the end of the call."""
        return self._last().trailing_metadata()

    def initial_metadata(self) -> Any:
        """What the server sent first; waits for it."""
        while True:
            try:
                inner, attempt = self._current()
            except LocalRpcError as error:
                return error.initial_metadata()
            metadata = inner.initial_metadata()
            if metadata:
                if self._commit(attempt):
                    return metadata
            elif not inner.done():
                return metadata
            else:
                self.attempt_ended(attempt)
                if self._ended or self._committed:
                    return metadata

    def is_active(self) -> bool:
        """Whether the call goes on."""
        return not self._ended

    def time_remaining(self) -> float | None:  # type: ignore[override]
        """Seconds until the deadline of the whole call; None without one."""
        return self._exchange.time_remaining()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call `callback()` at the end of the call. Returns False, and does not, when it has ended already."""
        with self._changed:
            if self._ended:
                return False
            self._callbacks.append(callback)
        return True

    def cancel(self) -> bool:
        """Cancel the call, whatever attempt it is at. Returns False when it has ended already."""
        with self._changed:
            if self._ended:
                return False
            self._cancelled = True
            if self._inner is not None:
                self._inner.cancel()
                return True
        self._give_up(LocalRpcError(grpc.StatusCode.CANCELLED, "Locally cancelled by application!"))
        return True

    # ------------------------------------------------------------------ grpc.Future

    def cancelled(self) -> bool:
        """Whether the call was cancelled."""
        return self._cancelled if self._inner is None else bool(self._inner.cancelled())

    def running(self) -> bool:
        """Whether the call goes on."""
        return not self._ended

    def done(self) -> bool:
        """Whether the call has ended."""
        return self._ended

    def result(self, timeout: float | None = None) -> Any:
        """The response; waits for it.

        Args:
            timeout: Seconds to wait; None is without limit. It does not end the call.

        Raises:
            grpc.RpcError: The call failed.
            grpc.FutureTimeoutError: The call has not ended in time.
            grpc.FutureCancelledError: It was cancelled.
        """
        self._wait(lambda: self._ended, timeout)
        if self._error is None:
            return self._inner.result()
        if self._cancelled:
            raise grpc.FutureCancelledError
        raise self._error

    def exception(self, timeout: float | None = None) -> Exception | None:
        """The error of the call, None after a success; waits as `result` does."""
        self._wait(lambda: self._ended, timeout)
        if self._error is None:
            return self._inner.exception()  # type: ignore[no-any-return]
        if self._cancelled:
            raise grpc.FutureCancelledError
        return self._error

    def traceback(self, timeout: float | None = None) -> TracebackType | None:
        """The traceback of the error; waits as `result` does."""
        error = self.exception(timeout)
        if error is None:
            return None
        try:
            raise error  # what nobody has raised yet has no traceback
        except Exception as raised:
            return raised.__traceback__

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        """Call `fn(self)` at the end of the call, or now when it has ended."""
        with self._changed:
            if not self._ended:
                self._exchange.keep(self)  # a callback is awaited even if the caller drops the future
                self._callbacks.append(functools.partial(fn, self))
                return
        fn(self)


class BalancedStream(BalancedFuture):
    """A running call whose responses are a stream."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def next(self) -> Any:
        """The next response; the same as `next(stream)`."""
        return self.__next__()

    def __next__(self) -> Any:
        if self._committed:
            return next(self._inner)
        while True:
            inner, attempt = self._current()
            seconds = self._exchange.seconds_to_first_message
            if seconds is not None:
                self._exchange.after(seconds, functools.partial(_attempt_is_late, weakref.ref(self), attempt))
            try:
                response = next(inner)
            except grpc.RpcError:
                self.attempt_ended(attempt)
                if self._attempt is attempt and self._inner is inner:
                    raise
            else:
                if self._commit(attempt):
                    return response

    def attempt_is_late(self, attempt: Attempt) -> None:
        """The first message of an attempt should have come by now: if it has not, end the attempt."""
        with self._changed:
            if self._attempt is attempt and self._inner is not None and not self._committed and not self._ended:
                self._late = attempt
                self._inner.cancel()


def _attempt_is_late(reference: weakref.ref[BalancedStream], attempt: Attempt) -> None:
    call = reference()
    if call is not None:
        call.attempt_is_late(attempt)


def _attempt_ended(reference: weakref.ref[BalancedFuture], exchange: Exchange, steps: Steps, attempt: Attempt) -> None:
    call = reference()
    if call is not None:
        call.attempt_ended(attempt)
    else:  # nobody wanted to know
        steps.close()
        attempt.pick.release(_IGNORED)
        exchange.tidy()
