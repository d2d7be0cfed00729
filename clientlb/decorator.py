"""`Services.balanced`: turns a function that takes an endpoint into one that calls a service."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from clientlb.aio import timeout
from clientlb.balancer import Balancer
from clientlb.call import Asking, Attempt, Limits, Steps, call
from clientlb.crew import Crew
from clientlb.deadlines import deadline
from clientlb.drive import drive, drive_async
from clientlb.endpoint import Endpoint
from clientlb.hedging import drive_hedged, drive_hedged_async
from clientlb.options import CallOptions
from clientlb.outcome import SUCCEEDED, Verdict
from clientlb.require import require_callable

Params = ParamSpec("Params")
Return = TypeVar("Return")


def balanced(
    find: Callable[[], Balancer],
    options: CallOptions,
    classify: Callable[[BaseException], Verdict],
    ask: Asking | None,
) -> Callable[[Callable[Concatenate[Endpoint, Params], Return]], Callable[Params, Return]]:
    """Make the decorator; see `Services.balanced`."""
    crews: dict[int, Crew] = {}

    def judge(result: object, error: Exception | None) -> Verdict:
        return SUCCEEDED if error is None else classify(error)

    def steps_of(balancer: Balancer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
        retry = options.retry_options(balancer.options.retry)
        request = None if ask is None else ask(*args, **kwargs)
        limits = Limits.of(balancer, options)
        return call(
            balancer,
            idempotent=bool(options.idempotent),
            retry=retry,
            deadline=limits.deadline,
            attempt_timeout=limits.attempt_timeout,
            whole=True,
            request=request,
        )

    def judge_one(attempt: Attempt, result: object, error: Exception | None) -> Verdict:
        return judge(result, error)

    def hedged(balancer: Balancer) -> bool:
        return bool(options.idempotent) and options.retry_options(balancer.options.retry).hedge is not None

    def decorate(function: Callable[Concatenate[Endpoint, Params], Return]) -> Callable[Params, Return]:
        require_callable("what is balanced", function, "a function whose first argument is an endpoint")
        if inspect.iscoroutinefunction(function):
            coroutine_function = cast("Callable[..., Awaitable[Any]]", function)

            @functools.wraps(function)
            async def run_async(*args: Params.args, **kwargs: Params.kwargs) -> Any:
                async def send(attempt: Attempt) -> Any:
                    if attempt.expires is None:
                        return await coroutine_function(attempt.pick.endpoint, *args, **kwargs)
                    left = max(0.0, attempt.expires - balancer.clock())
                    async with timeout(left):
                        with deadline(left):
                            return await coroutine_function(attempt.pick.endpoint, *args, **kwargs)

                balancer = find()
                if hedged(balancer):
                    return await drive_hedged_async(steps_of(balancer, args, kwargs), balancer, send, judge_one)
                return await drive_async(steps_of(balancer, args, kwargs), balancer, send, judge)

            return cast("Callable[Params, Return]", run_async)

        @functools.wraps(function)
        def run(*args: Params.args, **kwargs: Params.kwargs) -> Return:
            def send(attempt: Attempt) -> Return:
                if attempt.expires is None:
                    return function(attempt.pick.endpoint, *args, **kwargs)
                with deadline(max(0.0, attempt.expires - balancer.clock())):
                    return function(attempt.pick.endpoint, *args, **kwargs)

            balancer = find()
            if hedged(balancer):
                crew = crews.setdefault(os.getpid(), Crew())  # the threads of a parent do not survive a fork
                if not crew.full:
                    result: Return = drive_hedged(
                        steps_of(balancer, args, kwargs),
                        balancer,
                        lambda attempt: crew.send(lambda: send(attempt)),
                        judge_one,
                    )
                    return result
            return drive(steps_of(balancer, args, kwargs), balancer, send, judge)

        return run

    return decorate
