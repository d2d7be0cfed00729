"""A `KazooClient` that goes on trying, in good time. What kazoo 2.11 does on its own, and what is done about it here:

- Its pauses between attempts to reconnect grow to an hour; ours to a second.
- It waits for the answer to its introduction as long as a session may last. A server that is just starting accepts
  connections and never answers on them: here the first patience is a second, and doubles up to kazoo's own.
- A failed SASL handshake ends its thread for good, also when the server only crashed in the middle of it. Here it is a
  dropped connection.
- Why it cannot connect is told to its log only, with every single attempt. Here the last reason is kept for our errors.
- `stop()` may take seven seconds when the server hangs, so it runs on a thread of its own.

The three changes to its connection are made to the one object, from outside.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import ConnectionDropped
from kazoo.protocol.serialization import Connect

from clientlb.discovery._zookeeper_settings import Ensemble

_RECONNECT = {"max_tries": -1, "delay": 0.1, "backoff": 1.5, "max_delay": 1.0}
_NO_RETRY = {"max_tries": 0}
_FIRST_PATIENCE = 1.0

# kazoo logs every attempt to reconnect as a warning. Ours says once what matters; set a level to hear it all.
_kazoo_log = logging.getLogger("clientlb.kazoo")


class LastWarning(logging.LoggerAdapter[logging.Logger]):
    """kazoo's log, which also remembers what was last wrong with the connection."""

    last = ""

    def warning(self, msg: object, *args: object, **kwargs: Any) -> None:
        """Remember, and log as ever."""
        if args:  # the others give no reason
            self.last = str(msg) % args
        super().warning(msg, *args, **kwargs)


def make_client(ensemble: Ensemble) -> Any:
    """Make a client, not started yet. Its `logger` is a `LastWarning`."""
    if _kazoo_log.level == logging.NOTSET:
        _kazoo_log.setLevel(logging.CRITICAL)
    client = KazooClient(
        connection_retry=_RECONNECT,
        command_retry=_NO_RETRY,
        logger=LastWarning(_kazoo_log),
        **ensemble.kazoo_arguments(),
    )
    connection = client._connection
    connection._invoke = _impatient(connection._invoke)
    connection._authenticate_with_sasl = _dropping(connection._authenticate_with_sasl)
    return client


def stop(client: Any) -> None:
    """End a client and its session, without waiting for it."""
    in_background(_stop, client)


def in_background(work: Callable[..., None], *arguments: Any) -> None:
    """Run something that takes a moment on a thread of its own."""
    threading.Thread(target=work, args=arguments, name="clientlb-zookeeper-later", daemon=True).start()


def _stop(client: Any) -> None:
    try:
        client.stop()
        client.close()
    except Exception as error:  # nobody is left to be told, and nothing more can be done
        _kazoo_log.debug("stopping a client failed: %s", error)


def _impatient(invoke: Callable[..., Any]) -> Callable[..., Any]:
    patience = _FIRST_PATIENCE

    def attempt(timeout: float, request: Any, xid: int | None = None) -> Any:
        nonlocal patience
        if not isinstance(request, Connect):
            return invoke(timeout, request, xid)
        limit, patience = min(timeout, patience), patience * 2  # a slow server must not be asked for ever in vain
        answer = invoke(limit, request, xid)
        patience = _FIRST_PATIENCE
        return answer

    return attempt


def _dropping(authenticate: Callable[..., None]) -> Callable[..., None]:
    def attempt(host: str, timeout: float) -> None:
        try:
            authenticate(host, timeout)
        except Exception as error:
            raise ConnectionDropped(f"SASL authentication failed: {str(error) or type(error).__name__}") from error

    return attempt
