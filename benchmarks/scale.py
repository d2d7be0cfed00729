"""What many endpoints and many services cost: time, memory, connections.

pick.ns_N                    pick and release among N endpoints
update.first_ms_N            the first list of N endpoints
update.one_of_N_ms           a list in which one of N endpoints is another one: time of `Balancer.update`
update.one_of_N_locked_ms    of which the balancer's lock was held, so that no pick could be made
memory.bytes_per_endpoint_N  of an endpoint that was never called: its description, its node, its counters
connections.of_1000_calls_N  connections that one HTTP client opened for 1000 calls, one after the other
services.kb_each_N           memory of a service with one endpoint, among N services
services.threads_N           threads that N services need (fixed lists; registries are in discovery.py)
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import common

import clientlb.httpx
from clientlb import Endpoint, Outcome, Services
from clientlb.balancer import Balancer

SIZES = (10, 100, 1000, 10_000)
SERVICES = (1, 10, 100, 1000)
CALLS = 1000


def endpoints(size: int) -> list[Endpoint]:
    return [Endpoint(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 8080) for n in range(size)]


def traced(make: Callable[[], object]) -> float:
    """Bytes that what is made needs."""
    gc.collect()
    tracemalloc.start()
    made = make()
    gc.collect()
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del made
    return used


def fresh(size: int) -> Balancer:
    balancer = Balancer("orders")
    balancer.update(endpoints(size))
    return balancer


def pick_and_release(size: int, count: int) -> Callable[[], float]:
    balancer = fresh(size)

    def measure() -> float:
        began = time.thread_time_ns()
        for _ in range(count):
            balancer.try_pick().release(Outcome.SUCCESS)  # type: ignore[union-attr]
        return (time.thread_time_ns() - began) / count

    return measure


class WatchedLock:
    """The balancer's lock, and for how long the last change held it."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._depth = 0
        self._since = 0.0
        self.held = 0.0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1
        if self._depth == 1:
            self._since = time.thread_time()

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self.held = max(self.held, time.thread_time() - self._since)
        self._lock.release()


def change_one(report: common.Report, size: int, rounds: int) -> None:
    """Replace one endpoint by another one, again and again."""
    known = endpoints(size)
    balancer = Balancer("orders")
    lock = balancer._roster.lock = WatchedLock(balancer._roster.lock)  # type: ignore[assignment]
    began = time.thread_time()
    balancer.update(known)
    report.add(f"update.first_ms_{size}", (time.thread_time() - began) * 1e3)
    took, held = [], []
    for turn in range(rounds):
        known[turn * 7919 % size] = Endpoint(f"10.200.{turn >> 8}.{turn & 255}", 8080)
        lock.held = 0.0
        began = time.thread_time()
        balancer.update(known)
        took.append((time.thread_time() - began) * 1e3)
        held.append(lock.held * 1e3)
    largest = size == max(SIZES)
    report.add(f"update.one_of_{size}_ms", statistics.median(took), target=5 if largest else None)
    report.add(f"update.one_of_{size}_locked_ms", statistics.median(held), target=1 if largest else None)


# ---------------------------------------------------------------------- connections


class _Answers(asyncio.Protocol):
    """An HTTP server that counts its connections."""

    opened = 0

    def connection_made(self, transport: Any) -> None:
        type(self).opened += 1
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


@contextmanager
def counting_server() -> Iterator[int]:
    """Serve on every loopback address, 127.0.0.0/8; gives the port."""
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(_Answers, "0.0.0.0", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield server.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def connections(size: int, port: int) -> int:
    addresses = ",".join(f"127.1.{n >> 8}.{n & 255}:{port}" for n in range(1, size + 1))
    before = _Answers.opened
    with Services(f"static://{addresses}") as services, clientlb.httpx.Client(services, trust_env=False) as client:
        for _ in range(CALLS):
            client.get("http://orders/").raise_for_status()
    return _Answers.opened - before


# ---------------------------------------------------------------------- services


def many_services(report: common.Report, number: int) -> None:
    kept: list[Services] = []
    before = threading.active_count()

    def make() -> None:
        services = Services("static://127.0.0.1:8080")
        kept.append(services)
        for n in range(number):
            services[f"service-{n}"].try_pick().release(Outcome.SUCCESS)  # type: ignore[union-attr]

    report.add(f"services.kb_each_{number}", traced(make) / 1024 / number)
    report.add(f"services.threads_{number}", threading.active_count() - before)
    kept[0].close()


def main() -> None:
    arguments = common.arguments(__doc__)
    rounds, count = (9, 5000) if arguments.quick else (31, 20_000)
    report = common.Report("scale", packages=("httpx",))
    picked = common.alternate({str(size): pick_and_release(size, count) for size in SIZES}, rounds)
    for size in SIZES:
        report.add(f"pick.ns_{size}", statistics.median(picked[str(size)]))
    for size in SIZES:
        change_one(report, size, rounds * 5)
    for size in SIZES:
        used = traced(lambda size=size: fresh(size)) - traced(lambda: fresh(1))  # type: ignore[misc]
        target = 1500 if size == max(SIZES) else None
        report.add(f"memory.bytes_per_endpoint_{size}", used / (size - 1), target=target)
    with counting_server() as port:
        for size in SIZES:
            if size <= CALLS:
                report.add(f"connections.of_{CALLS}_calls_{size}", connections(size, port), target=size)
    for number in SERVICES:
        many_services(report, number)
    report.print(arguments.json)


if __name__ == "__main__":
    main()
