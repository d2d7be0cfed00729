"""Events: frozen facts about what the balancer did. Hooks receive them after the lock is released.

An event is emitted only for changes (a list, a breaker, a retry), never for an ordinary call: figures about calls are
read from `Services.stats()`, which costs the hot path nothing extra.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clientlb.endpoint import Endpoint

__all__ = [
    "DiscoveryFailed",
    "DiscoveryRecovered",
    "Ejected",
    "EjectionResumed",
    "EjectionSuspended",
    "EndpointsChanged",
    "Event",
    "EventHook",
    "HedgeDenied",
    "Hedged",
    "HeldReturned",
    "Panicked",
    "Probing",
    "RemovalHeld",
    "Restored",
    "Retried",
    "RetryDenied",
    "SnapshotUsed",
    "WouldEject",
]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to one service."""

    service: str


@dataclass(frozen=True, slots=True)
class EndpointsChanged(Event):
    """The endpoints in use are others than before: `size` from now on.

    Who was held (`RemovalHeld`) is among the removed when that ends.
    """

    added: tuple[Endpoint, ...]
    removed: tuple[Endpoint, ...]
    size: int


@dataclass(frozen=True, slots=True)
class DiscoveryFailed(Event):
    """The registry could not be read; the last good list of `size` endpoints stays in use."""

    error: Exception
    size: int


@dataclass(frozen=True, slots=True)
class DiscoveryRecovered(Event):
    """The registry answered again after `DiscoveryFailed`, or delivered its first list after `SnapshotUsed`."""

    outage: float
    """Seconds since the first of the two."""


@dataclass(frozen=True, slots=True)
class RemovalHeld(Event):
    """The registry no longer names some endpoints, but they stay in use for `seconds` before that is believed."""

    held: tuple[Endpoint, ...]
    size: int
    """How many endpoints are in use, those held among them."""
    reason: str
    """`"empty"`: the registry names nobody. `"mass"`: too many left at once. `"unreachable"`: nobody of those who would
    remain can be reached. `"unsettled"`: it was down just before."""
    seconds: float


@dataclass(frozen=True, slots=True)
class HeldReturned(Event):
    """The registry names endpoints again that were held: they had not left."""

    returned: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class SnapshotUsed(Event):
    """The registry delivered no list, so the last good list on disk is used: `size` endpoints, `age` seconds old."""

    size: int
    age: float


@dataclass(frozen=True, slots=True)
class Ejected(Event):
    """The breaker of an endpoint opened: it gets no calls for `seconds`."""

    endpoint: Endpoint
    reason: str
    seconds: float
    """inf by the rule `check`: until its active check passes."""
    rule: str = ""
    """Which rule did it: one of `clientlb.health_options.RULES`."""


@dataclass(frozen=True, slots=True)
class WouldEject(Event):
    """A rule in `HealthOptions.dry_run` would have ejected an endpoint. It was not."""

    endpoint: Endpoint
    rule: str
    reason: str


@dataclass(frozen=True, slots=True)
class EjectionSuspended(Event):
    """The trouble looks like our own: none of the `size` endpoints is ejected, and those just ejected are back."""

    reason: str
    size: int


@dataclass(frozen=True, slots=True)
class EjectionResumed(Event):
    """A call succeeded, `seconds` after `EjectionSuspended`: who fails from now on may be ejected."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Probing(Event):
    """An ejected endpoint is offered one call, to see whether it works again."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Restored(Event):
    """An ejected endpoint takes part again: it answered a call or a check, or `EjectionSuspended` was just said."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Panicked(Event):
    """No healthy endpoint is left, or too few (`HealthOptions.panic_below`): all are used, whatever their state."""

    size: int
    healthy: int = 0


@dataclass(frozen=True, slots=True)
class Retried(Event):
    """An attempt failed, and another one begins after `delay` seconds: now."""

    endpoint: Endpoint
    attempt: int
    reason: str
    delay: float


@dataclass(frozen=True, slots=True)
class RetryDenied(Event):
    """An attempt failed and could have been repeated, but the retry budget of the service is spent."""

    endpoint: Endpoint
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Hedged(Event):
    """An attempt is late, so another one was started at `endpoint` beside it, after `seconds`."""

    endpoint: Endpoint
    seconds: float


@dataclass(frozen=True, slots=True)
class HedgeDenied(Event):
    """An attempt at `endpoint` is late after `seconds`, but the retry budget of the service is spent."""

    endpoint: Endpoint
    seconds: float


EventHook = Callable[[Event], None]
"""What receives events. It must return quickly: it runs on the thread of whoever caused the event, or caused another
one just before. What happens to a service comes one at a time and in order; `Retried`, `RetryDenied`,
`Hedged` and `HedgeDenied`, which belong to one call each, may come from several threads at once."""
