"""What an exception says about an endpoint, when no shell knows better: picks by hand and the decorator.

Network trouble of the standard library, of requests, aiohttp, httpx, httpx2 and gRPC counts against the endpoint. An
exception that carries an HTTP status (`raise_for_status`) or a gRPC code is judged by it. Every other exception is
taken for the caller's own and is ignored: five `KeyError`s must not eject a healthy server.
"""

from __future__ import annotations

import sys

from clientlb.outcome import Cause, Outcome, Verdict
from clientlb.retry_options import RETRYABLE_CODES, RETRYABLE_STATUSES

_NETWORK = (OSError, EOFError)  # requests' and most of aiohttp's exceptions are OSErrors as well
_FILES = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_NEVER_SENT = ("ConnectError", "ConnectTimeout", "ClientConnectorError")
_ANSWERS = frozenset(
    {
        "OK",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
    }
)
"""gRPC codes with which a server that works answers a call that cannot be served."""


def classify_exception(error: BaseException) -> Verdict:
    """Say what an exception that ended an attempt means for its endpoint."""
    name = type(error).__name__
    if not isinstance(error, Exception):
        return Verdict(Outcome.IGNORED, name)  # the program is being stopped, or the call cancelled
    status = _http_status(error)
    if status is not None:
        return classify_status(status)
    grpc = sys.modules.get("grpc")  # imported by whoever raised its exception, or it is not one of them
    if grpc is not None and isinstance(error, grpc.RpcError):
        code = getattr(error, "code", None)
        return classify_code(code().name if callable(code) and code() is not None else "UNKNOWN")
    if name == "PoolTimeout":
        return Verdict(Outcome.IGNORED, name)  # the caller's own limit of connections
    if isinstance(error, ConnectionRefusedError) or (isinstance(error, _network()) and name in _NEVER_SENT):
        return Verdict(Outcome.RETRYABLE, name, sent=False, cause=Cause.CONNECT)
    if isinstance(error, _network()) and not isinstance(error, _FILES):
        return Verdict(Outcome.RETRYABLE, name)
    return Verdict(Outcome.IGNORED, name)


def classify_status(status: int, retryable: frozenset[int] = RETRYABLE_STATUSES) -> Verdict:
    """Say what an HTTP status means for the endpoint that answered with it."""
    if status in retryable:
        return Verdict(Outcome.RETRYABLE, str(status), cause=cause_of_status(status))
    return Verdict(Outcome.FAILURE if status >= 500 else Outcome.SUCCESS, str(status))


def cause_of_status(status: int) -> Cause:
    """Say what kind of failure an HTTP status is, if it is one."""
    return Cause.OVERLOAD if status == 429 else Cause.APPLICATION


def classify_code(code: str, retryable: frozenset[str] = RETRYABLE_CODES) -> Verdict:
    """Say what a gRPC status code means for the endpoint that answered with it."""
    cause = Cause.OVERLOAD if code == "RESOURCE_EXHAUSTED" else Cause.APPLICATION
    if code in retryable:
        return Verdict(Outcome.RETRYABLE, code, cause=cause)
    if code == "CANCELLED":
        return Verdict(Outcome.IGNORED, code)
    return Verdict(Outcome.SUCCESS if code in _ANSWERS else Outcome.FAILURE, code, cause=cause)


def _network() -> tuple[type[BaseException], ...]:
    flavours = (sys.modules.get(name) for name in ("httpx", "httpx2", "aiohttp", "http.client"))
    names = ("TransportError", "ClientConnectionError", "HTTPException")
    found = [getattr(module, name) for module in flavours if module for name in names if hasattr(module, name)]
    return (*_NETWORK, *found)


def _http_status(error: BaseException) -> int | None:
    """The status that an exception carries: urllib's `code`, aiohttp's `status`, requests' and httpx's `response`."""
    response = getattr(error, "response", None)
    # one after the other: aiohttp warns of its own `code`
    for holder, name in ((response, "status_code"), (error, "status"), (error, "code")):
        status = getattr(holder, name, None)
        if isinstance(status, int) and 100 <= status <= 599:
            return status
    return None
