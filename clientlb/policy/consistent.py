"""Calls with the same key go to the same endpoint, so that what it has in its cache is of use.

Both policies need nothing from servers, agree between clients that see the same endpoints, and move as few keys as
possible when one joins or leaves: its own, and no others.

- `Rendezvous` compares all nodes for every call. Its shares are exact. For up to a few hundred endpoints.
- `RingHash` looks the key up in a table. A call costs the same for ten thousand endpoints; shares are within about a
  tenth.

Both can bound the load (Mirrokni, Thorup, Zadimoghaddam: "Consistent Hashing with Bounded Loads", 2018): an endpoint
takes at most `bound` times its share of the calls in flight, and what is too much goes to the next in the key's own
order. The calls in flight are those of this client. A call without a key goes anywhere.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from math import ceil, log

from clientlb.errors import ConfigurationError
from clientlb.node import Node
from clientlb.policy.base import Request
from clientlb.policy.derived import Derived
from clientlb.policy.hashing import HASHES, hash_of, hash_of_endpoint, mix
from clientlb.require import require_int, require_number

_NO_REQUEST = Request()
_ODD = 0x9E3779B97F4A7C15
"""Takes the numbers of points far apart: 2**64 by the golden ratio."""


class _Consistent(ABC):
    """What both have in common: the key of a call, and the bound.

    Args:
        bound: Most calls in flight at an endpoint, relative to its share of all of them; None is without a bound.
    """

    __slots__ = ("_total_weight", "bound")

    def __init__(self, bound: float | None = None) -> None:
        if bound is not None:
            require_number(f"{type(self).__name__}: bound", bound, above=1)
        self.bound: float | None = bound
        self._total_weight = Derived(lambda nodes: sum(node.endpoint.weight for node in nodes))

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """Choose for a call without a key: anywhere, by weight."""
        return self.choose_for(_NO_REQUEST, nodes, now, rng)

    def choose_for(self, request: Request, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """Choose by the key of a call.

        Raises:
            ConfigurationError: The call has a filter, too; that is the business of `Filter`.
        """
        if request.where:
            raise ConfigurationError(
                f"the call has a filter, which the policy {type(self).__name__} does not heed; wrap it in Filter"
            )
        key = rng.getrandbits(64) if request.key is None else hash_of(request.key)
        owner = self._owner(key, nodes)
        # an idle owner is within any bound, and then nobody has to be counted
        if self.bound is None or not owner.in_flight:
            return owner
        capacity = self.bound * (sum(node.in_flight for node in nodes) + 1) / self._total_weight.of(nodes)
        return next(
            node for node in self._in_order(key, nodes) if node.in_flight < ceil(capacity * node.endpoint.weight)
        )

    @abstractmethod
    def _owner(self, key: int, nodes: Sequence[Node]) -> Node:
        """The node that a key prefers to all others."""

    @abstractmethod
    def _in_order(self, key: int, nodes: Sequence[Node]) -> Iterable[Node]:
        """All nodes in the order in which a key prefers them."""


class Rendezvous(_Consistent):
    """Each key has its own order of the endpoints, by weighted rendezvous hashing (Thaler, Ravishankar 1998).

    A node's score is `-weight / log(u)`, where u, from 0 to 1, is a hash of the key and the endpoint's id; the highest
    wins, with a probability in exact proportion to the weight (Schindelhauer, Schomaker 2005).

    Args:
        bound: Most calls in flight at an endpoint, relative to its share of all of them; None (default) is without a
            bound. 1.25 is usual.

    Raises:
        ConfigurationError: `bound` is not above 1.
    """

    __slots__ = ("_hashes",)

    def __init__(self, bound: float | None = None) -> None:
        super().__init__(bound)
        self._hashes = Derived(lambda nodes: [(hash_of_endpoint(node.endpoint.id), node) for node in nodes])

    def _owner(self, key: int, nodes: Sequence[Node]) -> Node:
        return max(self._hashes.of(nodes), key=lambda hashed: _score(key, *hashed))[1]

    def _in_order(self, key: int, nodes: Sequence[Node]) -> Iterable[Node]:
        ordered = sorted(self._hashes.of(nodes), key=lambda hashed: _score(key, *hashed), reverse=True)
        return (node for _, node in ordered)


def _score(key: int, hashed: int, node: Node) -> float:
    return -node.endpoint.weight / log((mix(key, hashed) + 0.5) / HASHES)


class RingHash(_Consistent):
    """Keys and endpoints are points on a ring; a key belongs to the next endpoint on it (Karger et al. 1997).

    Every endpoint has the same number of points, whatever its weight; only the bound heeds weights. (Points in
    proportion to the mean weight would all move when the mean does.) An endpoint that is ejected keeps its points, and
    keys walk past them, so only those that join cost a look at the whole ring.

    Args:
        bound: Most calls in flight at an endpoint, relative to its share of all of them; None (default) is without a
            bound. 1.25 is usual.
        points: Of each endpoint (default 100: shares are within a tenth). Ten thousand endpoints with a hundred points
            each take about a second to be laid out; give fewer points to so many.

    Raises:
        ConfigurationError: `bound` is not above 1, or `points` is below 1.
    """

    __slots__ = ("_known", "_members", "_owners", "_ring", "points")

    def __init__(self, bound: float | None = None, points: int = 100) -> None:
        super().__init__(bound)
        require_int("RingHash: points", points, 1)
        self.points: int = points
        self._ring: list[int] = []
        self._owners: dict[int, Node] = {}
        self._known: set[Node] = set()
        self._members = Derived(self._admit)

    def _admit(self, nodes: Sequence[Node]) -> frozenset[Node]:
        """Put those on the ring that are not on it yet, and say who takes part."""
        members = frozenset(nodes)
        joiners = members - self._known
        if joiners:
            if len(self._known) > 2 * len(members):  # most of them have left for good
                self._ring, self._owners, self._known, joiners = [], {}, set(), members
            owners = {point: node for node in joiners for point in _points(node.endpoint.id, self.points)}
            self._owners |= owners
            self._ring += owners
            self._ring.sort()  # two sorted runs at most times, which are merged
            self._known |= joiners
        return members

    def _owner(self, key: int, nodes: Sequence[Node]) -> Node:
        return next(self._walk(key, nodes))

    def _in_order(self, key: int, nodes: Sequence[Node]) -> Iterable[Node]:
        return dict.fromkeys(self._walk(key, nodes))

    def _walk(self, key: int, nodes: Sequence[Node]) -> Iterator[Node]:
        """Once around the ring, from a key on."""
        members = self._members.of(nodes)
        start = bisect_left(self._ring, key)
        for index in chain(range(start, len(self._ring)), range(start)):
            node = self._owners[self._ring[index]]
            if node in members:
                yield node


def _points(id: str, count: int) -> Iterator[int]:
    for number in range(count):
        yield mix(hash_of_endpoint(id), number * _ODD % HASHES)
