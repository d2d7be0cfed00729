"""Slow start: by the server's own clock, none when a client starts, never at the cost of few old servers."""

import random
import time
from functools import partial
from math import inf

import pytest

from clientlb import ConfigurationError, Endpoint, Options, Outcome
from clientlb.balancer import Balancer
from clientlb.policy import LeastTime, SlowStart, Subset
from clientlb.testing import FakeClock
from tests.core.policies import nodes


def endpoints(*names, **fields):
    return [Endpoint(name, 80, **fields) for name in names]


def weights(balancer):
    return {node.endpoint.host: pytest.approx(1.0 / node.inverse_weight) for node in balancer.nodes}


class World:
    def __init__(self, policy="least_time"):
        self.clock = FakeClock()
        self.balancer = Balancer("orders", Options(policy=policy), clock=self.clock, rng=random.Random(1))

    def after(self, seconds):
        self.clock.advance(seconds)
        self.balancer.try_pick().release()
        return {node.endpoint.host: 1.0 / node.inverse_weight for node in self.balancer.nodes}


TEN = endpoints(*"abcdefghij")


@pytest.mark.parametrize("policy", ["least_time", partial(SlowStart, "p2c"), partial(Subset, "least_time", size=50)])
def test_a_later_joiner_grows_from_when_it_was_first_seen_and_the_first_list_is_old(policy):
    world = World(policy)
    world.balancer.update(TEN)
    assert set(world.after(0.0).values()) == {1.0}
    world.clock.advance(100.0)
    world.balancer.update([*TEN, *endpoints("new")])
    for seconds, factor in ((0.0, 0.1), (0.5, 0.1), (4.5, 0.5), (4.0, 0.9), (1.1, 1.0)):
        found = world.after(seconds)
        assert found.pop("new") == pytest.approx(factor)
        assert set(found.values()) == {1.0}
    assert world.balancer._roster._tend_due == inf  # nobody looks any more


def test_what_the_registry_says_of_the_start_counts_from_the_first_list_on():
    world = World()
    now = time.time()
    young, old, early = (
        Endpoint("young", 80, started_at=now),
        Endpoint("old", 80, started_at=now - 3600),
        Endpoint("early", 80, started_at=now + 3600),  # its clock is wrong
    )
    world.balancer.update([*TEN, young, old, early])
    found = world.after(0.0)
    assert (found["young"], found["old"], found["early"]) == (pytest.approx(0.1), 1.0, pytest.approx(0.1))
    world.balancer.update([*TEN, old])
    world.balancer.update([*TEN, old, *endpoints("later", started_at=now - 3600)])
    assert world.after(0.0)["later"] == 1.0  # this client sees it for the first time, but it has long been there


def test_a_server_that_restarted_under_its_name_is_young_again():
    world = World()
    world.balancer.update([*TEN, *endpoints("x", started_at=time.time() - 3600)])
    assert world.after(0.0)["x"] == 1.0
    world.balancer.update([*TEN, *endpoints("x", started_at=time.time())])
    assert world.after(0.0)["x"] == pytest.approx(0.1)


def test_a_description_that_changes_leaves_the_age_and_takes_the_weight():
    world = World()
    world.balancer.update(TEN)
    world.balancer.update([*TEN, *endpoints("new")])
    assert world.after(5.0)["new"] == pytest.approx(0.5)
    world.balancer.update([*TEN, *endpoints("new", weight=4.0)])
    assert world.after(0.0)["new"] == pytest.approx(2.0)
    assert world.after(6.0)["new"] == pytest.approx(4.0)


def test_few_old_servers_get_at_most_1_4_times_their_share():
    world = World()
    world.balancer.update(TEN)
    world.balancer.update([*TEN[:2], *endpoints(*(f"new{number}" for number in range(8)))])
    for held in range(200):  # until the guard lets those go who left
        world.clock.advance(1.0 * (held > 0))
        found = world.after(0.0)
        assert 1.0 / (sum(found.values()) / len(found)) < 1.401


def test_the_score_moves_with_the_weight_and_the_latency_does_not():
    policy = LeastTime()
    among = nodes(10)
    for node in among[:2]:
        for _ in range(3):
            policy.observe(node, 0.1, True, 0.0)
    among[0].started = 0.0
    assert policy.tend(among, 5.0) == pytest.approx(5.2)
    assert among[0].score == pytest.approx(2 * among[1].score)
    assert policy.latency(among[0]) == pytest.approx(0.1)
    assert "50% of its weight" in policy.describe(among[0], among, 5.0)
    assert policy.describe(among[1], among, 5.0) is None
    copy = among[0].detached(0.0)
    assert copy.score == pytest.approx(among[1].score)
    assert copy.started == 0.0
    policy.tend(among, 10.0)
    assert among[0].score == pytest.approx(among[1].score)


def test_a_young_server_gets_fewer_calls():
    world = World(partial(SlowStart, "p2c", window=100.0))
    world.balancer.update(TEN)
    world.balancer.update([*TEN, *endpoints("new")])
    world.after(0.0)
    running = [world.balancer.try_pick() for _ in range(505)]
    calls = sum(pick.endpoint.host == "new" for pick in running)
    for pick in running:
        pick.release(Outcome.SUCCESS)
    assert 3 <= calls <= 8  # a tenth of what the others have: 50
    assert "starts" not in world.balancer.explain()
    assert "has just started and has 10% of its weight" in world.balancer.explain()


def test_without_a_window_nobody_is_young():
    world = World(partial(LeastTime, slow_start=0.0))
    world.balancer.update(TEN)
    world.balancer.update([*TEN, *endpoints("new", started_at=time.time())])
    assert set(world.after(0.0).values()) == {1.0}
    assert world.balancer._roster._tend_due == inf


def test_aggression_bends_the_curve():
    for aggression, half in ((1.0, 0.5), (2.0, 0.5**0.5), (0.5, 0.25)):
        world = World(partial(SlowStart, "p2c", window=10.0, aggression=aggression))
        world.balancer.update(TEN)
        world.balancer.update([*TEN, *endpoints("new")])
        assert world.after(5.0)["new"] == pytest.approx(half)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: LeastTime(slow_start=-1.0), "window is -1.0"),
        (lambda: SlowStart("p2c", window=inf), "window is inf"),
        (lambda: SlowStart("p2c", aggression=0.0), "aggression is 0.0"),
    ],
)
def test_settings_that_cannot_be_right_are_named(make, named):
    with pytest.raises(ConfigurationError, match=named):
        make()
