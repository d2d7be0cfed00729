"""Deadlines: by when the work at hand has to be done. Every call that is made on the way inherits that.

    with clientlb.deadline(0.5):
        http.get("http://orders/1")     # both together take half a second at most
        http.get("http://stock/1")

The deadline is a context variable: coroutines and tasks inherit it, as does `asyncio.to_thread`; a thread that is
started by hand does not. It interrupts no code. It limits calls, which end in an error of their own kind.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from math import inf
from types import TracebackType

from clientlb.errors import ConfigurationError

_expires: ContextVar[float | None] = ContextVar("clientlb.deadline", default=None)  # in seconds of time.monotonic

expiry: Callable[[], float | None] = _expires.get
"""When the deadline that calls inherit is over, in seconds of `time.monotonic`; None: there is none."""

LONGEST = 365 * 86400.0
"""More seconds than that are no deadline at all; gRPC says so in that way."""


class deadline:
    """Limits the time of every call that is made in the block, all attempts included. Nested, the earliest one counts.

    Args:
        seconds: From the start of the block on; `math.inf` sets none, but an outer deadline stays.

    Raises:
        ConfigurationError: `seconds` is no number, or below 0.
    """

    __slots__ = ("_seconds", "_tokens")

    def __init__(self, seconds: float) -> None:
        if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not seconds >= 0:
            raise ConfigurationError(f"deadline is {seconds!r}; give seconds, at least 0")
        self._seconds = seconds
        self._tokens: list[Token[float | None]] = []

    def __enter__(self) -> deadline:
        expires = time.monotonic() + self._seconds
        outer = _expires.get()
        if self._seconds >= LONGEST or (outer is not None and outer < expires):
            self._tokens.append(_expires.set(outer))
        else:
            self._tokens.append(_expires.set(expires))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _expires.reset(self._tokens.pop())


def time_remaining() -> float | None:
    """Seconds until the deadline of the block or of the call that is being served, not below 0; None without one."""
    expires = _expires.get()
    return None if expires is None else max(0.0, expires - time.monotonic())


def inherit(seconds: float | None) -> None:
    """Set the deadline of the current context for good: for servers, whose context ends with the call they serve."""
    if seconds is not None and seconds < LONGEST:
        _expires.set(time.monotonic() + max(0.0, seconds))


def lift() -> None:
    """Set no deadline in the current context any more: the call that was served has been answered."""
    _expires.set(None)


def inherited() -> bool:
    """Whether there is a deadline that calls inherit."""
    return _expires.get() is not None


def shortest(seconds: float | None) -> float | None:
    """The seconds that a call has which begins now: what it asks for, or what it inherits if that is less."""
    expires = _expires.get()
    if expires is None:
        return None if seconds == inf else seconds
    left = max(0.0, expires - time.monotonic())
    return left if seconds is None or left < seconds else seconds


def read_header(name: str, value: str | None) -> float | None:
    """Seconds in the header of a deadline; None if there are none or they make no sense.

    Args:
        name: Of the header. If it ends in `-ms` the value is in milliseconds, else in seconds.
        value: A decimal number.
    """
    try:
        number = float(value or "")
    except ValueError:
        return None
    seconds = number / 1000.0 if name.lower().endswith("-ms") else number
    return seconds if 0.0 <= seconds < LONGEST else None


def write_header(name: str, seconds: float) -> str:
    """The value of the header of a deadline that many seconds away. Rounded down: who serves has no more than that."""
    seconds = max(0.0, seconds)
    return str(int(seconds * 1000)) if name.lower().endswith("-ms") else f"{int(seconds * 1000) / 1000:.3f}"
