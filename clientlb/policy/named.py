"""The policies that an option can name. Those that need an argument, such as the wrappers, have no name."""

from __future__ import annotations

from collections.abc import Callable

from clientlb.errors import ConfigurationError
from clientlb.options import POLICY_NAMES
from clientlb.policy.base import Policy
from clientlb.policy.consistent import Rendezvous, RingHash
from clientlb.policy.least_request import LeastRequest
from clientlb.policy.least_time import LeastTime
from clientlb.policy.p2c import P2C
from clientlb.policy.simple import Random, RoundRobin
from clientlb.policy.weighted import WeightedRoundRobin

_MAKERS = (LeastTime, P2C, LeastRequest, WeightedRoundRobin, RoundRobin, Random, Rendezvous, RingHash)
POLICIES: dict[str, Callable[[], Policy]] = dict(zip(POLICY_NAMES, _MAKERS, strict=True))


def make_policy(policy: str | Callable[[], Policy]) -> Policy:
    """Make the policy that an option names, or that its callable makes.

    Raises:
        ConfigurationError: There is no policy of that name, or what the callable made is no policy.
    """
    if isinstance(policy, str):
        if policy not in POLICIES:
            raise ConfigurationError(f"policy {policy!r} does not exist; known: {', '.join(POLICY_NAMES)}")
        return POLICIES[policy]()
    made = policy()
    if not callable(getattr(made, "choose", None)):
        raise ConfigurationError(f"policy {policy!r} made {made!r}; give a callable that makes a Policy")
    return made
