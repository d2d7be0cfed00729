"""The two loops that drive a call: one for functions, one for coroutines. All shells use them.

A shell brings two functions. `send(attempt)` performs one attempt and returns its result or raises; `classify(result,
error)` says what that means. After the last attempt the result is returned, with the pick unreleased, because a
response may have a body to be read; or the error is raised, with the attempts in its notes.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, TypeVar

from clientlb.aio import sleep
from clientlb.call import Answer, Attempt, Sleep, Step, Steps
from clientlb.errors import ClosedError, NotSentError
from clientlb.outcome import Verdict

Result = TypeVar("Result")


class Arrivals(Protocol):
    """What is used of a balancer where a call waits for endpoints."""

    def wait(self, timeout: float, /) -> bool:
        """Block until there are some, at most `timeout` seconds."""
        ...


class AsyncArrivals(Protocol):
    """The same where a coroutine waits."""

    async def wait_async(self, timeout: float, /) -> bool:
        """Wait until there are some, at most `timeout` seconds."""
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
                    following = after_failure(steps, step, classify(None, error), error)
                    if following is None:
                        raise
                else:
                    following = after_result(steps, partial(classify, result, None), result, discard)
                    if following is None:
                        return result
                step = following
            else:
                pause(step, balancer)
                step = next(steps)
    except (ClosedError, NotSentError) as gone:
        if failed is None or gone is failed:
            raise
        raise failed from gone  # nobody is left to be tried: what the last attempt met says more
    finally:
        steps.close()


async def drive_async(
    steps: Steps,
    balancer: AsyncArrivals,
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
                    following = after_failure(steps, step, classify(None, error), error)
                    if following is None:
                        raise
                else:
                    following = await after_result_async(steps, partial(classify, result, None), result, discard)
                    if following is None:
                        return result
                step = following
            else:
                await pause_async(step, balancer)
                step = next(steps)
    except (ClosedError, NotSentError) as gone:
        if failed is None or gone is failed:
            raise
        raise failed from gone  # nobody is left to be tried: what the last attempt met says more
    finally:
        steps.close()


def after_failure(steps: Steps, attempt: Attempt, answer: Answer, error: Exception) -> Step | None:
    """Answer that an attempt failed; the step that follows. None: the error stands, and is for the caller to raise."""
    following = steps.send(answer)
    if following is None:
        attempt.pick.release()
        add_note(error, attempt)
    return following


def after_result(
    steps: Steps, answer: Callable[[], Answer], result: Result, discard: Callable[[Result], object] | None
) -> Step | None:
    """Answer that an attempt has a result; the step that follows. None: it stands, else it is disposed of."""
    try:
        following = steps.send(answer())
    except BaseException:
        if discard is not None:
            discard(result)
        raise
    if following is not None and discard is not None:
        discard(result)
    return following


async def after_result_async(
    steps: Steps, answer: Callable[[], Answer], result: Result, discard: Callable[[Result], Awaitable[object]] | None
) -> Step | None:
    """The same for coroutines."""
    try:
        following = steps.send(answer())
    except BaseException:
        if discard is not None:
            await discard(result)
        raise
    if following is not None and discard is not None:
        await discard(result)
    return following


def pause(step: Step | None, balancer: Arrivals) -> None:
    """Do what a step asks for that is no attempt: sleep, or wait for endpoints."""
    if type(step) is Sleep:
        nap(step.seconds)
    else:
        balancer.wait(step.seconds)  # type: ignore[union-attr]


async def pause_async(step: Step | None, balancer: AsyncArrivals) -> None:
    """The same for coroutines."""
    if type(step) is Sleep:
        await sleep(step.seconds)
    else:
        await balancer.wait_async(step.seconds)  # type: ignore[union-attr]


def add_note(error: Exception, attempt: Attempt) -> None:
    """Tell the reader of a traceback what was tried before the error came out."""
    error.add_note(f"clientlb: {attempt.trace}")


_nobody_sets_this = threading.Event()


def nap(seconds: float) -> None:
    """An interruptible sleep that tests and simulations need not patch."""
    _nobody_sets_this.wait(seconds)
