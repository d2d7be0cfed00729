"""Replay: what would have happened under another policy. The calls of a journal, in virtual time.

    recordings = read_journal("journal.jsonl", service="orders")
    print(recorded(recordings).quantile(0.99), replay(recordings, Options(policy="least_time")).quantile(0.99))

Each process of the journal becomes a `Balancer` of its own with the shipped policy, health and retries (`call()`), the
loop's clock and a random generator. It makes the calls that it made, when it made them, among the endpoints that were
in use then. What a server answers is drawn from what it answered, to any of the processes, at about that time: outcome,
reason, latency and time in flight together, from the attempts that began within a second before or after, or from the
eight nearest ones if those are fewer. A server that never answered draws from those of all others. One seed gives one
result, and an attempt of a call draws alike under every policy.

The servers' answers are those recorded: a server that gets more calls than it did answers no slower, and one that gets
fewer no faster. So a replay says what a policy would have made of the differences that there were, not what it would
have made of the load. Keys of calls are not recorded; such calls go anywhere.
"""

from __future__ import annotations

import dataclasses
import random
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from math import ceil, inf
from typing import NamedTuple

from clientlb.balancer import Balancer
from clientlb.call import Attempt, Await, Steps, call
from clientlb.errors import ClientLBError, ConfigurationError
from clientlb.events import Ejected, Event
from clientlb.journal import Entry, Recording
from clientlb.options import GuardOptions, Options
from clientlb.outcome import Cause, Outcome, Verdict
from clientlb.policy import Filter, Request
from clientlb.simulation.loop import Loop

__all__ = ["CAVEAT", "Result", "recorded", "replay"]

CAVEAT = (
    "The servers' answers are those recorded: each answers as it did at about that time,"
    " whatever load a policy sends it."
)
_NEARBY = 1.0
_FEWEST = 8
_GOLDEN = 0.6180339887498949
_AS_IN_USE = GuardOptions(hold=0, settle=0, keep_ratio=0, empty_hold=0)
"""The lists of a journal have passed the guard."""


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """What became of the calls, recorded or replayed.

    Attributes:
        policy: Name of the policy.
        calls: How many there were.
        lost: How many of them failed for good.
        cancelled: How many were given up by their caller, or still ran at the end.
        latencies: Seconds from the beginning of a call to its answer, for those that succeeded, in ascending order.
        attempts: By endpoint.
        ejections: Times that an endpoint was ejected; None is unknown: a journal does not have them.
    """

    policy: str
    calls: int
    lost: int
    cancelled: int
    latencies: tuple[float, ...]
    attempts: dict[str, int]
    ejections: int | None = None

    def quantile(self, share: float) -> float | None:
        """The latency in seconds that this share of the successful calls did not exceed; None if there are none."""
        if not self.latencies:
            return None
        return self.latencies[max(0, ceil(share * len(self.latencies)) - 1)]

    def share(self, endpoint: str) -> float:
        """The share of the attempts that an endpoint got."""
        total = sum(self.attempts.values())
        return self.attempts.get(endpoint, 0) / total if total else 0.0


def recorded(recordings: Recording | Iterable[Recording]) -> Result:
    """What became of the calls in a journal."""
    recordings = _several(recordings)
    tally = _Tally()
    for recording in recordings:
        for attempts in _calls(recording):
            first = attempts[0]
            tally.calls += 1
            for entry in attempts:
                tally.attempts[entry.endpoint] += 1
            answers = [
                it.at - first.at + it.latency for it in attempts if it.outcome == "success" and it.latency is not None
            ]
            if answers:
                tally.latencies.append(min(answers))
            elif attempts[-1].outcome in (None, "ignored"):
                tally.cancelled += 1
            else:
                tally.lost += 1
    return tally.result(", ".join(sorted({recording.policy for recording in recordings})))


def replay(
    recordings: Recording | Iterable[Recording], options: Options, *, seed: int = 1, name: str | None = None
) -> Result:
    """Make the calls of a journal again, under another policy or with other options.

    Args:
        recordings: Of one service, from `read_journal` or from `Journal.recording()`.
        options: The policy, health and retries to try. Its guard is not used: the lists have passed one.
        seed: Of all randomness (default 1).
        name: Of the policy, for people; None takes that of the option.

    Raises:
        ConfigurationError: There is nothing in the journal that could be replayed, or it is of several services.
    """
    recordings = _several(recordings)
    services = {recording.service for recording in recordings}
    if len(services) > 1:
        raise ConfigurationError(f"the journal is of {', '.join(sorted(services))}; choose one service")
    moments = [entry.at for recording in recordings for entry in recording.entries]
    if not moments:
        raise ConfigurationError("there is no pick in the journal; record some calls first")
    name = name or _name(options)
    if any(entry.where for recording in recordings for entry in recording.entries):
        options = dataclasses.replace(options, policy=partial(Filter, options.policy))
    options = dataclasses.replace(options, guard=_AS_IN_USE, journal=None)
    tally = _Tally()
    loop = Loop()
    answers = _Answers(recordings, min(moments))
    for number, recording in enumerate(recordings):
        _Client(loop, recording, options, answers, tally, min(moments), random.Random(f"{seed} {number}"))
    loop.run(inf)
    return tally.result(name, ejections_known=True)


def _name(options: Options) -> str:
    policy = options.policy
    return policy if isinstance(policy, str) else str(getattr(policy, "__name__", policy))


def _several(recordings: Recording | Iterable[Recording]) -> list[Recording]:
    return [recordings] if isinstance(recordings, Recording) else list(recordings)


def _calls(recording: Recording) -> Iterator[list[Entry]]:
    """The attempts of each call whose beginning is in the journal."""
    calls: dict[int, list[Entry]] = defaultdict(list)
    for entry in recording.entries:
        calls[entry.call].append(entry)
    return (attempts for attempts in calls.values() if attempts[0].attempt == 1)


class _Tally:
    """Counts while calls are made."""

    def __init__(self) -> None:
        self.calls = 0
        self.lost = 0
        self.cancelled = 0
        self.ejections = 0
        self.latencies: list[float] = []
        self.attempts: Counter[str] = Counter()

    def result(self, policy: str, ejections_known: bool = False) -> Result:
        return Result(
            policy,
            self.calls,
            self.lost,
            self.cancelled,
            tuple(sorted(self.latencies)),
            dict(sorted(self.attempts.items())),
            self.ejections if ejections_known else None,
        )


class _Answer(NamedTuple):
    """How an attempt went."""

    at: float
    verdict: Verdict
    latency: float
    held: float


class _Answers:
    """What servers answered, and when, in seconds since the first pick."""

    def __init__(self, recordings: Sequence[Recording], epoch: float) -> None:
        of: dict[str, list[_Answer]] = defaultdict(list)
        for recording in recordings:
            succeeded = {entry.call for entry in recording.entries if entry.outcome == "success"}
            for entry in recording.entries:
                # an attempt that was given up because another one of its call was faster says nothing of its server
                if entry.held is None or (entry.outcome == "ignored" and entry.call in succeeded):
                    continue
                latency = entry.held if entry.latency is None else entry.latency
                of[entry.endpoint].append(_Answer(entry.at - epoch, _verdict(entry), latency, entry.held))
        self._of = {endpoint: _by_time(answers) for endpoint, answers in of.items()}
        self._everybody = _by_time(answer for answers in of.values() for answer in answers)

    def draw(self, endpoint: str, now: float, where: float) -> _Answer:
        """Draw one.

        Args:
            endpoint: Whose.
            now: When.
            where: Which one of those at hand, from 0 to below 1.
        """
        moments, answers = self._of.get(endpoint, self._everybody)
        first, end = bisect_left(moments, now - _NEARBY), bisect_right(moments, now + _NEARBY)
        if end - first < _FEWEST:
            first = max(0, min(bisect_left(moments, now) - _FEWEST // 2, len(moments) - _FEWEST))
            end = min(len(moments), first + _FEWEST)
        return answers[first + int(where * (end - first))]


def _by_time(answers: Iterable[_Answer]) -> tuple[list[float], list[_Answer]]:
    ordered = sorted(answers, key=lambda answer: answer.at)
    return [answer.at for answer in ordered], ordered


def _verdict(entry: Entry) -> Verdict:
    outcome = Outcome.IGNORED if entry.outcome is None else Outcome(entry.outcome)  # None: it ran until the end
    cause = Cause(entry.cause)
    return Verdict(outcome, entry.reason, sent=cause is not Cause.CONNECT, cause=cause)


class _Client:
    """One process of the journal, which makes its calls again."""

    def __init__(
        self,
        loop: Loop,
        recording: Recording,
        options: Options,
        answers: _Answers,
        tally: _Tally,
        epoch: float,
        rng: random.Random,
    ) -> None:
        self._loop = loop
        self._answers = answers
        self._tally = tally
        self._draw = rng.random
        self._balancer = Balancer(
            recording.service, options, emit=self._note, clock=loop.clock, rng=random.Random(rng.getrandbits(64))
        )
        for listed in recording.lists:
            loop.at(max(0.0, listed.at - epoch), self._balancer.update, listed.endpoints)
        for attempts in _calls(recording):
            loop.at(max(0.0, attempts[0].at - epoch), self._begin, attempts[0])

    def _begin(self, first: Entry) -> None:
        request = Request(where=frozenset(first.where)) if first.where else None
        self._tally.calls += 1
        steps = call(self._balancer, idempotent=first.repeatable, request=request)
        running = _Running(steps, self._loop.now, self._draw())
        self._go_on(running)

    def _go_on(self, running: _Running, verdict: Verdict | None = None) -> bool:
        """Let a call take its next step. False if there is none: the attempt of this verdict stands."""
        try:
            step = next(running.steps) if verdict is None else running.steps.send(verdict)
        except ClientLBError:  # nobody is left to be tried
            self._tally.lost += 1
            return True
        if step is None:
            return False
        if isinstance(step, Attempt):
            self._send(running, step)
        elif not isinstance(step, Await):  # which only follows LATE
            self._loop.after(step.seconds, self._go_on, running)
        return True

    def _send(self, running: _Running, attempt: Attempt) -> None:
        endpoint = attempt.pick.endpoint.address
        self._tally.attempts[endpoint] += 1
        answer = self._answers.draw(endpoint, self._loop.now, (running.where + attempt.number * _GOLDEN) % 1.0)
        self._loop.after(answer.latency, self._answered, (running, attempt, answer))

    def _answered(self, arrived: tuple[_Running, Attempt, _Answer]) -> None:
        running, attempt, answer = arrived
        verdict = answer.verdict
        if verdict.outcome is Outcome.IGNORED:  # the caller had enough: of the call, too
            running.steps.close()
            self._tally.cancelled += 1
            return
        if self._go_on(running, verdict):
            return
        if verdict.outcome is Outcome.SUCCESS:
            self._tally.latencies.append(self._loop.now - running.began)
        else:
            self._tally.lost += 1
        self._loop.after(max(0.0, answer.held - answer.latency), lambda pick: pick.release(), attempt.pick)

    def _note(self, event: Event) -> None:
        self._tally.ejections += isinstance(event, Ejected)


class _Running(NamedTuple):
    """A call that has begun."""

    steps: Steps
    began: float
    where: float
    """Which of the answers at hand it draws."""
