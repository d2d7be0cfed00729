"""What a policy is, and what a call may ask of it.

The least is `choose`. A policy that learns has `observe`, too; one that heeds what a call says about itself (a key, a
filter) has `choose_for`, and `fitting` if it can say whom a filter leaves; one that looks at what servers report has
`wants_reports = True`; one that has something to do now and then has `tend`. What a policy knows of a node it says with
`latency` and `describe`. The wrappers have all of these and hand on what the policy in them can do.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError
from clientlb.node import Node
from clientlb.options import CallKey, Where, require_key, require_where


class Policy(Protocol):
    """Chooses the next node. A policy that learns also has `observe`, as `LearningPolicy` does."""

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """Choose one of `nodes`, which is never empty.

        Args:
            nodes: Candidates; the same tuple until the list, an endpoint's description or its health changes.
            now: Seconds of the balancer's clock.
            rng: Source of randomness.
        """


@runtime_checkable
class LearningPolicy(Policy, Protocol):
    """A policy that is told how attempts went. What it learns belongs into the node, as with the shipped ones."""

    def observe(self, node: Node, seconds: float, success: bool, now: float) -> None:
        """Learn from an attempt that was answered, or failed, after `seconds`. Ignored outcomes do not get here."""


@runtime_checkable
class ReckoningPolicy(Policy, Protocol):
    """A policy that reckons with a latency for each node, and says which: for `Balancer.explain()` and the journal."""

    def latency(self, node: Node, now: float) -> float | None:
        """The latency in seconds that the policy reckons with; None while it knows none."""


@runtime_checkable
class DescribingPolicy(Policy, Protocol):
    """A policy that has something to say about a node, for `Balancer.explain()`."""

    def describe(self, node: Node, nodes: Sequence[Node], now: float) -> str | None:
        """Say in a few words what matters about `node` beyond its latency and its calls in flight; None is nothing.

        Args:
            node: Whom to describe. It may be ejected.
            nodes: The candidates as `choose` gets them now; possibly none.
            now: Seconds of the balancer's clock.
        """


@dataclass(frozen=True, slots=True)
class Request:
    """What a call says about itself: `Request.of(key="user-17")`, `Request.of(where={"version": "2"})`.

    Args:
        key: Calls with the same key go to the same endpoint, as far as `Rendezvous` or `RingHash` can arrange it.
        where: Pairs of a metadata name and the value that an endpoint should have there; see `matches`.
    """

    key: str | bytes | None = None
    where: frozenset[tuple[str, str]] = frozenset()

    @classmethod
    def of(cls, key: CallKey | None = None, where: Where | None = None) -> Request:
        """Make one from a key and a mapping.

        Raises:
            ConfigurationError: The key is neither text, bytes nor a whole number, or `where` is no mapping of text to
                text.
        """
        require_key(key)
        require_where(where)
        return cls(str(key) if isinstance(key, int) else key, frozenset((where or {}).items()))

    def matches(self, endpoint: Endpoint) -> bool:
        """Whether an endpoint has all that `where` asks for; `zone`, `version` and `id` are its own fields."""
        return all(_described(endpoint, name) == value for name, value in self.where)


_FIELDS = frozenset({"zone", "version", "id"})


def _described(endpoint: Endpoint, name: str) -> str | None:
    described: str | None = getattr(endpoint, name) if name in _FIELDS else None
    return endpoint.metadata.get(name) if described is None else described


@runtime_checkable
class RequestPolicy(Policy, Protocol):
    """A policy that heeds what a call says about itself."""

    def choose_for(self, request: Request, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """Choose one of `nodes` for a call that said something about itself."""


@runtime_checkable
class FilteringPolicy(RequestPolicy, Protocol):
    """A policy that gives certain endpoints to calls that ask for them, and can say which."""

    def fitting(self, request: Request, nodes: Sequence[Node]) -> Sequence[Node]:
        """Those of `nodes` that such a call may be given; possibly none, and of none always none."""


@runtime_checkable
class TendingPolicy(Policy, Protocol):
    """A policy that has something to do now and then, apart from picks."""

    def tend(self, nodes: Sequence[Node], now: float) -> float:
        """Do it; returns when to be called again, in seconds of the balancer's clock, and inf for never.

        Called before the next pick when that time has come, and when the list or a description in it has changed.

        Args:
            nodes: All nodes, whatever their health.
            now: Seconds of the balancer's clock.
        """


def wants_reports(policy: Policy) -> bool:
    """Whether a policy looks at `Node.report`: it has `wants_reports = True`. Else no answer is searched for one."""
    return bool(getattr(policy, "wants_reports", False))


def fitter(policy: Policy) -> Fitting:
    """What says which nodes `policy` may give to a call: without a word of its own those that match, or else any."""
    if isinstance(policy, FilteringPolicy):
        return policy.fitting
    return lambda request, nodes: [node for node in nodes if request.matches(node.endpoint)] or nodes


Choose = Callable[[Sequence[Node], float, random.Random], Node]
ChooseFor = Callable[[Request, Sequence[Node], float, random.Random], Node]
Fitting = Callable[[Request, Sequence[Node]], Sequence[Node]]


def chooser(policy: Policy) -> ChooseFor:
    """What chooses with `policy` for a call that says something about itself.

    A key that the policy does not heed is ignored: affinity makes calls cheaper, not right. A filter is not, for a call
    that asks for version 2 must not silently reach version 1.
    """
    if isinstance(policy, RequestPolicy):
        return policy.choose_for

    def choose(request: Request, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        if request.where:
            raise ConfigurationError(
                f"the call has a filter, which the policy {type(policy).__name__} does not heed; wrap it in Filter"
            )
        return policy.choose(nodes, now, rng)

    return choose
