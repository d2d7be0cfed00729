"""`Services.balanced`: turns a function that takes an endpoint into one that calls a service."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from clientlb.balancer import Balancer
from clientlb.call import Asking, Attempt, Steps, call
from clientlb.drive import drive, drive_async
from clientlb.endpoint import Endpoint
from clientlb.options import CallOptions
from clientlb.outcome import SUCCEEDED, Verdict

Params = ParamSpec("Params")
Return = TypeVar("Return")


def balanced(
    find: Callable[[], Balancer],
    options: CallOptions,
    classify: Callable[[BaseException], Verdict],
    ask: Asking | None,
) -> Callable[[Callable[Concatenate[Endpoint, Params], Return]], Callable[Params, Return]]:
    """Make the decorator; see `Services.balanced`."""

    def judge(result: object, error: Exception | None) -> Verdict:
        return SUCCEEDED if error is None else classify(error)

    def steps_of(balancer: Balancer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps:
        retry = options.retry_options(balancer.options.retry)
        request = None if ask is None else ask(*args, **kwargs)
        return call(balancer, idempotent=bool(options.idempotent), retry=retry, whole=True, request=request)

    def decorate(function: Callable[Concatenate[Endpoint, Params], Return]) -> Callable[Params, Return]:
        if inspect.iscoroutinefunction(function):
            coroutine_function = cast("Callable[..., Awaitable[Any]]", function)

            @functools.wraps(function)
            async def run_async(*args: Params.args, **kwargs: Params.kwargs) -> Any:
                async def send(attempt: Attempt) -> Any:
                    return await coroutine_function(attempt.pick.endpoint, *args, **kwargs)

                balancer = find()
                return await drive_async(steps_of(balancer, args, kwargs), balancer, send, judge)

            return cast("Callable[Params, Return]", run_async)

        @functools.wraps(function)
        def run(*args: Params.args, **kwargs: Params.kwargs) -> Return:
            def send(attempt: Attempt) -> Return:
                return function(attempt.pick.endpoint, *args, **kwargs)

            balancer = find()
            return drive(steps_of(balancer, args, kwargs), balancer, send, judge)

        return run

    return decorate
