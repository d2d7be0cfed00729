"""The status of a call of `grpc.aio`, which only coroutines tell, for callbacks; and the other way round."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import grpc
import grpc.aio

LOCALLY_CANCELLED = grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, details="Locally cancelled by application!")
"""How a call ends that its caller has cancelled while it had no attempt."""


class Told:
    """The status in an error, told as a call tells it."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self._error = error

    async def code(self) -> grpc.StatusCode:
        return self._error.code()

    async def details(self) -> str | None:
        return self._error.details()

    async def debug_error_string(self) -> str | None:
        return self._error.debug_error_string()

    async def initial_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata()

    async def trailing_metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata()


def status_of(call: Any) -> tuple[grpc.StatusCode, str | None, Any]:
    """Code, details and trailing metadata of a call of `grpc.aio` that has ended."""
    code = _at_once(call.code())
    if code is grpc.StatusCode.OK:
        return code, None, None
    if code is None:  # it has not ended after all: its awaiting task was cancelled
        return grpc.StatusCode.CANCELLED, None, None
    return code, _at_once(call.details()), _at_once(call.trailing_metadata())


def trailers_of(call: Any) -> Any:
    """Trailing metadata of a call of `grpc.aio` that has ended; None if it has not."""
    return _at_once(call.trailing_metadata())


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing to wait for; None if it has."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    except (Exception, asyncio.CancelledError):  # an interceptor has raised it; whoever awaits the call will see it
        return None
    coroutine.close()
    return None
