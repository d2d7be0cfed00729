"""The time that an attempt has, as httpx's `timeout` extension, and a way to end an attempt before that.

httpcore asks for a timeout when a phase begins: for a connection, the write, the head of the response, its body. So
what it gets is what is left at that moment, and the phases together take no longer than the whole.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from math import inf
from types import ModuleType
from typing import Any

_SHORTEST = 0.001  # a timeout of 0 would make a socket non-blocking
_PHASES = ("connect", "read", "write", "pool")


class Timeouts(dict[str, Any]):
    """The timeouts of an attempt that has to be over at some moment.

    Args:
        given: The caller's; they hold as well.
        clock: That of the balancer.
        expires: The moment.
    """

    def __init__(self, given: Mapping[str, Any], clock: Callable[[], float], expires: float) -> None:
        super().__init__({phase: given.get(phase) for phase in _PHASES})
        self._clock = clock
        self.expires: float = expires

    def __getitem__(self, phase: str) -> Any:
        given = super().__getitem__(phase)
        if self.expires == inf:
            return given
        left = max(_SHORTEST, self.expires - self._clock())
        return left if given is None else min(given, left)

    def get(self, phase: str, default: Any = None) -> Any:
        """Seconds for a phase that begins now."""
        try:
            return self[phase]
        except KeyError:
            return default


class Interrupt:
    """Ends what a thread reads from a connection: the connection is cut.

    Args:
        function: What the thread does.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._reading: Any = None
        self._cut = False

    def run(self) -> Any:
        """Do it, on this thread."""
        _here.interrupt = self
        try:
            return self._function()
        finally:
            del _here.interrupt

    def cut(self) -> None:
        """End it. Called from another thread."""
        with self._lock:
            self._cut = True
            if self._reading is not None:
                connection = self._reading.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)  # not TLS's own, which is not thread-safe

    @contextlib.contextmanager
    def reading(self, stream: Any) -> Iterator[None]:
        """The thread reads from this stream."""
        with self._lock:
            if self._cut:
                raise ConnectionAbortedError("another attempt of the same call was faster")
            self._reading = stream
        try:
            yield
        finally:
            with self._lock:
                self._reading = None


_here = threading.local()


class _Stream:
    """A stream of httpcore's that may be cut while it is read."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        interrupt: Interrupt | None = getattr(_here, "interrupt", None)
        if interrupt is None:
            found: bytes = self._stream.read(max_bytes, timeout)
        else:
            with interrupt.reading(self._stream):
                found = self._stream.read(max_bytes, timeout)
        return found

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> _Stream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class Backend:
    """httpcore's network, with streams that may be cut.

    Args:
        core: `httpcore` or `httpcore2`.
    """

    def __init__(self, core: ModuleType) -> None:
        self._backend = core.SyncBackend()

    def connect_tcp(self, *args: Any, **options: Any) -> _Stream:
        """As in httpcore."""
        return _Stream(self._backend.connect_tcp(*args, **options))

    def connect_unix_socket(self, *args: Any, **options: Any) -> _Stream:
        """As in httpcore."""
        return _Stream(self._backend.connect_unix_socket(*args, **options))

    def sleep(self, seconds: float) -> None:
        """As in httpcore."""
        self._backend.sleep(seconds)
