"""Replays: the same calls at the same times, the recorded answers, and no other difference than the policy."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from functools import partial

import pytest

from clientlb import (
    Balancer,
    Cause,
    ConfigurationError,
    Endpoint,
    HealthOptions,
    JournalOptions,
    Options,
    Outcome,
    OutlierOptions,
    RatioOptions,
)
from clientlb.journal import Entry, Listed, Recording
from clientlb.policy import Filter, Rendezvous
from clientlb.replay import recorded, replay
from clientlb.simulation.loop import Loop

THREE = [Endpoint("10.0.0.1", 80), Endpoint("10.0.0.2", 80), Endpoint("10.0.0.3", 80)]
SLOW = "10.0.0.3:80"
Serve = Callable[[str, float], tuple[float, Outcome, str, Cause]]


def slow_third(endpoint: str, now: float) -> tuple[float, Outcome, str, Cause]:
    seconds = random.Random(f"{endpoint} {now}").expovariate(100.0)
    return seconds * (8 if endpoint == SLOW else 1), Outcome.SUCCESS, "200", Cause.APPLICATION


def record(
    serve: Serve = slow_third, policy: object = "round_robin", calls: int = 2000, every: float = 0.005, **how: object
) -> Recording:
    """Let calls be made and answered in virtual time, by hand: nothing is repeated."""
    loop = Loop()
    options = Options(policy=policy, journal=JournalOptions(picks=calls))  # type: ignore[arg-type]
    balancer = Balancer("orders", options, clock=loop.clock, rng=random.Random(1))
    balancer.update(THREE)

    def begin(_: object) -> None:
        pick = balancer.pick(**how)  # type: ignore[arg-type]
        seconds, outcome, reason, cause = serve(pick.endpoint.address, loop.now)
        loop.after(seconds, lambda _: pick.release(outcome, reason, None, cause))

    for number in range(calls):
        loop.at(number * every, begin)
    loop.run(calls * every + 60)
    assert balancer.journal is not None
    return balancer.journal.recording()


@pytest.fixture(scope="module")
def journal() -> Recording:
    return record()


def test_what_was_recorded_is_counted(journal: Recording) -> None:
    result = recorded(journal)
    assert (result.policy, result.calls, result.lost, result.cancelled) == ("round_robin", 2000, 0, 0)
    assert len(result.latencies) == 2000
    assert result.share(SLOW) == pytest.approx(1 / 3, abs=0.001)
    assert result.quantile(0.5) == sorted(entry.latency or 0.0 for entry in journal.entries)[999]


def test_the_same_policy_gives_what_was_recorded(journal: Recording) -> None:
    before, again = recorded(journal), replay(journal, Options(policy="round_robin"))
    assert again.calls == before.calls
    assert again.attempts == pytest.approx(before.attempts, abs=1)
    for share, tolerance in ((0.5, 0.1), (0.9, 0.15), (0.99, 0.25)):
        assert again.quantile(share) == pytest.approx(before.quantile(share), rel=tolerance)


def test_a_better_policy_steers_around_the_slow_server(journal: Recording) -> None:
    before, again = recorded(journal), replay(journal, Options())
    assert again.share(SLOW) < 0.1
    assert (again.quantile(0.99) or 1.0) < 0.5 * (before.quantile(0.99) or 0.0)
    assert (again.calls, again.lost, again.ejections) == (2000, 0, 0)


def test_one_seed_is_one_result(journal: Recording) -> None:
    first = replay(journal, Options(), seed=5)
    assert replay(journal, Options(), seed=5) == first
    assert replay(journal, Options(), seed=6) != first


def failing_for_a_while(endpoint: str, now: float) -> tuple[float, Outcome, str, Cause]:
    if endpoint == SLOW and 3.0 <= now < 6.0:
        return 0.001, Outcome.RETRYABLE, "ConnectError", Cause.CONNECT
    return 0.01, Outcome.SUCCESS, "200", Cause.APPLICATION


def test_failures_are_replayed_when_they_were_and_calls_are_repeated() -> None:
    journal = record(failing_for_a_while)
    before, again = recorded(journal), replay(journal, Options(policy="round_robin"))
    assert before.lost > 0
    assert again.lost == 0, "a connection that nobody took is tried elsewhere"
    assert again.ejections
    assert sum(again.attempts.values()) > again.calls
    never = HealthOptions(
        consecutive_failures=10**6,
        connect_failures=10**6,
        ratio=RatioOptions(enabled=False),
        outlier=OutlierOptions(enabled=False),
    )
    without = Options(policy="round_robin", health=never)
    assert sum(replay(journal, without).attempts.values()) > sum(again.attempts.values())


def test_a_server_that_joins_gets_calls_from_then_on(journal: Recording) -> None:
    moment = journal.entries[1000].at
    fourth = Endpoint("10.0.0.4", 80)
    lists = (*journal.lists, Listed(moment, (*THREE, fourth)))
    again = replay(dataclasses.replace(journal, lists=lists), Options(policy="round_robin"))
    assert again.share(fourth.address) == pytest.approx(1 / 8, abs=0.01), "a quarter of one half"


def test_a_server_that_leaves_gets_none_from_then_on(journal: Recording) -> None:
    lists = (*journal.lists, Listed(journal.entries[1000].at, (THREE[0],)))
    again = replay(dataclasses.replace(journal, lists=lists), Options(policy="round_robin"))
    assert again.share(THREE[0].address) == pytest.approx(1 / 6 + 1 / 2, abs=0.01)


def test_processes_have_a_balancer_each_and_share_the_answers(journal: Recording) -> None:
    other = dataclasses.replace(journal, client="other")
    again = replay([journal, other], Options())
    assert again.calls == 4000
    assert again.share(SLOW) < 0.1


def entry(number: int, at: float, outcome: str | None, latency: float | None = 0.01, **fields: object) -> Entry:
    plain = Entry.from_json(
        {
            "number": number,
            "call": number,
            "at": at,
            "endpoint": THREE[0].address,
            "id": "x",
            "available": 1,
            "compared": 1,
            "candidates": [],
        }
    )
    return dataclasses.replace(plain, outcome=outcome, latency=latency, held=latency, **fields)  # type: ignore[arg-type]


def recording(*entries: Entry) -> Recording:
    return Recording("orders", "1-x", "p2c", (Listed(0.0, (THREE[0],)),), entries)


def test_attempts_of_one_call_are_one_call() -> None:
    journal = recording(
        entry(1, 10.0, "retryable", reason="503"),
        entry(2, 10.5, "success", call=1, attempt=2),
        entry(3, 11.0, "failure"),
        entry(4, 12.0, "success", call=0, attempt=2),  # its beginning is no longer in the journal
    )
    result = recorded(journal)
    assert (result.calls, result.lost, result.latencies) == (2, 1, (pytest.approx(0.51),))
    assert replay(journal, Options()).calls == 2


def test_who_gave_up_is_neither_served_nor_lost() -> None:
    journal = recording(entry(1, 10.0, "ignored"), entry(2, 11.0, None, None))
    assert (recorded(journal).cancelled, recorded(journal).lost) == (2, 0)
    again = replay(dataclasses.replace(journal, entries=journal.entries[:1]), Options())
    assert (again.cancelled, again.lost, again.latencies) == (1, 0, ())
    assert again.quantile(0.5) is None


def test_an_attempt_that_lost_against_a_hedge_says_nothing() -> None:
    journal = recording(
        entry(1, 10.0, "ignored", 0.2),
        entry(2, 10.1, "success", call=1, attempt=2),
        *(entry(number, 10.0 + number, "success") for number in range(3, 20)),
    )
    assert recorded(journal).latencies[-1] == pytest.approx(0.11)
    assert replay(journal, Options()).cancelled == 0


def test_the_body_keeps_a_call_in_flight() -> None:
    """A server that answers at once and streams for long is busy: least request sees it."""
    entries = []
    for number in range(1, 1001):
        endpoint = THREE[number % 2].address
        held = 0.5 if number % 2 else 0.01
        one = entry(number, 10.0 + number * 0.01, "success", endpoint=endpoint)
        entries.append(dataclasses.replace(one, held=held))
    journal = dataclasses.replace(recording(*entries), lists=(Listed(0.0, tuple(THREE[:2])),))
    again = replay(journal, Options(policy="least_request"))
    assert again.share(THREE[1].address) < 0.1


def test_filters_are_asked_for_again_and_keys_go_anywhere() -> None:
    journal = record(policy=partial(Filter, Rendezvous), calls=200, key="k", where={"id": "10.0.0.2:80"})
    again = replay(journal, Options(policy="p2c"))
    assert again.share("10.0.0.2:80") == 1.0
    assert again.policy == "p2c"


def test_what_cannot_be_replayed_is_refused(journal: Recording) -> None:
    with pytest.raises(ConfigurationError, match="no pick in the journal"):
        replay(recording(), Options())
    with pytest.raises(ConfigurationError, match="the journal is of orders, payments; choose one"):
        replay([journal, dataclasses.replace(journal, service="payments")], Options())
    assert recorded([]).share(SLOW) == 0.0
