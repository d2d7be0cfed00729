"""Threads and descriptors of checks: what starts, what is left, and what a forked child has."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clientlb import GrpcCheck, HealthOptions, HttpCheck, Options, Services, TcpCheck, events
from clientlb.testing import ManualDiscovery
from tests.checking.conftest import Watched, descriptors, threads
from tests.servers.process import wait_until

Make = Callable[..., Any]
CHECKS = {
    "http": HttpCheck(interval=0.1, timeout=5.0),
    "tcp": TcpCheck(interval=0.1, timeout=5.0),
    "grpc": GrpcCheck(interval=0.3, timeout=5.0),
    "grpc-asked": GrpcCheck(watch=False, interval=0.1, timeout=5.0),
}
ROOT = Path(__file__).parents[2]


def checked_services(port: int, kind: str) -> Services:
    """What the scripts below use."""
    health = HealthOptions(check=CHECKS[kind], suspend=False)
    return Services(f"static://127.0.0.1:{port}", options=Options(health=health))


@pytest.mark.parametrize("kind", CHECKS)
def test_nothing_is_left_after_close(serve: Make, kind: str) -> None:
    server = serve("grpc" if "grpc" in kind else "http")
    before: list[str] = []
    for turn in range(3):
        orders = Watched(CHECKS[kind])
        assert threads() == ["clientlb-checks"]
        orders.set(server.endpoint())
        orders.wait_for_passes()
        orders.services.close()
        orders.services.close()
        assert [name for name in threads() if "lookup" not in name] == []
        if turn == 0:
            wait_until(lambda: threads() == [])
            before = descriptors()  # gRPC keeps some for the process
    wait_until(lambda: len(descriptors()) <= len(before), 30, "descriptors are closed")


def test_one_thread_checks_all_services(serve: Make, watched: Make) -> None:
    server = serve("http")
    orders = watched(CHECKS["http"])
    orders.discovery.set("users", [server.endpoint()])
    users = orders.services["users"]
    orders.set(server.endpoint())
    orders.wait_for_passes(2)
    wait_until(lambda: users.nodes[0].breaker.checkup is not None, 30, "the other service is checked, too")
    assert threads() == ["clientlb-checks"]


def test_while_a_check_hangs_close_waits_for_nothing(serve: Make, watched: Make) -> None:
    server = serve("http")
    server.tell("hang")
    orders = watched(HttpCheck(interval=60.0, timeout=60.0))
    orders.set(server.endpoint())
    wait_until(lambda: server.tell("seen")["count"] == 1, 30, "the check is under way")
    began = time.monotonic()
    orders.services.close()
    assert time.monotonic() - began < 5.0
    assert threads() == []


def test_a_hook_may_close_the_services(serve: Make) -> None:
    """It runs on the thread of the checks, which cannot wait for its own end."""
    server = serve("http")
    server.tell("status 500")
    discovery = ManualDiscovery()

    def hook(event: events.Event) -> None:
        if isinstance(event, events.Ejected):
            services.close()

    options = Options(health=HealthOptions(check=CHECKS["http"], suspend=False))
    services = Services(discovery, options=options, hooks=[hook])
    services["orders"]
    discovery.set("orders", [server.endpoint()])
    wait_until(lambda: threads() == [], 20, "the thread has ended")


def test_a_hook_that_fails_ends_no_check(serve: Make, watched: Make) -> None:
    server = serve("http")
    orders = watched(CHECKS["http"])
    orders.services.add_hook(lambda event: 1 / 0)
    orders.set(server.endpoint())
    orders.wait_for_passes()
    server.tell("status 500")
    orders.wait_for(events.Ejected)
    server.tell("status 200")
    orders.wait_for(events.Restored)


@pytest.mark.parametrize("kind", ["http", "grpc", "grpc-asked"])
def test_a_forked_child_checks_with_a_thread_of_its_own(serve: Make, kind: str) -> None:
    server = serve(kind.removesuffix("-asked"))
    turn_off, turn_on = ("status 503", "status 200") if kind == "http" else ("say NOT_SERVING", "say SERVING")
    script = f"""
        import os
        from tests.checking.conftest import threads
        from tests.checking.test_life import checked_services
        from tests.servers.process import wait_until

        services = checked_services({server.port}, {kind!r})
        wait_until(lambda: services["orders"].nodes and services["orders"].nodes[0].breaker.checkup, 20)
        print("parent", flush=True)
        if not os.fork():
            try:
                assert threads() == [], threads()
                healthy = lambda: services["orders"].stats().healthy
                assert healthy() == 1
                assert "clientlb-checks" in threads()
                print("child", flush=True)
                wait_until(lambda: healthy() == 0, 20, "the child hears of it")
                print("out", flush=True)
                wait_until(lambda: healthy() == 1, 20, "the child hears of it")
                services.close()
                assert "clientlb-checks" not in threads()
                print("back", flush=True)
            finally:
                os._exit(0)
        os.wait()
        wait_until(lambda: services["orders"].stats().healthy == 1, 20)
        services.close()
        print("over", threads(), flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "parent\n"
        assert process.stdout.readline() == "child\n"
        server.tell(turn_off)
        assert process.stdout.readline() == "out\n"
        server.tell(turn_on)
        assert process.stdout.readline() == "back\n"
        assert process.stdout.readline() == "over []\n"
    finally:
        process.kill()
        errors = process.communicate()[1]
    assert "Traceback" not in errors


def test_a_forked_child_keeps_no_connection_of_a_check_open(serve: Make) -> None:
    server = serve("http")
    server.tell("hang")
    script = f"""
        import os
        from clientlb import Endpoint, HealthOptions, HttpCheck, Options, Services
        from clientlb.testing import ManualDiscovery
        from tests.checking.conftest import descriptors

        before = len(descriptors())
        discovery = ManualDiscovery()
        services = Services(discovery, options=Options(health=HealthOptions(check=HttpCheck(timeout=60.0))))
        services["orders"]
        discovery.set("orders", [Endpoint("127.0.0.1", {server.port}, id=str(number)) for number in range(20)])
        input()
        connections = len(descriptors()) - before
        if not os.fork():
            print(connections, len(descriptors()) - before, flush=True)
            os._exit(0)
        os.wait()
        services.close()
        print(len(descriptors()) - before, flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: server.tell("seen")["count"] == 20, 20, "all checks are under way")
        parent, child, left = process.communicate("\n", timeout=30)[0].split()
    finally:
        process.kill()
    assert int(parent) == 23
    assert int(child) <= 2  # by which other threads wake the loop: a pair of sockets, idle for ever
    assert int(left) == 0


def test_a_process_that_just_exits_does_so_quietly(serve: Make) -> None:
    server = serve("http")
    script = f"""
        import time
        from tests.checking.test_life import checked_services

        services = checked_services({server.port}, "http")
        orders = services["orders"]
        orders.pick(wait=30).release()
        while not all(node.breaker.checkup and node.breaker.checkup.passes > 1 for node in orders.nodes):
            time.sleep(0.01)
    """
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = [line for line in done.stderr.splitlines() if not line.startswith("Executing <")]  # on a slow machine
    assert (done.returncode, done.stdout, said) == (0, "", [])
    assert server.tell("seen")["count"] > 1
