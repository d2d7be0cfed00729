"""What the tests of policies have in common: nodes, and counting who is chosen."""

import random
from collections import Counter

from clientlb import Endpoint
from clientlb.node import Node
from clientlb.policy import Request


def nodes(count, *, weights=None, zones=None, metadata=None):
    """Nodes with addresses that differ; each of the others is a sequence that is gone round."""

    def pick(values, number):
        return values[number % len(values)] if values else None

    return tuple(
        Node(
            Endpoint(
                f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}",
                80,
                weight=pick(weights, number) or 1.0,
                zone=pick(zones, number),
                metadata=pick(metadata, number) or {},
            )
        )
        for number in range(count)
    )


def chosen(policy, among, picks, seed=42, now=0.0):
    """How often each node was chosen."""
    rng = random.Random(seed)
    return Counter(policy.choose(among, now, rng) for _ in range(picks))


def shares(policy, among, picks=20_000, **how):
    counted = chosen(policy, among, picks, **how)
    return [counted[node] / picks for node in among]


def owner(policy, among, key):
    return policy.choose_for(Request.of(key=key), among, 0.0, random.Random(1))
