"""What is said about a service, and how policies take part in it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from clientlb import Balancer, Endpoint, Options, Outcome
from clientlb.node import LoadReport, Node
from clientlb.policy import (
    Aperture,
    Filter,
    LeastTime,
    Locality,
    Policy,
    Prequal,
    Subset,
    WeightedRoundRobin,
)
from clientlb.testing import FakeClock


def balancer(policy: Any = "least_time", endpoints: Sequence[Endpoint] = ()) -> tuple[Balancer, FakeClock]:
    clock = FakeClock()
    made = Balancer("orders", Options(policy=policy), source="test://", clock=clock, rng=random.Random(1))
    made.update(endpoints or [Endpoint("10.0.0.1", 80), Endpoint("10.0.0.2", 80)])
    return made, clock


def call(asked: Balancer, clock: FakeClock, seconds: float = 0.004, outcome: Outcome | None = None) -> None:
    pick = asked.pick()
    clock.advance(seconds)
    pick.release(outcome, "" if outcome is None else "ConnectError")


def test_each_endpoint_is_described_with_weight_zone_version_load_and_figures() -> None:
    asked, clock = balancer(endpoints=[Endpoint("10.0.0.1", 80, weight=2, zone="a", version="1.2")])
    for _ in range(3):
        call(asked, clock)
    pick = asked.pick()
    assert asked.explain().splitlines() == [
        "service 'orders': 1 of 1 endpoints healthy; policy least_time; test://",
        "  10.0.0.1:80: may be picked (1 in flight; weight 2; reckoned with 4.0 ms; zone a; version 1.2;"
        " 3 calls, 0 failed)",
    ]
    pick.release()


def test_an_ejected_endpoint_says_since_when_why_and_until_when() -> None:
    asked, clock = balancer(endpoints=[Endpoint("10.0.0.1", 80)])
    for _ in range(5):
        call(asked, clock, outcome=Outcome.FAILURE)
    clock.advance(1.9)
    (told,) = asked.explanation().endpoints
    assert told.state == "open"
    assert told.verdict.startswith("ejected 1.9 s ago: 5 ")
    assert told.verdict.endswith("; next probe in 3.1 s")
    assert "(panic)" in asked.explain()
    clock.advance(4)
    probe = asked.pick()
    assert "a probe is under way" in asked.explain()
    probe.release()
    assert "may be picked" in asked.explain()


def test_an_explanation_is_json() -> None:
    asked, clock = balancer()
    call(asked, clock)
    told = json.loads(json.dumps(asked.explanation().as_json()))
    assert (told["service"], told["policy"], told["healthy"], told["remarks"]) == ("orders", "least_time", 2, [])
    assert told["endpoints"][0]["endpoint"] == {
        "host": "10.0.0.1",
        "port": 80,
        "id": "10.0.0.1:80",
        "weight": 1.0,
        "secure": False,
    }
    assert {each["calls"] for each in told["endpoints"]} == {0, 1}


@pytest.mark.parametrize("policy", [LeastTime, partial(Subset, LeastTime, size=5)])
def test_the_latency_is_the_one_that_the_policy_reckons_with(policy: Any) -> None:
    asked, clock = balancer(policy, [Endpoint("10.0.0.1", 80)])
    assert asked.explanation().endpoints[0].latency is None
    for _ in range(3):
        call(asked, clock, 0.02)
    assert asked.explanation().endpoints[0].latency == pytest.approx(0.02, rel=0.01)


FLEET = [Endpoint(f"10.0.0.{number}", 80, zone="ab"[number % 2]) for number in range(1, 7)]


def said(policy: Any) -> list[str | None]:
    asked, clock = balancer(policy, FLEET)
    call(asked, clock)
    return [each.policy for each in asked.explanation().endpoints]


def test_a_subset_says_who_is_in_it() -> None:
    told = said(partial(Subset, "p2c", size=2, client="me"))
    assert sorted(map(str, told)) == ["in this client's subset"] * 2 + ["not in this client's subset"] * 4


def test_a_subset_without_an_identity_says_nothing_before_the_first_choice() -> None:
    asked, clock = balancer(partial(Subset, "p2c", size=2), FLEET)
    assert {each.policy for each in asked.explanation().endpoints} == {None}
    call(asked, clock)
    assert [each.policy for each in asked.explanation().endpoints].count("in this client's subset") == 2


def test_an_aperture_says_who_is_at_its_edge() -> None:
    told = said(partial(Aperture, "p2c", index=1, count=4, size=2))
    assert "in this client's aperture" in told
    assert "not in this client's aperture" in told
    assert any(words and words.startswith("at the edge of this client's aperture, for ") for words in told)


def test_a_locality_says_what_its_zones_get() -> None:
    assert said(partial(Locality, "p2c", "a")) == ["its zone gets no calls", "its zone gets 100% of the calls"] * 3


def test_who_is_ejected_is_in_no_subset_and_out_of_none() -> None:
    asked, clock = balancer(partial(Subset, "p2c", size=2, client="me"), FLEET[:1])
    for _ in range(5):
        call(asked, clock, outcome=Outcome.FAILURE)
    assert asked.explanation().endpoints[0].policy is None


def test_wrappers_in_wrappers_all_have_their_say() -> None:
    inner = partial(Subset, partial(Filter, WeightedRoundRobin), size=9, client="me")
    asked, clock = balancer(partial(Locality, inner, "a"), FLEET)
    asked.nodes[1].report = LoadReport(100, 0.5, at=clock.now)
    call(asked, clock)
    assert asked.explanation().endpoints[1].policy == (
        "its zone gets 100% of the calls; in this client's subset; reported 100 calls/s at 50% utilization, 0.0 s ago"
    )
    assert asked.explanation().endpoints[0].policy == "its zone gets no calls"


def test_prequal_says_what_a_probe_found() -> None:
    class Asking:
        def ask(self, node: Node, answer: Any) -> None:
            answer(3, 0.012)

    assert "answered a probe 0.0 s ago with 3 in flight, 12.0 ms" in said(partial(Prequal, Asking()))


class Own(Policy):
    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        return nodes[0]

    def describe(self, node: Node, nodes: Sequence[Node], now: float) -> str | None:
        return "the first" if node is nodes[0] else None


class Broken(Own):
    def describe(self, node: Node, nodes: Sequence[Node], now: float) -> str | None:
        raise KeyError("oops")


def test_a_policy_of_ones_own_takes_part() -> None:
    asked, _ = balancer(Own)
    assert [each.policy for each in asked.explanation().endpoints] == ["the first", None]
    assert "policy Own" in asked.explain()


def test_a_policy_that_cannot_describe_breaks_nothing() -> None:
    asked, _ = balancer(Broken)
    assert "its policy cannot describe it: KeyError('oops')" in asked.explain()
