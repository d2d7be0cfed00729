"""`clientlb demo` as a user runs it: real servers, real calls, real kills."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import termios
from pathlib import Path

import pytest

from tests.cli.running import COMMAND, run, started
from tests.servers.consul import ConsulServer
from tests.servers.process import wait_until
from tests.servers.zookeeper import ZooKeeperServer

SHORT = ("--seconds", "6", "--rate", "60")


def servers_of(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of the servers that the demo started."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or text not in lines[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], f"it ended before it said {text!r}: {lines}"
    return lines


def check(figures: dict[str, float]) -> None:
    assert list(figures) == ["calls", "failed", "retries", "p50_ms", "p99_ms", "endpoints_seen"]
    assert figures["failed"] == 0
    assert figures["calls"] > 100
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]
    assert figures["endpoints_seen"] == 7


def test_the_demo_costs_no_call_and_tells_what_happened() -> None:
    result = run("demo", *SHORT)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    *story, last = result.stdout.splitlines()
    check(json.loads(last))
    told = "\n".join(story)
    for act in (
        "kill -9 web-2",
        "web-3 becomes 20 times slower",
        "start web-5",
        "web-4 is asked to leave",
        "kill -9 ledger-1",
    ):
        assert f">>> {act}" in told
    assert "web: web-5 joined" in told  # and web-2 may be seen to leave at the same moment
    assert "ended with status 0" in told
    assert "calls none failed" in told
    assert told.count("failed: 0") == 3


def test_on_a_terminal_it_is_a_live_table() -> None:
    ours, terminal = pty.openpty()
    os.set_blocking(ours, False)
    termios.tcsetwinsize(terminal, (40, 120))
    # COLUMNS, which the runner of parallel tests sets, would overrule the size of the terminal
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment["TERM"] = "xterm"
    shown = b""
    with subprocess.Popen(
        [*COMMAND, "demo", *SHORT], stdout=terminal, stderr=terminal, stdin=subprocess.DEVNULL, env=environment
    ) as process:
        os.close(terminal)
        while select.select([ours], [], [], 30)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # EIO: nobody has the terminal open any more
                break
        assert process.wait(timeout=30) == 0
    os.close(ours)
    text = shown.decode()
    for heading in ("endpoint", "state", "in flight", "calls", "failures", "p50 ms", "p99 ms"):
        assert heading in text
    assert text.count("ledger-2") > 10, "the table is drawn again and again"
    check(json.loads(text.rstrip().splitlines()[-1]))


def test_against_a_real_consul(consul: ConsulServer) -> None:
    result = run("demo", "--json-only", "--registry", consul.url, *SHORT)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    check(json.loads(result.stdout))
    left = [entry["Service"] for entry in consul.request("GET", "/v1/agent/services").values()]
    assert [service for service in left if "demo" in service] == []


def test_against_a_real_zookeeper(zookeeper: ZooKeeperServer) -> None:
    result = run("demo", "--json-only", "--registry", zookeeper.url, *SHORT)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    check(json.loads(result.stdout))


def test_failed_calls_are_counted_and_end_in_status_1() -> None:
    with started("demo", *SHORT) as process:
        read_until(process, "calls, 0 failed")
        for pid in servers_of(process):
            os.kill(pid, signal.SIGKILL)
        output, errors = process.communicate(timeout=60)
    figures = json.loads(output.splitlines()[-1])
    assert (process.returncode, errors) == (1, "")
    assert figures["failed"] > 0
    assert f"{figures['failed']} failed" in output


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_takes_its_servers_down(number: signal.Signals, status: int) -> None:
    with started("demo") as process:
        read_until(process, "calls, 0 failed")
        pids = servers_of(process)
        assert len(pids) == 6
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (status, "")
    assert not [pid for pid in pids if alive(pid)]


def test_killed_it_leaves_no_server_behind(tmp_path: Path) -> None:
    with started("demo", TMPDIR=str(tmp_path)) as process:  # its folder it does leave behind
        read_until(process, "calls, 0 failed")
        pids = servers_of(process)
        assert len(pids) == 6
        process.kill()
        wait_until(lambda: not [pid for pid in pids if alive(pid)], 20, "all servers are gone")


def test_an_unreachable_registry_is_said_at_once() -> None:
    result = run("demo", "--json-only", "--registry", "consul://127.0.0.1:1")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("clientlb: ")
    assert "127.0.0.1:1" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_registry_that_takes_no_servers_is_one_line() -> None:
    result = run("demo", "--json-only", "--registry", "static://127.0.0.1:1")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("clientlb: unknown scheme 'static'")
    assert result.stderr.count("\n") == 1
