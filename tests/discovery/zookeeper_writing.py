"""Somebody else's client of ZooKeeper, which writes what we read; also at random, while servers crash."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from kazoo.client import KazooClient
from kazoo.exceptions import KazooException
from kazoo.handlers.threading import KazooTimeoutError

from clientlb.discovery import Discovery
from clientlb.discovery.decode import decode_instance, encode_instance
from clientlb.endpoint import Endpoint
from tests.discovery.watching import watching
from tests.servers.process import wait_until
from tests.servers.zookeeper import ZooKeeperEnsemble, ZooKeeperServer


@contextmanager
def writing(hosts: str) -> Iterator[KazooClient]:
    """Run a client."""
    client = KazooClient(hosts, timeout=5.0, connection_retry={"max_tries": -1, "max_delay": 0.5})
    client.start(15)
    try:
        yield client
    finally:
        client.stop()
        client.close()


def put(client: KazooClient, service: str, *ports: int, host: str = "10.0.0.1") -> None:
    """Add instances, or write them anew."""
    for port in ports:
        data = encode_instance(service, Endpoint(host, port, str(port)))
        path = f"/services/{service}/{port}"
        if client.exists(path):
            client.set(path, data)
        else:
            client.create(path, data, makepath=True)


def check_churn(
    registry: ZooKeeperServer | ZooKeeperEnsemble,
    discovery: Discovery,
    service: str,
    *,
    seed: int,
    instances: int,
    changes: int,
    crashes: int,
) -> None:
    """Let two writers change instances at random while servers are killed; the final list must be what is there."""
    path = f"/services/{service}"
    stopping = threading.Event()
    servers = registry.servers if isinstance(registry, ZooKeeperEnsemble) else [registry]

    def churn(rng: random.Random) -> None:
        with writing(registry.hosts) as client:
            client.ensure_path(path)
            for number in range(10 * changes):
                if number >= changes and stopping.is_set():
                    break
                port = rng.randrange(1, instances)
                data = encode_instance(service, Endpoint(f"10.0.0.{rng.randrange(1, 250)}", port))
                # the other writer was quicker, or the server is down
                with contextlib.suppress(KazooException, KazooTimeoutError):
                    change(client, f"{path}/{port}", data, rng.choice(["create", "create", "set", "delete", "replace"]))

    with watching(discovery, service) as seen:
        writers = [threading.Thread(target=churn, args=(random.Random(10 * seed + n),)) for n in range(2)]
        for writer in writers:
            writer.start()
        for number in range(crashes):
            enough = len(seen.updates) + 20
            wait_until(lambda enough=enough: len(seen.updates) > enough, 60, f"news after {number} crashes")
            server = random.Random(seed + number).choice(servers)
            server.restart()
        stopping.set()
        for writer in writers:
            writer.join()
        with writing(registry.hosts) as client:
            client.sync(path)  # this server may lag behind the others
            there = {
                (endpoint.id, endpoint.address)
                for name in client.get_children(path)
                if (endpoint := decode_instance(client.get(f"{path}/{name}")[0], id=name)) is not None
            }
        assert len(there) > instances / 10
        wait_until(lambda: {(each.id, each.address) for each in seen.endpoints or ()} == there, what="the lists agree")


def change(client: KazooClient, node: str, data: bytes, kind: str) -> None:
    """Change one node. A request that gets no answer in time ends the try, not the writer."""
    if kind in ("delete", "replace"):
        client.delete_async(node).get(timeout=5)
    if kind in ("create", "replace"):
        client.create_async(node, data).get(timeout=5)
    if kind == "set":
        client.set_async(node, data).get(timeout=5)
