"""Answers probes in a WSGI application (Flask, Django, Bottle …): one wrapper around it.

With several worker processes behind one port, a probe is answered by one of them, for itself alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from clientlb.probing.http import PATH, answer_of
from clientlb.probing.meter import LoadMeter, Running

__all__ = ["Probed"]

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Probed:
    """A WSGI application that counts its requests and answers probes. A request ends when its answer was sent.

    Args:
        app: The application.
        meter: What counts; to share it with another way in (default: one of its own).
        path: Where probes are answered (default `/.well-known/clientlb-load`).
    """

    def __init__(self, app: App, meter: LoadMeter | None = None, path: str = PATH) -> None:
        self._app = app
        self._path = path
        self.meter: LoadMeter = meter or LoadMeter()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Handle one request, as WSGI defines it."""
        if environ.get("PATH_INFO") == self._path and environ.get("REQUEST_METHOD") == "GET":
            body = answer_of(self.meter.load())
            start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
            return [body]
        request = _Request(self.meter.began())

        def start_and_look(status: str, *others: Any, **named: Any) -> Any:
            request.succeeded = status < "5"
            return start_response(status, *others, **named)

        try:
            parts = self._app(environ, start_and_look)
            return (_SizedAnswer if hasattr(parts, "__len__") else _Answer)(parts, request)
        except BaseException:
            request.running.end(telling=False)
            raise


class _Request:
    """One request and whether it went well."""

    __slots__ = ("running", "succeeded")

    def __init__(self, running: Running) -> None:
        self.running: Running = running
        self.succeeded: bool = False


class _Answer:
    """The parts of an answer; servers call `close` when they have sent them, or gave up."""

    def __init__(self, parts: Iterable[bytes], request: _Request) -> None:
        self._parts = parts
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._parts)

    def close(self) -> None:
        try:
            if hasattr(self._parts, "close"):
                self._parts.close()
        finally:
            self._request.running.end(telling=self._request.succeeded)


class _SizedAnswer(_Answer):
    """Of an answer in one part, servers know the Content-Length."""

    def __len__(self) -> int:
        return len(self._parts)  # type: ignore[arg-type]
