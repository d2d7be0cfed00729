"""The life of one logical call, as a generator without I/O. Written once; every shell only obeys it.

    steps = call(balancer, idempotent=True)
    step = next(steps)                      # Attempt, or Wait while no endpoint is known yet
    ...send the request to step.pick.endpoint...
    step = steps.send(verdict)              # None: that attempt stands. Else Sleep or the next Attempt

When `None` comes back the attempt that stands is still in flight: its pick belongs to the shell, which releases it when
the response has been read, or at once after an error. In a `whole` call the verdict has ended it already. Closing the
generator while an attempt runs (cancellation, KeyboardInterrupt) ends its pick as IGNORED.
`clientlb.drive` has the two loops, one for functions and one for coroutines.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

from clientlb import events
from clientlb.backoff import RetryState
from clientlb.balancer import Balancer
from clientlb.endpoint import Endpoint
from clientlb.options import CallKey, RetryOptions, Where
from clientlb.outcome import Outcome, Verdict
from clientlb.pick import Pick, TriedNodes
from clientlb.policy import Request
from clientlb.retry.policy import Refusal, decide


class Attempt:
    """Send the request to `pick.endpoint`, then send the verdict into the generator.

    Attributes:
        pick: Where to send it.
        number: 1 for the first attempt.
        trace: What happened to the call so far.
    """

    __slots__ = ("number", "pick", "trace")

    def __init__(self, pick: Pick, number: int, trace: Trace) -> None:
        self.pick: Pick = pick
        self.number: int = number
        self.trace: Trace = trace


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
_SUCCESS = Outcome.SUCCESS

Step: TypeAlias = Attempt | Sleep | Wait
Steps: TypeAlias = Generator[Step | None, Verdict | None, None]


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
    """

    __slots__ = ("_attempts", "_first", "refusal", "seconds", "service")

    def __init__(self, service: str, first: Pick | None = None) -> None:
        self.service: str = service
        self.refusal: Refusal | None = None
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
        """Where the last attempt went."""
        return self.attempts[-1].endpoint

    def __str__(self) -> str:
        made = "; ".join(
            f"attempt {number} at {tried.endpoint}: {tried.reason or 'ok'} after {tried.seconds * 1000:.1f} ms"
            for number, tried in enumerate(self.attempts, 1)
        )
        return f"service {self.service!r}: {made}" + (f"; not retried: {self.refusal.value}" if self.refusal else "")

    def __repr__(self) -> str:
        return f"<Trace {self}>"


def asked(key: CallKey | None, where: Where | None) -> Request | None:
    """What a call says about itself; None when that is nothing, which costs nothing.

    Raises:
        ConfigurationError: One of them is of the wrong kind.
    """
    return None if key is None and where is None else Request.of(key, where)


Asking: TypeAlias = Callable[..., Request | None]


def asking(
    key: CallKey | Callable[..., CallKey | None] | None, where: Where | Callable[..., Where | None] | None
) -> Asking | None:
    """What says for each call what it asks for: a key, a filter, or callables that are given what is known of the call.

    None when no call asks for anything.

    Raises:
        ConfigurationError: One of them is of the wrong kind.
    """
    if not callable(key) and not callable(where):
        always = asked(key, where)
        return None if always is None else lambda *args, **kwargs: always

    def ask(*args: object, **kwargs: object) -> Request | None:
        return asked(
            key(*args, **kwargs) if callable(key) else key, where(*args, **kwargs) if callable(where) else where
        )

    return ask


def succeed(balancer: Balancer, pick: Pick, trace: Trace) -> None:
    """End a call whose first attempt was made without the generator and has succeeded.

    A generator costs more than all the rest of a call that succeeds at once. So a shell may take a pick by itself; if
    anything else comes of it, it goes on with `call(..., begun=Attempt(pick, 1, trace))`. The pick is the shell's own.
    """
    now = balancer.clock()
    trace.seconds = now - pick.started
    pick.observe(_SUCCESS, "", now)


def call(
    balancer: Balancer,
    *,
    idempotent: bool,
    replayable: bool = True,
    retry: RetryOptions | None = None,
    deadline: float | None = None,
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
        deadline: When the caller stops waiting, in seconds of the balancer's clock.
        whole: The verdict is the end of its attempt; no body or stream follows it.
        request: What the call says about itself, for policies that heed a key or a filter.
        begun: The first attempt, if the shell has made it already: it comes first, for its verdict.
        patient: The call waits for endpoints until its deadline, instead of `Options.wait_for_endpoints`.

    Raises:
        NoEndpointsError: No endpoint became known in time, or none matches the filter, which has no fallback.
        ConfigurationError: There is a filter, and the policy heeds none.
    """
    repeatable = idempotent and replayable
    try_pick = balancer.try_pick if request is None else partial(balancer.try_pick_for, request)
    pick = try_pick((), repeatable) if begun is None else begun.pick
    if pick is None:
        asked_at = balancer.clock()
        patience = FOREVER if patient else balancer.options.wait_for_endpoints
        yield Wait(patience if deadline is None else max(0.0, min(patience, deadline - asked_at)))
        pick = try_pick((), repeatable)
        if pick is None:
            raise balancer.no_endpoints(asked_at)
    attempt = begun or Attempt(pick, 1, Trace(balancer.service))
    state: RetryState | None = None
    while True:
        try:
            verdict = yield attempt
        except BaseException:
            pick.release(_IGNORED)
            raise
        assert verdict is not None, "an attempt is answered with its verdict"
        now = balancer.clock()
        attempt.trace.attempts.append(Tried(pick.node.endpoint, verdict.reason, now - pick.started))
        if whole:
            pick.release(verdict.outcome, verdict.reason, now, verdict.cause)
        else:
            pick.observe(verdict.outcome, verdict.reason, now, verdict.cause)
        if verdict.outcome is not _RETRYABLE:
            break
        if not verdict.sent:
            balancer.unreachable(pick.node)
        if state is None:
            state = RetryState(balancer.rng, pick.started)
            tried = TriedNodes(pick)
        tried.append(pick.node)
        try:
            delay = decide(
                verdict,
                retry or balancer.options.retry,
                state,
                balancer.withdraw_retry,
                now=now,
                rng=balancer.rng,
                untried=balancer.has_untried(tried),
                idempotent=idempotent,
                replayable=replayable,
                deadline=deadline,
            )
        except BaseException:  # of the user's own stop or wait
            pick.release()
            raise
        facts = (balancer.service, pick.endpoint, attempt.number, verdict.reason)
        if isinstance(delay, Refusal):
            attempt.trace.refusal = delay
            if delay is Refusal.OUT_OF_BUDGET:
                balancer.count_retry(events.RetryDenied(*facts))
            break
        pick.release()
        balancer.count_retry(events.Retried(*facts, delay))
        if delay > 0:
            yield Sleep(delay)
        again = try_pick(tried, repeatable)
        if again is None:  # the list became empty meanwhile
            raise balancer.no_endpoints(state.start_time)
        pick = again
        attempt = Attempt(pick, attempt.number + 1, attempt.trace)
    yield None
