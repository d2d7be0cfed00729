"""The histogram against exact quantiles."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clientlb import histogram


@given(st.floats(0, 130))
def test_a_latency_lies_in_its_bucket(seconds):
    index = histogram.bucket(seconds)
    assert seconds <= histogram.upper_bound(index) * (1 + 1e-9)
    assert index == 0 or seconds >= histogram.upper_bound(index - 1) * (1 - 1e-9)


@pytest.mark.parametrize("seconds", [-1.0, 1e3, 1e9])
def test_what_is_out_of_range_lands_at_the_edge(seconds):
    assert histogram.bucket(seconds) == (0 if seconds < 0 else histogram.BUCKETS - 1)


def test_quantiles_are_within_five_percent():
    rng = random.Random(1)
    latencies = [rng.lognormvariate(-5, 1) for _ in range(20_000)]
    counts = histogram.new_counts()
    for latency in latencies:
        counts[histogram.bucket(latency)] += 1
    latencies.sort()
    for fraction, found in zip((0.5, 0.9, 0.99), histogram.quantiles(counts, (0.5, 0.9, 0.99)), strict=True):
        assert found == pytest.approx(latencies[int(fraction * len(latencies))], rel=0.05)
    (longest,) = histogram.quantiles(counts, (1.0,))
    assert longest == pytest.approx(latencies[-1], rel=0.05)
    assert histogram.total_seconds(counts) == pytest.approx(sum(latencies), rel=0.02)


def test_nothing_counted_has_no_quantiles():
    assert histogram.quantiles((), (0.5, 0.99)) == [None, None]
    assert histogram.quantiles(histogram.new_counts(), (0.5,)) == [None]
