"""Programs of users, in processes of their own, that say on standard output what happens to them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0


@contextmanager
def running(*command: str, stdin: int | None = None, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program of ours; it has to end by itself, with status 0, before the block does."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            bufsize=0,  # what is read stays visible to `select` until it is taken
            stdin=subprocess.DEVNULL if stdin is None else stdin,
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
        if not line.startswith(b"{"):
            continue  # celery prints empty lines, whatever it is told
        fact = json.loads(line)
        said[fact.pop("who")] = fact
    return said
