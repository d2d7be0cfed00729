"""An ordinary client in which the hosts that are services go to a balanced transport, and all else goes its usual way.

The balanced transport is a mount. So base URLs, cookies, redirects, event hooks, proxies for ordinary hosts and closing
are the client's own.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Generic

from clientlb._http.flavour import Settings
from clientlb._http.hosts import Hosts
from clientlb._http.message import URL
from clientlb._http.shell import MAX_IDLE, Shell, TransportT
from clientlb.endpoint import Endpoint
from clientlb.forks import never_free, survive_forks
from clientlb.services import Services


class ServiceMount(Generic[TransportT]):
    """Matches the URLs of services, where a client has its `httpx` patterns."""

    def __init__(self, shell: Shell[TransportT]) -> None:
        self._shell = shell

    def matches(self, url: URL) -> bool:
        """Whether the URL is for a service."""
        return self._shell.matches(url)


class BalancedClient(Generic[TransportT]):
    """What all four clients share. A subclass names its transport and the client of its flavour."""

    _shell_type: ClassVar[Any]
    _mounts: dict[Any, Any]
    _transport: Any

    def __init__(
        self,
        services: Services,
        *,
        hosts: Hosts | None = None,
        inner: Callable[[Endpoint], TransportT] | None = None,
        max_idle: int = MAX_IDLE,
        uds: Callable[[Endpoint], str | None] | None = None,
        base_path: Callable[[Endpoint], str | None] | None = None,
        verify: ssl.SSLContext | str | bool = True,
        cert: Any = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: Any = None,
        mounts: Mapping[str, TransportT | None] | None = None,
        **options: Any,
    ) -> None:
        """Make a client. It connects at the first request.

        Args:
            services: Where the endpoints come from. It is borrowed: closing the client leaves it open.
            hosts, inner, max_idle, uds, base_path: As for the transport.
            verify, cert, trust_env, http1, http2, limits: As in httpx, for services and for ordinary hosts.
            mounts: As in httpx. A mount that names a host comes before the services, any other one after them.
            options: Everything else that the client of the flavour takes. `proxy`, the proxies of the environment and
                `transport` are for ordinary hosts only; services are called directly.

        Raises:
            ConfigurationError: As for the transport.
        """
        shell_type = self._shell_type
        self._made: list[tuple[TransportT, Callable[[], TransportT]]] = []
        settings = Settings(verify=verify, cert=cert, trust_env=trust_env, http1=http1, http2=http2, limits=limits)
        arguments = settings.arguments(shell_type._flavour.module)
        client: Any = super()
        client.__init__(**arguments, mounts=mounts, **options)
        ways = {"inner": inner, "max_idle": max_idle, "uds": uds, "base_path": base_path}
        shell = shell_type(services, hosts=hosts, **ways, **arguments)
        named = {
            pattern: transport
            for pattern, transport in self._mounts.items()
            if pattern.host and pattern.pattern in (mounts or ())
        }
        self._mounts = {**named, ServiceMount(shell): shell, **self._mounts}
        survive_forks(self, BalancedClient._after_fork)

    # httpx makes its own transports, for ordinary hosts and their proxies, with these two

    def _init_transport(self, *arguments: Any, **settings: Any) -> TransportT:
        client: Any = super()
        return self._remember(partial(client._init_transport, *arguments, **settings))

    def _init_proxy_transport(self, *arguments: Any, **settings: Any) -> TransportT:
        client: Any = super()
        return self._remember(partial(client._init_proxy_transport, *arguments, **settings))

    def _remember(self, make: Callable[[], TransportT]) -> TransportT:
        transport = make()
        self._made.append((transport, make))
        return transport

    def _after_fork(self) -> None:
        """In a forked child: the connections to ordinary hosts are the parent's. What the user made stays."""
        never_free([transport for transport, _ in self._made])
        made, self._made = self._made, []
        # a transport of the user's is made by returning it, and so stays
        renewed = {id(transport): self._remember(make) for transport, make in made}
        self._transport = renewed.get(id(self._transport), self._transport)
        self._mounts = {pattern: renewed.get(id(each), each) for pattern, each in self._mounts.items()}
