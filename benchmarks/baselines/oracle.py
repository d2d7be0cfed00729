"""Oracle: knows every server's true state, and takes the one where a call would run fastest. A bound, not a policy."""

from __future__ import annotations

import random
from collections.abc import Sequence

from clientlb.node import Node
from clientlb.simulation import Condition, Seat


class Oracle:
    def __init__(self, seat: Seat) -> None:
        self._seat = seat

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        count = len(nodes)
        start = int(rng.random() * count)
        return max((nodes[(start + step) % count] for step in range(count)), key=self._pace)

    def _pace(self, node: Node) -> tuple[float, float]:
        """How fast one more query would run there; among those without a queue, the room that would be left."""
        server = self._seat.server(node)
        if server.condition is not Condition.SERVING:
            return (-1.0, 0.0)
        queries = server.in_flight + 1
        return (server.speed * min(1.0, server.capacity / queries), server.capacity - queries)
