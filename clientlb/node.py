"""Node: an endpoint plus its live state. It survives every update that still has the endpoint.

With thousands of endpoints the pick is bound by cache misses, not by arithmetic. So an ordinary successful call touches
as little of a node as it can: its score and its calls in flight. What it counts is in `clientlb.figures`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from clientlb.endpoint import Endpoint
from clientlb.health.breaker import Breaker

_ONE = 1.0  # one object for all nodes of weight 1: fewer cache misses


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a server said about its load, as in ORCA's `endpoint-load-metrics`.

    Args:
        qps: Requests per second that it handles.
        utilization: How busy it is, by whatever limits it: 1.0 is all that it can do.
        eps: Errors per second among them (default 0).
        at: When it said so, in seconds of the balancer's clock.
    """

    qps: float
    utilization: float
    eps: float = 0.0
    at: float = 0.0


# Python lays out the slots of a class by name, after those of its base. So what a policy reads of each node that it
# draws is at the head of the object, and what an ordinary call reads of its node is next: in few lines of the cache


class _Drawn:
    __slots__ = ("in_flight", "score")


class _Called(_Drawn):
    __slots__ = ("column", "connected", "heard", "heard_at", "inverse_weight", "mean", "troubled")


class Node(_Called):
    """Live state of one endpoint. Only the balancer and its policy change it, under the balancer's lock.

    Attributes:
        endpoint: What discovery says.
        inverse_weight: 1 / weight.
        in_flight: Calls that were picked and not yet released.
        score: What a learning policy knows, in a measure of its own; -inf is nothing.
        mean: Mean latency in seconds, as far as a policy keeps one.
        heard: How many answers there are in that mean, old ones counting less.
        heard_at: When it last answered or failed, or was given a call while it had none, in seconds of the balancer's
            clock.
        breaker: Whether the endpoint may be tried.
        connected: It has answered before, so that an answer no longer has the making of the connection in it.
        rest: By what a policy multiplies the time for which it leaves a slow endpoint alone.
        report: What the server last said about its load, if it does.
        troubled: The breaker is not closed, or has counted a failure: a success is news to it.
        started: When its server started, in seconds of the balancer's clock: what its registry says, else when it
            joined; -inf is unknown, of one that was in the first list.
        column: Where its counters are in the figures of the balancer.
    """

    __slots__ = ("breaker", "endpoint", "report", "rest", "started")

    def __init__(self, endpoint: Endpoint, column: int = 0) -> None:
        self.describe(endpoint)
        self.in_flight: int = 0
        self.score: float = -inf
        self.mean: float = 0.0
        self.heard: float = 0.0
        self.heard_at: float = 0.0
        self.breaker: Breaker = Breaker()
        self.connected: bool = False
        self.report: LoadReport | None = None
        self.rest: float = _ONE
        self.started: float = -inf
        self.troubled: bool = False
        self.column: int = column

    def detached(self, now: float) -> Node:
        """The same node without its calls in flight, for a forked child: those run in the parent."""
        node = type(self)(self.endpoint, self.column)
        node.score = self.score * (node.inverse_weight / self.inverse_weight)  # of a young server that was less
        node.breaker, node.report = self.breaker.detached(now), self.report
        node.mean, node.heard, node.heard_at = self.mean, self.heard, self.heard_at
        node.connected, node.troubled, node.started = self.connected, self.troubled, self.started
        node.rest = self.rest
        return node

    def describe(self, endpoint: Endpoint) -> None:
        """Take over what discovery now says of the same server: weight, zone, metadata."""
        self.endpoint: Endpoint = endpoint
        self.inverse_weight: float = _ONE if endpoint.weight == 1.0 else 1.0 / endpoint.weight

    def __repr__(self) -> str:
        return f"<Node {self.endpoint} {self.breaker.state.value}, {self.in_flight} in flight>"
