"""One session with ZooKeeper, as discovery and registration need it: a kazoo client that never gives up or blocks.

What kazoo does on its own and what is done about it here:

- Its pauses between attempts to reconnect grow to an hour; ours to two seconds.
- A server whose data were wiped refuses the sessions of its former life for ever, and kazoo asks for ever.
  After `rebuild_after` seconds without a session the client is replaced.
- `stop()` may take seven seconds, so it runs on a thread of its own.
- A blocking call waits out the whole outage, so callers use `*_async(...).get(timeout)`, and never more than
  `WINDOW` at a time: some 270 requests fill the pipe that wakes kazoo's thread, and the next one would block.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from kazoo.client import KazooClient
from kazoo.protocol.states import KazooState

from clientlb.discovery.url import checked_seconds, redact, seconds_option, split_url
from clientlb.errors import ConfigurationError

WINDOW = 128
"""Requests that may be on their way at once."""

OPERATION_TIMEOUT = 5.0
"""Seconds that one request may take."""

DEFAULT_PORT = 2181
DEFAULT_ROOT = "/services"
DEFAULT_SESSION_TIMEOUT = 10.0

_RECONNECT = {"max_tries": -1, "delay": 0.1, "backoff": 1.5, "max_delay": 2.0}
_NO_RETRY = {"max_tries": 0}

# kazoo logs every attempt to reconnect as a warning. Ours says once what matters; set a level to hear it all.
_kazoo_log = logging.getLogger("clientlb.kazoo")


@dataclass(frozen=True)
class ZooKeeperAddress:
    """Where the ensemble is and where in its tree the services are. `str()` leaves the credentials out.

    Args:
        hosts: `host:port` of the servers; the port may be left out (2181).
        root: Path under which the services are (default `/services`, as in Spring Cloud).
        session_timeout: Seconds after which the server drops a client that it does not hear from; None leaves it
            to the user of the connection. The server has limits of its own: 2 to 20 ticks.
        credentials: `user:password` for ZooKeeper's digest scheme.

    Raises:
        ConfigurationError: No hosts, a bad port or path, a timeout that is not above 0.
    """

    hosts: tuple[str, ...]
    root: str = DEFAULT_ROOT
    session_timeout: float | None = None
    credentials: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.hosts:
            raise ConfigurationError("zookeeper: no hosts given; write zookeeper://host1:2181,host2:2181/services")
        # All are looked at before one is shown: a password with a "," is in two of them.
        if any("@" in host for host in self.hosts):
            raise ConfigurationError('zookeeper: a host has an "@"; user and password are `credentials`')
        object.__setattr__(self, "hosts", tuple(_with_port(host.strip()) for host in self.hosts))
        object.__setattr__(self, "root", node_path(self.root))
        if self.session_timeout is not None:
            checked_seconds("session_timeout", self.session_timeout)

    @classmethod
    def parse(cls, hosts: str | Iterable[str], **more: Any) -> ZooKeeperAddress:
        """Make an address from `"h1:2181,h2:2181"` or a list of such hosts."""
        listed = hosts.split(",") if isinstance(hosts, str) else hosts
        return cls(tuple(host for host in listed if host.strip()), **more)

    @classmethod
    def from_url(cls, url: str) -> ZooKeeperAddress:
        """Read `zookeeper://[user:password@]h1:2181,h2:2181[/root][?session_timeout=10]`."""
        # Asked first: taken apart, a password with a "/" looks like a host and a path.
        if set("/?#") & set(url.partition("://")[2].rpartition("@")[0]):
            raise ConfigurationError(
                f"{redact(url)!r}: write /, ? and # in a password as %2F, %3F and %23, @ in a path as %40"
            )
        parts, options = split_url(url, ["session_timeout"])
        credentials, _, hosts = parts.netloc.rpartition("@")
        timeout = seconds_option(options, "session_timeout", 0.0) or None
        root = unquote(parts.path) if parts.path.strip("/") else DEFAULT_ROOT
        return cls.parse(hosts, root=root, session_timeout=timeout, credentials=unquote(credentials) or None)

    def __str__(self) -> str:
        return f"zookeeper://{','.join(self.hosts)}{self.root}"


def node_path(path: str) -> str:
    """Check a path of the tree and return it without a slash at the end (raises ConfigurationError)."""
    steps = path.strip("/").split("/")
    if any(step in ("", ".", "..") for step in steps) or any(ord(letter) < 32 for letter in path):
        raise ConfigurationError(f"zookeeper: {path[:60]!r} is not a path of a node")
    return "/" + "/".join(steps)


def _with_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, str(DEFAULT_PORT)
    if not name or not port.isdecimal() or not 0 < int(port) < 65536 or any(letter in name for letter in "/ ?#"):
        raise ConfigurationError(f"zookeeper: {host[:60]!r} is not host:port")
    return f"{name}:{port}"


class Connection:
    """A session with ZooKeeper that is replaced when it cannot come back.

    Args:
        address: The ensemble.
        on_change: Called, on a thread of kazoo's, when the connection is made or lost. Must return at once.
        client: Use this client instead of making one. Its owner starts and stops it; it is never replaced.
        session_timeout: Used when the address has none, in seconds (default 10, kazoo's own).
        rebuild_after: Seconds without a session after which the client is replaced (default: three times the
            session timeout, at least 15).
    """

    def __init__(
        self,
        address: ZooKeeperAddress,
        on_change: Callable[[], None],
        *,
        client: Any = None,
        session_timeout: float = DEFAULT_SESSION_TIMEOUT,
        rebuild_after: float | None = None,
    ) -> None:
        self._address = address
        self._on_change = on_change
        self._borrowed = client is not None
        self._session_timeout = address.session_timeout or session_timeout
        self._rebuild_after = rebuild_after or max(3 * self._session_timeout, 15.0)
        self._connected = threading.Event()
        self._down_since = time.monotonic()
        self._closed = False
        self.pid: int = os.getpid()
        """The process that the session belongs to: in a forked child, make another connection."""
        self.epoch: int = 0
        """Grows with every connection. What was read in an earlier epoch lost its watches: read it again."""
        self.client: Any = None
        """The kazoo client of now."""
        self._use(client if self._borrowed else self._make_client())

    @property
    def connected(self) -> bool:
        """Whether there is a session with a server now."""
        return self._connected.is_set()

    @property
    def down_for(self) -> float:
        """Seconds without a session."""
        return 0.0 if self.connected else time.monotonic() - self._down_since

    @property
    def session_id(self) -> int | None:
        """What the server calls us: the `ephemeralOwner` of our nodes."""
        identity = self.client.client_id
        return identity[0] if identity else None

    def wait(self, timeout: float) -> bool:
        """Wait for a session; False after `timeout` seconds."""
        return self._connected.wait(timeout)

    def tend(self) -> None:
        """Replace a client without a session for too long. To be called now and then, by one thread."""
        if not self._borrowed and not self._closed and self.down_for > self._rebuild_after:
            old = self.client
            self._down_since = time.monotonic()
            new = self._make_client()
            try:
                self._use(new)
            finally:
                _dispose(old)

    def close(self) -> None:
        """End the session, without waiting for it. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._connected.clear()
        if not self._borrowed and self.pid == os.getpid():
            _dispose(self.client)

    def _make_client(self) -> Any:
        if _kazoo_log.level == logging.NOTSET:
            _kazoo_log.setLevel(logging.CRITICAL)
        credentials = self._address.credentials
        return KazooClient(
            hosts=",".join(self._address.hosts),
            timeout=self._session_timeout,
            connection_retry=_RECONNECT,
            command_retry=_NO_RETRY,
            auth_data=[("digest", credentials)] if credentials else None,
            logger=_kazoo_log,
        )

    def _use(self, client: Any) -> None:
        def changed(state: str) -> bool:
            # kazoo drops a listener that returns True: that of a client which is not in use any more
            if self._closed or client is not self.client:
                return True
            self._note(state == KazooState.CONNECTED)
            return False

        self.client = client
        client.add_listener(changed)
        if not self._borrowed:
            client.start_async()
        elif client.connected:
            self._note(True)

    def _note(self, connected: bool) -> None:
        if connected:
            self.epoch += 1
            self._connected.set()
        else:
            if self.connected:
                self._down_since = time.monotonic()
            self._connected.clear()
        self._on_change()


def _dispose(client: Any) -> None:
    """Stop a client on a thread of its own: it takes up to seven seconds when the server hangs."""

    def stop() -> None:
        try:
            client.stop()
            client.close()
        except Exception as error:  # nobody is left to be told, and nothing more can be done
            _kazoo_log.debug("stopping a client failed: %s", error)

    threading.Thread(target=stop, name="clientlb-zookeeper-stop", daemon=True).start()
