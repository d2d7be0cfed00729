"""One server process of a test: its folder, its log, its life. What it runs is said in zookeeper.py and consul.py."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

SERVERS = Path(__file__).parents[2] / ".tools" / "servers"

# However the test run ends, SIGKILL included, no server outlives it (PR_SET_PDEATHSIG, which survives exec). Not as a
# preexec_fn: that makes subprocess fork with our threads, and gRPC's crash one such child in four.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
if hasattr(libc := ctypes.CDLL(None), "prctl"):
    libc.prctl(1, signal.SIGKILL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


_FIRST_PORT, _PORTS, _WORKERS = 16_000, 2_000, 8


def _port_numbers() -> Iterator[int]:
    """Below those that the kernel gives to who names none, in a range of this worker of pytest's, in turn."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    start = random.randrange(_PORTS)
    return (_FIRST_PORT + worker * _PORTS + (start + count) % _PORTS for count in itertools.count())


_numbers = _port_numbers()


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody uses, all different.

    Nor does anybody get one by chance before a server starts on it, or while it is down: the kernel gives out others.
    """
    found: list[int] = []
    for port in _numbers:
        with contextlib.suppress(OSError), socket.socket() as each:
            each.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            break
    return found


def fetched(path: str) -> Path:
    """A file that fetch.sh has put into the cache."""
    found = SERVERS / path
    if not found.exists():
        raise FileNotFoundError(f"the tests need real servers and {found} is missing: run `make servers` once")
    return found


def wait_until(condition: Callable[[], object], timeout: float = 30.0, what: str = "the condition") -> None:
    """Poll until `condition()` is true; fail with `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout} s"
        time.sleep(0.02)


class ServerProcess:
    """A server on fixed loopback ports. It may be killed, stopped (SIGSTOP), wiped and started again."""

    ready_timeout = 30.0

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix=f"clientlb-{name}-"))
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> Sequence[str]:
        """Write the configuration; return the command line."""
        raise AssertionError("a subclass says what it runs")

    def answers(self) -> bool:
        """Whether the server serves requests now. May raise OSError, which means no."""
        raise AssertionError("a subclass says how to ask")

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Start the process and return before it is ready."""
        assert not self.running
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-c", _DIE_WITH_PARENT, *self.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=True,  # a Ctrl-C at the terminal is for pytest, which then stops us
            )

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.running, f"{self.name} ended at once:\n{self.log_tail()}"
            try:
                return self.answers()
            except (OSError, ValueError):
                return False

        try:
            wait_until(ready, self.ready_timeout, f"{self.name} is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log_tail()}") from None

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()

    def signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def wipe(self) -> None:
        """Lose all data. Only for a server that is not running."""
        assert not self.running
        shutil.rmtree(self.data, ignore_errors=True)

    def stop(self) -> None:
        """End the process and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log_tail(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-3000:]


Server = TypeVar("Server", bound=ServerProcess)


def start_together(servers: Sequence[ServerProcess]) -> None:
    """Start servers, and wait until all are ready: they may need each other for that."""
    for server in servers:
        server.launch()
    for server in servers:
        server.wait_ready()


@contextlib.contextmanager
def running_together(servers: list[Server]) -> Iterator[list[Server]]:
    """Start servers, and stop them in the end."""
    try:
        start_together(servers)
        yield servers
    finally:
        for server in servers:
            server.stop()


def open_descriptors(*kinds: str) -> list[str]:
    """What this process has open of some kinds, such as "socket"; without the descriptor of the listing itself."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            continue
    return sorted(each for each in found if each.startswith(kinds))
