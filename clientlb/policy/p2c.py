"""Power of a few choices: draw some different nodes, take the least loaded one.

O(1) in the number of endpoints, and clients do not herd: each looks at a few of its own (Mitzenmacher, "The Power of
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
    """The least loaded of a few, by latency times calls in flight, divided by weight.

    A node's latency is the mean of what was observed in the last `decay` seconds or so. An answer that took more than
    `peak` times that long is believed at once: the mean begins anew with it. The longer nothing was heard of a node,
    the less its latency counts, so that one that was slow is tried again::

        latency(now) = mean * exp(-(now - heard_at) / fade)
        load(now)    = max(latency(now), silence(now)) * (in_flight + 1) / weight

    The silence is the time for which a node with calls in flight has answered none of them, so that one that hangs is
    seen before its first timeout.

    Finagle's `PeakEwma` jumps to every answer above the mean, and its reads fade the mean, so it is the recent maximum
    rather than a mean: too noisy to tell a fast node from one that is half as fast. Here a read changes nothing. Loads
    are compared by their logarithms, in which the fading is `-now / fade` on all sides and cancels out::

        score = log(mean / weight) + heard_at / fade

    The first answer of a node is not counted: it has the making of the connection in it. A node of which nothing is
    known yet is taken as often as if all were alike, and has one call in flight at most until it has answered, so
    that clients which all hear of a new endpoint at once do not rush to it.

    A failure never looks fast: it counts as `failure_factor` times the latency known so far. Without that a server
    that answers 503 at once draws the traffic of all the others (linkerd2-proxy #4537, ingress-nginx #9882).

    Args:
        choices: Nodes drawn for each call, an even number (default 4). With two, the slow half of a
            fleet gets a quarter of the calls, however well it is known to be slow.
        decay: Time constant of the mean in seconds (default 10, as in Finagle and Linkerd).
        fade: Time constant in seconds with which a latency is forgotten that nothing is heard of (default 30).
        peak: An answer that took so many times the mean is believed at once (default 4).
        failure_factor: What a failure multiplies the latency by (default 3).
        silence: Whether the silence of a node with calls in flight counts (default True).
        prior: Whether an unknown node is taken as if it were like the others (default True); else at once.

    Raises:
        ConfigurationError: A value is out of its range.
    """

    __slots__ = ("_pairs", "_rate", "choices", "decay", "fade", "failure_factor", "peak", "prior", "silence")

    def __init__(
        self,
        choices: int = 4,
        decay: float = 10.0,
        fade: float = 30.0,
        peak: float = 4.0,
        failure_factor: float = 3.0,
        silence: bool = True,
        prior: bool = True,
    ) -> None:
        if choices < 2 or choices % 2:
            raise ConfigurationError(f"PeakEwma: choices is {choices!r}; give an even number of nodes, at least 2")
        for name, seconds in (("decay", decay), ("fade", fade)):
            if not seconds > 0:
                raise ConfigurationError(f"PeakEwma: {name} is {seconds!r}; give seconds above 0")
        for name, factor in (("peak", peak), ("failure_factor", failure_factor)):
            if not factor >= 1:
                raise ConfigurationError(f"PeakEwma: {name} is {factor!r}; give at least 1")
        self.choices: int = choices
        self.decay: float = decay
        self.fade: float = fade
        self.peak: float = peak
        self.failure_factor: float = failure_factor
        self.silence: bool = silence
        self.prior: bool = prior
        self._rate = 1.0 / fade
        self._pairs = range(choices // 2)

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """Choose by latency and calls in flight."""
        count = len(nodes)
        if count <= self.choices:
            chosen = nodes[0] if count == 1 else self._choose_of_few(nodes, now, rng)
        else:
            draw = rng.random
            others = count - 1
            pairs = count * others
            chosen = nodes[0]
            least = inf
            for _ in self._pairs:
                number = int(draw() * pairs)  # one draw for two nodes: a random call costs more than a division
                first = number // others
                second = number % others
                if second >= first:
                    second += 1
                a = nodes[first]
                b = nodes[second]
                load_a = self._load(a, now) if a.in_flight else a.score
                load_b = self._load(b, now) if b.in_flight else b.score
                if load_b < load_a:
                    a = b
                    load_a = load_b
                if load_a < least:
                    chosen = a
                    least = load_a
            if least == _UNKNOWN:
                chosen = self._choose_of_few(rng.sample(nodes, self.choices), now, rng)
        if not chosen.in_flight:
            chosen.busy_since = now
        return chosen

    def _choose_of_few(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """Choose one of all of these nodes, of some of which nothing may be known."""
        start = int(rng.random() * len(nodes))
        drawn = [*nodes[start:], *nodes[:start]]  # ties go to the first
        known = [node for node in drawn if node.score != _UNKNOWN]
        if not known:
            return min(drawn, key=lambda node: node.in_flight * node.inverse_weight)
        idle = [node for node in drawn if node.score == _UNKNOWN and not node.in_flight]
        if idle and (not self.prior or rng.random() * len(drawn) < len(idle)):
            return idle[0]
        return min(known, key=lambda node: self._load(node, now))

    def _load(self, node: Node, now: float) -> float:
        """The logarithm of a node's load, leaving out what is the same for all nodes at this moment."""
        load = node.score
        in_flight = node.in_flight
        if not in_flight or load == _UNKNOWN:
            return load
        if self.silence:
            silent = now - max(node.heard_at, node.busy_since)
            if silent > _SHORTEST:
                load = max(load, log(silent * node.inverse_weight) + now * self._rate)
        return load + log(in_flight + 1)

    def observe(self, node: Node, seconds: float, success: bool, now: float) -> None:
        """Learn from an attempt that was answered, or failed, after `seconds`."""
        if not success:
            seconds = max(seconds, self._latency_of_failure(node, now))
        elif not node.connected:
            node.connected = True  # this answer had the making of the connection in it: look again
            node.heard_at = now
            if node.score == _UNKNOWN:
                return
        if seconds < _SHORTEST:
            seconds = _SHORTEST
        mean = node.mean
        if not success or node.score == _UNKNOWN or seconds > self.peak * mean:
            node.mean = mean = seconds
            node.heard = 1.0
        else:
            # 1 / (1 + x) in place of exp(-x): it fades as well, and costs no call
            node.heard = heard = node.heard * self.decay / (self.decay + now - node.heard_at) + 1.0
            node.mean = mean = mean + (seconds - mean) / heard
        node.heard_at = now
        node.score = log(mean * node.inverse_weight) + now * self._rate

    def _latency_of_failure(self, node: Node, now: float) -> float:
        latency = self.latency(node, now)
        return _FIRST_FAILURE if latency is None else min(self.failure_factor * latency, _LONGEST_FAILURE)

    def latency(self, node: Node, now: float) -> float | None:
        """The latency in seconds that the policy reckons with; None while the node is unknown."""
        return None if node.score == _UNKNOWN else node.mean * exp((node.heard_at - now) * self._rate)
