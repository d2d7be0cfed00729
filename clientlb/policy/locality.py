"""Locality: stay in the own zone while it can carry the load, and send elsewhere only what is too much for it.

Envoy's zone-aware routing, with the overprovisioning factor of its priority levels. Zone z has a share `up[z]` of the
endpoints' weight and a share `clients[z]` of the clients. It can take `overprovision * up[z]` of all calls::

    own share  = min(1, overprovision * up[own] / clients[own])
    the others = in proportion to max(0, overprovision * up[z] - clients[z])

So no endpoint gets more than `overprovision` times what it would get if zones did not matter. As only healthy endpoints
count, a zone that loses some keeps its calls at first, and then hands over as much as is too much.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

from clientlb.errors import ConfigurationError
from clientlb.node import Node
from clientlb.policy.base import Policy, Request
from clientlb.policy.derived import Derived
from clientlb.policy.wrapper import Wrapper
from clientlb.require import require_number


class Locality(Wrapper):
    """Prefers the endpoints of one zone.

    Args:
        inner: The policy within: a name, or a callable that makes a `Policy`. It chooses within one zone.
        zone: Where this client is, as `Endpoint.zone` names it.
        clients: Share of the clients in each zone, in any unit, such as `{"a": 3, "b": 2}` processes. None (default):
            as many in each zone that has endpoints, and in the own one.
        overprovision: How much more than its fair share an endpoint may get (default 1.4, as in Envoy; 1.0 balances
            strictly).

    Raises:
        ConfigurationError: `overprovision` is below 1, or `clients` has nobody in the own zone.
    """

    __slots__ = ("_routes", "clients", "overprovision", "zone")

    def __init__(
        self,
        inner: str | Callable[[], Policy],
        zone: str,
        clients: Mapping[str, float] | None = None,
        overprovision: float = 1.4,
    ) -> None:
        super().__init__(inner)
        if not isinstance(zone, str) or not zone:  # of a variable that is not set, most likely
            raise ConfigurationError(f"Locality: zone is {zone!r}; give the name of the zone that this client is in")
        require_number("Locality: overprovision", overprovision, at_least=1)
        if clients is not None:
            self._require_clients(clients, zone)
        self.zone: str = zone
        self.clients: Mapping[str, float] | None = clients
        self.overprovision: float = overprovision
        self._routes = Derived(self._route)

    @staticmethod
    def _require_clients(clients: object, zone: str) -> None:
        if not isinstance(clients, Mapping) or zone not in clients:
            raise ConfigurationError(
                f"Locality: clients is {clients!r}; give numbers of clients by zone, the own zone {zone!r} among them"
            )
        for name, number in clients.items():
            require_number(f"Locality: clients of zone {name!r}", number, at_least=0)
        require_number(f"Locality: clients of the own zone {zone!r}", clients[zone], above=0)

    def narrow(self, request: Request, nodes: Sequence[Node], rng: random.Random) -> Sequence[Node]:
        """The endpoints of one zone: the own one, or sometimes another."""
        routes = self._routes.of(nodes)
        draw = rng.random()
        for limit, candidates in routes:
            if draw < limit:
                return candidates
        return routes[-1][1]

    def share(self, node: Node, nodes: Sequence[Node]) -> float | None:
        """The share of this client's calls that goes to the zone of the node."""
        before = 0.0
        for limit, candidates in self._routes.of(nodes):
            if candidates[0].endpoint.zone == node.endpoint.zone:
                return limit - before
            before = limit
        return 0.0

    def say(self, share: float) -> str:
        """Which share its zone gets."""
        return f"its zone gets {share:.0%} of the calls" if share else "its zone gets no calls"

    def _route(self, nodes: Sequence[Node]) -> list[tuple[float, Sequence[Node]]]:
        """The endpoints of each zone that gets calls, with the cumulated share of those, the own zone first."""
        zones: dict[str | None, list[Node]] = {self.zone: []}
        for node in nodes:
            zones.setdefault(node.endpoint.zone, []).append(node)
        shares = self.shares({zone: sum(node.endpoint.weight for node in found) for zone, found in zones.items()})
        used = [zone for zone, share in shares.items() if share > 0.0]
        return [
            (limit, tuple(zones[zone]))
            for zone, limit in zip(used, accumulate(shares[zone] for zone in used), strict=True)
        ]

    def shares(self, weights: Mapping[str | None, float]) -> dict[str | None, float]:
        """The share of this client's calls that each zone gets, given the weight of its healthy endpoints."""
        total = sum(weights.values())
        room = {zone: self.overprovision * weight / total for zone, weight in weights.items()}
        load = self._share_of_clients(weights)
        own = min(1.0, room[self.zone] / load[self.zone])
        spare = {zone: max(0.0, room[zone] - load[zone]) for zone in weights if zone != self.zone}
        if not sum(spare.values()) > 0.0:  # nobody has room: all are used alike
            spare = {zone: weight for zone, weight in weights.items() if zone != self.zone}
        elsewhere = sum(spare.values())
        if not elsewhere > 0.0:
            return {self.zone: 1.0}
        return {self.zone: own, **{zone: (1.0 - own) * share / elsewhere for zone, share in spare.items()}}

    def _share_of_clients(self, weights: Mapping[str | None, float]) -> dict[str | None, float]:
        if self.clients is None:
            return dict.fromkeys(weights, 1.0 / len(weights))
        total = sum(self.clients.values())
        return {zone: 0.0 if zone is None else self.clients.get(zone, 0.0) / total for zone in weights}
