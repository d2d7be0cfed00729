"""The probe over HTTP: `GET /.well-known/clientlb-load`, answered with `{"in_flight": 3, "latency": 0.0121}`."""

from __future__ import annotations

import json
import socket
import ssl
from http.client import HTTPConnection, HTTPSConnection
from typing import TYPE_CHECKING, Any

from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError
from clientlb.probing.asker import Asker
from clientlb.probing.load import Load

if TYPE_CHECKING:
    _Asker = Asker[HTTPConnection]
else:
    _Asker = Asker

PATH = "/.well-known/clientlb-load"
"""Where servers answer (RFC 8615)."""

_LONGEST = 1024
"""Bytes of an answer. Whatever is longer is not ours."""


def answer_of(load: Load) -> bytes:
    """The body of an answer."""
    return json.dumps(load._asdict()).encode()


def load_in(body: bytes) -> Load:
    """Read the body of an answer. Raises ValueError, KeyError or TypeError if it is none."""
    said: dict[str, Any] = json.loads(body)
    return checked(Load(int(said["in_flight"]), float(said["latency"])))


def checked(load: Load) -> Load:
    """Refuse a load that no server can have, with a ValueError: it would be believed."""
    if not (load.in_flight >= 0 and 0 <= load.latency < float("inf")):
        raise ValueError(f"no load: {load}")
    return load


class HttpProbe(_Asker):
    """Asks servers over HTTP/1.1, on connections that are kept.

    Args:
        path: Where servers answer (default `/.well-known/clientlb-load`).
        server_name: What certificates have to be for, and the `Host` header (default: the endpoint's host).
        ssl_context: For endpoints whose registry says that they speak TLS (default: Python's, made when needed).
        timeout: Seconds that each step of an answer may take (default 0.05; the paper has 0.003 in a data centre).
        threads: That ask (default 4).
        backlog: Questions that may wait; more are dropped (default 64).

    Raises:
        ConfigurationError: A value is out of its range.
    """

    def __init__(
        self,
        path: str = PATH,
        *,
        server_name: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        timeout: float = 0.05,
        threads: int = 4,
        backlog: int = 64,
    ) -> None:
        super().__init__(timeout=timeout, threads=threads, backlog=backlog)
        if not path.startswith("/"):
            raise ConfigurationError(f"HttpProbe: path is {path!r}; it starts with a /")
        self._path = path
        self._server_name = server_name
        self._ssl_context = ssl_context

    def connect(self, endpoint: Endpoint) -> HTTPConnection:
        """Make a connection to an endpoint."""
        if not endpoint.secure:
            return HTTPConnection(endpoint.host, endpoint.port, timeout=self.timeout)
        if self._ssl_context is None:
            self._ssl_context = ssl.create_default_context()
        return _Secure(endpoint, self._server_name or endpoint.host, self.timeout, self._ssl_context)

    def load(self, connection: HTTPConnection) -> Load:
        """Ask."""
        headers = {"Host": self._server_name} if self._server_name else {}
        connection.request("GET", self._path, headers=headers)
        with connection.getresponse() as response:
            body = response.read(_LONGEST)
            if response.status != 200 or not response.isclosed():
                raise ValueError(f"answered {response.status}, {len(body)} bytes or more")
        return load_in(body)

    def disconnect(self, connection: HTTPConnection) -> None:
        """Close a connection."""
        connection.close()

    def forsake(self, connection: HTTPConnection | None) -> None:
        """In a forked child: close our copy of the socket. The connection stays."""
        if connection is not None and connection.sock is not None:
            connection.sock.close()


class _Secure(HTTPSConnection):
    """TLS to an address, for a name."""

    def __init__(self, endpoint: Endpoint, name: str, timeout: float, context: ssl.SSLContext) -> None:
        super().__init__(endpoint.host, endpoint.port, timeout=timeout, context=context)
        self._address = (endpoint.host, endpoint.port)
        self._name = name
        self._tls = context

    def connect(self) -> None:
        """Connect and shake hands."""
        plain = socket.create_connection(self._address, self.timeout)
        try:
            self.sock = self._tls.wrap_socket(plain, server_hostname=self._name)
        except BaseException:
            plain.close()
            raise
