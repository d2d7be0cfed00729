"""Who is next. PURE: a policy chooses among nodes; `now` and `rng` are arguments.

A policy is one small class. It sees only nodes that may be tried: ejected endpoints and endpoints that a retry has to
avoid were taken out before. `choose` runs under the balancer's lock, so it must be quick and must not block.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from clientlb.errors import ConfigurationError
from clientlb.node import Node
from clientlb.options import POLICY_NAMES
from clientlb.policy.p2c import P2C, PeakEwma
from clientlb.policy.simple import Random, RoundRobin


class Policy(Protocol):
    """Chooses the next node. A policy that learns also has `observe`, as `LearningPolicy` does."""

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """Choose one of `nodes`, which is never empty.

        Args:
            nodes: Candidates; the same tuple until the list or the health of an endpoint changes.
            now: Seconds of the balancer's clock.
            rng: Source of randomness.
        """


@runtime_checkable
class LearningPolicy(Policy, Protocol):
    """A policy that is told how attempts went."""

    def observe(self, node: Node, seconds: float, success: bool, now: float) -> None:
        """Learn from an attempt that was answered, or failed, after `seconds`. Ignored outcomes do not get here."""


POLICIES: dict[str, Callable[[], Policy]] = dict(zip(POLICY_NAMES, (PeakEwma, P2C, RoundRobin, Random), strict=True))


def make_policy(policy: str | Callable[[], Policy]) -> Policy:
    """Make the policy that an option names, or that its callable makes.

    Raises:
        ConfigurationError: What the callable made is no policy.
    """
    if isinstance(policy, str):
        return POLICIES[policy]()
    made = policy()
    if not callable(getattr(made, "choose", None)):
        raise ConfigurationError(f"policy {policy!r} made {made!r}; give a callable that makes a Policy")
    return made


__all__ = ["P2C", "POLICIES", "LearningPolicy", "PeakEwma", "Policy", "Random", "RoundRobin", "make_policy"]
