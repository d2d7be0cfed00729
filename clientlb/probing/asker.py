"""Asks servers for their load beside the calls: a few threads, and a queue that drops what it cannot take.

`ask` is called with the balancer's lock held, so it only puts the question into the queue. An endpoint has one question
under way at most: who is asked more often than it can answer is asked as fast as it answers. One that does not answer
is asked more and more seldom, so that a service without probes costs next to nothing.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from math import isfinite
from queue import SimpleQueue
from types import TracebackType
from typing import Any, ClassVar, Generic, TypeVar

from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError
from clientlb.node import Node
from clientlb.probing.load import Load

_log = logging.getLogger("clientlb.probing")

_PATIENCE = 3
"""Failures in a row, after which an endpoint is asked less often."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_IDLE = 60.0
"""Seconds without a question, after which a connection is closed: the endpoint may have left."""

Connection = TypeVar("Connection")
Answer = Callable[[int, float], None]


class _Line(Generic[Connection]):
    """What is known of one endpoint. While a question is under way, its thread has the connection to itself."""

    __slots__ = ("asked_at", "busy", "connection", "endpoint", "failures", "not_before")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint: Endpoint = endpoint
        self.connection: Connection | None = None
        self.busy: bool = False
        self.failures: int = 0
        self.asked_at: float = 0.0
        self.not_before: float = 0.0


class Asker(ABC, Generic[Connection]):
    """Asks endpoints for their load, on threads that start with the first question. Thread-safe; survives `fork`.

    A subclass says how to connect and how to ask. One asker may serve any number of services.

    Args:
        timeout: Seconds that an answer may take (default 0.05; the paper has 0.003 within a data centre).
        threads: That ask (default 4).
        backlog: Questions that may wait; more are dropped (default 64).

    Raises:
        ConfigurationError: A value is out of its range.
    """

    def __init__(self, *, timeout: float = 0.05, threads: int = 4, backlog: int = 64) -> None:
        for name, value, fits, right in (
            ("timeout", timeout, timeout > 0 and isfinite(timeout), "seconds above 0"),
            ("threads", threads, threads >= 1, "at least 1"),
            ("backlog", backlog, backlog >= 1, "at least 1"),
        ):
            if not fits:
                raise ConfigurationError(f"{type(self).__name__}: {name} is {value!r}; give {right}")
        self.timeout: float = timeout
        self.threads: int = threads
        self.backlog: int = backlog
        self._crew: list[threading.Thread]
        self._closed = False
        self._lines: dict[tuple[str, int, bool], _Line[Connection]] = {}
        self._renew()
        _askers.add(self)

    # ------------------------------------------------------------------ how, said by a subclass

    keeps_connection: ClassVar[bool] = False
    """Whether a connection is still good when a question over it has failed."""

    @abstractmethod
    def connect(self, endpoint: Endpoint) -> Connection:
        """Make a connection to an endpoint; it is kept for the next question."""

    @abstractmethod
    def load(self, connection: Connection) -> Load:
        """Ask, within `timeout`. Whatever it raises means: no answer."""

    @abstractmethod
    def disconnect(self, connection: Connection) -> None:
        """Close a connection."""

    # ------------------------------------------------------------------ the probe

    def ask(self, node: Node, answer: Answer) -> None:
        """Start to ask an endpoint, if that is possible now. Returns at once; see `clientlb.policy.Probe`."""
        endpoint, now = node.endpoint, time.monotonic()
        with self._lock:
            if self._closed:
                return
            key = (endpoint.host, endpoint.port, endpoint.secure)
            line = self._lines.get(key)
            if line is None:
                line = self._lines[key] = _Line(endpoint)
            if line.busy or now < line.not_before or self._questions.qsize() >= self.backlog:
                return
            line.busy = True
            line.asked_at = now
            if now - self._tidied_at > _IDLE:
                self._tidy(now)
            if len(self._crew) < self.threads:
                number = len(self._crew) + 1
                thread = threading.Thread(target=self._work, name=f"clientlb-probe-{number}", daemon=True)
                self._crew.append(thread)
                thread.start()
            self._questions.put((line, answer))

    def close(self) -> None:
        """End the threads and close the connections. Later questions are dropped; a second call has no effect."""
        with self._lock:
            self._closed = True
            crew = self._crew
            self._crew = []
        for _ in crew:
            self._questions.put(None)
        for thread in crew:
            if thread is not threading.current_thread():
                thread.join()
        with self._lock:
            lines, self._lines = list(self._lines.values()), {}
        for line in lines:
            self._drop(line)

    def __enter__(self) -> Asker[Connection]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ the threads

    def _work(self) -> None:
        questions = self._questions
        while (question := questions.get()) is not None:
            line, answer = question
            if answer is None:
                self._drop(line)  # nobody has asked it for long
                continue
            if self._closed:
                continue
            try:
                if line.connection is None:
                    line.connection = self.connect(line.endpoint)
                load = self.load(line.connection)
            except Exception as error:
                self._failed(line, error)
                continue
            line.failures = 0
            line.busy = False
            try:
                answer(*load)
            except Exception:
                _log.exception("an answer to a probe of %s was not taken", line.endpoint)

    def _failed(self, line: _Line[Connection], error: Exception) -> None:
        _log.debug("%s does not answer probes: %r", line.endpoint, error)
        if not self.keeps_connection:
            self._drop(line)
        line.failures += 1
        if line.failures >= _PATIENCE:
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(line.failures - _PATIENCE, 16))
            line.not_before = time.monotonic() + pause
        line.busy = False

    def _drop(self, line: _Line[Connection]) -> None:
        connection, line.connection = line.connection, None
        if connection is not None:
            try:
                self.disconnect(connection)
            except Exception as error:
                _log.debug("a connection to %s was not closed: %r", line.endpoint, error)

    def _tidy(self, now: float) -> None:
        self._tidied_at = now
        for key, line in list(self._lines.items()):
            if not line.busy and now - line.asked_at > 2 * _IDLE:  # longer than the longest pause
                del self._lines[key]
                self._questions.put((line, None))

    # ------------------------------------------------------------------ forks

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._crew = []
        self._questions: SimpleQueue[tuple[_Line[Connection], Answer | None] | None] = SimpleQueue()
        self._tidied_at = time.monotonic()

    def _after_fork(self) -> None:
        """In a forked child: the threads are gone, the connections are the parent's, the lock may have been held."""
        lines, self._lines = list(self._lines.values()), {}
        self._renew()
        for line in lines:
            self.forsake(line.connection)

    def forsake(self, connection: Connection | None) -> None:
        """In a forked child: let go of a connection of the parent, without a word to the server."""


_askers: weakref.WeakSet[Asker[Any]] = weakref.WeakSet()


def _renew_all() -> None:
    for asker in list(_askers):
        asker._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
