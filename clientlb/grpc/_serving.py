"""Deadlines of calls that a server serves, for the calls that it makes on the way."""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import grpc.aio

from clientlb.deadlines import inherit


class DeadlineInterceptor(grpc.ServerInterceptor):
    """Lets every call that a handler makes inherit the deadline of the call that it serves: see `clientlb.deadline`.

    server = grpc.server(pool, interceptors=[DeadlineInterceptor()])
    """

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Wrap the handler of a call."""
        return _wrapped(continuation(handler_call_details))


class AioDeadlineInterceptor(grpc.aio.ServerInterceptor):
    """The same for a `grpc.aio.Server`."""

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Wrap the handler of a call."""
        return _wrapped(await continuation(handler_call_details))


def _wrapped(handler: Any) -> Any:
    if handler is None:
        return None
    kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    behave = _inheriting(getattr(handler, kind), streaming=handler.response_streaming)
    return make(behave, handler.request_deserializer, handler.response_serializer)


def _inheriting(behave: Any, *, streaming: bool) -> Any:
    """The same handler, of the same nature: `grpc.aio` looks whether it is a coroutine or an async generator."""
    if inspect.isasyncgenfunction(behave):

        async def stream_async(request: Any, context: Any) -> AsyncIterator[Any]:
            inherit(context.time_remaining())  # each call has a task of its own, and so a context
            async for response in behave(request, context):
                yield response

        return stream_async
    if inspect.iscoroutinefunction(behave):

        async def answer_async(request: Any, context: Any) -> Any:
            inherit(context.time_remaining())
            return await behave(request, context)

        return answer_async
    # threads serve one call after the other, and a stream may go on in another thread: each call has its own context
    if streaming:

        def stream(request: Any, context: Any) -> Iterator[Any]:
            variables = _variables(context)
            responses = iter(variables.run(behave, request, context))
            while True:
                try:
                    response = variables.run(next, responses)
                except StopIteration:
                    return
                yield response

        return stream

    def answer(request: Any, context: Any) -> Any:
        return _variables(context).run(behave, request, context)

    return answer


def _variables(context: Any) -> contextvars.Context:
    variables = contextvars.copy_context()
    variables.run(inherit, context.time_remaining())
    return variables
