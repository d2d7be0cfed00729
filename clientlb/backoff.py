"""The default wait between attempts: exponential with full jitter.

tenacity's own `wait_random_exponential` has the same formula but draws from the process's random numbers. This one
draws from the balancer's, which travels in the retry state, so that a decision can be replayed.
"""

from __future__ import annotations

import random

from tenacity import Future, RetryCallState
from tenacity.wait import wait_base

from clientlb.errors import ClientLBError


class RetryState(RetryCallState):
    """What tenacity's `stop_*` and `wait_*` objects look at, with the balancer's source of randomness.

    Args:
        rng: Where jitter comes from.
        started: When the call started, in seconds of the balancer's clock.

    Attributes:
        transparent: Attempts so far that are not in `attempt_number`, because they never reached a server.
        stale: One of those was made on a stale connection; there is no second one.
    """

    def __init__(self, rng: random.Random, started: float) -> None:
        super().__init__(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]
        self.rng = rng
        self.transparent = 0
        self.stale = False
        self.start_time = started
        self.outcome_timestamp: float | None = started

    def failed(self, reason: str, now: float) -> None:
        """Note the end of an attempt, in the form in which tenacity's objects look for it."""
        self.outcome_timestamp = now
        self.outcome: Future | None = Future.construct(self.attempt_number, AttemptFailed(reason), True)


class AttemptFailed(ClientLBError):
    """An attempt failed, as tenacity's `stop_*` and `wait_*` objects see it; nobody ever raises it."""


class full_jitter(wait_base):
    """Wait a random time between 0 and `initial * 2**(attempt - 1)` seconds, at most `max`.

    After "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015), where full jitter did the least work.

    Args:
        initial: Upper bound of the first wait in seconds (default 0.025, Envoy's base interval).
        max: Upper bound of every wait in seconds (default 0.25, Envoy's ten times the base).
    """

    def __init__(self, initial: float = 0.025, max: float = 0.25) -> None:
        self.initial = initial
        self.max = max

    def __call__(self, retry_state: RetryCallState) -> float:
        """Seconds to wait after the attempt that `retry_state` describes."""
        rng = getattr(retry_state, "rng", random)
        exponent = min(retry_state.attempt_number - 1, 60)
        ceiling: float = min(self.max, self.initial * 2**exponent)
        return float(rng.uniform(0.0, ceiling))

    def __repr__(self) -> str:
        return f"full_jitter(initial={self.initial:g}, max={self.max:g})"
