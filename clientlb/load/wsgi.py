"""Load reports of WSGI applications, in the headers of their answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from clientlb.load import LoadRecorder
from clientlb.orca import HEADER

__all__ = ["Reported"]

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Reported:
    """A WSGI application that says with every answer how busy it is.

        app = Reported(app, LoadRecorder(capacity=threads))

    A request is under way until its answer was sent. A status from 500 on and an exception are failures.

    Args:
        app: The application.
        recorder: Of this process.
    """

    def __init__(self, app: App, recorder: LoadRecorder) -> None:
        self._app = app
        self._recorder = recorder

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Handle one request, as WSGI defines it."""
        request = _Request(self._recorder, start_response)
        try:
            parts = self._app(environ, request.start_response)
            return (_SizedAnswer if hasattr(parts, "__len__") else _Answer)(parts, request)
        except BaseException:
            request.failed = True
            request.end()
            raise


class _Request:
    """One request under way."""

    def __init__(self, recorder: LoadRecorder, start_response: Callable[..., Any]) -> None:
        self._recorder: LoadRecorder | None = recorder
        self._start_response = start_response
        self.failed = False
        recorder.began()

    def start_response(self, status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
        self.failed = status.startswith("5")
        said = None if self._recorder is None else self._recorder.text()
        return self._start_response(status, headers if said is None else [*headers, (HEADER, said)], *error)

    def end(self) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.ended(failed=self.failed)


class _Answer:
    """The parts of an answer; servers call `close` when they have sent them, or gave up."""

    def __init__(self, parts: Iterable[bytes], request: _Request) -> None:
        self._parts = parts
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._parts
        except Exception:
            self._request.failed = True
            raise

    def close(self) -> None:
        try:
            if hasattr(self._parts, "close"):
                self._parts.close()
        finally:
            self._request.end()


class _SizedAnswer(_Answer):
    """Of an answer in one part, servers know the Content-Length."""

    def __len__(self) -> int:
        return len(self._parts)  # type: ignore[arg-type]
