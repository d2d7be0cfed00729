"""httpx2 clients and transports whose URLs name services instead of servers.

    with clientlb.Services("consul://127.0.0.1:8500") as services, clientlb.httpx2.Client(services) as http:
        http.get("http://orders/v1/items/7")

All that the docstring of `clientlb.httpx` says is true here, too; the classes and the exceptions are those of httpx2.
"""

from __future__ import annotations

try:
    import httpcore2
    import httpx2
except ImportError as _error:
    raise ImportError("this needs httpx2: pip install 'clientlb[httpx2]'", name=_error.name) from _error

from clientlb import errors
from clientlb._http.client import BalancedClient
from clientlb._http.flavour import Flavour
from clientlb._http.shell import AsyncShell, SyncShell

__all__ = [
    "AsyncClient",
    "AsyncTransport",
    "Client",
    "DeadlineExceededError",
    "NoEndpointsError",
    "ThrottledError",
    "Transport",
]


class NoEndpointsError(errors.NoEndpointsError, httpx2.ConnectError):
    """No endpoint of the service became known in time: for httpx2, it could not connect."""


class DeadlineExceededError(errors.DeadlineExceededError, httpx2.ConnectTimeout):
    """The deadline of the call was over before it was sent: for httpx2, a timeout."""


class ThrottledError(errors.ThrottledError, httpx2.ConnectError):
    """The client refused the call, because the service turns most calls away: for httpx2, it could not connect."""


_FLAVOUR = Flavour(httpx2, httpcore2, NoEndpointsError, DeadlineExceededError, ThrottledError)


class Transport(SyncShell[httpx2.Request, httpx2.Response, httpx2.BaseTransport], httpx2.BaseTransport):
    """A transport for `httpx2.Client`. Threads may share it; a forked child makes connections of its own."""

    _flavour = _FLAVOUR


class AsyncTransport(AsyncShell[httpx2.Request, httpx2.Response, httpx2.AsyncBaseTransport], httpx2.AsyncBaseTransport):
    """A transport for `httpx2.AsyncClient`. Every event loop that uses it has connections of its own."""

    _flavour = _FLAVOUR


class Client(BalancedClient[httpx2.BaseTransport], httpx2.Client):
    """An `httpx2.Client` that calls services: the host of a URL is the name of the service."""

    _shell_type = Transport


class AsyncClient(BalancedClient[httpx2.AsyncBaseTransport], httpx2.AsyncClient):
    """An `httpx2.AsyncClient` that calls services: the host of a URL is the name of the service."""

    _shell_type = AsyncTransport
