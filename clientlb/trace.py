"""What happened to one call: where its attempts went and how they ended. For people, and the notes of an exception."""

from __future__ import annotations

from typing import NamedTuple

from clientlb.endpoint import Endpoint
from clientlb.pick import Pick
from clientlb.retry.policy import Refusal


class Tried(NamedTuple):
    """One attempt of a call: where it went and why it was not the last one, or how it ended."""

    endpoint: Endpoint
    reason: str
    seconds: float
    """Time to the head of the response or to the failure."""


class Trace:
    """What happened to one call: `response.extensions["clientlb"]`, and the notes of an exception.

    Attributes:
        service: Name of the service.
        refusal: Why a failure that could have been repeated was not; None after a success, and after any other failure.
        hedges: How many of the attempts were started beside one that was late.
    """

    __slots__ = ("_attempts", "_first", "hedges", "refusal", "seconds", "service")

    def __init__(self, service: str, first: Pick | None = None) -> None:
        self.service: str = service
        self.refusal: Refusal | None = None
        self.hedges: int = 0
        self._attempts: list[Tried] | None = None  # made when asked for: most calls have one, and nobody asks
        self._first = first
        self.seconds: float | None = None
        """Time to the head of the response, of a call that succeeded at once."""

    @property
    def attempts(self) -> list[Tried]:
        """Every attempt in order."""
        if self._attempts is None:
            self._attempts = []
            if self._first is not None and self.seconds is not None:
                self._attempts.append(Tried(self._first.endpoint, "", self.seconds))
        return self._attempts

    @property
    def endpoint(self) -> Endpoint:
        """Where the last attempt went, which is the one that stands."""
        return self.attempts[-1].endpoint

    def __str__(self) -> str:
        made = "; ".join(
            f"attempt {number} at {tried.endpoint}: {tried.reason or 'ok'} after {tried.seconds * 1000:.1f} ms"
            for number, tried in enumerate(self.attempts, 1)
        )
        return f"service {self.service!r}: {made}" + (f"; not retried: {self.refusal.value}" if self.refusal else "")

    def __repr__(self) -> str:
        return f"<Trace {self}>"
