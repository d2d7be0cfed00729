"""Slow start for policies that have none of their own: a young server gets its share of the calls little by little."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from clientlb.node import Node
from clientlb.policy.base import Policy, Request
from clientlb.policy.wrapper import Wrapper
from clientlb.policy.youth import Youth, describe


class SlowStart(Wrapper):
    """Gives a server that has just started less than its weight, growing with its age; `youth` has the formula.

    Of use around a policy that divides the load by the weight: `P2C`, `LeastRequest`. `LeastTime` has the same as its
    option `slow_start`; inside of this wrapper, the wrapper's settings count. A server whose start is unknown is old if
    it was in the first list that this client got; one that joins later counts from then.

    Args:
        inner: The policy within: a name, or a callable that makes a `Policy`.
        window: Seconds from its start in which a server is young (default 10).
        aggression: Above 1 the weight grows faster at first, below 1 slower (default 1, as in Envoy: linear).

    Raises:
        ConfigurationError: `window` is negative, or `aggression` is not above 0.
    """

    __slots__ = ("_youth",)

    def __init__(self, inner: str | Callable[[], Policy], window: float = 10.0, aggression: float = 1.0) -> None:
        super().__init__(inner)
        self._youth = Youth(window, aggression)

    def tend(self, nodes: Sequence[Node], now: float) -> float:
        """Let the weights of the young grow."""
        return self._youth.tend(nodes, now)

    def narrow(self, request: Request, nodes: Sequence[Node], rng: random.Random) -> Sequence[Node]:
        """All of them."""
        return nodes

    def share(self, node: Node, nodes: Sequence[Node]) -> float | None:
        """The part of its weight that a young node has; None for an old one."""
        return self._youth.factor(node)

    def say(self, share: float) -> str:
        """How much of its weight it has."""
        return describe(share) or ""
