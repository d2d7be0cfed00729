"""Asks DNS: from a name to the servers behind it, with dnspython. Knows no thread and no listener.

That a name or a record does not exist is an *answer*, and an empty one. That a server failed, refused or was silent is
no answer. The difference is all that keeps an outage of DNS from emptying a list.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver
from cachetools import LRUCache

from clientlb.discovery.url import redact
from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError, DiscoveryError, InvalidEndpointError

logger: logging.Logger = logging.getLogger("clientlb.discovery")

Family = Literal["any", "4", "6", "both"]

_DNS_PORT = 53
_MOST_AT_ONCE = 100
"""Questions that are open at the same time, each with a socket; a silent nameserver keeps one for `timeout` seconds."""

_MOST_TARGETS = 65_536
"""Targets of SRV records whose addresses are remembered."""

_MOST_WARNINGS = 1024
"""Warnings that are remembered, so that each comes once."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """The addresses of a name, sorted, and for how many seconds they are promised (None: the name has none)."""

    hosts: tuple[str, ...] = ()
    ttl: float | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """One SRV record: a server by its name."""

    name: str
    port: int
    priority: int
    weight: int


@dataclass(frozen=True, slots=True)
class Servers:
    """What a name stands for now; `ttl` as in `Addresses`."""

    endpoints: tuple[Endpoint, ...] = ()
    ttl: float | None = None


def nameserver_address(text: str) -> tuple[str, int]:
    """Read `ADDRESS`, `ADDRESS:PORT`, or `[ADDRESS]:PORT` for IPv6.

    Raises:
        ConfigurationError: It is neither.
    """
    try:
        return str(ip_address(text)), _DNS_PORT
    except ValueError:
        pass
    try:
        parts = urlsplit(f"//{text}")
        if parts.netloc == text and parts.port != 0:
            return str(ip_address(parts.hostname or "")), parts.port or _DNS_PORT
    except ValueError:
        pass
    raise ConfigurationError(f"resolver is the IP address of a nameserver, with or without :port; not {redact(text)!r}")


def weights_of(targets: Sequence[Target]) -> list[float]:
    """The share of each target as RFC 2782 gives it; 1.0 for all when they are equal.

    There a weight of 0 has the chance of one point beside the others. Equal weights say nothing, and Kubernetes
    changes them (to 100 / count) whenever a pod comes or goes.
    """
    weights = [float(max(target.weight, 1)) for target in targets]
    return [1.0] * len(weights) if len(set(weights)) == 1 else weights


def servers_of(targets: Iterable[Target], addresses: dict[str, Addresses]) -> tuple[list[Endpoint], list[str]]:
    """The endpoints of SRV records, and what is wrong with the records that make none.

    Of the groups of equal priority, only the first in which a target has an address counts: RFC 2782 wants the others
    left alone while one of it can be reached. A target with several addresses shares its weight among them.
    """
    bad: list[str] = []
    groups: dict[int, list[Target]] = {}
    for target in targets:
        if addresses[target.name].hosts:
            groups.setdefault(target.priority, []).append(target)
    for priority in sorted(groups):
        endpoints: list[Endpoint] = []
        group = sorted(groups[priority], key=lambda target: (target.name, target.port))
        for target, weight in zip(group, weights_of(group), strict=True):
            hosts = addresses[target.name].hosts
            metadata = {"target": target.name.rstrip("."), "priority": str(priority)}
            try:
                endpoints += [
                    Endpoint(host, target.port, weight=weight / len(hosts), metadata=metadata) for host in hosts
                ]
            except InvalidEndpointError as error:
                bad.append(f"{target.name}: {error}")
        if endpoints:
            return endpoints, bad
    return [], bad


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """How questions are asked.

    Args:
        nameservers: Who is asked: (IP address, port); empty: those of `/etc/resolv.conf`, read again after a failure.
        search: The domains in which a name without a trailing dot is looked for; None: those of `/etc/resolv.conf`,
            or none beside `nameservers`.
        family: Which addresses count: `4`, `6`, `both`, or `any`: IPv4, and IPv6 for names that have no IPv4.
        timeout: The longest that one question takes, in seconds, with all its retries.
    """

    nameservers: tuple[tuple[str, int], ...]
    search: tuple[dns.name.Name, ...] | None
    family: Family
    timeout: float

    def __post_init__(self) -> None:
        if self.family not in get_args(Family):
            raise ConfigurationError(f"family is one of {', '.join(get_args(Family))}; not {self.family!r}")

    def resolver(self) -> dns.asyncresolver.Resolver:
        """A resolver of dnspython that asks like this.

        Raises:
            DNSException: There is no `/etc/resolv.conf`.
        """
        resolver = dns.asyncresolver.Resolver(configure=not self.nameservers)
        if self.nameservers:
            resolver.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in self.nameservers]
            resolver.search, resolver.domain = [], dns.name.root
        if self.search is not None:
            resolver.search, resolver.domain = list(self.search), dns.name.root
        return resolver


class DnsLookup:
    """Answers what a name stands for. It belongs to one event loop, and learns there what the watched names share."""

    def __init__(self, settings: DnsSettings) -> None:
        self._settings = settings
        self._resolver: dns.asyncresolver.Resolver | None = None
        self._open = asyncio.Semaphore(_MOST_AT_ONCE)
        # Kept beyond their time: they stay in use while a target cannot be resolved again.
        self._targets: LRUCache[str, tuple[Addresses, float]] = LRUCache(_MOST_TARGETS)
        self._warned: LRUCache[str, bool] = LRUCache(_MOST_WARNINGS)

    async def by_address(self, name: str, port: int) -> Servers:
        """One endpoint for each address of the name.

        Raises:
            DiscoveryError: There was no answer.
        """
        found = await self._addresses(name)
        return Servers(tuple(Endpoint(host, port) for host in found.hosts), found.ttl)

    async def by_srv(self, name: str) -> Servers:
        """The endpoints that the SRV records of the name describe.

        Raises:
            DiscoveryError: There was no answer, or no address of any target could be had.
        """
        answer = await self._ask(name, "SRV")
        if answer is None or answer.rrset is None:
            return Servers()
        targets = [
            Target(_text(record.target), record.port, record.priority, record.weight)
            for record in answer.rrset
            if record.target != dns.name.root  # "the service is decidedly not available at this domain"
        ]
        names = sorted({target.name for target in targets})
        addresses = await self._addresses_of_targets(names, answer)
        endpoints, bad = servers_of(targets, addresses)
        for trouble in bad:
            self._warn(f"{name}: a record is left out: {trouble}")
        ttls = [answer.chaining_result.minimum_ttl, *(found.ttl for found in addresses.values())]
        known = [ttl for ttl in ttls if ttl is not None]
        return Servers(tuple(endpoints), min(known) if len(known) == len(ttls) else None)

    async def _addresses_of_targets(self, names: list[str], answer: dns.resolver.Answer) -> dict[str, Addresses]:
        now = time.monotonic()
        for name, found in self._additional(answer).items():
            if name in names:
                self._remember(name, found, now)
        old = [name for name in names if name not in self._targets or self._targets[name][1] <= now]
        news = await asyncio.gather(*map(self._addresses, old), return_exceptions=True)
        failed: dict[str, BaseException] = {}
        for name, result in zip(old, news, strict=True):
            if isinstance(result, Addresses):
                self._remember(name, result, now)
            elif name not in self._targets:
                failed[name] = result
        if failed and len(failed) == len(names):
            raise next(iter(failed.values()))
        for name, error in failed.items():
            self._warn(f"the target {name} is left out: {error}")
        return {name: self._targets[name][0] if name in self._targets else Addresses() for name in names}

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned[text] = True
            logger.warning("%s", text)

    def _remember(self, name: str, found: Addresses, now: float) -> None:
        self._targets[name] = (found, now + (found.ttl or 0.0))

    def _additional(self, answer: dns.resolver.Answer) -> dict[str, Addresses]:
        """The addresses that the server sent along, of those names for which it sent all that the family needs."""
        found: dict[str, dict[int, Any]] = {}
        for records in answer.response.additional:
            found.setdefault(_text(records.name), {})[records.rdtype] = records
        complete: dict[str, Addresses] = {}
        for name, by_type in found.items():
            wanted = [by_type.get(dns.rdatatype.from_text(type)) for type in _types(self._settings.family)]
            sets = wanted[:1] if self._settings.family == "any" else wanted
            if all(records is not None for records in sets):
                complete[name] = _joined(Addresses(_hosts(each), each.ttl) for each in sets if each is not None)
        return complete

    async def _addresses(self, name: str) -> Addresses:
        if self._settings.family == "both":
            answers = await asyncio.gather(*(self._ask(name, type) for type in _types("both")))
            return _joined(map(_addresses_in, answers))
        for type in _types(self._settings.family):
            answer = await self._ask(name, type)
            if answer is None or answer.rrset is not None:
                return _addresses_in(answer)
        return Addresses()

    async def _ask(self, name: str, type: str) -> dns.resolver.Answer | None:
        """The answer, with or without records; None when the name does not exist.

        Raises:
            DiscoveryError: There was no answer.
        """
        async with self._open:
            try:
                if self._resolver is None:
                    self._resolver = self._settings.resolver()
                return await self._resolver.resolve(
                    name, type, search=True, raise_on_no_answer=False, lifetime=self._settings.timeout
                )
            except dns.resolver.NXDOMAIN:
                return None
            except (dns.exception.DNSException, OSError) as error:
                self._resolver = None  # the machine may have moved to another network, with other nameservers
                raise DiscoveryError(f"{type} {name}: {_trouble(error)}") from error


def absolute_name(text: str) -> dns.name.Name:
    """Read a name; one that is relative is taken from the root.

    Raises:
        ConfigurationError: It is no name that DNS can hold.
    """
    try:
        return dns.name.from_text(text)
    except (dns.exception.DNSException, ValueError) as error:
        raise ConfigurationError(f"{text!r} is not a DNS name: {error}") from None


def _types(family: Family) -> tuple[str, ...]:
    return {"4": ("A",), "6": ("AAAA",)}.get(family, ("A", "AAAA"))


def _text(name: dns.name.Name) -> str:
    """One spelling for a name that may come in several."""
    return name.canonicalize().to_text()


def _hosts(records: Iterable[Any]) -> tuple[str, ...]:
    """Sorted, for servers hand them out in a new order every time."""
    return tuple(sorted({record.address for record in records}))


def _addresses_in(answer: dns.resolver.Answer | None) -> Addresses:
    if answer is None or answer.rrset is None:
        return Addresses()
    return Addresses(_hosts(answer.rrset), answer.chaining_result.minimum_ttl)


def _joined(parts: Iterable[Addresses]) -> Addresses:
    parts = list(parts)
    ttls = [part.ttl for part in parts if part.ttl is not None]
    return Addresses(tuple(host for part in parts for host in part.hosts), min(ttls, default=None))


def _trouble(error: Exception) -> str:
    if isinstance(error, dns.resolver.NoNameservers):
        answers = {str(entry[3]) or type(entry[3]).__name__ for entry in error.kwargs.get("errors", ())}
        return f"no nameserver could answer ({', '.join(sorted(answers)) or 'none is left'})"
    if isinstance(error, dns.resolver.LifetimeTimeout):
        return f"no answer within {error.kwargs['timeout']:.3g} s"
    return str(error) or type(error).__name__
