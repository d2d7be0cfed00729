"""Least time: of four random nodes the one with the least latency squared times calls in flight. The default policy.

A node's mean latency, times one more than its calls in flight, is how long a new call would take if the node did one
call after the other. Squaring the latency sends less to slow nodes than that, for at a slow node other clients have
calls, too, which this one cannot see. brpc's locality-aware balancer squares it; the comparison is otherwise that
of nginx's `least_time` and of Finagle's `PeakEwma`. docs/policies.md has the figures.

Whatever is slow to compute is done when an answer comes, so that a pick only multiplies and compares. Among thousands
of nodes each one that is looked at costs a wait for the memory; there two are drawn: see `clientlb.policy.draws`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from math import inf, sqrt

from cachetools import LRUCache

from clientlb.node import Node
from clientlb.policy.draws import Draw, Steps, draws
from clientlb.policy.youth import Youth, describe
from clientlb.require import require_number

_UNKNOWN = -inf
"""The score of a node that has not answered yet."""
_KEPT = 16
"""Numbers of nodes whose patterns are kept."""
_SHORTEST = 1e-6
"""Seconds. A latency has to be more than nothing, or calls in flight would not count."""
_FIRST_FAILURE = 1.0
"""Seconds. The latency that the failure of a node multiplies when neither it nor a peer has answered yet."""
_LONGEST_FAILURE = 30.0
"""Seconds. Failures in a row multiply a latency up to here."""
_REST = 30.0
"""Latencies of its own for which a node rests at first. So a fast one that only seemed slow is back soon."""
_LONGEST_REST = 1e6
"""Times that. The rest of a node that stays slow doubles up to here."""
_ONCE = 2.0
"""Answers in the mean of a node that answered once since it was tried: that of its peers, and its own."""
_FEW = 10
"""Nodes up to which a pick that looks for one to be tried again looks at all that are drawn. Of more nodes, to look at
others than the first one made calls slower."""
_LEAST_HEARD = 1e-9
"""Answers. Of a peer that has faded to nothing, so much is left."""
_PAUSE = 1.0
"""Seconds without an answer, from which on the mean fades. Busy nodes are spared the arithmetic."""


class LeastTime:
    """The least of four by the square of the latency times calls in flight, divided by weight::

        cost = max(mean, silence) ** 2 * (in_flight + 1) / weight

    The mean is that of the last `answers` answers; where they come seconds apart, those of the last `decay` seconds
    count most. The silence is the time for which a node with calls in flight has answered none of them, so that one
    that hangs is seen before its first timeout.

    A node that had no call for thirty times its latency gets one, to find out whether it is still as slow as it was.
    Else a client with few calls at a time would give none to a server of which the only answers came while it was
    warming up. While it stays slow, it rests twice as long each time, at most for `retry_after` seconds. What comes of
    the call is averaged with the mean of its peers, in which those with more answers count more, not with what was
    known before. A node that is new, or has just come back, gets one call at a time, and is drawn as often as the
    others, until it has answered twice: the first answer has the making of the connection in it and is not counted, the
    second is averaged with the mean of the peers, so that a lucky one does not draw everybody to the node.

    A failure never looks fast: it counts as `failure_factor` times the latency known so far, or as the time it took if
    that is more. Otherwise a server that answers 503 at once would draw the traffic of all the others (linkerd2-proxy
    #4537, ingress-nginx #9882).

    A server that has just started gets less than its weight for the first `slow_start` seconds of its life, growing
    with its age: see `clientlb.policy.youth`.

    From a thousand nodes on, two are drawn instead of four.

    Args:
        answers: How many answers the mean remembers (default 28; of fewer, the mean is mostly luck).
        decay: Time constant of the mean in seconds (default 10, as in Finagle's `PeakEwma`).
        retry_after: Seconds without a call after which the slowest nodes are tried again (default 10); `failure_factor`
            times as long, however fast they were, if their last call failed.
        failure_factor: What a failure multiplies the latency by (default 3).
        slow_start: Seconds from its start in which a server is young (default 10); 0 for no slow start.

    Raises:
        ConfigurationError: A value is out of its range.
    """

    __slots__ = (
        "_count",
        "_draws",
        "_patterns",
        "_youth",
        "answers",
        "decay",
        "failure_factor",
        "retry_after",
    )

    def __init__(
        self,
        answers: float = 28.0,
        decay: float = 10.0,
        retry_after: float = 10.0,
        failure_factor: float = 3.0,
        slow_start: float = 10.0,
    ) -> None:
        for name, least in (("answers", answers), ("failure_factor", failure_factor)):
            require_number(f"LeastTime: {name}", least, at_least=1)
        for name, seconds in (("decay", decay), ("retry_after", retry_after)):
            require_number(f"LeastTime: {name}", seconds, above=0)
        self.answers: float = answers
        self.decay: float = decay
        self.retry_after: float = retry_after
        self.failure_factor: float = failure_factor
        self._youth = Youth(slow_start)
        self._count = 0
        self._draws: Iterator[Draw] = iter(())
        self._patterns: LRUCache[int, Iterator[Draw]] = LRUCache(_KEPT)

    # ------------------------------------------------------------------ who is next

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """Choose by latency and calls in flight."""
        count = len(nodes)
        if count != self._count:
            if count == 1:
                self._begin(nodes[0], now)
                return nodes[0]
            self._draw_among(count, rng)
        # Python counts negative indices from the end, so a step down from the first one never leaves the tuple
        try:
            first, steps = next(self._draws)
        except StopIteration:
            first, steps = self._draw_anew(count, rng)
        second, third, fourth = steps
        chosen = nodes[first]
        least = chosen.score
        if chosen.in_flight:  # of most clients, most nodes are idle, and a product is what costs most here
            least *= chosen.in_flight + 1
        node = nodes[first - second]
        cost = node.score
        if node.in_flight:
            cost *= node.in_flight + 1
        if cost < least:
            chosen = node
            least = cost
        if third:
            node = nodes[first - third]
            cost = node.score
            if node.in_flight:
                cost *= node.in_flight + 1
            if cost < least:
                chosen = node
                least = cost
            node = nodes[first - fourth]
            cost = node.score
            if node.in_flight:
                cost *= node.in_flight + 1
            if cost < least:
                chosen = node
                least = cost
        if least == _UNKNOWN or not second:
            return self._choose_with_care(_drawn(nodes, first, steps), now, look=not second)
        if not chosen.in_flight:
            if now - chosen.heard_at > _PAUSE:
                self._fade(chosen, now)
            chosen.heard_at = now
        elif now - chosen.heard_at > chosen.mean:  # silent; that can only make a cost higher, so else it is the least
            return self._choose_with_care(_drawn(nodes, first, steps), now, look=False)
        return chosen

    def _draw_among(self, count: int, rng: random.Random) -> None:
        """Draw among so many nodes from now on. Retries and wrappers take turns between a few numbers of nodes."""
        pattern = self._patterns.get(count)
        if pattern is None:
            pattern = self._patterns[count] = draws(count, rng)
        self._draws = pattern
        self._count = count

    def _draw_anew(self, count: int, rng: random.Random) -> Draw:
        """Begin another round, when all of thousands have come first."""
        self._draws = self._patterns[count] = draws(count, rng)
        return next(self._draws)

    def _choose_with_care(self, drawn: Sequence[Node], now: float, *, look: bool) -> Node:
        """Choose one of `drawn`, of some of which nothing may be known, and others may be silent.

        The first one is random. If it is unknown, it is taken; one that has been forgotten only in picks that `look`.
        """
        first = drawn[0]
        known = [node for node in drawn if node.score != _UNKNOWN]
        if not known:
            return min(drawn, key=lambda node: node.in_flight * node.inverse_weight)
        tried: Node | None = None
        if first.score == _UNKNOWN:
            tried = None if first.in_flight else first
        elif look:
            candidates = known if self._count <= _FEW else known[:1]
            tried = next((node for node in candidates if self._is_forgotten(node, now)), None)
            if tried is not None:
                tried.rest = min(2.0 * tried.rest, _LONGEST_REST) if tried.heard <= _ONCE else 1.0
        if tried is None:
            chosen = min(known, key=lambda node: self._cost(node, now))
            self._begin(chosen, now)
            return chosen
        # its mean begins with that of its peers, which counts as one answer; until its own comes, it costs the same
        tried.mean = _mean_of([node for node in known if node is not tried] or known)
        tried.heard = 1.0
        tried.heard_at = now
        return tried

    def _is_forgotten(self, node: Node, now: float) -> bool:
        if node.in_flight:
            return False
        patience = self.retry_after
        if node.troubled:
            patience *= self.failure_factor
        else:
            patience = min(patience, _REST * node.rest * node.mean)
        return now - node.heard_at > patience

    def _begin(self, node: Node, now: float) -> None:
        """Note that a node begins to have calls in flight, if it does."""
        if not node.in_flight:
            if now - node.heard_at > _PAUSE:
                self._fade(node, now)
            node.heard_at = now

    def _cost(self, node: Node, now: float) -> float:
        """The cost of a call at a node."""
        silence = now - node.heard_at
        if node.in_flight and silence > node.mean:
            return max(node.score, silence * silence * node.inverse_weight) * (node.in_flight + 1)
        return node.score * (node.in_flight + 1)

    def tend(self, nodes: Sequence[Node], now: float) -> float:
        """Let the weights of the young grow."""
        return self._youth.tend(nodes, now)

    # ------------------------------------------------------------------ how it went

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
        if seconds > _PAUSE:
            self._fade(node, now)
        heard = node.heard + 1.0
        if heard > self.answers:
            heard = self.answers
        mean = node.mean
        mean += (seconds - mean) / heard
        node.heard = heard
        node.mean = mean
        node.heard_at = now
        node.score = mean * mean * node.inverse_weight

    def _fade(self, node: Node, now: float) -> None:
        """Let the answers of a node count less after a time without any. 1 / (1 + x) fades as exp(-x) does."""
        node.heard *= self.decay / (self.decay + now - node.heard_at)

    def _latency_of_failure(self, node: Node) -> float:
        known = self.latency(node) or node.mean or _FIRST_FAILURE
        return min(self.failure_factor * known, _LONGEST_FAILURE)

    def latency(self, node: Node, now: float = 0.0) -> float | None:
        """The latency in seconds that the policy reckons with; None while the node is unknown."""
        return None if node.score == _UNKNOWN else sqrt(node.score / node.inverse_weight)

    def describe(self, node: Node, nodes: Sequence[Node], now: float) -> str | None:
        """Say how much of its weight a young node has."""
        return describe(self._youth.factor(node))


def _mean_of(peers: Sequence[Node]) -> float:
    """The mean latency of some nodes. Who had few answers, or none for a while, may have been met at a bad moment."""
    weights = [node.heard + _LEAST_HEARD for node in peers]
    return sum(node.mean * weight for node, weight in zip(peers, weights, strict=True)) / sum(weights)


def _drawn(nodes: Sequence[Node], first: int, steps: Steps) -> list[Node]:
    """The nodes of a draw, each of them once."""
    return [nodes[first - step] for step in dict.fromkeys((0, *steps))]
