"""Which hosts of URLs are services. A pure decision, made once per request from the host alone.

The rule is in the docstring of `clientlb.httpx`, for users. Hosts arrive here as httpx normalises them: in lower case.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

from clientlb.errors import ConfigurationError
from clientlb.services import Services

Hosts: TypeAlias = Mapping[str, str] | Collection[str] | Callable[[str], bool]
"""What users may give: host -> service, names that are both, or a predicate over hosts."""

HostRule: TypeAlias = Callable[[str], str | None]
"""The service that a host stands for; None for a host that is an ordinary one."""

_LABEL = re.compile(r"[\w-]+").fullmatch


def host_rule(services: Services, hosts: Hosts | None) -> HostRule:
    """Make the rule of one client.

    Raises:
        ConfigurationError: `hosts` is none of the forms.
    """
    if hosts is None:
        configured = _by_host(services.configured)
        return functools.lru_cache(lambda host: configured.get(host) or (host if looks_like_a_service(host) else None))
    if callable(hosts):
        is_service = hosts
        return lambda host: host if is_service(host) else None
    if isinstance(hosts, (str, bytes)) or not isinstance(hosts, (Mapping, Collection)):
        raise ConfigurationError(f"hosts is {hosts!r}; give a set of names, a mapping host -> service or a predicate")
    return _by_host(hosts).get


def looks_like_a_service(host: str) -> bool:
    """A single label that is neither `localhost` nor an IP address (a number alone is one, too)."""
    return _LABEL(host) is not None and host != "localhost" and not host.isdecimal()


def _by_host(hosts: Mapping[str, str] | Collection[str]) -> dict[str, str]:
    pairs = hosts.items() if isinstance(hosts, Mapping) else zip(hosts, hosts, strict=True)
    # a URL's host has no upper case, the name of a service may
    return {host.lower(): service for host, service in pairs}
