"""The counters of all endpoints: columns that come and go, windows, counters that outgrow their size."""

import pytest

from clientlb import histogram
from clientlb.figures import Figures, Snapshot
from clientlb.histogram import BUCKETS


def count(figures: Figures, column: int, bucket: int, times: int = 1) -> None:
    """Count as the balancer does."""
    for _ in range(times):
        try:
            figures.rows[bucket][column] += 1
        except (IndexError, OverflowError):
            figures.count_with_care(bucket, column)


def counted(snapshot: Snapshot, column: int) -> dict[int, int]:
    counts, _ = snapshot.of([column])
    return {bucket: number for bucket, number in enumerate(counts) if number}


def test_each_column_counts_for_itself():
    figures = Figures(0.0)
    one, two = figures.new_column(), figures.new_column()
    count(figures, two, 7, 3)
    count(figures, one, 7)
    late = figures.new_column()  # after the row was made: it is too short for this one
    count(figures, late, 7, 5)
    now, _, _ = figures.snapshot(1.0)
    assert [counted(now, column) for column in (one, two, late)] == [{7: 1}, {7: 3}, {7: 5}]
    assert now.of([one, two, late])[0][7] == 9


@pytest.mark.parametrize("bucket", [BUCKETS, BUCKETS + 100])
def test_what_takes_too_long_is_counted_in_the_last_bucket(bucket):
    figures = Figures(0.0)
    column = figures.new_column()
    count(figures, column, bucket, 2)
    assert counted(figures.snapshot(1.0)[0], column) == {BUCKETS - 1: 2}


@pytest.mark.parametrize("endpoints", [2, 1000])
def test_counters_outgrow_four_bytes(endpoints):
    figures = Figures(0.0)
    first, *_, last = [figures.new_column() for _ in range(endpoints)]
    count(figures, last, 3)
    figures.rows[3][first] = 2**32 - 1
    count(figures, first, 3, 2)
    now, _, _ = figures.snapshot(1.0)
    assert [counted(now, column) for column in (first, last)] == [{3: 2**32 + 1}, {3: 1}]


@pytest.mark.parametrize("most", [7, 2**32 + 7])
def test_a_fleet_that_grows_keeps_its_counters(most):
    figures = Figures(0.0)
    early = figures.new_column()
    count(figures, early, 3)
    figures.rows[3][early] = most
    late = [figures.new_column() for _ in range(1000)][-1]
    count(figures, late, 3)  # the row is made anew, more compact
    count(figures, early, 3)
    now, _, _ = figures.snapshot(1.0)
    assert [counted(now, column) for column in (early, late)] == [{3: most + 1}, {3: 1}]


def test_a_freed_column_leaves_nothing_to_the_next_one():
    figures = Figures(0.0)
    gone, stays = figures.new_column(), figures.new_column()
    count(figures, gone, 5, 4)
    count(figures, stays, 5)
    figures.failures[gone] += 2
    figures.advance(10.0)
    read_before = figures.snapshot(10.0)
    counts, failures = figures.take_out([gone])
    assert (counts[5], sum(counts), failures) == (4, 4, 2)
    assert figures.new_column() == gone
    now, before, _ = figures.snapshot(11.0)
    assert [snapshot.of([gone]) for snapshot in (now, before)] == [(histogram.add([0] * BUCKETS, [0] * BUCKETS), 0)] * 2
    assert counted(now, stays) == {5: 1}
    assert counted(read_before[0], gone) == {5: 4}, "who reads a snapshot is not disturbed"


def test_windows_cover_one_to_two_lengths():
    figures = Figures(0.0)
    column = figures.new_column()

    def recent(now):
        figures.advance(now)
        after, before, seconds = figures.snapshot(now)
        return sum(after.of([column])[0]) - sum(before.of([column])[0]), seconds

    count(figures, column, 1, 3)
    assert recent(5.0) == (3, 5.0)
    count(figures, column, 1, 2)
    assert recent(12.0) == (5, 12.0), "the window before this one still counts"
    count(figures, column, 1)
    assert recent(23.0) == (1, 11.0), "only what was counted since 12.0"
    assert recent(100.0) == (0, 10.0), "a long silence voids both"
