"""The thread that keeps a registration alive, against a registrar that the test controls."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

import clientlb.registration
from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError, InvalidEndpointError
from clientlb.registration import Registrar, Registration, Stage, open_registrar, register
from clientlb.registration.directory import DirectoryRegistrar
from tests.servers.process import wait_until

PATIENCE = 10.0


class FakeRegistrar:
    """Remembers what it was asked for, fails while it is `down`, hangs while it is `stuck`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.calls: list[str] = []
        self.down = False
        self.wake: Callable[[], None] = lambda: None
        self.go_on = threading.Event()
        self.go_on.set()

    def attach(self, wake: Callable[[], None]) -> None:
        self.wake = wake

    def detach(self, wake: Callable[[], None]) -> None:
        if wake is self.wake:
            self.wake = lambda: None

    def announce(self, service: str, endpoint: Endpoint, ttl: float) -> None:
        self._record("announce")

    def withdraw(self, service: str, endpoint: Endpoint) -> None:
        self._record("withdraw")

    def close(self) -> None:
        self.calls.append("close")

    def default_host(self) -> str:
        return "10.1.2.3"

    def __str__(self) -> str:
        return "fake://"

    def _record(self, call: str) -> None:
        with self._changed:
            self.calls.append(call)
            self._changed.notify_all()
        self.go_on.wait(PATIENCE)
        if self.down:
            raise ConnectionError("registry is down")

    def wait_for(self, count: int, call: str = "announce") -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.calls.count(call) >= count, PATIENCE), self.calls


class FakeFromURL(FakeRegistrar):
    """Made by a URL, as a scheme needs it."""

    made: ClassVar[list[FakeFromURL]] = []

    @classmethod
    def from_url(cls, url: str) -> FakeFromURL:
        cls.made.append(registrar := cls())
        return registrar


@pytest.fixture
def registrar() -> FakeRegistrar:
    return FakeRegistrar()


def joined(registration: Registration) -> bool:
    registration._thread.join(PATIENCE)
    return not registration._thread.is_alive()


def test_announced_at_once_and_withdrawn_at_the_end(registrar: FakeRegistrar) -> None:
    with register("orders", port=8080, to=registrar, ttl=600) as registration:
        assert registration.wait(PATIENCE)
        assert registrar.calls == ["announce"]
    assert registrar.calls == ["announce", "withdraw"]
    assert joined(registration)


def test_close_is_idempotent(registrar: FakeRegistrar) -> None:
    registration = register("orders", port=8080, to=registrar, ttl=600)
    for _ in range(3):
        registration.close()
    assert registrar.calls.count("withdraw") == 1


def test_the_lease_is_renewed(registrar: FakeRegistrar) -> None:
    with register("orders", port=8080, to=registrar, ttl=0.03):
        registrar.wait_for(5)


def test_a_registrar_may_ask_for_an_announcement(registrar: FakeRegistrar) -> None:
    with register("orders", port=8080, to=registrar, ttl=3600):
        registrar.wait_for(1)
        registrar.wake()
        registrar.wait_for(2)
        registrar.wake()
        registrar.wait_for(3)


def test_a_registry_that_is_down_costs_one_warning(registrar: FakeRegistrar, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "clientlb.registration")
    registrar.down = True
    with register("orders", port=8080, to=registrar, ttl=0.03) as registration:
        registrar.wait_for(3)
        assert not registration.wait(0)
        assert isinstance(registration.last_error, ConnectionError)
        registrar.down = False
        assert registration.wait(PATIENCE)
    messages = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert [text for level, text in messages if level == logging.WARNING] == [
        f"orders at {registration.endpoint} is not announced to fake://, trying on: registry is down"
    ]
    assert (logging.INFO, f"orders at {registration.endpoint} is announced to fake://") in messages


def test_every_outage_is_warned_of_once(registrar: FakeRegistrar, caplog: pytest.LogCaptureFixture) -> None:
    with register("orders", port=8080, to=registrar, ttl=0.03) as registration:
        for _ in range(2):
            registrar.down = True
            registrar.wait_for(registrar.calls.count("announce") + 3)
            registrar.down = False
            registrar.wait_for(registrar.calls.count("announce") + 3)
        assert registration.last_error is None
    assert sum("trying on" in record.getMessage() for record in caplog.records) == 2


def test_close_never_raises_because_the_registry_is_down(
    registrar: FakeRegistrar, caplog: pytest.LogCaptureFixture
) -> None:
    registration = register("orders", port=8080, to=registrar, ttl=600)
    assert registration.wait(PATIENCE)
    registrar.down = True
    registration.close()
    assert "could not leave fake://: registry is down" in caplog.text


def test_close_of_a_registration_that_never_succeeded(registrar: FakeRegistrar) -> None:
    """The registry may have taken an announcement of which only the answer was lost."""
    registrar.down = True
    registration = register("orders", port=8080, to=registrar, ttl=600)
    registrar.wait_for(1)
    registration.close()
    assert registrar.calls[-1] == "withdraw"


@pytest.mark.parametrize("stuck_in", ["announce", "withdraw"])
def test_close_does_not_wait_for_a_registry_that_hangs(
    registrar: FakeRegistrar, caplog: pytest.LogCaptureFixture, stuck_in: str
) -> None:
    if stuck_in == "announce":
        registrar.go_on.clear()
    registration = register("orders", port=8080, to=registrar, ttl=600, timeout=0.1)
    registrar.wait_for(1)
    if stuck_in == "withdraw":
        assert registration.wait(PATIENCE)
        registrar.go_on.clear()
    start = time.monotonic()
    registration.close()
    assert time.monotonic() - start < PATIENCE / 2
    assert "did not leave fake:// within 0.1 s" in caplog.text
    assert registration._thread.daemon
    registrar.go_on.set()
    assert joined(registration)


async def test_async_with_does_not_block_the_loop(registrar: FakeRegistrar, caplog: pytest.LogCaptureFixture) -> None:
    async with register("orders", port=8080, to=registrar, ttl=600) as registration:
        assert await asyncio.to_thread(registration.wait, PATIENCE)
        registrar.go_on.clear()
        # the registry answers only if the loop still runs while the block is being left
        asyncio.get_running_loop().call_soon(lambda: asyncio.get_running_loop().call_soon(registrar.go_on.set))
    assert registrar.calls == ["announce", "withdraw"]
    assert joined(registration)
    assert not caplog.records


def test_a_registrar_that_was_given_stays_open(registrar: FakeRegistrar) -> None:
    register("orders", port=8080, to=registrar).close()
    assert "close" not in registrar.calls


def test_a_registrar_that_was_made_from_a_url_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(clientlb.registration._BUILT_IN, "fake", f"{__name__}:FakeFromURL")
    monkeypatch.setattr(FakeFromURL, "made", [])
    register("orders", port=8080, to="fake://").close()
    with pytest.raises(InvalidEndpointError):
        register("orders", port=0, to="fake://")
    used, refused = FakeFromURL.made
    assert used.calls[-2:] == ["withdraw", "close"]
    assert refused.calls == ["close"]


def test_in_a_forked_child_nothing_of_the_parent_is_withdrawn(registrar: FakeRegistrar) -> None:
    with register("orders", port=8080, to=registrar, ttl=600, timeout=600) as registration:
        assert registration.wait(PATIENCE)
        child = os.fork()
        if child == 0:
            signal.alarm(20)  # there is no thread that it could wait for
            status = 1
            try:
                registration.close()
                status = 0 if registrar.calls == ["announce"] else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert registrar.calls == ["announce"]


def test_what_is_announced(registrar: FakeRegistrar) -> None:
    before = time.time()
    with register(
        "orders", port=8080, to=registrar, weight=2.0, zone="z", version="1", secure=True, metadata={"k": "v"}
    ) as registration:
        endpoint = registration.endpoint
    assert (endpoint.host, endpoint.port, endpoint.weight, endpoint.zone) == ("10.1.2.3", 8080, 2.0, "z")
    assert (endpoint.version, endpoint.secure, endpoint.metadata) == ("1", True, {"k": "v"})
    assert endpoint.started_at is not None
    assert before <= endpoint.started_at <= time.time()
    assert re.fullmatch(r"10\.1\.2\.3:8080-[0-9a-f]{6}", endpoint.id)


def test_host_and_id_can_be_chosen_and_a_restart_is_a_new_instance(registrar: FakeRegistrar) -> None:
    with register("orders", port=8080, to=registrar, host="h", id="one") as chosen:
        assert (chosen.endpoint.host, chosen.endpoint.id) == ("h", "one")
    with register("orders", port=8080, to=registrar) as first, register("orders", port=8080, to=registrar) as second:
        assert first.endpoint.id != second.endpoint.id


def test_repr_says_how_it_stands(registrar: FakeRegistrar) -> None:
    with register("orders", port=8080, to=registrar, ttl=600) as registration:
        assert registration.wait(PATIENCE)
        assert repr(registration) == "<Registration of orders at 10.1.2.3:8080 in fake://: announced>"
    assert repr(registration).endswith("closed>")


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"service": ""}, ConfigurationError, "name of a service"),
        ({"service": " "}, ConfigurationError, "name of a service"),
        ({"service": None}, ConfigurationError, "name of a service"),
        ({"port": 0}, InvalidEndpointError, "port 0"),
        ({"port": 70000}, InvalidEndpointError, "port 70000"),
        ({"port": "80"}, InvalidEndpointError, "port '80'"),
        ({"host": "user:pw@h"}, InvalidEndpointError, "host"),
        ({"host": ""}, InvalidEndpointError, "host ''"),
        ({"weight": 0}, InvalidEndpointError, "weight 0"),
        ({"weight": float("nan")}, InvalidEndpointError, "weight nan"),
        ({"ttl": 0}, ConfigurationError, "ttl is a number of seconds"),
        ({"ttl": float("inf")}, ConfigurationError, "ttl is a number of seconds"),
        ({"timeout": -1}, ConfigurationError, "timeout is a number of seconds"),
        ({"propagation": -1}, ConfigurationError, "propagation is -1"),
        ({"drain_timeout": float("inf")}, ConfigurationError, "drain_timeout is inf"),
        ({"signals": "TERM"}, ConfigurationError, "signals is 'TERM'"),
        ({"signals": (signal.SIGKILL,)}, ConfigurationError, "SIGKILL, which no program can catch"),
        ({"metadata": {"k": 1}}, ConfigurationError, "metadata are strings"),
        ({"to": "etcd://10.0.0.1"}, ConfigurationError, "known are consul, dir, zookeeper"),
        ({"to": "static://10.0.0.1:80"}, ConfigurationError, "unknown scheme 'static'"),
        ({"to": "etcd://user:sesame@10.0.0.1"}, ConfigurationError, r"etcd://\*\*\*@10.0.0.1"),
        ({"to": "registry"}, ConfigurationError, "is not the URL of a registry"),
        ({"to": "dir://relative"}, ConfigurationError, "the path must be absolute"),
        ({"to": "dir:///x?ttl=3"}, ConfigurationError, "unknown option 'ttl'"),
        ({"to": None}, ConfigurationError, "neither a URL nor a Registrar"),
        ({"to": FakeRegistrar}, ConfigurationError, "neither a URL nor a Registrar"),
    ],
)
def test_what_cannot_be_registered(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    registrar = FakeRegistrar()
    with pytest.raises(kind, match=message) as caught:
        register(**({"service": "orders", "port": 8080, "to": registrar} | arguments))
    assert "sesame" not in str(caught.value)
    assert not registrar.calls


def test_registrars_by_url() -> None:
    assert type(open_registrar("dir:///run/registry?interval=0.1")) is DirectoryRegistrar
    assert str(open_registrar("dir:///run/registry")) == "dir:///run/registry"
    assert isinstance(FakeRegistrar(), Registrar)


# ---------------------------------------------------------------------- self-test


class Server:
    """What a self-test asks: fit or not, or hanging."""

    def __init__(self) -> None:
        self.fit = True
        self.go_on = threading.Event()
        self.go_on.set()

    def test(self) -> bool:
        self.go_on.wait(PATIENCE)
        return self.fit


def test_a_failing_server_is_withdrawn_once_and_comes_back(
    registrar: FakeRegistrar, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "clientlb.registration")
    server = Server()
    with register("orders", port=8080, to=registrar, ttl=0.3, self_test=server.test) as registration:
        registrar.wait_for(1)
        server.fit = False
        registrar.wait_for(1, "withdraw")
        assert "withdrawn" in repr(registration)
        announcements = registrar.calls.count("announce")
        registrar.wake()  # a reconnect does not bring it back
        server.fit = True
        registrar.wait_for(announcements + 2)
    assert registrar.calls.count("withdraw") == 2
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        f"orders at {registration.endpoint} is withdrawn from fake://: the self-test returned False",
    ]
    assert sum("is announced to" in record.getMessage() for record in caplog.records) == 2


def test_a_server_is_not_announced_before_it_passes(registrar: FakeRegistrar) -> None:
    server, asked = Server(), threading.Semaphore(0)
    server.fit = False

    def test() -> bool:
        asked.release()
        return server.test()

    with register("orders", port=8080, to=registrar, ttl=0.3, self_test=test) as registration:
        assert asked.acquire(timeout=PATIENCE)
        assert asked.acquire(timeout=PATIENCE)
        assert not registration.wait(0)
        assert not registrar.calls
        server.fit = True
        assert registration.wait(PATIENCE)


def test_a_self_test_fails_by_raising_and_says_why(registrar: FakeRegistrar, caplog: pytest.LogCaptureFixture) -> None:
    broken: list[Exception] = []

    def test() -> None:  # None is fine: a test may only raise
        if broken:
            raise broken[0]

    with register("orders", port=8080, to=registrar, ttl=0.3, self_test=test):
        registrar.wait_for(1)
        broken.append(OSError("disk full"))
        registrar.wait_for(1, "withdraw")
    assert "the self-test failed: disk full" in caplog.text


def test_a_self_test_that_hangs_fails_and_holds_up_nothing(
    registrar: FakeRegistrar, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server()
    registration = register("orders", port=8080, to=registrar, ttl=0.3, self_test=server.test)
    registrar.wait_for(1)
    server.go_on.clear()
    registrar.wait_for(1, "withdraw")
    assert "the self-test has not ended for 0.1 s" in caplog.text
    server.go_on.set()
    announcements = registrar.calls.count("announce")
    registrar.wait_for(announcements + 1)
    server.go_on.clear()
    registration.close()
    assert joined(registration)
    server.go_on.set()


def test_a_withdrawal_that_fails_is_tried_again(registrar: FakeRegistrar) -> None:
    server = Server()
    with register("orders", port=8080, to=registrar, ttl=0.3, self_test=server.test):
        registrar.wait_for(1)
        registrar.down, server.fit = True, False
        registrar.wait_for(2, "withdraw")
        registrar.down = False
        registrar.wait_for(3, "withdraw")


# ---------------------------------------------------------------------- leaving


def test_leave_takes_the_entry_out_first_and_stops_the_server_last(registrar: FakeRegistrar) -> None:
    calls: list[str] = []
    registration = register(
        "orders",
        port=8080,
        to=registrar,
        propagation=0.05,
        on_leave=lambda: calls.append(f"unready {registrar.calls[-1]}"),
        stop=lambda: calls.append(f"stop {registrar.calls[-1]} {registration.stage.value}"),
    )
    assert registration.wait(PATIENCE)
    assert (registration.stage, registration.leaving) == (Stage.SERVING, False)
    before = time.monotonic()
    registration.leave()
    assert time.monotonic() - before >= 0.05
    assert calls == ["unready announce", "stop withdraw left"]
    assert (registration.stage, registration.leaving) == (Stage.LEFT, True)
    registration.leave()
    registration.close()
    assert len(calls) == 2
    assert registrar.calls == ["announce", "withdraw"]


def test_leave_waits_for_requests(registrar: FakeRegistrar) -> None:
    registration = register("orders", port=8080, to=registrar, propagation=0)
    assert registration.wait(PATIENCE)
    leaving = threading.Thread(target=registration.leave)
    with registration.request():
        leaving.start()
        wait_until(lambda: registration.stage is Stage.DRAINING)
        assert registration.in_flight == 1
        assert leaving.is_alive()
    leaving.join(PATIENCE)
    assert not leaving.is_alive()


def test_leave_does_not_wait_for_ever(registrar: FakeRegistrar, caplog: pytest.LogCaptureFixture) -> None:
    registration = register("orders", port=8080, to=registrar, timeout=0.1, propagation=0.1, drain_timeout=0.1)
    assert registration.wait(PATIENCE)
    registrar.go_on.clear()
    with registration.request():
        before = time.monotonic()
        registration.leave()
    assert 0.3 <= time.monotonic() - before < PATIENCE / 2
    assert "1 requests have not ended" in caplog.text
    registrar.go_on.set()


def test_callbacks_that_fail_stop_nothing(registrar: FakeRegistrar, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError("broken")

    registration = register("orders", port=8080, to=registrar, propagation=0, on_leave=fail, stop=fail)
    registration.leave()
    assert registration.stage is Stage.LEFT
    assert "on_leave of orders" in caplog.text
    assert "stop of orders" in caplog.text


async def test_aleave_does_not_block_the_loop(registrar: FakeRegistrar) -> None:
    registration = register("orders", port=8080, to=registrar, propagation=0)
    assert await asyncio.to_thread(registration.wait, PATIENCE)
    registrar.go_on.clear()
    asyncio.get_running_loop().call_soon(lambda: asyncio.get_running_loop().call_soon(registrar.go_on.set))
    await registration.aleave()
    assert registrar.calls == ["announce", "withdraw"]


def test_a_registrar_is_told_when_a_registration_ends(registrar: FakeRegistrar) -> None:
    with register("orders", port=8080, to=registrar):
        attached = registrar.wake
    assert registrar.wake is not attached


def test_the_zone_may_come_from_the_environment(registrar: FakeRegistrar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIENTLB_ZONE", "eu-1")
    with register("orders", port=1, to=registrar) as one, register("orders", port=1, to=registrar, zone="b") as other:
        assert (one.endpoint.zone, other.endpoint.zone) == ("eu-1", "b")
