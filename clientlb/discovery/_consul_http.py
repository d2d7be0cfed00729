"""The HTTP interface of a Consul agent, through the HTTP client of python-consul or py-consul, whichever is installed.

Both own the module `consul`, and neither can do what a watch needs through its methods: python-consul has no timeout,
puts the token into the URL and cannot register weights; neither shows the headers of an answer or knows unix sockets.
What they share is the client underneath, `consul.std.HTTPClient` with its requests session, and that is what is used
here, with an adapter whose connections another thread can end.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import requests
from consul.std import HTTPClient
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from clientlb.discovery._consul_address import DEFAULT_HOST, DEFAULT_PORT, ConsulAddress
from clientlb.errors import ClientLBError

Parameters = Mapping[str, str | list[str]]
"""The query of a request; a list stands for a parameter that is given several times."""

MAX_ANSWER = 64 * 1024 * 1024
"""Bytes of the largest answer that is read: some 50 000 instances as Consul describes them."""

_NONE: Parameters = {}
_CONNECT_TIMEOUT = 3.0
_CHUNK = 1 << 18
_SHOWN = 120  # characters of an error's text


class ConsulError(ClientLBError):
    """The agent could not be asked, or answered with an error.

    `status` is the HTTP status; 0 if there was no answer.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Answer:
    """What the agent said, with HTTP status 200."""

    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The decoded body; raises ConsulError if it is not JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
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
        if address.is_here:
            self._headers["Accept-Encoding"] = "identity"  # packing costs more than the loopback
        self._auth = _credentials(address.auth)
        self._closed = False
        self._open()

    def _open(self) -> None:
        self._pid = os.getpid()
        self._connections = _Connections()
        self._http = self._client.http if self._client is not None else _own_client(self._address, self._connections)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def get(self, path: str, timeout: float, parameters: Parameters = _NONE) -> Answer:
        """GET; `timeout` is the longest silence in seconds. Raises ConsulError."""
        return self._request("GET", path, timeout, parameters, None)

    def put(self, path: str, timeout: float, parameters: Parameters = _NONE, body: Any = None) -> Answer:
        """PUT, with a JSON body if it is given; as `get` otherwise."""
        data = None if body is None else json.dumps(body).encode()
        return self._request("PUT", path, timeout, parameters, data)

    def close(self) -> None:
        """End also a request that waits in another thread, if the client is our own. Idempotent."""
        self._closed = True
        if self._client is None and self._pid == os.getpid():
            self._connections.interrupt()
            self._http.session.close()

    def _request(self, method: str, path: str, timeout: float, parameters: Parameters, body: bytes | None) -> Answer:
        if self._closed:
            raise ConsulError(f"the connection to {self._address} is closed")
        if self._pid != os.getpid():
            self._open()  # in a forked child: the connections belong to the parent
        try:
            response = self._http.session.request(
                method,
                self._http.base_uri + path,
                params={**self._address.parameters, **parameters},
                data=body,
                headers=self._headers,
                auth=self._auth,
                timeout=(min(_CONNECT_TIMEOUT, timeout), timeout),
                verify=self._http.verify,
                cert=self._http.cert,
                allow_redirects=False,  # it would take the token along, to wherever
                stream=True,
            )
            with response:
                content = _read(response)
        except requests.ConnectTimeout:
            raise ConsulError(f"no connection within {min(_CONNECT_TIMEOUT, timeout):g} s") from None
        except requests.Timeout:
            raise ConsulError(f"no answer within {timeout:g} s") from None
        except (requests.RequestException, OSError, ValueError) as error:
            raise ConsulError(_cause(error)) from None
        if response.status_code != 200:
            reason = content[: 4 * _SHOWN].decode(errors="replace").strip()[:_SHOWN]
            raise ConsulError(f"HTTP status {response.status_code}: {reason}", response.status_code)
        return Answer(response.headers, content)


def _read(response: requests.Response) -> bytes:
    content = bytearray()
    for chunk in response.iter_content(_CHUNK):
        content += chunk
        if len(content) > MAX_ANSWER:
            raise ConsulError(f"the answer has more than {MAX_ANSWER >> 20} MB")
    return bytes(content)


def _own_client(address: ConsulAddress, connections: _Connections) -> Any:
    host = DEFAULT_HOST if address.unix_socket else address.host
    http = HTTPClient(
        host=f"[{host}]" if ":" in host else host,
        port=address.port or DEFAULT_PORT,
        scheme="https" if address.tls else "http",
        verify=address.verify,
        cert=address.certificate,
    )
    # A proxy or a .netrc that is meant for the internet has no business between us and our agent.
    http.session.trust_env = False
    http.session.mount("http://", _Adapter(connections, address.unix_socket, None))
    http.session.mount("https://", _Adapter(connections, address.unix_socket, address.tls_server_name))
    return http


def _credentials(auth: str | None) -> tuple[bytes, bytes] | None:
    if auth is None:
        return None
    user, _, password = auth.partition(":")
    return user.encode(), password.encode()


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


class _Adapter(HTTPAdapter):
    """requests' adapter, over connections that can be shut down while they wait, to a host or a unix socket."""

    def __init__(self, connections: _Connections, unix_socket: str | None, server_name: str | None) -> None:
        self._connections = connections
        self._unix_socket = unix_socket
        # announced to the server, and its certificate is checked against it
        self._name: dict[str, Any] = {"server_hostname": server_name} if server_name else {}
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        kwargs |= self._name
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {
            "http": self._pool_class(HTTPConnectionPool),
            "https": self._pool_class(HTTPSConnectionPool),
        }

    def _pool_class(self, base: Any) -> Any:
        connections, unix_socket = self._connections, self._unix_socket

        class Connection(base.ConnectionCls):  # type: ignore[misc]
            def connect(self) -> None:
                super().connect()
                connections.add(self)

            def _new_conn(self) -> socket.socket:
                return _connect(unix_socket, self.timeout) if unix_socket else super()._new_conn()

        return type("Pool", (base,), {"ConnectionCls": Connection})


def _connect(unix_socket: str, timeout: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout)
        connection.connect(unix_socket)
    except BaseException:
        connection.close()
        raise
    return connection
