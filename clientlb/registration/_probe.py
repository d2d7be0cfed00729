"""Does a server answer? The self-tests of helpers that know its port or the URL of its health."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial

from clientlb.registration._selftest import SelfTestFunction

_CONNECT_TIMEOUT = 1.0


def answers(port: int, hosts: tuple[str, ...] = ("127.0.0.1",)) -> None:
    """Connect to the port under the first of these addresses that takes the connection. Raises OSError if none does."""
    for number, host in enumerate(hosts, 1):
        try:
            socket.create_connection((host, port), _CONNECT_TIMEOUT).close()
            return
        except OSError:
            if number == len(hosts):
                raise


def once_listening(port: int, host: str | None, then: SelfTestFunction | None = None) -> SelfTestFunction:
    """A self-test that fails until the port takes connections, and then is `then`.

    For servers that say "started" before they listen.
    """
    waiting: list[Callable[[], None]] = [partial(answers, port, ("127.0.0.1", *((host,) if host else ())))]

    def test() -> object:
        if waiting:
            waiting[0]()
            waiting.clear()
        return then() if then else True

    return test
