"""Keys and filters from the call to the policy, through the balancer."""

import re
from functools import partial

import pytest
from tenacity import stop_after_attempt, wait_none

from clientlb import (
    BudgetOptions,
    Cause,
    ConfigurationError,
    Endpoint,
    HealthOptions,
    NoEndpointsError,
    Options,
    Outcome,
    RetryOptions,
    Verdict,
)
from clientlb.balancer import Balancer
from clientlb.call import call
from clientlb.policy import (
    Aperture,
    Filter,
    LeastRequest,
    LeastTime,
    Locality,
    Prequal,
    Rendezvous,
    Request,
    RingHash,
    SlowStart,
    Subset,
    WeightedRoundRobin,
)

FAILED = Verdict(Outcome.RETRYABLE, "503")
REFUSED = Verdict(Outcome.RETRYABLE, "ConnectError", sent=False, cause=Cause.CONNECT)


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


@pytest.mark.parametrize("fallback", ["any", {"shard": "0"}])
def test_when_nobody_matches_those_of_the_fallback_are_probed(fallback):
    clock = Clock()
    service = balancer(partial(Filter, "p2c", fallback), fleet(6), clock, consecutive_failures=1, open_for=5.0)
    failing = service.pick(where={"shard": "0"})
    other = service.pick(where={"shard": "1"})
    for pick in (failing, other):
        pick.release(Outcome.FAILURE)
    clock.now = 20.0
    probed = set()
    for _ in range(2):
        with service.pick(where={"shard": "9"}) as pick:
            probed.add(pick.node)
    assert probed >= {failing.node}
    assert (other.node in probed) == (fallback == "any")
    assert service.stats().healthy == (6 if fallback == "any" else 5)


class OwnFilter:
    """A user's policy that takes a filter for a wish."""

    def choose(self, nodes, now, rng):
        return nodes[0]

    def choose_for(self, request, nodes, now, rng):
        return next((node for node in nodes if request.matches(node.endpoint)), nodes[0])


def test_a_policy_that_does_not_say_whom_it_leaves_is_taken_to_prefer_those_that_match():
    clock = Clock()
    service = balancer(OwnFilter, fleet(4), clock, consecutive_failures=1, open_for=5.0)
    failing = service.pick(where={"shard": "0"})
    failing.release(Outcome.FAILURE)
    clock.now = 20.0
    with service.pick(where={"shard": "1"}) as pick:
        assert pick.node is not failing.node
    with service.pick(where={"shard": "9"}) as pick:
        assert pick.node is failing.node


def attempts_of(service, verdict, wanted, **retry):
    """Where a call goes whose attempts all end like that."""
    options = RetryOptions(wait=wait_none(), stop=stop_after_attempt(10), budget=BudgetOptions(reserve=100), **retry)
    steps = call(service, idempotent=True, request=Request.of(where=wanted), retry=options, whole=True)
    step, went = next(steps), []
    while step is not None:
        went.append(step.pick.node)
        step = steps.send(verdict)
    return went


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_strict_filter_tries_nobody_twice_if_that_is_not_wanted(wrapped):
    strict = partial(Filter, "p2c", "fail")
    service = balancer(partial(SlowStart, strict) if wrapped else strict, fleet(6))
    went = attempts_of(service, FAILED, {"shard": "1"}, reuse=False)
    assert len(went) == len(set(went)) == 3
    wish = balancer(partial(Filter, "p2c"), fleet(6))
    went = attempts_of(wish, FAILED, {"shard": "1"}, reuse=False)
    assert len(went) == len(set(went)) == 6
    assert {node.endpoint.metadata["shard"] for node in went[:3]} == {"1"}


def test_endpoints_that_do_not_match_are_no_reason_to_repeat_a_refused_call_at_once():
    service = balancer(partial(Filter, "p2c", "fail"), fleet(6), connect_failures=100)
    assert len(set(attempts_of(service, REFUSED, {"shard": "1"}, reuse=False))) == 3
    assert len(attempts_of(service, REFUSED, {"shard": "1"}, reuse=False)) == 3


def test_a_strict_filter_fails_and_leaves_nothing_in_flight():
    service = balancer(partial(Filter, "p2c", "fail"), fleet(4))
    with pytest.raises(NoEndpointsError, match="service 'orders': none of 4 endpoints has shard=7"):
        service.pick(where={"shard": "7"})
    assert all(node.in_flight == 0 for node in service.nodes)


def test_a_strict_filter_leaves_who_is_ejected_or_was_tried_rather_than_nobody():
    service = balancer(partial(Filter, "p2c", "fail"), fleet(4), consecutive_failures=1)
    wanted, asked = {"shard": "1"}, Request.of(where={"shard": "1"})
    first = service.try_pick_for(asked)
    second = service.try_pick_for(asked, [first.node])
    assert second.node is not first.node
    third = service.try_pick_for(asked, [first.node, second.node])
    assert third.node in (first.node, second.node), "a retry goes where the call has been, for there is nobody else"
    third.release()
    first.release(Outcome.FAILURE)
    second.release(Outcome.FAILURE)
    assert service.stats().healthy == 2
    with service.pick(where=wanted) as pick:
        assert pick.endpoint.metadata["shard"] == "1", "no open breaker fails a call"
    assert all(node.in_flight == 0 for node in service.nodes)


def test_a_filter_is_refused_by_a_policy_without_one():
    with pytest.raises(ConfigurationError, match="wrap it in Filter"):
        balancer("least_time", fleet(2)).pick(where={"shard": "1"})


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (partial(Subset, "p2c", size="20"), "Subset: size is '20'; give a whole number, at least 1"),
        (partial(Aperture, "p2c", 0, "3"), "Aperture: index 0 of '3' clients; count from 0 to count - 1"),
        (partial(Aperture, "p2c", 3, 3), "Aperture: index 3 of 3 clients; count from 0 to count - 1"),
        (partial(Locality, "p2c", None), "Locality: zone is None; give the name of the zone that this client is in"),
        (partial(Locality, "p2c", "a", overprovision="2"), "Locality: overprovision is '2'; give a number at least 1"),
        (partial(Locality, "p2c", "a", 3), "Locality: clients is 3; give numbers of clients by zone, the own zone 'a'"),
        (partial(Locality, "p2c", "a", {"b": 1}), "Locality: clients is {'b': 1}; give numbers of clients by zone"),
        (partial(Locality, "p2c", "a", {"a": 0}), "Locality: clients of the own zone 'a' is 0; give a number above 0"),
        (partial(Rendezvous, "1.25"), "Rendezvous: bound is '1.25'; give a number above 1"),
        (partial(RingHash, points=0.5), "RingHash: points is 0.5; give a whole number, at least 1"),
        (partial(LeastTime, decay="5"), "LeastTime: decay is '5'; give a number above 0"),
        (partial(LeastRequest, None), "LeastRequest: scan is None; give a whole number, at least 1"),
        (partial(WeightedRoundRobin, expiry="3"), "WeightedRoundRobin: expiry is '3'; give a number at least 0"),
        (partial(SlowStart, "p2c", "10"), "slow start: window is '10'; give a number at least 0"),
        (partial(Prequal, 3), "Prequal: probe is 3; give a Probe, such as clientlb.probing.HttpProbe()"),
        (partial(Filter, "p2c", 3), "Filter: fallback is 3; give"),
        (lambda: 3, "made 3; give a callable that makes a Policy"),
    ],
    ids=range(17),
)
def test_a_policy_that_cannot_be_made_is_refused_by_the_name_of_its_service(policy, text):
    with pytest.raises(ConfigurationError, match=re.escape(text)) as caught:
        Balancer("orders", Options(policy=policy))
    assert str(caught.value).startswith("service 'orders': ")


@pytest.mark.parametrize("asked", [{"key": 1.5}, {"where": 3}, {"where": {"shard": "1"}}], ids=repr)
def test_what_a_call_may_not_ask_is_refused_by_the_name_of_its_service(asked):
    with pytest.raises(ConfigurationError, match=r"^service 'orders': (the call has|the key|where)"):
        balancer("least_time", fleet(2)).pick(**asked)


def test_news_of_metadata_and_weights_reach_a_policy_that_remembers():
    service = balancer(partial(Filter, WeightedRoundRobin, "fail"), fleet(2, version="1"))
    with service.pick(where={"version": "1"}):
        pass
    service.update(fleet(2, version="2"))
    with service.pick(where={"version": "2"}):
        pass
    with pytest.raises(NoEndpointsError):
        service.pick(where={"version": "1"})
