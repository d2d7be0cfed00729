"""Real servers in other processes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clientlb import Endpoint

ROOT = Path(__file__).parents[2]
Serve = Callable[..., list[Endpoint]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts one server per number of seconds; returns their endpoints."""
    with contextlib.ExitStack() as running:

        def serve(kind: str, *seconds: float) -> list[Endpoint]:
            processes = []
            for each in seconds:
                command = [sys.executable, "-m", "tests.probing.server", kind, str(each)]
                process = subprocess.Popen(
                    command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
                )
                running.callback(process.communicate)  # closes its standard input and waits
                processes.append(process)
            ports = [int(process.stdout.readline()) for process in processes if process.stdout]
            return [Endpoint("127.0.0.1", port) for port in ports]

        yield serve
