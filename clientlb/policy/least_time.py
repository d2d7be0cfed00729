"""Least time: of four random nodes the one with the least latency squared times calls in flight.

A node's mean latency, times one more than its calls in flight, is how long a new call would take if the node did one
call after the other. Squaring the latency sends less to slow nodes than that, for at a slow node other clients have
calls, too, which this one cannot see. brpc's locality-aware balancer squares it; the comparison is otherwise that
of nginx's `least_time`. Four nodes are drawn rather than two: of two, both are slow in a quarter of the draws when half
of the fleet is. docs/policies.md has the figures.

Whatever is slow to compute is done when an answer comes, so that a pick only multiplies and compares.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import inf, sqrt

from clientlb.errors import ConfigurationError
from clientlb.node import Node

_UNKNOWN = -inf
"""The score of a node that has not answered yet."""
_DRAWN = 4
"""Nodes that a pick compares."""
_SHORTEST = 1e-6
"""Seconds. A latency has to be more than nothing, or calls in flight would not count."""
_FIRST_FAILURE = 1.0
"""Seconds. The latency that the failure of a node multiplies when neither it nor a peer has answered yet."""
_LONGEST_FAILURE = 30.0
"""Seconds. Failures in a row multiply a latency up to here."""
_TRIED_AGAIN = 1 / 32
"""Share of the picks that look whether a node has to be tried again. It bounds what the slowest nodes can cost a
client that calls so rarely that nothing is ever fresh."""


class LeastTime:
    """The least of four by the square of the mean latency times calls in flight, divided by weight::

        cost = mean ** 2 * (in_flight + 1) / weight

    The mean is that of the last `answers` answers or of the last `decay` seconds, whichever is less.

    A node that nothing was heard of for `retry_after` seconds gets one call to find out whether it is still as slow as
    it was. What comes of it is averaged with the mean of its peers, not with what was known before. A node that is new,
    or has just come back, gets one call at a time, and is drawn as often as the others, until it has answered twice:
    the first answer has the making of the connection in it and is not counted, the second is averaged with the mean
    of the peers, so that a lucky one does not draw everybody to the node.

    A failure never looks fast: it counts as `failure_factor` times the latency known so far, or as the time it took if
    that is more. Otherwise a server that answers 503 at once would draw the traffic of all the others.

    Args:
        answers: How many answers the mean remembers (default 28; of fewer, the mean is mostly luck).
        decay: Time constant of the mean in seconds (default 10, as in Finagle's `PeakEwma`).
        retry_after: Seconds without an answer, or a failure, after which a node is tried again (default 30).
        failure_factor: What a failure multiplies the latency by (default 3).

    Raises:
        ConfigurationError: A value is out of its range.
    """

    __slots__ = ("answers", "decay", "failure_factor", "retry_after")

    def __init__(
        self, answers: float = 28.0, decay: float = 10.0, retry_after: float = 30.0, failure_factor: float = 3.0
    ) -> None:
        for name, least in (("answers", answers), ("failure_factor", failure_factor)):
            if not least >= 1:
                raise ConfigurationError(f"LeastTime: {name} is {least!r}; give at least 1")
        for name, seconds in (("decay", decay), ("retry_after", retry_after)):
            if not seconds > 0:
                raise ConfigurationError(f"LeastTime: {name} is {seconds!r}; give seconds above 0")
        self.answers: float = answers
        self.decay: float = decay
        self.retry_after: float = retry_after
        self.failure_factor: float = failure_factor

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """Choose by latency and calls in flight."""
        count = len(nodes)
        if count <= _DRAWN:
            return nodes[0] if count == 1 else self._choose_of_few(nodes, now, rng)
        others = count - 1
        pairs = count * others
        number = int(rng.random() * pairs)  # one draw for two nodes: a random call costs more than a division
        first = number // others
        second = number % others
        if second >= first:
            second += 1
        chosen = nodes[first]
        node = nodes[second]
        least = chosen.score * (chosen.in_flight + 1)
        cost = node.score * (node.in_flight + 1)
        if cost < least:
            chosen = node
            least = cost
        place = rng.random() * pairs
        number = int(place)
        first = number // others
        second = number % others
        if second >= first:
            second += 1
        node = nodes[first]
        cost = node.score * (node.in_flight + 1)
        if cost < least:
            chosen = node
            least = cost
        node = nodes[second]
        cost = node.score * (node.in_flight + 1)
        if cost < least:
            chosen = node
            least = cost
        if least == _UNKNOWN:
            peers = [node for node in rng.sample(nodes, _DRAWN - 1) if node is not chosen]
            return self._choose_of_few([chosen, *peers], now, rng)
        # what is behind the point says nothing about the nodes drawn, so it serves as another draw
        if place - number < _TRIED_AGAIN and self._is_forgotten(node, now):
            self._try_again(node, (chosen,), now)
            return node
        return chosen

    def _choose_of_few(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """Choose one of all of these nodes, of some of which nothing may be known."""
        start = int(rng.random() * len(nodes))
        drawn = [*nodes[start:], *nodes[:start]]  # ties go to the first
        known = [node for node in drawn if node.score != _UNKNOWN]
        if not known:
            return min(drawn, key=lambda node: node.in_flight * node.inverse_weight)
        best = min(known, key=lambda node: node.score * (node.in_flight + 1))
        if len(known) < len(drawn):
            node = drawn[0]
            if node.score == _UNKNOWN and not node.in_flight:
                self._begin(node, known)
                return node
        if rng.random() < _TRIED_AGAIN and self._is_forgotten(drawn[0], now):
            self._try_again(drawn[0], known, now)
            return drawn[0]
        return best

    def _begin(self, node: Node, peers: Sequence[Node]) -> None:
        """Let a node's mean begin with that of its peers, which counts as one answer."""
        node.mean = sum(peer.mean for peer in peers) / len(peers)
        node.heard = 1.0

    def _is_forgotten(self, node: Node, now: float) -> bool:
        return now - node.heard_at > self.retry_after and not node.in_flight and node.score != _UNKNOWN

    def _try_again(self, node: Node, peers: Sequence[Node], now: float) -> None:
        """Prepare for an answer of a node that nothing was heard of. Until it comes, the node costs what it did."""
        self._begin(node, [peer for peer in peers if peer is not node] or peers)
        node.heard_at = now

    def observe(self, node: Node, seconds: float, success: bool, now: float) -> None:
        """Learn from an attempt that was answered, or failed, after `seconds`."""
        if not success:
            seconds = max(seconds, self._latency_of_failure(node))
            node.heard = 0.0
        elif not node.connected:
            node.connected = True  # this answer had the making of the connection in it: look again
            node.heard_at = now
            if node.score == _UNKNOWN:
                return
        if seconds < _SHORTEST:
            seconds = _SHORTEST
        # 1 / (1 + x) in place of exp(-x): it fades as well, and costs no call
        heard = node.heard * self.decay / (self.decay + now - node.heard_at) + 1.0
        if heard > self.answers:
            heard = self.answers
        mean = node.mean
        mean += (seconds - mean) / heard
        node.heard = heard
        node.mean = mean
        node.heard_at = now
        node.score = mean * mean * node.inverse_weight

    def _latency_of_failure(self, node: Node) -> float:
        known = self.latency(node) or node.mean or _FIRST_FAILURE
        return min(self.failure_factor * known, _LONGEST_FAILURE)

    def latency(self, node: Node, now: float = 0.0) -> float | None:
        """The latency in seconds that the policy reckons with; None while the node is unknown."""
        return None if node.score == _UNKNOWN else sqrt(node.score / node.inverse_weight)
