"""A fleet brought to life: clients, servers, their neighbours, the stream of calls, and what goes wrong.

Arrivals, work, neighbours and every client draw from generators of their own. So two policies with one seed meet the
same calls at the same moments on the same hosts, and the difference between them is theirs.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable
from typing import TypeAlias

from clientlb.endpoint import Endpoint
from clientlb.node import Node
from clientlb.options import Options
from clientlb.policy import Policy
from clientlb.simulation.client import Client
from clientlb.simulation.loop import Loop
from clientlb.simulation.record import Record, Result
from clientlb.simulation.server import Condition, Server
from clientlb.simulation.setting import Setting, share_left

_SAMPLE_EVERY = 0.1
_DRIFT_EVERY = 1.0


class Seat:
    """The place of one client in the world: what a policy that asks servers about their load has at hand.

    Attributes:
        loop: The clock, and the way to do something later.
        setting: What the world is made of.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.loop: Loop = world.loop
        self.setting: Setting = world.setting

    def server(self, node: Node) -> Server:
        """The server behind a node. An oracle looks at it; an honest policy asks it through `probe`."""
        return self._world.by_id[node.endpoint.id]

    def probe(self, node: Node, answer: Callable[[Server], object]) -> None:
        """Ask a server about its load. `answer(server)` follows one round trip later, unless it is dead or mute."""
        self._world.probes += 1

        def ask(server: Server) -> None:
            if server.condition in (Condition.SERVING, Condition.FAILING):
                answer(server)

        self.loop.after(self.setting.round_trip, ask, self.server(node))


Seated: TypeAlias = Callable[[Seat], Policy]
"""Makes the policy of one client from its place in the world."""


class World:
    """One fleet in virtual time.

    Args:
        setting: What it is made of.
        seed: Everything follows from it.
        options: Of every balancer (default: the library's).
        seated: Makes the policy of each client, in place of `options.policy`.

    Attributes:
        setting: What it is made of.
        loop: The clock, and what is to happen.
        clients: The clients.
        servers: Every server that there ever was, in order of appearance.
        listed: The servers that discovery names now.
        by_id: The servers by the id of their endpoint.
        probes: How often a policy asked a server about its load.
    """

    def __init__(
        self, setting: Setting, *, seed: int = 1, options: Options | None = None, seated: Seated | None = None
    ) -> None:
        self.setting: Setting = setting
        self.loop: Loop = Loop()
        self.servers: list[Server] = []
        self.by_id: dict[str, Server] = {}
        self.listed: tuple[Server, ...] = ()
        self.probes: int = 0
        self._seed = seed
        self._record = Record(setting.ends)
        self._arrivals = self.rng("arrivals")
        self._rate = setting.rate
        self._work = self.rng("work")
        self._neighbours = self.rng("neighbours")
        self._hosts = [(number + 0.5) / setting.servers for number in range(setting.servers)]
        self._neighbours.shuffle(self._hosts)
        self._host_of: dict[Server, int] = {}
        for number in range(setting.servers):
            self.start_server(f"s{number}", number)
        self.clients: tuple[Client, ...] = tuple(
            self._client(number, options or Options(), seated) for number in range(setting.clients)
        )
        self.announce(self.servers)
        if setting.incidents is not None:
            setting.incidents(self)

    def rng(self, purpose: str) -> random.Random:
        """A generator of its own for each purpose, so that none disturbs another."""
        return random.Random(f"{self._seed}/{purpose}")

    def _client(self, number: int, options: Options, seated: Seated | None) -> Client:
        if seated is not None:
            seat = Seat(self)
            options = dataclasses.replace(options, policy=lambda: seated(seat))
        if self.setting.throttle is not None:
            options = dataclasses.replace(options, throttle=self.setting.throttle)
        rng = self.rng(f"client {number}")
        return Client(self.loop, self.setting, options, self.by_id, self._record, rng)

    # ------------------------------------------------------------------ what incidents are made of

    def start_server(self, name: str, host: int) -> Server:
        """Start a server on a host (0 to `Setting.servers` - 1). Nobody calls it before it is announced."""
        setting = self.setting
        number = len(self.servers)
        slow = host < setting.slow_share * setting.servers
        server = Server(
            self.loop,
            Endpoint(f"host-{host}", number + 1, id=name, zone=f"zone-{host % setting.zones}"),
            self._capacity(host),
            speed=1.0 / setting.slow_factor if slow else 1.0,
            hobble=setting.hobble,
            cancels=setting.cancels,
            limit=setting.limit,
        )
        self.servers.append(server)
        self.by_id[name] = server
        self._host_of[server] = host
        self._record.numbers[server] = number
        return server

    def host_of(self, server: Server) -> int:
        """The host of a server."""
        return self._host_of[server]

    def announce(self, servers: Iterable[Server]) -> None:
        """Discovery names exactly these servers from now on; every client hears it at once."""
        self.listed = tuple(servers)
        endpoints = [server.endpoint for server in self.listed]
        for client in self.clients:
            client.balancer.update(endpoints)

    def at(self, moment: float, happens: Callable[[], object]) -> None:
        """Let something happen at a moment."""
        self.loop.at(moment, lambda _: happens())

    # ------------------------------------------------------------------ running

    def run(self) -> None:
        """Run to the end of what is measured, and on until every call of that time has ended."""
        self._arrive()
        self._sample()
        if self.setting.antagonists is not None:
            self.loop.after(_DRIFT_EVERY, self._drift)
        self.loop.run(self.setting.ends)
        while self._record.waited_for:
            self.loop.run(self.loop.now + _SAMPLE_EVERY)

    def result(self, policy: str) -> Result:
        """The figures of the run."""
        return Result(self.setting, policy, self._seed, self._record, self.servers, self.probes)

    def _arrive(self, client: Client | None = None) -> None:
        """Let a client make a call, and plan the next arrival of the stream."""
        arrivals = self._arrivals
        clients = self.clients
        following = clients[int(arrivals.random() * len(clients))]
        self.loop.after(arrivals.expovariate(self._rate), self._arrive, following)
        if client is not None:
            client.begin(self.setting.work.draw(self._work))

    def _drift(self, _: object = None) -> None:
        """Let every host's neighbours change a little. The walk is reflected at both ends."""
        step = self._neighbours.gauss
        for host, u in enumerate(self._hosts):
            moved = abs(u + step(0.0, self.setting.drift))
            self._hosts[host] = 2.0 - moved if moved > 1.0 else moved
        for server, host in self._host_of.items():
            server.capacity = self._capacity(host)
        self.loop.after(_DRIFT_EVERY, self._drift)

    def _capacity(self, host: int) -> float:
        setting = self.setting
        return setting.cores * (
            1.0 if setting.antagonists is None else share_left(setting.antagonists, self._hosts[host])
        )

    def _sample(self, _: object = None) -> None:
        self._record.sample(self.loop.now, tuple(server.in_flight for server in self.listed))
        self.loop.after(_SAMPLE_EVERY, self._sample)


def simulate(
    setting: Setting,
    *,
    seed: int = 1,
    options: Options | None = None,
    seated: Seated | None = None,
    name: str = "",
) -> Result:
    """Run one fleet once, and give the figures.

    Args:
        setting: The fleet.
        seed: The same seed gives the same run, to the last bit.
        options: Of every balancer (default: the library's).
        seated: Makes the policy of each client from its place in the fleet, in place of `options.policy`. For policies
            that ask servers about their load.
        name: What the result is called (default: the policy that the options name).
    """
    options = options or Options()
    world = World(setting, seed=seed, options=options, seated=seated)
    world.run()
    return world.result(name or str(options.policy))
