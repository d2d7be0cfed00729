"""Makes calls of one kind: blocking, as futures, or as coroutines. Tests of what happens to calls go through all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import clientlb
import clientlb.grpc
import clientlb.grpc.aio
from tests.servers.process import wait_until

KINDS = ["call", "future", "aio"]


class Caller:
    """Makes calls of one kind and waits for their results."""

    def __init__(self, kind: str, services: clientlb.Services, stub_class: Any) -> None:
        self._kind = kind
        self._services = services
        self._stub_class = stub_class
        self._loop = asyncio.new_event_loop() if kind == "aio" else None
        self._channels: list[Any] = []
        self._stub: Any = None

    def connect(self, **options: Any) -> None:
        module = clientlb.grpc.aio if self._kind == "aio" else clientlb.grpc
        self._channels.append(module.channel("orders", self._services, **options))
        self._stub = self._stub_class(self._channels[-1])

    def close(self) -> None:
        for channel in self._channels:
            closing = channel.close()
            if self._loop is not None:
                self._loop.run_until_complete(closing)
        if self._loop is not None:
            self._loop.close()

    def get(self, request: Any, **arguments: Any) -> Any:
        return self._one("Get", request, arguments)

    def add(self, requests: Any, **arguments: Any) -> Any:
        return self._one("Add", requests, arguments)

    def list(self, request: Any, into: list[Any] | None = None, **arguments: Any) -> list[Any]:
        return self._many("List", request, into, arguments)

    def chat(self, requests: Any, into: list[Any] | None = None, **arguments: Any) -> list[Any]:
        return self._many("Chat", requests, into, arguments)

    def _one(self, name: str, request: Any, arguments: Any) -> Any:
        method = getattr(self._stub, name)
        if self._loop is not None:

            async def run() -> Any:
                return await method(request, **arguments)

            return self._loop.run_until_complete(run())
        return (
            method.future(request, **arguments).result(30) if self._kind == "future" else method(request, **arguments)
        )

    def _many(self, name: str, request: Any, into: list[Any] | None, arguments: Any) -> list[Any]:
        replies: list[Any] = [] if into is None else into
        method = getattr(self._stub, name)
        if self._loop is None:
            for reply in method(request, **arguments):
                replies.append(reply)  # noqa: PERF402, what came before an error counts
        else:

            async def run() -> None:
                async for reply in method(request, **arguments):
                    replies.append(reply)  # noqa: PERF401

            self._loop.run_until_complete(run())
        return replies


async def until(condition: Callable[[], object]) -> None:
    """Let other tasks go on until something is true."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        await asyncio.sleep(0.01)


def answered_by_all(call: Callable[[], int], ports: Collection[int]) -> None:
    """Call until everybody answers: as long as a server is not connected, its calls go to others."""
    wait_until(lambda: {call() for _ in range(4)} == set(ports), what="an answer of everybody")


async def answered_by_all_async(call: Callable[[], Awaitable[int]], ports: Collection[int]) -> None:
    """The same for coroutines."""
    for _ in range(500):
        if {await call() for _ in range(4)} == set(ports):
            return
    raise AssertionError("an answer of everybody did not come true")
