"""The two loops that drive a hedged call: those of `clientlb.drive`, for several attempts at once.

A shell brings `launch(attempt)`, which starts an attempt and returns its future; `classify(attempt, result, error)`;
and `discard(result)`. The result that stands is returned. All other attempts are cancelled, and what they return all
the same is discarded.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from clientlb.aio import Task, cancelled, first_of, start
from clientlb.call import LATE, Attempt, Await, Ended, Steps
from clientlb.drive import (
    Arrivals,
    AsyncArrivals,
    after_failure,
    after_result,
    after_result_async,
    pause,
    pause_async,
)
from clientlb.errors import ClosedError, NotSentError
from clientlb.outcome import Outcome, Verdict

_log = logging.getLogger("clientlb.call")


def drive_hedged(
    steps: Steps,
    balancer: Arrivals,
    launch: Callable[[Attempt], Any],
    classify: Callable[[Attempt, Any, Exception | None], Verdict],
    discard: Callable[[Any], object] | None = None,
) -> Any:
    """Make one call.

    Args:
        steps: From `call`.
        balancer: The one that `steps` was made with, or what waits in its place.
        launch: Starts an attempt. Its future has `result`, `cancel` and `add_done_callback`, as those of the standard
            library and of gRPC do.
        classify: Gives the verdict on a result (the error is None) or on an error (the result is None).
        discard: Disposes of a result that is not wanted.
    """
    failed: Exception | None = None
    running: dict[Attempt, Any] = {}
    ended: queue.SimpleQueue[Attempt] = queue.SimpleQueue()

    def drop(future: Any) -> None:
        """Cancel an attempt, and dispose of what it returns all the same."""
        future.cancel()
        if discard is not None:
            future.add_done_callback(lambda future: _discard_of(future, discard))

    try:
        step = next(steps)
        late_at: float | None = None
        while True:
            if type(step) is Attempt:
                try:
                    running[step] = future = launch(step)
                except Exception as error:
                    following = after_failure(steps, step, Ended(step, not_made(error)), error)
                    if following is None:
                        raise
                    step = following
                    continue
                future.add_done_callback(lambda _, attempt=step: ended.put(attempt))
                late_at = None if step.hedge_after is None else time.monotonic() + step.hedge_after
            elif type(step) is not Await:
                for future in running.values():  # they have failed all: none is left
                    drop(future)
                running.clear()
                pause(step, balancer)
                step = next(steps)
                continue
            try:
                attempt = ended.get(timeout=None if late_at is None else max(0.0, late_at - time.monotonic()))
            except queue.Empty:
                late_at = None
                step = steps.send(LATE)
                continue
            future = running.pop(attempt)
            try:
                result = future.result()
            except Exception as error:
                failed = error
                following = after_failure(steps, attempt, Ended(attempt, classify(attempt, None, error)), error)
                if following is None:
                    raise
            else:
                answer = partial(_answer, attempt, classify, result)
                following = after_result(steps, answer, result, discard)
                if following is None:
                    return result
            step = following
    except (ClosedError, NotSentError) as gone:
        if failed is None or gone is failed:
            raise
        raise failed from gone  # nobody is left to be tried: what the last attempt met says more
    finally:
        steps.close()
        for future in running.values():
            drop(future)


def not_made(error: Exception) -> Verdict:
    """The verdict on an attempt that could not even be started: those that run beside it go on."""
    return Verdict(Outcome.IGNORED, type(error).__name__, sent=False)


def _answer(attempt: Attempt, classify: Callable[[Attempt, Any, None], Verdict], result: Any) -> Ended:
    return Ended(attempt, classify(attempt, result, None))


def _discard_of(future: Any, discard: Callable[[Any], object]) -> None:
    try:
        if not future.cancelled() and future.exception() is None:
            discard(future.result())
    except Exception:
        _log.debug("an attempt that is not wanted could not be disposed of", exc_info=True)


async def drive_hedged_async(
    steps: Steps,
    balancer: AsyncArrivals,
    launch: Callable[[Attempt], Coroutine[Any, Any, Any]],
    classify: Callable[[Attempt, Any, Exception | None], Verdict],
    discard: Callable[[Any], Awaitable[object]] | None = None,
) -> Any:
    """The same for coroutines; each attempt is a task. It returns when the tasks of all others have ended."""
    failed: Exception | None = None
    running: dict[Task[Any], Attempt] = {}
    try:
        step = next(steps)
        late_at: float | None = None
        while True:
            if type(step) is Attempt:
                running[start(partial(launch, step))] = step
                late_at = None if step.hedge_after is None else time.monotonic() + step.hedge_after
            elif type(step) is not Await:
                await pause_async(step, balancer)
                step = next(steps)
                continue
            patience = None if late_at is None else max(0.0, late_at - time.monotonic())
            task = await first_of(running, patience)
            if task is None:
                late_at = None
                step = steps.send(LATE)
                continue
            attempt = running.pop(task)
            try:
                result = task.result()
            except Exception as error:
                failed = error
                following = after_failure(steps, attempt, Ended(attempt, classify(attempt, None, error)), error)
                if following is None:
                    raise
            else:
                answer = partial(_answer, attempt, classify, result)
                following = await after_result_async(steps, answer, result, discard)
                if following is None:
                    losers, running = list(running), {}
                    if not losers:
                        return result
                    try:
                        await cancelled(losers, discard)
                    except BaseException:
                        attempt.pick.release()
                        if discard is not None:
                            await discard(result)
                        raise
                    return result
            step = following
    except (ClosedError, NotSentError) as gone:
        if failed is None or gone is failed:
            raise
        raise failed from gone  # nobody is left to be tried: what the last attempt met says more
    finally:
        steps.close()
        if running:
            await cancelled(list(running), discard)
