"""Endpoints that are written down in the program or in the URL: a registry that never changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self

from clientlb.discovery.base import Listener
from clientlb.discovery.decode import decode_address
from clientlb.discovery.url import redact
from clientlb.endpoint import Endpoint
from clientlb.errors import ClosedError, ConfigurationError, InvalidEndpointError

Entries = Iterable[str | Endpoint]


class StaticDiscovery:
    """A fixed list of endpoints. URL: `static://10.0.0.1:80,10.0.0.2:80,[::1]:80`.

    Args:
        endpoints: `"host:port"` strings and `Endpoint` objects, the same for every service; or a mapping from the
            name of a service to its own list. A service that the mapping lacks has no endpoints.

    Raises:
        ConfigurationError: An entry is no address.
    """

    def __init__(self, endpoints: Entries | Mapping[str, Entries]) -> None:
        self._by_service: dict[str, tuple[Endpoint, ...]] = {}
        self._for_all: tuple[Endpoint, ...] = ()
        if isinstance(endpoints, Mapping):
            self._by_service = {str(service): _read(entries) for service, entries in endpoints.items()}
        else:
            self._for_all = _read(endpoints)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Read `static://HOST:PORT,HOST:PORT…`."""
        addresses = url.partition("://")[2].removesuffix("/")
        try:
            return cls(addresses.split(","))
        except ConfigurationError as error:
            raise ConfigurationError(f"{redact(url)!r}: {error}") from None

    def resolver(self, service: str) -> StaticResolver:
        """Make the resolver of one service."""
        return StaticResolver(self._by_service.get(service, self._for_all))

    def close(self) -> None:
        """Nothing to release."""

    def __str__(self) -> str:
        if self._by_service:
            return f"static list for {', '.join(sorted(self._by_service))}"
        shown = ",".join(map(str, self._for_all[:5]))
        return f"static://{shown}" + (",…" if len(self._for_all) > 5 else "")


class StaticResolver:
    """Delivers its list once, at the start."""

    def __init__(self, endpoints: tuple[Endpoint, ...]) -> None:
        self._endpoints = endpoints
        self._closed = False

    def start(self, listener: Listener) -> None:
        """Deliver the list.

        Raises:
            ClosedError: After `close()`.
        """
        if self._closed:
            raise ClosedError("the resolver of a static list was closed")
        listener.update(self._endpoints)

    def close(self) -> None:
        """Nothing to stop."""
        self._closed = True


def _read(entries: Entries) -> tuple[Endpoint, ...]:
    if isinstance(entries, str) or not isinstance(entries, Iterable):
        raise ConfigurationError(f"a list of addresses was expected, not {type(entries).__name__}")
    return tuple(map(_endpoint, entries))


def _endpoint(entry: str | Endpoint) -> Endpoint:
    if isinstance(entry, Endpoint):
        return entry
    if not isinstance(entry, str):
        raise InvalidEndpointError(f"an address or an Endpoint was expected, not {type(entry).__name__}")
    return decode_address(entry)
