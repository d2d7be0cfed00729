"""Power of two choices: draw two different nodes, take the less loaded one.

O(1) in the number of endpoints, and clients do not herd: each looks at a pair of its own (Mitzenmacher, "The Power of
Two Choices in Randomized Load Balancing", 2001; Finagle's `P2C`). The draw is without replacement: with it, the busier
of two nodes would still get a quarter of the calls.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import exp, inf, log

from clientlb.errors import ConfigurationError
from clientlb.node import Node

_UNKNOWN = -inf
"""The score of a node that has not answered yet."""
_SHORTEST = 1e-6
"""Seconds. A latency has to have a logarithm."""
_FIRST_FAILURE = 3.0
"""Seconds. What the failure of the very first call to a node counts as."""
_LONGEST_FAILURE = 30.0
"""Seconds. Failures in a row multiply a latency up to here, so that a node that works again is found again."""


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


class PeakEwma:
    """The less loaded of two, by latency times calls in flight, divided by weight.

    A node's latency jumps to a peak at once and fades with time::

        latency(now) = max(seconds_i * exp(-(now - observed_at_i) / decay))  over all observations i
        load(now)    = latency(now) * (in_flight + 1) / weight

    The longer nothing slow was heard of a node, the sooner it is tried again. This is what Finagle's `PeakEwma`
    amounts to: its reads fade the average, so under traffic a lower observation has next to no weight in it. Here a
    read changes nothing. Loads are compared by their logarithms, in which the fading is `-now / decay` on both sides
    and cancels out: a pick needs neither clock nor exponential, and an observation is one `max`::

        score = max(score, log(seconds) + observed_at / decay)

    The first answer of a node is not counted. It has the making of the connection in it, and a node that looks ten
    times slower than it is would be left alone for twenty seconds.

    A failure never looks fast: it counts as `failure_factor` times the latency known so far. Without that a server
    that answers 503 at once draws the traffic of all the others (linkerd2-proxy #4537, ingress-nginx #9882).

    Args:
        decay: Time constant of the fading in seconds (default 10, as in Finagle and Linkerd).
        failure_factor: What a failure multiplies the latency by (default 3).

    Raises:
        ConfigurationError: `decay` is not above 0 or `failure_factor` is below 1.
    """

    __slots__ = ("_log_factor", "_rate", "decay", "failure_factor")

    def __init__(self, decay: float = 10.0, failure_factor: float = 3.0) -> None:
        if not decay > 0:
            raise ConfigurationError(f"PeakEwma: decay is {decay!r}; give seconds above 0")
        if not failure_factor >= 1:
            raise ConfigurationError(f"PeakEwma: failure_factor is {failure_factor!r}; give at least 1")
        self.decay: float = decay
        self.failure_factor: float = failure_factor
        self._rate = 1.0 / decay
        self._log_factor = log(failure_factor)

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """Choose by latency and calls in flight."""
        count = len(nodes)
        if count == 1:
            return nodes[0]
        others = count - 1
        draw = int(rng.random() * count * others)  # one draw for both: a random call costs more than a division
        first = draw // others
        second = draw % others
        if second >= first:
            second += 1
        a = nodes[first]
        b = nodes[second]
        load_a = a.score
        load_b = b.score
        # an unknown node is taken at once, and then left alone until its first answer: one trial, not a flood
        if load_a == _UNKNOWN:
            return a if a.in_flight <= (b.in_flight if load_b == _UNKNOWN else 0) else b
        if load_b == _UNKNOWN:
            return a if b.in_flight else b
        if a.in_flight:
            load_a += log(a.in_flight + 1)
        if b.in_flight:
            load_b += log(b.in_flight + 1)
        if a.inverse_weight != b.inverse_weight:
            load_a += log(a.inverse_weight)
            load_b += log(b.inverse_weight)
        return a if load_a <= load_b else b

    def observe(self, node: Node, seconds: float, success: bool, now: float) -> None:
        """Learn from an attempt that was answered, or failed, after `seconds`."""
        score = log(seconds if seconds > _SHORTEST else _SHORTEST) + now * self._rate
        if not success:
            score = max(score, self._score_of_failure(node, now))
        if score > node.score:
            if success and not node.connected:
                node.connected = True  # this answer had the making of the connection in it: look again
            else:
                node.score = score

    def _score_of_failure(self, node: Node, now: float) -> float:
        if node.score == _UNKNOWN:
            return log(_FIRST_FAILURE) + now * self._rate
        return min(node.score + self._log_factor, log(_LONGEST_FAILURE) + now * self._rate)

    def latency(self, node: Node, now: float) -> float | None:
        """The latency in seconds that the policy reckons with; None while the node is unknown."""
        return None if node.score == _UNKNOWN else exp(node.score - now * self._rate)
