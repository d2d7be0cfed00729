"""Steady calls through one shell, from several threads or tasks at once, and the book that is kept of them."""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from clientlb import Balancer, Services
from tests.e2e.fleet import Fleet, Server, names_of
from tests.e2e.shells import ASYNC, SYNC, speaks_grpc
from tests.servers.process import wait_until

WORKERS = 3


@dataclass(frozen=True)
class Call:
    started: float
    ended: float
    server: str
    """Who answered; empty if the call failed."""
    error: str = ""
    """The traceback with its notes, which say what was tried; empty after a success."""


class Traffic:
    """Calls, one after another, in each of `WORKERS` threads (or tasks of one event loop) until the block ends.

    Args:
        shell: One of `SHELLS`.
        services: Who knows the endpoints.
        fleet: Says which service to call.
        store: Make the calls that are not idempotent.
        rate: Calls per second, of all workers together; None is as many as they can make.
    """

    def __init__(
        self, shell: str, services: Services, fleet: Fleet, *, store: bool = False, rate: float | None = None
    ) -> None:
        self.shell = shell
        self.service = fleet.rpc if speaks_grpc(shell) else fleet.web
        self.calls: list[Call] = []
        self._services = services
        self._method = "store" if store else "load"
        self._interval = WORKERS / rate if rate else 0.0
        self._ending = threading.Event()
        self._broken = ""
        self._failed = 0
        self._thread = threading.Thread(target=self._run, name=f"traffic {shell}", daemon=True)

    # ------------------------------------------------------------------ making calls

    def _run(self) -> None:
        try:
            if self.shell in SYNC:
                self._run_threads()
            else:
                asyncio.run(self._run_tasks())
        except Exception:
            self._broken = traceback.format_exc()

    def _run_threads(self) -> None:
        with SYNC[self.shell](self._services, self.service) as calls:
            call = getattr(calls, self._method)

            def work() -> None:
                while not self._ending.is_set():
                    started = time.monotonic()
                    try:
                        self._note(started, call())
                    except Exception as error:
                        self._note(started, error)
                        self._ending.wait(0.02)
                    self._ending.wait(self._pause(started))

            threads = [threading.Thread(target=work, daemon=True) for _ in range(WORKERS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    async def _run_tasks(self) -> None:
        async with ASYNC[self.shell](self._services, self.service) as calls:
            call = getattr(calls, self._method)

            async def work() -> None:
                while not self._ending.is_set():
                    started = time.monotonic()
                    try:
                        self._note(started, await call())
                    except Exception as error:
                        self._note(started, error)
                        await asyncio.sleep(0.02)
                    await asyncio.sleep(self._pause(started))

            await asyncio.gather(*(work() for _ in range(WORKERS)))

    def _pause(self, started: float) -> float:
        """Until the next call of a worker whose last one began at `started`."""
        return max(0.0, started + self._interval - time.monotonic())

    def _note(self, started: float, result: str | Exception) -> None:
        ended = time.monotonic()
        if isinstance(result, str):
            self.calls.append(Call(started, ended, result))
        else:
            self.calls.append(Call(started, ended, "", "".join(traceback.format_exception(result))))
            self._failed += 1

    # ------------------------------------------------------------------ asking about them

    @property
    def balancer(self) -> Balancer:
        return self._services[self.service]

    def wait_served_by(self, *names: str, timeout: float = 30.0) -> None:
        """Wait until each of these servers has answered a call."""
        self._wait(
            lambda: set(names) <= {call.server for call in list(self.calls)}, timeout, f"all of {names} answered"
        )

    def wait_calls(self, count: int) -> None:
        """Wait until `count` calls have ended that began after now."""
        now, known = time.monotonic(), len(self.calls)
        self._wait(lambda: sum(call.started > now for call in self.calls[known:]) >= count, 30.0, f"{count} calls")

    def go_on(self, until: float) -> None:
        """Go on calling until the monotonic clock says `until`, or a call fails."""
        self._wait(lambda: time.monotonic() >= until, max(0.0, until - time.monotonic()) + 1.0, "the time is over")

    def wait_outage(self) -> None:
        """Wait until the balancer was told that its registry fails."""
        self._wait(lambda: self.balancer.failing_since is not None, 30.0, "the outage is noticed")

    def wait_confirmed(self, names: Iterable[str], timeout: float = 30.0) -> None:
        """Wait until each of these servers is in the list because the registry names it, and not in limbo."""
        self._wait(lambda: set(names) <= self.confirmed, timeout, f"the registry names {names}")

    def wait_only_confirmed(self, names: Iterable[str], timeout: float = 30.0) -> None:
        """Wait until these servers, and no others, are in the list because the registry names them."""
        self._wait(lambda: set(names) == self.confirmed, timeout, f"the registry names {names} and nobody else")

    def wait_gone(self, server: Server) -> None:
        """Wait until the server is in the list no more."""
        self._wait(lambda: not self.lists(server), 30.0, f"{server.name} is out of the list")

    def wait_endpoints(self, count: int) -> None:
        """Wait until the list of the service has `count` endpoints."""
        self._wait(lambda: len(self.balancer.endpoints) == count, 30.0, f"{count} endpoints")

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Wait until something else is true, while no call fails."""
        self._wait(condition, 30.0, what)

    def _wait(self, condition: Callable[[], object], timeout: float, what: str) -> None:
        try:
            wait_until(lambda: condition() or self._broken or self._failed, timeout, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.report()}") from None
        self._check()

    def first_served_by(self, name: str) -> float:
        """When the first call that this server answered ended."""
        return min(call.ended for call in list(self.calls) if call.server == name)

    @property
    def favourite(self) -> str:
        """Who answered most of the last calls; whoever kills it is sure to be noticed."""
        return Counter(call.server for call in self.calls[-30:]).most_common(1)[0][0]

    def lists(self, server: Server) -> bool:
        """Whether the server is in the list of endpoints."""
        return server.name in names_of(self.balancer.endpoints)

    @property
    def confirmed(self) -> set[str]:
        """Whom the registry named last, as far as the balancer has heard."""
        balancer = self.balancer
        return names_of(balancer.endpoints) - names_of(balancer.limbo)

    def check_no_failures(self) -> None:
        """There were calls, and none failed."""
        self._check()
        assert self.calls

    def _check(self) -> None:
        assert not self._broken, f"{self.shell}: the traffic itself broke:\n{self._broken}"
        assert not self._failed, f"{self._failed} of {len(self.calls)} calls failed\n{self.report()}"

    def check_nothing_in_flight(self) -> None:
        """When the traffic has ended, every call was given back."""
        self._wait(lambda: not self.balancer.stats().in_flight, 5.0, "nothing is in flight")
        assert all(not endpoint.in_flight for endpoint in self.balancer.stats().endpoints)

    def report(self) -> str:
        """What a reader of a failed test wants to know."""
        calls = list(self.calls)
        served = Counter(call.server or "nobody" for call in calls)
        first = next((call for call in calls if call.error), None)
        lines = [f"{self.shell}: {len(calls)} calls, answered by {dict(served)}"]
        if first is not None:
            lines.append(f"a call that took {first.ended - first.started:.3f} s failed:\n{first.error}")
        lines.append(self.balancer.explain())
        return "\n".join(lines)

    # ------------------------------------------------------------------ life

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(30.0)
        assert not self._thread.is_alive(), f"{self.shell}: a call does not end\n{self.report()}"
