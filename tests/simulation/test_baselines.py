"""The published policies of the benchmark do what their papers say."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from clientlb import Endpoint
from clientlb.node import Node
from clientlb.simulation import SCENARIOS, Seat, Setting, World, simulate

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = replace(SCENARIOS["harsh"].points["100x100"], clients=3, servers=8, load=0.7, warm_up=3.0, measured=4.0)


@pytest.fixture(scope="module")
def baselines():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import baselines
        import baselines.pool

        yield baselines
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def seat():
    return Seat(World(Setting(clients=1, servers=100)))


def nodes(count):
    return tuple(Node(Endpoint(f"host-{number}", number + 1, id=f"s{number}")) for number in range(count))


def test_every_baseline_places_calls_better_than_chance_and_the_oracle_best(baselines):
    chance = simulate(SMALL, seated=lambda seat: _Random()).quantile(0.99)
    p99 = {name: simulate(SMALL, seated=seated).quantile(0.99) for name, seated in baselines.BASELINES.items()}
    assert max(p99.values()) < chance
    assert min(p99, key=p99.get) == "oracle"


def test_least_loaded_breaks_ties_in_cyclic_order(baselines, seat):
    policy = baselines.BASELINES["ll"](seat)
    three = nodes(3)
    assert [policy.choose(three, 0.0, random.Random(1)) for _ in range(4)] == [*three, three[0]]
    three[1].in_flight = 1
    assert [policy.choose(three, 0.0, random.Random(1)) for _ in range(2)] == [three[2], three[0]]


def test_reuse_of_probes_is_the_papers(baselines, seat):
    # m = 16, n = 100, three probes and one removal per call, delta = 1: (1 + 1) / ((1 - 0.16) * 3 - 1)
    assert baselines.pool.Linear(seat)._reuse == pytest.approx(2 / 1.52)
    assert baselines.pool.Linear(seat, probes=0.5, removed=0.25)._reuse == pytest.approx(2 / 0.17)
    assert baselines.pool.Linear(seat, probes=1.0)._reuse == float("inf")  # nothing can keep that pool full


def test_a_probe_per_call_more_or_less(baselines):
    for rate in (3.0, 0.5):
        result = simulate(SMALL, seated=lambda seat, rate=rate: baselines.pool.prequal(seat, probes=rate))
        assert result.probes_per_call == pytest.approx(rate, rel=0.02)


class _Random:
    def choose(self, nodes, now, rng):
        return rng.choice(nodes)
