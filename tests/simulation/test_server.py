"""The modelled server does what processor sharing means, to the last digit that floating point allows."""

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clientlb import Cause, Endpoint, Outcome
from clientlb.simulation import Condition, Server
from clientlb.simulation.loop import Loop


class Query:
    """A query that notes when it was answered, and how."""

    def __init__(self, loop):
        self.ends_at = inf
        self.arrived_at = 0.0
        self.found = 0
        self.loop = loop
        self.at = None
        self.verdict = None

    def answered(self, verdict):
        self.at = self.loop.now
        self.verdict = verdict


class Bench:
    """One server, and queries that arrive when the test says."""

    def __init__(self, capacity=1.0, **keywords):
        self.loop = Loop()
        self.server = Server(self.loop, Endpoint("s", 80), capacity, **keywords)

    def send(self, work, at=0.0):
        query = Query(self.loop)
        self.loop.at(at, lambda _: self.server.arrive(query, work))
        return query

    def at(self, moment, action):
        self.loop.at(moment, lambda _: action())

    def run(self, until=1000.0):
        self.loop.run(until)


def test_a_query_alone_has_one_core_at_most():
    bench = Bench(capacity=4.0)
    query = bench.send(2.0)
    bench.run()
    assert query.at == pytest.approx(2.0)
    assert query.verdict.outcome is Outcome.SUCCESS


def test_queries_share_a_core():
    bench = Bench()
    long, short = bench.send(2.0), bench.send(1.0, at=1.0)
    bench.run()
    # until 1 the long one is alone; then both have 1 to go at half speed
    assert long.at == pytest.approx(3.0)
    assert short.at == pytest.approx(3.0)


def test_a_short_query_overtakes():
    bench = Bench()
    long, short = bench.send(2.0), bench.send(0.25, at=1.0)
    bench.run()
    assert short.at == pytest.approx(1.5)
    assert long.at == pytest.approx(2.25)


def test_a_full_server_turns_queries_away_at_once():
    bench = Bench(limit=1)
    taken, turned_away, later = bench.send(1.0), bench.send(1.0, at=0.5), bench.send(1.0, at=1.5)
    bench.run()
    assert (taken.at, later.at) == (1.0, 2.5)
    assert turned_away.at == pytest.approx(0.501)
    assert (turned_away.verdict.outcome, turned_away.verdict.cause) == (Outcome.RETRYABLE, Cause.OVERLOAD)


def test_a_slow_server_does_less_per_second():
    bench = Bench(speed=0.5)
    query = bench.send(1.0)
    bench.run()
    assert query.at == pytest.approx(2.0)


def test_capacity_changes_under_the_queries():
    bench = Bench(capacity=2.0)
    queries = [bench.send(2.0), bench.send(2.0)]
    bench.at(1.0, lambda: setattr(bench.server, "capacity", 0.0))
    bench.at(5.0, lambda: setattr(bench.server, "capacity", 1.0))
    bench.run()
    assert [query.at for query in queries] == pytest.approx([7.0, 7.0])


def test_speed_changes_under_the_queries():
    bench = Bench()
    query = bench.send(2.0)
    bench.at(1.0, lambda: setattr(bench.server, "speed", 0.25))
    bench.run()
    assert query.at == pytest.approx(5.0)


def test_a_hobbled_server_pays_for_having_more_queries_than_cores():
    bench = Bench(hobble=0.5)
    alone = bench.send(1.0)
    crowd = [bench.send(1.0, at=10.0), bench.send(1.0, at=10.0)]
    bench.run()
    assert alone.at == pytest.approx(1.0)
    assert [query.at for query in crowd] == pytest.approx([14.0, 14.0])


def test_what_is_abandoned_makes_room():
    bench = Bench()
    stays, goes = bench.send(2.0), bench.send(2.0)
    bench.at(2.0, lambda: bench.server.abandon(goes))
    bench.run()
    assert stays.at == pytest.approx(3.0)
    assert goes.at is None
    assert bench.server.in_flight == 0


def test_a_server_that_does_not_cancel_works_for_nobody():
    bench = Bench(cancels=False)
    stays, goes = bench.send(2.0), bench.send(2.0)
    bench.at(2.0, lambda: bench.server.abandon(goes))
    bench.run()
    assert stays.at == goes.at == pytest.approx(4.0)


def test_least_work_holds_for_those_who_arrive_later():
    bench = Bench(capacity=inf)
    before, after = bench.send(1.0), bench.send(1.0, at=0.5)
    bench.at(0.25, lambda: setattr(bench.server, "least_work", 2.0))
    bench.run()
    assert before.at == pytest.approx(1.0)
    assert after.at == pytest.approx(2.5)


def test_a_failing_server_answers_at_once_with_an_error():
    bench = Bench()
    bench.server.condition = Condition.FAILING
    query = bench.send(1.0)
    bench.run()
    assert query.at == pytest.approx(0.001)
    assert query.verdict.outcome is Outcome.RETRYABLE
    assert query.verdict.sent


def test_a_stopped_server_breaks_what_it_has_and_refuses_what_comes():
    bench = Bench()
    broken, refused = bench.send(5.0), bench.send(1.0, at=3.0)
    bench.at(2.0, bench.server.stop)
    bench.run()
    assert (broken.at, broken.verdict.sent) == (2.0, True)
    assert (refused.at, refused.verdict.sent) == (3.0, False)
    assert bench.server.in_flight == 0


def test_a_black_hole_swallows_what_it_has_and_what_comes():
    bench = Bench()
    queries = [bench.send(5.0), bench.send(1.0, at=3.0)]
    bench.at(2.0, bench.server.fall_silent)
    bench.at(4.0, lambda: bench.server.abandon(queries[1]))
    bench.run()
    assert [query.at for query in queries] == [None, None]
    assert bench.server.in_flight == 0


def test_a_server_works_again_after_it_was_stopped():
    bench = Bench()
    bench.at(0.0, bench.server.stop)
    bench.at(1.0, lambda: setattr(bench.server, "condition", Condition.SERVING))
    query = bench.send(1.0, at=2.0)
    bench.run()
    assert query.at == pytest.approx(3.0)


def test_latency_estimate_is_that_of_queries_that_found_as_many():
    bench = Bench(capacity=inf)
    bench.server.remember_latencies()
    assert bench.server.latency_estimate() == 0.0
    for turn in range(8):  # alone: 1 s
        bench.send(1.0, at=10.0 * turn)
    for turn in range(10, 18):  # a second one, while another is there: 3 s
        bench.send(4.0, at=10.0 * turn)
        bench.send(3.0, at=10.0 * turn + 1.0)
    bench.run(until=300.0)
    assert bench.server.latency_estimate() == pytest.approx(4.0)  # the last eight who were alone
    bench.send(100.0, at=300.0)
    bench.run(until=301.0)
    assert bench.server.latency_estimate() == pytest.approx(3.0)


def shared_by_hand(capacity, speed, queries):
    """When each (arrival, work) is done, by stepping from one change to the next. Slow, and plain to see."""
    left = {number: work for number, (_, work) in enumerate(queries)}
    waiting = sorted(range(len(queries)), key=lambda number: queries[number][0])
    running, done, now = set(), {}, 0.0
    while waiting or running:
        rate = speed * min(1.0, capacity / len(running)) if running else 0.0
        arrival = queries[waiting[0]][0] if waiting else inf
        departure = now + min(left[number] for number in running) / rate if running else inf
        following = min(arrival, departure)
        for number in running:
            left[number] -= (following - now) * rate
        now = following
        if arrival <= departure:
            running.add(waiting.pop(0))
        for number in [number for number in running if left[number] <= 1e-9]:
            running.remove(number)
            done[number] = now
    return [done[number] for number in range(len(queries))]


@settings(max_examples=40)
@given(
    capacity=st.sampled_from([0.5, 1.0, 2.5, 6.4]),
    speed=st.sampled_from([0.5, 1.0]),
    queries=st.lists(st.tuples(st.floats(0.0, 10.0), st.floats(0.001, 5.0)), min_size=1, max_size=20),
)
def test_sharing_is_what_stepping_by_hand_gives(capacity, speed, queries):
    bench = Bench(capacity=capacity, speed=speed)
    sent = [bench.send(work, at=arrival) for arrival, work in queries]
    bench.run()
    assert [query.at for query in sent] == pytest.approx(shared_by_hand(capacity, speed, queries), abs=1e-6)
    assert bench.server.used == pytest.approx(sum(work for _, work in queries) / speed, abs=1e-6)
    assert bench.server.in_flight == 0
