"""The one form of every benchmark: how it is called, how it compares two sides, what it prints.

A ratio is the median of per-round ratios, and the two sides alternate within a round: whatever else the machine does
then falls on both. The noise beside it is what the median itself may be off by, with about 95 % confidence: 1.57
interquartile ranges of the ratios over the root of their number (the notch of a box plot: McGill, Tukey, Larsen 1978).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn, TypeVar

Sides = Mapping[str, Callable[[], float]]
Measure = TypeVar("Measure")


def arguments(description: str | None) -> argparse.Namespace:
    """The command line of most benchmarks."""
    return parser(description).parse_args()


def parser(description: str | None) -> argparse.ArgumentParser:
    """What the command lines of all benchmarks have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="a run of under a minute, with the same figures")
    return parser


def alternate(sides: Mapping[str, Callable[[], Measure]], rounds: int) -> dict[str, list[Measure]]:
    """Measure every side once per round. Each round begins with another side, so that none always goes first."""
    measured: dict[str, list[Measure]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            measured[name].append(sides[name]())
    return measured


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]


def processes() -> list[int]:
    """The ids of this process and of all that it has started and that live."""
    found = [os.getpid()]
    for pid in found:  # grows meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def processor_seconds(pids: Sequence[int]) -> float:
    """Processor time that processes have used so far: what /proc/PID/stat says, by its nanosecond clock."""
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in pids)  # clock_getcpuclockid(3)


class Report:
    """The figures of one benchmark, and how they are printed.

    Args:
        benchmark: Its name.
        packages: Distributions whose versions belong to the environment.
    """

    def __init__(self, benchmark: str, packages: Sequence[str] = ()) -> None:
        self.benchmark = benchmark
        self.figures: dict[str, float] = {}
        self.targets: dict[str, str] = {}
        self.notes: list[str] = []
        self._anchors: dict[str, str] = {}
        self._noise: dict[str, float] = {}
        self._packages = packages

    def add(
        self, name: str, value: float, *, target: float | None = None, anchor: str = "", noise: float | None = None
    ) -> None:
        """Add a figure.

        Args:
            name: Flat and dotted.
            value: The figure.
            target: What it may be at most.
            anchor: What it is to be compared with, as printed in the table.
            noise: What the figure may be off by.
        """
        self.figures[name] = round(value, 4)
        if noise is not None:
            self._noise[name] = noise
        if target is not None:
            self.targets[name] = f"<= {target:g}"
        if anchor:
            self._anchors[name] = anchor

    def add_ratio(
        self, name: str, ours: Sequence[float], base: Sequence[float], *, target: float | None = None, anchor: str = ""
    ) -> None:
        """Add the median of the per-round ratios of two sides."""
        ratios = [mine / other for mine, other in zip(ours, base, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        noise = 1.57 * (high - low) / math.sqrt(len(ratios))
        self.add(name, statistics.median(ratios), target=target, anchor=anchor, noise=noise)

    @property
    def missed(self) -> list[str]:
        """Names of the figures that miss their target."""
        return [name for name, target in self.targets.items() if self.figures[name] > float(target.removeprefix("<= "))]

    @property
    def environment(self) -> dict[str, str]:
        """What the figures depend on."""
        packages = {package: metadata.version(package) for package in ("clientlb", *self._packages)}
        return {
            "python": f"{platform.python_implementation()} {platform.python_version()}",
            "system": f"{platform.system()} {platform.machine()}",
            "cpu": _cpu(),
            "cores": str(os.cpu_count()),
            "load": f"{os.getloadavg()[0]:.1f}",
            **packages,
        }

    def print(self, as_json: bool) -> None:
        """Print everything, as one JSON object or as a table."""
        if as_json:
            print(
                json.dumps(
                    {
                        "benchmark": self.benchmark,
                        "figures": self.figures,
                        "targets": self.targets,
                        "anchors": self._anchors,
                        "noise": {name: round(noise, 4) for name, noise in self._noise.items()},
                        "environment": self.environment,
                    }
                )
            )
        else:
            self._print_table()

    def _print_table(self) -> None:
        rows = [("figure", "clientlb", "±", "target", "", "anchor")]
        for name, value in self.figures.items():
            noise = f"{self._noise[name]:.3f}" if name in self._noise else ""
            target = self.targets.get(name, "")
            hit = "" if not target else "MISSED" if name in self.missed else "met"
            rows.append((name, _short(value), noise, target, hit, self._anchors.get(name, "")))
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        print(f"{self.benchmark}   ({', '.join(f'{name} {value}' for name, value in self.environment.items())})")
        for row in rows:
            cells = [
                cell.rjust(width) if 1 <= column <= 3 else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            print("  " + "  ".join(cells).rstrip())
        for note in self.notes:
            print(f"  {note}")
        print(f"  targets missed: {', '.join(self.missed)}" if self.missed else "  all targets met")


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3f}"


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def refuse(reason: str) -> NoReturn:
    """End a benchmark that cannot run: the reason on stderr, exit status 1."""
    print(f"{sys.argv[0]}: {reason}", file=sys.stderr)
    raise SystemExit(1)
