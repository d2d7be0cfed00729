"""The registry dies while calls run: no call fails, and when it is back news arrive without help.

Two shells call at the same time, one that speaks HTTP and one that speaks gRPC.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clientlb import Services
from tests.conftest import running
from tests.e2e.fleet import Fleet, fleet_in
from tests.e2e.shells import REGISTRIES
from tests.e2e.traffic import Traffic
from tests.servers.consul import ConsulCluster, ConsulServer
from tests.servers.process import ServerProcess
from tests.servers.zookeeper import ZooKeeperEnsemble, ZooKeeperServer

SHELLS = ("httpx async", "grpc aio")


class DirectoryThatFails:
    """A `dir://` registry behind a symbolic link, which can be made to point at something else in one step."""

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

    def _point_at(self, target: Path) -> None:
        draft = self._link.with_name("draft")
        draft.symlink_to(target)
        draft.rename(self._link)


@pytest.fixture(params=REGISTRIES)
def registry(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[DirectoryThatFails | ZooKeeperServer | ConsulServer]:
    """A registry with a memory, that the test may kill and start again."""
    if request.param == "dir":
        yield DirectoryThatFails(tmp_path)
    else:
        server = {"zookeeper": ZooKeeperServer, "consul": ConsulServer}[request.param]()
        with running(server):
            yield server


@contextlib.contextmanager
def calling(url: str) -> Iterator[tuple[Fleet, list[Traffic]]]:
    """A fleet, and calls to all of it, none of which may fail."""
    with fleet_in(url) as fleet, Services(url) as services:
        with contextlib.ExitStack() as stack:
            traffics = [stack.enter_context(Traffic(shell, services, fleet)) for shell in SHELLS]
            for traffic in traffics:
                traffic.wait_endpoints(len(fleet.serving))
                traffic.wait_served_by(*fleet.names)
            yield fleet, traffics
        for traffic in traffics:
            traffic.check_no_failures()
            traffic.check_nothing_in_flight()


def test_registry_killed_and_restarted(registry: DirectoryThatFails | ZooKeeperServer | ConsulServer) -> None:
    with calling(registry.url) as (fleet, traffics):
        registry.kill()
        for traffic in traffics:
            traffic.wait_outage()
            traffic.wait_calls(30)

        victim = fleet.kill(traffics[0].favourite)
        traffics[0].wait_retry()
        for traffic in traffics:
            traffic.wait_calls(30)
            assert traffic.lists(victim)  # nobody could say that it is gone

        latecomer = fleet.add()  # it tries on until the registry is back
        registry.start()
        latecomer.joined()
        for traffic in traffics:
            traffic.wait_served_by(latecomer.name, timeout=30.0)
            traffic.wait_gone(victim)
        check_news_arrive(fleet, traffics)


def test_zookeeper_leader_killed(zookeeper_cluster: ZooKeeperEnsemble) -> None:
    leader_killed(zookeeper_cluster.url, zookeeper_cluster.leader)


def test_consul_leader_killed(consul_cluster: ConsulCluster) -> None:
    # servers and clients talk to the agent of their machine, and that one stays
    leader = consul_cluster.leader()
    agent = next(server for server in consul_cluster.servers if server is not leader)
    leader_killed(agent.url, lambda: leader)


def leader_killed(url: str, leader: Callable[[], ServerProcess]) -> None:
    with calling(url) as (fleet, traffics):
        leader().kill()
        for traffic in traffics:
            traffic.wait_calls(30)
        check_news_arrive(fleet, traffics)


def check_news_arrive(fleet: Fleet, traffics: list[Traffic]) -> None:
    """A new server gets calls, and one that leaves is taken out of the list."""
    newcomer = fleet.add()
    newcomer.joined()
    for traffic in traffics:
        traffic.wait_served_by(newcomer.name, timeout=30.0)
    leaver = fleet.lose_one()
    for traffic in traffics:
        traffic.wait_gone(leaver)
        traffic.wait_calls(30)
