"""Derived: what a policy works out from a tuple of nodes, kept for as long as the tuple is used.

The balancer hands out the same tuple until something changes, so one look at its identity says that a table is still
good, for ten endpoints and for ten thousand. A retry has a tuple of its own, without those that it tried, and wrappers
take turns between a few; so the tables of the last few tuples are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from cachetools import LRUCache

from clientlb.node import Node

Table = TypeVar("Table")

_KEPT = 8


class Derived(Generic[Table]):
    """A table for each of the last few tuples of nodes.

    Args:
        build: Makes the table of a tuple.
    """

    __slots__ = ("_build", "_kept", "_nodes", "_table")

    def __init__(self, build: Callable[[Sequence[Node]], Table]) -> None:
        self._build = build
        self._nodes: Sequence[Node] | None = None
        self._table: Table
        # an entry holds its tuple, so no other tuple can have the same id meanwhile
        self._kept: LRUCache[int, tuple[Sequence[Node], Table]] = LRUCache(_KEPT)

    def of(self, nodes: Sequence[Node]) -> Table:
        """The table of `nodes`, made now if it is not known."""
        if nodes is not self._nodes:
            found = self._kept.get(id(nodes))
            if found is None:
                found = self._kept[id(nodes)] = (nodes, self._build(nodes))
            self._nodes, self._table = found
        return self._table

    def forget(self) -> None:
        """Make every table anew when it is next asked for."""
        self._kept.clear()
        self._nodes = None
