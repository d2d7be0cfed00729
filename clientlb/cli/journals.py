"""`clientlb replay`: what would have happened under another policy; and what `clientlb explain` says of a journal."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from statistics import median
from typing import Any

from clientlb.cli.simulate import policy_of
from clientlb.config import load_options
from clientlb.errors import ConfigurationError
from clientlb.journal import Entry, Recording, read_journal
from clientlb.options import POLICY_NAMES, Options
from clientlb.replay import CAVEAT, Result, recorded, replay

_QUANTILES = (0.5, 0.9, 0.99, 0.999)
_MOST_SHARES = 30
_MOST_BAD_LINES = 5


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    summary = "make the calls of a journal again under other policies, and print latencies and who got the traffic"
    command = commands.add_parser("replay", help=summary, description=f"{summary.capitalize()}.", epilog=CAVEAT)
    command.add_argument("journal", metavar="JOURNAL", help="a file that JournalOptions(path=...) has had written")
    command.add_argument("--service", metavar="S", help="which one, if the journal is of several")
    command.add_argument(
        "--policy",
        action="append",
        metavar="P",
        help=f"{', '.join(POLICY_NAMES)}, or module:name of a callable that makes a Policy; may be repeated"
        f" (default {Options().policy})",
    )
    command.add_argument("--options", metavar="FILE", help="options of the replay, as load_options() reads them")
    command.add_argument("--seed", type=int, default=1, metavar="N", help="of all randomness (default 1)")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run)


def read(path: str, service: str | None, candidates: bool = True) -> list[Recording]:
    """Read a journal, and complain about what cannot be read.

    Raises:
        ConfigurationError: There is no such file, or it is no journal.
    """
    bad: list[str] = []
    found = read_journal(
        path,
        service=service,
        candidates=candidates,
        on_bad_line=lambda file, number, error: bad.append(f"{file}, line {number}: {error}"),
    )
    for line in bad[:_MOST_BAD_LINES]:
        print(f"clientlb: skipped {line}", file=sys.stderr)
    if len(bad) > _MOST_BAD_LINES:
        print(f"clientlb: skipped {len(bad) - _MOST_BAD_LINES} more lines", file=sys.stderr)
    return found


# ---------------------------------------------------------------------- replay


def run(options: argparse.Namespace) -> int:
    """Replay the journal under every policy."""
    recordings = read(options.journal, options.service, candidates=False)
    service = _service(options.journal, recordings, options.service)
    if options.options is None:
        base = Options()
    else:
        loaded = load_options(options.options)
        base = loaded.get(service, loaded["*"])
    results = [recorded(recordings)]
    for name in options.policy or [str(Options().policy)]:
        again = dataclasses.replace(base, policy=policy_of(name))
        results.append(replay(recordings, again, seed=options.seed, name=name))
    if options.json:
        rows = [_row(result) | {"endpoints": _shares(result)} for result in results]
        print(json.dumps({"service": service, "recorded": rows[0], "replayed": rows[1:], "caveat": CAVEAT}, indent=2))
        return 0
    print(f"journal {options.journal}: service {service!r}, {_extent(recordings)}")
    print()
    for line in _table(results):
        print(line)
    print()
    for line in _traffic(results):
        print(line)
    print()
    print(CAVEAT)
    return 0


def _service(path: str, recordings: Sequence[Recording], wanted: str | None) -> str:
    """The one service that a journal is of.

    Raises:
        ConfigurationError: It is of none, or of several.
    """
    services = sorted({recording.service for recording in recordings if recording.entries})
    if not services:
        of = f" of service {wanted!r}" if wanted else ""
        raise ConfigurationError(f"journal {path}: there is no pick{of} in it")
    if len(services) > 1:
        raise ConfigurationError(f"journal {path} is of {', '.join(services)}; choose one with --service")
    return services[0]


def _extent(recordings: Sequence[Recording]) -> str:
    entries = [entry for recording in recordings for entry in recording.entries]
    if not entries:
        return "no picks"
    seconds = max(entry.at for entry in entries) - min(entry.at for entry in entries)
    processes = len(recordings)
    return f"{processes} {'process' if processes == 1 else 'processes'}, {len(entries)} picks in {seconds:.1f} s"


def _row(result: Result) -> dict[str, Any]:
    row: dict[str, Any] = {"policy": result.policy, "calls": result.calls}
    row["lost %"] = _percent(result.lost, result.calls)
    row["cancelled %"] = _percent(result.cancelled, result.calls)
    for share in _QUANTILES:
        latency = result.quantile(share)
        row[f"p{100 * share:g} ms"] = None if latency is None else round(latency * 1000, 3)
    row["attempts per call"] = round(sum(result.attempts.values()) / result.calls, 4) if result.calls else None
    row["ejections"] = result.ejections
    return row


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 4) if whole else 0.0


def _shares(result: Result) -> dict[str, float]:
    return {endpoint: round(result.share(endpoint), 6) for endpoint in result.attempts}


def _table(results: Sequence[Result]) -> Iterator[str]:
    rows = [_row(result) for result in results]
    rows[0]["policy"] = f"{rows[0]['policy']} (recorded)"
    names = list(rows[0])
    yield from _columns([names, *([_cell(row[name]) for name in names] for row in rows)])


def _traffic(results: Sequence[Result]) -> Iterator[str]:
    endpoints = sorted({endpoint for result in results for endpoint in result.attempts})
    endpoints.sort(key=lambda endpoint: -results[0].share(endpoint))
    head = ["share of the attempts", f"{results[0].policy} (recorded)", *(result.policy for result in results[1:])]
    rows = [[each, *(f"{result.share(each):.1%}" for result in results)] for each in endpoints[:_MOST_SHARES]]
    yield from _columns([head, *rows])
    if len(endpoints) > _MOST_SHARES:
        yield f"and {len(endpoints) - _MOST_SHARES} more endpoints"


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        yield "  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]).rstrip()


def _cell(value: str | float | None) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


# ---------------------------------------------------------------------- explain


def text(path: str, recordings: Sequence[Recording], picks: int) -> str:
    """What a journal says of a service: each endpoint, and the last picks of all processes."""
    lines = [f"  journal {path}: {_extent(recordings)}"]
    for endpoint, figures in _figures(recordings).items():
        middle = figures["median"]
        took = "" if middle is None else f", median {middle * 1000:.1f} ms"
        lines.append(f"    {endpoint}: {figures['picks']} picks, {figures['failed']} failed{took}")
    last = _last(recordings, picks)
    if last:
        lines.append("  the last pick in it:" if len(last) == 1 else f"  the last {len(last)} picks in it:")
    now = time.time()
    lines += [f"    {now - entry.at:.3f} s ago: {entry}" for entry in last]
    return "\n".join(lines)


def as_json(recordings: Sequence[Recording], picks: int) -> dict[str, Any]:
    """The same as JSON has it. Medians are in seconds."""
    return {
        "processes": len(recordings),
        "endpoints": _figures(recordings),
        "picks": [entry.as_json() for entry in _last(recordings, picks)],
    }


def _figures(recordings: Iterable[Recording]) -> dict[str, dict[str, Any]]:
    of: dict[str, list[Entry]] = defaultdict(list)
    for recording in recordings:
        for entry in recording.entries:
            of[entry.endpoint].append(entry)
    return {
        endpoint: {
            "picks": len(entries),
            "failed": sum(entry.outcome in ("failure", "retryable") for entry in entries),
            "median": _median(entries),
        }
        for endpoint, entries in sorted(of.items())
    }


def _median(entries: Iterable[Entry]) -> float | None:
    latencies = [entry.latency for entry in entries if entry.outcome == "success" and entry.latency is not None]
    return median(latencies) if latencies else None


def _last(recordings: Iterable[Recording], picks: int) -> list[Entry]:
    """The newest of all processes, the oldest of them first."""
    everything = sorted((entry for recording in recordings for entry in recording.entries), key=lambda it: -it.at)
    return list(islice(everything, picks))[::-1]
