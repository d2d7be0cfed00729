"""YARP's PowerOfTwoChoices with central knowledge: all servers are polled every 500 ms for their requests in flight."""

from __future__ import annotations

import random
from collections.abc import Sequence

from clientlb.node import Node
from clientlb.simulation import Seat, Server

_EVERY = 0.5


class Yarp:
    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._nodes: Sequence[Node] = ()
        self._in_flight: dict[str, int] = {}
        self._polls = False

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        self._nodes = nodes
        if not self._polls:
            self._polls = True
            self._seat.loop.after(rng.uniform(0.0, _EVERY), self._poll)
        if len(nodes) == 1:
            return nodes[0]
        a, b = rng.sample(nodes, 2)
        known = self._in_flight
        return a if known.get(a.endpoint.id, 0) <= known.get(b.endpoint.id, 0) else b

    def _poll(self, _: object = None) -> None:
        for node in self._nodes:
            self._seat.probe(node, self._answered)
        self._seat.loop.after(_EVERY, self._poll)

    def _answered(self, server: Server) -> None:
        self._in_flight[server.endpoint.id] = server.in_flight
