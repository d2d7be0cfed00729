"""Outcome: how an attempt went. The one language between the shells and the core."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Outcome(enum.Enum):
    """Four answers to "how did it go?" (after Finagle's `ResponseClass`).

    FAILURE and RETRYABLE both count against the endpoint. IGNORED is evidence of nothing: a cancelled call or the
    client's own mistake; it gives back a probe that it held.
    """

    SUCCESS = "success"
    FAILURE = "failure"
    RETRYABLE = "retryable"
    IGNORED = "ignored"


class Cause(enum.Enum):
    """What kind of failure it was. Health counts them apart; a success has none of them, and nobody looks."""

    APPLICATION = "application"
    """Whoever was reached did not do its work: 5xx, a broken connection, a timeout."""
    CONNECT = "connect"
    """Nobody was reached."""
    OVERLOAD = "overload"
    """The server works and has too much to do: 429, RESOURCE_EXHAUSTED."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """An outcome with its reason, as a shell reports it to the call.

    Args:
        outcome: How the attempt went.
        reason: Why, in a word or two, for people: `"503"`, `"ConnectError"`, `"UNAVAILABLE"`.
        sent: False when the request surely never reached the application, so that repeating it is safe even if
            the call is not idempotent.
        retry_after: The server asked to wait this many seconds before another attempt.
        untouched: Nothing of the request's body was read, so that even a one-shot body can still be sent elsewhere.
        cause: What kind of failure it was, if it was one.
        stale: What broke was a connection kept from earlier calls, before any answer came. Most likely it was closed
            for having been idle: that says nothing about the endpoint, and the request may be repeated at once if it
            may be repeated at all.
    """

    outcome: Outcome
    reason: str = ""
    sent: bool = True
    retry_after: float | None = None
    untouched: bool = False
    cause: Cause = Cause.APPLICATION
    stale: bool = False


SUCCEEDED = Verdict(Outcome.SUCCESS)
