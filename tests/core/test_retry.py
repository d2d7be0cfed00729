"""When again: the decision, the budget and the wait. No test sleeps."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import stop_after_attempt, stop_after_delay, wait_fixed, wait_incrementing

from clientlb.backoff import RetryState, full_jitter
from clientlb.outcome import Outcome, Verdict
from clientlb.retry.budget import RetryBudget
from clientlb.retry.policy import Refusal, decide
from clientlb.retry_options import BudgetOptions, RetryOptions

FAILED = Verdict(Outcome.RETRYABLE, "503")
REFUSED = Verdict(Outcome.RETRYABLE, "ConnectError", sent=False)
STALE = Verdict(Outcome.RETRYABLE, "ReadError on a kept connection", stale=True)


def ask(verdict=FAILED, *, attempt=1, now=1.0, started=0.0, budget=True, **changes):
    rng = random.Random(7)
    state = RetryState(rng, started)
    state.attempt_number = attempt
    arguments = {
        "options": RetryOptions(wait=wait_fixed(0.1)),
        "untried": False,
        "idempotent": True,
        "replayable": True,
        "deadline": None,
    } | changes
    options = arguments.pop("options")
    return decide(verdict, options, state, lambda now: budget, now=now, rng=rng, **arguments)


@pytest.mark.parametrize(
    ("expected", "arguments"),
    [
        (0.1, {}),
        (Refusal.NOT_RETRYABLE, {"verdict": Verdict(Outcome.FAILURE)}),
        (Refusal.NOT_RETRYABLE, {"verdict": Verdict(Outcome.SUCCESS)}),
        (Refusal.NOT_RETRYABLE, {"verdict": Verdict(Outcome.IGNORED)}),
        (Refusal.NOT_IDEMPOTENT, {"idempotent": False}),
        (0.1, {"idempotent": False, "verdict": REFUSED}),
        (Refusal.NOT_REPLAYABLE, {"replayable": False}),
        (0.1, {"attempt": 2}),
        (Refusal.STOPPED, {"attempt": 3}),
        (Refusal.STOPPED, {"options": RetryOptions(stop=stop_after_delay(0.5))}),
        (0.1, {"options": RetryOptions(stop=stop_after_delay(5) | stop_after_attempt(9), wait=wait_fixed(0.1))}),
        (0.3, {"attempt": 2, "options": RetryOptions(wait=wait_incrementing(0.1, 0.2))}),
        (Refusal.OUT_OF_TIME, {"deadline": 1.05}),
        (0.1, {"deadline": 1.2}),
        (Refusal.OUT_OF_BUDGET, {"budget": False}),
        (0.0, {"verdict": REFUSED, "untried": True, "budget": False, "idempotent": False, "attempt": 9}),
        (0.1, {"verdict": REFUSED, "untried": True, "options": RetryOptions(wait=wait_fixed(0.1), transparent=0)}),
        (0.1, {"untried": True}),
        (Refusal.OUT_OF_TIME, {"verdict": REFUSED, "untried": True, "deadline": 1.0}),
        (0.0, {"verdict": STALE, "budget": False, "attempt": 9}),
        (Refusal.NOT_IDEMPOTENT, {"verdict": STALE, "idempotent": False}),
        (Refusal.NOT_REPLAYABLE, {"verdict": STALE, "replayable": False}),
        (0.1, {"verdict": STALE, "options": RetryOptions(wait=wait_fixed(0.1), transparent=0)}),
    ],
)
def test_decision(expected, arguments):
    answer = ask(**arguments)
    assert answer == (pytest.approx(expected) if isinstance(expected, float) else expected)


def test_transparent_attempts_are_counted_apart_and_end():
    state, rng = RetryState(random.Random(1), 0.0), random.Random(1)
    options = RetryOptions(transparent=2, wait=wait_fixed(0.1), stop=stop_after_attempt(2))
    arguments = {"now": 1.0, "rng": rng, "untried": True, "idempotent": True, "replayable": True, "deadline": None}
    answers = [decide(REFUSED, options, state, lambda now: True, **arguments) for _ in range(4)]
    assert answers == [0.0, 0.0, 0.1, Refusal.STOPPED]


def test_a_stale_connection_is_excused_once_per_call():
    state, rng = RetryState(random.Random(1), 0.0), random.Random(1)
    options = RetryOptions(wait=wait_fixed(0.1), stop=stop_after_attempt(2))
    arguments = {"now": 1.0, "rng": rng, "untried": True, "idempotent": True, "replayable": True, "deadline": None}
    answers = [decide(STALE, options, state, lambda now: True, **arguments) for _ in range(3)]
    assert answers == [0.0, 0.1, Refusal.STOPPED]


def test_server_that_asks_to_wait_is_not_asked_earlier():
    verdict = Verdict(Outcome.RETRYABLE, "429", retry_after=2.0)
    assert 2.0 <= ask(verdict) <= 3.0
    assert ask(verdict, deadline=2.5) is Refusal.OUT_OF_TIME


def test_a_refusal_costs_no_budget():
    spent = []
    state = RetryState(random.Random(1), 0.0)
    decide(
        FAILED,
        RetryOptions(),
        state,
        lambda now: bool(spent.append(now)) or True,
        now=1.0,
        rng=random.Random(1),
        untried=True,
        idempotent=False,
        replayable=True,
        deadline=None,
    )
    assert spent == []


def test_full_jitter_is_uniform_below_a_growing_bound():
    wait = full_jitter(initial=0.025, max=0.25)
    state = RetryState(random.Random(3), 0.0)
    for attempt, bound in [(1, 0.025), (2, 0.05), (3, 0.1), (4, 0.2), (5, 0.25), (50, 0.25), (5000, 0.25)]:
        state.attempt_number = attempt
        waits = [wait(state) for _ in range(2000)]
        assert min(waits) >= 0
        assert bound * 0.95 < max(waits) <= bound
        assert sum(waits) / len(waits) == pytest.approx(bound / 2, rel=0.1)


def test_jitter_replays_from_the_seed():
    def draws(seed):
        state = RetryState(random.Random(seed), 0.0)
        return [full_jitter()(state) for _ in range(5)]

    assert draws(1) == draws(1) != draws(2)


def spend(budget, now, wanted=1000):
    """How many of so many retries are granted."""
    return sum(budget.withdraw(now) for _ in range(wanted))


def test_budget_is_a_share_of_the_calls():
    budget = RetryBudget(0.2, 3.0, 10.0, now=0.0)
    budget.calls += 1000
    assert spend(budget, 0.5) == 200


def test_budget_of_few_calls_is_the_reserve():
    budget = RetryBudget(0.2, 3.0, 10.0, now=0.0)
    budget.calls += 100
    assert spend(budget, 0.5) == 30


def test_budget_forgets_after_its_window():
    budget = RetryBudget(0.2, 0.0, 10.0, now=0.0)
    budget.calls += 100
    assert budget.balance(9.9) == 20
    assert budget.balance(10.5) == 0
    assert not budget.withdraw(10.5)


@pytest.mark.parametrize("window", [1.0, 2.0, 10.0, 60.0])
def test_reserve_counts_over_ten_seconds_whatever_the_window(window):
    budget = RetryBudget(0.0, 1.0, window, now=0.0)
    assert spend(budget, 0.05) == 10
    assert not budget.withdraw(8.9)
    assert spend(budget, 10.1) == 10


@pytest.mark.parametrize(("window", "remembered"), [(1.0, 0), (2.0, 20), (10.0, 20), (60.0, 20)])
def test_calls_count_over_the_window(window, remembered):
    budget = RetryBudget(0.2, 0.0, window, now=0.0)
    budget.calls += 100
    assert spend(budget, 1.5) == remembered


def outage(calls_per_second, seconds=10, budget=None):
    """What a service is offered per call when all calls fail after a minute of success."""
    options = budget or BudgetOptions()
    budget, retries = RetryBudget(options.ratio, options.reserve, options.window, now=0.0), 0
    for call in range(calls_per_second * (60 + seconds)):
        now = call / calls_per_second
        budget.advance(now)
        budget.calls += 1
        if now >= 60:
            retries += spend(budget, now, 2)  # as many as three attempts want
    return 1 + retries / (calls_per_second * seconds)


@pytest.mark.parametrize("calls_per_second", [40, 400])
@pytest.mark.parametrize("seconds", [2, 10, 60])
def test_an_outage_is_offered_no_more_than_1_2_times_the_calls(calls_per_second, seconds):
    assert 1.15 < outage(calls_per_second, seconds) <= 1.2


@pytest.mark.parametrize(("calls_per_second", "load"), [(1, 2.0), (2, 1.5), (5, 1.2), (10, 1.2)])
def test_small_services_may_retry(calls_per_second, load):
    assert outage(calls_per_second, 60) == pytest.approx(load, abs=0.15)


def test_a_small_service_gets_past_a_burst_of_failures():
    budget = RetryBudget(0.18, 1.0, 2.0, now=0.0)
    for second in range(20):
        budget.advance(float(second))
        budget.calls += 1
    assert spend(budget, 20.0, 7) == 7, "seven calls were on their way to a server that dies"


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(0, 50), st.integers(0, 20)), max_size=30),
    st.floats(0, 1),
    st.floats(0, 5),
    st.sampled_from([1.0, 2.0, 10.0, 60.0]),
)
def test_budget_never_grants_more_than_it_has(steps, ratio, reserve, window):
    budget, now = RetryBudget(ratio, reserve, window, now=0.0), 0.0
    slice_ = min(window, 10.0) / 10
    calls, retries = [], []
    for pause, made, wanted in steps:
        now += pause
        budget.advance(now)
        budget.calls += made
        calls += [now] * made
        for _ in range(wanted):
            assert budget.balance(now) >= 0
            if not budget.withdraw(now):
                break
            retries.append(now)
            # what was counted is certain only but for a slice
            recent = sum(at > now - window + slice_ for at in retries)
            reserved = sum(at > now - 10 + slice_ for at in retries)
            paid = ratio * sum(at > now - window - 0.001 for at in calls)
            assert recent <= paid + 1e-6 or reserved <= reserve * 10 + 1e-6
