"""Ctrl-C, as the kernel sends it, while a program waits for a server: nothing is left, and nobody is blamed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.http.conftest import ROOT, Process
from tests.servers.process import wait_until

PROGRAM = """
import asyncio, json, sys
import clientlb, clientlb.httpx, clientlb.httpx2

flavour, kind, address, target = sys.argv[1:]
module = {"httpx": clientlb.httpx, "httpx2": clientlb.httpx2}[flavour]
services = clientlb.Services("static://" + address)

def read(http):
    http.get("http://orders/")
    http.get("http://orders" + target)

async def read_async(http):
    await http.get("http://orders/")
    await http.get("http://orders" + target)

async def main():
    async with module.AsyncClient(services, timeout=60) as http:
        await read_async(http)

try:
    if kind == "async":
        asyncio.run(main())
    else:
        with module.Client(services, timeout=60) as http:
            try:
                read(http)
            except KeyboardInterrupt:
                caught = [each.in_flight for each in services["orders"].nodes]
                assert http.get("http://orders/").status_code == 200  # the client is as good as before
                assert caught == [0], caught
                raise
except KeyboardInterrupt:
    pass
else:
    raise SystemExit("nobody has interrupted")
stats = services["orders"].stats()
print(json.dumps({"in_flight": stats.in_flight, "failures": stats.endpoints[0].failures, "retries": stats.retries}))
"""


@pytest.mark.parametrize("target", ["/linger?seconds=60", "/stream?chunks=100000&pause=0.01"])
@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("flavour", ["httpx", "httpx2"])
def test_an_interrupt_leaves_nothing(
    flavour: str, kind: str, target: str, start: Callable[..., Process], tmp_path: Path
) -> None:
    server = start("a")
    command = [sys.executable, "-c", PROGRAM, flavour, kind, server.address, target]
    # a session of its own: the interrupt is for it alone
    program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        path = target.partition("?")[0]
        wait_until(lambda: server.figures()["calls"].get(path), what="the call has arrived")
        program.send_signal(signal.SIGINT)
        output, _ = program.communicate(timeout=30)
    finally:
        program.kill()
        program.wait()
    assert program.returncode == 0
    assert json.loads(output) == {"in_flight": 0, "failures": 0, "retries": 0}
    wait_until(lambda: server.figures()["open"] == 1, what="its connections are closed")
