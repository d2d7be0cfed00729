"""Least loaded: the node with the fewest calls of this client in flight; ties go to the next one in cyclic order."""

from __future__ import annotations

import random
from collections.abc import Sequence

from clientlb.node import Node
from clientlb.simulation import Seat


class LeastLoaded:
    def __init__(self, seat: Seat) -> None:
        self._turn = 0

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        count = len(nodes)
        start = self._turn % count
        best = min(range(count), key=lambda step: nodes[(start + step) % count].in_flight)  # the first of equals
        self._turn = (start + best) % count + 1
        return nodes[self._turn - 1]
