"""Weighted round robin: exact shares, from what servers report about their load, or from the weights of the registry.

The schedule is gRPC's static stride: no heap, no lock, and nothing to be moved when a node is chosen. Turns go round
the nodes, and a node of weight w (the heaviest has M = 65535) sits out a turn of the g-th round when

    (w * g + offset) mod M  <  M - w

so that in g rounds it is chosen w * g / M times, rounded up or down, and evenly spread.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import inf
from statistics import fmean, median

from clientlb.node import LoadReport, Node
from clientlb.policy.derived import Derived
from clientlb.require import require_number

_HEAVIEST = 65535
_SPREAD = _HEAVIEST // 2
"""Neighbours begin half a round apart, so that nodes of the same weight do not sit out together."""
_MOST = 10.0
_LEAST = 0.01


class StaticStride:
    """A schedule of turns in proportion to weights (gRPC's `static_stride_scheduler`).

    Args:
        weights: All above 0.
        turn: Where to begin; anywhere will do, and many clients should not begin at the same place.

    Attributes:
        turn: The next turn; `turn // len(weights)` is its round.
        weights: Scaled so that the heaviest is 65535.
    """

    __slots__ = ("turn", "weights")

    def __init__(self, weights: Sequence[float], turn: int) -> None:
        heaviest = max(weights)
        self.weights: list[int] = [max(1, round(weight / heaviest * _HEAVIEST)) for weight in weights]
        self.turn: int = turn

    def next(self) -> int:
        """The number of the next one. At the worst a round is sat out by all but the heaviest."""
        weights = self.weights
        count = len(weights)
        while True:
            turn = self.turn
            self.turn = turn + 1
            round_, index = divmod(turn, count)
            weight = weights[index]
            if (weight * round_ + index * _SPREAD) % _HEAVIEST >= _HEAVIEST - weight:
                return index


class WeightedRoundRobin:
    """Takes nodes in turn, each as often as its weight says (gRFC A58).

    Where servers report their load (`Node.report`), a weight is what the server does per unit of its utilization, and
    errors count as if they were work::

        weight = qps / (utilization + eps / qps * error_penalty)

    A server without a report has the mean of the others. A weight is at least a hundredth and at most ten times the
    median: what one server reports, such as next to no utilization, must not take the calls from all the others. (gRPC
    bounds by the mean, which that one server pulls along.) While fewer than two servers have a report that counts, the
    weights of the registry are used, exactly.

    Args:
        error_penalty: How much an error weighs (default 1, as in gRPC).
        update_every: Seconds between two looks at the reports (default 1, as in gRPC).
        blackout: Seconds for which the reports of a server have to come before they count (default 10, as in gRPC): a
            server that has just started reports a utilization that is not its own yet.
        expiry: Seconds after which a report no longer counts (default 180, as in gRPC).

    Raises:
        ConfigurationError: One of these is negative, or `update_every` is 0.
    """

    __slots__ = (
        "_due",
        "_now",
        "_reporting_since",
        "_schedules",
        "_start",
        "blackout",
        "error_penalty",
        "expiry",
        "update_every",
    )

    wants_reports = True

    def __init__(
        self,
        error_penalty: float = 1.0,
        update_every: float = 1.0,
        blackout: float = 10.0,
        expiry: float = 180.0,
    ) -> None:
        require_number("WeightedRoundRobin: update_every", update_every, above=0)
        for name, value in (("error_penalty", error_penalty), ("blackout", blackout), ("expiry", expiry)):
            require_number(f"WeightedRoundRobin: {name}", value, at_least=0)
        self.error_penalty: float = error_penalty
        self.update_every: float = update_every
        self.blackout: float = blackout
        self.expiry: float = expiry
        self._schedules = Derived(self._schedule)
        self._reporting_since: dict[Node, float] = {}
        self._due = -inf
        self._now = 0.0
        self._start = 0

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """Choose the next node in turn."""
        if now >= self._due:
            self._now = now
            self._look_again(nodes, rng)
        return nodes[self._schedules.of(nodes).next()]

    def describe(self, node: Node, nodes: Sequence[Node], now: float) -> str | None:
        """Say what a server last reported, while that counts."""
        report = self._reported(node)
        if report is None:
            return None
        return f"reported {report.qps:g} calls/s at {report.utilization:.0%} utilization, {now - report.at:.1f} s ago"

    def _look_again(self, nodes: Sequence[Node], rng: random.Random) -> None:
        """Weigh anew if any server reports. New schedules begin anywhere: to begin at one place would favour it."""
        now = self._now
        first_look = self._due == -inf
        self._due = now + self.update_every
        if first_look or self._reporting_since or any(node.report is not None for node in nodes):
            self._start = rng.randrange(_HEAVIEST * len(nodes))
            self._schedules.forget()
        self._reporting_since = {
            node: since for node, since in self._reporting_since.items() if self._reported(node) is not None
        }

    def _schedule(self, nodes: Sequence[Node]) -> StaticStride:
        weights = [self._reported_weight(node) for node in nodes]
        known = [weight for weight in weights if weight is not None]
        if len(known) < 2:
            return StaticStride([node.endpoint.weight for node in nodes], self._start)
        least, most = _LEAST * median(known), _MOST * median(known)
        mean = fmean(min(most, max(least, weight)) for weight in known)
        return StaticStride(
            [mean if weight is None else min(most, max(least, weight)) for weight in weights], self._start
        )

    def _reported(self, node: Node) -> LoadReport | None:
        """What a server reported, if it is not too old."""
        report = node.report
        return report if report is not None and self._now - report.at < self.expiry else None

    def _reported_weight(self, node: Node) -> float | None:
        """The weight by what a server reported; None while that says nothing."""
        report = self._reported(node)
        if report is None or not report.qps > 0 or not report.utilization > 0:
            return None
        if self._now - self._reporting_since.setdefault(node, self._now) < self.blackout:
            return None
        return report.qps / (report.utilization + report.eps / report.qps * self.error_penalty)
