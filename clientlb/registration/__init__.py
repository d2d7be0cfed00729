"""Be found: a server announces itself to a registry, and leaves it.

General layout: `base` has the contract of a registrar and the thread that renews, `departure` the order in which a
server leaves. `directory`, `zookeeper` and `consul` are the registrars, each imported only when its scheme is asked
for. `asgi`, `wsgi`, `gunicorn` and `grpc` fit it all to a kind of server.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping

from clientlb.discovery.url import checked_seconds, open_backend
from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError
from clientlb.registration._selftest import SelfTestFunction
from clientlb.registration._signals import checked_signals
from clientlb.registration.base import Registrar, Registration
from clientlb.registration.departure import Stage
from clientlb.require import require_callable, require_number

__all__ = ["Registrar", "Registration", "Stage", "open_registrar", "register"]

ENTRY_POINTS = "clientlb.registration"
"""The entry-point group with which other packages add schemes: `scheme = "module:Class"`."""

_BUILT_IN = {
    "dir": "clientlb.registration.directory:DirectoryRegistrar",
    "zookeeper": "clientlb.registration.zookeeper:ZooKeeperRegistrar",
    "consul": "clientlb.registration.consul:ConsulRegistrar",
}


def register(
    service: str,
    *,
    port: int,
    to: str | Registrar,
    host: str | None = None,
    id: str | None = None,
    weight: float = 1.0,
    zone: str | None = None,
    version: str | None = None,
    secure: bool = False,
    metadata: Mapping[str, str] | None = None,
    ttl: float = 10.0,
    timeout: float = 5.0,
    propagation: float = 1.0,
    drain_timeout: float = 20.0,
    self_test: SelfTestFunction | None = None,
    on_leave: Callable[[], object] | None = None,
    stop: Callable[[], object] | None = None,
    signals: Iterable[int] = (signal.SIGTERM,),
) -> Registration:
    """Announce a server to a registry until it leaves.

        with clientlb.registration.register("orders", port=8080, to="consul://127.0.0.1:8500", stop=server.shutdown):
            server.serve_forever()

    Returns at once: a daemon thread announces the server, and tries on while the registry is down. Call it when the
    server accepts connections, and in the main thread, where alone signals can be handled: SIGTERM then waits until the
    server has left as `Registration.leave` describes. A program that ends without leaving is taken out of the registry
    all the same, without the waiting.

    Args:
        service: The name under which clients find the server.
        port: The port it listens on.
        to: The registry: a URL (`dir`, `zookeeper` or `consul`), or a `Registrar`, which stays open at the end.
        host: The address under which clients reach it (default: this machine's, as the registry's readers see it).
        id: The instance's identity (default `host:port` and a random part, so that a restarted server is a new one
            with a clean record).
        weight: Share of the traffic relative to the other servers (default 1.0).
        zone: Failure domain, such as an availability zone (default: the variable `CLIENTLB_ZONE`, if it is set).
        version: Version of the software.
        secure: The server speaks TLS.
        metadata: Anything else that clients should know, as strings.
        ttl: Seconds after which a server that vanished counts as dead (default 10, the session of ZooKeeper users).
        timeout: The longest that leaving waits for the registry, in seconds (default 5).
        propagation: Seconds for which a server that left goes on serving, until all clients have heard of it
            (default 1; the news take milliseconds, a client that is being updated or a busy one takes longer).
        drain_timeout: The longest that leaving waits for requests under way, in seconds (default 20: with the other
            two it stays below the 30 that Kubernetes gives before it kills).
        self_test: Called about three times per `ttl` on a thread of its own. While it raises, returns False or has not
            ended after a third of the `ttl`, the server is not announced (default: no test).
        on_leave: Called when the server begins to leave, such as to turn a health check to "not ready".
        stop: Called when the server may stop, which then ends the program: a signal that would have killed it does
            not, unless `stop` raises, or leaving takes longer than the last three together.
        signals: Which signals wait until the server has left (default SIGTERM). What the program itself, or its
            server, has installed for them is called then. A second signal is not held back.

    Raises:
        ConfigurationError: The URL, the service or a number cannot be right.
        InvalidEndpointError: The host, port or weight is one that no server can have.
    """
    if not isinstance(service, str) or not service.strip():
        raise ConfigurationError("the name of a service is a text that is not empty")
    ttl, timeout = checked_seconds("ttl", ttl), checked_seconds("timeout", timeout)
    require_number("propagation", propagation, at_least=0)
    require_number("drain_timeout", drain_timeout, at_least=0)
    for name, function in (("self_test", self_test), ("on_leave", on_leave), ("stop", stop)):
        if function is not None:
            require_callable(name, function, "a function without arguments")
    caught = checked_signals(signals)
    registrar = open_registrar(to)
    try:
        address = registrar.default_host() if host is None else host
        endpoint = Endpoint(
            host=address,
            port=port,
            id=f"{address}:{port}-{os.urandom(3).hex()}" if id is None else id,
            weight=weight,
            secure=secure,
            zone=os.environ.get("CLIENTLB_ZONE") or None if zone is None else zone,
            version=version,
            started_at=time.time(),
            metadata=_checked(metadata or {}),
        )
    except BaseException:
        if registrar is not to:
            registrar.close()
        raise
    return Registration(
        registrar,
        service,
        endpoint,
        ttl=ttl,
        timeout=timeout,
        owns_registrar=registrar is not to,
        propagation=propagation,
        drain_timeout=drain_timeout,
        self_test=self_test,
        on_leave=on_leave,
        stop=stop,
        signals=caught,
    )


def open_registrar(to: str | Registrar) -> Registrar:
    """Return the registrar that a URL names; an object is returned as it is. Does no I/O.

    Raises:
        ConfigurationError: The URL is wrong, its scheme is unknown, or the package that it needs is not installed.
    """
    found = open_backend(to, _BUILT_IN, ENTRY_POINTS) if isinstance(to, str) else to
    if isinstance(found, type) or not isinstance(found, Registrar):
        raise ConfigurationError(f"neither a URL nor a Registrar: {type(found).__name__}")
    return found


def _checked(metadata: Mapping[str, str]) -> Mapping[str, str]:
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ConfigurationError(f"metadata are strings; {key!r} is {type(value).__name__}")
    return metadata
