"""The faults of a registry, and what has to hold in each of them, whoever calls: `make test` has them short, and
`make soak` at full length.

A fault is something that happens to a scene. `ride_out` lets it happen under traffic through HTTP and gRPC at once,
lets a server die and another one come meanwhile, and then holds the callers to the promise: no call failed, and soon
after the recovery the list is right again.
"""

from __future__ import annotations

import contextlib
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from clientlb import Services, events
from tests.e2e.fleet import Fleet, names_of
from tests.e2e.scenes import MASTER_TOKEN, Scene, Timing
from tests.e2e.traffic import Traffic
from tests.servers.process import wait_until

SHELLS = ("httpx sync", "grpc aio")
RATE = 200.0
"""Calls per second through each shell."""

CALLERS_TOKEN = "5e8b4ab4-0000-4000-8000-000000000002"
_MAY_READ = 'node_prefix "" { policy = "read" } service_prefix "" { policy = "read" }'
_MAY_NOT_READ_NODES = 'node_prefix "" { policy = "deny" } service_prefix "" { policy = "read" }'


# ---------------------------------------------------------------------- what happens


def in_order(scene: Scene) -> str:
    """Nothing has to be made ready; returns the URL for the callers, as all of these do."""
    return scene.url


@contextmanager
def killed(scene: Scene) -> Iterator[None]:
    scene.server.kill()
    yield
    scene.server.start()


@contextmanager
def wiped(scene: Scene) -> Iterator[None]:
    scene.server.kill()
    scene.server.wipe()
    yield
    scene.server.start()


@contextmanager
def hanging(scene: Scene) -> Iterator[None]:
    scene.server.signal(signal.SIGSTOP)
    yield
    scene.server.signal(signal.SIGCONT)


@contextmanager
def leader_killed(scene: Scene) -> Iterator[None]:
    leader_of_now = scene.leader
    assert leader_of_now is not None
    leader = leader_of_now()
    leader.kill()
    yield
    wait_until(lambda: leader_of_now() is not leader, 30.0, "there is another leader")
    leader.launch()  # for the next fault: this one is over


@contextmanager
def quorum_lost(scene: Scene) -> Iterator[None]:
    lost = scene.servers[:2]
    for server in lost:
        server.kill()
    yield
    for server in lost:
        server.launch()
    for server in lost:
        server.wait_ready()


@contextmanager
def fleets_agent_killed(scene: Scene) -> Iterator[None]:
    """The others take its node for lost after 5 s, and everybody on it with it."""
    agent = scene.servers[1]
    agent.kill()
    yield
    agent.start()


@contextmanager
def callers_cut(scene: Scene) -> Iterator[None]:
    assert scene.callers_cable is not None
    scene.callers_cable.cut()
    yield
    scene.callers_cable.mend()


@contextmanager
def callers_reset(scene: Scene) -> Iterator[None]:
    assert scene.callers_cable is not None
    scene.callers_cable.reset()
    yield
    scene.callers_cable.mend()


@contextmanager
def fleet_cut(scene: Scene) -> Iterator[None]:
    assert scene.fleets_cable is not None
    scene.fleets_cable.cut()
    yield
    scene.fleets_cable.mend()


def with_token(scene: Scene) -> str:
    """The callers have a token of their own, with which they may read everything."""
    write_policy(scene, _MAY_READ)
    write_token(scene)
    return f"{scene.url}?token={CALLERS_TOKEN}"


def write_policy(scene: Scene, rules: str) -> None:
    known = {each["Name"]: each["ID"] for each in scene.server.request("GET", "/v1/acl/policies", token=MASTER_TOKEN)}
    path = "/".join(["/v1/acl/policy", *([known["callers"]] if "callers" in known else [])])
    scene.server.request("PUT", path, {"Name": "callers", "Rules": rules}, token=MASTER_TOKEN)


def write_token(scene: Scene) -> None:
    description = {"SecretID": CALLERS_TOKEN, "Policies": [{"Name": "callers"}]}
    with contextlib.suppress(urllib.error.HTTPError):  # 500: it exists
        scene.server.request("PUT", "/v1/acl/token", description, token=MASTER_TOKEN)


def token_accessor(scene: Scene) -> str:
    return str(scene.server.request("GET", "/v1/acl/token/self", token=CALLERS_TOKEN)["AccessorID"])


@contextmanager
def nodes_hidden(scene: Scene) -> Iterator[None]:
    """Whoever may read services but not their nodes is told that there are none, with status 200."""
    write_policy(scene, _MAY_NOT_READ_NODES)
    yield
    write_policy(scene, _MAY_READ)
    scene.fleet.add().joined()  # a new policy wakes nobody who waits for news; this does


@contextmanager
def token_deleted(scene: Scene) -> Iterator[None]:
    scene.server.request("DELETE", f"/v1/acl/token/{token_accessor(scene)}", token=MASTER_TOKEN)
    yield
    write_token(scene)


@contextmanager
def index_goes_back(scene: Scene) -> Iterator[None]:
    """Restoring a snapshot takes the index of every service back to what it was."""
    yield
    scene.fleet.serving[-1].joined()  # who came later would be lost until the agent writes all that it knows again
    for service in (scene.fleet.web, scene.fleet.rpc):
        wait_until(lambda service=service: in_catalog(scene, service) >= scene.fleet.names, 30, "all are in it")
    snapshot = transfer_snapshot(scene)
    for service in (scene.fleet.web, scene.fleet.rpc):
        ghost = {"ID": f"ghost-{service}", "Name": service, "Port": 1, "Check": {"TTL": "1h", "Status": "critical"}}
        for _ in range(10):
            scene.server.request("PUT", "/v1/agent/service/register", ghost)
            scene.server.request("PUT", f"/v1/agent/service/deregister/{ghost['ID']}")
    transfer_snapshot(scene, snapshot)
    scene.fleet.add().joined()


def in_catalog(scene: Scene, service: str) -> set[str]:
    """The servers that Consul says are there."""
    entries = scene.server.request("GET", f"/v1/health/service/{service}")
    return {entry["Service"]["ID"].rpartition(":")[2].removesuffix(f"-{service}") for entry in entries}


def transfer_snapshot(scene: Scene, data: bytes | None = None) -> bytes:
    """Take a snapshot of everything that the server knows, or make it know what is in one."""
    url = f"http://127.0.0.1:{scene.server.port}/v1/snapshot"
    headers = {"X-Consul-Token": MASTER_TOKEN}
    request = urllib.request.Request(url, data, headers, method="GET" if data is None else "PUT")
    with urllib.request.urlopen(request, timeout=10.0) as answer:
        body: bytes = answer.read()
    return body


# ---------------------------------------------------------------------- what has to hold


def the_absence(timing: Timing) -> float:
    return timing.absence


def the_outage(timing: Timing) -> float:
    return timing.outage


def the_cut(timing: Timing) -> float:
    return timing.cut


@dataclass(frozen=True)
class Fault:
    """Something that happens to a registry.

    Attributes:
        happens: Begins it and ends it: when that returns, the registry works again.
        lasts: Seconds, by `Timing`.
        within: Seconds from the recovery to a right list.
        noticed: What the balancer says of its registry meanwhile.
        url: Makes the scene ready; the URL for the callers.
    """

    happens: Callable[[Scene], AbstractContextManager[None]]
    lasts: Callable[[Timing], float] = the_absence
    within: float = 2.0
    noticed: str = "failing"
    url: Callable[[Scene], str] = in_order


FAULTS: dict[str, dict[str, Fault]] = {
    "dir": {"unreadable": Fault(killed)},
    "zookeeper": {
        "killed, restarted with its data": Fault(killed),
        "hanging": Fault(hanging, the_outage),
        "callers cut off, their session expires": Fault(callers_cut, the_cut),
        "callers reset": Fault(callers_reset),
        "servers cut off, their sessions expire": Fault(fleet_cut, the_cut, noticed="ok"),
        "killed, restarted without its data": Fault(wiped, within=20.0),
    },
    "zookeeper ensemble": {
        "leader killed": Fault(leader_killed, noticed="ok"),
        "quorum lost": Fault(quorum_lost, the_outage),
    },
    "consul": {
        "killed, restarted with its data": Fault(killed),
        "hanging": Fault(hanging, the_outage, noticed="ok"),
        "callers cut off": Fault(callers_cut, the_cut, noticed="ok"),
        "callers reset": Fault(callers_reset),
        "servers cut off, their leases end": Fault(fleet_cut, the_cut, noticed="ok"),
        "empty answers by its access rules": Fault(nodes_hidden, noticed="empty", url=with_token),
        "refusals by its access rules": Fault(token_deleted, within=10.0, url=with_token),
        "index goes back": Fault(index_goes_back, within=30.0, noticed="ok"),
        "killed, restarted without its data": Fault(wiped),
    },
    "consul cluster": {
        "leader killed": Fault(leader_killed, noticed="ok"),
        "quorum lost": Fault(quorum_lost, the_outage, noticed="ok"),
    },
    # an agent that could not reach the servers when it started tries again after 15 s: Consul's own retry
    "consul agents": {"agent of the servers killed": Fault(fleets_agent_killed, noticed="empty", within=20.0)},
}
CASES = [(kind, name) for kind, faults in FAULTS.items() for name in faults]


class History:
    """What the balancers said, and whom they let go.

    Attributes:
        losses: Servers that served when they were taken off a list.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.losses: list[str] = []
        self._fleet = fleet
        self._told: set[tuple[str, type[events.Event]]] = set()

    def __call__(self, event: events.Event) -> None:
        self._told.add((event.service, type(event)))
        if isinstance(event, events.EndpointsChanged):
            self.losses += names_of(event.removed) & self._fleet.names

    def told(self, traffic: Traffic, kind: type[events.Event]) -> bool:
        """Whether there was an event of this kind."""
        return (traffic.service, kind) in self._told


@contextmanager
def calling(url: str, fleet: Fleet) -> Iterator[tuple[list[Traffic], History]]:
    """Calls to all of the fleet through HTTP and gRPC, none of which may fail."""
    history = History(fleet)
    with Services(url, hooks=[history]) as services:
        with ExitStack() as stack:
            traffics = [stack.enter_context(Traffic(shell, services, fleet, rate=RATE)) for shell in SHELLS]
            for traffic in traffics:
                traffic.wait_confirmed(fleet.names)
                traffic.wait_served_by(*fleet.names)
            yield traffics, history
        for traffic in traffics:
            traffic.check_no_failures()
            traffic.check_nothing_in_flight()


def ride_out(scene: Scene, name: str) -> None:
    """Let a fault happen under traffic, and hold the callers to the promise."""
    fault = FAULTS[scene.kind][name]
    fleet, limit = scene.fleet, fault.within * scene.timing.slack
    with calling(fault.url(scene), fleet) as (traffics, history):
        with fault.happens(scene):
            end = time.monotonic() + fault.lasts(scene.timing)
            fleet.kill(traffics[0].favourite)
            latecomer = fleet.add()
            for traffic in traffics:
                check_visible(fault, traffic, history)
                traffic.wait_calls(30)
            for traffic in traffics:
                traffic.go_on(end)
        recovered = time.monotonic()
        latecomer.joined()
        for traffic in traffics:
            traffic.wait_confirmed(fleet.names, timeout=limit + 15.0)
        took = time.monotonic() - recovered
        for traffic in traffics:
            traffic.wait_served_by(latecomer.name)
        # a registry that was never seen to fail is believed when it says that one of many is gone
        assert fault.noticed == "ok" or not history.losses
        assert took <= limit, f"the list was right after {took:.1f} s\n{traffics[0].report()}"
    calls = sum(len(traffic.calls) for traffic in traffics)
    print(f"{scene.kind}, {name}: {calls} calls, none failed; the list was right {took:.2f} s after the recovery")


def check_visible(fault: Fault, traffic: Traffic, history: History) -> None:
    """Whoever asks is told what is wrong."""
    if fault.noticed == "failing":
        traffic.wait_outage()
        assert traffic.balancer.registry_state == "failing"
        assert history.told(traffic, events.DiscoveryFailed)
        assert "the registry has been failing" in traffic.balancer.explain()
    elif fault.noticed == "empty":
        traffic.wait_for(lambda: traffic.balancer.limbo, "somebody is in limbo")
        assert history.told(traffic, events.RemovalHeld)
        assert "it names nobody: it stays in use" in traffic.balancer.explain()
