"""Policies that look at nothing: round robin and random. Baselines, and right where all calls cost the same."""

from __future__ import annotations

import random
from collections.abc import Sequence

from clientlb.node import Node


class RoundRobin:
    """Takes the nodes in turn, from a random start so that many clients do not march in step."""

    __slots__ = ("_turn",)

    def __init__(self) -> None:
        self._turn: int | None = None

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """Choose the next node in turn."""
        turn = rng.randrange(len(nodes)) if self._turn is None else self._turn
        self._turn = turn + 1
        return nodes[turn % len(nodes)]


class Random:
    """Takes any node."""

    __slots__ = ()

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """Choose a node at random, all equally likely."""
        return nodes[int(rng.random() * len(nodes))]
