"""Prequal's pool of probes with two other rules for choosing from it, Linear and C3's score; and the shipped Prequal.

Wydrowski, Kleinberg, Rumble, Archer: "Load is not what you should balance: Introducing Prequal" (NSDI '24), section 4.
Every call triggers probes of random servers; their answers serve later calls. The size of the pool, the age and the
reuse of its entries are bounded, and an entry or so per call is thrown away, the oldest and the worst in turn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from math import inf, isinf

from clientlb import policy
from clientlb.node import Node
from clientlb.simulation import Seat, Server

_MOST = 16
_OLDEST = 1.0
_DELTA = 1.0


class SeatProbe:
    """The shipped policy's way to ask, in the simulated fleet."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat

    def ask(self, node: Node, answer: Callable[[int, float], None]) -> None:
        self._seat.server(node).remember_latencies()
        self._seat.probe(node, lambda server: answer(server.in_flight, server.latency_estimate()))


def prequal(seat: Seat, *, q_rif: float = 2**-0.25, probes: float = 3.0, removed: float = 1.0) -> policy.Prequal:
    """`clientlb.policy.Prequal`, asking simulated servers."""
    return policy.Prequal(SeatProbe(seat), quantile=q_rif, probes=probes, removals=removed)


class Probe:
    """One answer of a server."""

    __slots__ = ("in_flight", "latency", "node", "received", "uses")

    def __init__(self, node: Node, received: float, in_flight: int, latency: float, uses: float) -> None:
        self.node = node
        self.received = received
        self.in_flight = in_flight
        self.latency = latency
        self.uses = uses


class Pool:
    """A policy over a pool of probes. A rule says which probe is the best and which one the worst.

    Args:
        seat: Of the client.
        probes: Sent per call, on average.
        removed: Entries thrown away per call, on average.
    """

    def __init__(self, seat: Seat, *, probes: float = 3.0, removed: float = 1.0) -> None:
        self._seat = seat
        self._pool: list[Probe] = []
        self._probes = probes
        self._removed = removed
        self._probes_owed = 0.0
        self._removals_owed = 0.0
        self._oldest_next = True
        share = _MOST / seat.setting.servers
        freshening = (1.0 - share) * probes - removed
        self._reuse = max(1.0, (1.0 + _DELTA) / freshening) if freshening > 0 else inf
        self._nodes: Sequence[Node] = ()
        self._listed: set[Node] = set()

    def best(self, pool: list[Probe]) -> Probe:
        raise NotImplementedError

    def worst(self, pool: list[Probe]) -> Probe:
        raise NotImplementedError

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        if nodes is not self._nodes:
            self._nodes, self._listed = nodes, set(nodes)
        self._ask(nodes, rng)
        self._pool = [probe for probe in self._pool if now - probe.received <= _OLDEST and probe.node in self._listed]
        if len(self._pool) < 2:
            return nodes[int(rng.random() * len(nodes))]
        best = self.best(self._pool)
        best.uses -= 1
        if best.uses <= 0:
            self._pool.remove(best)
        for probe in self._pool:
            if probe.node is best.node:
                probe.in_flight += 1
        self._clear_out()
        return best.node

    def _ask(self, nodes: Sequence[Node], rng: random.Random) -> None:
        self._probes_owed += self._probes
        count = min(int(self._probes_owed), len(nodes))
        self._probes_owed -= int(self._probes_owed)
        for node in rng.sample(nodes, count):
            self._seat.server(node).remember_latencies()

            def answered(server: Server, node: Node = node) -> None:
                self.take(node, server, rng)

            self._seat.probe(node, answered)

    def take(self, node: Node, server: Server, rng: random.Random) -> Probe:
        """Take an answer into the pool."""
        uses = self._reuse
        if not isinf(uses):
            uses = int(uses) + (rng.random() < uses - int(uses))
        if len(self._pool) >= _MOST:
            del self._pool[0]
        probe = Probe(node, self._seat.loop.now, server.in_flight, server.latency_estimate(), uses)
        self._pool.append(probe)
        return probe

    def _clear_out(self) -> None:
        self._removals_owed += self._removed
        while self._removals_owed >= 1.0:
            self._removals_owed -= 1.0
            if self._pool:
                # the pool is in the order of arrival
                self._pool.remove(self._pool[0] if self._oldest_next else self.worst(self._pool))
                self._oldest_next = not self._oldest_next


class Linear(Pool):
    """Half latency, half requests in flight, each of which counts for 75 ms."""

    @staticmethod
    def _score(probe: Probe) -> float:
        return 0.5 * probe.latency + 0.5 * 0.075 * probe.in_flight

    def best(self, pool: list[Probe]) -> Probe:
        return min(pool, key=self._score)

    def worst(self, pool: list[Probe]) -> Probe:
        return max(pool, key=self._score)


class C3(Pool):
    """The score of C3 (Suresh et al., NSDI '15) on Prequal's pool: R - 1/mu + q**3 / mu, q = 1 + own * clients + RIF.

    R is the client's own average of the response time, 1/mu the average of what the server says; `own` are the calls of
    this client in flight there.
    """

    _FRESH = 0.1
    """Share of a new observation in the averages."""
    _LEAST = 0.001
    """Seconds. A server that has answered nothing yet says 0, and any queue times 0 would be no queue."""

    def __init__(self, seat: Seat) -> None:
        super().__init__(seat)
        self._responses: dict[Node, float] = {}
        self._services: dict[Node, float] = {}

    def take(self, node: Node, server: Server, rng: random.Random) -> Probe:
        probe = super().take(node, server, rng)
        self._learn(self._services, node, max(probe.latency, self._LEAST))
        return probe

    def observe(self, node: Node, seconds: float, success: bool, now: float) -> None:
        self._learn(self._responses, node, seconds)

    def _learn(self, averages: dict[Node, float], node: Node, seconds: float) -> None:
        known = averages.get(node, seconds)
        averages[node] = known + self._FRESH * (seconds - known)

    def _score(self, probe: Probe) -> float:
        service = self._services[probe.node]
        response = self._responses.get(probe.node, service)
        queue = 1 + probe.node.in_flight * self._seat.setting.clients + probe.in_flight
        return float(response - service + queue**3 * service)

    def best(self, pool: list[Probe]) -> Probe:
        return min(pool, key=self._score)

    def worst(self, pool: list[Probe]) -> Probe:
        return max(pool, key=self._score)
