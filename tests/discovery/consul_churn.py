"""Instances come, change and go while the agents are killed: does the view of a watch end up equal to the registry?"""

from __future__ import annotations

import random
import threading
import time
from typing import Any

from clientlb.discovery import open_discovery
from clientlb.endpoint import Endpoint
from tests.discovery.watching import Watched
from tests.servers.consul import ConsulCluster, ConsulServer
from tests.servers.process import wait_until

Instances = dict[str, float]
"""Instance -> its weight."""


class Writer(threading.Thread):
    """Registers and deregisters instances in the catalog through whichever server answers."""

    def __init__(self, servers: list[ConsulServer], service: str, names: list[str], seed: int) -> None:
        super().__init__(daemon=True)
        self._servers, self._service, self._names = servers, service, names
        self._random = random.Random(seed)
        self._ended = threading.Event()
        self.written = 0
        self.failed = 0
        self.failure: BaseException | None = None

    def end(self) -> None:
        self._ended.set()
        self.join(20)

    def run(self) -> None:
        try:
            while not self._ended.is_set():
                self._write(self._random.choice(self._names), self._random.random())
        except BaseException as error:
            self.failure = error

    def _write(self, name: str, chance: float) -> None:
        node, number = f"node-{name}", int(name)
        body: dict[str, Any] = {"Node": node, "ServiceID": name}
        if chance >= 0.4:
            weights = {"Passing": self._random.randint(1, 1000), "Warning": 1}
            status = "critical" if chance < 0.5 else "passing"
            body = {
                "Node": node,
                "Address": f"10.1.{number // 250}.{number % 250 + 1}",
                "Service": {"ID": name, "Service": self._service, "Port": 80, "Weights": weights},
                "Checks": [{"Node": node, "CheckID": name, "ServiceID": name, "Status": status}],
            }
        path = "register" if chance >= 0.4 else "deregister"
        try:
            self._random.choice(self._servers).request("PUT", f"/v1/catalog/{path}", body, timeout=2.0)
            self.written += 1
        except OSError:
            self.failed += 1
            self._ended.wait(0.05)


def registry(server: ConsulServer, service: str) -> Instances:
    """What the leader says, read without any code of ours."""
    entries: list[dict[str, Any]] = server.request("GET", f"/v1/health/service/{service}?consistent&passing")
    return {
        f"{entry['Node']['Node']}/{entry['Service']['ID']}": float(entry["Service"]["Weights"]["Passing"])
        for entry in entries
    }


def view(endpoints: tuple[Endpoint, ...] | None) -> Instances | None:
    return None if endpoints is None else {endpoint.id: endpoint.weight for endpoint in endpoints}


def churn(cluster: ConsulCluster, service: str, *, seed: int, instances: int, kills: int, pause: float) -> None:
    """Two writers, `kills` times a server of the cluster killed and started, and a watch in each consistency.

    Every kill is followed by `pause` seconds of churn. In the end each watch must show what the registry has.
    """
    chance = random.Random(seed)
    names = [str(number) for number in range(instances)]
    writers = [Writer(cluster.servers, service, names[part::2], seed + part) for part in range(2)]
    watches = {}
    for consistency in ("stale", "default"):
        for server in cluster.servers[:2]:
            discovery = open_discovery(f"{server.url}?consistency={consistency}")
            discovery.resolver(service).start(listener := Watched())
            watches[f"{consistency} at {server.name}"] = (discovery, listener)
    for writer in writers:
        writer.start()
    for _ in range(kills):
        victim = chance.choice([cluster.leader(), chance.choice(cluster.servers)])
        victim.kill()
        time.sleep(pause / 2)
        victim.start()
        time.sleep(pause / 2)
    for writer in writers:
        writer.end()
    assert [writer.failure for writer in writers] == [None, None]
    assert min(writer.written for writer in writers) > instances / 10
    cluster.leader()
    truth = registry(cluster.servers[2], service)
    assert truth
    for name, (discovery, listener) in watches.items():
        wait_until(lambda seen=listener: view(seen.endpoints) == truth, 10, f"the watch with {name} is right")
        discovery.close()
