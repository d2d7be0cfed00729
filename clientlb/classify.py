"""What an exception says about an endpoint, when no shell knows better: picks by hand and the decorator.

Network trouble of the standard library (`OSError`, which `requests` and `aiohttp` derive from as well, `TimeoutError`,
`EOFError`) and of httpx, httpx2, http.client and gRPC counts against the endpoint. Every other exception is taken for
the caller's own and is ignored: five `KeyError`s must not eject a healthy server.
"""

from __future__ import annotations

import sys

from clientlb.outcome import Outcome, Verdict

_NETWORK = (OSError, EOFError)
_NEVER_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")
_RETRYABLE_CODES = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
_CALLERS_OWN_CODES = (
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
)


def classify_exception(error: BaseException) -> Verdict:
    """Say what an exception that ended an attempt means for its endpoint."""
    name = type(error).__name__
    if isinstance(error, ConnectionRefusedError):
        return Verdict(Outcome.RETRYABLE, name, sent=False)
    if isinstance(error, _NETWORK):
        return Verdict(Outcome.RETRYABLE, name)
    for flavour in ("httpx", "httpx2"):
        module = sys.modules.get(flavour)  # imported by whoever raised its exception, or it is not one of them
        if module is not None and isinstance(error, module.TransportError):
            return Verdict(Outcome.RETRYABLE, name, sent=name not in _NEVER_SENT)
    http_client = sys.modules.get("http.client")
    if http_client is not None and isinstance(error, http_client.HTTPException):
        return Verdict(Outcome.RETRYABLE, name)
    grpc = sys.modules.get("grpc")
    if grpc is not None and isinstance(error, grpc.RpcError):
        code = getattr(error, "code", None)
        return classify_code(code().name if callable(code) and code() is not None else "UNKNOWN")
    return Verdict(Outcome.IGNORED, name)


def classify_code(code: str, retryable: frozenset[str] | tuple[str, ...] = _RETRYABLE_CODES) -> Verdict:
    """Say what a gRPC status code means for the endpoint that answered with it."""
    if code in retryable:
        return Verdict(Outcome.RETRYABLE, code)
    if code == "CANCELLED":
        return Verdict(Outcome.IGNORED, code)
    if code == "OK" or code in _CALLERS_OWN_CODES:
        return Verdict(Outcome.SUCCESS, code)  # an answer: the server works
    return Verdict(Outcome.FAILURE, code)
