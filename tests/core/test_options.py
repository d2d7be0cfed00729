"""Options: every bad value is refused where it is given, by name."""

import pytest
from tenacity import stop_after_attempt

from clientlb import (
    BudgetOptions,
    CallOptions,
    ConfigurationError,
    HealthOptions,
    Options,
    RetryOptions,
    Services,
    load_options,
)
from clientlb.backoff import full_jitter
from clientlb.policy import POLICIES, PeakEwma, make_policy


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Options(policy="fastest"), "policy 'fastest' does not exist; known: peak_ewma"),
        (lambda: Options(policy=3), "policy is 3"),
        (lambda: Options(wait_for_endpoints=-1), "wait_for_endpoints is -1; give a number at least 0"),
        (lambda: Options(wait_for_endpoints=float("nan")), "wait_for_endpoints is nan"),
        (lambda: Options(hold_empty="60"), "hold_empty is '60'"),
        (lambda: Options(health={"open_for": 1}), "give HealthOptions"),
        (lambda: Options(retry=3), "give RetryOptions"),
        (lambda: HealthOptions(consecutive_failures=0), "consecutive_failures is 0; give a whole number, at least 1"),
        (lambda: HealthOptions(consecutive_failures=2.5), "consecutive_failures is 2.5"),
        (lambda: HealthOptions(open_for=0), "open_for is 0; give a number above 0"),
        (lambda: HealthOptions(open_for=10, open_for_max=5), "open_for_max is 5; give a number at least 10"),
        (lambda: HealthOptions(probe_timeout=-1), "probe_timeout"),
        (lambda: BudgetOptions(ratio=-0.1), "ratio is -0.1; give a number at least 0 and at most 1000"),
        (lambda: BudgetOptions(window=0.5), "window"),
        (lambda: BudgetOptions(reserve=True), "reserve is True"),
        (lambda: RetryOptions(stop=3), "retry.stop is 3; give a tenacity"),
        (lambda: RetryOptions(wait=0.1), "retry.wait is 0.1; give a tenacity"),
        (lambda: RetryOptions(statuses=frozenset({5030})), "statuses has 5030"),
        (lambda: CallOptions(idempotent="yes"), "idempotent is 'yes'"),
        (lambda: CallOptions(retry=3), "retry is 3"),
        (
            lambda: CallOptions.of({"idempotant": True}),
            "call options idempotant do not exist; known: idempotent, retry",
        ),
        (lambda: CallOptions.of([1]), "give a mapping"),
        (lambda: PeakEwma(decay=0), "decay is 0"),
        (lambda: PeakEwma(failure_factor=0.5), "failure_factor is 0.5"),
        (lambda: Services("static://h:1", options={"orders": 3}), r"options\['orders'\] is 3"),
        (lambda: Services("static://h:1", options="fast"), "options is 'fast'"),
    ],
)
def test_bad_value_is_named(make, text):
    with pytest.raises(ConfigurationError, match=text):
        make()


def test_call_options_decide_over_the_service():
    service = RetryOptions()
    own = RetryOptions(stop=stop_after_attempt(9))
    assert CallOptions().retry_options(service) is service
    assert CallOptions(retry=own).retry_options(service) is own
    assert CallOptions(retry=False).retry_options(service).stop.max_attempt_number == 1


def test_every_policy_name_makes_a_policy():
    for name in POLICIES:
        assert callable(make_policy(name).choose)


def test_file_and_environment_feed_the_same_classes(tmp_path):
    path = tmp_path / "options.toml"
    path.write_text(
        """
        [default]
        policy = "p2c"
        [default.health]
        consecutive_failures = 3
        [services.orders]
        wait_for_endpoints = 1.5
        [services.orders.retry]
        attempts = 5
        backoff = 0.05
        statuses = [503]
        [services.orders.retry.budget]
        ratio = 0.1
        """
    )
    environ = {"CLIENTLB_CONFIG": str(path), "CLIENTLB_HOLD_EMPTY": "7.5", "CLIENTLB_HEALTH__OPEN_FOR": "2"}
    loaded = load_options(environ=environ)
    assert loaded["*"] == Options(
        policy="p2c",
        hold_empty=7.5,
        health=HealthOptions(consecutive_failures=3, open_for=2),
        retry=loaded["*"].retry,
    )
    orders = loaded["orders"]
    assert (orders.policy, orders.wait_for_endpoints, orders.hold_empty) == ("p2c", 1.5, 7.5)
    assert orders.retry.stop.max_attempt_number == 5
    assert isinstance(orders.retry.wait, full_jitter)
    assert (orders.retry.wait.initial, orders.retry.wait.max) == (0.05, 0.25)
    assert orders.retry.statuses == {503}
    assert orders.retry.budget == BudgetOptions(ratio=0.1)
    services = Services("static://h:1", options=loaded)
    assert services["orders"].options is orders
    assert services["users"].options is loaded["*"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[default]\npolicy = 'fastest'", "in default: policy 'fastest' does not exist"),
        ("[default.retry]\nattempts = 0", "default.retry.attempts is 0"),
        ("[default.retry]\nbackoff = -1", "default.retry.backoff is -1"),
        ("[default]\ntimeout = 3", "default.timeout does not exist; known: health, hold_empty"),
        ("[services.orders.health]\nopen_for = 0", "in services.orders.health: health.open_for is 0"),
        ("[service.orders]", r"\[service\] is neither"),
        ("[default]\nhealth = 3", "default.health is 3; give a table"),
        ("not toml", "options file"),
    ],
)
def test_bad_file_is_named(tmp_path, text, complaint):
    path = tmp_path / "options.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=complaint):
        load_options(path, environ={})


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"options file .*nowhere\.toml"):
        load_options(tmp_path / "nowhere.toml", environ={})
