"""A program that watches a service, forks, and goes on watching in both processes. Run by the tests as a subprocess."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from clientlb.discovery import open_discovery
from clientlb.testing import RecordingListener


def run_forking(url: str, service: str) -> subprocess.Popen[str]:
    """Start it. It prints `child PORT`, then `parent`, and then `parent PORT` for the first list with two ports."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.discovery.forking", url, service],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def main(url: str, service: str) -> None:
    discovery = open_discovery(url)
    resolver, seen = discovery.resolver(service), RecordingListener()
    resolver.start(seen)
    seen.wait_for(lambda it: it.endpoints)
    child = os.fork()
    if not child:
        status = 1
        try:
            other, seen = discovery.resolver(service), RecordingListener()
            other.start(seen)
            seen.wait_for(lambda it: it.endpoints)
            print("child", *(endpoint.port for endpoint in seen.endpoints or ()), flush=True)
            for each in (resolver, other, discovery):
                each.close()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    print("parent", status, flush=True)
    seen.wait_for(lambda it: len(it.endpoints or ()) == 2)
    print("parent", *sorted(endpoint.port for endpoint in seen.endpoints or ()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
