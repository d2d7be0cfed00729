"""Servers with several worker processes, of every kind that Python users have: one `Services`, used in all of them.

Where the kind allows it, the clients are made and used before the workers are forked, and the process that forks has
calls in flight meanwhile. No call may fail, of the workers' or the parent's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fleet import Fleet, fleet_in
from tests.e2e.programs import PATIENCE, lines, running
from tests.e2e.tasks import celery_in
from tests.servers.process import free_ports, wait_until

WORKERS = 2
Answer = dict[str, Any]


@pytest.fixture(scope="module")
def shared_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_in(f"dir://{tmp_path_factory.mktemp('registry')}", size=1, spares=2) as fleet:
        yield fleet


@pytest.fixture
def fleet(shared_fleet: Fleet) -> Fleet:
    shared_fleet.fill()
    return shared_fleet


def check(fleet: Fleet, ask: Callable[[], list[Answer]]) -> set[int]:
    """Ask until all workers have called the servers of now, and then the one that joins. Returns the workers."""
    answers: list[Answer] = []

    def all_called(names: set[str]) -> bool:
        answers.extend(ask())
        called = [{each["process"] for each in answers if names & set(each[kind])} for kind in ("web", "rpc")]
        return all(len(workers) == WORKERS for workers in called)

    wait_until(lambda: all_called(fleet.names), PATIENCE, "all workers have called")
    newcomer = fleet.add()
    wait_until(lambda: all_called({newcomer.name}), PATIENCE, "all workers have called the newcomer")
    workers = {each["process"] for each in answers}
    at_the_end = {(each["process"], each["in_flight"]) for each in answers if each["in_flight"] is not None}
    assert at_the_end == {(worker, 0) for worker in workers}
    assert len(workers) == WORKERS, "none died and was replaced"
    return workers


def check_parent(process: subprocess.Popen[bytes]) -> None:
    """What the process that forked says of its own calls when it ends."""
    parent = lines(process, 1)["parent"]
    assert not parent["failures"], parent["failures"][0]
    assert parent["calls"] > 0
    assert parent["in_flight"] == 0


def environment(fleet: Fleet, *, forks: bool) -> dict[str, str]:
    return {"REGISTRY": fleet.registry, "WEB": fleet.web, "RPC": fleet.rpc, "FORKS": "yes" if forks else "no"}


@contextmanager
def asking(process: subprocess.Popen[bytes], port: int) -> Iterator[Callable[[], list[Answer]]]:
    """Ask a server with workers, so many times at once that all of them are busy."""

    def ask(_: int = 0) -> Answer:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as answer:
            answered: Answer = json.load(answer)
        return answered

    def listens() -> bool:
        assert process.poll() is None
        try:
            return bool(ask())
        except OSError:
            return False

    wait_until(listens, PATIENCE, "the server listens")
    with ThreadPoolExecutor(2 * WORKERS) as pool:
        yield lambda: list(pool.map(ask, range(2 * WORKERS)))


@pytest.mark.parametrize(
    "worker", [["tests.e2e.apps:wsgi"], ["--worker-class=uvicorn_worker.UvicornWorker", "tests.e2e.apps:asgi"]]
)
def test_gunicorn_that_loads_the_application_before_it_forks(worker: list[str], fleet: Fleet) -> None:
    [port] = free_ports(1)
    command = ["gunicorn", "--preload", f"--workers={WORKERS}", f"--bind=127.0.0.1:{port}", *worker]
    with running(*command, **environment(fleet, forks=True)) as process:
        with asking(process, port) as ask:
            assert process.pid not in check(fleet, ask)
        process.terminate()
        check_parent(process)


def test_uvicorn_which_spawns(fleet: Fleet) -> None:
    [port] = free_ports(1)
    command = ["uvicorn", f"--workers={WORKERS}", f"--port={port}", "--lifespan=off", "tests.e2e.apps:asgi"]
    with running(*command, **environment(fleet, forks=False)) as process:
        with asking(process, port) as ask:
            assert process.pid not in check(fleet, ask)
        process.terminate()


def test_celery_prefork(fleet: Fleet, tmp_path: Path) -> None:
    app = celery_in(tmp_path)
    command = ["celery", "--quiet", "--app=tests.e2e.tasks", "worker", "--pool=prefork", f"--concurrency={WORKERS}"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=warning"]
    variables = {**environment(fleet, forks=True), "CELERY_FOLDER": str(tmp_path)}

    def ask() -> list[Answer]:
        asked = [app.send_task("answer") for _ in range(2 * WORKERS)]
        return [each.get(timeout=PATIENCE, interval=0.05) for each in asked]

    with running(*command, **variables) as process:
        assert process.pid not in check(fleet, ask)
        process.terminate()
        check_parent(process)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(method: str, fleet: Fleet) -> None:
    reading, writing = os.pipe()
    known = fleet.names
    with os.fdopen(reading), os.fdopen(writing, "wb", 0) as told:
        arguments = ["tests.e2e.multiprocess", method, fleet.registry, fleet.web, fleet.rpc]
        with running(*arguments, stdin=reading) as process:
            first = lines(process, WORKERS)
            assert all(set(each["web"]) | set(each["rpc"]) <= known for each in first.values()), first
            told.write(fleet.add().name.encode() + b"\n")
            last = lines(process, WORKERS)
            assert first.keys() == last.keys()
            assert {each["in_flight"] for each in (*first.values(), *last.values())} == {0}
            check_parent(process)


IMPORTS = """
import threading, os
before = len(os.listdir("/proc/self/fd"))
import clientlb, clientlb.httpx, clientlb.httpx2, clientlb.grpc, clientlb.grpc.aio, clientlb.registration
import clientlb.discovery.zookeeper, clientlb.discovery.consul, clientlb.discovery.dns, clientlb.telemetry.prometheus
print(threading.active_count(), len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")) - before)
"""
"""Imports every shell and registry, and counts threads, threads of C libraries included, and file descriptors."""


def test_nothing_starts_at_import() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "0"]
