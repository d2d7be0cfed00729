"""Attempts of all endpoints of a service by latency: one row of counters per bucket, one column per endpoint.

The latencies of a service lie in few buckets. So the rows that calls touch are few and dense and stay in the cache of
the processor. One histogram per endpoint does not: with 10 000 endpoints, that is a third of a pick spent on waiting.
Rows are as long as they had to be so far, and counters only grow: a window is the difference of two moments.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, MutableSequence, Sequence
from typing import TypeAlias

from clientlb import histogram

Rows: TypeAlias = "list[MutableSequence[int]]"

_FEW = 256
"""Endpoints up to which a row is a list. Counting in a list takes a third of the time, and in an array a quarter of the
memory, which counts when there are thousands."""


class Figures:
    """The counters of a balancer. Used under its lock; what `snapshot` returns is the caller's own.

    Attributes:
        rows: Attempts since the start: `rows[bucket][column]`. The list stays the same object.
        failures: Attempts that failed since the start, by column.
        began: When the current window began. previous_began: When the one before did.
        ends: When the current window ends.
    """

    WINDOW = 10.0

    __slots__ = ("_free", "_previous", "_saved", "_used", "began", "ends", "failures", "previous_began", "rows")

    def __init__(self, now: float) -> None:
        self.rows: Rows = [[] for _ in range(histogram.BUCKETS)]
        self.failures: array[int] = array("Q")
        self._free: list[int] = []
        self._saved = self._previous = self._copy()
        self.began: float = now
        self.previous_began: float = now
        self._used: list[int] = []
        self.ends: float = now + self.WINDOW

    def new_column(self) -> int:
        """A column of zeros for an endpoint."""
        if self._free:
            return self._free.pop()
        self.failures.append(0)
        return len(self.failures) - 1

    def count_with_care(self, index: int, column: int) -> None:
        """Count where the row is too short, where there is no such bucket, or where 4 bytes no longer suffice."""
        index = min(index, histogram.BUCKETS - 1)
        row = self.rows[index]
        if column >= len(row):
            if not row:
                self._used = [*self._used, index]
            columns = len(self.failures)
            if columns > _FEW and isinstance(row, list):
                row = self.rows[index] = _compact(row)
            row.extend([0] * (columns - len(row)))
        try:
            row[column] += 1
        except OverflowError:
            row = self.rows[index] = array("Q", row)
            row[column] += 1

    def advance(self, now: float) -> None:
        """Begin a new window if the current one has ended. After a silence of two windows the old ones are void."""
        if now < self.ends:
            return
        silent = now >= self.ends + self.WINDOW
        saved = self._copy()
        self._previous = saved if silent else self._saved
        self.previous_began = now - self.WINDOW if silent else self.began
        self._saved = saved
        self.began = now
        self.ends = now + self.WINDOW

    def take_out(self, columns: Sequence[int]) -> tuple[Sequence[int], int]:
        """Free the columns of endpoints that have left; returns their histogram and failures, added up."""
        gone = Snapshot(*self._copy()).of(columns)
        # snapshots that somebody reads now must not change: the copies are replaced
        kept = [Snapshot(list(map(_copied, rows)), failures[:]) for rows, failures in (self._previous, self._saved)]
        for rows, failures in ((self.rows, self.failures), *((each.rows, each.failures) for each in kept)):
            for row in (*rows, failures):
                for column in columns:
                    if column < len(row):
                        row[column] = 0
        self._previous, self._saved = ((each.rows, each.failures) for each in kept)
        self._free += columns
        return gone

    def snapshot(self, now: float) -> tuple[Snapshot, Snapshot, float]:
        """The counters now, those at the start of the window before this one, and the seconds between."""
        return Snapshot(*self._copy()), Snapshot(*self._previous), max(now - self.previous_began, 1e-3)

    @property
    def total(self) -> int:
        """Attempts at anybody since the start."""
        return sum(sum(self.rows[index]) for index in self._used)

    def attempts(self, column: int) -> int:
        """Attempts at one endpoint since the start."""
        return self._sum(self.rows, column)

    def history(self, column: int) -> tuple[tuple[float, int], ...]:
        """Moments up to 20 s ago, and how many attempts at one endpoint there had been."""
        earlier = (self.previous_began, self._sum(self._previous[0], column))
        return earlier, (self.began, self._sum(self._saved[0], column))

    def lately(self, column: int) -> tuple[int, int]:
        """Attempts at one endpoint in the window before the current one, and how many of them failed."""
        attempts = self._sum(self._saved[0], column) - self._sum(self._previous[0], column)
        return attempts, self.failures_lately(column)

    def failures_lately(self, column: int) -> int:
        """Attempts at one endpoint that failed in the window before the current one."""
        saved, previous = self._saved[1], self._previous[1]
        return _at(saved, column) - _at(previous, column)

    def latencies_lately(self, column: int) -> array[int]:
        """The same attempts by latency, as in `clientlb.histogram`."""
        return array(
            "Q",
            (_at(now, column) - _at(then, column) for now, then in zip(self._saved[0], self._previous[0], strict=True)),
        )

    def _sum(self, rows: Rows, column: int) -> int:
        total = 0
        for index in self._used:
            row = rows[index]
            if column < len(row):
                total += row[column]
        return total

    def _copy(self) -> tuple[Rows, array[int]]:
        return list(map(_copied, self.rows)), self.failures[:]


def _compact(row: list[int]) -> array[int]:
    try:
        return array("I", row)
    except OverflowError:
        return array("Q", row)


def _at(row: Sequence[int], column: int) -> int:
    return row[column] if column < len(row) else 0


def _copied(row: MutableSequence[int]) -> MutableSequence[int]:
    return row[:]


class Snapshot:
    """Counters at one moment."""

    __slots__ = ("_used", "failures", "rows")

    def __init__(self, rows: Rows, failures: array[int]) -> None:
        self.rows: Rows = rows
        self.failures: array[int] = failures
        self._used = [(index, row) for index, row in enumerate(rows) if row]

    def total(self) -> Sequence[int]:
        """The histogram of all endpoints together, those among them that have just left."""
        counts = array("Q", bytes(8 * histogram.BUCKETS))
        for index, row in self._used:
            counts[index] = sum(row)
        return counts

    def of(self, columns: Iterable[int]) -> tuple[Sequence[int], int]:
        """Histogram and failures of some endpoints together."""
        counts = array("Q", bytes(8 * histogram.BUCKETS))
        columns = tuple(columns)
        for index, row in self._used:
            size = len(row)
            counts[index] = sum(row[column] for column in columns if column < size)
        return counts, sum(self.failures[column] for column in columns if column < len(self.failures))
