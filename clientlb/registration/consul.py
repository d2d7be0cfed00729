"""Be found through Consul: a service of the local agent with a TTL check that the server itself keeps passing.

The agent has the service, and brings it into the catalog again whenever that forgot it. If it is the agent that forgot,
the next renewal notices and registers again.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable, Iterable
from typing import Any

from clientlb.discovery._consul_http import ConsulAddress, ConsulError, ConsulHTTP, path
from clientlb.discovery.decode import encode_attributes
from clientlb.endpoint import Endpoint
from clientlb.errors import RegistrationError
from clientlb.registration._local import local_address

_TIMEOUT = 5.0
_TIMEOUT_OF_DEFAULTS = 0.5
_LARGEST_WEIGHT = 65535
_FORGOTTEN = (404, 500)  # "unknown check": the status depends on Consul's version
_KEEP_DEAD = 60.0  # Consul's least: seconds after which it removes an instance whose check fails


class ConsulRegistrar:
    """Registers with one agent. URL: `consul://[host[:port]][?tag=…&token_file=…&tls=true&ca_file=…]`.

    The agent should be the one of this machine: an instance lives and dies with its agent. What is not given comes
    from the variables of Consul's own tools, as for `ConsulDiscovery`.

    Args:
        host: The agent (default 127.0.0.1).
        port: Its HTTP port (default 8500).
        token: ACL token; it needs `service:write` for the service.
        token_file: File with the token.
        tls: Speak HTTPS.
        ca_file: Certificates to trust.
        tags: Tags of the instances.
        client: A `consul.Consul` object of python-consul or py-consul whose HTTP client is used instead of our own.

    Raises:
        ConfigurationError: An argument or a variable that cannot be right.
    """

    def __init__(
        self,
        host: str = "",
        port: int = 0,
        *,
        token: str | None = None,
        token_file: str | None = None,
        tls: bool | None = None,
        ca_file: str | None = None,
        tags: Iterable[str] = (),
        client: Any = None,
    ) -> None:
        if client is None:
            self._address = ConsulAddress(host, port, token, token_file, tls, ca_file)
        else:
            self._address = ConsulAddress.of_client(client, token, token_file)
        self._http = ConsulHTTP(self._address, client)
        self._tags = list(tags)
        self._lock = threading.Lock()
        self._registered: dict[str, dict[str, Any]] = {}

    @classmethod
    def from_url(cls, url: str) -> ConsulRegistrar:
        """Read `consul://[host[:port]][?tag=…&token_file=…&token=…&tls=true&ca_file=…]`."""
        address, options = ConsulAddress.from_url(url, ("tag",))
        return cls(
            address.host,
            address.port,
            token=address.token,
            tls=address.tls,
            ca_file=address.ca_file,
            tags=[options["tag"]] if options.get("tag") else [],
        )

    def attach(self, wake: Callable[[], None]) -> None:
        """Nothing to tell: what the agent forgot is noticed at the next renewal."""

    def announce(self, service: str, endpoint: Endpoint, ttl: float) -> None:
        """Renew the check; register if that is new, different or forgotten. Raises RegistrationError."""
        description = self._describe(service, endpoint, ttl)
        with self._lock:
            known = self._registered.get(endpoint.id) == description
        try:
            if known and self._renew(endpoint):
                return
            # Without `replace-existing-checks` the checks of an earlier registration would stay, and fail.
            parameters = {"replace-existing-checks": "true"}
            self._http.put(path("agent", "service", "register"), _TIMEOUT, parameters, description)
            # An agent that restarts restores what a renewal said, but not what the registration said: without one
            # the instance would be out of the list until its next.
            self._renew(endpoint)
        except ConsulError as error:
            raise RegistrationError(f"registering {service} failed: {error}") from error
        with self._lock:
            self._registered[endpoint.id] = description

    def withdraw(self, service: str, endpoint: Endpoint) -> None:
        """Deregister. Raises RegistrationError."""
        with self._lock:
            self._registered.pop(endpoint.id, None)
        try:
            self._http.put(path("agent", "service", "deregister", endpoint.id), _TIMEOUT)
        except ConsulError as error:
            if error.status != 404:
                raise RegistrationError(f"deregistering {service} failed: {error}") from error

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._http.close()

    def default_host(self) -> str:
        """The address of the agent's machine, if the agent is here; otherwise ours on the way to the agent."""
        if _is_loopback(self._address.host):
            try:
                member = self._http.get(path("agent", "self"), _TIMEOUT_OF_DEFAULTS).json()["Member"]
                return str(member["Addr"])
            except (ConsulError, LookupError, TypeError):
                pass  # down, or the token may not ask
        return local_address(self._address.host, self._address.port)

    def __str__(self) -> str:
        return str(self._address)

    def _renew(self, endpoint: Endpoint) -> bool:
        try:
            self._http.put(path("agent", "check", "pass", _check_id(endpoint)), _TIMEOUT)
        except ConsulError as error:
            if error.status in _FORGOTTEN:
                return False
            raise
        return True

    def _describe(self, service: str, endpoint: Endpoint, ttl: float) -> dict[str, Any]:
        meta = encode_attributes(endpoint)
        if endpoint.secure:
            meta["secure"] = "true"
        # Consul's own weight is a whole number from 1; the exact one is in the metadata.
        weight = min(max(round(endpoint.weight), 1), _LARGEST_WEIGHT)
        return {
            "ID": endpoint.id,
            "Name": service,
            "Address": endpoint.host,
            "Port": endpoint.port,
            "Tags": self._tags,
            "Meta": meta,
            "Weights": {"Passing": weight, "Warning": weight},
            "Check": {
                "CheckID": _check_id(endpoint),
                "Name": "the server renews its registration",
                "TTL": f"{ttl * 1000:.0f}ms",
                "Status": "passing",  # otherwise it would be critical until the first renewal
                "DeregisterCriticalServiceAfter": f"{max(_KEEP_DEAD, 6 * ttl):.0f}s",
            },
        }


def _check_id(endpoint: Endpoint) -> str:
    return f"service:{endpoint.id}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
