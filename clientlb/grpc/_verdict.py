"""What the end of a gRPC attempt means for its endpoint, and whether the call may be made again. No I/O.

The rules are those of gRFC A6 (retries) where it has some: pushback, and the metadata that tells a server about earlier
attempts. Which codes are retryable is `RetryOptions.codes`; which methods may be repeated only the user knows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any
from urllib.parse import unquote

import grpc

from clientlb.classify import classify_code
from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError
from clientlb.grpc._target import is_address
from clientlb.outcome import SUCCEEDED, Cause, Outcome, Verdict

PUSHBACK = "grpc-retry-pushback-ms"
PREVIOUS_ATTEMPTS = "grpc-previous-rpc-attempts"

_OK = grpc.StatusCode.OK
_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
_CANCELLED = grpc.StatusCode.CANCELLED
_RETRYABLE = Outcome.RETRYABLE

# gRPC core before 1.51 had no "; last error: ..."; without the address in it the text proves nothing
_NEVER_CONNECTED = "failed to connect to all addresses; last error: "
# made by the client's own side of the call; the endpoint has no part in them
_CALLERS_OWN = (
    "Exception serializing request!",
    "Exception deserializing response!",
    "Exception iterating requests!",
)
# all that a server says whose process ends while it serves a call; whoever cancels on this side says more
_CANCELLED_THERE = "CANCELLED"
_TOO_LARGE = "message larger than max"


def verdict(
    code: grpc.StatusCode,
    details: str | None,
    trailing_metadata: Iterable[Any] | None,
    endpoint: Endpoint,
    retryable: frozenset[str],
) -> Verdict:
    """Say what the status of an attempt means.

    Args:
        code: Of the status.
        details: Of the status.
        trailing_metadata: As received; None when there was none.
        endpoint: Where the attempt went.
        retryable: Names of the codes that are worth another endpoint.
    """
    if code is _OK:
        return SUCCEEDED
    text = details or ""
    if text.startswith(_CALLERS_OWN) or _TOO_LARGE in text:
        return Verdict(Outcome.IGNORED, code.name)
    if code is _UNAVAILABLE and never_connected(text, endpoint):
        outcome = Outcome.RETRYABLE if code.name in retryable else Outcome.FAILURE
        return Verdict(outcome, "cannot connect", sent=False, cause=Cause.CONNECT)
    if code is _CANCELLED and text == _CANCELLED_THERE:
        return Verdict(Outcome.RETRYABLE, "CANCELLED by the server")
    found = classify_code(code.name, retryable)
    if found.outcome is not _RETRYABLE:
        return found
    return _with_pushback(found, trailing_metadata)


def never_connected(details: str, endpoint: Endpoint) -> bool:
    """Whether a status was made by gRPC itself because it could not connect to the endpoint.

    A server that forwards such a status from a server behind it forwards another address, so the address of the
    endpoint has to be in the text. A host *name* is not, so an endpoint that has one gets no benefit of the doubt.
    """
    return (
        details.startswith(_NEVER_CONNECTED)
        and is_address(endpoint.host)
        and f":{endpoint.address}: " in unquote(details)
    )


def _with_pushback(found: Verdict, trailing_metadata: Iterable[Any] | None) -> Verdict:
    for key, value in trailing_metadata or ():
        if key == PUSHBACK:
            try:
                milliseconds = int(value)
            except ValueError:
                milliseconds = -1
            if milliseconds < 0:
                return Verdict(Outcome.FAILURE, f"{found.reason}; the server asks not to retry", cause=found.cause)
            return Verdict(found.outcome, found.reason, retry_after=milliseconds / 1000, cause=found.cause)
    return found


def not_again(found: Verdict) -> Verdict:
    """The same verdict on an attempt that cannot be replaced: the caller was given something of it already."""
    return Verdict(Outcome.FAILURE, found.reason, cause=found.cause) if found.outcome is _RETRYABLE else found


def metadata_of_attempt(metadata: Sequence[Any] | None, number: int) -> Any:
    """The caller's metadata; from the second attempt on with the number of attempts before.

    gRPC core takes that number for its own and removes it, unless the channel has the argument `grpc.enable_retries=0`.
    We leave that on: it is what repeats calls by itself that a closing connection has not let through.
    """
    if number == 1:
        return metadata
    return (*(metadata or ()), (PREVIOUS_ATTEMPTS, str(number - 1)))


class Idempotence:
    """Which methods of a channel may safely reach two servers.

    Args:
        idempotent: True for all, False for none, or the full names of those that may.

    Raises:
        ConfigurationError: A name is not `package.Service/Method`.
    """

    def __init__(self, idempotent: bool | Collection[str]) -> None:
        self._all = idempotent is True
        self._names: frozenset[str] = frozenset()
        if isinstance(idempotent, bool):
            return
        if isinstance(idempotent, str) or not isinstance(idempotent, Collection):
            raise ConfigurationError(f"idempotent is {idempotent!r}; give True, False or a collection of method names")
        for name in idempotent:
            if not isinstance(name, str) or name.removeprefix("/").count("/") != 1:
                raise ConfigurationError(f"idempotent has {name!r}; give names such as 'package.Service/Method'")
        self._names = frozenset("/" + name.removeprefix("/") for name in idempotent)

    def of(self, method: str | bytes) -> bool:
        """Whether this method may be repeated after it was sent."""
        name = method.decode() if isinstance(method, bytes) else method
        return self._all or name in self._names
