"""Be found through ZooKeeper: an ephemeral node per instance, with Curator's JSON, that lives as long as the session.

The node is checked, not assumed, at every announcement. "It exists" is not enough: a node that was left by a crashed
predecessor vanishes with that one's session, so it counts only if our session owns it. The node is watched, and every
event means "look again"; so is every new connection.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Unpack
from urllib.parse import quote

from kazoo.exceptions import KazooException, NodeExistsError, NoNodeError
from kazoo.protocol.states import EventType
from kazoo.security import CREATOR_ALL_ACL, OPEN_ACL_UNSAFE, READ_ACL_UNSAFE

from clientlb.discovery._zookeeper_client import Connection, connect
from clientlb.discovery._zookeeper_settings import (
    DEFAULT_ROOT,
    Ensemble,
    EnsembleOptions,
    node_path,
    read_url,
    registry_name,
)
from clientlb.discovery._zookeeper_sharing import Loan
from clientlb.discovery.decode import encode_instance
from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError, RegistrationError
from clientlb.registration._local import local_address

_SESSION_PATIENCE = 2.0  # seconds that an announcement waits for a session
_FIGHT_MEMORY = 60.0  # seconds that a node has to stay for earlier fights about it to be forgotten
_FIGHT_PAUSES = (0.0, 0.0, 1.0, 2.0, 5.0, 10.0, 20.0)  # before it is taken back, again and again

_ACLS = {"open": OPEN_ACL_UNSAFE, "creator": [*CREATOR_ALL_ACL, *READ_ACL_UNSAFE]}


class ZooKeeperRegistrar:
    """Creates ephemeral nodes.

    It shares its session with whoever uses the same servers with the same options in this process, discovery included:
    with the default `ttl` and session timeout that is so. Its nodes end with it all the same.

    Args:
        hosts: `"h1:2181,h2:2181"` or a list of such hosts.
        root: Path under which each service has a node (default `/services`, as in Spring Cloud).
        acl: Who may do what with the nodes: `"open"` (the default, as Curator does), `"creator"` (everything for the
            own credentials, reading for all), or a list of kazoo's ACLs. A missing node of the service gets it too, for
            ZooKeeper decides there who may delete an instance. What is missing above that is open.
        client: A started `KazooClient` to use instead of making one; its owner stops it.
        options: How to speak with the servers: see `EnsembleOptions`. A registration's `ttl` is the session timeout
            unless one is given; the first of several decides.

    Raises:
        ConfigurationError: A host, path or option that cannot be right.
    """

    def __init__(
        self,
        hosts: str | Iterable[str],
        root: str = DEFAULT_ROOT,
        *,
        acl: str | Sequence[Any] = "open",
        client: Any = None,
        **options: Unpack[EnsembleOptions],
    ) -> None:
        self._ensemble = Ensemble.parse(hosts, options)
        self._root = node_path(root)
        self._acl = self._checked_acl(acl, client)
        self._client = client
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._loan: Loan[Connection] | None = None
        self._wakes: list[Callable[[], None]] = []
        self._nodes: dict[str, _Node] = {}
        self._closed = False

    @classmethod
    def from_url(cls, url: str) -> ZooKeeperRegistrar:
        """Read `zookeeper://[user:password@]h1:2181,h2:2181[/root][?session_timeout=10&…]`, options as keywords."""
        arguments = read_url(url)
        arguments.pop("format", None)  # which is for discovery: what we write is Curator's
        return cls(**arguments)

    def attach(self, wake: Callable[[], None]) -> None:
        """Call `wake` when there is a new connection, and when a node of ours changed."""
        with self._lock:
            self._wakes.append(wake)

    def detach(self, wake: Callable[[], None]) -> None:
        """Do not call `wake` any more."""
        with self._lock:
            if wake in self._wakes:
                self._wakes.remove(wake)

    def announce(self, service: str, endpoint: Endpoint, ttl: float) -> None:
        """Make sure that the node exists, is ours and says what it should. Raises RegistrationError."""
        path, data = self._path(service, endpoint), encode_instance(service, endpoint)
        connection = self._session(ttl)
        connection.reclaim(path)
        node = self._nodes.setdefault(path, _Node())
        try:
            self._ensure(connection, path, data, node)
        except RegistrationError:
            raise
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise RegistrationError(f"writing {path} failed: {reason}") from error
        finally:
            if self._closed:  # meanwhile, by another thread, which did not know yet what was written here
                connection.abandon([path])

    def withdraw(self, service: str, endpoint: Endpoint) -> None:
        """Delete the node if it is ours. Raises RegistrationError; then it is deleted when there is a session again."""
        path = self._path(service, endpoint)
        self._nodes.pop(path, None)
        loan = self._loan
        if loan is None or not loan.valid:
            return  # without a session of ours there is no node of ours
        connection = loan.value
        try:
            stat = _ask(connection, lambda client: client.exists_async(path))
            if stat is not None and stat.ephemeralOwner == connection.session_id:
                _ask(connection, lambda client: client.delete_async(path))
        except NoNodeError:
            pass
        except Exception as error:
            connection.abandon([path])
            reason = str(error) or type(error).__name__
            raise RegistrationError(f"deleting {path} failed: {reason}") from error

    def close(self) -> None:
        """End all nodes, and the session unless others use it. Idempotent; returns at once."""
        with self._lock:
            self._closed = True
            loan, self._loan = self._loan, None
            nodes, self._nodes = self._nodes, {}
        if loan is not None and loan.valid:
            loan.value.unsubscribe(self._connection_changed)
            loan.value.abandon(nodes)
            loan.give_back()

    def default_host(self) -> str:
        """The address that this machine has on its way to the first ZooKeeper server."""
        host, _, port = self._ensemble.hosts[0].rpartition(":")
        return local_address(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return registry_name(self._ensemble, self._root)

    def _checked_acl(self, acl: str | Sequence[Any], client: Any) -> list[Any]:
        if not isinstance(acl, str):
            return list(acl)
        if acl not in _ACLS:
            raise ConfigurationError(f"zookeeper: acl is {' or '.join(_ACLS)}, or a list of kazoo's ACLs")
        ensemble = self._ensemble
        known = ensemble.credentials or ensemble.sasl_mechanism or ensemble.cert_file or client is not None
        if acl == "creator" and not known:
            raise ConfigurationError("zookeeper: acl=creator needs credentials: without them the creator is nobody")
        return list(_ACLS[acl])

    def _path(self, service: str, endpoint: Endpoint) -> str:
        return f"{self._root}{node_path(service)}/{quote(endpoint.id, safe=':@[]')}"

    def _session(self, ttl: float) -> Connection:
        with self._lock:
            if self._closed:
                raise RegistrationError(f"{self} is closed")
            if self._loan is None or not self._loan.valid:
                client = self._client if os.getpid() == self._pid else None  # in a forked child it is the parent's
                self._loan = connect(self._ensemble.with_session_timeout(ttl), client)
                self._loan.value.subscribe(self._connection_changed)
            connection = self._loan.value
        connection.tend()
        if not connection.wait(_SESSION_PATIENCE):
            raise RegistrationError(connection.problem)
        return connection

    def _ensure(self, connection: Connection, path: str, data: bytes, node: _Node) -> None:
        session = connection.session_id
        stat = _ask(connection, lambda client: client.exists_async(path, watch=self._changed))
        if stat is not None and stat.ephemeralOwner == session:
            if node.data != data:
                _ask(connection, lambda client: client.set_async(path, data))
        else:
            if node.session == session:
                self._lost(path, node)
            if stat is not None:
                # Deleted and made anew, so that who watches the node hears of it.
                _ask(connection, lambda client: client.delete_async(path, version=stat.version), NoNodeError)
            self._create(connection, path, data)
            node.made(time.monotonic(), session)
        node.data = data

    def _lost(self, path: str, node: _Node) -> None:
        """Somebody deleted or took our node; raises RegistrationError if it is better not to take it back yet."""
        wait = node.lost(time.monotonic())
        if wait <= 0:
            return
        # the registration logs it, once per series of failures
        problem = f"{path} is taken away again and again (does another server have the same id?)"
        raise RegistrationError(f"{problem}; it is taken back in {math.ceil(wait)} s")

    def _create(self, connection: Connection, path: str, data: bytes) -> None:
        def create(client: Any) -> Any:
            return client.create_async(path, data, acl=self._acl, ephemeral=True)

        try:
            _ask(connection, create)
        except NoNodeError:
            service = path.rpartition("/")[0]
            above = service.rpartition("/")[0]
            if above:
                _ask(connection, lambda client: client.ensure_path_async(above, acl=OPEN_ACL_UNSAFE))
            _ask(connection, lambda client: client.create_async(service, b"", acl=self._acl), NodeExistsError)
            _ask(connection, create)

    def _changed(self, event: Any) -> None:
        if event.type != EventType.NONE and event.path in self._nodes:
            self._wake_all()

    def _connection_changed(self) -> None:
        loan = self._loan
        if loan is not None and loan.value.connected:
            self._wake_all()

    def _wake_all(self) -> None:
        for wake in tuple(self._wakes):
            wake()


@dataclass
class _Node:
    """What we know of a node of ours."""

    data: bytes | None = None
    session: int | None = None
    """The session in which we saw to it last."""
    made_at: float = -math.inf
    missing_since: float | None = None
    losses: int = 0

    def lost(self, now: float) -> float:
        """Note that it is gone or somebody else's; return the seconds to wait before it is taken back.

        Deleted once or twice is repaired at once. What is taken away again and again is left alone for growing times:
        another server has the same id, and both would do nothing else.
        """
        if self.missing_since is None:
            self.missing_since = now
            self.losses = 1 if now - self.made_at > _FIGHT_MEMORY else self.losses + 1
        pause = _FIGHT_PAUSES[min(self.losses, len(_FIGHT_PAUSES)) - 1]
        return self.missing_since + pause - now

    def made(self, now: float, session: int | None) -> None:
        """Note that it is there again, and ours."""
        self.made_at, self.missing_since, self.session = now, None, session


def _ask(connection: Connection, request: Callable[[Any], Any], *expected: type[KazooException]) -> Any:
    """Send one request. A failure is raised, unless it is one of those that are expected."""
    [answer] = connection.ask([request])
    if isinstance(answer, Exception) and not isinstance(answer, expected):
        raise answer
    return answer
