"""Gaze: which nodes a policy looks at while it chooses. Exact, and the policy need not know of it.

The nodes of a balancer with a journal are of a class of their own, of which each reading of live state (calls in
flight, score, mean, load report, ...) is noted while the policy chooses. A sequence that notes which of its members are
taken would see less and more: policies keep tables of nodes, and `rng.sample` copies all to draw a few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from clientlb.node import Node

_NOT_LIVE = frozenset({"endpoint", "inverse_weight", "breaker", "column", "started", "troubled"})
"""What says nothing about a node's load. Tables that policies make of a whole list look at these."""


class Gaze:
    """Notes the nodes of which live state is read.

    Attributes:
        seen: Whom it saw last, in order. They are kept as the keys of a dict.
        node_type: What the nodes have to be.
    """

    __slots__ = ("_thread", "node_type", "seen")

    def __init__(self) -> None:
        self.seen: dict[Node, None] = {}
        self._thread = 0  # of the choice that is under way: others may read a node meanwhile, to show it
        slots = {name for base in Node.__mro__ for name in getattr(base, "__slots__", ())}
        live = {name: self._noting(name) for name in slots - _NOT_LIVE}
        self.node_type: type[Node] = type("JournaledNode", (Node,), {"__slots__": (), "__doc__": Node.__doc__, **live})

    def _noting(self, name: str) -> property:
        slot = getattr(Node, name)
        read: Callable[[Node], Any] = slot.__get__

        def get(node: Node) -> Any:
            if self._thread and self._thread == get_ident():
                self.seen[node] = None
            return read(node)

        return property(get, slot.__set__)

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """A policy chooses, on this thread, under the balancer's lock."""
        self.seen = {}
        self._thread = get_ident()
        try:
            yield
        finally:
            self._thread = 0

    @contextmanager
    def averted(self) -> Iterator[None]:
        """Do not look. The garbage collector may end an abandoned call in the middle of a choice, on its thread."""
        mine = self._thread == get_ident()
        if mine:
            self._thread = 0
        try:
            yield
        finally:
            if mine:
                self._thread = get_ident()

    def after_fork(self) -> None:
        """In a forked child: nobody is choosing."""
        self._thread = 0
