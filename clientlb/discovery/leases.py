"""The files of a `dir://` registry: where they are, what they say, and who counts as alive. No thread, no clock.

    ROOT/<service>/<instance id>.json   {"host": "127.0.0.1", "port": 8080, "expires_at": 1767225600.0, "ttl": 10.0, …}

Names are percent-encoded, so that no service and no id can leave the root. A file appears under its name complete, by
a rename; names that start with a dot belong to writers and are ignored. `expires_at` is wall-clock time: the owner and
the readers share one machine, and so one clock. A file without it is for ever.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from clientlb.discovery.decode import MAX_INSTANCE_BYTES, encode_attributes, within_limit
from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError

SUFFIX = ".json"

RENEWALS = 3
"""Owners renew a lease this many times before it ends; so this part of it is the longest silence of a living owner."""


@dataclass(frozen=True, slots=True)
class Lease:
    """One instance file: its bytes, until when they count, and for how long the owner promised."""

    data: bytes
    expires_at: float = math.inf
    ttl: float = 0.0


def service_directory(root: Path, service: str) -> Path:
    """The directory of a service.

    Raises:
        ConfigurationError: The name is empty.
    """
    if not service or not isinstance(service, str):
        raise ConfigurationError("the name of a service is a text that is not empty")
    return root / _quoted(service)


def lease_name(id: str) -> str:
    """The file name of an instance."""
    return _quoted(id) + SUFFIX


def lease_id(name: str) -> str | None:
    """The instance id of a file name; None for files that are no leases."""
    if name.startswith(".") or not name.endswith(SUFFIX):
        return None
    return unquote(name.removesuffix(SUFFIX), errors="surrogatepass")


def _quoted(name: str) -> str:
    text = quote(name, safe="", errors="surrogatepass")
    return "%2E" + text[1:] if text.startswith(".") else text  # "." and ".." are no names, and dots hide files


def write_lease(endpoint: Endpoint, *, expires_at: float, ttl: float) -> bytes:
    """The content of an instance file.

    Raises:
        InvalidEndpointError: It would be longer than readers accept.
    """
    document = {
        "host": endpoint.host,
        "port": endpoint.port,
        "id": endpoint.id,
        "secure": endpoint.secure,
        "metadata": encode_attributes(endpoint),
        "expires_at": expires_at,
        "ttl": ttl,
    }
    return within_limit(json.dumps(document, indent=1).encode())


def read_lease(data: bytes) -> Lease:
    """Read the times of a lease. Whether the rest is an instance is for the decoder to say, so this never fails."""
    if len(data) > MAX_INSTANCE_BYTES:
        return Lease(data)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return Lease(data)
    if not isinstance(document, dict):
        return Lease(data)
    return Lease(data, _number(document.get("expires_at"), math.inf), _number(document.get("ttl"), 0.0))


def _number(value: object, default: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return default
    try:
        return default if math.isnan(value) else float(value)
    except OverflowError:
        return default


class Roll:
    """Calls the roll: which leases count now?

    A lease counts until it expires. But time in which the *reader* was stopped or the machine slept proves nothing:
    the owners may have been stopped with it. So after such a gap, whoever was alive before it keeps counting
    for as long as a living owner may need to renew.

    Args:
        interval: Seconds between two looks of a reader that is awake.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._longest_look = max(1.0, 5 * interval)
        self._alive: frozenset[str] = frozenset()
        self._looked_at: float | None = None
        self._woke_at = -math.inf
        self._leases: Mapping[str, Lease] | None = None
        self._counted: dict[str, Lease] = {}
        self._first_end = -math.inf

    def call(self, leases: Mapping[str, Lease], now: float) -> tuple[dict[str, Lease], float | None]:
        """Return the leases that count at `now`, and the seconds until the first of them may end (None: never).

        Who passes the same mapping again says that nothing in it changed, and gets the same answer while it is true.
        """
        slept = self._looked_at is not None and now - self._looked_at > self._longest_look
        if slept:
            self._woke_at = now
        self._looked_at = now
        if leases is not self._leases or slept or now >= self._first_end:
            ends = {name: self._end(name, lease) for name, lease in leases.items()}
            self._counted = {name: lease for name, lease in leases.items() if ends[name] > now}
            self._alive = frozenset(self._counted)
            self._first_end = min((ends[name] for name in self._counted), default=math.inf)
            self._leases = leases
        return self._counted, None if self._first_end == math.inf else self._first_end - now

    def _end(self, name: str, lease: Lease) -> float:
        if name not in self._alive:
            return lease.expires_at
        return max(lease.expires_at, self._woke_at + lease.ttl / RENEWALS + self._interval)
