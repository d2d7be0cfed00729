"""A process that starts while its registry is down, with the last good list on disk and real registries."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest

from clientlb import Endpoint, Services, events
from clientlb.discovery.snapshot import SnapshotFiles
from tests.servers.consul import ConsulServer
from tests.servers.process import wait_until

SOON = 5.0
"""Seconds in which a call goes out that does not wait for the registry: that would take `wait=10`."""


def _know(server: ConsulServer, service: str, *ports: int) -> None:
    for port in ports:
        body = {"Name": service, "ID": f"{service}-{port}", "Port": port}
        server.request("PUT", "/v1/agent/service/register", body)


def _keep_list(url: str, service: str, folder: Path) -> None:
    with Services(url, snapshots=folder) as services:
        services[service].pick(wait=20).release()
        files = SnapshotFiles(folder, services[service].source)
        wait_until(lambda: files.load(service), what="the list is written")


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
def test_start_with_the_registry_down(own_consul: ConsulServer, service: str, tmp_path: Path, sync: bool) -> None:
    _know(own_consul, service, 1, 2, 3)
    _keep_list(own_consul.url, service, tmp_path)
    own_consul.kill()
    seen: list[events.Event] = []

    async def wait() -> bool:
        return await services[service].wait_async(10)

    with Services(own_consul.url, snapshots=tmp_path, hooks=[seen.append]) as services:
        started = time.monotonic()
        if not sync:
            assert asyncio.run(wait())
        services[service].pick(wait=10).release()
        assert time.monotonic() - started < SOON
        balancer = services[service]
        assert (balancer.registry_state, balancer.stale, len(balancer.endpoints)) == ("cached", True, 3)
        wait_until(
            lambda: [each.size for each in seen if isinstance(each, events.SnapshotUsed)] == [3], what="it is told"
        )
        own_consul.start()
        wait_until(lambda: balancer.registry_state == "ok", 20, "the registry's own list is used")
        assert {endpoint.port for endpoint in balancer.endpoints} == {1, 2, 3}
        _know(own_consul, service, 4)
        wait_until(lambda: len(balancer.endpoints) == 4, what="news arrives")


@pytest.mark.parametrize("scheme", ["consul", "zookeeper"])
def test_start_with_a_registry_that_accepts_and_never_answers(scheme: str, service: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"
        with Services(url) as services:
            source = services[service].source
        SnapshotFiles(tmp_path, source).save(service, (Endpoint("127.0.0.1", 1),))
        with Services(url, snapshots=tmp_path) as services:
            started = time.monotonic()
            services[service].pick(wait=10).release()
            assert time.monotonic() - started < SOON
            assert "the last good list on disk is in use" in services[service].explain()
