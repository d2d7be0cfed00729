"""ScriptedServer: a real HTTP server on loopback that fails, dawdles, hangs or is gone when the test says so."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from clientlb.endpoint import Endpoint
from clientlb.errors import ClosedError
from clientlb.require import require_int, require_number

if TYPE_CHECKING:
    from clientlb.testing._loopback import Listener


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """A request that reached a server.

    Attributes:
        method: `GET`, `POST` …
        path: With its query.
        headers: By name in lower case.
        body: All of it.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Reaction:
    """How one request is answered. Seconds of infinity: never, until the server is gone."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    hang_up: bool = False


class ScriptedServer:
    """An HTTP server on a port of the loopback interface; any method, any path, any number of connections.

    It answers 200 with its own address. What is said of the next requests is done in the order in which it was said:

        server.fail(times=2)           # 503, 503, and then as ever
        server.slow(0.5)               # the next answer takes half a second
        server.hang()                  # the next request is never answered
        server.hang_up()               # its connection is closed without an answer
        server.answer(429, headers={"Retry-After": "1"}, times=None)    # from now on
        server.refuse()                # nobody listens on the port, open connections break; until `accept()`

    `times` is a number of requests (default 1); None makes it the answer to all that have no other. Thread-safe.

    Args:
        host: The address that it listens on (default 127.0.0.1).
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self._lock = threading.Lock()
        self._script: deque[Reaction] = deque()
        self._requests: list[SeenRequest] = []
        self._listener: Listener | None = None
        self._closed = False
        # keeps the port while nobody listens on it
        self._port = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._port.bind((host, 0))
        self.endpoint: Endpoint = Endpoint(host, self._port.getsockname()[1])
        """Where it listens, for a registry."""
        self._always = Reaction(body=self.address.encode())
        try:
            self.accept()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """Its `host:port`."""
        return str(self.endpoint)

    @property
    def requests(self) -> list[SeenRequest]:
        """What it was asked so far, in the order of arrival."""
        with self._lock:
            return list(self._requests)

    def answer(
        self,
        status: int = 200,
        body: bytes | str = b"",
        *,
        headers: Mapping[str, str] | None = None,
        times: int | None = 1,
    ) -> None:
        """Answer with this."""
        content = body.encode() if isinstance(body, str) else body
        self._add(Reaction(status, content, dict(headers or {})), times)

    def fail(self, times: int | None = 1, status: int = 503) -> None:
        """Answer with an error."""
        self.answer(status, times=times)

    def slow(self, seconds: float, times: int | None = 1) -> None:
        """Answer as ever, after so many seconds."""
        require_number("seconds", seconds, at_least=0)
        self._add(Reaction(body=self.address.encode(), seconds=seconds), times)

    def hang(self, times: int | None = 1) -> None:
        """Take the request and never answer."""
        self._add(Reaction(seconds=float("inf")), times)

    def hang_up(self, times: int | None = 1) -> None:
        """Take the request and close its connection without an answer."""
        self._add(Reaction(hang_up=True), times)

    def reset(self) -> None:
        """Forget what was said, and what was asked; answer as at the beginning."""
        with self._lock:
            self._script.clear()
            self._requests.clear()
            self._always = Reaction(body=self.address.encode())

    def refuse(self) -> None:
        """Break all connections and refuse new ones, as a server that has died. Idempotent."""
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def accept(self) -> None:
        """Listen again, on the same port. Does nothing if it listens.

        Raises:
            ClosedError: After `close`.
        """
        from clientlb.testing._loopback import Listener  # only here: pytest loads this module in every run

        with self._lock:
            if self._closed:
                raise ClosedError("the server is closed")
            if self._listener is None:
                self._listener = Listener(self._host, self.endpoint.port, self._react)

    def close(self) -> None:
        """Break all connections and give the port back. Idempotent."""
        with self._lock:
            self._closed = True
        self.refuse()
        self._port.close()

    def _add(self, reaction: Reaction, times: int | None) -> None:
        if times is not None:
            require_int("times", times, 1)
        with self._lock:
            if times is None:
                self._always = reaction
            else:
                self._script.extend([reaction] * times)

    def _react(self, request: SeenRequest) -> Reaction:
        with self._lock:
            self._requests.append(request)
            return self._script.popleft() if self._script else self._always

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ScriptedServer {self.address}, {len(self._requests)} requests>"
