"""Endpoint: one reachable server of a service, as a registry describes it. A value: it has no live state."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from types import MappingProxyType
from typing import Any

from clientlb.errors import InvalidEndpointError

# A host ends up in a URL, in a socket call and in a target of gRPC. Whatever could smuggle credentials, a path, a
# second header line, a second address or another scheme (`unix:x`) into one of them is refused here, once, for every
# registry. What is left are letters and digits of any script, "_", "-", "."; and ":", which only an IPv6 address has.
_NAME_OR_IPV4 = re.compile(r"[\w.-]{1,253}").fullmatch
_LARGEST = sys.float_info.max
_FIELDS = ("host", "port", "id", "weight", "secure", "zone", "version", "started_at", "metadata")
_NO_METADATA: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server: where it listens and what its registry says about it.

    Args:
        host: Name or IP address. An IPv6 address is written without brackets.
        port: 1 to 65535.
        id: The instance's identity in its registry; `host:port` when left out. A server that comes back on
            the same address under another id is a new server: it starts with a clean health record.
        weight: Share of the traffic relative to its peers, above 0 (default 1.0, as in Consul).
        secure: The server speaks TLS.
        zone: Failure domain, such as an availability zone.
        version: Version of the software that runs there.
        started_at: When the server started, in seconds since the epoch.
        metadata: Anything else that the registry knows, as strings.

    Raises:
        InvalidEndpointError: A host, port or weight that no server can have, or an id that is not text.
    """

    host: str
    port: int
    id: str = ""
    weight: float = 1.0
    secure: bool = False
    zone: str | None = None
    version: str | None = None
    started_at: float | None = None
    metadata: Mapping[str, str] = field(default_factory=lambda: _NO_METADATA, hash=False)

    def __post_init__(self) -> None:
        host, port, weight = self.host, self.port, self.weight
        if not isinstance(host, str) or not _is_host(host):
            shown = "with an @, maybe credentials," if "@" in str(host) else _short(host)
            raise InvalidEndpointError(f"endpoint host {shown} is not a host name or an IP address")
        if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
            raise InvalidEndpointError(f"endpoint {_short(host)}: port {_short(port)} is not a number from 1 to 65535")
        if not isinstance(weight, (int, float)) or not 0 < weight <= _LARGEST:  # nor NaN, nor infinity
            raise InvalidEndpointError(f"endpoint {_short(host)}, port {port}: weight {_short(weight)} is not above 0")
        if not _is_text(self.id):
            raise InvalidEndpointError(f"endpoint {_short(host)}, port {port}: the id {_short(self.id)} is not text")
        if not self.id:
            object.__setattr__(self, "id", self.address)
        if self.metadata is not _NO_METADATA:
            object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))

    @property
    def address(self) -> str:
        """`host:port`, with an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def key(self) -> tuple[str, str, int]:
        """What makes two descriptions the same server: id, host and port."""
        return (self.id, self.host, self.port)

    def as_json(self) -> dict[str, Any]:
        """The endpoint as JSON has it, without what its registry does not say."""
        values = (self.host, self.port, self.id, self.weight, self.secure, self.zone, self.version, self.started_at)
        said = dict(zip(_FIELDS, (*values, dict(self.metadata)), strict=True))
        return {name: value for name, value in said.items() if value not in (None, {})}

    def __reduce__(self) -> tuple[Any, ...]:
        # a mappingproxy cannot be pickled, and endpoints travel between processes
        values = (self.host, self.port, self.id, self.weight, self.secure, self.zone, self.version)
        return (Endpoint, (*values, self.started_at, dict(self.metadata)))

    def __str__(self) -> str:
        return self.address


def _is_host(host: str) -> bool:
    if _NAME_OR_IPV4(host):
        return True
    try:
        IPv6Address(host)
    except ValueError:
        return False
    return "%" not in host  # a zone, such as fe80::1%eth0, means something on its own machine only


def _is_text(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:  # half of a surrogate pair, as in a file name that is not UTF-8
        return False


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
