"""Be found through ZooKeeper: an ephemeral node per instance, with Curator's JSON, that lives as long as the session.

The node is checked, not assumed, at every announcement. "It exists" is not enough: a node that was left by a crashed
predecessor vanishes with that one's session, so it counts only if our session owns it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from kazoo.exceptions import NoNodeError

from clientlb.discovery._zookeeper_client import (
    DEFAULT_ROOT,
    OPERATION_TIMEOUT,
    Connection,
    ZooKeeperAddress,
    node_path,
)
from clientlb.discovery.decode import encode_instance
from clientlb.endpoint import Endpoint
from clientlb.errors import RegistrationError
from clientlb.registration._local import local_address

_SESSION_PATIENCE = 2.0  # seconds that an announcement waits for a session
_CALM = 1.0  # seconds after a creation in which its watch is not believed: two owners of one id would fight


class ZooKeeperRegistrar:
    """Creates ephemeral nodes. URL: `zookeeper://[user:password@]h1:2181,h2:2181[/root][?session_timeout=10]`.

    Args:
        hosts: `"h1:2181,h2:2181"` or a list of such hosts.
        root: Path under which each service has a node (default `/services`, as in Spring Cloud).
        session_timeout: Seconds after which a server that died counts as dead (default: the `ttl` of the first
            registration). ZooKeeper itself allows from 2 to 20 of its ticks.
        credentials: `user:password` for ZooKeeper's digest scheme.
        client: A started `KazooClient` to use instead of making one; its owner stops it.
        rebuild_after: Seconds without a session after which a new client is made (default: three times the session
            timeout, at least 15).

    Raises:
        ConfigurationError: A host, path or timeout that cannot be right.
    """

    def __init__(
        self,
        hosts: str | Iterable[str],
        root: str = DEFAULT_ROOT,
        *,
        session_timeout: float | None = None,
        credentials: str | None = None,
        client: Any = None,
        rebuild_after: float | None = None,
    ) -> None:
        self._address = ZooKeeperAddress.parse(
            hosts, root=root, session_timeout=session_timeout, credentials=credentials
        )
        self._client = client
        self._rebuild_after = rebuild_after
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._wakes: list[Callable[[], None]] = []
        self._written: dict[str, bytes] = {}
        self._created_at: dict[str, float] = {}
        self._closed = False

    @classmethod
    def from_url(cls, url: str) -> ZooKeeperRegistrar:
        """Read `zookeeper://[user:password@]h1:2181,h2:2181[/root][?session_timeout=10]`."""
        address = ZooKeeperAddress.from_url(url)
        return cls(
            address.hosts,
            address.root,
            session_timeout=address.session_timeout,
            credentials=address.credentials,
        )

    def attach(self, wake: Callable[[], None]) -> None:
        """Call `wake` when there is a new connection, and when a node of ours changed."""
        self._wakes.append(wake)

    def announce(self, service: str, endpoint: Endpoint, ttl: float) -> None:
        """Make sure that the node exists, is ours and says what it should. Raises RegistrationError."""
        path, data = self._path(service, endpoint), encode_instance(service, endpoint)
        connection = self._session(ttl)
        try:
            self._ensure(connection, path, data)
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise RegistrationError(f"writing {path} failed: {reason}") from error

    def withdraw(self, service: str, endpoint: Endpoint) -> None:
        """Delete the node, if it is ours. Raises RegistrationError."""
        connection, path = self._connection, self._path(service, endpoint)
        if connection is None or not connection.connected:
            raise RegistrationError("no session with ZooKeeper: the node ends with the one that we had")
        self._written.pop(path, None)
        self._created_at.pop(path, None)
        client = connection.client
        try:
            stat = client.exists_async(path).get(timeout=OPERATION_TIMEOUT)
            if stat is not None and stat.ephemeralOwner == connection.session_id:
                client.delete_async(path).get(timeout=OPERATION_TIMEOUT)
        except NoNodeError:
            pass
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise RegistrationError(f"deleting {path} failed: {reason}") from error

    def close(self) -> None:
        """End the session, and with it all nodes. Idempotent; returns at once."""
        with self._lock:
            self._closed = True
            if self._connection is not None:
                self._connection.close()

    def default_host(self) -> str:
        """The address that this machine has on its way to the first ZooKeeper server."""
        host, _, port = self._address.hosts[0].rpartition(":")
        return local_address(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return str(self._address)

    def _path(self, service: str, endpoint: Endpoint) -> str:
        return f"{self._address.root}{node_path(service)}/{quote(endpoint.id, safe=':@[]')}"

    def _session(self, ttl: float) -> Connection:
        with self._lock:
            if self._closed:
                raise RegistrationError(f"{self} is closed")
            if self._connection is None or self._connection.pid != os.getpid():
                self._connection = Connection(
                    self._address,
                    self._connection_changed,
                    client=self._client if self._connection is None else None,
                    session_timeout=ttl,
                    rebuild_after=self._rebuild_after,
                )
            connection = self._connection
            connection.tend()
        if not connection.wait(_SESSION_PATIENCE):
            hosts = ", ".join(self._address.hosts)
            raise RegistrationError(f"no session with ZooKeeper at {hosts}: none of them serves us")
        return connection

    def _ensure(self, connection: Connection, path: str, data: bytes) -> None:
        client = connection.client
        stat = client.exists_async(path, watch=self._changed).get(timeout=OPERATION_TIMEOUT)
        if stat is not None and stat.ephemeralOwner == connection.session_id:
            if self._written.get(path) != data:
                client.set_async(path, data).get(timeout=OPERATION_TIMEOUT)
                self._written[path] = data
            return
        if stat is not None:
            # Deleted and made anew, so that who watches the node hears of it.
            try:
                client.delete_async(path, version=stat.version).get(timeout=OPERATION_TIMEOUT)
            except NoNodeError:
                pass
        self._created_at[path] = time.monotonic()
        client.create_async(path, data, ephemeral=True, makepath=True).get(timeout=OPERATION_TIMEOUT)
        self._written[path] = data

    def _changed(self, event: Any) -> None:
        if time.monotonic() > self._created_at.get(event.path, 0.0) + _CALM:
            self._wake_all()

    def _connection_changed(self) -> None:
        if self._connection is not None and self._connection.connected:
            self._wake_all()

    def _wake_all(self) -> None:
        for wake in self._wakes:
            wake()
