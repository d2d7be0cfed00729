"""What it costs to know who exists: real ZooKeeper and Consul servers, and what else there is to watch them with.

Servers that come and leave are a process of their own (`registrant.py`), so only the watching side is measured. The
other ways to watch do less: no decoding, no balancer, just the bytes of every instance.

    REGISTRY.first_call.p50_ms, p99_ms     from the call of `register()`, over an open session, to the end of the first
                                           call that reaches the new server, through an HTTP client that makes one call
                                           after the other, a millisecond apart
    WAY.list_10000_s                       from nothing to a list of 10 000 instances, the connection included
    WAY.change_10000.seen_p50_ms, p99_ms   from the call of `register()` or `close()` to a changed list of them
    WAY.change_10000.cpu_ms                processor time that such a change takes in the watching process
    WAY.instance_bytes                     Python memory of each of 2 000 instances that are watched
    REGISTRY.services_1000.s               from nothing to a list of each of 1 000 services with two instances each
    REGISTRY.services_1000.threads, .sockets    what that needs
    REGISTRY.services_1000.core            share of a processor core that watching them takes while nothing changes

WAY is a registry, for clientlb, or `children_watch` (kazoo's, with a get for each new child), `tree_cache` (kazoo's) or
`python_consul` (its blocking query in a loop).
"""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import common
import httpx
from kazoo.client import KazooClient
from registrant import Registrant
from ways import PATIENCE, WINDOW, ChildrenWatch, Clientlb, KazooTreeCache, PythonConsul, Way

import clientlb.httpx
from clientlb import Endpoint, Options, Services
from clientlb.discovery.decode import encode_instance

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.conftest import running
from tests.servers.consul import ConsulServer
from tests.servers.zookeeper import ZooKeeperServer

MANY, SOME = 10_000, 2_000
SMALL, SMALL_SIZE = [f"small-{number:03}" for number in range(1_000)], 2
INSTANCES = {"many": MANY, "some": SOME, **dict.fromkeys(SMALL, SMALL_SIZE)}
"""What the registries are filled with, by service."""

STANDING = 2
"""Servers that are there when another one joins."""

BETWEEN_CALLS = 0.001  # seconds: a client that never pauses would measure how two threads share one interpreter
QUIET = 20.0  # seconds: so that services that take turns have had two
AFTERWARDS = 0.02  # seconds that a way to watch may work on after it has told us of a change
TRANSACTION = 64  # Consul's largest
ANCHORS = {
    "zookeeper.first_call.p99_ms": "7-11: to a watcher, without a call",
    "zookeeper.list_10000_s": "0.30: prototype",
    "zookeeper.change_10000.seen_p50_ms": "2.8: prototype",
    "zookeeper.change_10000.cpu_ms": "2.0: prototype",
    "consul.first_call.p99_ms": "4: to a watcher, without a call",
    "consul.list_10000_s": "0.52: answer and json alone",
    "consul.change_10000.seen_p50_ms": "575: answer and json alone",
}


# ---------------------------------------------------------------------- filling the registries


def instance(service: str, number: int) -> Endpoint:
    host = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    return Endpoint(host, 8080, id=f"{host}:8080-{number:06x}", zone=f"zone-{number % 3}", version="1.4.2")


def fill_zookeeper(server: ZooKeeperServer) -> None:
    """Write instances as clientlb's registrar does; they stay when this client is gone."""
    client = KazooClient(server.hosts)
    client.start()
    for service, count in INSTANCES.items():
        client.ensure_path(f"/services/{service}")
        for start in range(0, count, WINDOW):
            endpoints = [instance(service, number) for number in range(start, min(start + WINDOW, count))]
            for answer in [
                client.create_async(f"/services/{service}/{each.id}", encode_instance(service, each))
                for each in endpoints
            ]:
                answer.get()
    client.stop()
    client.close()


def fill_consul(server: ConsulServer) -> None:
    """Register instances with passing checks, on a node without an agent."""
    server.request("PUT", "/v1/catalog/register", {"Node": "n2", "Address": "10.0.0.2"})
    operations: list[dict[str, Any]] = []
    for service, count in INSTANCES.items():
        for each in (instance(service, number) for number in range(count)):
            id = f"{service}-{each.id}"
            meta = {"zone": each.zone, "version": each.version}
            description = {"ID": id, "Service": service, "Address": each.host, "Port": each.port, "Meta": meta}
            check = {"Node": "n2", "CheckID": f"service:{id}", "ServiceID": id, "Name": "TTL", "Status": "passing"}
            operations.append({"Service": {"Verb": "set", "Node": "n2", "Service": description}})
            operations.append({"Check": {"Verb": "set", "Check": check}})
    for start in range(0, len(operations), TRANSACTION):
        server.request("PUT", "/v1/txn", operations[start : start + TRANSACTION], timeout=30.0)


# ---------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Registry:
    """A registry that has been filled.

    Attributes:
        name: Prefix of its figures.
        url: For clientlb.
        empty_url: Of a server of the same kind that has nothing to do.
        pause: Seconds between two changes.
        ways: To watch one of its services, by prefix of their figures; clientlb's is the one with the registry's name.
        targets: By name of the figure.
    """

    name: str
    url: str
    empty_url: str
    pause: float
    ways: Mapping[str, Callable[[str], Way]]
    targets: Mapping[str, float]


def first_calls(registry: Registry, rounds: int) -> list[float]:
    """Seconds from `register()` to the end of the first call that reached the new server."""
    took = []
    with (
        Registrant(registry.empty_url, "orders", STANDING) as registrant,
        Services(registry.empty_url, options=Options(policy="round_robin")) as services,
        clientlb.httpx.Client(services, trust_env=False) as client,
    ):
        balancer = services["orders"]

        def call_until(condition: Callable[[httpx.Response], bool]) -> float:
            deadline = time.monotonic() + PATIENCE
            while not condition(client.get("http://orders/")):
                time.sleep(BETWEEN_CALLS)
                if time.monotonic() > deadline:
                    common.refuse(f"{registry.empty_url}: a change is not seen within {PATIENCE:g} s")
            return time.monotonic()

        for _ in range(rounds):
            call_until(lambda _: len(balancer.endpoints) == STANDING)
            pause_until = time.monotonic() + registry.pause
            call_until(lambda _, until=pause_until: time.monotonic() > until)
            registrant.tell("join")
            ended = call_until(lambda answer: answer.headers["X-Port"] == str(registrant.port))
            took.append(ended - registrant.began())
            registrant.tell("leave")
            registrant.began()
    return took


def first_list(make: Callable[[str], Way]) -> float:
    """Seconds from nothing to the list."""
    gc.collect()
    began = time.monotonic()
    with contextlib.closing(make("many")) as way:
        return way.wait(MANY) - began


def changes(registry: Registry, make: Callable[[str], Way], rounds: int) -> tuple[list[float], float]:
    """Seconds from each change to the changed list, and processor seconds per change."""
    with Registrant(registry.url, "many", 0) as registrant, contextlib.closing(make("many")) as way:
        way.wait(MANY)
        seen: list[float] = []
        spent = 0.0
        for command, size in [("join", MANY + 1), ("leave", MANY)] * rounds:
            time.sleep(registry.pause)
            before = time.process_time()
            registrant.tell(command)
            noted_at = way.wait(size)
            time.sleep(AFTERWARDS)
            spent += time.process_time() - before
            seen.append(noted_at - registrant.began())
    return seen, spent / len(seen)


def bytes_each(make: Callable[[str], Way]) -> float:
    """Memory that Python holds for each instance."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    with contextlib.closing(make("some")) as way:
        way.wait(SOME)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return held / SOME


def many_services(registry: Registry) -> tuple[float, int, int, float]:
    """Seconds until every service has its list; threads, sockets and share of a core that watching them needs."""
    threads, sockets = threading.active_count(), count_sockets()
    began = time.monotonic()
    with Services(registry.url, hooks=[]) as services:
        waiting = [services[name] for name in SMALL]
        while waiting := [balancer for balancer in waiting if len(balancer.endpoints) < SMALL_SIZE]:
            time.sleep(0.01)
            if time.monotonic() - began > PATIENCE:
                common.refuse(f"{registry.url}: {len(waiting)} services have no list after {PATIENCE:g} s")
        took = time.monotonic() - began
        threads, sockets = threading.active_count() - threads, count_sockets() - sockets
        spent = time.process_time()
        time.sleep(QUIET)
        return took, threads, sockets, (time.process_time() - spent) / QUIET


def count_sockets() -> int:
    count = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
    return count


def milliseconds(seconds: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile."""
    ordered = sorted(seconds)
    return statistics.median(ordered) * 1000, ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1000


# ---------------------------------------------------------------------- the report


def measure(report: common.Report, registry: Registry, quick: bool) -> None:
    """Add all figures of a registry."""

    def add(prefix: str, **figures: float) -> None:
        for suffix, value in figures.items():
            name = f"{prefix}.{suffix}"
            report.add(name, value, target=registry.targets.get(name), anchor=ANCHORS.get(name, ""))

    p50, p99 = milliseconds(first_calls(registry, 15 if quick else 100))
    add(f"{registry.name}.first_call", p50_ms=p50, p99_ms=p99)
    sides: common.Sides = {name: partial(first_list, make) for name, make in registry.ways.items()}
    for name, seconds in common.alternate(sides, 1 if quick else 5).items():
        add(name, **{f"list_{MANY}_s": statistics.median(seconds)})
    for name, make in registry.ways.items():
        ours = name == registry.name
        seen, spent = changes(registry, make, (4 if ours else 2) if quick else 50 if ours else 10)
        p50, p99 = milliseconds(seen)
        add(f"{name}.change_{MANY}", seen_p50_ms=p50, seen_p99_ms=p99, cpu_ms=spent * 1000)
    for name, make in registry.ways.items():
        add(name, instance_bytes=bytes_each(make))
    took, threads, sockets, core = many_services(registry)
    add(f"{registry.name}.services_{len(SMALL)}", s=took, threads=threads, sockets=sockets, core=core)


def zookeeper(server: ZooKeeperServer, empty: ZooKeeperServer) -> Registry:
    fill_zookeeper(server)
    return Registry(
        name="zookeeper",
        url=server.url,
        empty_url=empty.url,
        pause=0.05,
        ways={
            "zookeeper": lambda service: Clientlb(server.url, service),
            "children_watch": lambda service: ChildrenWatch(server.hosts, f"/services/{service}"),
            "tree_cache": lambda service: KazooTreeCache(server.hosts, f"/services/{service}"),
        },
        targets={
            "zookeeper.first_call.p99_ms": 15,
            f"zookeeper.list_{MANY}_s": 0.6,
            f"zookeeper.change_{MANY}.seen_p50_ms": 8,
            f"zookeeper.change_{MANY}.cpu_ms": 5,
        },
    )


def consul(server: ConsulServer, empty: ConsulServer) -> Registry:
    fill_consul(server)
    return Registry(
        name="consul",
        url=server.url,
        empty_url=empty.url,
        pause=0.5,  # so that what bounds the rate of Consul's answers never holds one back
        ways={
            "consul": lambda service: Clientlb(server.url, service),
            "python_consul": lambda service: PythonConsul(server.port, service),
        },
        targets={"consul.first_call.p99_ms": 15, f"consul.list_{MANY}_s": 1.2},
    )


def main() -> None:
    arguments = common.arguments(__doc__)
    report = common.Report("discovery", packages=("kazoo", "python-consul"))
    with running(ZooKeeperServer()) as server, running(ZooKeeperServer()) as empty:
        measure(report, zookeeper(server, empty), arguments.quick)
    # as many connections as an agent allows by default; the empty one in memory: this ZooKeeper does not wait for disks
    limits = {"limits": {"http_max_conns_per_client": 200}}
    with running(ConsulServer(extra=limits)) as server, running(ConsulServer(dev=True)) as empty:
        measure(report, consul(server, empty), arguments.quick)
    report.print(arguments.json)


if __name__ == "__main__":
    main()
