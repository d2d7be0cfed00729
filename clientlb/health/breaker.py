"""The circuit breaker of one endpoint.

                     failures in a row reach the threshold
          ┌────────┐ ───────────────────────────────────────► ┌────────┐
          │ CLOSED │                                          │  OPEN  │◄──────────────┐
          └────────┘ ◄─────────────────────────────────────── └────────┘               │
               ▲       a call that began while open succeeds      │   ▲               │ probe fails:
               │       (panic: there was nobody else)             │   │ probe ignored  │ longer time
               │                                      time is up, │   │ (cancelled)    │
               │                                  probe is leased ▼   │                │
               │        the probe succeeds                  ┌───────────┐              │
               └─────────────────────────────────────────── │ HALF_OPEN │ ─────────────┘
                                                            └───────────┘
                                                 a lease that runs out is given to another call

The words are Fowler's: open means that calls do not pass. A probe is a lease: it ends by success, failure, cancellation
or time, so an endpoint can never stay half-open for good (resilience4j #903, Polly #1979, finagle #524 all did).
"""

from __future__ import annotations

import enum
import random

from clientlb.options import HealthOptions


class State(enum.Enum):
    """State of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """State machine of one endpoint. Methods return True when the state changed.

    Attributes:
        state: Where it is.
        failures: Failures in a row while closed.
        until: OPEN: when a probe is due. HALF_OPEN: when the lease of the probe runs out. In seconds of the clock.
        opened_at: When it last opened.
        reason: Why it last opened, for people.
        probe: HALF_OPEN: whoever holds the lease.
    """

    __slots__ = ("_rounds", "failures", "opened_at", "probe", "reason", "state", "until")

    def __init__(self) -> None:
        self.state: State = State.CLOSED
        self.failures: int = 0
        self.until: float = 0.0
        self.opened_at: float = 0.0
        self.reason: str = ""
        self.probe: object = None
        self._rounds = 0

    def failed(self, started: float, now: float, options: HealthOptions, rng: random.Random) -> bool:
        """Take note of a failed attempt that began at `started`."""
        if self.state is State.CLOSED:
            self.failures += 1
            if self.failures < options.consecutive_failures:
                return False
        elif self.state is State.OPEN or started < self.opened_at:
            return False  # old news: the attempt began before the breaker opened, or nobody else was left
        self._open(now, options, rng)
        return True

    def succeeded(self, started: float) -> bool:
        """Take note of a successful attempt that began at `started`."""
        if self.state is State.CLOSED:
            self.failures = 0
            return False
        if started < self.opened_at:
            return False  # it began before the trouble did: no evidence that the trouble is over
        self.state = State.CLOSED
        self.failures = 0
        self.probe = None
        self._rounds = 0
        return True

    def ignored(self, attempt: object, now: float) -> bool:
        """Take the probe back if this attempt holds it: it ended without evidence."""
        if self.state is not State.HALF_OPEN or attempt is not self.probe:
            return False
        self.state = State.OPEN
        self.until = now
        self.probe = None
        return True

    def probe_due(self, now: float) -> bool:
        """Whether a call may probe the endpoint now."""
        return self.state is not State.CLOSED and now >= self.until

    def lease(self, attempt: object, now: float, options: HealthOptions) -> None:
        """Lease the probe to an attempt."""
        self.state = State.HALF_OPEN
        self.until = now + options.probe_timeout
        self.probe = attempt

    def _open(self, now: float, options: HealthOptions, rng: random.Random) -> None:
        # Finagle's equal jitter: d, then half of each doubled time is fixed and half is random
        longest = options.open_for * 2.0 ** min(self._rounds, 30)
        seconds = longest if self._rounds == 0 else longest / 2 + rng.uniform(0.0, longest / 2)
        self.state = State.OPEN
        self.failures = 0
        self.probe = None
        self.opened_at = now
        self.until = now + min(seconds, options.open_for_max)
        self._rounds += 1
