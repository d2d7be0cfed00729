"""Where a call is tried again: away from what a failed endpoint shares with others, and perhaps nowhere twice."""

import random
from collections import Counter

import pytest
from tenacity import stop_after_attempt, wait_none

from clientlb import Balancer, ConfigurationError, Endpoint, HedgeOptions, Options, Outcome, RetryOptions, Verdict
from clientlb.call import LATE, Attempt, call
from clientlb.retry.policy import Refusal
from clientlb.testing import FakeClock

FAILED = Verdict(Outcome.RETRYABLE, "503")
ZONES = [Endpoint("h", port, zone="abc"[port % 3], metadata={"rack": f"r{port % 2}"}) for port in range(1, 7)]


def bench(endpoints=ZONES, seed=1, **retry):
    options = RetryOptions(**({"wait": wait_none(), "stop": stop_after_attempt(4)} | retry))
    balancer = Balancer("orders", Options(retry=options), clock=FakeClock(), rng=random.Random(seed))
    balancer.update(endpoints)
    return balancer


def attempts_of(balancer, answer=FAILED):
    """The attempts of a call that always fails."""
    steps, attempts = call(balancer, idempotent=True, whole=True), []
    step = next(steps)
    while step is not None:
        if isinstance(step, Attempt):
            attempts.append(step)
            step = steps.send(answer)
        else:
            step = next(steps)
    return attempts


def endpoints_of(attempts):
    return [attempt.pick.endpoint for attempt in attempts]


@pytest.mark.parametrize("seed", range(50))
def test_a_zone_in_which_a_call_failed_is_left(seed):
    first, second, third, fourth = endpoints_of(attempts_of(bench(seed=seed, avoid=("zone",))))
    assert len({first.zone, second.zone, third.zone}) == 3
    assert fourth not in (first, second, third), "all zones were tried: only the endpoints count"


@pytest.mark.parametrize("seed", range(20))
def test_so_is_what_the_metadata_says(seed):
    first, second, *_ = endpoints_of(attempts_of(bench(seed=seed, avoid=("rack",))))
    assert first.metadata["rack"] != second.metadata["rack"]


def test_without_that_it_may_stay_in_the_zone():
    stayed = Counter()
    for seed in range(100):
        first, second, *_ = endpoints_of(attempts_of(bench(seed=seed)))
        stayed[first.zone == second.zone] += 1
    assert stayed[True] > 5


def test_several_names_count_each_for_itself():
    for seed in range(20):
        first, second, *_ = endpoints_of(attempts_of(bench(seed=seed, avoid=("zone", "rack"))))
        assert first.zone != second.zone
        assert first.metadata["rack"] != second.metadata["rack"]


def test_a_host_with_several_servers_is_one_domain():
    endpoints = [Endpoint(host, port) for host in ("10.0.0.1", "10.0.0.2") for port in (1, 2, 3)]
    for seed in range(20):
        first, second, *_ = endpoints_of(attempts_of(bench(endpoints, seed=seed, avoid=("host",))))
        assert first.host != second.host


def test_endpoints_of_which_nothing_is_said_share_nothing():
    endpoints = [Endpoint("h", port) for port in range(1, 7)]
    for seed in range(20):
        tried = endpoints_of(attempts_of(bench(endpoints, seed=seed, avoid=("zone",))))
        assert len(set(tried)) == 4


def test_a_hedge_leaves_the_zone_as_well():
    for seed in range(20):
        balancer = bench(seed=seed, avoid=("zone",), hedge=HedgeOptions(delay=0.1))
        steps = call(balancer, idempotent=True)
        first = next(steps)
        second = steps.send(LATE)
        assert first.pick.endpoint.zone != second.pick.endpoint.zone
        steps.close()


def test_a_call_may_be_tried_at_every_endpoint_once_only():
    two = [Endpoint("h", 1), Endpoint("h", 2)]
    attempts = attempts_of(bench(two, reuse=False))
    assert len(attempts) == len(set(endpoints_of(attempts))) == 2
    assert attempts[-1].trace.refusal is Refusal.ALL_TRIED
    assert str(attempts[-1].trace).endswith("not retried: every endpoint was tried")
    assert len(attempts_of(bench(two))) == 4


@pytest.mark.parametrize(
    ("retry", "complaint"),
    [
        ({"avoid": "zone"}, "retry.avoid is 'zone'"),
        ({"avoid": (1,)}, "retry.avoid has 1"),
        ({"reuse": "no"}, "retry.reuse is 'no'; give True or False"),
        ({"hedge": 0.1}, "retry.hedge is 0.1; give HedgeOptions"),
    ],
)
def test_bad_options_are_refused(retry, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        RetryOptions(**retry)
