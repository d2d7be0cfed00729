"""Prequal: probes ask servers for their load ahead of time, and a call takes the best of the answers.

Wydrowski, Kleinberg, Rumble, Archer: "Load is not what you should balance: Introducing Prequal" (NSDI '24), section 4.
Every call sets off a few probes of random endpoints, for the good of later calls. Their answers are kept in a small
pool. A call takes one by the *hot-cold lexicographic* rule: an answer is hot if it found more requests in flight than a
given quantile of recent answers did; among the cold ones the fastest is best, and if all are hot, the one with the
fewest in flight.

Answers wear out, so the pool is cleared in four ways: the oldest makes room for a new one; an answer serves a limited
number of calls; it is too old after a second; and about once per call one is thrown away, the oldest and the worst in
turn, because what nobody takes would fill the pool with bad endpoints.

The probed endpoints have to be random. Load reports that come with answers to calls are of endpoints that were just
chosen, and a pool of those chooses much worse; so there is no way to put them in.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Protocol

from clientlb.errors import ConfigurationError
from clientlb.node import Node
from clientlb.policy.derived import Derived
from clientlb.require import require_int, require_number

_LEAST = 2
"""Answers in the pool, below which a call goes anywhere."""
_REMEMBERED = 128
"""Answers from which the distribution of requests in flight is estimated."""
_DELTA = 1.0
"""How much longer than necessary an answer may be reused (the paper's delta)."""


class Probe(Protocol):
    """How endpoints are asked for their load."""

    def ask(self, node: Node, answer: Callable[[int, float], None]) -> None:
        """Start to ask an endpoint, and return at once: the balancer's lock is held.

        Args:
            node: Whom to ask.
            answer: To be called, from any thread and at most once, with the number of requests in flight at the
                endpoint and with the seconds that a request takes there now (the median of the last ones that found
                about as many in flight). Not to be called when the probe fails.
        """


class _Answer:
    __slots__ = ("asked_at", "in_flight", "latency", "node", "uses")

    def __init__(self, node: Node, asked_at: float, in_flight: int, latency: float) -> None:
        self.node: Node = node
        self.asked_at: float = asked_at
        self.in_flight: int = in_flight
        self.latency: float = latency
        self.uses: float = inf


class Prequal:
    """Chooses by what servers say of themselves.

    Args:
        probe: Asks them.
        pool: Most answers that are kept (default 16, as in the paper); never more than half as many as endpoints.
        probes: Sent per call, on average (default 3, as in the paper).
        removals: Answers thrown away per call, on average (default 1, as in the paper).
        quantile: Of the requests in flight, above which an answer is hot (default 0.84, as in the paper's testbed; 0.6
            to 0.9 are good; 0 looks at requests in flight only, 1 at latency only).
        expiry: Seconds after which an answer is too old (default 1, as in the paper).

    Raises:
        ConfigurationError: A value is out of its range.
    """

    __slots__ = (
        "_arrived",
        "_derived",
        "_oldest_next",
        "_ordered",
        "_owed_probes",
        "_owed_removals",
        "_pool",
        "_probe",
        "_recent",
        "expiry",
        "pool",
        "probes",
        "quantile",
        "removals",
    )

    def __init__(
        self,
        probe: Probe,
        pool: int = 16,
        probes: float = 3.0,
        removals: float = 1.0,
        quantile: float = 2**-0.25,
        expiry: float = 1.0,
    ) -> None:
        if not callable(getattr(probe, "ask", None)):
            raise ConfigurationError(f"Prequal: probe is {probe!r}; give a Probe, such as clientlb.probing.HttpProbe()")
        require_int("Prequal: pool", pool, _LEAST)
        require_number("Prequal: probes", probes, above=0)
        require_number("Prequal: removals", removals, at_least=0)
        require_number("Prequal: quantile", quantile, at_least=0, at_most=1)
        require_number("Prequal: expiry", expiry, above=0)
        self.pool: int = pool
        self.probes: float = probes
        self.removals: float = removals
        self.quantile: float = quantile
        self.expiry: float = expiry
        self._probe = probe
        self._pool: list[_Answer] = []
        self._arrived: deque[_Answer] = deque()  # whoever answers holds no lock of ours; appending needs none
        self._recent: deque[int] = deque()
        self._ordered: list[int] = []
        self._owed_probes = 0.0
        self._owed_removals = 0.0
        self._oldest_next = True
        self._derived = Derived(frozenset)

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """Choose by the pool, or anywhere while there is next to nothing in it."""
        count = len(nodes)
        if count == 1:
            return nodes[0]
        self._ask(nodes, now, rng)
        self._take_in(count, rng)
        members = self._derived.of(nodes)
        oldest = now - self.expiry
        self._pool = [answer for answer in self._pool if answer.asked_at >= oldest and answer.node in members]
        if len(self._pool) < _LEAST:
            return nodes[int(rng.random() * count)]
        best = self._best()
        best.uses -= 1
        if best.uses <= 0:
            self._pool.remove(best)
        for answer in self._pool:
            if answer.node is best.node:
                answer.in_flight += 1  # the call that goes there now
        self._clear_out()
        return best.node

    def describe(self, node: Node, nodes: Sequence[Node], now: float) -> str | None:
        """Say what the newest answer in the pool says of a node."""
        for answer in reversed(self._pool):
            if answer.node is node:
                said = f"{answer.in_flight} in flight, {answer.latency * 1000:.1f} ms"
                return f"answered a probe {now - answer.asked_at:.1f} s ago with {said}"
        return None

    def _ask(self, nodes: Sequence[Node], now: float, rng: random.Random) -> None:
        self._owed_probes += self.probes
        count = min(int(self._owed_probes), len(nodes))
        self._owed_probes -= int(self._owed_probes)
        for node in rng.sample(nodes, count):

            def answer(in_flight: int, latency: float, node: Node = node) -> None:
                self._arrived.append(_Answer(node, now, in_flight, latency))

            self._probe.ask(node, answer)

    def _take_in(self, count: int, rng: random.Random) -> None:
        """Move what has arrived into the pool."""
        size = max(_LEAST, min(self.pool, count // 2))
        freshening = (1.0 - size / count) * self.probes - self.removals
        uses = max(1.0, (1.0 + _DELTA) / freshening) if freshening > 0 else inf
        while self._arrived:
            answer = self._arrived.popleft()
            if uses < inf:
                answer.uses = int(uses) + (rng.random() < uses - int(uses))  # rounded so that the mean is kept
            self._pool.append(answer)
            self._recent.append(answer.in_flight)
            insort(self._ordered, answer.in_flight)
            if len(self._recent) > _REMEMBERED:
                del self._ordered[bisect_left(self._ordered, self._recent.popleft())]
        del self._pool[:-size]

    def _is_hot(self, answer: _Answer) -> bool:
        if self.quantile >= 1.0:
            return False
        return answer.in_flight > self._ordered[int(self.quantile * len(self._ordered))]

    def _best(self) -> _Answer:
        cold = [answer for answer in self._pool if not self._is_hot(answer)]
        if cold:
            return min(cold, key=lambda answer: answer.latency)
        return min(self._pool, key=lambda answer: answer.in_flight)

    def _worst(self) -> _Answer:
        hot = [answer for answer in self._pool if self._is_hot(answer)]
        if hot:
            return max(hot, key=lambda answer: answer.in_flight)
        return max(self._pool, key=lambda answer: answer.latency)

    def _clear_out(self) -> None:
        self._owed_removals += self.removals
        while self._owed_removals >= 1.0:
            self._owed_removals -= 1.0
            if self._pool:
                self._pool.remove(self._pool[0] if self._oldest_next else self._worst())
                self._oldest_next = not self._oldest_next
