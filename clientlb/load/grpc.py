"""Load reports of gRPC servers, `grpc.Server` and `grpc.aio.Server`, in the trailers of their calls."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

try:
    import grpc
    import grpc.aio
except ImportError as _error:
    raise ImportError("this needs grpcio: pip install 'clientlb[grpc]'", name=_error.name) from _error

from clientlb.load import LoadRecorder
from clientlb.orca import HEADER, TRAILER, to_message, to_text

__all__ = ["AsyncReporting", "Reporting"]

_SERVERS_FAULT = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)


class Reporting(grpc.ServerInterceptor):
    """Says in the trailers of every call how busy the server is, whether the call succeeds or not.

        server = grpc.server(pool, interceptors=[Reporting(LoadRecorder(capacity=10))])

    A call is under way until its last response. A status that is the server's fault, such as INTERNAL or UNAVAILABLE,
    is a failure.

    Args:
        recorder: Of this process.
    """

    def __init__(self, recorder: LoadRecorder) -> None:
        self._recorder = recorder

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Wrap the handler of a call."""
        return _wrapped(continuation(handler_call_details), self._recorder)


class AsyncReporting(grpc.aio.ServerInterceptor):
    """The same for a `grpc.aio.Server`. A call that is aborted reports what was true when it began.

    Args:
        recorder: Of this process.
    """

    def __init__(self, recorder: LoadRecorder) -> None:
        self._recorder = recorder

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Wrap the handler of a call."""
        return _wrapped(await continuation(handler_call_details), self._recorder)


_OURS = (HEADER, TRAILER)  # the second for the clients of other languages: see clientlb.orca


def _wrapped(handler: Any, recorder: LoadRecorder) -> Any:
    if handler is None:
        return None
    kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
    behave = getattr(handler, kind)
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    reported = _reported(behave, recorder, streaming=handler.response_streaming)
    return make(reported, handler.request_deserializer, handler.response_serializer)


def _reported(behave: Any, recorder: LoadRecorder, *, streaming: bool) -> Any:
    """The same handler, of the same nature: `grpc.aio` looks whether it is a coroutine or an async generator."""
    if inspect.isasyncgenfunction(behave):

        async def stream_async(request: Any, context: Any) -> AsyncIterator[Any]:
            with _call(recorder, context):
                async for response in behave(request, context):
                    yield response

        return stream_async
    if inspect.iscoroutinefunction(behave):

        async def answer_async(request: Any, context: Any) -> Any:
            with _call(recorder, context):
                return await behave(request, context)

        return answer_async
    if streaming:

        def stream(request: Any, context: Any) -> Iterator[Any]:
            with _call(recorder, context):
                yield from behave(request, context)

        return stream

    def answer(request: Any, context: Any) -> Any:
        with _call(recorder, context):
            return behave(request, context)

    return answer


@contextmanager
def _call(recorder: LoadRecorder, context: Any) -> Iterator[None]:
    """Count one call, and put the report into its trailers beside what the handler puts there."""
    recorder.began()
    _report(recorder, context)  # an aio call that is aborted has sent its trailers when we hear of it
    raised = True
    try:
        yield
        raised = False
    finally:
        code: Any = context.code() if hasattr(context, "code") else None
        name = getattr(code, "name", None) or _NAMES.get(code)
        # a code of None is OK, or that of an exception which is to become one
        recorder.ended(failed=name in _SERVERS_FAULT or (raised and name in (None, "OK")))
        if hasattr(context, "trailing_metadata"):
            _report(recorder, context)


_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}  # grpc.aio has a number where others have the enum


def _report(recorder: LoadRecorder, context: Any) -> None:
    said = recorder.report_if_possible()
    if said is not None:
        # a handler of grpc.aio that is no coroutine has a context of fewer words: what it sets itself replaces ours
        theirs = context.trailing_metadata() if hasattr(context, "trailing_metadata") else ()
        others = [pair for pair in theirs or () if pair[0] not in _OURS]
        context.set_trailing_metadata((*others, (TRAILER, to_message(said)), (HEADER, to_text(said))))
