"""Registration for WSGI applications (Flask, Django, Bottle …) in a server of one process, such as waitress or cheroot.

WSGI has no word for starting and ending, so the program registers and wraps the application with what it got. For
gunicorn, whose processes share a port, there is `clientlb.registration.gunicorn`; for any other, `clientlb register`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from clientlb.registration.base import Registration

__all__ = ["Registered"]

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Registered:
    """A WSGI application whose requests are counted, so that leaving waits for them.

        registration = clientlb.registration.register("orders", port=8080, to="consul://127.0.0.1:8500")
        waitress.serve(Registered(app, registration), port=8080)

    A request is under way until its answer was sent. HEAD and GET of `readiness` are answered here.

    Args:
        app: The application.
        registration: That of the server, made in the same process.
        readiness: Path that answers with 200, and with 503 as soon as the server leaves (default: none).
    """

    def __init__(self, app: App, registration: Registration, *, readiness: str | None = None) -> None:
        self._app = app
        self._registration = registration
        self._readiness = readiness

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Handle one request, as WSGI defines it."""
        if environ.get("PATH_INFO") == self._readiness and environ.get("REQUEST_METHOD") in ("GET", "HEAD"):
            leaving = self._registration.leaving
            text = b"leaving" if leaving else b"ready"
            status = "503 Service Unavailable" if leaving else "200 OK"
            start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
            return [text]
        self._registration.request_began()
        try:
            parts = self._app(environ, start_response)
            return (_SizedAnswer if hasattr(parts, "__len__") else _Answer)(parts, self._registration)
        except BaseException:
            self._registration.request_ended()
            raise


class _Answer:
    """The parts of an answer; servers call `close` when they have sent them, or gave up."""

    def __init__(self, parts: Iterable[bytes], registration: Registration) -> None:
        self._parts = parts
        self._registration: Registration | None = registration

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._parts)

    def close(self) -> None:
        registration, self._registration = self._registration, None
        try:
            if hasattr(self._parts, "close"):
                self._parts.close()
        finally:
            if registration is not None:
                registration.request_ended()


class _SizedAnswer(_Answer):
    """Of an answer in one part, servers know the Content-Length."""

    def __len__(self) -> int:
        return len(self._parts)  # type: ignore[arg-type]
