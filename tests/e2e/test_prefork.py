"""Clients that were used before a server forked its workers work in all of them, and in the parent as before."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.fleet import Fleet, fleet_in
from tests.e2e.preforking import CHILDREN
from tests.e2e.programs import lines, running
from tests.servers.process import free_ports, wait_until

PATIENCE = 30.0


@pytest.fixture(scope="module", params=["zookeeper", "consul"])
def shared_fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with fleet_in(request.getfixturevalue(request.param).url, size=1, spares=3) as fleet:
        yield fleet


@pytest.fixture
def fleet(shared_fleet: Fleet) -> Fleet:
    shared_fleet.fill()
    return shared_fleet


def test_children_and_parent_call_on(fleet: Fleet) -> None:
    known = fleet.names
    with running("tests.e2e.preforking", fleet.registry, fleet.web, fleet.rpc) as process:
        said = lines(process, CHILDREN + 1)
        assert all(set(fact["served"].values()) <= known for fact in said.values()), said
        newcomer = fleet.add()
        said = lines(process, CHILDREN)
        assert all(fact["newcomer"] == newcomer.name for fact in said.values()), said
        assert lines(process, 1).keys() == {"parent, childless"}
        latecomer = fleet.add()
        assert lines(process, 1) == {"parent, childless": {"newcomer": latecomer.name}}


def test_workers_of_gunicorn(fleet: Fleet) -> None:
    [port] = free_ports(1)
    command = ["gunicorn", "--preload", "--workers", str(CHILDREN), "--bind", f"127.0.0.1:{port}", "tests.e2e.wsgi"]
    names = {"REGISTRY": fleet.registry, "WEB": fleet.web, "RPC": fleet.rpc}
    with running(*command, **names) as process, ThreadPoolExecutor(2 * CHILDREN) as pool:
        answers: list[dict[str, Any]] = []

        def ask(_: int) -> dict[str, Any]:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=15.0) as answer:
                answered: dict[str, Any] = json.load(answer)
            return answered

        def listens() -> bool:
            assert process.poll() is None
            try:
                return bool(ask(0))
            except OSError:
                return False

        def all_served_by(names: set[str]) -> bool:
            """Whether each worker has called these servers, through HTTP and through gRPC."""
            answers.extend(pool.map(ask, range(4 * CHILDREN)))
            served = [{each["process"] for each in answers if each[kind] in names} for kind in ("web", "rpc")]
            return all(len(workers) == CHILDREN for workers in served)

        wait_until(listens, PATIENCE, "gunicorn listens")
        known = fleet.names
        wait_until(lambda: all_served_by(known), PATIENCE, "all workers have called")
        newcomer = fleet.add()
        wait_until(lambda: all_served_by({newcomer.name}), PATIENCE, "all workers see the newcomer")
        process.terminate()
    workers = {each["process"] for each in answers}
    assert len(workers) == CHILDREN, "none died and was replaced"
    assert process.pid not in workers
