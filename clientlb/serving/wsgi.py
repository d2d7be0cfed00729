"""Deadlines of requests that a WSGI application serves, for the calls that it makes on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from clientlb.deadlines import deadline
from clientlb.serving.header import DEADLINE_HEADER, expiry_of, left_until

__all__ = ["DeadlineMiddleware"]

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class DeadlineMiddleware:
    """Lets every call that a WSGI application makes inherit the deadline of the request that it serves.

        app = DeadlineMiddleware(app)
        app.wsgi_app = DeadlineMiddleware(app.wsgi_app)     # Flask

    It holds while the body of the answer is made, too. The application itself is not interrupted;
    `clientlb.time_remaining()` says how much time it has.

    Args:
        app: The application.
        header: From which the time is read, in milliseconds if the name ends in `-ms`, else in seconds (default
            `X-Request-Timeout-Ms`). Clients send it with `Options(deadline_header=...)`.
    """

    def __init__(self, app: App, header: str = DEADLINE_HEADER) -> None:
        self._app = app
        self._header = header
        self._key = f"HTTP_{header.upper().replace('-', '_')}"

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Handle one request, as WSGI defines it."""
        expires = expiry_of(self._header, environ.get(self._key))
        if expires is None:
            return self._app(environ, start_response)
        with deadline(left_until(expires)):
            parts = self._app(environ, start_response)
        # of a finished answer servers know the length, and of a file they may have a way of their own to send it
        wrapper = environ.get("wsgi.file_wrapper")
        made = (list, tuple, wrapper) if isinstance(wrapper, type) else (list, tuple)
        return parts if isinstance(parts, made) else _Answer(parts, expires)


class _Answer:
    """An answer whose parts are made one by one, each within the time of its request."""

    def __init__(self, parts: Iterable[bytes], expires: float) -> None:
        self._parts = parts
        self._expires = expires

    def __iter__(self) -> Iterator[bytes]:
        with deadline(left_until(self._expires)):
            parts = iter(self._parts)
        while True:
            with deadline(left_until(self._expires)):  # not across `yield`: the server goes on meanwhile
                try:
                    part = next(parts)
                except StopIteration:
                    return
            yield part

    def close(self) -> None:
        if hasattr(self._parts, "close"):
            self._parts.close()
