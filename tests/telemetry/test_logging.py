from __future__ import annotations

import json
import logging
import subprocess
import sys
from math import inf

import pytest

from clientlb import events
from clientlb.endpoint import Endpoint
from clientlb.errors import DiscoveryError
from clientlb.outcome import Outcome
from clientlb.services import Services
from clientlb.telemetry.logging import LoggingHook, describe, level_of, redact_text
from clientlb.testing import ManualDiscovery

ONE, TWO = Endpoint("10.0.0.1", 80), Endpoint("10.0.0.2", 80)

EVENTS = [
    (
        events.EndpointsChanged("orders", (ONE, TWO), (), 2),
        logging.INFO,
        "orders: 10.0.0.1:80, 10.0.0.2:80 joined; now 2 endpoints",
    ),
    (
        events.EndpointsChanged("orders", (ONE,), (TWO,), 1),
        logging.INFO,
        "orders: 10.0.0.1:80 joined; 10.0.0.2:80 left; now 1 endpoint",
    ),
    (
        events.EndpointsChanged("orders", tuple(Endpoint("h", port) for port in range(1, 9)), (), 8),
        logging.INFO,
        "orders: h:1, h:2, h:3, h:4, h:5 and 3 more joined; now 8 endpoints",
    ),
    (
        events.DiscoveryFailed("orders", DiscoveryError("consul://h:8500: refused"), 2),
        logging.WARNING,
        "orders: the registry cannot be read (DiscoveryError: consul://h:8500: refused); 2 endpoints stay in use",
    ),
    (
        events.DiscoveryFailed("orders", TimeoutError(), 0),
        logging.WARNING,
        "orders: the registry cannot be read (TimeoutError); 0 endpoints stay in use",
    ),
    (events.DiscoveryRecovered("orders", 3.14), logging.INFO, "orders: the registry answers again after 3.1 s"),
    (
        events.RemovalHeld("orders", (ONE, TWO), 2, "empty", 60.0),
        logging.WARNING,
        "orders: the registry names nobody; 10.0.0.1:80, 10.0.0.2:80 of 2 endpoints stay in use for 60 s",
    ),
    (
        events.RemovalHeld("orders", (ONE,), 2, "mass", 30.0),
        logging.WARNING,
        "orders: the registry suddenly lacks many; 10.0.0.1:80 of 2 endpoints stay in use for 30 s",
    ),
    (
        events.RemovalHeld("orders", (ONE,), 9, "unsettled", 30.0),
        logging.WARNING,
        "orders: the registry was out of order just before, and lacks some; 10.0.0.1:80 of 9 endpoints stay in use"
        " for 30 s",
    ),
    (events.HeldReturned("orders", (TWO,)), logging.INFO, "orders: the registry names 10.0.0.2:80 again"),
    (
        events.SnapshotUsed("orders", 2, 61.4),
        logging.WARNING,
        "orders: the registry delivered no list; the last good one on disk is used: 2 endpoints, 61 s old",
    ),
    (
        events.Ejected("orders", ONE, "active check failed 3 times: answered 503", inf, "check"),
        logging.WARNING,
        "orders: 10.0.0.1:80 gets no calls until its check passes: active check failed 3 times: answered 503",
    ),
    (
        events.Ejected("orders", ONE, "5 failures in a row, the last one 503", 5.0),
        logging.WARNING,
        "orders: 10.0.0.1:80 gets no calls for 5.0 s: 5 failures in a row, the last one 503",
    ),
    (
        events.Probing("orders", ONE),
        logging.DEBUG,
        "orders: 10.0.0.1:80 is offered one call, to see whether it works",
    ),
    (events.Restored("orders", ONE), logging.INFO, "orders: 10.0.0.1:80 works again"),
    (
        events.WouldEject("orders", ONE, "ratio", "5 of 10 calls failed within 10 s"),
        logging.WARNING,
        "orders: 10.0.0.1:80 would be ejected by the rule ratio, which is on trial: 5 of 10 calls failed within 10 s",
    ),
    (
        events.EjectionSuspended("orders", "this process stood still for 2.0 s", 4),
        logging.WARNING,
        "orders: the trouble looks like our own, none of 4 endpoints is ejected: this process stood still for 2.0 s",
    ),
    (
        events.EjectionResumed("orders", 2.0),
        logging.INFO,
        "orders: a call succeeded; endpoints may be ejected again after 2.0 s",
    ),
    (
        events.Panicked("orders", 10, 4),
        logging.WARNING,
        "orders: of the healthy there are only 4 left; using all 10 whatever their state",
    ),
    (
        events.Panicked("orders", 2),
        logging.WARNING,
        "orders: no healthy endpoint is left; using all 2 whatever their state",
    ),
    (
        events.Retried("orders", ONE, 1, "ConnectError", 0.0123),
        logging.DEBUG,
        "orders: attempt 1 at 10.0.0.1:80 failed (ConnectError); another one follows after 12 ms",
    ),
    (
        events.RetryDenied("orders", ONE, 2, "503"),
        logging.DEBUG,
        "orders: attempt 2 at 10.0.0.1:80 failed (503) and the retry budget is spent",
    ),
    (
        events.Hedged("orders", ONE, 0.05),
        logging.DEBUG,
        "orders: an attempt is late after 50 ms; another one runs at 10.0.0.1:80 beside it",
    ),
    (
        events.HedgeDenied("orders", ONE, 0.05),
        logging.DEBUG,
        "orders: an attempt at 10.0.0.1:80 is late after 50 ms and the retry budget is spent",
    ),
]


@pytest.mark.parametrize(("event", "level", "line"), EVENTS, ids=lambda value: type(value).__name__)
def test_each_event_is_one_readable_line(
    event: events.Event, level: int, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "clientlb.events"):
        LoggingHook()(event)
    (record,) = caplog.records
    assert (record.name, record.levelno, record.getMessage()) == ("clientlb.events", level, line)


def test_every_kind_of_event_has_a_line_of_its_own() -> None:
    kinds = {kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)}
    assert {type(event) for event, _, _ in EVENTS} == kinds - {events.Event}


@pytest.mark.parametrize("event", [event for event, _, _ in EVENTS], ids=lambda event: type(event).__name__)
def test_fields_are_ready_for_structured_formatters(event: events.Event, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "clientlb.events"):
        LoggingHook()(event)
    fields = {name: value for name, value in vars(caplog.records[0]).items() if name.startswith("clientlb_")}
    assert fields["clientlb_event"] == type(event).__name__
    assert fields["clientlb_service"] == "orders"
    assert fields.keys() - {"clientlb_event"} == {f"clientlb_{name}" for name in event.__dataclass_fields__}
    assert json.loads(json.dumps(fields, allow_nan=False)) == fields


def test_an_event_of_somebody_else_is_written_too() -> None:
    class Painted(events.Event):
        pass

    assert describe(Painted("orders")).startswith("orders: ")
    assert level_of(Painted("orders")) == logging.DEBUG


@pytest.mark.parametrize(
    "text",
    [
        "consul://ann:hunter2@h:8500 refused",
        "consul://ann:p@hunter2@h:8500/path refused",
        "GET http://h:8500/v1/health?token=hunter2&stale failed",
        "headers {'X-Consul-Token': 'hunter2'}",
        "Authorization: Bearer hunter2",
        "authorization=Basic hunter2",
        "password = hunter2, retrying",
        'body {"secret_id": "hunter2"}',
        "api-key: hunter2",
    ],
)
def test_secrets_are_struck_out(text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert "hunter2" not in redact_text(text)
    assert "***" in redact_text(text)
    with caplog.at_level(logging.DEBUG, "clientlb.events"):
        LoggingHook()(events.DiscoveryFailed("orders", DiscoveryError(text), 1))
    assert "hunter2" not in str(vars(caplog.records[0]))


@pytest.mark.parametrize(
    "text", ["dir:///run/registry: No such file", "zookeeper://h1:2181,h2:2181/services", "mail ann@example.com"]
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact_text(text) == text


def test_a_line_stays_one_line() -> None:
    assert "\n" not in describe(events.DiscoveryFailed("orders", DiscoveryError("first\nsecond"), 1))


def test_the_logger_can_be_chosen(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        LoggingHook("shop.balancing")(events.Restored("orders", ONE))
        LoggingHook(logging.getLogger("shop"))(events.Restored("orders", ONE))
    assert [record.name for record in caplog.records] == ["shop.balancing", "shop"]


def test_a_level_that_nobody_wants_is_not_written(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "clientlb.events"):
        LoggingHook()(events.Restored("orders", ONE))
    assert caplog.records == []


def test_a_fleet_that_breaks_and_heals_tells_its_story(caplog: pytest.LogCaptureFixture) -> None:
    discovery = ManualDiscovery({"orders": [ONE]})
    with (
        caplog.at_level(logging.INFO, "clientlb.events"),
        Services(discovery, hooks=[LoggingHook()]) as services,
    ):
        for _ in range(5):
            services["orders"].pick().release(Outcome.FAILURE, "503")
        services["orders"].pick().release(Outcome.FAILURE, "503")
        discovery.fail("orders", DiscoveryError("gone"))
        discovery.set("orders", [])
    told = [(record.levelname, vars(record)["clientlb_event"]) for record in caplog.records]
    assert told == [
        ("INFO", "EndpointsChanged"),
        ("WARNING", "Ejected"),
        ("WARNING", "Panicked"),
        ("WARNING", "DiscoveryFailed"),
        ("INFO", "DiscoveryRecovered"),
        ("WARNING", "RemovalHeld"),
    ]


def test_a_program_that_does_not_configure_logging_stays_silent() -> None:
    program = (
        "import logging, clientlb;"
        "from clientlb import events; from clientlb.telemetry.logging import LoggingHook;"
        "LoggingHook()(events.Panicked('orders', 2));"
        "logging.getLogger('clientlb.registration').warning('not announced');"
        "handlers = [type(handler).__name__ for handler in logging.getLogger('clientlb').handlers];"
        "assert handlers == ['NullHandler'], handlers;"
        "assert not logging.root.handlers and not logging.getLogger('clientlb.events').handlers"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
