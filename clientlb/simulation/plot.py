"""A picture of a scenario: latency against load or time, what was lost, and who got the traffic. Needs matplotlib.

Errors have an infinite latency: where a percentile is one, its curve runs along the upper edge of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from clientlb.errors import ConfigurationError
from clientlb.simulation.record import Moment, Result
from clientlb.simulation.scenarios import Scenario

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Runs: TypeAlias = Mapping[tuple[str, str], Result]
"""One result for each (label of the point, name of the policy)."""

_MOST_ROWS = 4
"""A scenario with more points than that is a ramp, and drawn against its points instead of against time."""


def check(path: str) -> None:
    """Make sure that `draw` can draw into such a file. To be called before the runs, which take their time.

    Raises:
        ImportError: matplotlib is missing; the message says how to get it.
        ConfigurationError: The ending of the path is no kind of picture, or its directory is not there.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'clientlb[plot]'") from error
    kinds = sorted(Figure().canvas.get_supported_filetypes())
    if Path(path).suffix.removeprefix(".") not in kinds:
        raise ConfigurationError(f"plot {path}: matplotlib draws {', '.join(kinds)}; end the name with one of them")
    if not Path(path).parent.is_dir():
        raise ConfigurationError(f"plot {path}: there is no directory {Path(path).parent}")


def draw(scenario: Scenario, runs: Runs, path: str) -> None:
    """Draw the runs of a scenario into a file whose ending says which kind of picture it is.

    Args:
        scenario: The scenario.
        runs: Its results.
        path: Such as `fleet.png` or `fleet.svg`.

    Raises:
        ImportError: matplotlib is missing; the message says how to get it.
        ConfigurationError: The ending of the path is no kind of picture.
        OSError: The file cannot be written.
    """
    check(path)
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(label for label, _ in runs))
    policies = list(dict.fromkeys(policy for _, policy in runs))
    if len(labels) > _MOST_ROWS:
        figure = Figure(figsize=(18, 5), layout="constrained")
        latency, losses, shares = figure.subplots(1, 3)
        for number, policy in enumerate(policies):
            _against_points(latency, losses, {label: runs[label, policy] for label in labels}, f"C{number}")
            _shares(shares, runs[labels[-1], policy], f"C{number}")
        latency.set_yscale("log")
        _explain(latency, losses, shares, across="point", title="", last=f"at the last point, {labels[-1]}")
    else:
        figure = Figure(figsize=(18, 4.5 * len(labels)), layout="constrained")
        for label, (latency, losses, shares) in zip(
            labels, figure.subplots(len(labels), 3, squeeze=False), strict=True
        ):
            for number, policy in enumerate(policies):
                result = runs[label, policy]
                _against_time(latency, losses, result, f"C{number}")
                _shares(shares, result, f"C{number}")
            across = "seconds; what is measured begins at the grey line"
            _explain(latency, losses, shares, across=across, title=label, last=label)
    figure.suptitle(f"{scenario.name}: {scenario.summary}")
    figure.savefig(path)


def _against_points(latency: Axes, losses: Axes, results: Mapping[str, Result], colour: str) -> None:
    labels = list(results)
    policy = results[labels[0]].policy
    for fraction, style in ((0.5, ":"), (0.9, "-."), (0.99, "--"), (0.999, "-")):
        found = [_drawn(result.quantile(fraction), result) for result in results.values()]
        latency.plot(labels, found, style, color=colour, label=f"{policy} p{100 * fraction:g}")
    losses.plot(labels, [100 * result.lost_share for result in results.values()], color=colour, label=policy)


def _against_time(latency: Axes, losses: Axes, result: Result, colour: str) -> None:
    timeline: Sequence[Moment] = result.timeline()
    seconds = [moment.second for moment in timeline]
    for name, style in (("p50", ":"), ("p99", "-")):
        found = [_drawn(getattr(moment, name), result) for moment in timeline]
        latency.plot(seconds, found, style, color=colour, label=f"{result.policy} {name}")
    lost = [100 * moment.lost / max(1, moment.calls) for moment in timeline]
    losses.plot(seconds, lost, color=colour, label=f"{result.policy}: calls lost, %")
    repeated = [100 * (moment.attempts / max(1, moment.calls) - 1) for moment in timeline]
    losses.plot(seconds, repeated, ":", color=colour, label=f"{result.policy}: attempts beyond one per call, %")
    for axes in (latency, losses):
        axes.axvline(result.setting.warm_up, color="lightgrey", zorder=0)


def _drawn(seconds: float, result: Result) -> float:
    return min(seconds, result.setting.deadline)


def _shares(axes: Axes, result: Result, colour: str) -> None:
    shares = [100 * share for share in result.shares]
    axes.plot(range(len(shares)), shares, ".", color=colour, label=result.policy)


def _explain(latency: Axes, losses: Axes, shares: Axes, *, across: str, title: str, last: str) -> None:
    latency.set(xlabel=across, ylabel="latency, seconds", title=title)
    losses.set(xlabel=across, ylabel="share of the calls, %", title=title)
    shares.set(xlabel="server", ylabel="share of the attempts, %", title=last)
    for axes in (latency, losses, shares):
        if axes.get_yscale() == "linear":
            top = axes.get_ylim()[1]
            axes.set_ylim(bottom=0, top=1.3 * max(top, 1.0) if axes is losses else top)  # the legend needs room
        axes.legend(fontsize="small", loc="upper right" if axes is losses else "best")
