"""Malformed instances among good ones: each is left out with one line of log, and the good ones go on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kazoo.client import KazooClient

from clientlb import Services
from tests.e2e.fleet import Fleet, fleet_in
from tests.e2e.shells import SETTLED
from tests.e2e.traffic import Traffic
from tests.servers.consul import ConsulServer
from tests.servers.process import wait_until

MEGABYTE = 1_000_000
BAD_DOCUMENTS: dict[str, bytes] = {
    "not-json": b"\x00{nonsense",
    "a-list": b'["127.0.0.1", 80]',
    "port-0": b'{"host": "127.0.0.1", "port": 0}',
    "port-70000": b'{"host": "127.0.0.1", "port": 70000}',
    "a-megabyte": json.dumps({"host": "127.0.0.1", "port": 80, "metadata": {"a": "x" * MEGABYTE}}).encode(),
}
# what Consul itself lets in
BAD_SERVICES: dict[str, dict[str, Any]] = {
    "no-host": {"Address": "not a host"},
    "heavy": {"Meta": {"weight": "heavy"}},
    "port-0": {"Port": 0},
    "port-70000": {"Port": 70000},
    "a-megabyte": {"Tags": [f"{number:01000}" for number in range(MEGABYTE // 1000)]},
}


def put_files(folder: Path, service: str) -> None:
    for name, data in BAD_DOCUMENTS.items():
        (folder / service / f"{name}.json").write_bytes(data)


def put_nodes(hosts: str, service: str) -> None:
    client = KazooClient(hosts)
    client.start(15)
    with closing(client):
        for name, data in BAD_DOCUMENTS.items():
            client.create(f"/services/{service}/{name}", data)
        client.stop()


def put_services(consul: ConsulServer, service: str) -> None:
    for name, data in BAD_SERVICES.items():
        instance = {"ID": name, "Name": service, "Address": "127.0.0.1", "Port": 80, **data}
        consul.request("PUT", "/v1/agent/service/register", instance)


@pytest.fixture
def spoil(registry: str, request: pytest.FixtureRequest) -> Callable[[str], set[str]]:
    """Puts bad instances into a service of the registry; returns their names."""
    kind, folder = urlsplit(registry).scheme, Path(urlsplit(registry).path)
    put: Callable[[str], None] = {
        "dir": lambda service: put_files(folder, service),
        "zookeeper": lambda service: put_nodes(request.getfixturevalue("zookeeper").hosts, service),
        "consul": lambda service: put_services(request.getfixturevalue("consul"), service),
    }[kind]

    def spoiled(service: str) -> set[str]:
        put(service)
        return set(BAD_SERVICES if kind == "consul" else BAD_DOCUMENTS)

    return spoiled


@pytest.fixture
def fleet(registry: str) -> Iterator[Fleet]:
    with fleet_in(registry, size=2, spares=1) as fleet:
        yield fleet


def test_malformed_instances_among_good_ones(
    registry: str, fleet: Fleet, spoil: Callable[[str], set[str]], caplog: pytest.LogCaptureFixture
) -> None:
    def left_out(service: str) -> list[str]:
        """The lines about bad instances of a service."""
        return [line for line in list(caplog.messages) if line.startswith(f"{service} in ") and "left out" in line]

    with (
        caplog.at_level(logging.WARNING, "clientlb"),
        Services(registry, options=SETTLED) as services,
        Traffic("httpx sync", services, fleet) as web,
        Traffic("grpc aio", services, fleet) as rpc,
    ):
        for service in (web.service, rpc.service):
            bad = spoil(service)
            wait_until(lambda: len(left_out(service)) >= len(bad), 30, "the bad instances are noticed")  # noqa: B023
        fleet.add().joined()  # now everything is read again
        for traffic in (web, rpc):
            traffic.wait_served_by(*fleet.names)
            traffic.wait_endpoints(len(fleet.serving))
            traffic.check_no_failures()
            lines = left_out(traffic.service)
            assert {name: sum(name in line for line in lines) for name in bad} == dict.fromkeys(bad, 1), lines
            assert all(len(line) < 500 for line in lines), "a megabyte of nonsense is not logged"
