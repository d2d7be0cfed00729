"""Who exists: registries, and the URL or object that a user names one with.

General layout: `base` is the contract. `static`, `file`, `directory`, `dns`, `zookeeper` and `consul` are the
backends, each imported only when its scheme is asked for. `decode` reads what registries hold, `feed` and `polling` are
what backends share, `url` takes URLs apart.
"""

from __future__ import annotations

from clientlb.discovery.base import Discovery, Listener, RemarkingResolver, Resolver
from clientlb.discovery.url import open_backend
from clientlb.errors import ConfigurationError

__all__ = ["Discovery", "Listener", "RemarkingResolver", "Resolver", "open_discovery"]

ENTRY_POINTS = "clientlb.discovery"
"""The entry-point group with which other packages add schemes: `scheme = "module:Class"`."""

_BUILT_IN = {
    "static": "clientlb.discovery.static:StaticDiscovery",
    "file": "clientlb.discovery.file:FileDiscovery",
    "dir": "clientlb.discovery.directory:DirectoryDiscovery",
    "dns": "clientlb.discovery.dns:DnsDiscovery",
    "dns+srv": "clientlb.discovery.dns:SrvDiscovery",
    "zookeeper": "clientlb.discovery.zookeeper:ZooKeeperDiscovery",
    "consul": "clientlb.discovery.consul:ConsulDiscovery",
}


def open_discovery(source: str | Discovery) -> Discovery:
    """Return the registry that `source` names. Does no I/O.

    Args:
        source: A URL such as `consul://127.0.0.1:8500`, `zookeeper://h1:2181,h2:2181/services`,
            `dns://orders.internal:8080`, `dir:///run/registry`, `file:///etc/services.json` or
            `static://10.0.0.1:80,10.0.0.2:80`, or an object that is a `Discovery` already.

    Raises:
        ConfigurationError: The URL is wrong, its scheme is unknown, or the package that it needs is not installed.
    """
    found = open_backend(source, _BUILT_IN, ENTRY_POINTS) if isinstance(source, str) else source
    if isinstance(found, type) or not isinstance(found, Discovery):
        raise ConfigurationError(f"neither a URL nor a Discovery (resolver, close): {type(found).__name__}")
    return found
