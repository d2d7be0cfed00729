"""The time that an attempt has, as httpx's `timeout` extension, and a way to end an attempt before that.

httpcore asks for a timeout once for each phase (to connect, to write, for the head of the response, for its body) and
uses it for everything it waits for in that phase. So it gets a number that remembers where it came from, and the
streams of `clientlb._http.streams` ask anew what is left of the attempt: all phases together take no longer than that.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from math import inf
from typing import Any

from clientlb.call import FOREVER

_SHORTEST = 0.001  # a timeout of 0 would make a socket non-blocking


class Timeouts(dict[str, Any]):
    """The timeouts of an attempt that has to be over at some moment.

    Args:
        given: The caller's; they hold as well.
        clock: That of the balancer.
        expires: The moment.
        interrupt: Ends the attempt early, if there is a way to.
    """

    def __init__(
        self,
        given: Mapping[str, Any],
        clock: Callable[[], float],
        expires: float,
        interrupt: Interrupt | None = None,
    ) -> None:
        super().__init__(given)
        self.clock: Callable[[], float] = clock
        self.expires: float = expires
        self.interrupt = interrupt

    def __getitem__(self, phase: str) -> Any:
        return self.get(phase)

    def get(self, phase: str, default: Any = None) -> Any:
        """Seconds for a phase that begins now."""
        given = super().get(phase)
        if self.expires == inf and self.interrupt is None:
            return given
        if given is None:
            given = FOREVER
        left = self.expires - self.clock()
        remaining = Remaining(given if given < left else left if left > _SHORTEST else _SHORTEST)
        remaining.given = given
        remaining.timeouts = self
        return remaining


class Remaining(float):
    """A timeout in seconds, as of the beginning of a phase; it knows how to tell what is left of it later.

    Attributes:
        given: What the caller allows; `FOREVER` is no limit.
        timeouts: Of the attempt.
    """

    __slots__ = ("given", "timeouts")

    given: float
    timeouts: Timeouts

    def now(self) -> float | None:
        """What is left, as a timeout; None is no limit."""
        given, timeouts = self.given, self.timeouts
        left = timeouts.expires - timeouts.clock()
        if given < left:
            return None if given == FOREVER else given
        return left if left > _SHORTEST else _SHORTEST


class Interrupt:
    """Ends what a thread waits for at a connection: the connection is cut. Connecting goes on until its own timeout.

    Attributes:
        aborted: Makes the error that the thread gets. Without it nothing is cut.
    """

    def __init__(self) -> None:
        self.aborted: Callable[[str], Exception] | None = None
        self._lock = threading.Lock()
        self._busy: socket.socket | None = None
        self._over = False

    def cut(self) -> None:
        """End it. Called from another thread."""
        with self._lock:
            self._over = True
            if self._busy is not None:
                with contextlib.suppress(OSError):
                    # not TLS's own, which is not thread-safe
                    socket.socket.shutdown(self._busy, socket.SHUT_RDWR)

    @contextlib.contextmanager
    def watching(self, connection: socket.socket) -> Iterator[None]:
        """The thread waits for something at this connection."""
        if self.aborted is None:
            yield
            return
        self._look(connection)
        try:
            yield
        finally:
            with self._lock:
                self._busy = None
        self._look(None)  # what was cut looks as if the server had hung up

    def _look(self, connection: socket.socket | None) -> None:
        with self._lock:
            if self._over and self.aborted is not None:
                raise self.aborted("the attempt was ended early")
            self._busy = connection
