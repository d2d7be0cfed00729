"""The journal in memory: what was chosen among whom and why, for every policy, and that nothing is paid without one."""

from __future__ import annotations

import gc
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest

from clientlb import Balancer, ConfigurationError, Endpoint, HealthOptions, JournalOptions, Options, Outcome, Verdict
from clientlb.call import Attempt, call
from clientlb.journal import Entry
from clientlb.node import Node
from clientlb.policy import Filter, LeastTime, Policy, Prequal, Rendezvous, Subset
from clientlb.testing import FakeClock

FAILED = Verdict(Outcome.RETRYABLE, "503")


def fleet(count: int) -> list[Endpoint]:
    return [Endpoint(f"10.0.0.{number}", 80) for number in range(1, count + 1)]


class Bench:
    """A balancer with a journal, fed by hand."""

    def __init__(self, policy: str | Callable[[], Policy] = "p2c", endpoints: int = 3, **options: Any) -> None:
        self.clock = FakeClock()
        journal = JournalOptions(picks=options.pop("picks", 1000))
        self.balancer = Balancer(
            "orders", Options(policy=policy, journal=journal, **options), clock=self.clock, rng=random.Random(1)
        )
        self.balancer.update(fleet(endpoints))

    def call(self, outcome: Outcome | None = None, reason: str = "", seconds: float = 0.01, **how: Any) -> None:
        pick = self.balancer.pick(**how)
        self.clock.advance(seconds)
        pick.release(outcome, reason)

    def entries(self) -> tuple[Entry, ...]:
        assert self.balancer.journal is not None
        return self.balancer.journal.entries()

    @property
    def last(self) -> Entry:
        return self.entries()[-1]


def names(entry: Entry) -> set[str]:
    return {each.endpoint for each in entry.candidates}


def test_without_one_nothing_of_the_balancer_is_bound_anew() -> None:
    balancer = Balancer("orders")
    balancer.update(fleet(2))
    assert balancer.journal is None
    assert {"try_pick", "try_pick_for", "_pick_with_care", "report", "leave"}.isdisjoint(vars(balancer))
    assert {type(node) for node in balancer.nodes} == {Node}
    with balancer.pick() as pick:
        assert not hasattr(pick, "record")
    assert "pick:" not in balancer.explain()


def test_a_pick_says_what_it_was_chosen_among_and_how_it_went() -> None:
    bench = Bench()
    before = bench.balancer.pick()
    bench.clock.advance(0.5)
    bench.call()
    entry = bench.last
    assert (entry.number, entry.call, entry.attempt, entry.why) == (2, 2, 1, "policy")
    assert (entry.outcome, entry.latency, entry.held) == ("success", pytest.approx(0.01), pytest.approx(0.01))
    assert (entry.available, entry.compared) == (3, 2)
    for each in entry.candidates:
        assert each.in_flight == (each.endpoint == before.endpoint.address)
    first = bench.entries()[0]
    assert (first.outcome, first.latency, first.held) == (None, None, None)
    assert entry.at - first.at == pytest.approx(0.5, abs=1e-6)


def test_latency_is_to_the_head_and_held_to_the_end() -> None:
    bench = Bench()
    pick = bench.balancer.pick()
    bench.clock.advance(0.02)
    pick.observe(Outcome.SUCCESS, "200")
    assert (bench.last.outcome, bench.last.reason, bench.last.held) == ("success", "200", None)
    bench.clock.advance(0.5)
    pick.release()
    assert (bench.last.latency, bench.last.held) == (pytest.approx(0.02), pytest.approx(0.52))


def test_a_body_that_breaks_off_is_a_failure_after_all() -> None:
    bench = Bench()
    pick = bench.balancer.pick()
    pick.observe(Outcome.SUCCESS, "200")
    bench.clock.advance(1)
    pick.release(Outcome.FAILURE, "RemoteProtocolError")
    entry = bench.last
    assert (entry.outcome, entry.reason, entry.latency) == ("failure", "RemoteProtocolError", 0.0)


@pytest.mark.parametrize(
    ("policy", "looked_at"),
    [
        ("p2c", 2),
        ("least_request", 2),
        ("least_time", 4),
        ("round_robin", 1),
        ("random", 1),
        ("weighted_round_robin", 1),
        ("rendezvous", 1),
        ("ring_hash", 1),
    ],
)
def test_the_candidates_of_every_policy_are_those_it_looked_at(policy: str, looked_at: int) -> None:
    bench = Bench(policy, endpoints=12)
    if policy == "least_time":
        for node in bench.balancer.nodes:  # it looks further while it knows nobody
            LeastTime().observe(node, 0.01, False, 1000.0)
    for _ in range(30):
        bench.call()
    entries = bench.entries()[1:]  # the first one of weighted round robin looks for reports
    assert max(entry.compared for entry in entries) == looked_at  # pairs that are drawn may have a node in common
    assert all(entry.endpoint in names(entry) and entry.available == 12 for entry in entries)


def test_few_nodes_are_all_looked_at() -> None:
    bench = Bench("least_request", endpoints=5)
    bench.call()
    assert bench.last.compared == 5


def test_a_bound_looks_at_all() -> None:
    bench = Bench(partial(Rendezvous, bound=1.25), endpoints=40)
    picks = [bench.balancer.pick(key="hot") for _ in range(2)]
    assert bench.last.compared == 40, "a busy owner: how busy are the others?"
    assert len(bench.last.candidates) == 16, "what an entry names is bounded"
    assert bench.last.endpoint in names(bench.last)
    for pick in picks:
        pick.release()


def test_the_latency_that_a_policy_reckons_with_is_recorded() -> None:
    bench = Bench("least_time", endpoints=1)
    for _ in range(3):
        bench.call(seconds=0.02)
    assert bench.last.candidates[0].latency == pytest.approx(0.02, rel=0.01)
    assert "(0 in flight, 20.0 ms)" in str(bench.last)


def test_within_wrappers_too() -> None:
    bench = Bench(partial(Subset, partial(Filter, LeastTime), size=2, client="me"), endpoints=9)
    for _ in range(20):
        bench.call(seconds=0.02)
    assert bench.last.compared == 2
    assert all(each.latency for each in bench.last.candidates)


class Own(Policy):
    """A user's own policy: the one with the lowest score of two neighbours, which it keeps itself."""

    def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
        start = int(rng.random() * (len(nodes) - 1))
        return min(nodes[start : start + 2], key=lambda node: node.score)

    def observe(self, node: Node, seconds: float, success: bool, now: float) -> None:
        node.score = seconds


def test_a_policy_of_ones_own_need_not_know_of_it() -> None:
    bench = Bench(Own, endpoints=6)
    for _ in range(20):
        bench.call()
    assert {entry.compared for entry in bench.entries()} == {2}
    assert any(each.score == pytest.approx(0.01) for each in bench.last.candidates)


def test_prequal_looks_at_its_pool() -> None:
    class Asking:
        def ask(self, node: Node, answer: Any) -> None:
            answer(1, 0.01)

    bench = Bench(partial(Prequal, Asking()), endpoints=8)
    bench.call()
    assert names(bench.last) == {bench.last.endpoint}


def test_what_a_key_and_a_filter_ask_for() -> None:
    bench = Bench(partial(Filter, Rendezvous))
    bench.call(key="user-17", where={"version": "2"})
    assert (bench.last.keyed, bench.last.where) == (True, (("version", "2"),))
    assert "by the key of the call, version=2 being asked for" in str(bench.last)
    assert "user-17" not in repr(bench.last), "keys may be personal"


def test_attempts_of_a_call_belong_together() -> None:
    bench = Bench("round_robin")
    other = bench.balancer.pick()
    steps = call(bench.balancer, idempotent=True)
    first = next(steps)
    assert isinstance(first, Attempt)
    bench.clock.advance(0.01)
    steps.send(FAILED)
    second = next(steps)
    assert isinstance(second, Attempt)
    steps.send(Verdict(Outcome.SUCCESS, "200"))
    second.pick.release()
    other.release()
    a, b = bench.entries()[1:]
    assert [(a.number, a.call, a.attempt), (b.number, b.call, b.attempt)] == [(2, 2, 1), (3, 2, 2)]
    assert (a.outcome, a.reason, b.outcome) == ("retryable", "503", "success")
    assert b.excluded == (a.endpoint,)
    assert b.endpoint != a.endpoint
    assert f"attempt 2 of call 2 after {a.endpoint}: ok" in str(b)
    assert a.repeatable


def test_a_probe_and_panic_say_so() -> None:
    bench = Bench(endpoints=2, health=HealthOptions(consecutive_failures=1, open_for=5))
    bench.call(Outcome.FAILURE, "500")
    bench.call(Outcome.FAILURE, "500")
    bench.call(Outcome.IGNORED)
    assert bench.last.why == "panic"
    assert "none being healthy" in str(bench.last)
    bench.clock.advance(6)
    bench.call()
    assert bench.last.why == "probe"
    assert "to probe it: ok" in str(bench.last)
    bench.call()
    assert bench.last.why == "probe"
    assert {entry.endpoint for entry in bench.entries()[-2:]} == {"10.0.0.1:80", "10.0.0.2:80"}
    bench.call()
    assert bench.last.why == "policy"


def test_memory_is_bounded() -> None:
    bench = Bench(picks=10)
    for number in range(200):
        bench.balancer.update(fleet(2 + number % 2))
        bench.call()
    journal = bench.balancer.journal
    assert journal is not None
    assert [entry.number for entry in journal.entries()] == list(range(191, 201))
    assert len(journal.entries(3)) == 3
    assert journal.recorded == 200
    assert len(journal.recording().lists) <= 64


def test_lists_say_who_was_in_use() -> None:
    bench = Bench(endpoints=2)
    bench.call()
    bench.balancer.update(fleet(3))
    bench.call()
    bench.call()
    journal = bench.balancer.journal
    assert journal is not None
    recording = journal.recording()
    assert [len(listed.endpoints) for listed in recording.lists] == [2, 3]
    assert (recording.service, recording.policy, len(recording.entries)) == ("orders", "p2c", 3)


def test_what_the_garbage_collector_ends_in_the_middle_of_a_choice_is_not_looked_at() -> None:
    abandoned: list[Any] = []

    class Collecting(Own):
        def choose(self, nodes: Sequence[Node], now: float, rng: random.Random) -> Node:
            chosen = min(nodes[:2], key=lambda node: node.in_flight)
            if abandoned:
                abandoned.clear()
                gc.collect()
            return chosen

    bench = Bench(Collecting)
    steps = call(bench.balancer, idempotent=True)
    step = next(steps)
    assert isinstance(step, Attempt)
    other = bench.balancer.pick()
    loop: list[Any] = [steps]
    loop.append(loop)
    abandoned.append(loop)
    del steps, step, loop
    bench.call()
    assert [entry.outcome for entry in bench.entries()] == ["ignored", None, "success"]
    assert bench.last.compared == 2
    other.release()


def test_a_child_of_a_fork_records_its_own() -> None:
    bench = Bench()
    running = bench.balancer.pick()
    journal = bench.balancer.journal
    assert journal is not None
    parent = journal.client
    bench.balancer.after_fork()
    running.release()
    assert journal.client != parent
    assert journal.entries() == ()
    bench.call()
    assert (len(journal.entries()), bench.last.outcome, bench.last.compared) == (1, "success", 2)
    assert {type(node) for node in bench.balancer.nodes} != {Node}


def test_the_explanation_has_the_last_picks() -> None:
    bench = Bench("round_robin")
    for _ in range(3):
        bench.call()
    bench.clock.advance(0.5)
    told = bench.balancer.explanation(2)
    assert [pick.number for pick in told.picks] == [2, 3]
    assert told.ages == (pytest.approx(0.52), pytest.approx(0.51))
    lines = str(told).splitlines()
    assert lines[-3] == "  the last 2 picks:"
    assert lines[-1] == f"    0.510 s ago: {bench.last.endpoint} (0 in flight), one of 3: ok after 10.0 ms"
    assert told.as_json()["picks"][-1] == bench.last.as_json()
    assert len(bench.balancer.explanation().picks) == 3
    assert "picks:" not in bench.balancer.explain(0)


def test_an_entry_is_json() -> None:
    bench = Bench(partial(Filter, "least_time"))
    for _ in range(9):
        bench.call(where={"version": "2"})
    bench.call(Outcome.FAILURE, "500")
    running = bench.balancer.pick(key="k")
    for entry in bench.entries():
        again = Entry.from_json(entry.as_json())
        assert again.at == pytest.approx(entry.at)
        assert str(again) == str(entry)
        assert again.as_json() == entry.as_json()
    running.release()


@pytest.mark.parametrize(
    "damage",
    [
        {"endpoint": 7},
        {"number": None},
        {"candidates": 3},
        {"candidates": [[]]},
        {"candidates": [[1, 2]]},
        {"where": []},
        {"latency": "long"},
    ],
)
def test_what_is_no_entry_is_refused(damage: dict[str, Any]) -> None:
    bench = Bench()
    bench.call()
    with pytest.raises(ValueError, match=r"pick|candidate"):
        Entry.from_json(bench.last.as_json() | damage)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"picks": 0}, "journal.picks is 0; give a whole number, at least 1"),
        ({"max_bytes": 1000}, "journal.max_bytes is 1000; give a whole number, at least 1048576"),
        ({"path": ""}, "journal.path is ''; give the path of a file"),
        ({"path": 7}, "journal.path is 7; give the path of a file"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        JournalOptions(**options)


def test_a_journal_has_to_be_journal_options() -> None:
    with pytest.raises(ConfigurationError, match="journal is True; give JournalOptions"):
        Options(journal=True)  # type: ignore[arg-type]


def test_many_threads_record_every_pick_once() -> None:
    bench = Bench("least_time", endpoints=5, picks=500)
    balancer, threads, each = bench.balancer, 8, 400
    served: Counter[str] = Counter()
    lock = threading.Lock()

    def work() -> None:
        mine: Counter[str] = Counter()
        for number in range(each):
            pick = balancer.pick()
            mine[pick.endpoint.address] += 1
            pick.release(Outcome.FAILURE if number % 50 == 0 else None, "500")
            if number % 100 == 0:
                balancer.explain()
                balancer.stats()
        with lock:
            served.update(mine)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    journal = balancer.journal
    assert journal is not None
    entries = journal.entries()
    assert journal.recorded == served.total() == threads * each
    assert [entry.number for entry in entries] == list(range(threads * each - 499, threads * each + 1))
    assert all(entry.held is not None and entry.endpoint in names(entry) for entry in entries)
    assert all(entry.compared <= entry.available for entry in entries)
