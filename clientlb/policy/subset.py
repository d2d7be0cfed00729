"""Each client uses only some of the endpoints: fewer connections, and each of them with more traffic to learn from.

- `Subset` needs nothing but an identity of the client: it takes the endpoints that rendezvous hashing ranks first for
  it (gRFC A68). Servers get unequal numbers of clients: a server may have 2 of 100 clients, or 19.
- `Aperture` needs the client's number among its peers, as a StatefulSet gives it, and is exactly even (Finagle's
  deterministic aperture).

Endpoints that are ejected, or were tried by the same call, do not count: others move up in their place.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from heapq import nlargest
from math import ceil

from clientlb.errors import ConfigurationError
from clientlb.node import Node
from clientlb.policy.base import Policy, Request
from clientlb.policy.derived import Derived
from clientlb.policy.hashing import hash_of, hash_of_endpoint, mix
from clientlb.policy.wrapper import Wrapper
from clientlb.require import require_int


class Subset(Wrapper):
    """The `size` endpoints that suit this client best. One that leaves or joins changes at most one of them.

    Weights are left to the policy within.

    Args:
        inner: The policy within: a name, or a callable that makes a `Policy`.
        size: Of the subset (default 20, the least that Google's SRE book takes).
        client: Identity of this client, different for each process. None (default) draws one; then a restart, and
            every forked child, has another subset.

    Raises:
        ConfigurationError: `size` is below 1.
    """

    __slots__ = ("_client", "_subsets", "size")

    def __init__(self, inner: str | Callable[[], Policy], size: int = 20, client: str | None = None) -> None:
        super().__init__(inner)
        require_int("Subset: size", size, 1)
        self.size: int = size
        self._client: int | None = None if client is None else hash_of(client)
        self._subsets = Derived(self._subset)

    def narrow(self, request: Request, nodes: Sequence[Node], rng: random.Random) -> Sequence[Node]:
        """The endpoints of this client."""
        if self._client is None:
            self._client = rng.getrandbits(64)
        return self._subsets.of(nodes)

    def share(self, node: Node, nodes: Sequence[Node]) -> float | None:
        """1 or 0. Before the first choice a client without an identity has no subset yet."""
        return None if self._client is None else float(node in self._subsets.of(nodes))

    def say(self, share: float) -> str:
        """In or not in."""
        return "in this client's subset" if share else "not in this client's subset"

    def _subset(self, nodes: Sequence[Node]) -> Sequence[Node]:
        client = self._client or 0
        if len(nodes) <= self.size:
            return nodes
        return tuple(nlargest(self.size, nodes, key=lambda node: mix(client, hash_of_endpoint(node.endpoint.id))))


class Aperture(Wrapper):
    """An arc of the ring of all endpoints, such that the arcs of all clients cover every endpoint equally often.

    With n endpoints and c clients, client i looks from `i / c` of the way round the ring over an arc of at least
    `size / n`, rounded up to a multiple of `1 / c`. An endpoint at the edge that is in the arc only in part is a
    candidate only in part of the picks. Policies that choose evenly then load all endpoints exactly alike.

    Args:
        inner: The policy within: a name, or a callable that makes a `Policy`.
        index: Number of this client among its peers, from 0.
        count: Number of peers, itself included.
        size: Endpoints that a client should have at least (default 12, as in Finagle, so that one of them is healthy).

    Raises:
        ConfigurationError: `index` is not below `count`, or `size` is below 1.
    """

    __slots__ = ("_arcs", "count", "index", "size")

    def __init__(self, inner: str | Callable[[], Policy], index: int, count: int, size: int = 12) -> None:
        super().__init__(inner)
        if not isinstance(index, int) or not isinstance(count, int) or not 0 <= index < count:
            raise ConfigurationError(f"Aperture: index {index!r} of {count!r} clients; count from 0 to count - 1")
        require_int("Aperture: size", size, 1)
        self.index: int = index
        self.count: int = count
        self.size: int = size
        self._arcs = Derived(self._arc)

    def narrow(self, request: Request, nodes: Sequence[Node], rng: random.Random) -> Sequence[Node]:
        """The endpoints of the arc, those at its edges now and then."""
        draw = rng.random()
        for probability, candidates in self._arcs.of(nodes):
            draw -= probability
            if draw < 0.0:
                return candidates
        return candidates

    def share(self, node: Node, nodes: Sequence[Node]) -> float | None:
        """How often it is a candidate: always inside the arc, at its edge now and then."""
        return sum(probability for probability, candidates in self._arcs.of(nodes) if node in candidates)

    def say(self, share: float) -> str:
        """In the arc, at its edge, or outside."""
        if share > 0.999:
            return "in this client's aperture"
        if share > 0.0:
            return f"at the edge of this client's aperture, for {share:.0%} of the calls"
        return "not in this client's aperture"

    def _arc(self, nodes: Sequence[Node]) -> list[tuple[float, tuple[Node, ...]]]:
        """Tuples of candidates with the probability of each."""
        ring = sorted(nodes, key=lambda node: hash_of_endpoint(node.endpoint.id))  # neighbours should not share a host
        n, clients = len(ring), self.count
        # in units of 1 / clients of an endpoint, so that nothing is rounded: an endpoint is `clients` wide
        width = ceil(min(self.size, n) * clients / n) * n
        if width >= n * clients:
            return [(1.0, tuple(nodes))]
        start = self.index * n
        first, last = -(-start // clients), (start + width) // clients
        left, right = first - start / clients, (start + width) / clients - last
        inside = tuple(ring[number % n] for number in range(first, last))
        before, after = (ring[(first - 1) % n],), (ring[last % n],)
        return _mixture(inside, before, left, after, right)


def _mixture(
    inside: tuple[Node, ...], before: tuple[Node, ...], left: float, after: tuple[Node, ...], right: float
) -> list[tuple[float, tuple[Node, ...]]]:
    """How often an edge has to be a candidate, so that an even choice gives it `left` or `right` of a whole share.

    With k nodes inside, an edge that is alone with them is chosen once in k + 1, both together once in k + 2 each. The
    probabilities solve that for shares of left / (k + left + right) and right / (k + left + right).
    """
    k, edges = len(inside), left + right
    whole = k + edges
    if edges <= 1.0:
        mixture = [
            (k * (1.0 - edges) / whole, inside),
            (left * (k + 1) / whole, before + inside),
            (right * (k + 1) / whole, inside + after),
        ]
    else:
        mixture = [
            ((1.0 - right) * (k + 1) / whole, before + inside),
            ((1.0 - left) * (k + 1) / whole, inside + after),
            ((edges - 1.0) * (k + 2) / whole, before + inside + after),
        ]
    return [(probability, candidates) for probability, candidates in mixture if probability > 0.0]
