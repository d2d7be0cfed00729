"""What the active checks of one endpoint have found, and when the next one is due.

                  `unhealthy` checks in a row fail, or the server says so itself
      ┌─────────┐ ─────────────────────────────────────────────────────────────► ┌─────────┐
      │ PASSING │                                                                │ FAILING │
      └─────────┘ ◄───────────────────────────────────────────────────────────── └─────────┘
                    `healthy` checks in a row pass, or the server says so itself

A new endpoint counts as passing: it gets calls before its first check, as its registry says that it is there.

FAILING holds the breaker open, whatever calls find out: no time ends that, no probe, no success in panic. Whether
passing ends an ejection by another rule depends on what that says about the trouble. It does if checks had failed, too
(they see what calls saw), and if connections could not be made (a check makes one). It does not if checks passed all
the while: a server whose health page is fine while its calls fail would be back, and out again, with every check.

A check that nobody passes helps nobody to choose: a database behind all of them is down, our network is cut, or the
path is wrong. So an endpoint is held only while another one passes, and when all fail, all are let go: if they were
held, the first one back would get all the calls until the others are back. `HealthOptions.suspend` turns that off.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import inf

from clientlb.check_options import Check
from clientlb.health.breaker import Breaker, State

_PER_SECOND = 100.0
"""First checks per second, when many endpoints join at once."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Args:
        passed: Whether it passed.
        began: When it began, in seconds of the balancer's clock.
        reason: Why it failed, in a word or two.
        final: The server said so itself: there is nothing to wait for.
        next_at: When the next check is due; None while the server is listened to.
    """

    passed: bool
    began: float
    reason: str = ""
    final: bool = False
    next_at: float | None = None


class Checkup:
    """The state of one endpoint.

    Attributes:
        failing: Where it is in the picture.
        failures: Checks in a row that failed.
        passes: Checks in a row that passed.
        failed_at: When the last one that failed began; -inf if none did.
        last: What the last one found.
    """

    __slots__ = ("failed_at", "failing", "failures", "last", "passes")

    def __init__(self) -> None:
        self.failing: bool = False
        self.failures: int = 0
        self.passes: int = 0
        self.failed_at: float = -inf
        self.last: Finding | None = None

    def take(self, finding: Finding, options: Check) -> bool:
        """Take note of a check. Returns whether it changed the state."""
        self.last = finding
        if finding.passed:
            self.failures, self.passes = 0, self.passes + 1
            enough = finding.final or self.passes >= options.healthy
        else:
            self.failures, self.passes = self.failures + 1, 0
            self.failed_at = finding.began
            enough = finding.final or self.failures >= options.unhealthy
        if not enough or self.failing is not finding.passed:
            return False
        self.failing = not finding.passed
        return True

    def ends(self, breaker: Breaker, options: Check) -> bool:
        """Whether what was found ends an ejection."""
        last = self.last
        if last is None or not last.passed or breaker.state is State.CLOSED or last.began < breaker.opened_at:
            return False
        if not last.final and self.passes < options.healthy:
            return False
        return breaker.held or breaker.rule == "connect" or self.failed_at >= breaker.opened_at

    @property
    def why(self) -> str:
        """Why it is failing, for people."""
        reason = self.last.reason if self.last is not None else ""
        if self.last is not None and self.last.final:
            return f"active check failed: {reason}"
        return f"active check failed {self.failures} time{'s' if self.failures > 1 else ''}: {reason}"


def passes_checks(breaker: Breaker) -> bool:
    """Whether an endpoint is known to pass, so that checks can be passed."""
    checkup = breaker.checkup
    return checkup is not None and not checkup.failing and checkup.passes > 0


def fails_checks(breaker: Breaker) -> bool:
    """Whether an endpoint is known to fail."""
    return breaker.checkup is not None and breaker.checkup.failing


def first_delay(joiners: int, options: Check, rng: random.Random) -> float:
    """Seconds until the first check of an endpoint that joined together with others: at once, if they are few."""
    return rng.uniform(0.0, min(options.interval, (joiners - 1) / _PER_SECOND))


def next_delay(checks: int, options: Check, rng: random.Random) -> float:
    """Seconds from the beginning of one check to that of the next.

    Those who joined together are spread over the interval by the second one, and stay spread.

    Args:
        checks: How many there were.
        options: Interval and jitter.
        rng: For the jitter.
    """
    if checks == 1:
        return options.interval * (1.0 - rng.random())
    return options.interval * (1.0 + rng.uniform(-options.jitter, options.jitter))
