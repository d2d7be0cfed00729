"""`clientlb register` around real programs: what is in the registry when, and how both end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from clientlb.cli import main
from clientlb.discovery.directory import DirectoryDiscovery
from clientlb.endpoint import Endpoint
from clientlb.testing import RecordingListener
from tests.cli.running import COMMAND, run
from tests.registration.programs import Callers, Program, ask, program
from tests.servers.process import free_ports, wait_until

SERVER = """
import os, signal, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(0.01)
        fit = self.path != "/health" or not os.path.exists("unfit")
        self.send_response(200 if fit else 503)
        self.end_headers()
        self.wfile.write(b"served")
    def log_message(self, *arguments): pass

def heard(number, frame):
    print("heard", signal.Signals(number).name, flush=True)
    if number in (signal.SIGTERM, signal.SIGINT) and "stubborn" not in sys.argv:
        sys.exit(7)

for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, heard)
print("mask", signal.pthread_sigmask(signal.SIG_BLOCK, ()), "group", os.getpgrp() == os.getpid(), flush=True)
if "orphan" in sys.argv and not os.fork():
    signal.pause()
class Server(ThreadingHTTPServer):
    request_queue_size = 128
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
PYTHON = [sys.executable, "-c"]


@contextmanager
def wrapped(
    folder: Path, *options: str, port: int | None = None, command: list[str] | None = None, says: tuple[str, ...] = ()
) -> Iterator[Program]:
    """`clientlb register` of a service `orders` in a registry below the folder, around `SERVER` or a command."""
    [port] = [port] if port else free_ports(1)
    registry = folder / "registry"
    arguments = ["register", "--service=orders", f"--port={port}", f"--to=dir://{registry}", *options, "--"]
    arguments += command or [*PYTHON, SERVER, str(port), *says]
    here = os.getcwd()
    os.chdir(folder)
    try:
        with program([*COMMAND, *arguments], registry) as running:
            yield running
    finally:
        os.chdir(here)


def only_endpoint(registry: Path) -> Endpoint:
    with closing(DirectoryDiscovery(registry, interval=0.02)) as discovery:
        listener = RecordingListener()
        discovery.resolver("orders").start(listener)
        wait_until(lambda: listener.endpoints)
        [endpoint] = listener.endpoints or ()
        return endpoint


def test_a_server_is_found_and_leaves_without_losing_a_call(tmp_path: Path) -> None:
    [port] = free_ports(1)
    options = ["--id=one", "--weight=2", "--zone=z", "--version=1.2", "--secure", "--metadata=team=shop=eu"]
    with wrapped(tmp_path, *options, "--host=127.0.0.1", "--propagation=0.5", port=port) as server:
        server.wait_announced()
        endpoint = only_endpoint(server.registry)
        assert endpoint.id == "one"
        assert (endpoint.host, endpoint.port, endpoint.weight, endpoint.zone) == ("127.0.0.1", port, 2.0, "z")
        assert (endpoint.version, endpoint.secure, endpoint.metadata) == ("1.2", True, {"team": "shop=eu"})
        server.send(signal.SIGHUP)
        server.wait_said("heard SIGHUP")
        callers = Callers(server, port)
        server.send()
        server.wait_withdrawn()
        assert "SIGTERM" not in server.output
        assert ask(port)[1] == "served"
        assert server.wait() == 7
        callers.check()
        assert "mask set() group True" in server.output
        assert "heard SIGTERM" in server.output
        assert f"clientlb: orders at 127.0.0.1:{port} left dir://" in server.output


def test_a_second_signal_is_passed_on_at_once(tmp_path: Path) -> None:
    with wrapped(tmp_path, "--propagation=600") as server:
        server.wait_announced()
        server.send(signal.SIGINT)
        server.wait_withdrawn()
        server.send(signal.SIGINT)
        assert server.wait() == 7
        assert "heard SIGINT" in server.output


def test_a_server_that_does_not_end_is_killed_with_its_children(tmp_path: Path) -> None:
    with wrapped(tmp_path, "--propagation=0", "--drain-timeout=0.3", says=("stubborn", "orphan")) as server:
        server.wait_announced()
        assert server.terminate() == 128 + signal.SIGKILL
        assert "heard SIGTERM" in server.output
        assert "has not ended after 0.3 s: killed" in server.output


def test_a_server_that_dies_is_taken_out_at_once(tmp_path: Path) -> None:
    with wrapped(tmp_path, "--ttl=600") as server:
        server.wait_announced()
        [child] = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
        assert server.wait() == 128 + signal.SIGKILL
        assert not server.entries


def test_it_is_announced_only_while_its_health_url_says_so(tmp_path: Path) -> None:
    (tmp_path / "unfit").touch()
    with wrapped(tmp_path, "--health-url=/health", "--ttl=0.6", "--propagation=0") as server:
        server.wait_said("mask")
        assert not server.entries
        (tmp_path / "unfit").unlink()
        server.wait_announced()
        (tmp_path / "unfit").touch()
        server.wait_withdrawn()
        wait_until(lambda: "is withdrawn from" in server.output)
        assert "503" in server.output
        (tmp_path / "unfit").unlink()
        server.wait_announced()
        assert server.terminate() == 7


def test_a_server_that_never_answers_is_stopped(tmp_path: Path) -> None:
    sleep = [*PYTHON, "import time; time.sleep(600)"]
    with wrapped(tmp_path, "--start-timeout=0.5", command=sleep) as server:
        assert server.wait() == 1
        assert "did not answer within 0.5 s" in server.output
        assert not server.entries


def test_a_signal_before_the_first_answer_is_passed_on_at_once(tmp_path: Path) -> None:
    code = "import time; print('up', flush=True); time.sleep(600)"
    with wrapped(tmp_path, "--propagation=600", command=[*PYTHON, code]) as server:
        server.wait_said("up")
        assert server.terminate() == 128 + signal.SIGTERM


IGNORING = """
import os, signal, sys
signal.signal(getattr(signal, sys.argv[1]), signal.SIG_IGN)
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_death_is_noticed_though_our_parent_ignores_the_death_of_children(tmp_path: Path) -> None:
    register = [*COMMAND, "register", "--service=o", "--port=1", f"--to=dir://{tmp_path}", "--", "sh", "-c", "exit 3"]
    with program([*PYTHON, IGNORING, "SIGCHLD", *register], tmp_path) as wrapper:
        assert wrapper.wait() == 3


def test_background_job_of_a_shell_does_not_hear_ctrl_c(tmp_path: Path) -> None:
    [port] = free_ports(1)
    registry = tmp_path / "registry"
    options = ["--service=orders", f"--port={port}", f"--to=dir://{registry}", "--propagation=0"]
    command = [*COMMAND, "register", *options, "--", *PYTHON, SERVER, str(port)]
    with program([*PYTHON, IGNORING, "SIGINT", *command], registry) as wrapper:
        wrapper.wait_announced()
        wrapper.send(signal.SIGINT)
        wrapper.send(signal.SIGUSR1)
        wrapper.wait_said("heard SIGUSR1")
        assert wrapper.terminate() == 7
        assert "heard SIGINT" not in wrapper.output


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        (["/does/not/exist"], 127, "clientlb: /does/not/exist: command not found\n"),
        (["/etc/passwd"], 126, "clientlb: /etc/passwd: Permission denied\n"),
        (["sh", "-c", "exit 3"], 3, "clientlb: sh ended with status 3 before port 1 answered\n"),
        (["sh", "-c", "kill -HUP $$"], 129, "clientlb: sh ended with status 129 before port 1 answered\n"),
        (
            ["sh", "-c", "echo $1 $2", "-", "a", "--", "b"],
            0,
            "clientlb: sh ended with status 0 before port 1 answered\n",
        ),
    ],
    ids=["not found", "not executable", "status", "signal", "arguments"],
)
def test_exit_status(tmp_path: Path, command: list[str], status: int, message: str) -> None:
    ended = run("register", "--service=orders", "--port=1", f"--to=dir://{tmp_path}", "--", *command)
    assert (ended.returncode, ended.stderr) == (status, message)
    assert ended.stdout == ("a --\n" if "echo" in " ".join(command) else "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port=0"], "'0' is not a port; give a number from 1 to 65535"),
        (["--port=http"], "'http' is not a port; give a number from 1 to 65535"),
        (["--health-port=65536"], "'65536' is not a port"),
        (["--ttl=0"], "'0' is no time; give a number of seconds above 0"),
        (["--start-timeout=soon"], "'soon' is no time; give a number of seconds above 0"),
        (["--drain-timeout=nan"], "'nan' is no time; give a number of seconds, 0 or more"),
        (["--metadata=x"], "'x' is not of the form KEY=VALUE"),
        (["--health-url=ftp://x"], "neither a path such as /health nor a URL"),
        (["--health-url=/x", "--health-port=80"], "not allowed with"),
        (["--propagation=-1"], "'-1' is no time; give a number of seconds, 0 or more"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["register", "--service=o", "--port=1", "--to=dir:///r", *arguments, "--", "true"])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "message"),
    [("--to=etcd://u:sesame@h", "unknown scheme 'etcd'"), ("--weight=0", "weight 0"), ("--host=a b", "host 'a b'")],
)
def test_what_cannot_be_registered_is_not_started(tmp_path: Path, argument: str, message: str) -> None:
    started = tmp_path / "started"
    ended = run("register", "--service=o", "--port=1", f"--to=dir://{tmp_path}", argument, "--", "touch", str(started))
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert message in ended.stderr
    assert "sesame" not in ended.stderr
    assert not started.exists()
