"""Where an endpoint is beyond its host and port: a unix socket, a base path. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError

Locate = Callable[[Endpoint], str | None]
"""What a user gives: the socket or the base path of an endpoint; None if it has none."""


class Place(NamedTuple):
    """Attributes:
    uds: Path of a unix socket that is connected to, instead of host and port.
    base_path: What is put before the path of every URL, without a slash at its end; empty for nothing.
    """

    uds: str | None = None
    base_path: bytes = b""


ORDINARY = Place()


class Places:
    """The places of the endpoints of one client.

    Args:
        uds: The socket of an endpoint.
        base_path: Its base path.
    """

    def __init__(self, uds: Locate | None, base_path: Locate | None) -> None:
        self._uds = uds
        self._base_path = base_path

    def of(self, endpoint: Endpoint) -> Place:
        """The place of an endpoint.

        Raises:
            ConfigurationError: The base path that it has cannot be one.
        """
        if self._uds is None and self._base_path is None:
            return ORDINARY
        uds = None if self._uds is None else self._uds(endpoint)
        base_path = (None if self._base_path is None else self._base_path(endpoint)) or ""
        if not base_path.isascii() or any(each in base_path for each in "?# \r\n") or base_path[:1] not in ("", "/"):
            raise ConfigurationError(
                f"base_path of endpoint {endpoint} is {base_path!r}; give a path that begins with a slash, as in a URL"
            )
        return Place(uds or None, base_path.rstrip("/").encode())


def below(base_path: bytes, target: bytes) -> bytes:
    """The target of a request to a server whose paths all begin with a base path.

    A target that lies there already is left alone: servers know their base path, and redirect to it.
    """
    path = target.partition(b"?")[0]
    if path == base_path or path.startswith(base_path + b"/") or not target.startswith(b"/"):
        return target
    return base_path + target
