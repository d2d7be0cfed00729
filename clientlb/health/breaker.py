"""The circuit breaker of one endpoint.

                     a rule trips: see `clientlb.health.judge`
          ┌────────┐ ───────────────────────────────────────► ┌────────┐
          │ CLOSED │                                          │  OPEN  │◄──────────────┐
          └────────┘ ◄─────────────────────────────────────── └────────┘               │
               ▲       a call that began while open succeeds      │   ▲               │ probe fails:
               │       (panic: there was nobody else),            │   │ probe ignored  │ longer time
               │       or ejection is suspended                   │   │ (cancelled)    │
               │                                      time is up, │   │                │
               │                                  probe is leased ▼   │                │
               │        the probe succeeds                  ┌───────────┐              │
               └─────────────────────────────────────────── │ HALF_OPEN │ ─────────────┘
                                                            └───────────┘
                                                 a lease that runs out is given to another call

The words are Fowler's: open means that calls do not pass. A probe is a lease: it ends by success, failure, cancellation
or time, so an endpoint can never stay half-open for good (resilience4j #903, Polly #1979, finagle #524 all did).

An active check that fails *holds* it open, from any state, until it passes: see `clientlb.health.checkup`.

Each time it opens, it does so for twice as long, with equal jitter. A success does not make up for that: one doubling
is taken back for every while of good behaviour (gRFC A50), so that an endpoint that flaps is tried less and less often.
"""

from __future__ import annotations

import copy
import enum
import random
from math import inf
from typing import TYPE_CHECKING

from clientlb.health.window import Window
from clientlb.health_options import HealthOptions
from clientlb.outcome import Cause

if TYPE_CHECKING:
    from clientlb.health.checkup import Checkup

_CONNECT = Cause.CONNECT
_OVERLOAD = Cause.OVERLOAD


class State(enum.Enum):
    """State of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """State machine of one endpoint. Methods that return a truth say whether the state changed.

    Attributes:
        state: Where it is.
        failures: Failures of the application in a row while closed.
        refusals: Connections in a row that could not be made, while closed.
        until: OPEN: when a probe is due. HALF_OPEN: when the lease of the probe runs out. In seconds of the clock.
        opened_at: When it last opened.
        closed_at: When it last closed; -inf if it never was open.
        rule: By which rule it last opened.
        reason: Why it last opened, for people.
        probe: HALF_OPEN: whoever holds the lease.
        bearable: Seconds that a probe may take to count as a success: whoever was ejected for being slow is not
            restored by another slow answer.
        window: Its recent failures, once there was one.
        excused: Its failures were taken for our own trouble, and it has not answered since.
        checkup: What active checks have found, if there are any.
        held: Its active check fails: it is open until that passes, whatever calls find out.
    """

    __slots__ = (
        "_rounds",
        "bearable",
        "checkup",
        "closed_at",
        "excused",
        "failures",
        "held",
        "opened_at",
        "probe",
        "reason",
        "refusals",
        "rule",
        "state",
        "until",
        "window",
    )

    def __init__(self) -> None:
        self.state: State = State.CLOSED
        self.failures: int = 0
        self.refusals: int = 0
        self.until: float = 0.0
        self.opened_at: float = 0.0
        self.closed_at: float = -inf
        self.rule: str = ""
        self.reason: str = ""
        self.probe: object = None
        self.bearable: float = inf
        self.window: Window | None = None
        self.excused: bool = False
        self.checkup: Checkup | None = None
        self.held: bool = False
        self._rounds = 0

    def count(self, cause: Cause, options: HealthOptions) -> str | None:
        """Count a failure while closed. Returns the rule that trips, `"consecutive"` or `"connect"`, if one does."""
        if cause is _CONNECT:
            self.refusals += 1
            return "connect" if self.refusals >= options.connect_failures else None
        if cause is not _OVERLOAD:  # a server that is busy works: that is a matter of the ratio
            self.failures += 1
            return "consecutive" if self.failures >= options.consecutive_failures else None
        return None

    def fails_probe(self, started: float) -> bool:
        """Whether the failure of an attempt that began at `started` is one of the probe, or as good as that."""
        return self.state is State.HALF_OPEN and started >= self.opened_at

    def forget(self) -> None:
        """Begin anew to count failures in a row."""
        self.failures = self.refusals = 0

    def succeeded(self, started: float, now: float) -> bool:
        """Take note of a successful attempt that began at `started`."""
        self.forget()
        self.excused = False
        if self.state is State.CLOSED or started < self.opened_at or self.held:
            return False  # what began before the trouble did is no evidence that the trouble is over
        self.close(now)
        return True

    def close(self, now: float) -> None:
        """Let calls pass again."""
        self.state = State.CLOSED
        self.forget()
        self.probe = None
        self.held = False
        self.bearable = inf
        self.closed_at = now

    def ignored(self, attempt: object, now: float) -> bool:
        """Take the probe back if this attempt holds it: it ended without evidence."""
        if self.state is not State.HALF_OPEN or attempt is not self.probe:
            return False
        self.state = State.OPEN
        self.until = now
        self.probe = None
        return True

    def detached(self, now: float) -> Breaker:
        """A copy for a forked child, where the calls of the parent count no more. A probe of theirs is given back."""
        breaker = copy.copy(self)
        breaker.window = copy.deepcopy(self.window)
        breaker.ignored(breaker.probe, now)
        return breaker

    def probe_due(self, now: float) -> bool:
        """Whether a call may probe the endpoint now."""
        return self.state is not State.CLOSED and now >= self.until

    def lease(self, attempt: object, now: float, options: HealthOptions) -> None:
        """Lease the probe to an attempt."""
        self.state = State.HALF_OPEN
        self.until = now + options.probe_timeout
        self.probe = attempt

    def open(
        self,
        now: float,
        options: HealthOptions,
        rng: random.Random,
        *,
        open_for: float | None = None,
        good_until: float | None = None,
    ) -> None:
        """Let no calls pass for a while.

        Args:
            now: Seconds of the clock.
            options: How long.
            rng: For the jitter.
            open_for: Replaces the option of that name.
            good_until: When its good behaviour ended, if that was not just now.
        """
        if self.state is State.CLOSED and self._rounds:
            good = (now if good_until is None else good_until) - self.closed_at
            self._rounds = max(0, self._rounds - int(max(0.0, good) / options.forgive_after))
        # Finagle's equal jitter: d, then half of each doubled time is fixed and half is random
        longest = (options.open_for if open_for is None else open_for) * 2.0 ** min(self._rounds, 30)
        seconds = longest if self._rounds == 0 else longest / 2 + rng.uniform(0.0, longest / 2)
        self.state = State.OPEN
        self.forget()
        self.probe = None
        self.opened_at = now
        self.until = now + min(seconds, options.open_for_max)
        self._rounds = min(self._rounds + 1, _most_rounds(options))

    def hold(self, now: float) -> None:
        """Let no calls pass until an active check does."""
        if self.state is State.CLOSED:
            self.opened_at = now
        self.state = State.OPEN
        self.forget()
        self.probe = None
        self.held = True
        self.until = inf


def _most_rounds(options: HealthOptions) -> int:
    """Doublings after which the longest time is reached: more of them would only take longer to be forgiven."""
    rounds = 1
    while options.open_for * 2.0**rounds < options.open_for_max and rounds < 30:
        rounds += 1
    return rounds + 1
