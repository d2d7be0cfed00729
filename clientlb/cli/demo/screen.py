"""How the demo is shown: a live table on a terminal (with rich), plain lines elsewhere, nothing if so asked."""

from __future__ import annotations

import dataclasses
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Group

_COLOURS = {"in use": "green", "probed": "yellow", "ejected": "bold red", "left": "dim"}
_NEWS_SHOWN = 10
_BETWEEN_PLAIN_LINES = 2.0


@dataclass(frozen=True, slots=True)
class Row:
    """One server at one moment. Times are in seconds."""

    service: str
    server: str
    endpoint: str
    state: str
    in_flight: int
    calls: int
    failures: int
    median: float | None
    p99: float | None

    def left(self) -> Row:
        """The same server after it left the list."""
        return dataclasses.replace(self, state="left", in_flight=0)


@dataclass(frozen=True, slots=True)
class View:
    """Everything that is shown at one moment. Times are in seconds."""

    elapsed: float
    seconds: float
    calls: int
    failed: int
    retries: int
    rows: Sequence[Row]


class Screen:
    """Shows nothing. Its subclasses show something."""

    def news(self, text: str) -> None:
        """Something happened."""

    def show(self, view: View) -> None:
        """The figures as they are now."""

    def say(self, text: str) -> None:
        """Something to read when all is over."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the show."""


def make_screen(*, silent: bool) -> Screen:
    """The best screen for this output."""
    if silent:
        return Screen()
    return LiveScreen() if sys.stdout.isatty() and find_spec("rich") else PlainScreen()


class PlainScreen(Screen):
    """Lines: news as they come, figures every two seconds."""

    def __init__(self) -> None:
        self._shown = 0.0

    def news(self, text: str) -> None:
        """Print a line."""
        print(text, flush=True)

    def show(self, view: View) -> None:
        """Print a line, if the last one is old enough."""
        if view.elapsed < self._shown + _BETWEEN_PLAIN_LINES:
            return
        self._shown = view.elapsed
        servers = ", ".join(
            f"{row.server} {row.calls}" + ("" if row.state == "in use" else f" ({row.state})") for row in view.rows
        )
        print(f"{view.elapsed:5.1f} s  {totals(view)}. By server: {servers}", flush=True)

    def say(self, text: str) -> None:
        """Print it."""
        print(text, flush=True)


class LiveScreen(Screen):
    """A table that is drawn anew in place, with the latest news below it. Needs rich."""

    def __init__(self) -> None:
        from rich.live import Live

        self._live = Live(auto_refresh=False)
        self._news: deque[str] = deque(maxlen=_NEWS_SHOWN)
        self._view = View(0.0, 0.0, 0, 0, 0, ())

    def news(self, text: str) -> None:
        """Add a line below the table."""
        self._news.append(text)
        self._draw()

    def show(self, view: View) -> None:
        """Draw the table."""
        self._view = view
        self._draw()

    def say(self, text: str) -> None:
        """Print it below."""
        print(text, flush=True)

    def _draw(self) -> None:
        self._live.update(_picture(self._view, self._news), refresh=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


def _picture(view: View, news: Sequence[str] | deque[str]) -> Group:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    title = f"clientlb demo  {view.elapsed:4.1f} of {view.seconds:g} s   {totals(view)}"
    table = Table(title=title, title_justify="left", title_style="bold", expand=False)
    for heading in ("service", "server", "endpoint", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("in flight", "calls", "failures", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in view.rows:
        state = Text(row.state, style=_COLOURS.get(row.state, ""))
        numbers = (row.in_flight, row.calls, row.failures, milliseconds(row.median), milliseconds(row.p99))
        style = "dim" if row.state == "left" else ""
        table.add_row(row.service, row.server, row.endpoint, state, *map(str, numbers), style=style)
    lines = [Text(line, style="bold cyan" if ">>>" in line else "", no_wrap=True, overflow="ellipsis") for line in news]
    return Group(table, *lines)


def totals(view: View) -> str:
    """What the caller sees, in words."""
    return f"{view.calls} calls, {view.failed} failed, {view.retries} retries"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds, for a table."""
    return "" if seconds is None else f"{seconds * 1000:.1f}"
