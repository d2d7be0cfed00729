"""The contract between a server that wants to be found and a registry, and the thread that keeps the promise.

A `Registrar` knows one registry and does one thing at a time; `Registration` decides when: at once, every third of the
lease, after a failure with a growing pause, and whenever the registrar asks for it. It never stops a server from
starting or ending because the registry is down.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from clientlb.endpoint import Endpoint

logger: logging.Logger = logging.getLogger("clientlb.registration")

RENEWALS_PER_LEASE = 3
"""A lease is renewed this many times before it could end, so that two renewals may fail."""

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 5.0


@runtime_checkable
class Registrar(Protocol):
    """Announces servers to one registry. Every method may block for a bounded time of a few seconds.

    `announce`, `withdraw` and the final `close` are called on the thread of a registration. One registrar may serve
    several registrations, each on its own thread. `str()` names the registry without secrets.
    """

    def attach(self, wake: Callable[[], None]) -> None:
        """Take a callback (one per registration) that asks for an `announce` at once, such as after a reconnect.

        It may be called from any thread and returns at once. A registrar with nothing to say ignores it.
        """

    def announce(self, service: str, endpoint: Endpoint, ttl: float) -> None:
        """Create or renew the entry of the endpoint, for `ttl` seconds. Any exception means that it failed."""

    def withdraw(self, service: str, endpoint: Endpoint) -> None:
        """Remove the entry of the endpoint. One that is gone already is no error."""

    def close(self) -> None:
        """Release the connection. Idempotent."""

    def default_host(self) -> str:
        """The address under which this machine is reached by whoever reads this registry. Does not wait for it."""


class Registration:
    """One server's entry in a registry, kept alive by a daemon thread until `close()`.

    Made by `clientlb.registration.register`. Use it with `with`, with `async with`, or call `close()`.

    Args:
        registrar: The registry.
        service: The name under which the server is found.
        endpoint: The server.
        ttl: Seconds after which a server that stopped renewing counts as dead.
        timeout: The longest that `close()` waits, in seconds, for the registry to take the entry out.
        owns_registrar: Close the registrar at the end.
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
    ) -> None:
        self.service = service
        self.endpoint = endpoint
        self._registrar = registrar
        self._ttl = ttl
        self._timeout = timeout
        self._owns_registrar = owns_registrar
        self._pid = os.getpid()
        self._wake = threading.Event()
        self._announced = threading.Event()
        self._closing = threading.Event()
        self._done = threading.Event()
        self._error: Exception | None = None
        registrar.attach(self._wake.set)
        self._thread = threading.Thread(target=self._run, name=f"clientlb-register-{service}", daemon=True)
        self._thread.start()

    @property
    def last_error(self) -> Exception | None:
        """Why the last announcement failed; None when it did not."""
        return self._error

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the registry took the announcement for the first time; False after `timeout` seconds."""
        return self._announced.wait(timeout)

    def close(self) -> None:
        """Stop renewing and take the entry out of the registry.

        Idempotent. Waits at most `timeout` seconds and never raises because the registry is down: the entry then
        ends with its lease. In a forked child it does nothing, for the entry belongs to the parent.
        """
        if os.getpid() != self._pid:
            return
        self._closing.set()
        self._wake.set()
        if threading.current_thread() is not self._thread and not self._done.wait(self._timeout):
            logger.warning("%s did not leave %s within %g s: its entry ends with its lease", *self._who, self._timeout)

    async def aclose(self) -> None:
        """`close()` for async code: the event loop goes on meanwhile."""
        import asyncio  # only here: a server without async code need not load it

        await asyncio.to_thread(self.close)

    @property
    def _who(self) -> tuple[str, str]:
        return (f"{self.service} at {self.endpoint}", str(self._registrar))

    def _run(self) -> None:
        failures = 0
        try:
            while not self._closing.is_set():
                self._wake.clear()
                # close() sets `closing` before `wake`: asked again here, a wake that was just cleared is not lost
                if self._closing.is_set():
                    break
                failures = 0 if self._announce(failures) else failures + 1
                self._wake.wait(self._pause(failures))
            self._leave()
        finally:
            self._done.set()

    def _announce(self, failures: int) -> bool:
        try:
            self._registrar.announce(self.service, self.endpoint, self._ttl)
        except Exception as error:
            self._error = error
            if not failures:
                logger.warning("%s is not announced to %s, trying on: %s", *self._who, error or type(error).__name__)
            return False
        self._error = None
        if failures or not self._announced.is_set():
            logger.info("%s is announced to %s", *self._who)
        self._announced.set()
        return True

    def _pause(self, failures: int) -> float:
        renewal = self._ttl / RENEWALS_PER_LEASE
        if not failures:
            return renewal
        pause = _FIRST_PAUSE * 2.0 ** min(failures - 1, 10)
        # half of it random: many servers come back together when their registry does
        return min(pause, max(renewal, _FIRST_PAUSE), _LONGEST_PAUSE) * random.uniform(0.5, 1.0)

    def _leave(self) -> None:
        try:
            # also after a failed announcement: the registry may have taken it and only its answer was lost
            self._registrar.withdraw(self.service, self.endpoint)
            logger.info("%s left %s", *self._who)
        except Exception as error:
            logger.warning("%s could not leave %s: %s", *self._who, error or type(error).__name__)
        try:
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
        state = "closed" if self._closing.is_set() else "announced" if self._announced.is_set() else "not announced"
        return f"<Registration of {self._who[0]} in {self._who[1]}: {state}>"
