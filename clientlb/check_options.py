"""The options of active health checks: `HealthOptions(check=HttpCheck("/healthz"))`. Part of `clientlb.options`.

What the words mean is in `clientlb.health.checkup`, how servers are asked in `clientlb.checking`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from clientlb.errors import ConfigurationError
from clientlb.require import frozen, require_bool, require_int, require_number

if TYPE_CHECKING:
    import ssl

    import grpc

# what would smuggle a second header or request into one is refused here, before any server is asked
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_TARGET = re.compile(r"/[!-~]*").fullmatch
_VALUE = re.compile(r"[\t -~]*").fullmatch
_SERVER_NAME = re.compile(r"[A-Za-z0-9._-]+").fullmatch
_OURS = frozenset({"host", "connection"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What all kinds of check have in common.

    Args:
        interval: Seconds between the beginnings of two checks of one endpoint (default 5, as in NGINX Plus; HAProxy has
            2, Traefik 30). Every process checks every endpoint, so a server gets as many checks as it has clients, per
            interval.
        jitter: The share of the interval by which it is longer or shorter, at random (default 0.1), so that many
            clients do not march in step.
        timeout: Seconds that a check may take (default 2).
        unhealthy: Checks in a row that fail before the endpoint is ejected (default 3, as in HAProxy).
        healthy: Checks in a row that pass before it is back (default 2, as in HAProxy).
        port: Where checks are sent (default: the endpoint's own port).
    """

    kind: ClassVar[str] = ""

    interval: float = 5.0
    jitter: float = 0.1
    timeout: float = 2.0
    unhealthy: int = 3
    healthy: int = 2
    port: int | None = None

    def __post_init__(self) -> None:
        require_number("health.check.interval", self.interval, at_least=0.05)
        require_number("health.check.jitter", self.jitter, at_least=0, at_most=1)
        require_number("health.check.timeout", self.timeout, above=0)
        require_int("health.check.unhealthy", self.unhealthy, 1)
        require_int("health.check.healthy", self.healthy, 1)
        if self.port is not None:
            require_int("health.check.port", self.port, 1)
            require_number("health.check.port", self.port, at_most=65535)


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpCheck(Check):
    """Passes if a connection can be made. It is closed at once, without a word."""

    kind: ClassVar[str] = "tcp"


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpCheck(Check):
    """Passes if an HTTP/1.1 request is answered with an expected status. Each check has a connection of its own.

    Args:
        path: What is asked for, with its query if there is one (default `/`).
        method: How (default GET).
        statuses: Those that pass (default: 200 to 299, as in Consul).
        headers: Sent along.
        secure: Whether to speak TLS; None (default) does what the registry says of the endpoint.
        server_name: The `Host`, and what the certificate has to be for (default: the name of the service, as for
            calls).
        verify: Of TLS: True (default) checks certificates by the authorities that Python knows, a path by those of that
            file, an `ssl.SSLContext` as it says; False checks nothing.
    """

    kind: ClassVar[str] = "http"

    path: str = field(default="/", kw_only=False)
    method: str = "GET"
    statuses: frozenset[int] = frozenset(range(200, 300))
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)
    secure: bool | None = None
    server_name: str | None = None
    verify: bool | str | ssl.SSLContext = True

    def __post_init__(self) -> None:
        Check.__post_init__(self)
        if not isinstance(self.path, str) or not _TARGET(self.path):
            raise ConfigurationError(f"health.check.path is {self.path!r}; give one that starts with a /, in ASCII")
        if not isinstance(self.method, str) or not _TOKEN(self.method):
            raise ConfigurationError(f"health.check.method is {self.method!r}; give the name of an HTTP method")
        statuses = frozen("health.check.statuses", self.statuses, _is_final_status, "HTTP status codes, 200 to 599")
        object.__setattr__(self, "statuses", statuses)
        object.__setattr__(self, "headers", _headers(self.headers))
        if self.secure is not None:
            require_bool("health.check.secure", self.secure)
        _require_server_name(self.server_name)
        _require_verify(self.verify)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcCheck(Check):
    """Listens to the standard health service, `grpc.health.v1.Health/Watch`: servers say how they are (gRFC A17).

    Whoever says SERVING passes, whoever says something else fails, both at once. A server without that service passes.
    A stream that breaks off is opened anew, with backoff; `unhealthy` counts the attempts in a row that got no answer
    within `timeout`. `interval` is the longest pause between two of them.

    Args:
        watch: False asks by `Check` instead, once in every interval, and counts like other checks. A stream tells at
            once, and costs its server nothing; but it costs this process two threads, which wake up 15 times a second,
            for grpcio has no other way to hear from one. So with more than some 200 endpoints, ask (default True).
        name: Whose health is asked for (default "": the server's as a whole).
        credentials: As for `grpc.secure_channel`. None (default) means plain text, except for endpoints whose registry
            says that they speak TLS.
        server_name: The `:authority`, and what the certificate has to be for (default: the name of the service, as for
            calls).
    """

    kind: ClassVar[str] = "grpc"

    watch: bool = True
    name: str = ""
    credentials: grpc.ChannelCredentials | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        Check.__post_init__(self)
        require_bool("health.check.watch", self.watch)
        if not isinstance(self.name, str):
            raise ConfigurationError(f"health.check.name is {self.name!r}; give the full name of a gRPC service, or ''")
        _require_server_name(self.server_name)


KINDS: dict[str, type[Check]] = {kind.kind: kind for kind in (HttpCheck, TcpCheck, GrpcCheck)}
"""The kinds of check by the names that they have in a TOML file."""


def _is_final_status(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 200 <= value <= 599


def _headers(headers: object) -> Mapping[str, str]:
    if not isinstance(headers, Mapping):
        raise ConfigurationError(f"health.check.headers is {headers!r}; give a mapping of names to values")
    for name, value in headers.items():
        if not isinstance(name, str) or not _TOKEN(name) or name.lower() in _OURS:
            raise ConfigurationError(
                f"health.check.headers has {name!r}; give names of HTTP headers other than Connection, and server_name"
                " for Host"
            )
        if not isinstance(value, str) or not _VALUE(value):
            raise ConfigurationError(f"health.check.headers: the value of {name} is no line of ASCII text")
    return MappingProxyType(dict(headers))


def _require_server_name(name: object) -> None:
    if name is not None and (not isinstance(name, str) or not _SERVER_NAME(name)):
        raise ConfigurationError(f"health.check.server_name is {name!r}; give a host name")


def _require_verify(verify: object) -> None:
    if isinstance(verify, bool) or (isinstance(verify, str) and os.path.isfile(verify)):
        return
    if isinstance(verify, str):
        raise ConfigurationError(f"health.check.verify is {verify!r}; there is no such file")
    import ssl  # only programs that have a context of their own get here, and they have imported it

    if not isinstance(verify, ssl.SSLContext):
        raise ConfigurationError(f"health.check.verify is {verify!r}; give True, False, a path or an ssl.SSLContext")
