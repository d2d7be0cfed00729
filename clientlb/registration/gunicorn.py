"""Registration for gunicorn: its master, which owns the port and hears the signals, registers once for all workers.

The hooks fork the workers from a process that has a registration. They leave it alone (an entry belongs to the process
that made it). `clientlb register -- gunicorn …` does the same from outside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from clientlb.registration import Registration, register
from clientlb.registration.base import Registrar

__all__ = ["hooks"]

Hook = Callable[[Any], None]


def hooks(service: str, *, port: int, to: str | Registrar, **options: Any) -> tuple[Hook, Hook]:
    """Return gunicorn's hooks `when_ready` and `on_exit`, for its configuration file.

        from clientlb.registration.gunicorn import hooks

        bind = "0.0.0.0:8080"
        when_ready, on_exit = hooks("orders", port=8080, to="consul://127.0.0.1:8500")

    On SIGTERM the server leaves the registry, its workers go on serving for the propagation time, and then gunicorn
    ends as ever: workers finish what they do, within its own `graceful_timeout`. SIGINT and SIGQUIT end it at once.

    Args:
        service: The name under which clients find the server.
        port: The port that gunicorn is bound to.
        to: The registry, as for `register`.
        **options: What else `clientlb.registration.register` takes.
    """
    registrations: list[Registration] = []

    def when_ready(server: Any) -> None:
        registrations.append(register(service, port=port, to=to, **options))

    def on_exit(server: Any) -> None:
        for registration in registrations:
            registration.close()

    return when_ready, on_exit
