"""Wrapper: a policy around another one, which leaves fewer nodes to choose from."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from math import inf

from clientlb.health.breaker import State
from clientlb.node import Node
from clientlb.policy.base import (
    DescribingPolicy,
    LearningPolicy,
    Policy,
    ReckoningPolicy,
    Request,
    TendingPolicy,
    chooser,
    fitter,
    wants_reports,
)
from clientlb.policy.named import make_policy

_NO_REQUEST = Request()


class Wrapper(ABC):
    """Narrows the nodes down, and lets the policy within choose.

    A wrapper is given as `functools.partial(Subset, "least_time", size=20)`, and may wrap another wrapper. A single
    candidate, such as an endpoint that is to be probed, is chosen as it is.

    Args:
        inner: The policy within: a name, or a callable that makes a `Policy`.
    """

    __slots__ = ("_choose", "_choose_for", "_fitting", "_observe", "inner")

    def __init__(self, inner: str | Callable[[], Policy]) -> None:
        self.inner: Policy = make_policy(inner)
        self._choose = self.inner.choose
        self._choose_for = chooser(self.inner)
        self._fitting = fitter(self.inner)
        self._observe = self.inner.observe if isinstance(self.inner, LearningPolicy) else None

    @property
    def wants_reports(self) -> bool:
        """Whether the policy within looks at what servers report."""
        return wants_reports(self.inner)

    @abstractmethod
    def narrow(self, request: Request, nodes: Sequence[Node], rng: random.Random) -> Sequence[Node]:
        """The nodes to choose from, of which there is at least one. The same tuple as long as nothing changes."""

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """Choose one of those that are left."""
        if len(nodes) == 1:
            return self._choose(nodes, now, rng)
        return self._choose(self.narrow(_NO_REQUEST, nodes, rng), now, rng)

    def choose_for(self, request: Request, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """Choose one of those that are left, for a call that said something about itself."""
        return self._choose_for(request, self.narrow(request, nodes, rng), now, rng)

    def fitting(self, request: Request, nodes: Sequence[Node]) -> Sequence[Node]:
        """Those that the policy within may give to such a call."""
        return self._fitting(request, nodes)

    def observe(self, node: Node, seconds: float, success: bool, now: float) -> None:
        """Let the policy within learn."""
        if self._observe is not None:
            self._observe(node, seconds, success, now)

    def tend(self, nodes: Sequence[Node], now: float) -> float:
        """Let the policy within do what it has to do."""
        return self.inner.tend(nodes, now) if isinstance(self.inner, TendingPolicy) else inf

    def latency(self, node: Node, now: float) -> float | None:
        """The latency in seconds that the policy within reckons with, if it does."""
        return self.inner.latency(node, now) if isinstance(self.inner, ReckoningPolicy) else None

    def describe(self, node: Node, nodes: Sequence[Node], now: float) -> str | None:
        """Say whether a node is left, and what the policy within says of it."""
        share = self.share(node, nodes) if node.breaker.state is State.CLOSED else None
        said = None if share is None else self.say(share)
        inner = self.inner
        further = inner.describe(node, nodes, now) if isinstance(inner, DescribingPolicy) and share != 0.0 else None
        return "; ".join(filter(None, (said, further))) or None

    def share(self, node: Node, nodes: Sequence[Node]) -> float | None:
        """The share of the calls for which one of `nodes` is among those that are left; None if nothing can be said."""
        return None

    def say(self, share: float) -> str:
        """Put the share of a node into words."""
        return f"a candidate in {share:.0%} of the calls"
