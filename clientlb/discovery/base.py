"""The contract between a registry and a balancer.

A `Discovery` stands for one registry; `resolver(service)` makes the thing that watches one service there. A resolver
delivers full snapshots to its listener with `update`, and trouble with `error`; it never delivers an empty list because
of trouble. `clientlb.testing.DiscoveryContract` checks all of this against any backend.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from clientlb.endpoint import Endpoint


class Listener(Protocol):
    """Who receives the news. A balancer is one. Both methods are quick, thread-safe and never raise."""

    def update(self, endpoints: Iterable[Endpoint]) -> None:
        """Take the complete list of endpoints, as the registry has it now."""

    def error(self, error: Exception) -> None:
        """Note that the registry could not be read. The last list stays valid."""


@runtime_checkable
class Resolver(Protocol):
    """Watches one service in one registry."""

    def start(self, listener: Listener) -> None:
        """Begin to watch. Returns at once; news may arrive on any thread, also before this returns.

        It never raises because a registry is down: that is `listener.error`.
        """

    def close(self) -> None:
        """Stop watching. Idempotent; returns within a second even when the registry hangs; no news afterwards."""


@runtime_checkable
class RemarkingResolver(Resolver, Protocol):
    """A resolver that can say what a list of endpoints does not show. Optional: any resolver may have `remarks`."""

    def remarks(self) -> list[str]:
        """What people should know about the last answer, such as `2 instances could not be read`; usually nothing.

        `Balancer.explain()` prints each on a line of its own. Called on any thread, also after `close`; does no I/O.
        """


@runtime_checkable
class Discovery(Protocol):
    """One registry. Third parties add a scheme with an entry point in the group `clientlb.discovery`.

    The entry point names a class with a classmethod `from_url(url: str) -> Discovery`, which raises
    `ConfigurationError` for a URL that it cannot use.
    """

    def resolver(self, service: str) -> Resolver:
        """Make the resolver of one service. Does no I/O."""

    def close(self) -> None:
        """Release what the resolvers share, such as a connection. Idempotent."""

    def __str__(self) -> str:
        """Name the registry for people, without secrets: it appears in errors and logs."""
