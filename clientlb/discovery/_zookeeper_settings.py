"""Where a ZooKeeper ensemble is and how to speak with it: what users write, checked, and what kazoo wants instead.

Users of equal `Ensemble`s share one client. No message of this module repeats a password.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import unquote

from clientlb.discovery.url import absolute, checked_seconds, redact, seconds_option, split_url
from clientlb.errors import ConfigurationError

DEFAULT_PORT = 2181
DEFAULT_ROOT = "/services"
DEFAULT_SESSION_TIMEOUT = 10.0

_LEAST_REBUILD_AFTER = 15.0
_SASL_MECHANISMS = ("DIGEST-MD5", "GSSAPI")
_TLS_FILES = ("ca_file", "cert_file", "key_file")
_NOT_IN_PATHS = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\uf8ff\ufff0-\U0010ffff]")  # by ZooKeeper's own rules
_FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class EnsembleOptions(TypedDict, total=False):
    """How to speak with an ensemble. Discovery and registration take the same keywords, and URLs the same options."""

    session_timeout: float | None
    """Seconds after which the servers drop a client that they do not hear from; they allow from 2 to 20 of their ticks
    (default 10 for discovery, the `ttl` for registration)."""
    rebuild_after: float | None
    """Seconds without a session after which a new client is made, for a server that lost its data refuses the old one
    for ever (default: three times the session timeout, at least 15)."""
    chroot: str | None
    """Path that stands for `/` in everything else (default none)."""
    credentials: str | None
    """`user:password`, for ZooKeeper's digest scheme or, with a `sasl_mechanism`, for SASL."""
    sasl_mechanism: str | None
    """`DIGEST-MD5`, or `GSSAPI` with the ticket cache of the process (default: no SASL)."""
    tls: bool
    """Speak TLS (default False)."""
    ca_file: str | None
    """PEM file with the certificates that the servers' are signed with (default: the system's)."""
    cert_file: str | None
    """PEM file with our own certificate, together with `key_file`."""
    key_file: str | None
    """PEM file with the key of our own certificate."""
    tls_verify: bool
    """Accept only certificates that are signed with a known one (default True)."""
    tls_verify_hostname: bool
    """Accept only certificates that name the host (default: as `tls_verify`)."""


URL_OPTIONS = (
    *(name for name in EnsembleOptions.__annotations__ if name not in ("credentials", "rebuild_after")),
    "acl",
    "format",
)
"""What a URL may say after its `?`. One URL serves discovery and registration: each takes what it knows."""


@dataclass(frozen=True)
class Ensemble:
    """The servers, and how we speak with them. `str()` leaves the credentials out.

    Args:
        hosts: `host:port` of the servers; the port may be left out (2181).

    The others are those of `EnsembleOptions`.

    Raises:
        ConfigurationError: Something in it cannot be right.
    """

    hosts: tuple[str, ...]
    session_timeout: float | None = None
    rebuild_after: float | None = None
    chroot: str | None = None
    credentials: str | None = field(default=None, repr=False)
    sasl_mechanism: str | None = None
    tls: bool = False
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    tls_verify: bool = True
    tls_verify_hostname: bool | None = None

    def __post_init__(self) -> None:
        if not self.hosts:
            raise ConfigurationError("zookeeper: no hosts given; write zookeeper://host1:2181,host2:2181/services")
        # All are looked at before one is shown: a password with a "," is in two of them.
        if any("@" in host for host in self.hosts):
            raise ConfigurationError('zookeeper: a host has an "@"; user and password are `credentials`')
        self._set("hosts", tuple(_with_port(host.strip()) for host in self.hosts))
        for name in ("session_timeout", "rebuild_after"):
            if getattr(self, name) is not None:
                checked_seconds(name, getattr(self, name))
        chroot = (self.chroot or "").strip("/")
        self._set("chroot", node_path(chroot) if chroot else None)
        self._check_credentials()
        self._check_tls()

    @classmethod
    def parse(cls, hosts: str | Iterable[str], options: Mapping[str, Any]) -> Ensemble:
        """Read `"h1:2181,h2:2181"`, or a list of such hosts, and `EnsembleOptions`."""
        unknown = sorted(set(options) - set(EnsembleOptions.__annotations__))
        if unknown:
            known = ", ".join(sorted(EnsembleOptions.__annotations__))
            raise ConfigurationError(f"zookeeper: unknown option {unknown[0]!r}; it knows {known}")
        listed = hosts.split(",") if isinstance(hosts, str) else hosts
        return cls(tuple(host for host in listed if host.strip()), **options)

    def with_session_timeout(self, default: float) -> Ensemble:
        """The same, with a session timeout if it had none."""
        return replace(self, session_timeout=self.session_timeout or default)

    @property
    def rebuild_pause(self) -> float:
        """Seconds without a session after which the client is replaced."""
        return self.rebuild_after or max(3 * (self.session_timeout or DEFAULT_SESSION_TIMEOUT), _LEAST_REBUILD_AFTER)

    def kazoo_arguments(self) -> dict[str, Any]:
        """What a `KazooClient` is made with, apart from retries."""
        arguments: dict[str, Any] = {
            "hosts": ",".join(self.hosts) + (self.chroot or ""),
            "timeout": self.session_timeout or DEFAULT_SESSION_TIMEOUT,
        }
        if self.sasl_mechanism:
            arguments["sasl_options"] = {"mechanism": self.sasl_mechanism}
            if self.credentials:
                user, _, password = self.credentials.partition(":")
                arguments["sasl_options"] |= {"username": user, "password": password}
        elif self.credentials:
            arguments["auth_data"] = [("digest", self.credentials)]
        if self.tls:
            arguments |= {
                "use_ssl": True,
                "ca": self.ca_file,
                "certfile": self.cert_file,
                "keyfile": self.key_file,
                "verify_certs": self.tls_verify,
                "check_hostname": self.tls_verify if self.tls_verify_hostname is None else self.tls_verify_hostname,
            }
        return arguments

    def __str__(self) -> str:
        return ", ".join(self.hosts)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_credentials(self) -> None:
        if self.credentials is not None and ":" not in self.credentials:
            raise ConfigurationError("zookeeper: credentials are user:password; there is no colon in them")
        mechanism = self.sasl_mechanism
        if mechanism is None:
            return
        if mechanism not in _SASL_MECHANISMS:
            raise ConfigurationError(f"zookeeper: sasl_mechanism is one of {', '.join(_SASL_MECHANISMS)}")
        if mechanism == "DIGEST-MD5" and self.credentials is None:
            raise ConfigurationError("zookeeper: SASL's DIGEST-MD5 needs credentials, user:password")
        if find_spec("puresasl") is None:
            raise ConfigurationError(
                "zookeeper: SASL needs a package that is not installed: pip install clientlb[zookeeper-sasl]"
            )

    def _check_tls(self) -> None:
        for name in ("tls", "tls_verify"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(f"zookeeper: {name} is True or False")
        given = [name for name in _TLS_FILES if getattr(self, name)]
        if given and not self.tls:
            raise ConfigurationError(f"zookeeper: {given[0]} is of no use without tls=true")
        if bool(self.cert_file) != bool(self.key_file):
            raise ConfigurationError("zookeeper: cert_file and key_file go together")
        if self.tls_verify_hostname and not self.tls_verify:
            raise ConfigurationError("zookeeper: tls_verify_hostname needs tls_verify: an unsigned name proves nothing")
        for name in given:
            path: Path = absolute(getattr(self, name))
            if not path.is_file():
                raise ConfigurationError(f"zookeeper: {name}: there is no file {str(path)!r}")
            self._set(name, str(path))


def read_url(url: str) -> dict[str, Any]:
    """Read `zookeeper://[user:password@]h1:2181,h2:2181[/root][?session_timeout=10&…]` into keyword arguments.

    They are `hosts`, `root` and what the URL has of `URL_OPTIONS`, plus `credentials`.

    Raises:
        ConfigurationError: It cannot be read. Values are not judged here.
    """
    # Asked first: taken apart, a password with a "/" looks like a host and a path.
    if set("/?#") & set(url.partition("://")[2].rpartition("@")[0]):
        raise ConfigurationError(
            f"{redact(url)!r}: write /, ? and # in a password as %2F, %3F and %23, @ in a path as %40"
        )
    parts, options = split_url(url, URL_OPTIONS)
    credentials, _, hosts = parts.netloc.rpartition("@")
    arguments: dict[str, Any] = dict(options)
    if "session_timeout" in options:
        arguments["session_timeout"] = seconds_option(options, "session_timeout", DEFAULT_SESSION_TIMEOUT)
    for name in ("tls", "tls_verify", "tls_verify_hostname"):
        if name in options:
            arguments[name] = _flag(name, options[name])
    if credentials:
        arguments["credentials"] = unquote(credentials)
    root = unquote(parts.path) if parts.path.strip("/") else DEFAULT_ROOT
    return {"hosts": hosts, "root": root, **arguments}


def registry_name(ensemble: Ensemble, root: str) -> str:
    """The registry as a URL without secrets, for people."""
    chroot = f"?chroot={ensemble.chroot}" if ensemble.chroot else ""
    return f"zookeeper://{','.join(ensemble.hosts)}{root}{chroot}"


def node_path(path: str) -> str:
    """Check a path of the tree and return it without a slash at the end (raises ConfigurationError)."""
    steps = path.strip("/").split("/")
    if any(step in ("", ".", "..") for step in steps) or _NOT_IN_PATHS.search(path):
        raise ConfigurationError(f"zookeeper: {path[:60]!r} is not a path of a node")
    return "/" + "/".join(steps)


def _flag(name: str, text: str) -> bool:
    if text.lower() not in _FLAGS:
        raise ConfigurationError(f"zookeeper: {name} is true or false, not {text[:20]!r}")
    return _FLAGS[text.lower()]


def _with_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, str(DEFAULT_PORT)
    if not name or not port.isdecimal() or not 0 < int(port) < 65536 or any(letter in name for letter in "/ ?#"):
        raise ConfigurationError(f"zookeeper: {host[:60]!r} is not host:port")
    return f"{name}:{port}"
