"""What a registry might hold if everybody who writes there were confused, and watches that must not mind."""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kazoo.client import KazooClient

from clientlb.discovery import Discovery
from clientlb.discovery.consul import ConsulDiscovery
from clientlb.discovery.decode import encode_instance
from clientlb.discovery.directory import DirectoryDiscovery
from clientlb.discovery.zookeeper import ZooKeeperDiscovery
from clientlb.endpoint import Endpoint
from tests.discovery.scripted_agent import Reply, ScriptedAgent, entry
from tests.discovery.watching import Watched
from tests.servers.zookeeper import ZooKeeperServer

INJECTIONS = (
    "unix:/x",
    "/tmp/sock",
    "file:///etc",
    "user:pw@h",
    "h\r\nX: y",
    "unix:abc",
    "unix-abstract:x",
    "dns:///x",
    "ipv4:1.2.3.4",
    "vsock:1:2",
    "h,10.0.0.2",
    "h?x",
    "h#x",
    "h x",
    "[::1]",
    "fe80::1%eth0",
    "h\uff0fx",
    "\ud800",
    "h\0",
    "",
)
SCALARS: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    80,
    65536,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "80",
    "nan",
    "\ud800",
    "x" * 5000,
    *INJECTIONS,
)
KEYS = (
    "host",
    "port",
    "address",
    "sslPort",
    "id",
    "weight",
    "payload",
    "metadata",
    "enabled",
    "serviceEndpoint",
    "status",
    "vector",
    "registrationTimeUTC",
    "Node",
    "Service",
    "Checks",
    "ID",
    "Address",
    "Port",
    "Tags",
    "Meta",
    "Weights",
    "Status",
)
GOOD = Endpoint("10.0.0.1", 1, "good")
LAST = Endpoint("10.0.0.1", 2, "last")
MEMORY = 64 * 1024 * 1024


def value(rng: random.Random, depth: int = 3) -> Any:
    """Any JSON, with a liking for the fields that we read."""
    kind = rng.randrange(4) if depth else 0
    if kind == 1:
        return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind > 1:
        return {rng.choice(KEYS): value(rng, depth - 1) for _ in range(rng.randrange(6))}
    return rng.choice(SCALARS)


def data(rng: random.Random) -> bytes:
    """What a node might hold."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.randbytes(rng.randrange(200))
    if kind == 1:
        return rng.choice((b"[" * 50_000, b'{"a":' * 20_000, b"9" * 5000, b"x" * 200_000, b""))
    return json.dumps(value(rng)).encode()


def no_list(rng: random.Random) -> bytes:
    """What an agent might say that is no list of instances: any list would be an answer, even an empty one."""
    body = data(rng)
    try:
        return b"{" + body if isinstance(json.loads(body), list) else body
    except (ValueError, RecursionError):
        return body


def beside(good: Any, rng: random.Random) -> list[Any]:
    """What an agent might list together with a good instance; some of it twice."""
    stranger = entry(value(rng, 0), id=rng.choice(("a", "b")), address=value(rng, 0), node=value(rng), Meta=value(rng))
    changes = {"Checks": value(rng)} if rng.random() < 0.5 else {}
    entries = [good, value(rng), stranger | changes, stranger | changes]
    return rng.sample(entries, len(entries))


def name(rng: random.Random) -> str:
    """What a node might be called."""
    stem = rng.choice(("n", "member_0", "vector_0", "dubbo%3A%2F%2Fh%3A", "10.0.0.9:", "a@b", "%3a%2f%2f", "\u00e9"))
    return f"{stem}{rng.randrange(6)}"


@contextmanager
def guarding(discovery: Discovery, service: str) -> Iterator[Watched]:
    """Watch a service in which `GOOD` is; in the end it was in every list, `LAST` came, and memory is bounded.

    That `LAST` comes shows that the watch is alive; an exception that ends a thread fails the test anyway (pytest).
    """

    class Guarding(Watched):
        lost = 0

        def update(self, endpoints: Iterable[Endpoint]) -> None:
            listed = tuple(endpoints)
            with self._changed:
                self.lost += all(each.port != GOOD.port for each in listed)
                self._updates[:] = [listed]  # the last one only: it is not the test that shall fill the memory
                self._changed.notify_all()

        def error(self, error: Exception) -> None:
            with self._changed:
                self._errors[:] = [error]
                self._changed.notify_all()

    seen, before = Guarding(), resident()
    logger, log = logging.getLogger("clientlb"), logging.FileHandler(os.devnull)  # pytest would keep every line
    logger.propagate = False
    logger.addHandler(log)
    resolver = discovery.resolver(service)
    resolver.start(seen)
    try:
        seen.wait_for(lambda seen: seen.endpoints is not None)
        yield seen
        seen.wait_for(lambda seen: {GOOD.port, LAST.port} <= {each.port for each in seen.endpoints or ()}, 30.0)
        assert seen.lost == 0, "lists without the good instance"
        assert resident() - before < MEMORY, "more memory than a few lists need"
    finally:
        resolver.close()
        discovery.close()
        logger.removeHandler(log)
        log.close()
        logger.propagate = True


def resident() -> int:
    """The memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fuzz_zookeeper(server: ZooKeeperServer, service: str, *, seconds: float, seed: int) -> None:
    """Write nonsense beside a good instance into a real ZooKeeper."""
    rng, path = random.Random(seed), f"/services/{service}"
    client = KazooClient(hosts=server.hosts)
    client.start()
    try:
        client.create(f"{path}/good", encode_instance(service, GOOD), makepath=True)
        with guarding(ZooKeeperDiscovery(server.hosts), service):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                node = f"{path}/{name(rng)}"
                if not client.exists(node):
                    client.create(node, data(rng))
                elif rng.random() < 0.5:
                    client.set(node, data(rng))
                else:
                    client.delete(node)
            client.create(f"{path}/last", encode_instance(service, LAST))
    finally:
        client.stop()
        client.close()


def fuzz_directory(folder: Path, service: str, *, seconds: float, seed: int) -> None:
    """Write nonsense beside a good instance into a directory."""
    rng, place = random.Random(seed), folder / service
    place.mkdir()
    (place / "good.json").write_bytes(encode_instance(service, GOOD))
    with guarding(DirectoryDiscovery(folder, interval=0.01), service):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            file = place / f"{name(rng)}.json"
            if file.exists() and rng.random() < 0.5:
                file.unlink()
            else:
                file.write_bytes(data(rng))
        (place / "last.json").write_bytes(encode_instance(service, LAST))


def fuzz_consul(service: str, *, seconds: float, seed: int) -> None:
    """Answer nonsense, or nonsense beside a good instance, as a Consul agent."""
    rng, end = random.Random(seed), time.monotonic() + seconds
    index, last_index = 0, 1_000_000_000
    sane, closed = threading.Event(), threading.Event()
    good, last = entry(GOOD.port, id="good"), entry(LAST.port, id="last")

    def script(query: dict[str, str]) -> Reply:
        nonlocal index
        index += 1
        if index == 1:
            return Reply([good], index)
        if time.monotonic() > end:
            sane.set()
            if query.get("index") == str(last_index):
                closed.wait()  # as a blocking query: nothing changes any more
            return Reply([good, last], last_index)
        odd = {"X-Consul-Index": rng.choice(("", "-1", "x", "1e9", "9" * 5000, str(index)))}
        kind = rng.randrange(8)
        if kind == 0:
            return Reply(index=None, body=no_list(rng), headers=odd)
        if kind == 1:
            return Reply([good], index, status=rng.choice((403, 404, 429, 500, 503)))
        if kind == 2:
            return Reply([good, entry(1, id="big", Meta={"x": "x" * 10_000_000})], index)
        return Reply(beside(good, rng), None if kind == 3 else index, headers=odd if kind == 3 else {})

    with ScriptedAgent(script) as agent:
        try:
            with guarding(ConsulDiscovery("127.0.0.1", agent.port), service):
                assert sane.wait(seconds + 60.0)  # until somebody asks again
        finally:
            closed.set()
