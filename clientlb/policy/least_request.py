"""Least request: the node with the fewest calls in flight for its weight.

Among few nodes all are looked at; that is cheaper than it sounds, and the draw of two out of three leaves the best one
out every third time (Envoy's `FULL_SCAN`). Among many, two are drawn: a scan would be slow, and clients that all see
the same least loaded node herd on it.

Where weights differ, nodes are drawn by weight and compared by calls in flight divided by weight (Finagle's weighted
P2C). So an idle fleet is called in proportion to the weights, and a busy one has its queues in proportion to them. With
Envoy's `weight / (active + 1) ** bias` a node that hangs goes on being called, as its documentation says itself.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from math import inf

from clientlb.node import Node
from clientlb.policy.derived import Derived
from clientlb.require import require_int

_DRAWS = 4
"""Draws by weight until two different nodes must have come up. One node may have nearly all of the weight."""


class LeastRequest:
    """The node with the fewest calls in flight, divided by weight; ties are broken at random, by weight.

    Args:
        scan: Up to so many nodes all are compared, above that two of them (default 8).

    Raises:
        ConfigurationError: `scan` is below 1.
    """

    __slots__ = ("_cumulated", "scan")

    def __init__(self, scan: int = 8) -> None:
        require_int("LeastRequest: scan", scan, 1)
        self.scan: int = scan
        self._cumulated = Derived(_cumulated_weights)

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """Choose by calls in flight."""
        count = len(nodes)
        if count == 1:
            return nodes[0]
        if count <= self.scan:
            return _least(nodes, rng)
        cumulated = self._cumulated.of(nodes)
        if cumulated is None:
            others = count - 1
            draw = int(rng.random() * count * others)
            first, second = divmod(draw, others)
            second += second >= first
        else:
            first = second = bisect_right(cumulated, rng.random() * cumulated[-1], 0, count - 1)
            for _ in range(_DRAWS):
                second = bisect_right(cumulated, rng.random() * cumulated[-1], 0, count - 1)
                if second != first:
                    break
        a, b = nodes[first], nodes[second]
        return a if a.in_flight * a.inverse_weight <= b.in_flight * b.inverse_weight else b


def _least(nodes: Sequence[Node], rng: random.Random) -> Node:
    least = inf
    best: list[Node] = []
    for node in nodes:
        load = node.in_flight * node.inverse_weight
        if load < least:
            least = load
            best = [node]
        elif load == least:
            best.append(node)
    if len(best) == 1:
        return best[0]
    weights = [node.endpoint.weight for node in best]
    if weights.count(weights[0]) == len(weights):
        return best[int(rng.random() * len(best))]
    return rng.choices(best, weights)[0]


def _cumulated_weights(nodes: Sequence[Node]) -> list[float] | None:
    """The running sum of the weights; None if they are all the same."""
    weights = [node.endpoint.weight for node in nodes]
    return None if min(weights) == max(weights) else list(accumulate(weights))
