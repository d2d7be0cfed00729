"""Programs of users, each in a process of its own, that a test tells to leave and asks for what they did meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email.message import Message
from pathlib import Path

from tests.servers.process import wait_until

_ROOT = Path(__file__).parents[2]
PATIENCE = 30.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Program:
    """A running program, and the `dir` registry in which it shows."""

    def __init__(self, command: Sequence[str], registry: Path, **variables: str) -> None:
        self.registry = registry
        self.log = tempfile.NamedTemporaryFile("w")  # noqa: SIM115  # closed by `program`
        environment = {**os.environ, "PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": "1", **variables}
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, text=True, env=environment
        )

    @property
    def output(self) -> str:
        return Path(self.log.name).read_text()

    @property
    def entries(self) -> list[str]:
        """The files of the instances of `orders`."""
        folder = self.registry / "orders"
        return [name for name in os.listdir(folder) if not name.startswith(".")] if folder.exists() else []

    def wait_announced(self) -> None:
        wait_until(lambda: self.entries or self.process.poll() is not None, PATIENCE, "the program is announced")
        assert self.entries, f"it has ended with {self.process.poll()}:\n{self.output}"

    def wait_withdrawn(self) -> None:
        wait_until(lambda: not self.entries, PATIENCE, "the program is out of the registry")

    def wait_said(self, text: str) -> None:
        wait_until(lambda: text in self.output, PATIENCE, f"{text!r} in {self.output!r}")

    def send(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit status."""
        return self.process.wait(PATIENCE)

    def terminate(self) -> int:
        self.send()
        return self.wait()


@contextmanager
def program(command: Sequence[str], registry: Path, **variables: str) -> Iterator[Program]:
    """Run a command; what is left of it is killed in the end."""
    running = Program(command, registry, **variables)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait()
        running.log.close()


@contextmanager
def python(code: str, registry: Path, *arguments: object, **variables: str) -> Iterator[Program]:
    """Run a Python program; its first argument is the URL of the registry."""
    command = [sys.executable, "-c", code, f"dir://{registry}", *map(str, arguments)]
    with program(command, registry, **variables) as running:
        yield running


def ask(port: int, path: str = "/") -> tuple[int, str, dict[str, str]]:
    """The status, the text and the headers of an HTTP answer."""
    try:
        with _OPENER.open(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode(), _lower(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), _lower(error.headers)


def _lower(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


class Callers:
    """Threads that ask a port, over a fresh connection each time, for as long as the program is in the registry.

    They hear of it late, by `delay` seconds, as clients do; nevertheless no call of theirs may fail.
    """

    def __init__(self, running: Program, port: int, *, count: int = 4, delay: float = 0.2, path: str = "/") -> None:
        self.answered = 0
        self.failures: list[str] = []
        self._program, self._port, self._path = running, port, path
        self._delay = delay
        self._gone = threading.Event()
        self._threads = [threading.Thread(target=self._call, daemon=True) for _ in range(count)]
        self._threads.append(threading.Thread(target=self._watch, daemon=True))
        for thread in self._threads:
            thread.start()

    def _watch(self) -> None:
        wait_until(lambda: not self._program.entries, PATIENCE)
        time.sleep(self._delay)
        self._gone.set()

    def _call(self) -> None:
        while not self._gone.is_set():
            try:
                status, text, _ = ask(self._port, self._path)
                assert status == 200, text
                self.answered += 1
            except Exception as error:
                self.failures.append(repr(error))
                return

    def check(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not self.failures, f"{self.failures} after {self.answered} calls\n{self._program.output}"
        assert self.answered
