"""What goes wrong in a fleet: incidents, planned on a world before it starts."""

from __future__ import annotations

from functools import partial

from clientlb.simulation.server import Condition, Server
from clientlb.simulation.world import World


def sinkhole(world: World, count: int) -> None:
    """Some servers answer at once, with errors."""
    for server in world.servers[:count]:
        world.at(world.setting.warm_up, partial(setattr, server, "condition", Condition.FAILING))


def black_hole(world: World, count: int) -> None:
    """Some servers accept everything and answer nothing."""
    for server in world.servers[:count]:
        world.at(world.setting.warm_up, server.fall_silent)


def one_slow(world: World) -> None:
    """One server takes two seconds from second 15 to 45."""
    for moment, least_work in ((15.0, 2.0), (45.0, 0.0)):
        world.at(moment, partial(setattr, world.servers[0], "least_work", least_work))


def slow_at_first(world: World, seconds: float, least_work: float) -> None:
    """Every call takes long for a moment at the start, as while connections are made and programs warm up."""
    for server in world.servers:
        server.least_work = least_work
        world.at(seconds, partial(setattr, server, "least_work", 0.0))


def fluctuating(world: World, every: float, fastest: float) -> None:
    """The speed of each server is drawn anew again and again."""
    rng = world.rng("fluctuation")

    def redraw() -> None:
        for server in world.servers:
            server.speed = rng.choice((1.0, fastest))
        world.at(world.loop.now + every, redraw)

    world.at(0.0, redraw)


def most_gone(world: World, count: int, seconds: float) -> None:
    """Some servers fall silent for a while, and discovery names them all the time."""
    begins = world.setting.warm_up
    for server in world.servers[:count]:
        world.at(begins, server.fall_silent)
        world.at(begins + seconds, partial(setattr, server, "condition", Condition.SERVING))


def _come_cold(world: World, server: Server) -> None:
    """Let a new server begin three times slower than it will be after ten seconds."""
    warm = server.speed
    server.speed = warm / 3.0
    world.at(world.loop.now + 10.0, partial(setattr, server, "speed", warm))


def rolling_restart(world: World, batch: int, every: float) -> None:
    """Kill and replace `batch` servers at a time. Discovery drops them after 1 s and has the new ones after 3.5 s."""

    def restart(leaving: list[Server]) -> None:
        for server in leaving:
            server.stop()
        now = world.loop.now
        world.at(now + 1.0, lambda: world.announce(server for server in world.listed if server not in leaving))
        world.at(now + 3.0, lambda: arrive(leaving))

    def arrive(left: list[Server]) -> None:
        fresh = [world.start_server(f"{server.endpoint.id}+", world.host_of(server)) for server in left]
        for server in fresh:
            _come_cold(world, server)
        world.at(world.loop.now + 0.5, lambda: world.announce([*world.listed, *fresh]))

    servers = list(world.servers)
    for turn, start in enumerate(range(0, len(servers), batch)):
        world.at(world.setting.warm_up + turn * every, partial(restart, servers[start : start + batch]))


def cold_servers(world: World, count: int) -> None:
    """Swap servers for new ones that are cold. Nothing breaks: those that leave finish what they have."""

    def swap() -> None:
        leaving = world.servers[:count]
        fresh = [world.start_server(f"{server.endpoint.id}+", world.host_of(server)) for server in leaving]
        for server in fresh:
            _come_cold(world, server)
        world.announce([*world.listed[count:], *fresh])

    world.at(world.setting.warm_up, swap)


def zone_failure(world: World, silent: bool) -> None:
    """A zone is gone. Discovery drops it after 10 s, and has it again when it is back after 20 s."""
    zone = [server for server in world.servers if server.endpoint.zone == "zone-0"]
    begins = world.setting.warm_up

    def recover() -> None:
        for server in zone:
            server.condition = Condition.SERVING
        world.announce(world.servers)

    for server in zone:
        world.at(begins, server.fall_silent if silent else server.stop)
    world.at(begins + 10.0, lambda: world.announce(server for server in world.servers if server not in zone))
    world.at(begins + 20.0, recover)


def stale_discovery(world: World, silent: bool) -> None:
    """Half of the servers move elsewhere, and discovery does not notice."""
    for server in world.servers[: world.setting.servers // 2]:
        world.at(world.setting.warm_up, server.fall_silent if silent else server.stop)


OUTAGE_AFTER = 5.0
"""Seconds into what is measured at which an outage of all servers begins."""


def stall(world: World, seconds: float) -> None:
    """All servers stand still for a while."""
    begins = world.setting.warm_up + OUTAGE_AFTER
    for server in world.servers:
        world.at(begins, partial(setattr, server, "capacity", 0.0))
        world.at(begins + seconds, partial(setattr, server, "capacity", world.setting.cores))


def fail_all(world: World, seconds: float) -> None:
    """All servers answer with errors for a while."""
    begins = world.setting.warm_up + OUTAGE_AFTER
    for server in world.servers:
        world.at(begins, partial(setattr, server, "condition", Condition.FAILING))
        world.at(begins + seconds, partial(setattr, server, "condition", Condition.SERVING))


def pause_clients(world: World, pauses: int, seconds: float, every: float) -> None:
    """The clients' own processes stand still, all at once and again and again."""

    def pause() -> None:
        for client in world.clients:
            client.stalled_until = world.loop.now + seconds

    for turn in range(pauses):
        world.at(world.setting.warm_up + 1.0 + turn * every, pause)


def hiccups(world: World, every: float, seconds: float) -> None:
    """Each server stands still now and then, as for the collection of garbage, at moments of its own."""
    rng = world.rng("hiccups")

    def stand_still(server: Server) -> None:
        server.capacity = 0.0
        world.at(world.loop.now + seconds, partial(go_on, server))

    def go_on(server: Server) -> None:
        server.capacity = world.setting.cores
        plan_next(server)

    def plan_next(server: Server) -> None:
        world.at(world.loop.now + rng.expovariate(1.0 / every), partial(stand_still, server))

    for server in world.servers:
        plan_next(server)
