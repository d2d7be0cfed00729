"""What a journal holds, as values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from clientlb.endpoint import Endpoint

MOST_CANDIDATES = 16
"""Candidates that an entry names. A policy may compare thousands, and a journal is bounded."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An endpoint whose load the policy looked at, and what it found.

    Attributes:
        endpoint: `host:port`.
        in_flight: Calls that ran there.
        latency: Seconds that the policy reckoned with, if it reckons with latencies and knew this one.
        score: `Node.score`, if the policy keeps one and does not say what it means.
    """

    endpoint: str
    in_flight: int
    latency: float | None = None
    score: float | None = None

    def __str__(self) -> str:
        facts = [f"{self.in_flight} in flight"]
        if self.latency is not None:
            facts.append(f"{self.latency * 1000:.1f} ms")
        elif self.score is not None:
            facts.append(f"score {self.score:.4g}")
        return f"{self.endpoint} ({', '.join(facts)})"


@dataclass(frozen=True, slots=True)
class Entry:
    """One pick: what was chosen, among whom and why, and how it went.

    Attributes:
        number: Of the pick, counted from 1 by its process.
        call: The number of the first pick of the same call.
        attempt: 1 for the first attempt of a call.
        at: When it was made, in seconds since the epoch.
        endpoint: `host:port` of the one that was chosen.
        id: Its identity in the registry.
        why: `"policy"`: the policy chose among the healthy. `"probe"`: it was ejected and its time was up, so that this
            call was sent there to find out. `"panic"`: none was healthy.
        excluded: Endpoints that the call had tried before.
        keyed: The call had a key. The key itself is not recorded.
        where: The metadata that the call asked for.
        repeatable: The call could be repeated elsewhere.
        available: How many nodes the policy was given.
        candidates: Those of them whose load it looked at, the chosen one among them; at most 16 are named.
        compared: How many they were.
        outcome: `"success"`, `"failure"`, `"retryable"` or `"ignored"`; None while it runs.
        reason: Why, in a word or two.
        cause: What kind of failure it was, if it was one: `"application"`, `"connect"` or `"overload"`.
        latency: Seconds to the head of the response or to the failure; None while it runs.
        held: Seconds for which it was in flight; None while it is.
    """

    number: int
    call: int
    attempt: int
    at: float
    endpoint: str
    id: str
    why: str
    excluded: tuple[str, ...]
    keyed: bool
    where: tuple[tuple[str, str], ...]
    repeatable: bool
    available: int
    candidates: tuple[Candidate, ...]
    compared: int
    outcome: str | None
    reason: str
    cause: str
    latency: float | None
    held: float | None

    def __str__(self) -> str:
        return f"{self._who()}{''.join(f', {word}' for word in self._circumstances())}: {self._end()}"

    def _who(self) -> str:
        chosen = next((str(each) for each in self.candidates if each.endpoint == self.endpoint), self.endpoint)
        others = [str(each) for each in self.candidates if each.endpoint != self.endpoint]
        if not others:
            return chosen
        further = self.compared - len(self.candidates)
        return f"{chosen} rather than {', '.join(others)}" + (f" and {further} more" if further > 0 else "")

    def _circumstances(self) -> Iterator[str]:
        if self.why == "probe":
            yield "to probe it"
        elif self.compared <= 1:
            yield f"one of {self.available}"
        if self.why == "panic":
            yield "none being healthy"
        if self.keyed:
            yield "by the key of the call"
        if self.where:
            yield " and ".join(f"{name}={value}" for name, value in self.where) + " being asked for"
        if self.attempt > 1:
            yield f"attempt {self.attempt} of call {self.call} after {', '.join(self.excluded)}"

    def _end(self) -> str:
        if self.outcome is None:
            return "it runs"
        word = "ok" if self.outcome == "success" else f"{self.outcome} {self.reason}".strip()
        return word if self.latency is None else f"{word} after {self.latency * 1000:.1f} ms"

    def as_json(self) -> dict[str, Any]:
        """The entry as JSON has it, without what is at rest: see `from_json`."""
        said = {name: getattr(self, name) for name in _PLAIN}
        said["at"] = round(self.at, 6)
        said |= {name: round(value, 7) for name in ("latency", "held") if (value := said[name]) is not None}
        said["excluded"] = list(self.excluded)
        said["where"] = dict(self.where)
        said["candidates"] = [_candidate_as_json(each) for each in self.candidates]
        return {name: value for name, value in said.items() if name not in _AT_REST or value != _AT_REST[name]}

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Entry:
        """Read what `as_json` made.

        Raises:
            ValueError: It is something else.
        """
        try:
            fields: dict[str, Any] = {name: said.get(name, _AT_REST.get(name)) for name in _PLAIN}
            for name, kind in _PLAIN.items():
                if not isinstance(fields[name], kind):
                    raise ValueError(f"the {name} of a pick is {fields[name]!r}")
            return cls(
                **fields,
                excluded=tuple(map(str, said.get("excluded", ()))),
                where=tuple(sorted((str(name), str(value)) for name, value in said.get("where", {}).items())),
                candidates=tuple(map(_candidate_from_json, said["candidates"])),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a pick: {error!r}") from None


_NUMBER = (int, float)
_PLAIN: dict[str, Any] = {
    "number": int,
    "call": int,
    "attempt": int,
    "at": _NUMBER,
    "endpoint": str,
    "id": str,
    "why": str,
    "keyed": bool,
    "repeatable": bool,
    "available": int,
    "compared": int,
    "outcome": (str, type(None)),
    "reason": str,
    "cause": str,
    "latency": (*_NUMBER, type(None)),
    "held": (*_NUMBER, type(None)),
}
"""The fields that JSON has as they are, with what they may be."""
_AT_REST: dict[str, Any] = {
    "attempt": 1,
    "why": "policy",
    "excluded": [],
    "keyed": False,
    "where": {},
    "repeatable": True,
    "outcome": None,
    "reason": "",
    "cause": "application",
    "latency": None,
    "held": None,
}
"""What most picks have, and JSON leaves out."""


def _candidate_as_json(each: Candidate) -> list[str | int | float | None]:
    """A list, for most of a journal is candidates; what is not known at its end is left out."""
    values: list[str | int | float | None] = [
        each.endpoint,
        each.in_flight,
        None if each.latency is None else round(each.latency, 7),
        each.score,
    ]
    while values[-1] is None:
        values.pop()
    return values


def _candidate_from_json(said: list[Any]) -> Candidate:
    candidate = Candidate(*said)
    if not isinstance(candidate.endpoint, str) or not isinstance(candidate.in_flight, int):
        raise ValueError(f"a candidate is {said!r}")
    return candidate


@dataclass(frozen=True, slots=True)
class Listed:
    """Who was in use from a moment on.

    Attributes:
        at: Seconds since the epoch.
        endpoints: All of them.
    """

    at: float
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Recording:
    """What one process recorded of one service.

    Attributes:
        service: Its name.
        client: The process: its id and a word of its own.
        policy: Name of the policy that chose.
        lists: Who was in use, and since when; at least one unless `entries` is empty.
        entries: The picks, in order.
    """

    service: str
    client: str
    policy: str
    lists: tuple[Listed, ...]
    entries: tuple[Entry, ...]
