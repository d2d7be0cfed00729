"""Youth: the weights of servers that have just started, while they grow.

The clock is the server's own start, as the registry tells it, so a client that starts slows nobody down, and a server
that was long there is not slowed because a client sees it for the first time (Dubbo's warm-up; Envoy counts from when
the client discovers an endpoint). The formula is Envoy's.

All of it happens when the list changes and a few times per second while somebody is young (`TendingPolicy`): picks read
`Node.inverse_weight` as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from clientlb.node import Node
from clientlb.require import require_number

_LEAST = 0.1
"""The least part of its weight that a server has (Envoy's `min_weight_percent`)."""
_MOST = 1.4
"""How many times its share an old server may get because others are young (Envoy's overprovisioning factor). Where most
servers are new, as after a deployment, the few old ones could not carry what the others are spared."""
_STEPS = 50
"""How often a weight grows in a window."""


class Youth:
    """Divides the inverse weight and the score of young nodes by a factor that grows with their age::

        factor = max(0.1, 1 - (1 - 1 / 1.4) / share of the nodes that are young, (age / window) ** (1 / aggression))

    Args:
        window: Seconds from its start in which a server is young; 0: none is.
        aggression: Above 1 the weight grows faster at first, below 1 slower.

    Raises:
        ConfigurationError: `window` is negative, or `aggression` is not above 0.
    """

    __slots__ = ("_aggression", "_factors", "_window")

    def __init__(self, window: float, aggression: float = 1.0) -> None:
        require_number("slow start: window", window, at_least=0)
        require_number("slow start: aggression", aggression, above=0)
        self._window = window
        self._aggression = aggression
        self._factors: dict[Node, float] = {}  # of the young

    def factor(self, node: Node) -> float | None:
        """The part of its weight that a young node has; None of an old one."""
        return self._factors.get(node)

    def tend(self, nodes: Sequence[Node], now: float) -> float:
        """Let the weights grow; returns when to do it again."""
        window = self._window
        young = [node for node in nodes if now - node.started < window]
        known = self._factors
        if not young and not known:
            return inf
        grown = dict.fromkeys(known, 1.0)
        if young:
            least = max(_LEAST, 1.0 - (1.0 - 1.0 / _MOST) * len(nodes) / len(young))
            grown |= {node: max(least, self._part(now - node.started)) for node in young}
        for node, factor in grown.items():
            node.inverse_weight = 1.0 / (node.endpoint.weight * factor)
            node.score *= known.get(node, 1.0) / factor  # which was reckoned with the weight of then
        self._factors = {node: grown[node] for node in young}
        return now + window / _STEPS if young else inf

    def _part(self, age: float) -> float:
        part: float = (max(0.0, age) / self._window) ** (1.0 / self._aggression)
        return part


def describe(factor: float | None) -> str | None:
    """How much of its weight a node has, in words."""
    return None if factor is None else f"has just started and has {factor:.0%} of its weight"
