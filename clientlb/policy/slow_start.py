"""Slow start: a server that has just started gets its share of the calls little by little.

The clock is the server's own start, as the registry tells it, so a client that starts slows nobody down, and a server
that was long there is not slowed because a client sees it for the first time (Dubbo's warm-up; Envoy counts from when
the client discovers an endpoint). The formula is Envoy's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from math import inf

from clientlb.errors import ConfigurationError
from clientlb.node import Node
from clientlb.policy.base import Policy, Request
from clientlb.policy.derived import Derived
from clientlb.policy.wrapper import Wrapper

_LEAST = 0.1
"""The least part of its weight that a server has (Envoy's `min_weight_percent`)."""
_STEPS = 50
"""How often a weight grows in a window."""


class SlowStart(Wrapper):
    """Divides what a call costs at a young server by a factor that grows with its age::

        factor = max(0.1, (age / window) ** (1 / aggression))

    It is a matter of weights: of use around a policy that divides the load by the weight (`LeastTime`, `P2C`,
    `LeastRequest`). A server whose start is unknown is old if it was in the first list that this client got; one that
    joins later counts from then. A pick among old servers costs one comparison more.

    Args:
        inner: The policy within: a name, or a callable that makes a `Policy`.
        window: Seconds from its start in which a server is young (default 30; Envoy leaves it to the user).
        aggression: Above 1 the weight grows faster at first, below 1 slower (default 1, as in Envoy: linear).

    Raises:
        ConfigurationError: `window` or `aggression` is not above 0.
    """

    __slots__ = ("_due", "_factors", "_noticed", "aggression", "window")

    def __init__(self, inner: str | Callable[[], Policy], window: float = 30.0, aggression: float = 1.0) -> None:
        super().__init__(inner)
        if not 0 < window < inf:
            raise ConfigurationError(f"SlowStart: window is {window!r}; give seconds above 0")
        if not 0 < aggression < inf:
            raise ConfigurationError(f"SlowStart: aggression is {aggression!r}; give a number above 0")
        self.window: float = window
        self.aggression: float = aggression
        self._factors: dict[Node, float] = {}  # of the young
        self._due = inf
        self._noticed = Derived(self._notice)

    def factor(self, age: float) -> float:
        """The part of its weight that a server of `age` seconds has."""
        if age >= self.window:
            return 1.0
        grown: float = (max(0.0, age) / self.window) ** (1.0 / self.aggression)
        return max(_LEAST, grown)

    def narrow(self, request: Request, nodes: Sequence[Node], rng: random.Random) -> Sequence[Node]:
        """All of them."""
        return nodes

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """Choose one, after the weights of the young have grown."""
        self._noticed.of(nodes)
        if now >= self._due:
            self._grow(now)
        return self._choose(nodes, now, rng)

    def choose_for(self, request: Request, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """The same for a call that said something about itself."""
        self._noticed.of(nodes)
        if now >= self._due:
            self._grow(now)
        return self._choose_for(request, nodes, now, rng)

    def share(self, node: Node, nodes: Sequence[Node]) -> float | None:
        """The part of its weight that a young node has; None for an old one."""
        return self._factors.get(node)

    def say(self, share: float) -> str:
        """How much of its weight it has."""
        return f"starts slowly, with {share:.0%} of its weight"

    def _notice(self, nodes: Sequence[Node]) -> None:
        """Take those that may be young for young; what is not is sorted out at once."""
        # a description may have come anew, and put a weight back; so all are looked at, young or not
        self._factors = {node: self._factors.get(node, 1.0) for node in (*self._factors, *nodes) if node.started > -inf}
        self._due = -inf if self._factors else inf

    def _grow(self, now: float) -> None:
        window = self.window
        young: dict[Node, float] = {}
        for node, before in self._factors.items():
            factor = self.factor(now - node.started)
            if factor == before == 1.0:
                continue
            weight = node.endpoint.weight * factor
            node.inverse_weight = 1.0 / weight
            node.score *= before / factor  # which was reckoned with the weight of then
            if factor < 1.0:
                young[node] = factor
        self._factors = young
        self._due = now + window / _STEPS if young else inf
