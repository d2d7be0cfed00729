"""Errors that no server sent, in the shape that gRPC gives to those that a server sent.

Whoever catches `grpc.RpcError` (or `grpc.aio.AioRpcError`) and asks for `code()` catches these as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from clientlb.errors import ClosedError, DeadlineExceededError, NoEndpointsError, NotSentError, ThrottledError
from clientlb.outcome import Verdict

STUCK = "it was still connecting while other endpoints were connected"


class LocalRpcError(grpc.RpcError, grpc.Call):
    """The end of a call that has not reached any server."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self._code = code
        self._details = details

    def code(self) -> grpc.StatusCode:
        """The status code."""
        return self._code

    def details(self) -> str:
        """What happened, in words."""
        return self._details

    def debug_error_string(self) -> str:
        """The same as `details`, with the code."""
        return f"{self._code.name}: {self._details}"

    def initial_metadata(self) -> Any:
        """None was received."""
        return ()

    def trailing_metadata(self) -> Any:
        """None was received."""
        return ()

    def is_active(self) -> bool:
        """It is over."""
        return False

    def time_remaining(self) -> float | None:  # type: ignore[override]
        """It is over."""
        return None

    def cancel(self) -> bool:
        """Too late."""
        return False

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Too late: returns False, as gRPC does for a call that has ended."""
        return False

    def __str__(self) -> str:
        return f"<{type(self).__name__}: {self._code.name}, {self._details}>"

    __repr__ = __str__


class StuckRpcError(LocalRpcError):
    """An attempt was given up because its endpoint was still connecting while another one was connected: UNAVAILABLE.

    Args:
        verdict: What that means.
    """

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(grpc.StatusCode.UNAVAILABLE, STUCK)
        self.verdict: Verdict = verdict


class NoEndpointsRpcError(LocalRpcError, NoEndpointsError):
    """No endpoint became known in time: UNAVAILABLE, or DEADLINE_EXCEEDED if the call's own deadline came first."""


class DeadlineExceededRpcError(LocalRpcError, DeadlineExceededError):
    """The deadline of the call, its own or an inherited one, was over before it was sent: DEADLINE_EXCEEDED."""


class ThrottledRpcError(LocalRpcError, ThrottledError):
    """The service turns most calls away, so the client refused this one: UNAVAILABLE."""


class AioNotSentRpcError(grpc.aio.AioRpcError, NotSentError):
    """A call of a channel of `clientlb.grpc.aio` that was not sent to any server."""

    def __init__(self, code: grpc.StatusCode, *metadata: Any, details: str | None = None, **more: Any) -> None:
        # AioRpcError pickles itself with all five arguments by position
        known = dict(
            zip(("initial_metadata", "trailing_metadata", "details", "debug_error_string"), metadata, strict=False)
        )
        super().__init__(code, **{"details": details, **known, **more})


class AioNoEndpointsRpcError(AioNotSentRpcError, NoEndpointsError):
    """The same as `NoEndpointsRpcError`."""


class AioDeadlineExceededRpcError(AioNotSentRpcError, DeadlineExceededError):
    """The same as `DeadlineExceededRpcError`."""


class AioThrottledRpcError(AioNotSentRpcError, ThrottledError):
    """The same as `ThrottledRpcError`."""


def of_kind(
    error: NotSentError, kinds: tuple[type[Any], type[Any], type[Any]], timeout: float | None, patience: float
) -> tuple[type[Any], grpc.StatusCode]:
    """The class of an error of gRPC's for a call that was not sent, and its code.

    Args:
        error: What the call raised.
        kinds: The classes for: no endpoints, deadline exceeded, throttled.
        timeout: Of the call.
        patience: Seconds that the call waits for endpoints.
    """
    if isinstance(error, DeadlineExceededError):
        return kinds[1], grpc.StatusCode.DEADLINE_EXCEEDED
    if isinstance(error, ThrottledError):
        return kinds[2], grpc.StatusCode.UNAVAILABLE
    return kinds[0], code_without_endpoints(timeout, patience)


class ChannelClosedError(ClosedError, ValueError):
    """The channel was used after `close()`; gRPC's own channels raise a ValueError."""


class AioChannelClosedError(ClosedError, grpc.aio.UsageError):
    """The channel was used after `close()`; gRPC's own aio channels raise a UsageError."""


def code_without_endpoints(timeout: float | None, patience: float) -> grpc.StatusCode:
    """The code of a call that found no endpoint: did the caller's deadline end the wait, or our patience?"""
    if timeout is not None and timeout < patience:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.UNAVAILABLE
