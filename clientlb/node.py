"""Node: an endpoint plus its live state. It survives every update that still has the endpoint.

With thousands of endpoints the pick is bound by cache misses, not by arithmetic. So an ordinary successful call touches
as little of a node as it can: its score and its calls in flight. What it counts is in `clientlb.figures`.
"""

from __future__ import annotations

from math import inf

from clientlb.endpoint import Endpoint
from clientlb.health.breaker import Breaker

_ONE = 1.0  # one object for all nodes of weight 1: fewer cache misses


class Node:
    """Live state of one endpoint. Only the balancer and its policy change it, under the balancer's lock.

    Attributes:
        endpoint: What discovery says.
        inverse_weight: 1 / weight.
        in_flight: Calls that were picked and not yet released.
        score: What a learning policy knows, in a measure of its own; -inf is nothing.
        breaker: Whether the endpoint may be tried.
        connected: It has answered before, so that an answer no longer has the making of the connection in it.
        troubled: The breaker is not closed, or has counted a failure: a success is news to it.
        column: Where its counters are in the figures of the balancer.
    """

    __slots__ = (
        "breaker",
        "column",
        "connected",
        "endpoint",
        "in_flight",
        "inverse_weight",
        "score",
        "troubled",
    )

    def __init__(self, endpoint: Endpoint, column: int = 0) -> None:
        self.describe(endpoint)
        self.in_flight: int = 0
        self.score: float = -inf
        self.breaker: Breaker = Breaker()
        self.connected: bool = False
        self.troubled: bool = False
        self.column: int = column

    def detached(self) -> Node:
        """The same node without its calls in flight, for a forked child: those run in the parent."""
        node = Node(self.endpoint, self.column)
        node.score, node.breaker = self.score, self.breaker
        node.connected, node.troubled = self.connected, self.troubled
        return node

    def describe(self, endpoint: Endpoint) -> None:
        """Take over what discovery now says of the same server: weight, zone, metadata."""
        self.endpoint: Endpoint = endpoint
        self.inverse_weight: float = _ONE if endpoint.weight == 1.0 else 1.0 / endpoint.weight

    def __repr__(self) -> str:
        return f"<Node {self.endpoint} {self.breaker.state.value}, {self.in_flight} in flight>"
