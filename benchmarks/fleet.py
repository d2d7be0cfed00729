"""How well calls are placed: clientlb's policies, breakers and retries in simulated fleets, beside published policies.

The fleets are those of `clientlb simulate`; the code that decides is the shipped one. The baselines are in `baselines`;
of them, `prequal` is shipped. `prequal`, `c3`, `linear`, `yarp` and `wrr` ask servers for their load, and `oracle`
knows it. A figure is the mean of all seeds, the noise half of the distance between the best and the worst seed. Times
are in milliseconds; 5000 is the deadline, so a percentile of 5000 is an error. `--quick` has one seed and shorter runs.

    harsh.p99_over_prequal      p99 of the default policy / p99 of prequal, 100x100, 90 %; small.* likewise
    fig7.prequal_deviation      how far our prequal is from the four published values at most: does the testbed hold?
    fig6.p999_ms                of the default policy at the top of the ramp
    buoyant.late_percent        calls that took more than 1 s, or failed
    *.lost_percent              calls that failed after whatever retries they had
    black_hole.swallowed        calls that a server which answers nothing still gets, per client and minute
    *.offered_load              attempts / calls while every call fails
    *.recovery_s                seconds from the end of the outage until 99 % of the calls succeed again
    tail.hedged_p999_over_not   p99.9 with a second attempt at p95 / without; hedged_load: attempts per call
    flood.sent_per_accepted     what servers get at ten times what they can do, per call that they take, if throttled
    correlated.ejections        endpoints ejected because the client's own process stood still
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

import common
from baselines import BASELINES
from baselines.pool import prequal

from clientlb import Options
from clientlb.events import Ejected
from clientlb.options import POLICY_NAMES
from clientlb.simulation import SCENARIOS, Seated, Setting, simulate

DEFAULT = str(Options().policy)
EVERYBODY = (*POLICY_NAMES, *BASELINES)
PROBE_RATES = (4.0, 2.0, 1.0, 0.7, 0.5)
Q_RIFS = (0.0, 0.35, 0.59, 0.73, 0.81, 0.9, 0.99, 1.0)
SWEEPS: dict[str, Seated] = {
    **{f"prequal, {rate:g} probes": partial(prequal, probes=rate, removed=0.25) for rate in PROBE_RATES},
    **{f"prequal, Q_RIF {q:g}": partial(prequal, q_rif=q) for q in Q_RIFS},
}
COMPARED = {
    "fig6": (DEFAULT, "wrr", "prequal"),
    "fig7": EVERYBODY,
    "fig8": (DEFAULT, *(name for name in SWEEPS if "probes" in name)),
    "fig9": (DEFAULT, *(name for name in SWEEPS if "Q_RIF" in name)),
    "harsh": EVERYBODY,
    "small": EVERYBODY,
    "buoyant": (*POLICY_NAMES, "ll"),
    "c3": EVERYBODY,
    "tail": (DEFAULT, "p2c", "round_robin"),
    "flood": (DEFAULT,),
}
"""Policies beside the default, where there is something to compare. Elsewhere: the default, round robin and prequal."""
MORE_SEEDS = {"small": 3}
"""Small fleets differ more from seed to seed, and cost less."""
TOP = "1.74"
QUICKLY = {
    "fig6": (DEFAULT,),
    "fig7": ("prequal",),
    "harsh": (DEFAULT, "prequal"),
    "small": (DEFAULT, "prequal"),
    **dict.fromkeys(("buoyant", "sinkhole", "black-hole", "restart-storm", "retry-storm", "outage"), (DEFAULT,)),
    **dict.fromkeys(("tail", "flood", "correlated"), (DEFAULT,)),
}
PUBLISHED = {
    ("70 % mid", "p90_ms"): 149,
    ("70 % mid", "p99_ms"): 281,
    ("90 % harsh", "p90_ms"): 152,
    ("90 % harsh", "p99_ms"): 286,
}

Key = tuple[str, str, str]
"""Scenario, point, policy."""
Figures = Mapping[str, float]


@dataclass(frozen=True)
class Job:
    """One run. What it needs is found by name, because a policy does not travel to another process."""

    scenario: str
    point: str
    policy: str
    seed: int
    quick: bool

    @property
    def key(self) -> Key:
        return (self.scenario, self.point, self.policy)

    @property
    def setting(self) -> Setting:
        setting = SCENARIOS[self.scenario].points[self.point]
        if not self.quick or setting.incidents:
            return setting
        # a client has to learn a server before it can judge it, and a hundred take their time
        return replace(setting, warm_up=12.0 if self.scenario == "harsh" else 6.0, measured=6.0)


def run(job: Job) -> Figures:
    seated = BASELINES.get(job.policy) or SWEEPS.get(job.policy)
    options = Options() if seated else Options(policy=job.policy)
    setting = job.setting
    result = simulate(setting, seed=job.seed, options=options, seated=seated, name=job.policy)
    return {
        **{
            f"p{name}_ms": 1000 * min(result.quantile(fraction), setting.deadline)
            for name, fraction in (("50", 0.5), ("90", 0.9), ("99", 0.99), ("999", 0.999))
        },
        "lost_share": result.lost_share,
        "attempts_per_call": result.attempts_per_call,
        "probes_per_call": result.probes_per_call,
        "in_flight_p99": result.in_flight_quantile(0.99),
        "ejections": result.events(Ejected),
        **SCENARIOS[job.scenario].figures(result),
    }


def jobs(
    only: list[str] | None, policies: list[str] | None, seeds: int, quick: bool, points: list[str] | None = None
) -> Iterator[Job]:
    others = (DEFAULT, "round_robin", "prequal")
    for scenario in only or (QUICKLY if quick else SCENARIOS):
        compared = QUICKLY.get(scenario, (DEFAULT,)) if quick else COMPARED.get(scenario, others)
        runs = seeds * MORE_SEEDS.get(scenario, 1) if not quick else seeds
        for point in SCENARIOS[scenario].points:
            if (quick and scenario == "fig6" and point != TOP) or (points and point not in points):
                continue
            for policy in policies or compared:
                for seed in range(1, runs + 1):
                    yield Job(scenario, point, policy, seed, quick)


class Table:
    """What was found: for each scenario, point and policy the figures of every seed."""

    def __init__(self) -> None:
        self._found: dict[Key, list[Figures]] = {}

    def add(self, key: Key, figures: Figures) -> list[Figures]:
        found = self._found.setdefault(key, [])
        found.append(figures)
        return found

    def __iter__(self) -> Iterator[tuple[Key, dict[str, float]]]:
        for key, found in self._found.items():
            yield key, {name: fmean(figures[name] for figures in found) for name in found[0]}

    def spread(self, key: Key, name: str) -> float:
        values = [figures[name] for figures in self._found[key]]
        return (max(values) - min(values)) / 2

    def get(self, scenario: str, point: str, name: str, policy: str = DEFAULT) -> tuple[float, float] | None:
        """Mean and spread of a figure; None if it was not asked for."""
        key = (scenario, point, policy)
        if key not in self._found:
            return None
        return fmean(figures[name] for figures in self._found[key]), self.spread(key, name)


def add_targets(report: common.Report, table: Table) -> None:
    """The figures that have a target, as far as their scenarios were run."""

    def ratio(name: str, scenario: str, point: str, target: float, anchor: str) -> None:
        ours = table.get(scenario, point, "p99_ms")
        theirs = table.get(scenario, point, "p99_ms", "prequal")
        if ours and theirs:
            quotient = ours[0] / theirs[0]
            noise = quotient * math.hypot(ours[1] / ours[0], theirs[1] / theirs[0])
            report.add(name, quotient, target=target, anchor=anchor, noise=noise or None)

    def figure(
        name: str, scenario: str, point: str, column: str, target: float, anchor: str = "", scale: float = 1.0
    ) -> None:
        found = table.get(scenario, point, column)
        if found:
            report.add(name, scale * found[0], target=target, anchor=anchor, noise=scale * found[1] or None)

    def lost(name: str, scenario: str, point: str, target: float = 0.0, anchor: str = "") -> None:
        figure(f"{name}.lost_percent", scenario, point, "lost_share", target, anchor, scale=100.0)

    ratio("harsh.p99_over_prequal", "harsh", "100x100", 1.05, "1.17: plain peak EWMA in a prototype")
    ratio("small.4x10.p99_over_prequal", "small", "4x10", 0.95, "0.98: prototype")
    ratio("small.20x20.p99_over_prequal", "small", "20x20", 0.95, "0.98: prototype")
    figure("harsh.probes_per_call", "harsh", "100x100", "probes_per_call", 0)
    deviations = [
        abs(found[0] / published - 1)
        for (point, column), published in PUBLISHED.items()
        if (found := table.get("fig7", point, column, "prequal"))
    ]
    if deviations:
        report.add("fig7.prequal_deviation", max(deviations), target=0.10, anchor="0.06: prototype")
    lost("fig6", "fig6", TOP, anchor="0: Prequal; 25: WRR")
    figure("fig6.p999_ms", "fig6", TOP, "p999_ms", 700, "700: Prequal")
    late = table.get("buoyant", "1x11", "success within 1 s")
    if late:
        anchor = "0.1: Linkerd's peak EWMA"
        report.add("buoyant.late_percent", 100 * (1 - late[0]), target=0.07, anchor=anchor, noise=100 * late[1] or None)
    lost("sinkhole.no_retries", "sinkhole", "no retries", 0.5, "8.0: Prequal")
    lost("sinkhole.retries", "sinkhole", "retries")
    lost("black_hole", "black-hole", "20x20")
    figure("black_hole.swallowed", "black-hole", "20x20", "swallowed per client and minute", 2)
    figure("retry_storm.offered_load", "retry-storm", "drop", "offered load", 1.2)
    figure("retry_storm.recovery_s", "retry-storm", "drop", "recovery (s)", 5)
    figure("outage.offered_load", "outage", "errors", "offered load", 1.2, "1.1: SRE book, 3: without a budget")
    figure("outage.recovery_s", "outage", "errors", "recovery (s)", 5)
    lost("restart_storm", "restart-storm", "20x50")
    slow, hedged = (table.get("tail", point, "p999_ms") for point in ("not hedged", "hedged at p95"))
    if slow and hedged:
        anchor = "0.04: The Tail at Scale, hedged after 10 ms"
        noise = hedged[0] / slow[0] * math.hypot(hedged[1] / hedged[0], slow[1] / slow[0])
        report.add("tail.hedged_p999_over_not", hedged[0] / slow[0], anchor=anchor, noise=noise or None)
    figure("tail.hedged_load", "tail", "hedged at p95", "attempts_per_call", 1.06, "1.05: The Tail at Scale")
    figure("flood.sent_per_accepted", "flood", "throttled, no retries", "sent per accepted call", 2.1, "2: SRE book")
    figure("correlated.ejections", "correlated", "one pause", "ejections", 0)
    figure("correlated.crawling.ejections", "correlated", "crawling", "ejections", 0)


def line(cells: list[str]) -> str:
    return f"{cells[0]:<28}{cells[1]:<20}" + "".join(f"{cell:>10}" for cell in cells[2:])


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of everything (default 3, with --quick 1)")
    parser.add_argument(
        "--policy", action="append", choices=(*EVERYBODY, *SWEEPS), metavar="P", help="only this one; may be repeated"
    )
    parser.add_argument("--only", action="append", choices=SCENARIOS, metavar="SCENARIO", help="may be repeated")
    parser.add_argument("--point", action="append", metavar="POINT", help='only this one, such as "4x10"')
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: all cores)"
    )
    arguments = parser.parse_args()
    seeds = arguments.seeds or (1 if arguments.quick else 3)
    planned = list(jobs(arguments.only, arguments.policy, seeds, arguments.quick, arguments.point))
    runs = Counter(job.key for job in planned)
    table = Table()
    columns = ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "lost_share", "ejections", "in_flight_p99")
    heads = ["p50", "p90", "p99", "p99.9", "lost", "ejected", "RIF p99", "att/call"]
    if not arguments.json:
        print(line(["scenario", "policy", *heads]))
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for job, figures in zip(planned, pool.map(run, planned), strict=True):
            found = table.add(job.key, figures)
            if len(found) == runs[job.key] and not arguments.json:
                means = {name: fmean(each[name] for each in found) for name in figures}
                cells = [f"{means[name]:.4f}" if name == "lost_share" else f"{means[name]:.0f}" for name in columns]
                cells.append(f"{means['attempts_per_call']:.3f}")
                own = {
                    name: means[name]
                    for name in means
                    if name not in (*columns, "attempts_per_call", "probes_per_call")
                }
                notes = "  ".join(f"{name}: {value:.4g}" for name, value in own.items())
                print(line([f"{job.scenario} {job.point}", job.policy, *cells]), f" {notes}".rstrip(), flush=True)
    report = common.Report("fleet")
    add_targets(report, table)
    if arguments.json:
        for (scenario, point, policy), means in table:
            for name, value in means.items():
                report.add(f"{scenario}.{point}.{policy}.{name}", value)
    report.print(arguments.json)


if __name__ == "__main__":
    main()
