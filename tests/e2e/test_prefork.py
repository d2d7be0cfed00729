"""Clients that were used before a server forked its workers work in all of them, and in the parent as before."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fleet import Fleet, fleet_in
from tests.e2e.preforking import CHILDREN
from tests.servers.process import free_ports, wait_until

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0


@pytest.fixture(scope="module", params=["zookeeper", "consul"])
def shared_fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with fleet_in(request.getfixturevalue(request.param).url, size=1, spares=3) as fleet:
        yield fleet


@pytest.fixture
def fleet(shared_fleet: Fleet) -> Fleet:
    shared_fleet.fill()
    return shared_fleet


@contextmanager
def running(*command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program of ours; it has to end by itself, with status 0, before the block does."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            bufsize=0,  # what is read stays visible to `select` until it is taken
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            yield process
            status = process.wait(PATIENCE)
        except BaseException:
            log.seek(0)
            print(log.read().decode(errors="replace"))
            raise
        finally:
            with process.stdout:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # its children, too
                    process.wait()
        log.seek(0)
        assert status == 0, log.read().decode(errors="replace")


def lines(process: subprocess.Popen[bytes], count: int) -> dict[str, dict[str, Any]]:
    """The next lines that its processes say, by who said them."""
    assert process.stdout is not None
    said: dict[str, dict[str, Any]] = {}
    while len(said) < count:
        readable, _, _ = select.select([process.stdout], [], [], PATIENCE)
        line = process.stdout.readline() if readable else b""
        assert line, f"only {said}"
        fact = json.loads(line)
        said[fact.pop("who")] = fact
    return said


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
