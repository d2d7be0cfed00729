"""Services whose servers are the records of a name in DNS. Needs dnspython (extra `dns`).

    dns://orders.internal:8080                            the A and AAAA records of one name
    dns://{service}.default.svc.cluster.local:8080        a name for each service
    dns://:8080                                           the service is the name
    dns+srv://_grpc._tcp.{service}.example.com            SRV records: port, weight and priority come from DNS

DNS tells nobody about a change, so a name is asked again when its answer ends: by its TTL, within bounds and with some
jitter. All names of a discovery share one thread; a name whose server is silent holds up no other.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import random
import threading
from collections.abc import Iterable
from typing import Any, ClassVar, Self
from urllib.parse import unquote

from clientlb.discovery._backoff import Backoff
from clientlb.discovery._dns_lookup import (
    DnsLookup,
    DnsSettings,
    Family,
    Servers,
    absolute_name,
    nameserver_address,
)
from clientlb.discovery._tasks import Task, TaskThread
from clientlb.discovery.base import Listener
from clientlb.discovery.feed import Feed
from clientlb.discovery.url import checked_seconds, redact, seconds_option, split_url
from clientlb.errors import ClosedError, ConfigurationError, DiscoveryError

logger: logging.Logger = logging.getLogger("clientlb.discovery")

MIN_INTERVAL = 5.0
"""The shortest pause between two questions for a name, in seconds: the TTL of Kubernetes' CoreDNS. Consul's is 0."""

MAX_INTERVAL = 60.0
"""The longest pause: a TTL says how long an answer may be kept, and not that its servers live that long."""

TIMEOUT = 5.0
"""Seconds for one question with all its retries, as in `resolv.conf`."""

SERVICE = "{service}"
"""What the name of the service takes the place of."""

_JITTER = 0.1
_FIRST_RETRY = 1.0


class DnsDiscovery:
    """Services by the addresses of a name. URL: `dns://NAME:PORT`.

    A name that does not exist, or has no address, has no endpoints. A nameserver that is silent, fails or refuses is
    an error that keeps the last good list. Only DNS is asked: `/etc/hosts` is not read.

    Args:
        name: The name of every service; `{service}` in it stands for the service. Empty: the service is the name.
        port: The port of the servers.
        nameservers: Whom to ask: IP addresses, with or without `:port` (default: as `/etc/resolv.conf` says).
        search: The domains in which a name without a trailing dot is looked for (default: those of
            `/etc/resolv.conf`; none with `nameservers`).
        family: `any` (default): IPv4 addresses, or IPv6 if there are no others, for the two are the same servers
            twice. `both`, `4` or `6`: just these.
        min_interval: The shortest pause between two questions, in seconds (default 5).
        max_interval: The longest one (default 60). Between the two the TTL decides.
        timeout: Seconds for one question with all its retries (default 5).

    Raises:
        ConfigurationError: A name, an address or a number cannot be right.
    """

    _scheme: ClassVar[str] = "dns"

    def __init__(
        self,
        name: str = "",
        port: int | None = None,
        *,
        nameservers: Iterable[str] = (),
        search: Iterable[str] | None = None,
        family: Family = "any",
        min_interval: float = MIN_INTERVAL,
        max_interval: float = MAX_INTERVAL,
        timeout: float = TIMEOUT,
    ) -> None:
        self._name = name or SERVICE
        if set("{}") & set(self._name.replace(SERVICE, "")):
            raise ConfigurationError(f"the name {name!r} has braces; only {SERVICE} stands for something")
        self._port = self._checked_port(port)
        self._settings = DnsSettings(
            nameservers=tuple(map(nameserver_address, nameservers)),
            search=None if search is None else tuple(map(absolute_name, search)),
            family=family,
            timeout=checked_seconds("timeout", timeout),
        )
        self._min_interval = checked_seconds("min_interval", min_interval)
        self._max_interval = checked_seconds("max_interval", max_interval, least=self._min_interval)
        if SERVICE not in self._name:
            self._name_of("")
        self._thread = TaskThread("dns")
        self._lookup: tuple[asyncio.AbstractEventLoop, DnsLookup] | None = None

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Read the URL. Options: `resolver`, `search` (lists with commas), `family`, `min_interval`, `max_interval`,
        `timeout`.
        """
        parts, options = split_url(url, ("resolver", "search", "family", "min_interval", "max_interval", "timeout"))
        if "@" in parts.netloc or parts.path not in ("", "/"):
            raise ConfigurationError(f"{redact(url)!r}: {cls._scheme}:// takes a name, and nothing before or after it")
        try:
            port = parts.port
        except ValueError as error:
            raise ConfigurationError(f"{redact(url)!r}: {error}") from None
        chosen: dict[str, Any] = {"family": options["family"]} if "family" in options else {}
        if "search" in options:
            chosen["search"] = options["search"].split(",")
        return cls(
            unquote(parts.hostname or ""),
            port,
            nameservers=options["resolver"].split(",") if "resolver" in options else (),
            min_interval=seconds_option(options, "min_interval", MIN_INTERVAL),
            max_interval=seconds_option(options, "max_interval", MAX_INTERVAL),
            timeout=seconds_option(options, "timeout", TIMEOUT),
            **chosen,
        )

    def resolver(self, service: str) -> DnsResolver:
        """Make the resolver of one service.

        Raises:
            ConfigurationError: With this service the name is none that DNS can hold.
        """
        return DnsResolver(self, self._name_of(service))

    def close(self) -> None:
        """End the thread that asks."""
        self._thread.close()

    def __str__(self) -> str:
        return f"{self._scheme}://{'' if self._name == SERVICE else self._name}:{self._port}"

    def _checked_port(self, port: int | None) -> int | None:
        if isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536:
            return port
        raise ConfigurationError(
            f"dns:// needs the port of the servers, from 1 to 65535: dns://{{service}}.internal:8080, or dns://:8080 "
            f"if services have the names of hosts; dns+srv:// reads ports from DNS. The port is {port!r}"
        )

    def _name_of(self, service: str) -> str:
        if not isinstance(service, str):
            raise ConfigurationError("the name of a service is a text")
        name = self._name.replace(SERVICE, service)
        absolute_name(name)
        try:
            ipaddress.ip_address(name)
        except ValueError:
            if name.strip("."):
                return name
        raise ConfigurationError(f"{name!r} is no name for DNS; a list of addresses is static://HOST:PORT,HOST:PORT")

    async def _watch(self, name: str, feed: Feed) -> None:
        """Ask, deliver, wait; for ever."""
        backoff = Backoff(_FIRST_RETRY, self._max_interval)
        lookup = self._shared_lookup()
        while True:
            try:
                servers = await self._servers(lookup, name)
                feed.update(servers.endpoints)
                backoff.succeeded()
                pause = self._pause(servers.ttl)
            except Exception as error:
                if not isinstance(error, DiscoveryError):  # a mistake of ours, or an answer that dnspython trips over
                    logger.exception("%s: looking up %s failed", self, name)
                feed.error(DiscoveryError(f"{self}: {error}"))
                pause = backoff.failed()
            await asyncio.sleep(pause)

    async def _servers(self, lookup: DnsLookup, name: str) -> Servers:
        assert self._port is not None
        return await lookup.by_address(name, self._port)

    def _shared_lookup(self) -> DnsLookup:
        """The one of this event loop; a new loop (after a fork, or after the last watch ended) has a new one."""
        loop = asyncio.get_running_loop()
        if self._lookup is None or self._lookup[0] is not loop:
            self._lookup = (loop, DnsLookup(self._settings))
        return self._lookup[1]

    def _pause(self, ttl: float | None) -> float:
        """Seconds until the next question. What is missing may appear at any moment, whatever its negative TTL."""
        wanted = 0.0 if ttl is None else ttl
        return min(max(wanted, self._min_interval), self._max_interval) * random.uniform(1.0, 1.0 + _JITTER)


class SrvDiscovery(DnsDiscovery):
    """Services by the SRV records of a name. URL: `dns+srv://_SERVICE._PROTOCOL.NAME`.

    Port and weight come from the records. Of several priorities only the best gets calls: the servers of the next one
    are delivered when no target of the better one has an address. Targets are resolved to addresses; those that the
    answer brings along are not asked for again. `metadata` has the `target` and the `priority`.

    Args as for `DnsDiscovery`, without a port.
    """

    _scheme = "dns+srv"

    def __str__(self) -> str:
        return f"{self._scheme}://{'' if self._name == SERVICE else self._name}"

    def _checked_port(self, port: int | None) -> int | None:
        if port is not None:
            raise ConfigurationError("dns+srv:// has no port: SRV records say it")
        return None

    async def _servers(self, lookup: DnsLookup, name: str) -> Servers:
        return await lookup.by_srv(name)


class DnsResolver:
    """Watches one name."""

    def __init__(self, discovery: DnsDiscovery, name: str) -> None:
        self._discovery = discovery
        self._name = name
        self._feed: Feed | None = None
        self._task: Task | None = None
        self._closed = False
        self._lock = threading.Lock()

    def start(self, listener: Listener) -> None:
        """Begin to ask. The first answer comes on another thread.

        Raises:
            ClosedError: The resolver or its discovery was closed.
        """
        with self._lock:
            if self._closed:
                raise ClosedError(f"the watch of {self._name} was closed")
            self._feed = Feed(listener, f"{self._name} in {self._discovery}")
            self._task = self._discovery._thread.start(
                functools.partial(self._discovery._watch, self._name, self._feed)
            )

    def close(self) -> None:
        """Stop asking."""
        with self._lock:
            self._closed = True
            feed, task = self._feed, self._task
        if feed is not None and task is not None:
            feed.close()
            self._discovery._thread.stop(task)
