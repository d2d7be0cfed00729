"""A forked child has connections of its own, to services and to ordinary hosts, and leaves open responses alone."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("flavour", ["httpx", "httpx2"])
def test_what_was_open_stays_the_parents(flavour: str, kind: str) -> None:
    program = [sys.executable, "-m", "tests.http.forking", flavour, kind]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
