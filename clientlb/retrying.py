"""What a call may cost beyond its first attempt: the side of a service from which retries and hedges are decided.

`clientlb.call` asks here. The budget that retries and hedges share is here, the failure domains, the throttle, and the
counters of all that. Only figures are read from the roster; who is picked is decided by the balancer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from clientlb import events
from clientlb.outbox import Outbox
from clientlb.outcome import Outcome
from clientlb.retry.budget import RetryBudget
from clientlb.retry.throttle import Throttle

if TYPE_CHECKING:
    from clientlb.node import Node
    from clientlb.options import Options
    from clientlb.pick import TriedNodes
    from clientlb.retry_options import HedgeOptions
    from clientlb.roster import Roster

_RETRYABLE = Outcome.RETRYABLE  # see clientlb.balancer
_FAILURE = Outcome.FAILURE
_ENOUGH = 20
"""Attempts without which nobody can say how long one usually takes."""
_SOON = 0.02
"""Seconds before a deadline from which on it has ended what fails: gRPC counts in whole milliseconds."""


class Retrying:
    """Retries, hedges and refusals of one service.

    Args:
        options: Of the service.
        roster: Its endpoints; the lock is theirs.
        outbox: Takes events.
        may_go_to: Says whether there is one of some nodes that a call has not tried and may be given.
        now: Seconds of the balancer's clock.

    Attributes:
        budget: What pays for retries and hedges.
        throttle: Whether calls are refused, if that is wanted; see `admit`.
        retries: Attempts that repeated another one.
        retries_denied: Retries that the budget did not allow.
        hedges: Attempts that were started beside one that was late.
        hedges_denied: Those that the budget did not allow.
        failures_absorbed: Attempts that failed while another one of their call still ran.
        throttled: Calls that were refused.
    """

    def __init__(
        self,
        options: Options,
        roster: Roster,
        outbox: Outbox,
        may_go_to: Callable[[Iterable[Node], TriedNodes], bool],
        now: float,
    ) -> None:
        budget = options.retry.budget
        self.budget: RetryBudget = RetryBudget(budget.ratio, budget.reserve, budget.window, now)
        self.throttle: Throttle | None = None if options.throttle is None else Throttle(options.throttle, now)
        self.retries: int = 0
        self.retries_denied: int = 0
        self.hedges: int = 0
        self.hedges_denied: int = 0
        self.failures_absorbed: int = 0
        self.throttled: int = 0
        self._roster = roster
        self._outbox = outbox
        self._may_go_to = may_go_to

    # ------------------------------------------------------------------ decisions

    def withdraw(self, now: float) -> bool:
        """Take one retry out of the budget; False when there is none left."""
        with self._roster.lock:
            return self.budget.withdraw(now)

    def give_back(self) -> None:
        """Put one retry back into the budget, which was taken for an attempt that was not made."""
        with self._roster.lock:
            self.budget.give_back()

    def hedge_delay(self, hedge: HedgeOptions, now: float) -> float | None:
        """After how many seconds an attempt is late; None while too little is known to say so."""
        if hedge.delay is not None:
            return max(hedge.least, hedge.delay)
        seconds, attempts = self._roster.usual(hedge.percentile, now)
        return max(hedge.least, seconds) if attempts >= hedge.enough else None

    def cut_short(self, outcome: Outcome, started: float, deadline: float, now: float) -> bool:
        """Whether an attempt failed for a deadline that left it less time than half of all attempts take."""
        given = deadline - started
        if (outcome is not _RETRYABLE and outcome is not _FAILURE) or deadline - now > min(_SOON, given / 2):
            return False
        seconds, attempts = self._roster.usual(0.5, now)
        return attempts >= _ENOUGH and given < seconds

    def has_untried(self, tried: TriedNodes, *, healthy: bool = True) -> bool:
        """Whether there is an endpoint for the call that is not among those tried.

        Args:
            tried: Where the call has been.
            healthy: Only one that is healthy counts.
        """
        return self._may_go_to(self._roster.ready if healthy else self._roster.nodes, tried)

    def to_avoid(self, tried: TriedNodes, names: Collection[str]) -> TriedNodes:
        """Nodes that an attempt after `tried` keeps away from: those, and all that share something with one of them.

        Args:
            tried: Where the call has been.
            names: What endpoints share: `RetryOptions.avoid`. When nobody healthy would be left, that does not count.
        """
        if not names:
            return tried
        spoilt = {(name, shared) for node in tried for name in names if (shared := _described(node, name))}
        near = [
            node
            for node in self._roster.nodes
            if node not in tried and any((name, _described(node, name)) in spoilt for name in names)
        ]
        both = tried.and_also(near, tried=False)
        return both if self.has_untried(both) else tried

    def admit(self, now: float, rng: random.Random) -> bool:
        """Whether a call may be made; False refuses it, because the service turns most calls away."""
        with self._roster.lock:
            admitted = self.throttle is None or self.throttle.admit(now, rng)
            self.throttled += not admitted
        return admitted

    def unsent(self, now: float) -> None:
        """A call that was admitted was not sent to anybody, so it says nothing about the service."""
        with self._roster.lock:
            if self.throttle is not None:
                self.throttle.unsent(now)

    def accepted(self, now: float) -> None:
        """A call was not turned away."""
        with self._roster.lock:
            if self.throttle is not None:
                self.throttle.accepted(now)

    # ------------------------------------------------------------------ figures

    def count_retry(self, event: events.Retried) -> None:
        """Count and announce a retry."""
        with self._roster.lock:
            self.retries += 1
        self._outbox.emit(event)

    def count_denied_retry(self, event: events.RetryDenied) -> None:
        """Count and announce a retry that the budget denied."""
        with self._roster.lock:
            self.retries_denied += 1
        self._outbox.emit(event)

    def count_hedge(self, event: events.Hedged) -> None:
        """Count and announce a second attempt."""
        with self._roster.lock:
            self.hedges += 1
        self._outbox.emit(event)

    def count_denied_hedge(self, event: events.HedgeDenied) -> None:
        """Count and announce a second attempt that the budget denied."""
        with self._roster.lock:
            self.hedges_denied += 1
        self._outbox.emit(event)

    def forget_hedges(self, number: int) -> None:
        """Count second attempts no longer: they were not made, or given up with their call, and count as no attempt."""
        with self._roster.lock:
            self.hedges -= number

    def absorb_failure(self) -> None:
        """An attempt failed while another one of its call still runs: the call has not failed by that."""
        with self._roster.lock:
            self.failures_absorbed += 1


def _described(node: Node, name: str) -> str | None:
    """What discovery says of an endpoint under a name: zone, host, version, or a key of the metadata."""
    if name in ("zone", "host", "version"):
        return getattr(node.endpoint, name) or node.endpoint.metadata.get(name)
    return node.endpoint.metadata.get(name)
