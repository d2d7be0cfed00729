"""Deadlines: the context variable, what a call makes of it, and the header that tells a server."""

import asyncio
import contextvars
import math
import random
import time

import pytest
from tenacity import wait_fixed

import clientlb
import clientlb.testing
from clientlb import (
    Balancer,
    CallOptions,
    ConfigurationError,
    DeadlineExceededError,
    Endpoint,
    Options,
    Outcome,
    RetryOptions,
    Verdict,
)
from clientlb.call import Wait, call, deadline_of
from clientlb.deadlines import inherit, read_header, shortest, write_header
from clientlb.outcome import SUCCEEDED
from clientlb.retry.policy import Refusal
from clientlb.testing import FakeClock

FAILED = Verdict(Outcome.RETRYABLE, "503")


class TestBlock:
    def test_it_counts_down(self):
        assert clientlb.time_remaining() is None
        with clientlb.deadline(10.0):
            left = clientlb.time_remaining()
            assert 9.0 < left <= 10.0
        assert clientlb.time_remaining() is None

    def test_the_earlier_one_counts(self):
        with clientlb.deadline(10.0):
            with clientlb.deadline(100.0):
                assert clientlb.time_remaining() <= 10.0
            with clientlb.deadline(1.0):
                assert clientlb.time_remaining() <= 1.0
            assert clientlb.time_remaining() > 1.0

    def test_infinity_sets_none_and_lifts_none(self):
        with clientlb.deadline(math.inf):
            assert clientlb.time_remaining() is None
        with clientlb.deadline(10.0), clientlb.deadline(math.inf):
            assert clientlb.time_remaining() <= 10.0

    def test_it_is_never_below_zero(self):
        with clientlb.deadline(0.0):
            assert clientlb.time_remaining() == 0.0

    def test_one_object_may_be_used_again_and_within_itself(self):
        block = clientlb.deadline(10.0)
        with block, block:
            assert clientlb.time_remaining() <= 10.0
        assert clientlb.time_remaining() is None

    def test_it_ends_with_an_exception_too(self):
        with pytest.raises(KeyError), clientlb.deadline(1.0):
            raise KeyError
        assert clientlb.time_remaining() is None

    async def test_tasks_and_threads_of_asyncio_inherit_it(self):
        async def ask():
            return clientlb.time_remaining()

        with clientlb.deadline(10.0):
            assert await asyncio.create_task(ask()) <= 10.0
            assert await asyncio.to_thread(clientlb.time_remaining) <= 10.0
        assert await asyncio.create_task(ask()) is None

    @pytest.mark.parametrize("seconds", [-1, math.nan, "1", None, True])
    def test_nonsense_is_refused(self, seconds):
        with pytest.raises(ConfigurationError, match="give seconds, at least 0"):
            clientlb.deadline(seconds)

    def test_a_server_inherits_it_for_good(self):
        def serve():
            inherit(5.0)
            return clientlb.time_remaining()

        assert 4.0 < contextvars.copy_context().run(serve) <= 5.0
        assert clientlb.time_remaining() is None


@pytest.mark.parametrize(
    ("own", "inherited", "least", "most"),
    [
        (None, None, None, None),
        (2.0, None, 2.0, 2.0),
        (None, 3.0, 2.9, 3.0),
        (2.0, 3.0, 2.0, 2.0),
        (4.0, 3.0, 2.9, 3.0),
    ],
)
def test_a_call_has_the_less_of_what_it_asks_for_and_what_it_inherits(own, inherited, least, most):
    with clientlb.deadline(math.inf if inherited is None else inherited):
        seconds = shortest(own)
    assert seconds is None if least is None else least <= seconds <= most


@pytest.mark.parametrize(
    ("name", "seconds", "text"),
    [
        ("x-timeout-ms", 1.2345, "1234"),
        ("X-Timeout-MS", 0.0004, "0"),
        ("x-timeout", 1.2345, "1.234"),
        ("x-timeout", -1.0, "0.000"),
    ],
)
def test_the_header_says_what_is_left_and_not_more(name, seconds, text):
    assert write_header(name, seconds) == text
    assert read_header(name, text) == pytest.approx(max(0.0, seconds), abs=0.0011)


@pytest.mark.parametrize("text", ["", "soon", "nan", "inf", "-1", "1e300", "1,5", "0x10"])
def test_a_header_that_makes_no_sense_is_no_deadline(text):
    assert read_header("x-timeout", text) is None


class Bench:
    def __init__(self, endpoints=3, **options):
        self.clock = FakeClock()
        self.balancer = Balancer(
            "orders",
            Options(retry=RetryOptions(wait=wait_fixed(0.1)), **options),
            clock=self.clock,
            rng=random.Random(1),
        )
        if endpoints:
            self.balancer.update([Endpoint("h", port) for port in range(1, endpoints + 1)])

    def call(self, **arguments):
        return call(self.balancer, **({"idempotent": True} | arguments))

    @property
    def in_flight(self):
        return sum(node.in_flight for node in self.balancer.nodes)


class TestCall:
    def test_without_limits_an_attempt_never_expires(self):
        assert next(Bench().call()).expires is None

    def test_every_attempt_has_what_is_left(self):
        bench = Bench()
        start = bench.clock()
        steps = bench.call(deadline=start + 1.0, attempt_timeout=0.4)
        assert next(steps).expires == pytest.approx(start + 0.4)
        bench.clock.advance(0.4)
        steps.send(FAILED)
        bench.clock.advance(0.1)
        assert next(steps).expires == pytest.approx(start + 0.9)
        bench.clock.advance(0.3)
        steps.send(FAILED)
        bench.clock.advance(0.1)
        assert next(steps).expires == pytest.approx(start + 1.0)
        steps.close()
        assert bench.in_flight == 0

    def test_it_is_not_sent_when_the_deadline_is_over(self):
        bench = Bench()
        with pytest.raises(DeadlineExceededError, match="service 'orders': the deadline was over before"):
            next(bench.call(deadline=bench.clock()))
        assert bench.in_flight == 0
        assert bench.balancer.stats().calls == 0

    def test_it_is_not_repeated_when_the_deadline_would_pass_first(self):
        bench = Bench()
        steps = bench.call(deadline=bench.clock() + 1.0)
        attempt = next(steps)
        bench.clock.advance(0.95)
        assert steps.send(FAILED) is None
        assert attempt.trace.refusal is Refusal.OUT_OF_TIME
        attempt.pick.release()

    def test_it_is_not_repeated_when_that_took_longer_than_it_should(self):
        bench = Bench()
        steps = bench.call(deadline=bench.clock() + 1.0)
        next(steps)
        bench.clock.advance(0.5)
        steps.send(FAILED)
        bench.clock.advance(0.6)  # a sleep of 0.1
        attempt = next(steps)
        assert attempt.expires <= bench.clock(), "the shell ends it at once"
        steps.close()

    def test_it_waits_for_endpoints_no_longer_than_that(self):
        bench = Bench(endpoints=0)
        assert next(bench.call(deadline=bench.clock() + 0.3)) == Wait(pytest.approx(0.3))
        assert next(bench.call(deadline=bench.clock() + 300)) == Wait(5.0)

    def test_the_deadline_of_a_call_is_in_the_clock_of_the_balancer(self):
        bench = Bench()
        assert deadline_of(bench.balancer, None) is None
        assert deadline_of(bench.balancer, 2.0) == bench.clock() + 2.0
        with clientlb.deadline(1.0):
            assert deadline_of(bench.balancer, 2.0) == pytest.approx(bench.clock() + 1.0, abs=0.1)


class TestEvidence:
    """Who is cut off by a deadline has failed, unless the deadline left less time than he usually takes."""

    def bench(self, usual):
        bench = Bench(endpoints=1)
        for _ in range(100):
            pick = bench.balancer.pick()
            bench.clock.advance(usual)
            pick.release()
        return bench

    def failures_after(self, bench, seconds, verdict=FAILED, early=0.0):
        steps = bench.call(deadline=bench.clock() + seconds, whole=True)
        next(steps)
        bench.clock.advance(seconds - early)
        steps.send(verdict)
        return bench.balancer.stats().endpoints[0].failures

    def test_enough_time_is_evidence(self):
        assert self.failures_after(self.bench(usual=0.01), 0.5) == 1

    def test_too_little_time_is_none(self):
        assert self.failures_after(self.bench(usual=0.2), 0.1) == 0

    def test_a_failure_that_is_never_repeated_is_cut_short_like_any_other(self):
        exceeded = Verdict(Outcome.FAILURE, "DEADLINE_EXCEEDED")
        assert self.failures_after(self.bench(usual=0.2), 0.1, exceeded) == 0
        assert self.failures_after(self.bench(usual=0.01), 0.5, exceeded) == 1

    @pytest.mark.parametrize(("early", "failures"), [(0.015, 0), (0.025, 1)])
    def test_who_measures_time_in_milliseconds_may_be_a_little_early(self, early, failures):
        assert self.failures_after(self.bench(usual=0.2), 0.1, early=early) == failures

    def test_a_failure_at_once_is_evidence_however_short_the_deadline(self):
        assert self.failures_after(self.bench(usual=0.2), 0.01, early=0.009) == 1

    def test_without_knowledge_it_is_evidence(self):
        assert self.failures_after(Bench(endpoints=1), 0.001) == 1

    def test_a_failure_before_the_deadline_is_evidence(self):
        bench = self.bench(usual=0.2)
        steps = bench.call(deadline=bench.clock() + 0.1, whole=True)
        next(steps)
        bench.clock.advance(0.05)
        steps.send(FAILED)
        assert bench.balancer.stats().endpoints[0].failures == 1


def test_a_call_may_have_limits_of_its_own():
    assert CallOptions().times(1.0, 2.0) == (1.0, 2.0)
    assert CallOptions(deadline=3.0, attempt_timeout=0.5).times(1.0, 2.0) == (3.0, 0.5)
    assert CallOptions(deadline=math.inf, attempt_timeout=math.inf).times(1.0, 2.0) == (None, None)


@pytest.mark.parametrize("seconds", [0, -1, math.nan, "1", True])
@pytest.mark.parametrize("name", ["deadline", "attempt_timeout"])
@pytest.mark.parametrize("kind", [Options, CallOptions])
def test_limits_that_cannot_be_right_are_refused(kind, name, seconds):
    with pytest.raises(ConfigurationError, match=f"{name} is"):
        kind(**{name: seconds})


class TestDecorated:
    def services(self, **options):
        return clientlb.Services(
            clientlb.testing.ManualDiscovery({"orders": ["127.0.0.1:1", "127.0.0.1:2"]}), options=Options(**options)
        )

    def test_a_function_sees_the_time_that_its_attempt_has(self):
        with self.services() as services:

            @services.balanced("orders", deadline=5.0, attempt_timeout=1.0)
            def ask(endpoint):
                return clientlb.time_remaining()

            assert 0.5 < ask() <= 1.0
            with clientlb.deadline(0.5):
                assert ask() <= 0.5
        assert clientlb.time_remaining() is None

    async def test_a_coroutine_that_takes_too_long_is_cancelled_and_repeated_elsewhere(self):
        with self.services() as services:
            asked = []

            @services.balanced("orders", idempotent=True, attempt_timeout=0.05)
            async def ask(endpoint):
                asked.append(endpoint)
                if len(asked) == 1:
                    await asyncio.sleep(30)
                return "done"

            assert await ask() == "done"
            assert asked[0] != asked[1]
            assert services.stats()["orders"].retries == 1
            assert services.stats()["orders"].in_flight == 0

    async def test_the_deadline_ends_a_coroutine_with_a_timeout_error(self):
        with self.services() as services:

            @services.balanced("orders", idempotent=True, deadline=0.05)
            async def ask(endpoint):
                await asyncio.sleep(30)

            began = time.monotonic()
            with pytest.raises(TimeoutError):
                await ask()
            assert time.monotonic() - began < 5.0

    def test_no_time_is_left_for_the_call(self):
        with self.services() as services, clientlb.deadline(0.0):

            @services.balanced("orders")
            def ask(endpoint):
                raise AssertionError("it was called")

            with pytest.raises(DeadlineExceededError):
                ask()


def test_success_after_the_deadline_is_a_success():
    bench = Bench()
    steps = bench.call(deadline=bench.clock() + 0.1, whole=True)
    next(steps)
    bench.clock.advance(0.2)
    assert steps.send(SUCCEEDED) is None
    assert bench.balancer.stats().failures == 0
