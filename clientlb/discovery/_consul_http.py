"""The HTTP interface of a Consul agent, through the HTTP client of python-consul or py-consul, whichever is installed.

Both own the module `consul`, and neither can do what a watch needs through its methods: python-consul has no timeout,
puts the token into the URL and cannot register weights; neither shows the headers of an answer; both let the
environment overrule an explicit address. What they share is the client underneath, `consul.std.HTTPClient` with its
requests session, and that is what is used here.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from consul.std import HTTPClient
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from clientlb.discovery.url import redact, split_url
from clientlb.errors import ClientLBError, ConfigurationError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8500

_NONE: Mapping[str, str] = {}
_CONNECT_TIMEOUT = 3.0
_SHOWN = 120  # characters of an error's text


class ConsulError(ClientLBError):
    """The agent could not be asked, or answered with an error.

    `status` is the HTTP status; 0 if there was no answer.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class ConsulAddress:
    """Where the agent is. Whatever is not given comes from the environment variables of Consul's own tools.

    Args:
        host: Name or address (default: `CONSUL_HTTP_ADDR`, or 127.0.0.1).
        port: Port of the HTTP interface (default: as `host`, or 8500).
        token: ACL token (default: `token_file`, `CONSUL_HTTP_TOKEN`, `CONSUL_HTTP_TOKEN_FILE`).
        token_file: File that holds the token.
        tls: Speak HTTPS (default: `CONSUL_HTTP_SSL`).
        ca_file: Certificates to trust (default: `CONSUL_CACERT`, or those that `requests` trusts).

    Raises:
        ConfigurationError: A bad address, or a file of a token that cannot be read.
    """

    host: str = ""
    port: int = 0
    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    tls: bool | None = None
    ca_file: str | None = None

    def __post_init__(self) -> None:
        environment = os.environ
        host, port, tls = self.host, self.port, self.tls
        if not host and not port:
            host, port, secure = _split_address(environment.get("CONSUL_HTTP_ADDR", ""))
            tls = secure if tls is None else tls
        if tls is None:
            tls = environment.get("CONSUL_HTTP_SSL", "").lower() in ("1", "true")
        port = port or DEFAULT_PORT
        host = (host or DEFAULT_HOST).removeprefix("[").removesuffix("]")
        if "@" in host:  # whatever is in front of it may be a password: nothing of it is repeated
            raise ConfigurationError("consul: the host of an agent has no user and password; it takes a token")
        if not isinstance(port, int) or not 0 < port < 65536 or not _is_host(host):
            raise ConfigurationError(f"consul: {host[:60]!r}, {port!r} is not the host and port of an agent")
        token = self.token or _read_token(self.token_file) or environment.get("CONSUL_HTTP_TOKEN")
        token = token or _read_token(environment.get("CONSUL_HTTP_TOKEN_FILE"))
        if token and not (token.isascii() and token.isprintable() and " " not in token):
            raise ConfigurationError("consul: the token has characters that no token has")
        object.__setattr__(self, "host", host)
        object.__setattr__(self, "port", port)
        object.__setattr__(self, "tls", tls)
        object.__setattr__(self, "token", token or None)
        object.__setattr__(self, "ca_file", self.ca_file or environment.get("CONSUL_CACERT") or None)

    @classmethod
    def from_url(cls, url: str, more_options: tuple[str, ...] = ()) -> tuple[ConsulAddress, dict[str, str]]:
        """Read `consul://[host[:port]][?token_file=…&token=…&tls=true&ca_file=…]`, and return what else it says."""
        own = ("token", "token_file", "tls", "ca_file")
        # Asked first: taken apart, a password with a "/" or a "?" looks like a host and a path, or an option.
        if "@" in url.partition("?")[0]:
            raise ConfigurationError(f"{redact(url)!r}: an agent is consul://host:port, a token is ?token_file=PATH")
        try:
            parts, options = split_url(url, (*own, *more_options))
        except ConfigurationError:
            if "@" not in url:
                raise
            raise ConfigurationError(f"{redact(url)!r} is not the URL of an agent, or has unknown options") from None
        try:
            host, port = parts.hostname or "", parts.port or 0
        except ValueError:
            raise ConfigurationError(f"{redact(url)!r}: the port is not a number from 1 to 65535") from None
        if parts.path.strip("/") or (host and not _is_host(host)):
            raise ConfigurationError(f"{redact(url)!r}: an agent is consul://host:port, a token is ?token_file=PATH")
        given = {name: options.pop(name) for name in own if name in options}
        tls = given.pop("tls", None)
        if tls not in (None, "true", "false"):
            raise ConfigurationError(f"{redact(url)!r}: tls is true or false")
        return cls(host, port, tls=None if tls is None else tls == "true", **given), options

    @classmethod
    def of_client(cls, client: Any, token: str | None, token_file: str | None) -> ConsulAddress:
        """The address of a `consul.Consul` object, with its token unless another is given."""
        if not token and not token_file:
            token = getattr(client, "token", None)
        try:
            port = int(client.http.port)
        except (TypeError, ValueError):
            raise ConfigurationError("consul: the port of the client is not a number") from None
        return cls(client.http.host, port, token, token_file)

    @property
    def authority(self) -> str:
        """`host:port`, with an IPv6 host in brackets."""
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


def _split_address(text: str) -> tuple[str, int, bool | None]:
    """Read CONSUL_HTTP_ADDR: `host:port`, `http://host:port` or `https://host:port`."""
    if "@" in text:
        raise ConfigurationError("CONSUL_HTTP_ADDR: user and password are not supported; use CONSUL_HTTP_TOKEN")
    scheme, separator, rest = text.partition("://")
    if separator and scheme not in ("http", "https"):
        raise ConfigurationError(f"CONSUL_HTTP_ADDR: {scheme}:// is not supported; use host:port")
    host, colon, port = (rest if separator else text).rstrip("/").rpartition(":")
    if not colon or port.endswith("]"):
        host, port = (rest if separator else text).rstrip("/"), "0"
    if not port.isdecimal():
        raise ConfigurationError("CONSUL_HTTP_ADDR: the port is not a number")
    return host, int(port), scheme == "https" if separator else None


def _read_token(path: str | None) -> str | None:
    if not path:
        return None
    try:
        return Path(path).expanduser().read_text().strip()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"consul: the token file cannot be read: {error}") from None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the agent said, with HTTP status 200."""

    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The decoded body; raises ConsulError if it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise ConsulError(f"the answer is not JSON: {self.body[:_SHOWN]!r}") from None


class ConsulHTTP:
    """Asks one agent. Several threads may ask at once.

    Args:
        address: The agent.
        client: Use the HTTP client of this `consul.Consul` object, with its own settings of TLS and proxies. The
            address should be `ConsulAddress.of_client`.
    """

    def __init__(self, address: ConsulAddress, client: Any = None) -> None:
        self._address = address
        self._client = client
        self._headers = {"X-Consul-Token": address.token} if address.token else {}
        self._closed = False
        self._open()

    def _open(self) -> None:
        self._pid = os.getpid()
        self._connections = _Connections()
        self._http = self._client.http if self._client is not None else _own_client(self._address, self._connections)

    def get(self, path: str, timeout: float, parameters: Mapping[str, str] = _NONE) -> Answer:
        """GET; `timeout` is the longest silence in seconds. Raises ConsulError."""
        return self._request("GET", path, timeout, parameters, None)

    def put(self, path: str, timeout: float, parameters: Mapping[str, str] = _NONE, body: Any = None) -> Answer:
        """PUT, with a JSON body if it is given; as `get` otherwise."""
        data = None if body is None else json.dumps(body).encode()
        return self._request("PUT", path, timeout, parameters, data)

    def close(self) -> None:
        """End also a request that waits in another thread, if the client is our own. Idempotent."""
        self._closed = True
        if self._client is None and self._pid == os.getpid():
            self._connections.interrupt()
            self._http.session.close()

    def _request(
        self, method: str, path: str, timeout: float, parameters: Mapping[str, str], body: bytes | None
    ) -> Answer:
        if self._closed:
            raise ConsulError(f"the connection to {self._address} is closed")
        if self._pid != os.getpid():
            self._open()  # in a forked child: the connections belong to the parent
        try:
            response = self._http.session.request(
                method,
                self._http.base_uri + path,
                params=parameters,
                data=body,
                headers=self._headers,
                timeout=(min(_CONNECT_TIMEOUT, timeout), timeout),
                verify=self._http.verify,
                cert=self._http.cert,
                allow_redirects=False,  # it would take the token along, to wherever
            )
        except requests.ConnectTimeout:
            raise ConsulError(f"no connection within {min(_CONNECT_TIMEOUT, timeout):g} s") from None
        except requests.Timeout:
            raise ConsulError(f"no answer within {timeout:g} s") from None
        except (requests.RequestException, OSError, ValueError) as error:
            raise ConsulError(_cause(error)) from None
        if response.status_code != 200:
            problem = f"HTTP status {response.status_code}: {response.text.strip()[:_SHOWN]}"
            raise ConsulError(problem, response.status_code)
        return Answer(response.headers, response.content)


def _own_client(address: ConsulAddress, connections: _Connections) -> Any:
    http = HTTPClient(
        host=f"[{address.host}]" if ":" in address.host else address.host,
        port=address.port,
        scheme="https" if address.tls else "http",
        verify=address.ca_file or True,
    )
    # A proxy or a .netrc that is meant for the internet has no business between us and our agent.
    http.session.trust_env = False
    for scheme in ("http://", "https://"):
        http.session.mount(scheme, _InterruptibleAdapter(connections))
    return http


def path(*steps: str) -> str:
    """A path of the HTTP interface; each step is quoted, so that a "/" in a name stays in the name."""
    return "/v1/" + "/".join(quote(step, safe="") for step in steps)


def _cause(error: BaseException) -> str:
    """The innermost error: what requests and urllib3 wrap around it hides the reason behind addresses of objects."""
    while True:
        inner = error.__cause__ or error.__context__ or getattr(error, "reason", None)
        if not isinstance(inner, BaseException):
            return f"{type(error).__name__}: {error}"[:_SHOWN]
        error = inner


class _Connections:
    """The open connections of one session, so that another thread can end them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: weakref.WeakSet[Any] = weakref.WeakSet()
        self._interrupted = False

    def add(self, connection: Any) -> None:
        with self._lock:
            self._open.add(connection)
            interrupted = self._interrupted
        if interrupted:
            raise OSError("interrupted")

    def interrupt(self) -> None:
        with self._lock:
            self._interrupted = True
            connections = list(self._open)
        for connection in connections:
            open_socket = connection.sock
            if open_socket is not None:
                with contextlib.suppress(OSError):  # it ended by itself
                    open_socket.shutdown(socket.SHUT_RDWR)


class _InterruptibleAdapter(HTTPAdapter):
    """requests' adapter, over connections that can be shut down while they wait for an answer."""

    def __init__(self, connections: _Connections) -> None:
        self._connections = connections
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {
            "http": self._pool_class(HTTPConnectionPool),
            "https": self._pool_class(HTTPSConnectionPool),
        }

    def _pool_class(self, base: Any) -> Any:
        connections = self._connections

        class Connection(base.ConnectionCls):  # type: ignore[misc]
            def connect(self) -> None:
                super().connect()
                connections.add(self)

        return type("Pool", (base,), {"ConnectionCls": Connection})
