"""Run the benchmarks and write what they say to `docs/benchmarks/`: a page of tables, and a plot.

    publish.py [--quick] [BENCHMARK ...]    run these (default: all that need less than some minutes), then write
    publish.py --from FILE                  write again from the figures of an earlier run

The figures are kept beside the page in `figures.json`; benchmarks that do not run this time keep those that they had.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

HERE = Path(__file__).parent
PAGES = HERE.parent / "docs" / "benchmarks"
BENCHMARKS = ("overhead", "hop", "slow_server", "pick", "scale", "import_time", "discovery")
PIVOTED = re.compile(r"(?P<row>.+)\.(?P<way>\w+)\.(?P<measure>p50_ms|p99_ms|p999_ms|cpu_us|calls_per_cpu_s|failed)")
COLOURS = {"clientlb": "#1f77b4", "direct": "#bbbbbb", "haproxy": "#ff7f0e", "nginx": "#2ca02c", "envoy": "#d62728"}
OTHER_COLOURS = {"round_robin": "#9467bd", "grpc_round_robin": "#8c564b"}
HEAD = """# Benchmarks

Written by `benchmarks/publish.py`; {date}. Everything in one table was measured in one run on one machine, the sides of
a ratio alternating: compare within a table, not across machines. ± is what the median may be off by (about 95 %). A
target that is missed says so. `make bench ARGS=--quick` prints the same figures for your machine.

| | |
|---|---|
{environment}

![Latency through clientlb and through proxies, and with a server in trouble](hop_and_trouble.png)
"""

Result = dict[str, Any]


def run(benchmark: str, quick: bool) -> Result | None:
    """Run one benchmark; None if it could not."""
    options = ["--json", *(["--quick"] if quick else [])]
    print(f"{benchmark} ...", file=sys.stderr)
    done = subprocess.run([sys.executable, str(HERE / f"{benchmark}.py"), *options], stdout=subprocess.PIPE, text=True)
    lines = done.stdout.strip().splitlines()
    if not lines:
        print(f"publish.py: {benchmark} did not run to its end", file=sys.stderr)
        return None
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    command = f".venv/bin/python benchmarks/{benchmark}.py {options[1] if quick else ''}".strip()
    return {**json.loads(lines[-1]), "command": command, "date": today}


# ---------------------------------------------------------------------- tables


def short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3f}"


def section(result: Result) -> str:
    """One benchmark: what it says of itself, its command and its tables."""
    source = (HERE / f"{result['benchmark']}.py").read_text()
    about = source.split('"""')[1].split("\n\n    ")[0].strip()  # up to the list of its figures
    parts = [f"## {result['benchmark']}", about, f"`{result['command']}`, {result['date']}"]
    pivoted = {name: found for name in result["figures"] if (found := PIVOTED.fullmatch(name))}
    if len(pivoted) > len(result["figures"]) / 2:
        parts.append(pivot_table(result, pivoted))
        ratios = [name for name in result["figures"] if name not in pivoted or name in result["targets"]]
    else:
        ratios = list(result["figures"])
    parts.append(plain_table(result, ratios))
    return "\n\n".join(parts)


def pivot_table(result: Result, names: dict[str, re.Match[str]]) -> str:
    measures = list(dict.fromkeys(found["measure"] for found in names.values()))
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for name, found in names.items():
        rows.setdefault((found["row"], found["way"]), {})[found["measure"]] = result["figures"][name]
    lines = [f"| case | way | {' | '.join(measures)} |", f"|---|---|{'---:|' * len(measures)}"]
    for (row, way), values in rows.items():
        shown = f"**{way}**" if way == "clientlb" else way
        lines.append(f"| {row} | {shown} | {' | '.join(short(values[measure]) for measure in measures)} |")
    return "\n".join(lines)


def plain_table(result: Result, names: list[str]) -> str:
    lines = ["| figure | | ± | target | | anchor |", "|---|---:|---:|---:|---|---|"]
    for name in names:
        value, target = result["figures"][name], result["targets"].get(name, "")
        noise = f"{result['noise'][name]:.3f}" if name in result["noise"] else ""
        hit = "" if not target else "met" if value <= float(target.removeprefix("<= ")) else "**missed**"
        anchor = result.get("anchors", {}).get(name, "")
        lines.append(f"| `{name}` | {short(value)} | {noise} | {target} | {hit} | {anchor} |")
    return "\n".join(lines)


# ---------------------------------------------------------------------- the plot


def bars(axes: Any, result: Result, measure: str, of_first: str | None) -> None:
    """One group of bars per case; as multiples of one way, if one is named."""
    cases: dict[str, dict[str, float]] = {}
    for name, value in result["figures"].items():
        found = PIVOTED.fullmatch(name)
        if found and found["measure"] == measure:
            cases.setdefault(found["row"], {})[found["way"]] = value
    ways = list(dict.fromkeys(way for case in cases.values() for way in case))
    ways.sort(key=lambda way: (way != "direct", way != "clientlb"))
    width = 0.8 / len(ways)
    for place, way in enumerate(ways):
        offset = (place - (len(ways) - 1) / 2) * width
        at = [number + offset for number, case in enumerate(cases.values()) if way in case]
        heights = [case[way] / (case[of_first] if of_first else 1) for case in cases.values() if way in case]
        axes.bar(at, heights, width, label=way.replace("_", " "), color=(COLOURS | OTHER_COLOURS).get(way))
    axes.set_xticks(range(len(cases)), [case.replace(".", "\n") for case in cases])
    axes.legend(fontsize=8, ncols=3)
    axes.spines[["top", "right"]].set_visible(False)


def plot(results: dict[str, Result], file: Path) -> None:
    figure, axes = pyplot.subplots(3, 1, figsize=(10, 11), layout="constrained")
    if "hop" in results:
        bars(axes[0], results["hop"], "p50_ms", "clientlb")
        axes[0].set_ylabel("median latency / clientlb's")
        axes[0].set_title("Four servers, called directly, by clientlb and through a local proxy; 1 or 32 at a time")
        bars(axes[1], results["hop"], "cpu_us", "clientlb")
        axes[1].set_ylabel("processor time per call / clientlb's")
        for each in axes[:2]:
            each.axhline(1.0, color="black", linewidth=0.6)
    if "slow_server" in results:
        bars(axes[2], results["slow_server"], "p99_ms", None)
        axes[2].set_yscale("log")
        axes[2].set_ylabel("p99 in ms")
        axes[2].set_title("One of four servers is 20 times slower, killed, or hangs")
    figure.savefig(file, dpi=110)


def write(results: dict[str, Result]) -> None:
    PAGES.mkdir(parents=True, exist_ok=True)
    ordered = {name: results[name] for name in BENCHMARKS if name in results}
    (PAGES / "figures.json").write_text(json.dumps(ordered, indent=1) + "\n")
    environment: dict[str, str] = {}
    for result in ordered.values():
        environment |= result["environment"]
    environment.pop("load", None)
    rows = "\n".join(f"| {name} | {value} |" for name, value in environment.items())
    dates = sorted({result["date"] for result in ordered.values()})
    head = HEAD.format(date=" to ".join(dict.fromkeys((dates[0], dates[-1]))), environment=rows)
    (PAGES / "index.md").write_text("\n\n".join([head.strip(), *map(section, ordered.values())]) + "\n")
    plot(ordered, PAGES / "hop_and_trouble.png")
    print(f"written: {PAGES.relative_to(HERE.parent)}/index.md", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help=f"among {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="runs of about a minute each")
    parser.add_argument("--from", dest="kept", metavar="FILE", type=Path, help="write from figures that were kept")
    arguments = parser.parse_args()
    unknown = set(arguments.benchmarks) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    kept = arguments.kept or PAGES / "figures.json"
    results: dict[str, Result] = json.loads(kept.read_text()) if kept.exists() else {}
    failed = False
    for benchmark in () if arguments.kept else arguments.benchmarks or BENCHMARKS:
        result = run(benchmark, arguments.quick)
        failed = failed or result is None
        if result is not None:
            results[benchmark] = result
    if not results:
        parser.error("there is no figure to write")
    write(results)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
