"""Keys and filters from the call to the policy, through the balancer."""

from functools import partial

import pytest

from clientlb import ConfigurationError, Endpoint, HealthOptions, NoEndpointsError, Options, Outcome
from clientlb.balancer import Balancer
from clientlb.policy import Filter, Request, WeightedRoundRobin


def fleet(count, **described):
    return [
        Endpoint(f"10.0.0.{number}", 80, metadata={"shard": str(number % 2), **described}) for number in range(count)
    ]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def balancer(policy, endpoints, clock=None, **health):
    made = Balancer("orders", Options(policy=policy, health=HealthOptions(**health)), clock=clock or Clock())
    made.update(endpoints)
    return made


def test_a_key_finds_the_same_endpoint_again():
    service = balancer("rendezvous", fleet(10))
    found = set()
    for _ in range(20):
        with service.pick(key="user-17") as pick:
            found.add(pick.endpoint)
    assert len(found) == 1
    assert all(node.in_flight == 0 for node in service.nodes)


def test_a_key_goes_elsewhere_while_its_endpoint_is_ejected_and_comes_back():
    clock = Clock()
    service = balancer("ring_hash", fleet(10), clock, consecutive_failures=1, open_for=5.0)
    home = service.pick(key="user-17")
    home.release(Outcome.FAILURE)
    with service.pick(key="user-17") as pick:
        assert pick.endpoint != home.endpoint
    clock.now = 20.0
    with service.pick(key="somebody else") as probe:
        assert probe.endpoint == home.endpoint
    with service.pick(key="user-17") as pick:
        assert pick.endpoint == home.endpoint


def test_a_filter_is_heeded_by_retries_and_probes_too():
    clock = Clock()
    service = balancer(partial(Filter, "p2c"), fleet(6), clock, consecutive_failures=1, open_for=5.0)
    odd = Request.of(where={"shard": "1"})
    tried = []
    for _ in range(3):
        pick = service.try_pick_for(odd, tried)
        assert pick.endpoint.metadata["shard"] == "1"
        assert pick.node not in tried
        tried.append(pick.node)
        pick.release()
    failing = service.pick(where={"shard": "1"})
    failing.release(Outcome.FAILURE)
    clock.now = 20.0
    with service.pick(where={"shard": "0"}) as pick:
        assert pick.endpoint.metadata["shard"] == "0", "a probe is due, but not of such an endpoint"
    with service.pick(where={"shard": "1"}) as pick:
        assert pick.node is failing.node


def test_an_endpoint_that_nobody_asks_for_is_in_nobody_elses_way():
    clock = Clock()
    service = balancer(partial(Filter, "p2c"), fleet(6), clock, consecutive_failures=1, open_for=5.0)
    failing = [service.pick(where={"shard": shard}) for shard in ("0", "1")]
    for pick in failing:
        pick.release(Outcome.FAILURE)
    clock.now = 20.0
    for _ in range(2):
        with service.pick(where={"shard": "1"}) as pick:
            pass
    assert service.stats().healthy == 5, "that of the other shard still waits for its probe"
    with service.pick(where={"shard": "0"}) as pick:
        assert pick.node is failing[0].node


def test_a_strict_filter_fails_and_leaves_nothing_in_flight():
    service = balancer(partial(Filter, "p2c", "fail"), fleet(4))
    with pytest.raises(NoEndpointsError, match="shard=7"):
        service.pick(where={"shard": "7"})
    assert all(node.in_flight == 0 for node in service.nodes)


def test_a_filter_is_refused_by_a_policy_without_one():
    with pytest.raises(ConfigurationError, match="wrap it in Filter"):
        balancer("least_time", fleet(2)).pick(where={"shard": "1"})


def test_news_of_metadata_and_weights_reach_a_policy_that_remembers():
    service = balancer(partial(Filter, WeightedRoundRobin, "fail"), fleet(2, version="1"))
    with service.pick(where={"version": "1"}):
        pass
    service.update(fleet(2, version="2"))
    with service.pick(where={"version": "2"}):
        pass
    with pytest.raises(NoEndpointsError):
        service.pick(where={"version": "1"})
