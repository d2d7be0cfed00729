"""Where a Consul agent is and how it is spoken to: explicit arguments, then the variables of Consul's own tools.

Neither client library does this: python-consul lets the environment overrule an explicit address, both let it overrule
an explicit token, and neither reads the variables of TLS. So they are read here, once, for discovery and registration.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import unquote

from clientlb.discovery.url import redact, split_url
from clientlb.errors import ConfigurationError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8500

_URL_OPTIONS = (
    "token",
    "token_file",
    "tls",
    "tls_verify",
    "tls_server_name",
    "ca_file",
    "ca_path",
    "cert_file",
    "key_file",
    "ns",
    "partition",
)
_SWITCHES = ("tls", "tls_verify")
_YES, _NO = ("1", "t", "true"), ("0", "f", "false")  # what Consul's own tools understand


class ConnectionOptions(TypedDict, total=False):
    """How to reach an agent, beyond host and port. What is left out comes from the variable in brackets.

    - `unix_socket`: the path of the agent's unix socket, instead of host and port (`CONSUL_HTTP_ADDR=unix:///path`).
    - `token`: the ACL token (`CONSUL_HTTP_TOKEN`).
    - `token_file`: a file with the token, if `token` is not given (`CONSUL_HTTP_TOKEN_FILE`).
    - `auth`: `user:password` for a proxy in front of the agent that asks for them (`CONSUL_HTTP_AUTH`).
    - `tls`: speak HTTPS (`CONSUL_HTTP_SSL`).
    - `tls_verify`: False accepts any certificate of the agent (`CONSUL_HTTP_SSL_VERIFY`).
    - `tls_server_name`: the name in the agent's certificate, if it is not the host (`CONSUL_TLS_SERVER_NAME`).
    - `ca_file`: certificates to trust (`CONSUL_CACERT`, or those that `requests` trusts).
    - `ca_path`: a directory of such certificates, if `ca_file` is not given (`CONSUL_CAPATH`).
    - `cert_file`: our own certificate (`CONSUL_CLIENT_CERT`).
    - `key_file`: its key, if that is not in `cert_file` (`CONSUL_CLIENT_KEY`).
    - `ns`, `partition`: namespace and partition of Consul Enterprise (`CONSUL_NAMESPACE`, `CONSUL_PARTITION`).
    """

    unix_socket: str | None
    token: str | None
    token_file: str | None
    auth: str | None
    tls: bool | None
    tls_verify: bool | None
    tls_server_name: str | None
    ca_file: str | None
    ca_path: str | None
    cert_file: str | None
    key_file: str | None
    ns: str | None
    partition: str | None


@dataclass(frozen=True)
class ConsulAddress:
    """The resolved form of `ConnectionOptions`: every field has its final value.

    Raises:
        ConfigurationError: A bad address, a token that no token can be, or a file that is missing.
    """

    host: str = ""
    port: int = 0
    unix_socket: str | None = None
    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    auth: str | None = field(default=None, repr=False)
    tls: bool | None = None
    tls_verify: bool | None = None
    tls_server_name: str | None = None
    ca_file: str | None = None
    ca_path: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    ns: str | None = None
    partition: str | None = None

    def __post_init__(self) -> None:
        environment = os.environ.get
        self._locate()
        if self.tls is None:
            self._set(tls=_switch("CONSUL_HTTP_SSL", False))
        if self.tls_verify is None:
            self._set(tls_verify=_switch("CONSUL_HTTP_SSL_VERIFY", True))
        token = self.token or _read_token(self.token_file) or environment("CONSUL_HTTP_TOKEN")
        token = token or _read_token(environment("CONSUL_HTTP_TOKEN_FILE"))
        auth = self.auth or environment("CONSUL_HTTP_AUTH")
        for name, secret in (("token", token), ("user and password", auth)):
            if secret and not (secret.isascii() and secret.isprintable() and " " not in secret):
                raise ConfigurationError(f"consul: the {name} has characters that no {name} has")
        # Trust is one choice: who names a file or a directory does not get the other from the environment as well.
        trusts = self.ca_file or self.ca_path
        self._set(
            token=token or None,
            auth=auth or None,
            ca_file=_existing("ca_file", self.ca_file if trusts else environment("CONSUL_CACERT")),
            ca_path=_existing("ca_path", self.ca_path if trusts else environment("CONSUL_CAPATH")),
            tls_server_name=self.tls_server_name or environment("CONSUL_TLS_SERVER_NAME") or None,
            ns=self.ns or environment("CONSUL_NAMESPACE") or None,
            partition=self.partition or environment("CONSUL_PARTITION") or None,
            key_file=_existing("key_file", self.key_file if self.cert_file else environment("CONSUL_CLIENT_KEY")),
            cert_file=_existing("cert_file", self.cert_file or environment("CONSUL_CLIENT_CERT")),
        )
        if self.key_file and not self.cert_file:
            raise ConfigurationError("consul: key_file needs the certificate that the key belongs to: cert_file")

    def _locate(self) -> None:
        """Host and port, or the socket; the scheme of CONSUL_HTTP_ADDR decides about TLS unless `tls` does."""
        if self.unix_socket and (self.host or self.port):
            raise ConfigurationError("consul: either host and port, or unix_socket; not both")
        if not (self.unix_socket or self.host or self.port):
            host, port, socket, tls = _split_address(os.environ.get("CONSUL_HTTP_ADDR", ""))
            self._set(host=host, port=port, unix_socket=socket, tls=tls if self.tls is None else self.tls)
        if self.unix_socket:
            if not self.unix_socket.startswith("/") or "\0" in self.unix_socket:
                raise ConfigurationError(f"consul: unix_socket is an absolute path; not {self.unix_socket[:60]!r}")
            return
        host, port = (self.host or DEFAULT_HOST).removeprefix("[").removesuffix("]"), self.port or DEFAULT_PORT
        if "@" in host:  # whatever is in front of it may be a password: nothing of it is repeated
            raise ConfigurationError("consul: the host of an agent has no user and password; it takes a token")
        if not isinstance(port, int) or not 0 < port < 65536 or not _is_host(host):
            raise ConfigurationError(f"consul: {host[:60]!r}, {port!r} is not the host and port of an agent")
        self._set(host=host, port=port)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def read_url(cls, url: str, more_options: Iterable[str] = ()) -> tuple[dict[str, Any], dict[str, str]]:
        """Take `consul://[host[:port]][?token_file=…]` or `consul:///path/of/socket[?…]` apart.

        Returns what the URL says of the connection, as arguments of this class, and its other options.
        """
        not_an_agent = (
            f"{redact(url)!r}: an agent is consul://host:port or consul:///socket, a token is ?token_file=PATH"
        )
        # Asked first: taken apart, a password with a "/" or a "?" looks like a host and a path, or an option.
        if "@" in url.partition("?")[0]:
            raise ConfigurationError(not_an_agent)
        try:
            parts, options = split_url(url, (*_URL_OPTIONS, *more_options))
        except ConfigurationError:
            if "@" not in url:
                raise
            raise ConfigurationError(f"{redact(url)!r} is not the URL of an agent, or has unknown options") from None
        try:
            host, port = parts.hostname or "", parts.port or 0
        except ValueError:
            raise ConfigurationError(f"{redact(url)!r}: the port is not a number from 1 to 65535") from None
        socket = unquote(parts.path) if parts.path != "/" else ""
        if (socket and parts.netloc) or (host and not _is_host(host)):
            raise ConfigurationError(not_an_agent)
        given: dict[str, Any] = {name: options.pop(name) for name in _URL_OPTIONS if name in options}
        for name in _SWITCHES:
            if name in given:
                if given[name] not in ("true", "false"):
                    raise ConfigurationError(f"{redact(url)!r}: {name} is true or false")
                given[name] = given[name] == "true"
        where = {"unix_socket": socket} if socket else {"host": host, "port": port}
        return where | given, options

    @classmethod
    def of_client(cls, client: Any, options: ConnectionOptions) -> ConsulAddress:
        """The address of a `consul.Consul` object, with its token unless another is given."""
        given: ConnectionOptions = {**options}
        if not given.get("token") and not given.get("token_file"):
            given["token"] = getattr(client, "token", None)
        try:
            port = int(client.http.port)
        except (TypeError, ValueError):
            raise ConfigurationError("consul: the port of the client is not a number") from None
        return cls(client.http.host, port, **given)

    @property
    def verify(self) -> bool | str:
        """What to check the agent's certificate against, as `requests` takes it."""
        return bool(self.tls_verify) and (self.ca_file or self.ca_path or True)

    @property
    def certificate(self) -> str | tuple[str, str] | None:
        """Our own certificate, as `requests` takes it."""
        return (self.cert_file, self.key_file) if self.cert_file and self.key_file else self.cert_file

    @property
    def is_here(self) -> bool:
        """Whether the agent runs on this machine."""
        if self.unix_socket:
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def parameters(self) -> dict[str, str]:
        """What every request says: namespace and partition, if there are any."""
        return {name: value for name, value in (("ns", self.ns), ("partition", self.partition)) if value}

    @property
    def authority(self) -> str:
        """`host:port`, with an IPv6 host in brackets; the path of a socket."""
        if self.unix_socket:
            return self.unix_socket
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"consul://{self.authority}"


def _is_host(text: str) -> bool:
    if ":" not in text:
        return bool(text) and not set(text) & set("/ @?#%[]")
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def _split_address(text: str) -> tuple[str, int, str | None, bool | None]:
    """Read CONSUL_HTTP_ADDR: `host:port`, `http://host:port`, `https://host:port` or `unix:///path`."""
    scheme, separator, rest = text.partition("://")
    if separator and scheme == "unix":
        if not rest.startswith("/"):
            raise ConfigurationError("CONSUL_HTTP_ADDR: the path of a socket is absolute: unix:///with/three/slashes")
        return "", 0, rest, None
    if "@" in text:
        raise ConfigurationError(
            "CONSUL_HTTP_ADDR: user and password do not belong there; use CONSUL_HTTP_TOKEN or CONSUL_HTTP_AUTH"
        )
    if separator and scheme not in ("http", "https"):
        raise ConfigurationError(f"CONSUL_HTTP_ADDR: {scheme}:// is not supported; use host:port or unix:///path")
    host, colon, port = (rest if separator else text).rstrip("/").rpartition(":")
    if not colon or port.endswith("]"):
        host, port = (rest if separator else text).rstrip("/"), "0"
    if not port.isdecimal():
        raise ConfigurationError("CONSUL_HTTP_ADDR: the port is not a number")
    return host, int(port), None, scheme == "https" if separator else None


def _switch(variable: str, default: bool) -> bool:
    text = os.environ.get(variable, "").lower()
    if text and text not in _YES + _NO:
        raise ConfigurationError(f"{variable} is true or false; not {text[:20]!r}")
    return text in _YES if text else default


def _existing(name: str, path: str | None) -> str | None:
    if not path:
        return None
    expanded = Path(path).expanduser()
    if not expanded.exists():
        raise ConfigurationError(f"consul: {name}: there is no {str(expanded)!r}")
    return str(expanded)


def _read_token(path: str | None) -> str | None:
    if not path:
        return None
    try:
        return Path(path).expanduser().read_text().strip()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"consul: the token file cannot be read: {error}") from None
