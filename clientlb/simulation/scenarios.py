"""The scenarios: fleets that were published, and fleets in which something goes wrong.

A scenario has one point or several, such as the steps of a ramp. Each is a `Setting`, so a scenario of your own is a
few lines. Where a scenario is somebody's published experiment, its summary says whose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import inf

from clientlb.options import ThrottleOptions
from clientlb.retry_options import HedgeOptions
from clientlb.simulation import incidents
from clientlb.simulation.record import Result
from clientlb.simulation.setting import HARSH, MID, MILD, ClippedNormal, Exponential, Setting, Steady


def _no_figures(result: Result) -> dict[str, float]:
    return {}


@dataclass(frozen=True, slots=True)
class Scenario:
    """An experiment with a name.

    Args:
        name: For the command line.
        summary: What happens, in a line.
        points: The fleets to run, by what tells them apart.
        figures: What this scenario is about, beyond what every result has.
    """

    name: str
    summary: str
    points: Mapping[str, Setting]
    figures: Callable[[Result], dict[str, float]] = _no_figures


# ---------------------------------------------------------------------- what is asked of the result


def _to_first(count: int, result: Result) -> dict[str, float]:
    return {"share of the bad ones": sum(result.shares[:count])}


def _evenness(result: Result) -> dict[str, float]:
    """How far from an equal share those servers are that get the fewest calls and the most."""
    fair = 1.0 / len(result.shares)
    return {"least of a fair share": min(result.shares) / fair, "most of it": max(result.shares) / fair}


def _black_hole_figures(count: int, result: Result) -> dict[str, float]:
    setting = result.setting
    since = setting.warm_up + 1.0
    received = result.attempts(result.servers[:count], since)
    minutes = (setting.ends - since) / 60.0
    return {"swallowed per client and minute": received / setting.clients / count / minutes}


def _outage_figures(seconds: float, result: Result) -> dict[str, float]:
    """How much the retries add while everything fails, and how long the fleet takes to get well again."""
    began = result.setting.warm_up + incidents.OUTAGE_AFTER
    ended = began + seconds
    offered = result.attempts(since=began, until=ended) / (result.setting.rate * seconds)
    unwell = [moment.second for moment in result.timeline(0.5) if moment.lost > 0.01 * moment.calls]
    return {"offered load": offered, "recovery (s)": max(0.0, max(unwell, default=ended) + 0.5 - ended)}


def _refusal_figures(result: Result) -> dict[str, float]:
    """What servers are sent for each call that they accept."""
    accepted = max(1, result.calls - result.lost)
    return {
        "sent per accepted call": result.attempts() / accepted,
        "accepted per second": accepted / result.setting.measured,
    }


# ---------------------------------------------------------------------- the list


def _scenarios() -> Iterator[Scenario]:
    ramp = [0.75 * (10.0 / 9.0) ** step for step in range(9)]
    crowded = Setting(antagonists=MILD, hobble=0.85)
    yield Scenario(
        "fig6",
        "Prequal's Fig. 6: 100x100, mild neighbours, load from 0.75 to 1.74 of what is allocated",
        {f"{load:.2f}": replace(crowded, load=load) for load in ramp},
    )
    halved = Setting(slow_share=0.5, work=ClippedNormal(0.054))
    yield Scenario(
        "fig7",
        "Prequal's Fig. 7: 100x100, half of the servers twice as slow, 70 % (mid) and 90 % (harsh neighbours)",
        {"70 % mid": replace(halved, load=0.7, antagonists=MID), "90 % harsh": replace(halved, antagonists=HARSH)},
        _fast_share,
    )
    yield Scenario(
        "fig8",
        "Prequal's Fig. 8: 100x100, mild neighbours, 1.5 times the allocation",
        {"1.50": replace(crowded, load=1.5)},
    )
    yield Scenario(
        "fig9",
        "Prequal's Fig. 9: 100x100, half of the servers twice as slow, 75 %",
        {"75 % mid": replace(halved, load=0.75, antagonists=MID, work=ClippedNormal(0.0287))},
        _fast_share,
    )
    harsh = Setting(slow_share=0.5, antagonists=HARSH)
    yield Scenario(
        "harsh", "100x100, harsh neighbours, half of the servers twice as slow, 90 %", {"100x100": harsh}, _fast_share
    )
    yield Scenario(
        "small",
        "fleets as Python services have them: 4x10 and 20x20, harsh neighbours, half slow, 90 %",
        {
            f"{clients}x{servers}": replace(harsh, clients=clients, servers=servers)
            for clients, servers in ((4, 10), (20, 20))
        },
        _fast_share,
    )
    yield Scenario(
        "buoyant",
        "Linkerd's test of 2016: one client, 11 servers, one of them takes 2 s from second 15 to 45",
        {
            "1x11": Setting(
                clients=1,
                servers=11,
                calls_per_second=1000.0,
                work=Steady(0.167, 0.005),
                cores=inf,
                round_trip=0.0,
                warm_up=0.0,
                measured=60.0,
                incidents=incidents.one_slow,
            )
        },
        lambda result: {"success within 1 s": result.within(1.0)},
    )
    quiet = Setting(
        clients=1,
        servers=4,
        work=Steady(0.007, 0.002),
        calls_per_second=150.0,
        cores=inf,
        warm_up=5.0,
        measured=20.0,
        incidents=partial(incidents.slow_at_first, seconds=0.15, least_work=0.07),
    )
    yield Scenario(
        "quiet",
        "one client with one call at a time, equal servers; all are ten times slower in the first 0.15 s",
        {f"1x{servers}": replace(quiet, servers=servers) for servers in (4, 10)},
        _evenness,
    )
    rates, slots, service = (1.0, 3.0), 4, 0.004
    yield Scenario(
        "c3",
        "C3's fluctuating servers: 60x20, the speed of each drawn anew every 10, 100 and 500 ms, 70 %",
        {
            f"{every * 1000:.0f} ms": Setting(
                clients=60,
                servers=20,
                calls_per_second=0.7 * 20 * slots * sum(rates) / len(rates) / service,
                work=Exponential(service),
                cores=slots,
                round_trip=0.002,
                warm_up=1.0,
                measured=4.0,
                incidents=partial(incidents.fluctuating, every=every, fastest=rates[1]),
            )
            for every in (0.01, 0.1, 0.5)
        },
    )
    yield from _incidents()


def _fast_share(result: Result) -> dict[str, float]:
    slow = int(result.setting.slow_share * result.setting.servers)
    return {"share of the fast ones": sum(result.shares[slow:])}


def _incidents() -> Iterator[Scenario]:
    calm = Setting(antagonists=MILD, load=0.7)
    sinkhole = replace(calm, incidents=partial(incidents.sinkhole, count=2))
    yield Scenario(
        "sinkhole",
        "100x100, 70 %: two servers answer at once, with errors",
        {"no retries": replace(sinkhole, retries=False), "retries": sinkhole},
        partial(_to_first, 2),
    )
    some = replace(calm, clients=20, servers=20, attempt_timeout=1.0)
    yield Scenario(
        "black-hole",
        "20x20, 70 %: one server accepts everything and answers nothing; an attempt is given 1 s",
        {"20x20": replace(some, measured=60.0, incidents=partial(incidents.black_hole, count=1))},
        partial(_black_hole_figures, 1),
    )
    yield Scenario(
        "restart-storm",
        "20x50, 60 %: five servers at a time are killed and come back cold, every 5 s, until all were",
        {
            "20x50": replace(
                some,
                servers=50,
                load=0.6,
                measured=60.0,
                incidents=partial(incidents.rolling_restart, batch=5, every=5.0),
            )
        },
    )
    yield Scenario(
        "cold",
        "20x20, 70 %: four servers are replaced by new ones that are three times slower for 10 s",
        {"20x20": replace(some, measured=20.0, incidents=partial(incidents.cold_servers, count=4))},
        lambda result: {"share of the new ones": sum(result.shares[20:])},
    )
    zones = replace(some, servers=30, zones=3, load=0.55, measured=30.0)
    yield Scenario(
        "zone",
        "20x30 in three zones, 55 %: one zone is gone for 20 s, discovery notices after 10 s",
        {
            "refused": replace(zones, incidents=partial(incidents.zone_failure, silent=False)),
            "silent": replace(zones, incidents=partial(incidents.zone_failure, silent=True)),
        },
    )
    stale = replace(some, load=0.4)
    yield Scenario(
        "stale",
        "20x20, 40 %: half of the servers are gone and discovery names them still",
        {
            "refused": replace(stale, incidents=partial(incidents.stale_discovery, silent=False)),
            "silent": replace(stale, incidents=partial(incidents.stale_discovery, silent=True)),
        },
    )
    few_left = replace(some, servers=10, measured=30.0, incidents=partial(incidents.most_gone, count=8, seconds=20.0))
    yield Scenario(
        "few-left",
        "20x10: eight servers fall silent for 20 s; the other two could do the work (30 %), or never could (70 %)",
        {"30 %": replace(few_left, load=0.3), "70 %": replace(few_left, load=0.7)},
        partial(_to_first, 8),
    )
    small = Setting(
        clients=20,
        servers=10,
        calls_per_second=800.0,
        work=Exponential(0.1),
        cores=10.0,
        attempt_timeout=1.0,
        warm_up=10.0,
        measured=40.0,
    )
    yield Scenario(
        "retry-storm",
        "20x10, 80 %: all servers stand still for 2 s, then drop what nobody waits for, or work it off all the same",
        {
            "drop": replace(small, incidents=partial(incidents.stall, seconds=2.0)),
            "work off": replace(small, cancels=False, incidents=partial(incidents.stall, seconds=2.0)),
        },
        partial(_outage_figures, 2.0),
    )
    yield Scenario(
        "outage",
        "20x10, 80 %: all servers answer with errors for 10 s",
        {"errors": replace(small, incidents=partial(incidents.fail_all, seconds=10.0))},
        partial(_outage_figures, 10.0),
    )
    tail = Setting(
        clients=20, servers=20, load=0.5, measured=60.0, incidents=partial(incidents.hiccups, every=20.0, seconds=0.5)
    )
    yield Scenario(
        "tail",
        "20x20, 50 %: every server stands still for half a second now and then, 2.5 % of its time",
        {"not hedged": tail, "hedged at p95": replace(tail, hedge=HedgeOptions(percentile=0.95))},
    )
    flood = Setting(
        clients=4,
        servers=4,
        calls_per_second=400.0,
        work=Exponential(0.1),
        cores=inf,
        limit=1,
        warm_up=150.0,
        measured=60.0,
    )
    throttled = replace(flood, throttle=ThrottleOptions())
    yield Scenario(
        "flood",
        "4x4: ten times the calls that servers can take; they turn the others away, and clients throttle themselves",
        {
            "not throttled": flood,
            "throttled": throttled,
            "throttled, no retries": replace(throttled, retries=False),
        },
        _refusal_figures,
    )
    alone = Setting(clients=1, servers=4, load=0.7, attempt_timeout=1.0, antagonists=MILD)
    yield Scenario(
        "correlated",
        "1x4, 70 %: the client's own process stands still, once for 2 s, or for 1.2 s out of 1.4 s, ten times",
        {
            "one pause": replace(alone, incidents=partial(incidents.pause_clients, pauses=1, seconds=2.0, every=1.0)),
            "crawling": replace(alone, incidents=partial(incidents.pause_clients, pauses=10, seconds=1.2, every=1.4)),
        },
    )


SCENARIOS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in _scenarios()}
