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
from collections.abc import Callable
from functools import partial
from pathlib import Path

from clientlb.cli.demo.fleet import Fleet
from clientlb.cli.demo.screen import Screen, View
from clientlb.cli.demo.traffic import Traffic
from clientlb.cli.demo.watching import Watching
from clientlb.errors import ClientLBError, DiscoveryError
from clientlb.options import Options
from clientlb.policy import LeastTime
from clientlb.registration import open_registrar
from clientlb.services import Services

WORK = 0.005
"""Seconds that a call takes an ordinary server."""

SLOWDOWN = 20

SLOW_START = 1.0
"""Seconds for which a new server is spared. By default it is ten, in which the demo would be nearly over."""

_BETWEEN_LOOKS = 0.25
_PATIENCE = 10.0


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
    web, ledger = "web", "ledger"
    with tempfile.TemporaryDirectory(prefix="clientlb-demo-", ignore_cleanup_errors=True) as folder:
        if registry is None:
            registry = f"dir://{folder}"
        else:
            open_registrar(registry).close()  # before anything is started: can servers register there at all?
            mark = secrets.token_hex(2)  # somebody else may run the demo against the same registry
            web, ledger = f"clientlb-demo-web-{mark}", f"clientlb-demo-ledger-{mark}"
        watching = Watching({web: "web", ledger: "ledger"})
        async with Fleet(registry, Path(folder)) as fleet:
            options = Options(policy=partial(LeastTime, slow_start=SLOW_START))
            with Services(registry, options=options, hooks=[watching.note]) as services:
                traffic = Traffic(services, flavour=flavour, web=web, ledger=ledger, rate=rate)
                story = _Story(fleet, services, traffic, watching, screen, (web, ledger), seconds)
                with screen:
                    await story.play()
                summary, figures = story.summary(), story.figures()
    screen.say(summary)
    print(json.dumps(figures), flush=True)
    return 1 if traffic.all.failed else 0


class _Story:
    def __init__(
        self,
        fleet: Fleet,
        services: Services,
        traffic: Traffic,
        watching: Watching,
        screen: Screen,
        names: tuple[str, str],
        seconds: float,
    ) -> None:
        self._fleet = fleet
        self._services = services
        self._traffic = traffic
        self._watching = watching
        self._screen = screen
        self._web, self._ledger = names
        self._seconds = seconds
        self._began = time.monotonic()
        self._act_began = 0.0
        self._outcomes: list[str] = []

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

    # ------------------------------------------------------------------ the acts

    async def _acts(self) -> None:
        """Everything that happens, at fractions of the time. Each act lasts until the next one begins."""
        await self._until(0.20)
        await self._kill("web-2", until=0.36)
        await self._slow_down("web-3", until=0.54)
        await self._add("web-5", until=0.70)
        await self._ask_to_leave("web-4", until=0.84)
        await self._kill("ledger-1", until=1.0)

    async def _kill(self, name: str, until: float) -> None:
        self._announce(f"kill -9 {name}")
        cost = self._cost()
        await self._fleet.servers[name].kill()
        await self._until(until)
        self._conclude(f"{name} was killed (SIGKILL). {cost()}")

    async def _slow_down(self, name: str, until: float) -> None:
        address = self._fleet.servers[name].endpoint.address
        self._look()
        before = self._watching.share(address, time.monotonic() - 0.1 * self._seconds)
        self._announce(f"{name} becomes {SLOWDOWN} times slower")
        await self._fleet.servers[name].slow_down(SLOWDOWN * WORK)
        begin = time.monotonic()
        await self._until(until)
        self._look()
        after = self._watching.share(address, begin)
        self._conclude(
            f"{name} became {SLOWDOWN} times slower: its share of the HTTP calls went from {before:.0%} to {after:.1%}."
        )

    async def _add(self, name: str, until: float) -> None:
        self._announce(f"start {name}")
        server = await self._fleet.start("http", name, self._web, WORK)
        answered = await _come_true(lambda: self._has_answered(server.endpoint.address))
        waited = time.monotonic() - server.started
        await self._until(until)
        self._look()
        share = self._watching.share(server.endpoint.address, server.started)
        effect = f"it answered calls {waited:.2f} s after it registered" if answered else "it got no call"
        self._conclude(
            f"{name} was started: {effect}, and took {share:.1%} of the HTTP calls"
            f" of its first {time.monotonic() - server.started:.0f} s: new servers get their share little by little."
        )

    async def _ask_to_leave(self, name: str, until: float) -> None:
        self._announce(f"{name} is asked to leave (SIGTERM)")
        cost = self._cost()
        begin = time.monotonic()
        status = await self._fleet.servers[name].leave()
        took = time.monotonic() - begin
        await self._until(until)
        self._conclude(
            f"{name} was asked to leave (SIGTERM) and ended with status {status} after {took:.1f} s. {cost()}"
        )

    def _cost(self) -> Callable[[], str]:
        """Says what the calls had to suffer since this was made."""
        retries, failed = self._retries, self._traffic.all.failed
        return lambda: (
            f"Calls repeated elsewhere: {self._retries - retries}, failed: {self._traffic.all.failed - failed}."
        )

    def _announce(self, text: str) -> None:
        self._act_began = time.monotonic() - self._began
        self._screen.news(f"{self._act_began:5.1f} s  >>> {text}")

    def _conclude(self, text: str) -> None:
        when = f"  {self._act_began:5.1f} s  "
        self._outcomes.append(textwrap.fill(when + text, 100, subsequent_indent=" " * len(when)))

    # ------------------------------------------------------------------ waiting and looking

    async def _until(self, fraction: float) -> None:
        await asyncio.sleep(max(0.0, self._began + fraction * self._seconds - time.monotonic()))

    async def _registry_answers(self) -> None:
        """A registry that is not there should be said at once, not by six servers that do not start."""
        balancer = self._services[self._web]
        await _come_true(lambda: balancer.updated_at is not None or balancer.last_error is not None)
        if balancer.last_error is not None:
            raise balancer.last_error
        if balancer.updated_at is None:
            raise DiscoveryError(f"{balancer.source} gave no answer within {_PATIENCE:g} s")

    async def _all_known(self, web: int, ledger: int) -> None:
        balancers = self._services[self._web], self._services[self._ledger]
        if not await _come_true(lambda: [len(balancer.endpoints) for balancer in balancers] == [web, ledger]):
            found = [len(balancer.endpoints) for balancer in balancers]
            raise DiscoveryError(
                f"within {_PATIENCE:g} s {found[0]} of {web} HTTP servers and {found[1]} of {ledger} gRPC servers"
                f" appeared in {balancers[0].source}"
            )

    async def _keep_looking(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(_BETWEEN_LOOKS)

    def _look(self) -> None:
        names = self._fleet.names
        self._watching.look(self._services, names)
        elapsed = min(time.monotonic() - self._began, self._seconds)
        for line in self._watching.news(names):
            self._screen.news(f"{elapsed:5.1f} s  {line}")
        tally = self._traffic.all
        self._screen.show(View(elapsed, self._seconds, tally.calls, tally.failed, self._retries, self._watching.rows()))

    def _has_answered(self, address: str) -> bool:
        self._look()
        return self._watching.calls(address) > 0

    @property
    def _retries(self) -> int:
        return sum(service.retries for service in self._services.stats().values())

    # ------------------------------------------------------------------ the end

    def summary(self) -> str:
        """What was done and what came of it, in words."""
        tally = self._traffic.all
        kinds = {"HTTP": self._traffic.http, "gRPC": self._traffic.grpc}
        lines = [
            "",
            f"In {self._seconds:g} s, with addresses from {self._services[self._web].source}:",
            *self._outcomes,
        ]
        for name, kind in kinds.items():
            lines.append(
                f"{kind.calls} {name} calls: median {kind.quantile_ms(0.5)} ms, p99 {kind.quantile_ms(0.99)} ms."
            )
        lines.append(f"Of all {tally.calls} calls {tally.failed or 'none'} failed. {self._retries} were repeated.")
        lines += [f"  {count} x {error}" for error, count in tally.errors.most_common(5)]
        return "\n".join(lines)

    def figures(self) -> dict[str, float | None]:
        """The line of JSON."""
        tally = self._traffic.all
        return {
            "calls": tally.calls,
            "failed": tally.failed,
            "retries": self._retries,
            "p50_ms": tally.quantile_ms(0.5),
            "p99_ms": tally.quantile_ms(0.99),
            "endpoints_seen": len(self._watching.endpoints_seen),
        }


async def _come_true(condition: Callable[[], object]) -> bool:
    """Wait until the condition holds; False if it does not in time."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True
