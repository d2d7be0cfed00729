"""The calls of the demo, and what their caller sees of them. It knows nothing of servers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from importlib import import_module

from clientlb.cli.demo.server import METHOD
from clientlb.services import Services

_TIMEOUT = 5.0
_MOST_UNDER_WAY = 200


class Tally:
    """What the caller sees: how many calls, how long they took, which failed and why."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.errors: Counter[str] = Counter()

    @property
    def calls(self) -> int:
        """Calls that ended, well or not."""
        return len(self.seconds) + self.failed

    @property
    def failed(self) -> int:
        """Calls that ended in an error."""
        return self.errors.total()

    def __add__(self, other: Tally) -> Tally:
        both = Tally()
        both.seconds = self.seconds + other.seconds
        both.errors = self.errors + other.errors
        return both

    def quantile_ms(self, fraction: float) -> float | None:
        """Time in milliseconds within which this fraction of the successful calls was answered."""
        if not self.seconds:
            return None
        ordered = sorted(self.seconds)
        return round(ordered[min(int(fraction * len(ordered)), len(ordered) - 1)] * 1000, 2)


class Traffic:
    """A steady stream of HTTP calls to one service and of gRPC calls to another.

    Args:
        services: Who knows the endpoints.
        flavour: `"httpx"` or `"httpx2"`.
        web: Name of the HTTP service.
        ledger: Name of the gRPC service.
        rate: Calls per second of each kind.
    """

    def __init__(self, services: Services, *, flavour: str, web: str, ledger: str, rate: float) -> None:
        self.http: Tally = Tally()
        self.grpc: Tally = Tally()
        self._services = services
        self._shell = import_module(f"clientlb.{flavour}")
        self._web = web
        self._ledger = ledger
        self._rate = rate
        self._ending = asyncio.Event()

    @property
    def all(self) -> Tally:
        """Both kinds together."""
        return self.http + self.grpc

    def end(self) -> None:
        """Begin no more calls; `run` returns when those under way have ended."""
        self._ending.set()

    async def run(self) -> None:
        """Make calls until `end`."""
        import clientlb.grpc.aio

        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(self._shell.AsyncClient(self._services, timeout=_TIMEOUT))
            channel = clientlb.grpc.aio.channel(self._ledger, self._services, idempotent=True)
            await stack.enter_async_context(channel)
            post = channel.unary_unary(METHOD)

            async def call_web() -> None:
                response = await client.get(f"http://{self._web}/items/7")
                response.raise_for_status()

            async def call_ledger() -> None:
                await post(b"42", timeout=_TIMEOUT)

            async with asyncio.TaskGroup() as group:
                group.create_task(self._steadily(call_web, self.http))
                group.create_task(self._steadily(call_ledger, self.grpc))

    async def _steadily(self, call: Callable[[], Awaitable[None]], tally: Tally) -> None:
        """Begin a call every 1/rate seconds, however long the calls take, as independent users would."""
        under_way = asyncio.Semaphore(_MOST_UNDER_WAY)

        async def timed() -> None:
            started = time.perf_counter()
            try:
                await call()
            except Exception as error:
                tally.errors[f"{type(error).__name__}: {error}"] += 1
            else:
                tally.seconds.append(time.perf_counter() - started)
            finally:
                under_way.release()

        async with asyncio.TaskGroup() as group:
            due = time.monotonic()
            while not self._ending.is_set():
                await under_way.acquire()
                group.create_task(timed())
                due = max(due + 1 / self._rate, time.monotonic() - 0.1)  # after a hiccup: catch up, but not for long
                await asyncio.sleep(max(0.0, due - time.monotonic()))
