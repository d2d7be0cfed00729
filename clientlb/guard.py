"""The guard: what a registry names, and what of it is believed. PURE: it stands between discovery and the balancer.

A registry that was down tells the truth afterwards, and the truth is of no use: sessions and leases ran out meanwhile,
so it names two of five servers, or nobody, until all have announced themselves again. The same happens when an agent
loses its state or a token its rights. So good news is believed at once and bad news by its circumstances::

                        named again
          ┌────────┐ ◄───────────────── ┌────────┐
     ────►│ NAMED  │                    │ LIMBO  │
    named └────────┘ ─────────────────► └────────┘
               │      missing, and mass,    │  missing for `hold` seconds of a healthy registry, or
               │      unsettled, or the last│  its calls fail as well (two witnesses), or
               │ missing                    ▼  another server has its address
               └────────────────────────► gone

Whoever is named or in limbo is published. The idea is Finagle's Stabilizer, where an outage also restarts the clock.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable, Set
from dataclasses import dataclass
from math import inf
from typing import NamedTuple, TypeAlias

from clientlb.endpoint import Endpoint
from clientlb.options import GuardOptions

Key: TypeAlias = "tuple[str, str, int]"


class Reason(enum.Enum):
    """Why somebody who is missing is kept."""

    EMPTY = "empty"
    """The registry names nobody."""
    MASS = "mass"
    """Too few of those published would remain."""
    UNREACHABLE = "unreachable"
    """Nobody of those who would remain can be reached."""
    UNSETTLED = "unsettled"
    """The registry was out of order a short time ago."""


class Held(NamedTuple):
    """One endpoint in limbo."""

    endpoint: Endpoint
    since: float
    """Since when it is missing; after an outage, since its end."""
    reason: Reason


class Difference(NamedTuple):
    """How a list differs from the one before it."""

    listed: tuple[Endpoint, ...]
    fresh: dict[Key, Endpoint]
    """Who is new, or described by another object."""
    missing: list[Key]


@dataclass(slots=True)
class Verdict:
    """What changes in the list that is published."""

    added: list[Endpoint]
    described: list[Endpoint]
    """Who was published before and is now described in other words."""
    returned: list[Endpoint]
    """Who was in limbo and is named again."""
    removed: list[Key]
    held: list[Endpoint]
    """Who is in limbo from now on."""
    reason: Reason | None


class Guard:
    """Decides what is published of the lists of one service.

    Not thread-safe. `compare` is the part that looks at the whole list: it changes nothing, so that it can run without
    the balancer's lock. Everything else costs as much as there are changes.

    Attributes:
        named: Whom the registry named last, by key.
        limbo: Whom it no longer names and who is published nevertheless, the longest missing first.
        due: When `release` has something to do; inf while nothing will.
    """

    __slots__ = (
        "_empty_since",
        "_healthy_since",
        "_interrupted",
        "_listed",
        "_options",
        "_sizes",
        "due",
        "limbo",
        "named",
    )

    def __init__(self, options: GuardOptions) -> None:
        self._options = options
        self.named: dict[Key, Endpoint] = {}
        self.limbo: dict[Key, Held] = {}
        self._listed: tuple[Endpoint, ...] = ()  # the same as `named`, in the order of the registry
        self.due: float = inf
        self._healthy_since = -inf  # who never saw an outage is settled: a server may leave right after our start
        self._interrupted = False
        self._empty_since: float | None = None
        self._sizes: deque[tuple[float, int]] = deque()  # (until when, how many were published), falling

    def compare(self, endpoints: Iterable[Endpoint]) -> Difference:
        """Find what is new in a list.

        Mostly, a registry delivers survivors as the same objects, in the same order. These are recognised without a
        look at their keys, which makes one change among 10 000 endpoints cheap.
        """
        listed = tuple(endpoints)
        before = self._listed
        start = _common(before, listed)
        shortest = min(len(before), len(listed)) - start
        end = _common(before[: -shortest - 1 : -1], listed[: -shortest - 1 : -1]) if shortest else 0
        old, new = before[start : len(before) - end], listed[start : len(listed) - end]
        known, present = set(map(id, old)), set(map(id, new))
        fresh = {endpoint.key: endpoint for endpoint in new if id(endpoint) not in known}
        gone = dict.fromkeys(endpoint.key for endpoint in old if id(endpoint) not in present)
        survivors = len(known & present)
        twice = any(key in self.named and key not in gone for key in fresh)
        if twice or survivors + len(fresh) != len(new):  # the same server twice: the last description counts
            distinct = {endpoint.key: endpoint for endpoint in listed}
            changed = {key: each for key, each in distinct.items() if self.named.get(key) is not each}
            return Difference(tuple(distinct.values()), changed, [key for key in self.named if key not in distinct])
        return Difference(listed, fresh, [key for key in gone if key not in fresh])

    def take(self, difference: Difference, now: float, unreachable: Set[Key] = frozenset()) -> Verdict:
        """Judge a list that the registry delivered.

        Args:
            difference: From `compare`, with no other `take` in between.
            now: Seconds of the balancer's clock.
            unreachable: Those whose calls fail.
        """
        if self._interrupted or (self._empty_since is not None and difference.fresh):
            self._interrupted = False  # a registry that named nobody was out of order, too: it only did not say so
            self._healthy_since = now
            self.limbo = {key: held._replace(since=now) for key, held in self.limbo.items()}
        self._listed = difference.listed
        published = len(self.named) + len(self.limbo)
        verdict = Verdict([], [], [], [], [], None)
        for key, endpoint in difference.fresh.items():
            before = self.named.get(key)
            if before is None and key in self.limbo:
                before = self.limbo.pop(key).endpoint
                verdict.returned.append(endpoint)
            elif before is None:
                verdict.added.append(endpoint)
            if before is not None and before != endpoint:
                verdict.described.append(endpoint)
            self.named[key] = endpoint
        if verdict.returned:
            self._healthy_since = now  # it had forgotten living servers, and may do so again
        missing = {key: self.named.pop(key) for key in difference.missing}
        verdict.removed = self._replaced(difference.fresh, missing)
        for key in verdict.removed:
            if missing.pop(key, None) is None:
                del self.limbo[key]
        reason = verdict.reason = self._reason(published, missing.keys(), now, unreachable)
        if reason is None:
            verdict.removed += missing
        else:
            self.limbo |= {key: Held(endpoint, now, reason) for key, endpoint in missing.items()}
            verdict.held = list(missing.values())
        if self.named:
            self._empty_since = None
        elif self.limbo and self._empty_since is None:
            self._empty_since = now
        self._note_size(published, now)
        self._set_due()
        verdict.removed += self.release(now)
        return verdict

    def _replaced(self, fresh: Iterable[Key], missing: Iterable[Key]) -> list[Key]:
        """Those who are surely gone, for another server has their address now."""
        taken = {key[1:] for key in fresh}
        return [key for key in (*missing, *self.limbo) if key[1:] in taken] if taken else []

    def _reason(self, published: int, missing: Set[Key], now: float, unreachable: Set[Key]) -> Reason | None:
        """Why those who are missing now must be kept; None if they may go."""
        options = self._options
        if not missing:
            return None
        if not self.named:
            return Reason.EMPTY if options.empty_hold > 0 else None
        if options.hold <= 0:
            return None
        if now < self._healthy_since + options.settle:
            return Reason.UNSETTLED
        kept = published - len(missing) - len(self.limbo)
        if kept < options.keep_ratio * published:
            return Reason.MASS
        # one by one is a mass, too: compare with the longest list of the last seconds
        if len(self.named) < options.keep_ratio * self._longest(now):
            return Reason.MASS
        if options.keep_ratio > 0 and self.named.keys() <= unreachable and not missing <= unreachable:
            return Reason.UNREACHABLE  # leases of the living end, too, while a registry hangs
        return None

    def _longest(self, now: float) -> int:
        while self._sizes and self._sizes[0][0] <= now - self._options.hold:
            self._sizes.popleft()
        return self._sizes[0][1] if self._sizes else 0

    def _note_size(self, published: int, now: float) -> None:
        """Remember how many were published until now, if fewer are from now on."""
        self._longest(now)
        if len(self.named) + len(self.limbo) >= published:
            return
        while self._sizes and self._sizes[-1][1] <= published:
            self._sizes.pop()
        self._sizes.append((now, published))

    def error(self) -> None:
        """The registry could not be read: nobody leaves before it has been healthy again for a while."""
        self._interrupted = True
        self._empty_since = None
        self.due = inf

    def restore(self, endpoints: Iterable[Endpoint]) -> Verdict:
        """Publish a list of an earlier time; the registry's first list is judged like one after an outage."""
        self.named = {endpoint.key: endpoint for endpoint in endpoints}
        self._listed = tuple(self.named.values())
        self.limbo = {}
        self._sizes.clear()
        self.error()
        return Verdict(list(self.named.values()), [], [], [], [], None)

    def release(self, now: float) -> list[Key]:
        """Let go of those who were missing for long enough."""
        if now < self.due:
            return []
        if self.named:
            overdue = [key for key, held in self.limbo.items() if now >= held.since + self._options.hold]
        else:
            overdue = list(self.limbo)
        self.drop(overdue)
        self._sizes.clear()  # that many have left is believed now
        return overdue

    def drop(self, keys: Iterable[Key]) -> None:
        """Forget some of those in limbo."""
        for key in keys:
            del self.limbo[key]
        if not self.limbo:
            self._empty_since = None
        self._set_due()

    def _set_due(self) -> None:
        if self._interrupted or not self.limbo:
            self.due = inf
        elif self._empty_since is not None:
            self.due = self._empty_since + self._options.empty_hold
        else:
            self.due = next(iter(self.limbo.values())).since + self._options.hold

    def until(self, held: Held) -> float:
        """When somebody in limbo is let go, if nothing happens; inf while the registry cannot be read."""
        if self._interrupted:
            return inf
        return self.due if self._empty_since is not None else held.since + self._options.hold


def _common(one: tuple[Endpoint, ...], other: tuple[Endpoint, ...]) -> int:
    """How many endpoints are equal at the start of both: tuples compare identical members very quickly."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
