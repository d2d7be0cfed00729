"""httpx clients and transports whose URLs name services instead of servers.

    with clientlb.Services("consul://127.0.0.1:8500") as services, clientlb.httpx.Client(services) as http:
        http.get("http://orders/v1/items/7")

`Client` and `AsyncClient` are httpx clients, with everything that these have. `Transport` and `AsyncTransport` are for
a client that is built elsewhere: `httpx.Client(transport=Transport(services))`.

**Which hosts are services.** A single label (no dot) that is neither `localhost` nor an IP address, and every name that
has options of its own in `Services(options={...})`. Where that is wrong, `hosts=` decides alone: a set of names, a
mapping of host to service (`{"api.example.com": "orders"}`), or a predicate over hosts. A service whose name has upper
case, which the host of a URL cannot have, is found through `hosts=` or its options. Every other host is left to an
ordinary transport. A port in the URL of a service is ignored, because the registry knows the ports: so redirects work
that a server made from its own port.

**What a server sees.** The address is the endpoint's; the `Host` header, cookies and `response.url` stay those of the
service. TLS is used if the URL says `https` or the endpoint is `secure`; server name and certificate are those of the
host in the URL. Services are called directly, never through a proxy.

**Retries** go to another endpoint. What surely never reached a server is repeated for any request. What may have
reached one is repeated if the method is idempotent, if there is an `Idempotency-Key` header, or if the call says so:
`extensions={"clientlb": {"idempotent": True}}`; see `clientlb.CallOptions` for what else a call can set. A body that is
read from an iterator or a file cannot be sent twice: the first error is raised, unless nothing was read of it yet.

**What happened** is in `response.extensions["clientlb"]`, a `clientlb.Trace`, and in the notes of an exception. A call
is in flight until its response is closed, so streamed responses have to be closed, as always in httpx.
"""

from __future__ import annotations

try:
    import httpcore
    import httpx
except ImportError as _error:
    raise ImportError("this needs httpx: pip install 'clientlb[httpx]'", name=_error.name) from _error

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


class NoEndpointsError(errors.NoEndpointsError, httpx.ConnectError):
    """No endpoint of the service became known in time: for httpx, it could not connect."""


class DeadlineExceededError(errors.DeadlineExceededError, httpx.ConnectTimeout):
    """The deadline of the call was over before it was sent: for httpx, a timeout."""


class ThrottledError(errors.ThrottledError, httpx.ConnectError):
    """The client refused the call, because the service turns most calls away: for httpx, it could not connect."""


_FLAVOUR = Flavour(httpx, httpcore, NoEndpointsError, DeadlineExceededError, ThrottledError)


class Transport(SyncShell[httpx.Request, httpx.Response, httpx.BaseTransport], httpx.BaseTransport):
    """A transport for `httpx.Client`. Threads may share it; a forked child makes connections of its own."""

    _flavour = _FLAVOUR


class AsyncTransport(AsyncShell[httpx.Request, httpx.Response, httpx.AsyncBaseTransport], httpx.AsyncBaseTransport):
    """A transport for `httpx.AsyncClient`. Every event loop that uses it has connections of its own."""

    _flavour = _FLAVOUR


class Client(BalancedClient[httpx.BaseTransport], httpx.Client):
    """An `httpx.Client` that calls services: the host of a URL is the name of the service."""

    _shell_type = Transport


class AsyncClient(BalancedClient[httpx.AsyncBaseTransport], httpx.AsyncClient):
    """An `httpx.AsyncClient` that calls services: the host of a URL is the name of the service."""

    _shell_type = AsyncTransport
