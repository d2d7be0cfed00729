"""The contract between a server that wants to be found and a registry, and the thread that keeps the promise.

A `Registrar` knows one registry and does one thing at a time; `Registration` decides when: at once, every third of the
lease, after a failure with a growing pause, whenever the registrar asks for it, and not at all while the server fails
its self-test. It never stops a server from starting or ending because the registry is down.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from clientlb.discovery._backoff import Backoff
from clientlb.endpoint import Endpoint
from clientlb.registration import _signals
from clientlb.registration._selftest import SelfTest, SelfTestFunction
from clientlb.registration.departure import Departure, Stage

logger: logging.Logger = logging.getLogger("clientlb.registration")

RENEWALS_PER_LEASE = 3
"""A lease is renewed this many times before it could end, so that two renewals may fail."""

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 1.5  # seconds: two after the end of an outage, the entry is to be there again


@runtime_checkable
class Registrar(Protocol):
    """Announces servers to one registry. Every method may block for a bounded time of a few seconds.

    `announce`, `withdraw`, `detach` and the final `close` are called on the thread of a registration. One registrar may
    serve several registrations, each on its own thread. `str()` names the registry without secrets.
    """

    def attach(self, wake: Callable[[], None]) -> None:
        """Take a callback (one per registration) that asks for an `announce` at once, such as after a reconnect.

        It may be called from any thread and returns at once. A registrar with nothing to say ignores it.
        """

    def detach(self, wake: Callable[[], None]) -> None:
        """Forget a callback: its registration has ended."""

    def announce(self, service: str, endpoint: Endpoint, ttl: float) -> None:
        """Create or renew the entry of the endpoint, for `ttl` seconds. Any exception means that it failed."""

    def withdraw(self, service: str, endpoint: Endpoint) -> None:
        """Remove the entry of the endpoint. One that is gone already is no error."""

    def close(self) -> None:
        """Release the connection. Idempotent."""

    def default_host(self) -> str:
        """The address under which this machine is reached by whoever reads this registry. Does not wait for it."""


class Registration:
    """One server's entry in a registry, kept alive by a daemon thread until the server leaves.

    Made by `clientlb.registration.register`, which describes the arguments. There are two ways to end it: `leave()`
    takes the entry out and goes on serving until no client calls any more; `close()`, and the end of a `with` or
    `async with` block, only takes the entry out.
    """

    def __init__(
        self,
        registrar: Registrar,
        service: str,
        endpoint: Endpoint,
        *,
        ttl: float,
        timeout: float,
        owns_registrar: bool,
        propagation: float,
        drain_timeout: float,
        self_test: SelfTestFunction | None = None,
        on_leave: Callable[[], object] | None = None,
        stop: Callable[[], object] | None = None,
        signals: Iterable[signal.Signals] = (),
    ) -> None:
        self.service = service
        self.endpoint = endpoint
        self._registrar = registrar
        self._ttl = ttl
        self._timeout = timeout
        self._owns_registrar = owns_registrar
        self._on_leave = on_leave
        self._stop = stop
        self._longest_stay = propagation + drain_timeout
        self._pid = os.getpid()
        self._renewal = ttl / RENEWALS_PER_LEASE
        self._backoff = Backoff(_FIRST_PAUSE, min(max(self._renewal, _FIRST_PAUSE), _LONGEST_PAUSE))
        self._departure = Departure(propagation, drain_timeout)
        self._moved = threading.Condition()  # guards the departure
        self._wake = threading.Event()
        self._wake_up = self._wake.set  # one object: whoever gave it to a registrar can take it back
        self._announced = threading.Event()
        self._closing = threading.Event()
        self._done = threading.Event()
        self._left = threading.Event()
        self._close_until = 0.0
        self._is_given_up = False
        self._has_stopped = False
        self._error: Exception | None = None
        self._is_known = False  # the registry may name us: something was announced and not withdrawn since
        self._was_known = False
        self._is_unfit = False
        self._self_test: SelfTest | None = None
        if self_test is not None:
            self._self_test = SelfTest(
                self_test,
                interval=self._renewal,
                limit=self._renewal,
                changed=self._wake_up,
                name=f"clientlb-selftest-{service}",
            )
            self._self_test.start()
        registrar.attach(self._wake_up)
        self._thread = threading.Thread(target=self._run, name=f"clientlb-register-{service}", daemon=True)
        # before the first announcement: a program that is named must not die without notice
        _signals.hold(self, signals)
        atexit.register(self.close)
        self._thread.start()

    @property
    def last_error(self) -> Exception | None:
        """Why the last announcement failed; None when it did not."""
        return self._error

    @property
    def stage(self) -> Stage:
        """How far the server has come on its way out; `SERVING` until it leaves."""
        return Stage.LEFT if self._left.is_set() else self._departure.stage

    @property
    def leaving(self) -> bool:
        """Whether the server has begun to leave, so that it should say "not ready" and keep no connection alive."""
        return self._closing.is_set() or self._departure.stage is not Stage.SERVING

    @property
    def in_flight(self) -> int:
        """How many requests are under way, as far as they are told by `request()`."""
        return self._departure.in_flight

    @property
    def longest_leave(self) -> float:
        """The most seconds that `leave()` takes, without what `stop` takes beyond them."""
        return self._timeout + self._longest_stay

    @property
    def ends_program(self) -> bool:
        """Whether `stop` was called, and did not fail: the end of the server is the end of the program."""
        return self._has_stopped

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the registry took the announcement for the first time; False after `timeout` seconds."""
        return self._announced.wait(timeout)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count one request as being under way for as long as the block lasts: leaving waits for it."""
        self.request_began()
        try:
            yield
        finally:
            self.request_ended()

    def request_began(self) -> None:
        """Count one request more; for servers in which a request is not a block of code."""
        with self._moved:
            self._departure.in_flight += 1

    def request_ended(self) -> None:
        """Count one request less."""
        with self._moved:
            self._departure.in_flight -= 1
            if not self._departure.in_flight:
                self._moved.notify_all()

    def leave(self) -> None:
        """Leave without losing a call, and return when the server may stop.

        Stops renewing, takes the entry out of the registry (at most `timeout` seconds), waits for the propagation time
        while the server goes on serving, waits for the requests under way (at most `drain_timeout` seconds), and
        calls `stop`. Idempotent; whoever calls it while somebody else leaves waits as well. Never raises. In a forked
        child it does nothing, for the entry belongs to the parent.
        """
        if os.getpid() != self._pid:
            return
        with self._moved:
            is_first = self._departure.begin()
        if not is_first:
            if not self._left.wait(self.longest_leave):
                logger.warning("%s did not leave %s in time", *self._who)
            return
        try:
            self._call("on_leave", self._on_leave)
            self.close()
            with self._moved:
                self._departure.withdrawn(time.monotonic(), was_known=self._was_known)
                while (pause := self._departure.pause(time.monotonic())) is not None:
                    self._moved.wait(pause)
                unfinished = self._departure.in_flight
            if unfinished:
                logger.warning("%s left %s, but %d requests have not ended", *self._who, unfinished)
            self._has_stopped = self._call("stop", self._stop)
        finally:
            self._left.set()

    async def aleave(self) -> None:
        """`leave()` for async code: the event loop goes on meanwhile."""
        import asyncio  # only here: a server without async code need not load it

        await asyncio.to_thread(self.leave)
        _signals.release(self)  # once more in this thread, which may be the main one: only that has handlers

    def close(self) -> None:
        """Stop renewing and take the entry out of the registry, without waiting for those who have not heard of it.

        Idempotent. Waits at most `timeout` seconds in all and never raises because the registry is down: the entry then
        ends with its lease. In a forked child it does nothing, for the entry belongs to the parent.
        """
        if os.getpid() != self._pid:
            return
        if not self._closing.is_set():
            self._close_until = time.monotonic() + self._timeout
        self._closing.set()
        self._wake.set()
        if not self._done.wait(max(0.0, self._close_until - time.monotonic())) and not self._is_given_up:
            self._is_given_up = True
            logger.warning("%s did not leave %s within %g s: its entry ends with its lease", *self._who, self._timeout)
        if self._self_test is not None:
            self._self_test.close()
        atexit.unregister(self.close)
        _signals.release(self)

    async def aclose(self) -> None:
        """`close()` for async code: the event loop goes on meanwhile."""
        import asyncio

        await asyncio.to_thread(self.close)
        _signals.release(self)

    @property
    def _who(self) -> tuple[str, str]:
        return (f"{self.service} at {self.endpoint}", str(self._registrar))

    def _call(self, name: str, callback: Callable[[], object] | None) -> bool:
        """Call what may be there and may fail; says whether it was there and did not."""
        if callback is None:
            return False
        try:
            callback()
        except Exception as error:
            logger.warning("%s of %s failed: %s", name, self._who[0], str(error) or type(error).__name__)
            return False
        return True

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                self._wake.clear()
                # close() sets `closing` before `wake`: asked again here, a wake that was just cleared is not lost
                if self._closing.is_set():
                    break
                self._wake.wait(self._keep_promise())
            self._withdraw_for_good()
        finally:
            self._done.set()

    def _keep_promise(self) -> float:
        """Bring the registry in line with what the server is; return the seconds until the next time."""
        complaint = None if self._self_test is None else self._self_test.complaint
        try:
            if complaint is None:
                self._announce()
            elif self._is_known:
                self._withdraw(complaint)
        except Exception as error:
            if self._error is None:
                wish = "announced to" if complaint is None else "withdrawn from"
                reason = error or type(error).__name__
                logger.warning("%s is not %s %s, trying on: %s", self._who[0], wish, self._who[1], reason)
            self._error = error
            return self._backoff.failed()
        self._backoff.succeeded()
        return self._renewal

    def _announce(self) -> None:
        # from now on, even if it fails: the registry may take it while only its answer is lost
        self._is_known = self._was_known = True
        self._registrar.announce(self.service, self.endpoint, self._ttl)
        if self._error is not None or self._is_unfit or not self._announced.is_set():
            logger.info("%s is announced to %s", *self._who)
        self._error, self._is_unfit = None, False
        self._announced.set()

    def _withdraw(self, complaint: str) -> None:
        if not self._is_unfit:
            logger.warning("%s is withdrawn from %s: %s", *self._who, complaint)
        self._is_unfit = True
        self._registrar.withdraw(self.service, self.endpoint)
        self._error, self._is_known = None, False

    def _withdraw_for_good(self) -> None:
        try:
            if self._is_known:
                self._registrar.withdraw(self.service, self.endpoint)
                logger.info("%s left %s", *self._who)
        except Exception as error:
            logger.warning("%s could not leave %s: %s", *self._who, error or type(error).__name__)
        try:
            self._registrar.detach(self._wake_up)
            if self._owns_registrar:
                self._registrar.close()
        except Exception as error:
            logger.warning("closing %s failed: %s", self._registrar, error or type(error).__name__)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        if self.leaving:
            state = "closed" if self._done.is_set() else "leaving"
        elif self._is_unfit:
            state = "withdrawn"
        else:
            state = "announced" if self._announced.is_set() else "not announced"
        return f"<Registration of {self._who[0]} in {self._who[1]}: {state}>"
