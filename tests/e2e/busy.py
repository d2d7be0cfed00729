"""What the programs of `test_processes` do: call two services and an ordinary host, before, during and after forks."""

from __future__ import annotations

import itertools
import os
import threading
import traceback
from typing import Any

from tests.e2e.preforking import Caller, say

CALLS = 15
"""Calls of each kind for one answer."""

THREADS = 2


class Busy:
    """A `Caller` that was used, and threads that keep calling, if the process is one that others are forked from.

    `close` says on standard output what became of the calls of this process, if it is the one that made the object.
    """

    def __init__(self, registry: str, web: str, rpc: str, *, keep_calling: bool = True) -> None:
        self.caller = Caller(registry, web, rpc)
        self._services = (web, rpc)
        self._process = os.getpid()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._answering = 0
        self._calls = itertools.count()
        self._failures: list[str] = []
        self._called = threading.Semaphore(0)
        self._threads = [
            threading.Thread(target=self._keep_calling, daemon=True) for _ in range(THREADS * keep_calling)
        ]
        if keep_calling:
            self._call()
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            self._called.acquire()  # forks come from now on: calls are in flight

    def _call(self) -> dict[str, str]:
        served = self.caller.call()
        endpoint = self.caller.services[self._services[0]].endpoints[0]
        answer = self.caller.http.get(f"http://{endpoint.host}:{endpoint.port}/")
        assert answer.status_code == 200, answer
        return {**served, "host": answer.text}

    def _keep_calling(self) -> None:
        while not self._over.is_set():
            try:
                self._call()
            except BaseException:
                self._failures.append(traceback.format_exc())
            next(self._calls)
            self._called.release()

    def answer(self) -> dict[str, Any]:
        """Call many times; who this process is, who answered, and what is in flight then, if no other thread calls."""
        with self._lock:
            self._answering += 1
        served = [self._call() for _ in range(CALLS)]
        with self._lock:
            self._answering -= 1
            in_flight = None if self._answering else self.in_flight
        return {
            "process": os.getpid(),
            "web": sorted({each["web"] for each in served}),
            "rpc": sorted({each["rpc"] for each in served}),
            "in_flight": in_flight,
        }

    @property
    def in_flight(self) -> int:
        """Of this process. Exact only while nobody calls."""
        balancers = [self.caller.services[service] for service in self._services]
        return sum(node.in_flight for balancer in balancers for node in balancer.nodes)

    def close(self) -> None:
        if os.getpid() != self._process:
            return  # exit handlers are inherited, too
        self._over.set()
        for thread in self._threads:
            thread.join()
        say("parent", calls=next(self._calls), failures=self._failures, in_flight=self.in_flight)
        self.caller.close()
