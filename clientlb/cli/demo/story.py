"""What happens in the demo, when, and what came of it. Each act does one thing to the fleet and measures the effect.

All figures are those of a user: the calls are counted by their caller, the rest is read from `Services.stats()`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import tempfile
import textwrap
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from clientlb import events
from clientlb.cli.demo.fleet import Fleet
from clientlb.cli.demo.screen import Row, Screen, View
from clientlb.cli.demo.traffic import Traffic
from clientlb.errors import ClientLBError, DiscoveryError
from clientlb.registration import open_registrar
from clientlb.services import Services
from clientlb.stats import EndpointStats
from clientlb.telemetry.logging import describe

WORK = 0.005
"""Seconds that a call takes a healthy server."""

SLOWDOWN = 20

_BETWEEN_LOOKS = 0.25
_PATIENCE = 10.0
_STATES = {"closed": "in use", "open": "ejected", "half-open": "probed"}


async def tell(*, registry: str | None, flavour: str, seconds: float, rate: float, screen: Screen) -> int:
    """Play the whole demo; returns the exit status.

    Args:
        registry: URL of the registry; None makes one in a temporary folder.
        flavour: `"httpx"` or `"httpx2"`.
        seconds: How long the traffic lasts.
        rate: Calls per second of each kind.
        screen: Where it is shown.
    """
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with tempfile.TemporaryDirectory(prefix="clientlb-demo-", ignore_cleanup_errors=True) as folder:
        names = {"web": "web", "ledger": "ledger"}
        if registry is None:
            registry = f"dir://{folder}"
        else:
            open_registrar(registry).close()  # before anything is started: can servers register there at all?
            mark = secrets.token_hex(2)  # somebody else may run the demo against the same registry
            names = {name: f"clientlb-demo-{name}-{mark}" for name in names}
        async with Fleet(registry, Path(folder)) as fleet:
            happened: deque[events.Event] = deque()
            with Services(registry, hooks=[happened.append]) as services:
                traffic = Traffic(services, flavour=flavour, web=names["web"], ledger=names["ledger"], rate=rate)
                story = _Story(fleet, services, traffic, screen, happened, names, seconds)
                with screen:
                    await story.play()
                summary = story.summary()
    screen.say(summary)
    print(json.dumps(story.figures()), flush=True)
    return 1 if traffic.http.failed + traffic.grpc.failed else 0


class _Story:
    def __init__(
        self,
        fleet: Fleet,
        services: Services,
        traffic: Traffic,
        screen: Screen,
        happened: deque[events.Event],
        names: dict[str, str],
        seconds: float,
    ) -> None:
        self._fleet = fleet
        self._services = services
        self._traffic = traffic
        self._screen = screen
        self._happened = happened
        self._web = names["web"]
        self._ledger = names["ledger"]
        self._shown_as = {service: name for name, service in names.items()}
        self._seconds = seconds
        self._began = time.monotonic()
        self._seen: set[tuple[str, str, int]] = set()
        self._rows: dict[tuple[str, str], Row] = {}
        self._looks: list[tuple[float, dict[str, int]]] = []
        self._outcomes: list[str] = []

    # ------------------------------------------------------------------ the play

    async def play(self) -> None:
        """Start the servers, make calls, let things happen."""
        self._screen.news("starting 4 HTTP servers and 2 gRPC servers")
        try:
            await self._registry_answers()
            await self._start_servers()
            await self._all_known(4, 2)
            await self._run()
        except ExceptionGroup as group:
            known, others = group.split((ClientLBError, BrokenPipeError))
            if known is None or others is not None:
                raise
            raise known.exceptions[0] from None

    async def _start_servers(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in (1, 2, 3, 4):
                group.create_task(self._fleet.start("http", f"web-{number}", self._web, WORK))
            for number in (1, 2):
                group.create_task(self._fleet.start("grpc", f"ledger-{number}", self._ledger, WORK))

    async def _run(self) -> None:
        self._began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            looks = group.create_task(self._keep_looking())
            calls = group.create_task(self._traffic.run())
            await self._acts()
            self._traffic.end()
            await calls
            looks.cancel()
        self._look()

    async def _acts(self) -> None:
        """Everything that happens, at fractions of the time. Each act lasts until the next one begins."""
        await self._until(0.20)
        await self._kill("web-2", until=0.36)
        await self._slow_down("web-3", until=0.54)
        await self._add("web-5", until=0.70)
        await self._ask_to_leave("web-4", until=0.84)
        await self._kill("ledger-1", until=1.0)

    async def _kill(self, name: str, until: float) -> None:
        retries, failed = self._retries, self._failed
        self._announce(f"kill -9 {name}")
        await self._fleet.servers[name].kill()
        await self._until(until)
        retries, failed = self._retries - retries, self._failed - failed
        self._note(f"{name} was killed (SIGKILL): {retries} calls were repeated elsewhere, {failed} failed.")

    async def _slow_down(self, name: str, until: float) -> None:
        server = self._fleet.servers[name]
        before = self._share(server.endpoint.address, self._looks[-1][0] - 0.1 * self._seconds)
        self._announce(f"{name} becomes {SLOWDOWN} times slower")
        await server.slow_down(SLOWDOWN * WORK)
        begin = time.monotonic()
        await self._until(until)
        after = self._share(server.endpoint.address, begin)
        self._note(
            f"{name} became {SLOWDOWN} times slower: its share of the calls went from {before:.0%} to {after:.1%}."
        )

    async def _add(self, name: str, until: float) -> None:
        self._announce(f"start {name}")
        server = await self._fleet.start("http", name, self._web, WORK)
        waited = await self._first_call(server.endpoint.address, server.started)
        await self._until(until)
        share = self._share(server.endpoint.address, server.started)
        self._note(
            f"{name} was started: it answered its first call {waited:.2f} s after it registered, and {share:.0%} of all"
            " calls since then."
        )

    async def _ask_to_leave(self, name: str, until: float) -> None:
        retries, failed = self._retries, self._failed
        self._announce(f"{name} is asked to leave (SIGTERM)")
        begin = time.monotonic()
        status = await self._fleet.servers[name].leave()
        took = time.monotonic() - begin
        await self._until(until)
        retries, failed = self._retries - retries, self._failed - failed
        self._note(
            f"{name} was asked to leave (SIGTERM): it finished its calls and ended with status {status} after"
            f" {took:.1f} s; {retries} calls were repeated, {failed} failed."
        )

    def _announce(self, text: str) -> None:
        self._act_began = time.monotonic() - self._began
        self._screen.news(f"{self._act_began:5.1f} s  >>> {text}")

    def _note(self, text: str) -> None:
        when = f"  {self._act_began:5.1f} s  "
        self._outcomes.append(textwrap.fill(when + text, 100, subsequent_indent=" " * len(when)))

    # ------------------------------------------------------------------ waiting

    async def _until(self, fraction: float) -> None:
        await asyncio.sleep(max(0.0, self._began + fraction * self._seconds - time.monotonic()))

    async def _registry_answers(self) -> None:
        """A registry that is not there should be said at once, not by six servers that do not start."""
        web = self._services[self._web]
        await _come_true(lambda: web.updated_at is not None or web.last_error is not None)
        if web.last_error is not None:
            raise web.last_error
        if web.updated_at is None:
            raise DiscoveryError(f"{web.source} gave no answer within {_PATIENCE:g} s")

    async def _all_known(self, web: int, ledger: int) -> None:
        balancers = self._services[self._web], self._services[self._ledger]
        if not await _come_true(lambda: [len(balancer.endpoints) for balancer in balancers] == [web, ledger]):
            raise DiscoveryError(
                "the servers are not all in the registry:\n" + "\n".join(b.explain() for b in balancers)
            )

    async def _first_call(self, address: str, since: float) -> float:
        await _come_true(lambda: self._calls().get(address, 0) > 0)
        return time.monotonic() - since

    # ------------------------------------------------------------------ looking

    async def _keep_looking(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(_BETWEEN_LOOKS)

    def _look(self) -> None:
        now = time.monotonic()
        stats = self._services.stats()
        names = self._fleet.names
        present: set[tuple[str, str]] = set()
        for service in stats.values():
            for endpoint in service.endpoints:
                key = service.service, endpoint.endpoint
                present.add(key)
                self._rows[key] = _row(self._shown_as[service.service], names.get(endpoint.endpoint, "?"), endpoint)
        for key in self._rows.keys() - present:
            self._rows[key] = self._rows[key].left()
        self._looks.append((now, {row.endpoint: row.calls for row in self._rows.values()}))
        self._read_events(names)
        self._screen.show(
            View(
                elapsed=min(now - self._began, self._seconds),
                seconds=self._seconds,
                calls=self._traffic.http.calls + self._traffic.grpc.calls,
                failed=self._failed,
                retries=self._retries,
                rows=sorted(self._rows.values(), key=lambda row: (row.service != "web", row.server)),
            )
        )

    def _read_events(self, names: dict[str, str]) -> None:
        while self._happened:
            event = self._happened.popleft()
            if isinstance(event, events.EndpointsChanged):
                self._seen.update(endpoint.key for endpoint in event.added)
            if isinstance(event, events.Retried):
                continue  # they are counted; a line for each would hide the rest
            text = describe(event)
            for address, name in (names | self._shown_as).items():
                text = text.replace(address, name)
            self._screen.news(f"{time.monotonic() - self._began:5.1f} s  {text}")

    def _calls(self) -> dict[str, int]:
        stats = self._services[self._web].stats()
        return {endpoint.endpoint: endpoint.calls for endpoint in stats.endpoints}

    def _share(self, address: str, since: float) -> float:
        """Part of the HTTP calls since then that an endpoint got."""
        self._look()
        then = next((calls for moment, calls in reversed(self._looks) if moment <= since), self._looks[0][1])
        now = self._looks[-1][1]
        web = [row.endpoint for row in self._rows.values() if row.service == "web"]
        total = sum(now[each] - then.get(each, 0) for each in web)
        return (now[address] - then.get(address, 0)) / max(total, 1)

    @property
    def _failed(self) -> int:
        return self._traffic.http.failed + self._traffic.grpc.failed

    @property
    def _retries(self) -> int:
        return sum(service.retries for service in self._services.stats().values())

    # ------------------------------------------------------------------ the end

    def summary(self) -> str:
        """What was done and what came of it, in words."""
        http, grpc = self._traffic.http, self._traffic.grpc
        lines = [
            f"\nIn {self._seconds:g} s {http.calls} HTTP and {grpc.calls} gRPC calls were made, with addresses from",
            f"{self._services[self._web].source}",
            *self._outcomes,
            f"Of {http.calls + grpc.calls} calls {self._failed or 'none'} failed; {self._retries} were repeated.",
        ]
        for error, count in (http.errors + grpc.errors).most_common(5):
            lines.append(f"  {count} x {error}")
        for kind, tally in (("HTTP", http), ("gRPC", grpc)):
            lines.append(f"  {kind}: median {tally.quantile_ms(0.5)} ms, p99 {tally.quantile_ms(0.99)} ms")
        return "\n".join(lines)

    def figures(self) -> dict[str, float | None]:
        """The line of JSON."""
        both = self._traffic.http + self._traffic.grpc
        return {
            "calls": both.calls,
            "failed": both.failed,
            "retries": self._retries,
            "p50_ms": both.quantile_ms(0.5),
            "p99_ms": both.quantile_ms(0.99),
            "endpoints_seen": len(self._seen),
        }


def _row(service: str, server: str, stats: EndpointStats) -> Row:
    return Row(
        service=service,
        server=server,
        endpoint=stats.endpoint,
        state=_STATES[stats.state],
        in_flight=stats.in_flight,
        calls=stats.calls,
        failures=stats.failures,
        median=stats.median,
        p99=stats.p99,
    )


async def _come_true(condition: Callable[[], bool]) -> bool:
    """Wait until the condition holds; False if it does not in time."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True
