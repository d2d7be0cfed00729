"""Forks while hedged calls run: `python -m tests.http.hedging_fork FLAVOUR ADDRESS ADDRESS`; see `test_hedging`."""

from __future__ import annotations

import os
import sys
import threading
from importlib import import_module
from typing import Any

import clientlb
from clientlb.testing import ManualDiscovery

URL = "http://orders/sleep?at=a&seconds=0.5"


def hedge(http: Any, whose: str) -> None:
    """Two calls, of which one is hedged at least."""
    traces = [http.get(URL).extensions["clientlb"] for _ in range(2)]
    assert any(trace.hedges for trace in traces), traces
    print(whose, "hedged", flush=True)


def main(flavour: str, *addresses: str) -> None:
    retry = clientlb.RetryOptions(hedge=clientlb.HedgeOptions(delay=0.05))
    options = clientlb.Options(policy="round_robin", retry=retry)
    with clientlb.Services(ManualDiscovery({"orders": addresses}), options=options) as services:
        with import_module(f"clientlb.{flavour}").Client(services, timeout=10) as http:
            http.get(URL)
            running = threading.Thread(target=http.get, args=(URL,))
            running.start()
            child = os.fork()
            if child == 0:
                hedge(http, "child")
                http.close()
                assert not any(node.in_flight for node in services["orders"].nodes)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            running.join()
            hedge(http, "parent")
        assert not any(node.in_flight for node in services["orders"].nodes)


if __name__ == "__main__":
    main(*sys.argv[1:])
