"""`clientlb simulate`: run policies against a modelled fleet, and see latencies, losses and who got the traffic."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TypeAlias

from clientlb.cli.arguments import count
from clientlb.config import load_options
from clientlb.errors import ConfigurationError
from clientlb.events import Ejected
from clientlb.options import POLICY_NAMES, Options
from clientlb.policy import Policy, make_policy
from clientlb.simulation import SCENARIOS, Result, Scenario, plot, simulate

_QUANTILES = (0.5, 0.9, 0.99, 0.999)
Row: TypeAlias = dict[str, str | float | None]


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    summary = "run a simulated fleet in virtual time and print latencies and losses"
    width = max(map(len, SCENARIOS))
    command = commands.add_parser(
        "simulate",
        help=summary,
        description=summary.capitalize() + ".",
        epilog="scenarios:\n" + "\n".join(f"  {name:<{width}}  {it.summary}" for name, it in SCENARIOS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("scenario", metavar="SCENARIO", choices=SCENARIOS, help="one of those listed below")
    command.add_argument(
        "--policy",
        action="append",
        metavar="P",
        help=f"{', '.join(POLICY_NAMES)}, or module:name of a callable that makes a Policy; may be repeated"
        f" (default {Options().policy})",
    )
    command.add_argument(
        "--options", metavar="FILE", help="a TOML file of options, whose [default] every client has (default: ours)"
    )
    command.add_argument(
        "--seeds", type=count, default=1, metavar="N", help="runs per policy; means are printed (default 1)"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--plot", metavar="FILE", help="draw the first run of each policy into a .png, .svg or .pdf")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run every policy through every point of the scenario."""
    scenario: Scenario = SCENARIOS[options.scenario]
    if options.plot:
        plot.check(options.plot)
    base = load_options(options.options, environ={})["*"]
    policies = {name: policy_of(name) for name in options.policy or [str(base.policy)]}
    rows: list[Row] = []
    first_runs: dict[tuple[str, str], Result] = {}
    for label, setting in scenario.points.items():
        for name, policy in policies.items():
            results = [
                simulate(setting, name=name, seed=seed, options=dataclasses.replace(base, policy=policy))
                for seed in range(1, options.seeds + 1)
            ]
            first_runs[label, name] = results[0]
            rows.append(
                {"scenario": scenario.name, "point": label, "policy": name, **_means(results, scenario.figures)}
            )
            if not options.json:
                _print_row(rows[-1], first=len(rows) == 1)
    if options.json:
        print(json.dumps(rows, indent=2))
    if options.plot:
        try:
            plot.draw(scenario, first_runs, options.plot)
        except OSError as error:
            raise ConfigurationError(f"--plot {options.plot}: {error}") from error
    return 0


def policy_of(name: str) -> str | Callable[[], Policy]:
    """A policy by its name, or by the place of its maker.

    Raises:
        ConfigurationError: There is no such policy.
    """
    module, _, attribute = name.partition(":")
    if not attribute:
        return name
    try:
        maker: Callable[[], Policy] = getattr(importlib.import_module(module), attribute)
        make_policy(maker)
    except ConfigurationError as error:
        raise ConfigurationError(f"policy {name!r}: {error}") from error
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"policy {name!r}: {error}; give a module:name that makes a Policy") from error
    return maker


def _means(results: Sequence[Result], figures: Callable[[Result], dict[str, float]]) -> dict[str, float | None]:
    """The figures of some runs, averaged. Times are in milliseconds; None is a percentile that is an error."""
    columns: dict[str, list[float]] = {
        "calls": [result.calls for result in results],
        "lost %": [100 * result.lost_share for result in results],
        **{f"p{100 * it:g} ms": [1000 * result.quantile(it) for result in results] for it in _QUANTILES},
        "attempts per call": [result.attempts_per_call for result in results],
        "in flight p99": [result.in_flight_quantile(0.99) for result in results],
        "ejections": [result.events(Ejected) for result in results],
    }
    for found in map(figures, results):
        for name, value in found.items():
            columns.setdefault(name, []).append(value)
    means = {name: fmean(values) for name, values in columns.items()}
    return {name: round(mean, 4) if math.isfinite(mean) else None for name, mean in means.items()}


def _print_row(row: Row, first: bool) -> None:
    """Print one line of the table, and its head before the first."""
    names = [name for name in row if name != "scenario"]
    cells = [_cell(row[name]) for name in names]
    left = [isinstance(row[name], str) for name in names]
    widths = [max(14 if is_left else 7, len(name)) for name, is_left in zip(names, left, strict=True)]
    for line in ([names] if first else []) + [cells]:
        columns = zip(line, widths, left, strict=True)
        print(
            "  ".join(word.ljust(width) if is_left else word.rjust(width) for word, width, is_left in columns),
            flush=True,
        )


def _cell(value: str | float | None) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return "error"
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"
