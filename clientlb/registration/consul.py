"""Be found through Consul: a service of the local agent, with a check that says whether it gets calls.

Who checks is a choice. With `TTLCheck` the server itself keeps its check passing, by renewing the registration; with
`HTTPCheck` and `GRPCCheck` the agent asks the server, and so notices one that hangs. The agent has the service, and
brings it into the catalog again whenever that forgot it. If it is the agent that forgot, the next renewal notices, by
the check that is unknown or the service that is not there, and registers again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Unpack

from clientlb.discovery._consul_address import ConnectionOptions, ConsulAddress
from clientlb.discovery._consul_http import ConsulError, ConsulHTTP, path
from clientlb.discovery.decode import encode_attributes
from clientlb.discovery.url import checked_seconds, seconds_option
from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError, RegistrationError
from clientlb.registration._local import local_address

_TIMEOUT = 5.0
_TIMEOUT_OF_LEAVING = 2.0  # a server that ends does not wait longer for its agent
_TIMEOUT_OF_DEFAULTS = 0.5
_LARGEST_WEIGHT = 65535
_FORGOTTEN = (404, 500)  # "unknown check": the status depends on Consul's version
_LEAST_INTERVAL = 1.0  # Consul's least, in seconds
_KEEP_DEAD = 60.0  # Consul's least: seconds after which it removes an instance whose check fails
_OPTIONS = ("tag", "check", "check_interval", "check_timeout", "deregister_after")
_OF_THE_DISCOVERY = (
    *("dc", "failover", "failover_after", "failback_after", "near", "filter", "health", "consistency", "max_stale"),
    *("wait", "patience", "max_connections", "turn_within"),
)  # one URL serves both sides


@dataclass(frozen=True, slots=True)
class TTLCheck:
    """The server keeps its check passing: it is critical when no renewal came for the `ttl` of the registration."""


@dataclass(frozen=True, slots=True)
class HTTPCheck:
    """The agent asks the server by HTTP: 2xx passes, 429 warns, anything else is critical.

    Args:
        path: What it asks for (default `/health`).
        interval: Seconds between two questions (default 5, at least 1). The first comes within them; until then the
            check is critical.
        timeout: Seconds that the answer may take (default 2).

    Raises:
        ConfigurationError: A path without a "/" in front, or a number that cannot be right.
    """

    path: str = "/health"
    interval: float = 5.0
    timeout: float = 2.0

    def __post_init__(self) -> None:
        if not self.path.startswith("/") or not self.path.isprintable() or " " in self.path:
            raise ConfigurationError(f"the path of a check is such as /health; not {self.path[:60]!r}")
        checked_seconds("check_interval", self.interval, least=_LEAST_INTERVAL)
        checked_seconds("check_timeout", self.timeout)


@dataclass(frozen=True, slots=True)
class GRPCCheck:
    """The agent asks the server's standard health service by gRPC.

    Args:
        service: The service that it asks about (default "": the server as a whole).
        interval: Seconds between two questions (default 5, at least 1). The first comes within them; until then the
            check is critical.
        timeout: Seconds that the answer may take (default 2).

    Raises:
        ConfigurationError: A number that cannot be right.
    """

    service: str = ""
    interval: float = 5.0
    timeout: float = 2.0

    def __post_init__(self) -> None:
        checked_seconds("check_interval", self.interval, least=_LEAST_INTERVAL)
        checked_seconds("check_timeout", self.timeout)


Check = TTLCheck | HTTPCheck | GRPCCheck


class ConsulRegistrar:
    """Registers with one agent, which should be the one of this machine: an instance lives and dies with its agent.

    Args:
        host: The agent (default `CONSUL_HTTP_ADDR`, or 127.0.0.1).
        port: Its HTTP port (default as for the host, or 8500).
        tags: Tags of the instances.
        check: Who says whether an instance gets calls: `TTLCheck()` (default), `HTTPCheck(...)` or `GRPCCheck(...)`.
            With a server that speaks TLS the agent does not look at its certificate.
        deregister_after: Seconds after which Consul removes an instance whose check is critical all the time (default:
            60, or six times the `ttl` if that is more). Consul takes at least 60, and looks every 30. A server that
            was removed but lives registers again.
        client: A `consul.Consul` object of python-consul or py-consul whose HTTP client is used instead of our own.
        **connection: Token, TLS, unix socket, namespace: see `ConnectionOptions`. A token needs `service:write` for
            the service.

    Raises:
        ConfigurationError: An argument or a variable that cannot be right.
    """

    def __init__(
        self,
        host: str = "",
        port: int = 0,
        *,
        tags: Iterable[str] = (),
        check: Check = TTLCheck(),
        deregister_after: float | None = None,
        client: Any = None,
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        if not isinstance(check, Check):
            raise ConfigurationError(f"check is TTLCheck(), HTTPCheck(...) or GRPCCheck(...); not {check!r}")
        if client is None:
            self._address = ConsulAddress(host, port, **connection)
        else:
            self._address = ConsulAddress.of_client(client, connection)
        if deregister_after is not None:
            checked_seconds("deregister_after", deregister_after, least=_KEEP_DEAD)
        self._http = ConsulHTTP(self._address, client)
        self._tags = [tags] if isinstance(tags, str) else list(tags)
        self._check = check
        self._deregister_after = deregister_after
        self._lock = threading.Lock()
        self._registered: dict[str, dict[str, Any]] = {}

    @classmethod
    def from_url(cls, url: str) -> ConsulRegistrar:
        """Read `consul://[host[:port]][?tag=…&check=…]` or `consul:///path/of/socket[?…]`.

        `check` is `ttl`, `http:/path` or `grpc[:service]`, with `check_interval` and `check_timeout`; `tag` takes
        several tags with commas between them. The options of `ConsulDiscovery` are accepted, so that both sides can
        share one URL.
        """
        connection, options = ConsulAddress.read_url(url, dict.fromkeys((*_OPTIONS, *_OF_THE_DISCOVERY)))
        return cls(
            **connection,
            tags=[tag for tag in options.get("tag", "").split(",") if tag],
            check=_check_option(options),
            deregister_after=seconds_option(options, "deregister_after", 0.0) or None,
        )

    def attach(self, wake: Callable[[], None]) -> None:
        """Nothing to tell: what the agent forgot is noticed at the next renewal."""

    def detach(self, wake: Callable[[], None]) -> None:
        """Nothing to forget."""

    def announce(self, service: str, endpoint: Endpoint, ttl: float) -> None:
        """Renew; register if that is new, different or forgotten. Raises RegistrationError."""
        description = self._describe(service, endpoint, ttl)
        with self._lock:
            known = self._registered.get(description["ID"])
        try:
            if known == description and self._is_kept(description):
                return
            self._register(description, first=known is None)
        except ConsulError as error:
            raise RegistrationError(f"registering {service} failed: {error}") from error
        with self._lock:
            self._registered[description["ID"]] = description

    def withdraw(self, service: str, endpoint: Endpoint) -> None:
        """Deregister. Raises RegistrationError."""
        id = _service_id(service, endpoint)
        with self._lock:
            self._registered.pop(id, None)
        try:
            self._http.put(path("agent", "service", "deregister", id), _TIMEOUT_OF_LEAVING)
        except ConsulError as error:
            if error.status != 404:
                raise RegistrationError(f"deregistering {service} failed: {error}") from error

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._http.close()

    def default_host(self) -> str:
        """The address of the agent's machine, if the agent is here; otherwise ours on the way to the agent."""
        if self._address.is_here:
            try:
                member = self._http.get(path("agent", "self"), _TIMEOUT_OF_DEFAULTS).json()["Member"]
                return str(member["Addr"])
            except (ConsulError, LookupError, TypeError):
                pass  # down, or the token may not ask
        if self._address.unix_socket:
            return "127.0.0.1"
        return local_address(self._address.host, self._address.port)

    def __str__(self) -> str:
        return str(self._address)

    def _register(self, description: dict[str, Any], *, first: bool) -> None:
        # Without `replace-existing-checks` the checks of an earlier registration would stay, and fail.
        parameters = {"replace-existing-checks": "true"}
        self._http.put(path("agent", "service", "register"), _TIMEOUT, parameters, description)
        if first:
            # An agent remembers maintenance over restarts, its own and ours: a server that starts is not in it.
            self._http.put(path("agent", "service", "maintenance", description["ID"]), _TIMEOUT, {"enable": "false"})
        # An agent that restarts restores what a renewal said, but not what the registration said: without one
        # the instance would be out of the list until its next.
        self._is_kept(description)

    def _is_kept(self, description: dict[str, Any]) -> bool:
        """Whether the agent still knows the instance; what the server has to say for its check is said."""
        try:
            if isinstance(self._check, TTLCheck):
                self._http.put(path("agent", "check", "pass", description["Check"]["CheckID"]), _TIMEOUT)
            else:
                self._http.get(path("agent", "service", description["ID"]), _TIMEOUT)
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
        keep_dead = max(_KEEP_DEAD, 6 * ttl) if self._deregister_after is None else self._deregister_after
        id = _service_id(service, endpoint)
        return {
            "ID": id,
            "Name": service,
            "Address": endpoint.host,
            "Port": endpoint.port,
            "Tags": self._tags,
            "Meta": meta,
            "Weights": {"Passing": weight, "Warning": weight},
            "Check": {
                "CheckID": f"service:{id}",
                "DeregisterCriticalServiceAfter": f"{keep_dead:.0f}s",
                **_definition(self._check, endpoint, ttl),
            },
        }


def _definition(check: Check, endpoint: Endpoint, ttl: float) -> dict[str, Any]:
    """The check as Consul takes it."""
    if isinstance(check, TTLCheck):
        # "passing": otherwise it would be critical until the first renewal
        return {"Name": "the server renews its registration", "TTL": _duration(ttl), "Status": "passing"}
    often = {"Interval": _duration(check.interval), "Timeout": _duration(check.timeout)}
    if isinstance(check, HTTPCheck):
        url = f"{'https' if endpoint.secure else 'http'}://{endpoint.address}{check.path}"
        return {"Name": "the server answers by HTTP", "HTTP": url, "TLSSkipVerify": endpoint.secure, **often}
    target = f"{endpoint.address}/{check.service}" if check.service else endpoint.address
    tls = {"GRPCUseTLS": endpoint.secure, "TLSSkipVerify": endpoint.secure}
    return {"Name": "the server answers by gRPC", "GRPC": target, **tls, **often}


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f}ms"


def _check_option(options: dict[str, str]) -> Check:
    kind, _, rest = options.get("check", "ttl").partition(":")
    times = {name: seconds_option(options, f"check_{name}", 0.0) for name in ("interval", "timeout")}
    times = {name: seconds for name, seconds in times.items() if seconds}
    if kind == "http":
        return HTTPCheck(rest or "/health", **times)
    if kind == "grpc":
        return GRPCCheck(rest, **times)
    if kind != "ttl" or rest:
        raise ConfigurationError(f"check is ttl, http:/path, grpc or grpc:service; not {options['check'][:60]!r}")
    return TTLCheck()


def _service_id(service: str, endpoint: Endpoint) -> str:
    """The agent tells instances apart by this alone: without the service, the same id in two would be one instance."""
    return f"{service}:{endpoint.id}"
