"""A server in another process that is only registered, to be killed by a test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SCRIPT = """
import sys, threading
from clientlb.registration import register
with register(sys.argv[1], port=int(sys.argv[2]), to=sys.argv[3], host="127.0.0.1", ttl=float(sys.argv[4])) as mine:
    print(mine.wait(10), flush=True)
    sys.stdin.read()
"""


@contextmanager
def registered_process(service: str, port: int, url: str, ttl: float) -> Iterator[subprocess.Popen[str]]:
    """Run a process that is registered until its standard input ends, or it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, service, str(port), url, str(ttl)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "True"
        yield process
    finally:
        process.kill()
        process.communicate()
