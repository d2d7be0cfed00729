"""Filter: a call that asks for certain endpoints gets one of those.

    with services["orders"].pick(where={"version": "2"}) as pick: ...

A call that asks for nothing is not affected.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from cachetools import LRUCache

from clientlb.errors import ConfigurationError, NoEndpointsError
from clientlb.node import Node
from clientlb.policy.base import Policy, Request
from clientlb.policy.derived import Derived
from clientlb.policy.wrapper import Wrapper

_FILTERS = 64
"""Different filters that are remembered per list of endpoints. Filters are few: versions, tenants, shards."""

Where = frozenset[tuple[str, str]]


class Filter(Wrapper):
    """Leaves the endpoints whose metadata a call asks for: see `Request.matches`.

    Args:
        inner: The policy within: a name, or a callable that makes a `Policy`.
        fallback: What happens if no healthy and untried endpoint matches. `"any"` (default): all are candidates, so the
            filter is a preference. A mapping, such as `{"stage": "stable"}`: those that match it, or else all.
            `"fail"`: one that matches is used although it is ejected or was tried; if none matches, the call fails.

    Raises:
        ConfigurationError: `fallback` is something else.
    """

    __slots__ = ("_fallback", "_filtered", "fallback")

    def __init__(self, inner: str | Callable[[], Policy], fallback: str | Mapping[str, str] = "any") -> None:
        super().__init__(inner)
        if fallback not in ("any", "fail") and not isinstance(fallback, Mapping):
            raise ConfigurationError(f'Filter: fallback is {fallback!r}; give "any", "fail" or a mapping')
        self.fallback: str | Mapping[str, str] = fallback
        self._fallback = Request() if isinstance(fallback, str) else Request.of(where=fallback)
        self._filtered: Derived[LRUCache[Where, Sequence[Node]]] = Derived(lambda nodes: LRUCache(_FILTERS))

    def fitting(self, request: Request, nodes: Sequence[Node]) -> Sequence[Node]:
        """Those that match, or what the fallback leaves."""
        if not request.where:
            return nodes
        known = self._filtered.of(nodes)
        found = known.get(request.where)
        if found is None:
            found = known[request.where] = self._filter(request, nodes)
        return found

    def narrow(self, request: Request, nodes: Sequence[Node], rng: random.Random) -> Sequence[Node]:
        """Those that fit, of which there has to be one."""
        found = self.fitting(request, nodes)
        if not found:
            asked = ", ".join(f"{name}={value}" for name, value in sorted(request.where))
            raise NoEndpointsError(f"none of {len(nodes)} endpoints has {asked}")
        return found

    def _filter(self, request: Request, nodes: Sequence[Node]) -> Sequence[Node]:
        found = tuple(node for node in nodes if request.matches(node.endpoint))
        if found or self.fallback == "fail":
            return found
        return tuple(node for node in nodes if self._fallback.matches(node.endpoint)) or nodes

    def choose_for(self, request: Request, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        """Choose one of those that match. The policy within is told the key, for the filter is done with."""
        return self._choose_for(Request(request.key), self.narrow(request, nodes, rng), now, rng)
