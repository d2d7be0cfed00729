"""What a response or an exception says about the endpoint it came from.

status in retry.statuses        RETRYABLE     with the server's Retry-After, if that is bearable
any other 5xx                   FAILURE
any other status                SUCCESS       the server works; a 404 is an answer
refused, connect timeout        RETRYABLE     never sent: safe to repeat whatever the method
broken off, read timeout, ...   RETRYABLE     may have been processed
not taken (HTTP/2): refused,    RETRYABLE     never processed: safe to repeat whatever the method
  too many streams, GOAWAY
broke before any answer came,   RETRYABLE     no evidence: see `Verdict.stale`
  on a connection used before;
  GOAWAY on such a connection
no connection became free       RETRYABLE     never sent, and soft evidence: a server that hangs fills its pool, which
  in time                                     is that of one endpoint
everything else                 IGNORED       the caller's own: bad header, error in its body
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from types import ModuleType

from clientlb._http.goodbye import NotTaken
from clientlb.classify import cause_of_status
from clientlb.outcome import SUCCEEDED, Cause, Outcome, Verdict

LONGEST_RETRY_AFTER = 5.0
"""Seconds that a call waits at most because a server asked it to. Whoever asks for more gets no second attempt: the
response goes to the caller, who may have the time."""

_NEVER_SENT = ("ConnectError", "ConnectTimeout")
_MAYBE_SENT = ("NetworkError", "ProxyError", "ReadTimeout", "RemoteProtocolError", "WriteTimeout")
_BROKEN = ("CloseError", "ReadError", "WriteError")
_HUNG_UP = ("Server disconnected", "<ConnectionTerminated")
"""How httpcore's protocol errors begin when the server closed the connection, and did not answer with nonsense."""
_REFUSED_STREAM = 7
"""The HTTP/2 error code for a request that the server did not process at all (RFC 9113, 8.7)."""
_NO_ROOM = ("TooManyStreamsError", "NoAvailableStreamIDError")
"""What h2 raises when the server allows no more requests on the connection."""
_STREAM_GONE = ("NoSuchStreamError", "StreamClosedError")
"""What h2 raises when the server has reset a request that is still being sent, or closed the connection."""
_CLOSED = re.compile(r"Invalid input ConnectionInputs\.SEND_(HEADERS|DATA) in state ConnectionState\.CLOSED").fullmatch
"""What h2 says when the connection was closed while a request was about to be sent, or being sent."""


class ErrorVerdicts:
    """The verdicts on the exceptions of one flavour.

    Args:
        module: `httpx` or `httpx2`.
    """

    def __init__(self, module: ModuleType) -> None:
        self._never_sent = tuple(getattr(module, name) for name in _NEVER_SENT)
        self._maybe_sent = tuple(getattr(module, name) for name in _MAYBE_SENT)
        self._broken = tuple(getattr(module, name) for name in _BROKEN)
        self._protocol_error: type[Exception] = module.RemoteProtocolError
        self._local_error: type[Exception] = module.LocalProtocolError
        self._pool_timeout: type[Exception] = module.PoolTimeout

    def of(self, error: Exception, *, untouched: bool = False, stale: bool = False) -> Verdict:
        """Judge an exception that ended an attempt.

        Args:
            error: What the transport raised.
            untouched: Nothing of the request's body was read.
            stale: The connection was used before, and `hung_up` or `said_goodbye` says that it ended.
        """
        reason = type(error).__name__
        if isinstance(error, self._never_sent):
            return Verdict(Outcome.RETRYABLE, reason, sent=False, untouched=untouched, cause=Cause.CONNECT)
        refused = isinstance(error, self._pool_timeout) or _was_not_taken(error)
        maybe_sent = refused or isinstance(error, self._maybe_sent) or self._was_closed(error)
        if stale:
            reason = f"{reason} on a kept connection"
        elif not maybe_sent:
            return Verdict(Outcome.IGNORED, reason)
        cause = Cause.OVERLOAD if refused else Cause.APPLICATION
        return Verdict(Outcome.RETRYABLE, reason, sent=not refused, untouched=untouched, cause=cause, stale=stale)

    def said_goodbye(self, error: BaseException) -> bool:
        """Whether a server that goes away did not take the request. One that takes not even the first one does harm."""
        event = _event_of(error)
        return isinstance(event, NotTaken) and event.stream > 1

    def hung_up(self, error: BaseException) -> bool:
        """Whether the connection broke or was closed, as opposed to something wrong that came through it."""
        if isinstance(error, self._protocol_error):
            return str(error).startswith(_HUNG_UP)
        return isinstance(error, self._broken) or self._was_closed(error)

    def _was_closed(self, error: BaseException) -> bool:
        if not isinstance(error, self._local_error):
            return False
        return _CLOSED(str(error)) is not None or type(_event_of(error)).__name__ in _STREAM_GONE


def _was_not_taken(error: Exception) -> bool:
    """Whether the server has not looked at the request: it reset the stream, ended the connection or has no room."""
    event = _event_of(error)
    if event is None:
        return False
    if isinstance(event, NotTaken):
        return True
    if getattr(event, "error_code", None) == _REFUSED_STREAM and hasattr(event, "stream_id"):
        return True
    closed = _CLOSED(str(error))
    return (
        getattr(event, "last_stream_id", None) == 0
        or has_no_room(event)
        or (closed is not None and closed[1] == "HEADERS")
    )


def has_no_room(event: object) -> bool:
    """Whether h2 did not send a request, because the server allows no more of them on the connection."""
    return type(event).__name__ in _NO_ROOM


def _event_of(error: BaseException) -> object:
    """What h2 has said, which httpcore has put into its error; None without any."""
    core = error.__cause__
    return core.args[0] if core is not None and core.args else None


def of_status(
    status: int, headers: Mapping[str, str], retryable: frozenset[int], now: float, *, untouched: bool = False
) -> Verdict:
    """Judge a response by its head.

    Args:
        status: The status code.
        headers: Of the response; Retry-After is looked up.
        retryable: `RetryOptions.statuses`.
        now: Seconds since the epoch, to make sense of a date.
        untouched: Nothing of the request's body was read.
    """
    if status in retryable:
        cause = cause_of_status(status)
        wait = retry_after(headers.get("retry-after"), now)
        if wait is not None and wait > LONGEST_RETRY_AFTER:
            return Verdict(Outcome.FAILURE, f"{status}, asks for {wait:.0f} s", cause=cause)
        return Verdict(Outcome.RETRYABLE, str(status), retry_after=wait, untouched=untouched, cause=cause)
    if status >= 500:
        return Verdict(Outcome.FAILURE, str(status))
    return SUCCEEDED


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3); None without one or if it makes no sense."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, OverflowError, OSError):
        return None
