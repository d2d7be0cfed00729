"""Power of two choices: draw two different nodes, take the less loaded one.

O(1) in the number of endpoints, and clients do not herd: each looks at two of its own (Mitzenmacher, "The Power of
Two Choices in Randomized Load Balancing", 2001; Finagle's `P2C`). The draw is without replacement: with it, the busier
of two nodes would still get a quarter of the calls.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from clientlb.node import Node


class P2C:
    """The less loaded of two, by calls in flight divided by weight."""

    __slots__ = ()

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """Choose by calls in flight."""
        count = len(nodes)
        if count == 1:
            return nodes[0]
        others = count - 1
        draw = int(rng.random() * count * others)
        first = draw // others
        second = draw % others
        if second >= first:
            second += 1
        a, b = nodes[first], nodes[second]
        return a if (a.in_flight + 1) * a.inverse_weight <= (b.in_flight + 1) * b.inverse_weight else b
