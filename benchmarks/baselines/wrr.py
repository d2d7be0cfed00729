"""Weighted round robin as gRPC does it (gRFC A58): a server's weight is its queries per second by its utilisation.

Every client looks at all servers once a second, smooths what it sees, and takes the servers in turn by an earliest
deadline first schedule with a random start.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from heapq import heapify, heapreplace

from clientlb.node import Node
from clientlb.simulation import Seat, Server

_EVERY = 1.0
_SMOOTHING = 0.3
"""Share of a new observation in the average."""


class WeightedRoundRobin:
    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._nodes: Sequence[Node] = ()
        self._schedule: list[tuple[float, int]] = []
        self._periods: list[float] = []
        self._weights: dict[str, float] = {}
        self._seen: dict[str, tuple[int, float]] = {}
        self._asks = False

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        if not self._asks:
            self._asks = True
            self._seat.loop.after(rng.uniform(0.0, _EVERY), self._ask)
        if nodes is not self._nodes:
            self._nodes = nodes
            self._weigh()
            self._schedule = [(rng.random() * period, turn) for turn, period in enumerate(self._periods)]
            heapify(self._schedule)
        deadline, turn = self._schedule[0]
        heapreplace(self._schedule, (deadline + self._periods[turn], turn))
        return nodes[turn]

    def _weigh(self) -> None:
        known = [self._weights[node.endpoint.id] for node in self._nodes if node.endpoint.id in self._weights]
        mean = sum(known) / len(known) if known else 1.0
        self._periods = [1.0 / self._weights.get(node.endpoint.id, mean) for node in self._nodes]

    def _ask(self, _: object = None) -> None:
        for node in self._nodes:
            self._seat.probe(node, self._answered)
        self._weigh()
        self._seat.loop.after(_EVERY, self._ask)

    def _answered(self, server: Server) -> None:
        name = server.endpoint.id
        finished, used = server.finished, server.used
        finished_before, used_before = self._seen.get(name, (0, 0.0))
        self._seen[name] = (finished, used)
        if finished > finished_before and used > used_before:
            weight = (finished - finished_before) / (used - used_before)
            self._weights[name] = weight + (1.0 - _SMOOTHING) * (self._weights.get(name, weight) - weight)
