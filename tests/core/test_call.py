"""The life of one call: the steps that the generator asks for, and the two loops that obey."""

import asyncio
import random

import pytest
from tenacity import stop_after_attempt, wait_exception, wait_fixed, wait_none

from clientlb import (
    Balancer,
    BudgetOptions,
    ClosedError,
    Endpoint,
    NoEndpointsError,
    Options,
    Outcome,
    RetryOptions,
    Verdict,
    events,
)
from clientlb.call import Attempt, Sleep, Wait, call
from clientlb.drive import drive, drive_async
from clientlb.outcome import SUCCEEDED
from clientlb.retry.policy import Refusal
from clientlb.retry_options import NO_RETRIES
from clientlb.testing import FakeClock

FAILED = Verdict(Outcome.RETRYABLE, "503")
BROKEN = Verdict(Outcome.FAILURE, "500")
REFUSED = Verdict(Outcome.RETRYABLE, "ConnectError", sent=False)


class Bench:
    def __init__(self, ports=(1, 2, 3), **retry):
        self.clock = FakeClock()
        self.events = []
        options = Options(retry=RetryOptions(**({"wait": wait_fixed(0.1)} | retry)))
        self.balancer = Balancer(
            "orders", options, emit=self.events.append, clock=self.clock, rng=random.Random(1), source="a test"
        )
        self.balancer.update([Endpoint("h", port) for port in ports])

    def play(self, *verdicts, **arguments):
        """Answer each attempt with the next verdict. Returns the steps taken and the last attempt."""
        steps = call(self.balancer, **({"idempotent": True} | arguments))
        answers, taken, attempt = list(verdicts), [], None
        step = next(steps)
        while step is not None:
            taken.append(step)
            if isinstance(step, Attempt):
                attempt = step
                step = steps.send(answers.pop(0))
            else:
                step = next(steps)
        steps.close()
        assert not answers, "fewer attempts than verdicts"
        return taken, attempt

    @property
    def in_flight(self):
        return self.balancer.stats().in_flight


def test_success_takes_one_attempt_and_leaves_the_pick_to_the_shell():
    bench = Bench()
    taken, attempt = bench.play(SUCCEEDED)
    assert len(taken) == 1
    assert bench.in_flight == 1
    attempt.pick.release()
    assert bench.in_flight == 0
    assert [tried.reason for tried in attempt.trace.attempts] == [""]
    assert attempt.trace.refusal is None


def test_retries_go_elsewhere():
    for _ in range(30):
        bench = Bench()
        taken, attempt = bench.play(FAILED, FAILED, SUCCEEDED)
        assert [type(step) for step in taken] == [Attempt, Sleep, Attempt, Sleep, Attempt]
        assert {step.pick.endpoint.port for step in taken if isinstance(step, Attempt)} == {1, 2, 3}
        assert [step.number for step in taken if isinstance(step, Attempt)] == [1, 2, 3]
        assert bench.in_flight == 1
        attempt.pick.release()
        assert bench.in_flight == 0
    assert [
        (event.attempt, event.reason, event.delay) for event in bench.events if isinstance(event, events.Retried)
    ] == [
        (1, "503", 0.1),
        (2, "503", 0.1),
    ]


def test_a_dead_fleet_costs_no_call_while_one_server_lives():
    bench = Bench(ports=range(1, 9), budget=BudgetOptions(ratio=0, reserve=0))
    taken, _ = bench.play(*[REFUSED] * 7, SUCCEEDED, idempotent=False)
    assert [type(step) for step in taken] == [Attempt] * 8
    assert {step.pick.endpoint.port for step in taken} == set(range(1, 9))
    assert [step.number for step in taken] == list(range(1, 9))


def test_no_sleep_when_the_wait_is_zero():
    taken, _ = Bench(wait=wait_none()).play(FAILED, SUCCEEDED)
    assert [type(step) for step in taken] == [Attempt, Attempt]


@pytest.mark.parametrize(
    ("verdicts", "arguments", "refusal"),
    [
        ([BROKEN], {}, Refusal.NOT_RETRYABLE),
        ([FAILED], {"idempotent": False}, Refusal.NOT_IDEMPOTENT),
        ([REFUSED, FAILED], {"idempotent": False}, Refusal.NOT_IDEMPOTENT),
        ([REFUSED], {"retry": NO_RETRIES}, Refusal.STOPPED),
        ([FAILED], {"replayable": False}, Refusal.NOT_REPLAYABLE),
        ([FAILED, FAILED, FAILED], {}, Refusal.STOPPED),
        ([FAILED, FAILED], {"retry": RetryOptions(stop=stop_after_attempt(2))}, Refusal.STOPPED),
        ([FAILED], {"deadline": 1000.05}, Refusal.OUT_OF_TIME),
    ],
)
def test_the_last_attempt_stands(verdicts, arguments, refusal):
    bench = Bench()
    _, attempt = bench.play(*verdicts, **arguments)
    assert len(attempt.trace.attempts) == len(verdicts)
    assert attempt.trace.refusal is (None if refusal is Refusal.NOT_RETRYABLE else refusal)
    assert bench.in_flight == 1
    attempt.pick.release()
    assert bench.in_flight == 0


def test_spent_budget_is_announced():
    bench = Bench(budget=BudgetOptions(ratio=0, reserve=0))
    _, attempt = bench.play(FAILED)
    assert attempt.trace.refusal is Refusal.OUT_OF_BUDGET
    assert [type(event) for event in bench.events[1:]] == [events.RetryDenied]
    assert bench.balancer.stats().retries_denied == 1


def test_a_service_that_fails_completely_sees_its_load_grow_by_the_ratio_only():
    bench = Bench(ports=range(1, 11), wait=wait_none(), budget=BudgetOptions(ratio=0.2, reserve=0))
    attempts = 0
    for _ in range(1000):
        steps = call(bench.balancer, idempotent=True)
        step = next(steps)
        while step is not None:
            attempts += 1
            step = steps.send(FAILED)
        steps.close()
        bench.clock.advance(0.001)
    assert 1190 <= attempts <= 1200


@pytest.mark.parametrize("error", [GeneratorExit, KeyboardInterrupt, asyncio.CancelledError])
def test_a_cancelled_call_is_no_evidence(error):
    bench = Bench()
    steps = call(bench.balancer, idempotent=True)
    assert isinstance(next(steps), Attempt)
    if error is GeneratorExit:
        steps.close()
    else:
        with pytest.raises(error):
            steps.throw(error())
    stats = bench.balancer.stats()
    assert (stats.in_flight, stats.calls, stats.failures) == (0, 0, 0)


def test_waits_for_the_first_list_and_then_says_what_is_wrong():
    bench = Bench(ports=())
    steps = call(bench.balancer, idempotent=True)
    assert next(steps) == Wait(5.0)
    bench.clock.advance(5)
    with pytest.raises(NoEndpointsError, match=r"waited 5\.0 s"):
        next(steps)


def test_waits_no_longer_than_the_deadline():
    steps = call(Bench(ports=()).balancer, idempotent=True, deadline=1002.0)
    assert next(steps) == Wait(2.0)


def test_goes_on_when_the_first_list_comes():
    bench = Bench(ports=())
    steps = call(bench.balancer, idempotent=True)
    next(steps)
    bench.balancer.update([Endpoint("h", 7)])
    assert next(steps).pick.endpoint.port == 7
    steps.close()


@pytest.mark.parametrize("leaves", ["the balancer is closed", "the call is given up"])
def test_a_retry_counts_when_it_is_made(leaves):
    bench = Bench()
    steps = call(bench.balancer, idempotent=True)
    next(steps)
    assert steps.send(FAILED) == Sleep(0.1)
    if leaves == "the call is given up":
        steps.close()
    else:
        bench.balancer.close()
        with pytest.raises(ClosedError):
            next(steps)
    assert not [event for event in bench.events if isinstance(event, events.Retried)]
    stats = bench.balancer.stats()
    assert (stats.calls, stats.failures, stats.retries) == (1, 1, 0)


def test_counters_tell_calls_from_attempts():
    bench = Bench()
    for verdicts in ([SUCCEEDED], [FAILED, SUCCEEDED], [FAILED, FAILED, FAILED]):
        _, attempt = bench.play(*verdicts)
        attempt.pick.release()
    stats = bench.balancer.stats()
    assert (stats.calls, stats.failures, stats.retries) == (3, 1, 3)


class Server:
    """Answers attempts from a script: an exception is raised, anything else returned."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.discarded = []

    def send(self, attempt):
        self.asked.append(attempt)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def send_async(self, attempt):
        return self.send(attempt)

    async def discard_async(self, result):
        self.discarded.append(result)

    @staticmethod
    def classify(result, error):
        if error is not None:
            return Verdict(Outcome.RETRYABLE, type(error).__name__)
        return SUCCEEDED if result == "fine" else FAILED

    def make(self, balancer, way, **arguments):
        steps = call(balancer, **({"idempotent": True} | arguments))
        if way == "function":
            return drive(steps, balancer, self.send, self.classify, self.discarded.append)
        return asyncio.run(drive_async(steps, balancer, self.send_async, self.classify, self.discard_async))


WAYS = pytest.mark.parametrize("way", ["function", "coroutine"])


@WAYS
def test_drive_returns_the_result_and_discards_what_it_retried_away(way):
    bench, server = Bench(wait=wait_none()), Server("busy", ConnectionResetError(), "fine")
    assert server.make(bench.balancer, way) == "fine"
    assert server.discarded == ["busy"]
    assert bench.in_flight == 1
    server.asked[-1].pick.release()


@WAYS
def test_drive_returns_the_last_bad_result(way):
    bench, server = Bench(wait=wait_none()), Server("busy", "busy", "worse")
    assert server.make(bench.balancer, way) == "worse"
    assert server.discarded == ["busy", "busy"]


@WAYS
def test_drive_raises_the_last_error_with_the_attempts_in_its_notes(way):
    bench, server = Bench(wait=wait_none()), Server(OSError("first"), OSError("second"), OSError("last"))
    with pytest.raises(OSError, match="last") as caught:
        server.make(bench.balancer, way)
    (note,) = caught.value.__notes__
    assert "attempt 1 at h:" in note
    assert "attempt 3 at h:" in note
    assert "no further attempt is allowed" in note
    assert bench.in_flight == 0


@WAYS
@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError])
def test_drive_gives_the_pick_back_when_it_is_interrupted(way, error):
    bench, server = Bench(), Server(error())
    with pytest.raises(error):
        server.make(bench.balancer, way)
    stats = bench.balancer.stats()
    assert (stats.in_flight, stats.calls) == (0, 0)


@WAYS
def test_drive_gives_the_pick_back_when_the_classifier_fails(way):
    bench, server = Bench(), Server("fine")
    server.classify = lambda result, error: 1 / 0
    with pytest.raises(ZeroDivisionError):
        server.make(bench.balancer, way)
    assert bench.in_flight == 0


@WAYS
def test_drive_leaks_nothing_when_the_users_wait_fails(way):
    bench, server = Bench(wait=lambda state: 1 / 0), Server("busy")
    with pytest.raises(ZeroDivisionError):
        server.make(bench.balancer, way)
    assert server.discarded == ["busy"]
    assert bench.in_flight == 0


@WAYS
def test_drive_raises_the_real_error_when_everybody_left_meanwhile(way):
    bench, server = Bench(wait=wait_none()), Server(ConnectionResetError("the real one"))
    send = server.send
    server.send = lambda attempt: (bench.balancer.close(), send(attempt))
    with pytest.raises(ConnectionResetError, match="the real one"):
        server.make(bench.balancer, way)
    assert bench.in_flight == 0


def test_tenacitys_objects_find_the_outcome_they_look_for():
    seen = []
    wait = wait_exception(lambda error: seen.append(str(error)) or 0.0)
    Bench(wait=wait).play(FAILED, SUCCEEDED)
    assert seen == ["503"]


@WAYS
def test_drive_waits_and_gives_up(way):
    balancer = Balancer("orders", Options(wait_for_endpoints=0.01), source="a test")
    with pytest.raises(NoEndpointsError, match="a test"):
        Server("fine").make(balancer, way)
