"""Decides whether an attempt that failed is followed by another one, and after how long."""

from __future__ import annotations

import enum
import random
from collections.abc import Callable

from clientlb.backoff import RetryState
from clientlb.outcome import Outcome, Verdict
from clientlb.retry_options import RetryOptions


class Refusal(enum.Enum):
    """Why there is no further attempt. The text is for people."""

    NOT_RETRYABLE = "the failure would be the same elsewhere"
    NOT_IDEMPOTENT = "the request may have reached a server and is not idempotent"
    NOT_REPLAYABLE = "the request body is a one-shot stream and cannot be sent again"
    ALL_TRIED = "every endpoint was tried"
    STOPPED = "no further attempt is allowed"
    OUT_OF_TIME = "the deadline would pass first"
    OUT_OF_BUDGET = "the retry budget of the service is spent"


def decide(
    verdict: Verdict,
    options: RetryOptions,
    state: RetryState,
    withdraw: Callable[[float], bool],
    *,
    now: float,
    rng: random.Random,
    untried: bool,
    idempotent: bool,
    replayable: bool,
    deadline: float | None,
    exhausted: bool = False,
) -> float | Refusal:
    """Say after how many seconds the next attempt follows, or why none does.

    Args:
        verdict: How the attempt went.
        options: The service's, or the call's own.
        state: Carries what was tried so far, and is brought up to date here; made at the first failure.
        withdraw: Takes one retry out of the service's budget, or says that there is none left.
        now: Seconds of the balancer's clock.
        rng: Source of jitter.
        untried: There is a healthy endpoint that this call has not tried.
        idempotent: The call may safely reach two servers.
        replayable: The request can be sent again.
        deadline: When the caller stops waiting, in seconds of the same clock.
        exhausted: Every endpoint was tried, and none is to be tried twice.
    """
    if verdict.outcome is not Outcome.RETRYABLE:
        return Refusal.NOT_RETRYABLE
    if verdict.sent and not idempotent:
        return Refusal.NOT_IDEMPOTENT
    if not replayable and not verdict.untouched:
        return Refusal.NOT_REPLAYABLE
    # once only: a request that kills whoever reads it looks the same, and must not visit ten servers
    stale = verdict.stale and not state.stale
    if (
        (stale or (not verdict.sent and untried))
        and state.transparent < options.transparent
        and (deadline is None or now < deadline)
    ):
        state.transparent += 1
        state.stale = state.stale or stale
        return 0.0
    if exhausted:
        return Refusal.ALL_TRIED
    state.failed(verdict.reason, now)
    if options.stop(state):
        return Refusal.STOPPED
    delay = max(0.0, float(options.wait(state)))
    if verdict.retry_after is not None:
        # equal jitter upwards: never earlier than asked, and not everybody at the same moment
        delay = max(delay, verdict.retry_after * rng.uniform(1.0, 1.5))
    if deadline is not None and now + delay >= deadline:
        return Refusal.OUT_OF_TIME
    if not withdraw(now):
        return Refusal.OUT_OF_BUDGET
    state.attempt_number += 1
    return delay
