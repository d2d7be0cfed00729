"""The life of one logical call, as a generator without I/O. Written once; every shell only obeys it.

    steps = call(balancer, idempotent=True)
    step = next(steps)                      # Attempt, or Wait while no endpoint is known yet
    ...send the request to step.pick.endpoint...
    step = steps.send(verdict)              # None: that attempt stands. Else Sleep or the next Attempt

When `None` comes back the attempt that stands is still in flight: its pick belongs to the shell, which releases it when
the response has been read, or at once after an error. In a `whole` call the verdict has ended it already. Closing the
generator while an attempt runs (cancellation, KeyboardInterrupt) ends its pick as IGNORED.
`clientlb.drive` has the two loops, one for functions and one for coroutines.

A hedged call may have several attempts at once. A shell that can do that says so when `hedge_after` seconds are over:

    step = steps.send(LATE)                       # another Attempt to be sent beside the first, or Await
    step = steps.send(Ended(attempt, verdict))    # one of them ended. Await: the others go on, this one is discarded

Any other step means that `attempt` stands alone: those that still run are superseded, and the shell cancels them.
`clientlb.hedging` has the two loops for that. A shell that never sends LATE never has more than one attempt.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

from clientlb import events
from clientlb.backoff import RetryState
from clientlb.balancer import Balancer
from clientlb.deadlines import shortest
from clientlb.errors import ConfigurationError, DeadlineExceededError, ThrottledError, of_service
from clientlb.options import CallKey, CallOptions, Where
from clientlb.outcome import Cause, Outcome, Verdict
from clientlb.pick import Pick, TriedNodes
from clientlb.policy import Request
from clientlb.retry.policy import Refusal, decide
from clientlb.retry_options import RetryOptions
from clientlb.trace import Trace, Tried


class Attempt:
    """Send the request to `pick.endpoint`, then send the verdict into the generator.

    Attributes:
        pick: Where to send it.
        number: 1 for the first attempt.
        trace: What happened to the call so far.
        expires: When it has taken too long, in seconds of the balancer's clock; None: never.
        hedge_after: Seconds after which another attempt may start beside it; None: none may.
    """

    __slots__ = ("expires", "hedge_after", "number", "pick", "trace")

    def __init__(self, pick: Pick, number: int, trace: Trace) -> None:
        self.pick: Pick = pick
        self.number: int = number
        self.trace: Trace = trace
        self.expires: float | None = None
        self.hedge_after: float | None = None


class Ended(NamedTuple):
    """The answer to an attempt that did not run alone."""

    attempt: Attempt
    verdict: Verdict


class Late(enum.Enum):
    """The answer when no attempt has ended in time."""

    LATE = "late"


LATE = Late.LATE


@dataclass(frozen=True, slots=True)
class Await:
    """Wait until one of the attempts that run has ended."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait `seconds` before going on."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until the balancer has endpoints, at most `seconds`."""

    seconds: float


_RETRYABLE = Outcome.RETRYABLE  # see clientlb.balancer
FOREVER = 1e6
"""Seconds that no call outlives; infinity is more than the waits of threads can take."""
_IGNORED = Outcome.IGNORED
_CONNECT = Cause.CONNECT
_SUCCESS = Outcome.SUCCESS
_AWAIT = Await()

Step: TypeAlias = Attempt | Await | Sleep | Wait
Answer: TypeAlias = Verdict | Ended | Late | None
Steps: TypeAlias = Generator[Step | None, Answer, None]


class Limits(NamedTuple):
    """The time that a call has.

    Attributes:
        deadline: When the caller stops waiting, in seconds of the balancer's clock.
        attempt_timeout: Seconds that one attempt may take.
    """

    deadline: float | None
    attempt_timeout: float | None

    @classmethod
    def of(cls, balancer: Balancer, options: CallOptions | None) -> Limits:
        """Those of a call that begins now: its own, its service's, and what it inherits."""
        seconds, timeout = balancer.options.deadline, balancer.options.attempt_timeout
        if options is not None:
            seconds, timeout = options.times(seconds, timeout)
        return cls(deadline_of(balancer, seconds), timeout)

    def over(self, now: float) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and now >= self.deadline

    def expiry(self, started: float) -> float | None:
        """When an attempt has taken too long."""
        if self.attempt_timeout is None:
            return self.deadline
        expires = started + self.attempt_timeout
        return expires if self.deadline is None else min(self.deadline, expires)


UNLIMITED = Limits(None, None)


def asked(service: str, key: CallKey | None, where: Where | None) -> Request | None:
    """What a call to a service says about itself; None when that is nothing, which costs nothing.

    Raises:
        ConfigurationError: One of them is of the wrong kind.
    """
    if key is None and where is None:
        return None
    try:
        return Request.of(key, where)
    except ConfigurationError as error:
        raise of_service(service, error) from None


Asking: TypeAlias = Callable[..., Request | None]


def asking(
    service: str,
    key: CallKey | Callable[..., CallKey | None] | None,
    where: Where | Callable[..., Where | None] | None,
) -> Asking | None:
    """What says for each call what it asks for: a key, a filter, or callables that are given what is known of the call.

    None when no call asks for anything.

    Raises:
        ConfigurationError: One of them is of the wrong kind.
    """
    if not callable(key) and not callable(where):
        always = asked(service, key, where)
        return None if always is None else lambda *args, **kwargs: always

    def ask(*args: object, **kwargs: object) -> Request | None:
        return asked(
            service,
            key(*args, **kwargs) if callable(key) else key,
            where(*args, **kwargs) if callable(where) else where,
        )

    return ask


def succeed(balancer: Balancer, pick: Pick, trace: Trace) -> None:
    """End a call whose first attempt was made without the generator and has succeeded.

    A generator costs more than all the rest of a call that succeeds at once. So a shell may take a pick by itself; if
    anything else comes of it, it goes on with `call(..., begun=Attempt(pick, 1, trace))`. The pick is the shell's own.
    It has to leave that to calls that are neither hedged nor throttled, and ask for no key and no filter.
    """
    now = balancer.clock()
    trace.seconds = now - pick.started
    pick.observe(_SUCCESS, "", now)


def deadline_of(balancer: Balancer, seconds: float | None) -> float | None:
    """The deadline of a call that begins now, in seconds of the balancer's clock.

    Args:
        balancer: Of the service.
        seconds: What the call asks for. What it inherits (`clientlb.deadline`) counts if that is less.
    """
    seconds = shortest(seconds)
    return None if seconds is None else balancer.clock() + seconds


def call(
    balancer: Balancer,
    *,
    idempotent: bool,
    replayable: bool = True,
    retry: RetryOptions | None = None,
    deadline: float | None = None,
    attempt_timeout: float | None = None,
    whole: bool = False,
    request: Request | None = None,
    begun: Attempt | None = None,
    patient: bool = False,
) -> Steps:
    """Make the steps of one call.

    Args:
        balancer: Of the service to call.
        idempotent: The call may safely reach two servers.
        replayable: The request can be sent again; False for a one-shot body.
        retry: Replaces the service's retry options.
        deadline: When the caller stops waiting, in seconds of the balancer's clock; see `deadline_of`.
        attempt_timeout: Seconds that one attempt may take.
        whole: The verdict is the end of its attempt; no body or stream follows it.
        request: What the call says about itself, for policies that heed a key or a filter.
        begun: The first attempt, if the shell has made it already: it comes first, for its verdict.
        patient: The call waits for endpoints until its deadline, instead of `Options.wait_for_endpoints`.

    Raises:
        NoEndpointsError: No endpoint became known in time, or none matches the filter, which has no fallback.
        ConfigurationError: There is a filter, and the policy heeds none.
        DeadlineExceededError: The deadline is over already.
        ThrottledError: The client refuses the call, because most calls fail.
    """
    repeatable = idempotent and replayable
    retrying = balancer.retrying
    throttled = retrying.throttle is not None
    if throttled and begun is None and not retrying.admit(balancer.clock(), balancer.rng):
        raise ThrottledError(f"service {balancer.service!r}: not sent, because the service turns most calls away")
    try_pick = balancer.try_pick if request is None else partial(balancer.try_pick_for, request)
    limits = Limits(deadline, attempt_timeout)
    try:
        pick = try_pick((), repeatable) if begun is None else begun.pick
        if pick is None:
            asked_at = balancer.clock()
            patience = FOREVER if patient else balancer.options.wait_for_endpoints
            yield Wait(patience if deadline is None else max(0.0, min(patience, deadline - asked_at)))
            pick = try_pick((), repeatable)
            if pick is None:
                raise balancer.no_endpoints(asked_at)
        if limits.over(pick.started):
            pick.release(_IGNORED)
            raise DeadlineExceededError(f"service {balancer.service!r}: the deadline was over before the call was sent")
    except BaseException:
        if throttled and begun is None:
            retrying.unsent(balancer.clock())
        raise
    if retry is None:
        retry = balancer.options.retry
    attempt = begun or Attempt(pick, 1, Trace(balancer.service))
    attempt.expires = limits.expiry(pick.started)
    hedge = retry.hedge if repeatable else None
    hedge_after: float | None = None
    if hedge is not None:
        hedge_after = attempt.hedge_after = retrying.hedge_delay(hedge, pick.started)
    state: RetryState | None = None
    tried = TriedNodes(pick, request)
    while True:
        try:
            if hedge is None:
                verdict = yield attempt
                assert type(verdict) is Verdict, "an attempt is answered with its verdict"
            else:
                attempt, verdict = yield from _race(balancer, attempt, retry, tried, limits, try_pick)
                pick = attempt.pick
        except BaseException:
            pick.release(_IGNORED)
            if throttled:
                retrying.accepted(balancer.clock())  # at least, it was not turned away
            raise
        now = balancer.clock()
        attempt.trace.attempts.append(Tried(pick.node.endpoint, verdict.reason, now - pick.started))
        outcome = verdict.outcome
        if (
            outcome is not _SUCCESS
            and deadline is not None
            and retrying.cut_short(outcome, pick.started, deadline, now)
        ):
            outcome = _IGNORED  # it was the caller who had no time
            attempt.trace.refusal = Refusal.OUT_OF_TIME
        if whole:
            pick.release(outcome, verdict.reason, now, verdict.cause)
        else:
            pick.observe(outcome, verdict.reason, now, verdict.cause)
        if outcome is not _RETRYABLE:
            if throttled:
                retrying.accepted(now)  # a failure of the application took work, too
            break
        if verdict.cause is _CONNECT:
            balancer.unreachable(pick.node)
        if state is None:
            state = RetryState(balancer.rng, pick.started)
        tried.append(pick.node)
        try:
            delay = decide(
                verdict,
                retry,
                state,
                retrying.withdraw,
                now=now,
                rng=balancer.rng,
                untried=retrying.has_untried(tried),
                idempotent=idempotent,
                replayable=replayable,
                deadline=deadline,
                exhausted=not retry.reuse and not retrying.has_untried(tried, healthy=False),
            )
        except BaseException:  # of the user's own stop or wait
            pick.release()
            raise
        number = len(attempt.trace.attempts)
        facts = (balancer.service, pick.endpoint, number, verdict.reason)
        if isinstance(delay, Refusal):
            attempt.trace.refusal = delay
            if delay is Refusal.OUT_OF_BUDGET:
                retrying.count_denied_retry(events.RetryDenied(*facts))
            break
        pick.release()
        if delay > 0:
            yield Sleep(delay)
        again = try_pick(retrying.to_avoid(tried, retry.avoid) if retry.avoid else tried, repeatable)
        if again is None:  # the list became empty meanwhile
            raise balancer.no_endpoints(state.start_time)
        retrying.count_retry(events.Retried(*facts, delay))
        pick = again
        attempt = Attempt(pick, number + 1, attempt.trace)
        attempt.expires = limits.expiry(pick.started)
        attempt.hedge_after = hedge_after
    yield None


def _race(
    balancer: Balancer,
    attempt: Attempt,
    retry: RetryOptions,
    tried: TriedNodes,
    limits: Limits,
    try_pick: Callable[..., Pick | None],
) -> Generator[Step, Answer, Ended]:
    """Let an attempt run, and others beside it once it is late. The first answer wins, or the last failure stands.

    Args:
        balancer: Of the service.
        attempt: The first one; it says when it is late.
        retry: The options of the call; they have `hedge`.
        tried: Where the call has been. Nodes that failed while another attempt ran are added.
        limits: Of the call.
        try_pick: The balancer's, for what the call asks for.

    Returns:
        The attempt that stands. All others have been released, as failures or as superseded.
    """
    assert retry.hedge is not None
    retrying = balancer.retrying
    running = [attempt]
    trace = attempt.trace
    begun = 1
    step: Step = attempt
    try:
        while True:
            answer = yield step
            step = _AWAIT
            if answer is LATE:
                busy = tried.and_also([each.pick.node for each in running], tried=True)
                pick = balancer.try_hedge(busy, retry.avoid, try_pick, attempt.pick)
                if pick is not None:
                    step = hedge = Attempt(pick, attempt.number + begun, trace)
                    begun += 1
                    hedge.expires = limits.expiry(pick.started)
                    hedge.hedge_after = attempt.hedge_after if begun <= retry.hedge.at_most else None
                    running.append(hedge)
                    trace.hedges += 1
                continue
            ended = Ended(attempt, answer) if type(answer) is Verdict else answer
            assert type(ended) is Ended, "an attempt is answered with its verdict"
            running.remove(ended.attempt)
            if not running:
                return ended
            now = balancer.clock()
            pick, verdict = ended.attempt.pick, ended.verdict
            outcome = verdict.outcome
            # an answer, and another server would give the same
            if outcome is not _RETRYABLE and (verdict.sent or outcome is not _IGNORED):
                for loser in running:
                    trace.attempts.append(Tried(loser.pick.endpoint, "superseded", now - loser.pick.started))
                    loser.pick.supersede(now)
                return ended
            trace.attempts.append(Tried(pick.endpoint, verdict.reason, now - pick.started))
            if outcome is _IGNORED:
                retrying.give_back()  # one attempt less was made than was paid for
            elif limits.deadline is not None and retrying.cut_short(outcome, pick.started, limits.deadline, now):
                outcome = _IGNORED
            pick.release(outcome, verdict.reason, now, verdict.cause)
            tried.append(pick.node)
            if outcome is _IGNORED:  # it counts as no attempt
                retrying.forget_hedges(1)
                continue
            retrying.absorb_failure()
            if verdict.cause is _CONNECT:
                balancer.unreachable(pick.node)
    except BaseException:
        for each in running:
            each.pick.release(_IGNORED)
        retrying.forget_hedges(len(running) - 1)
        raise
