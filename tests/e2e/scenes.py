"""Where the faults happen: a registry, a fleet of servers that registered in it themselves, and cables to be cut."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.conftest import running
from tests.e2e.cutting import CuttingProxy
from tests.e2e.fleet import Fleet, fleet_in
from tests.servers.consul import ConsulCluster, ConsulServer
from tests.servers.process import ServerProcess
from tests.servers.zookeeper import ZooKeeperEnsemble, ZooKeeperServer

MASTER_TOKEN = "5e8b4ab4-0000-4000-8000-000000000001"


@dataclass(frozen=True)
class Timing:
    """How long things take, in seconds.

    Attributes:
        ttl: After which a dead server is out of the registry; also the session of the callers.
        absence: For which a registry is not there, or refuses.
        outage: For which it hangs or has no quorum.
        cut: For which a cable is cut.
        slack: Factor on the time in which the list has to be right again.
    """

    ttl: float
    absence: float
    outage: float
    cut: float
    slack: float


SHORT = Timing(ttl=2.0, absence=1.0, outage=3.0, cut=3.0, slack=3.0)
FULL = Timing(ttl=10.0, absence=20.0, outage=20.0, cut=30.0, slack=1.0)


@dataclass
class Scene:
    """A registry and a fleet. What is None has no place in this kind of registry.

    Attributes:
        url: The registry, for the callers.
        servers: Its processes, or what stands for one.
        callers_cable: Between the callers and the registry.
        fleets_cable: Between the servers of the fleet and the registry.
        leader: Asks for the one process that leads.
    """

    kind: str
    timing: Timing
    url: str
    fleet: Fleet
    servers: Sequence[Any]
    callers_cable: CuttingProxy | None = None
    fleets_cable: CuttingProxy | None = None
    leader: Callable[[], ServerProcess] | None = None

    @property
    def server(self) -> Any:
        """The one process of a registry that has one."""
        [server] = self.servers
        return server

    def heal(self) -> None:
        """Undo what a test that failed has left behind."""
        for cable in (self.callers_cable, self.fleets_cable):
            if cable is not None:
                cable.mend()
        for server in self.servers:
            if server.running:
                server.signal(signal.SIGCONT)
            else:
                server.launch()
        for server in self.servers:
            server.wait_ready()


class Directory:
    """A `dir://` registry behind a symbolic link, which can be made to point at something else in one step."""

    running = True

    def __init__(self, folder: Path) -> None:
        self._link, self._registry, self._something = folder / "link", folder / "registry", folder / "file"
        self._registry.mkdir()
        self._something.touch()
        self._link.symlink_to(self._registry)
        self.url = f"dir://{self._link}"

    def kill(self) -> None:
        """From now on nobody can read it, write it or make it anew."""
        self._point_at(self._something)

    def start(self) -> None:
        self._point_at(self._registry)

    def signal(self, number: int) -> None:
        """There is no process."""

    wait_ready = start

    def _point_at(self, target: Path) -> None:
        draft = self._link.with_name("draft")
        draft.symlink_to(target)
        draft.rename(self._link)


@contextmanager
def open_scene(kind: str, timing: Timing) -> Iterator[Scene]:
    """Start the registry and the fleet of a scene. Kinds are the keys of `FAULTS`."""
    with ExitStack() as stack:
        if kind == "dir":
            directory = Directory(Path(stack.enter_context(TemporaryDirectory(prefix="clientlb-dir-"))))
            fleet = stack.enter_context(fleet_in(directory.url, spares=1, ttl=timing.ttl))
            yield Scene(kind, timing, directory.url, fleet, [directory])
        elif kind == "zookeeper ensemble":
            ensemble = stack.enter_context(running(ZooKeeperEnsemble()))
            fleet = stack.enter_context(fleet_in(ensemble.url, spares=1, ttl=timing.ttl))
            url = f"{ensemble.url}?session_timeout={timing.ttl:g}"
            yield Scene(kind, timing, url, fleet, ensemble.servers, leader=ensemble.leader)
        elif kind in ("consul cluster", "consul agents"):
            cluster = stack.enter_context(running(ConsulCluster()))
            # everybody talks to the agent of the own machine; the callers' one is never killed
            leader = cluster.leader()
            callers, fleets = (server for server in cluster.servers if server is not leader)
            fleet = stack.enter_context(fleet_in(fleets.url, spares=1, ttl=timing.ttl))
            yield Scene(kind, timing, callers.url, fleet, [leader, fleets, callers], leader=cluster.leader)
        else:
            server = stack.enter_context(running(_SERVERS[kind]()))
            callers, fleets = (stack.enter_context(CuttingProxy(server.port)) for _ in range(2))
            address = _ADDRESSES[kind]
            fleet = stack.enter_context(fleet_in(address.format(port=fleets.port), spares=1, ttl=timing.ttl))
            url = address.format(port=callers.port) + _CALLERS_OPTIONS[kind].format(ttl=timing.ttl)
            yield Scene(kind, timing, url, fleet, [server], callers, fleets)


def _consul_with_tokens() -> ConsulServer:
    # everybody may do everything, but for those whose token says otherwise
    rules = {"enabled": True, "default_policy": "allow", "tokens": {"master": MASTER_TOKEN}}
    return ConsulServer(extra={"primary_datacenter": "dc1", "acl": rules})


_SERVERS: dict[str, Callable[[], Any]] = {"zookeeper": ZooKeeperServer, "consul": _consul_with_tokens}
_ADDRESSES = {"zookeeper": "zookeeper://127.0.0.1:{port}/services", "consul": "consul://127.0.0.1:{port}"}
_CALLERS_OPTIONS = {"zookeeper": "?session_timeout={ttl:g}", "consul": ""}


class Stage:
    """Where one scene is set at a time; it stays for as long as nobody asks for another one."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._open = ExitStack()
        self._scene: Scene | None = None

    def scene(self, kind: str) -> Scene:
        """A scene in which everything works and everybody is there."""
        if self._scene is None or self._scene.kind != kind:
            self.close()
            self._scene = self._open.enter_context(open_scene(kind, self._timing))
        self._scene.heal()
        self._scene.fleet.fill()
        return self._scene

    def close(self) -> None:
        self._scene = None
        self._open.close()
