"""The two loops that drive a call: one for functions, one for coroutines. All shells use them.

A shell brings two functions. `send(attempt)` performs one attempt and returns its result or raises; `classify(result,
error)` says what that means. After the last attempt the result is returned, with the pick unreleased, because a
response may have a body to be read; or the error is raised, with the attempts in its notes.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from clientlb.aio import sleep
from clientlb.balancer import Balancer
from clientlb.call import Attempt, Sleep, Steps
from clientlb.errors import ClosedError, NotSentError
from clientlb.outcome import Verdict

Result = TypeVar("Result")


class Arrivals(Protocol):
    """What is used of a balancer where a call waits for endpoints."""

    def wait(self, timeout: float, /) -> bool:
        """Block until there are some, at most `timeout` seconds."""
        ...


def drive(
    steps: Steps,
    balancer: Arrivals,
    send: Callable[[Attempt], Result],
    classify: Callable[[Result | None, Exception | None], Verdict],
    discard: Callable[[Result], object] | None = None,
) -> Result:
    """Make one call.

    Args:
        steps: From `call`.
        balancer: The one that `steps` was made with, or what waits in its place.
        send: Performs one attempt.
        classify: Gives the verdict on a result (the error is None) or on an error (the result is None).
        discard: Disposes of a result that is retried away.
    """
    failed: Exception | None = None
    try:
        step = next(steps)
        while True:
            if type(step) is Attempt:
                try:
                    result = send(step)
                except Exception as error:
                    failed = error
                    following = steps.send(classify(None, error))
                    if following is None:
                        step.pick.release()
                        add_note(error, step)
                        raise
                else:
                    try:
                        following = steps.send(classify(result, None))
                    except BaseException:
                        if discard is not None:
                            discard(result)
                        raise
                    if following is None:
                        return result
                    if discard is not None:
                        discard(result)
                step = following
            else:
                if type(step) is Sleep:
                    nap(step.seconds)
                else:
                    balancer.wait(step.seconds)  # type: ignore[union-attr]
                step = next(steps)
    except (ClosedError, NotSentError) as gone:
        if failed is None or gone is failed:
            raise
        raise failed from gone  # nobody is left to be tried: what the last attempt met says more
    finally:
        steps.close()


async def drive_async(
    steps: Steps,
    balancer: Balancer,
    send: Callable[[Attempt], Awaitable[Result]],
    classify: Callable[[Result | None, Exception | None], Verdict],
    discard: Callable[[Result], Awaitable[object]] | None = None,
) -> Result:
    """The same for coroutines."""
    failed: Exception | None = None
    try:
        step = next(steps)
        while True:
            if type(step) is Attempt:
                try:
                    result = await send(step)
                except Exception as error:
                    failed = error
                    following = steps.send(classify(None, error))
                    if following is None:
                        step.pick.release()
                        add_note(error, step)
                        raise
                else:
                    try:
                        following = steps.send(classify(result, None))
                    except BaseException:
                        if discard is not None:
                            await discard(result)
                        raise
                    if following is None:
                        return result
                    if discard is not None:
                        await discard(result)
                step = following
            else:
                if type(step) is Sleep:
                    await sleep(step.seconds)
                else:
                    await balancer.wait_async(step.seconds)  # type: ignore[union-attr]
                step = next(steps)
    except (ClosedError, NotSentError) as gone:
        if failed is None or gone is failed:
            raise
        raise failed from gone  # nobody is left to be tried: what the last attempt met says more
    finally:
        steps.close()


def add_note(error: Exception, attempt: Attempt) -> None:
    """Tell the reader of a traceback what was tried before the error came out."""
    error.add_note(f"clientlb: {attempt.trace}")


_nobody_sets_this = threading.Event()


def nap(seconds: float) -> None:
    """An interruptible sleep that tests and simulations need not patch."""
    _nobody_sets_this.wait(seconds)
