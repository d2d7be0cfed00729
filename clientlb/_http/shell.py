"""The transports: they tell services from ordinary hosts, keep connections, and let `clientlb.drive` make the calls.

`Shell` is what both kinds share; `SyncShell` and `AsyncShell` are the thin I/O. Each flavour mixes its own transport
class in, so that its clients accept them.
"""

from __future__ import annotations

import ssl
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Hashable, Iterable
from functools import partial
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from clientlb import events
from clientlb._http.body import aclose_retired, close_retired
from clientlb._http.direct import AsyncDirect, AsyncThrough, Direct, Through
from clientlb._http.exchange import SCHEMES, AsyncExchange, Exchange
from clientlb._http.flavour import Flavour, Settings
from clientlb._http.hosts import Hosts, host_rule
from clientlb._http.links import Links
from clientlb._http.message import URL, AnyRequest
from clientlb._http.place import Place, Places
from clientlb.aio import is_over, run_in, running_loop
from clientlb.crew import Crew
from clientlb.endpoint import Endpoint
from clientlb.errors import ClosedError, ConfigurationError, NotSentError
from clientlb.forks import never_free, survive_forks
from clientlb.require import require_callable, require_int
from clientlb.services import Services, require_services

AnyResponse = TypeVar("AnyResponse")
MAX_IDLE = 512


class _SyncTransport(Protocol):
    def handle_request(self, request: Any, /) -> Any: ...
    def close(self) -> None: ...


class _AsyncTransport(Protocol):
    def handle_async_request(self, request: Any, /) -> Coroutine[Any, Any, Any]: ...
    async def aclose(self) -> None: ...


TransportT = TypeVar("TransportT")
SyncTransportT = TypeVar("SyncTransportT", bound=_SyncTransport)
AsyncTransportT = TypeVar("AsyncTransportT", bound=_AsyncTransport)


class Shell(ABC, Generic[TransportT]):
    """What a sync and an async transport share."""

    _flavour: ClassVar[Flavour]
    _transport_name: ClassVar[str]
    _ways: ClassVar[tuple[type, type]]

    def __init__(
        self,
        services: Services,
        *,
        hosts: Hosts | None = None,
        inner: Callable[[Endpoint], TransportT] | None = None,
        passthrough: TransportT | None = None,
        verify: ssl.SSLContext | str | bool = True,
        cert: Any = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: Any = None,
        max_idle: int = MAX_IDLE,
        uds: Callable[[Endpoint], str | None] | None = None,
        base_path: Callable[[Endpoint], str | None] | None = None,
    ) -> None:
        """Make a transport. It connects at the first request.

        Args:
            services: Where the endpoints come from. It is borrowed: closing the transport leaves it open.
            hosts: Which hosts are services: a set of names, a mapping host -> service, or a predicate over hosts. It
                decides alone. None (default) takes every single label, and names that have options of their own.
            inner: Makes the transport to an endpoint, a new one for each, which is closed when the endpoint has left
                (default: httpcore's connection pool, as in httpx, with the arguments below).
            passthrough: The transport for every other host (default: one ordinary `HTTPTransport` with the arguments
                below). It is closed with this one, as httpx closes the transport of a client.
            verify, cert, trust_env: As in httpx. The certificate is checked against the name of the service.
            http1, http2: As in httpx.
            limits: As in httpx, but per endpoint.
            max_idle: To how many endpoints connections are kept while no call uses them (default 512).
            uds: The unix socket of an endpoint, to be connected to instead of its host and port; None for one that has
                none (default: none has).
            base_path: What comes before the path of every URL at an endpoint, such as `/api`; None for nothing
                (default: nothing). A URL that lies there already, as a redirect of the server may, is left as it is.

        Raises:
            ConfigurationError: An argument of ours cannot be right, or there is `uds` or `base_path` besides `inner`.
        """
        require_services(services)
        require_int("max_idle", max_idle, 0)
        for name, way in (("inner", inner), ("uds", uds), ("base_path", base_path)):
            if way is not None:
                require_callable(name, way, "a callable that is given the endpoint")
        if inner is not None and (uds is not None or base_path is not None):
            raise ConfigurationError("uds and base_path are for transports of our own: with inner, it decides")
        self._places = Places(uds, base_path)
        self._services = services
        self._rule = host_rule(services, hosts)
        self._max_idle = max_idle
        self._closed = False
        self._matched: tuple[URL | None, str | None] = (None, None)  # one object, which threads replace as a whole
        module = self._flavour.module
        needed = inner is None or passthrough is None  # else there is no reason to load certificates
        settings = Settings(verify=verify, cert=cert, trust_env=trust_env, http1=http1, http2=http2, limits=limits)
        arguments = settings.arguments(module) if needed else {}
        direct, through = self._ways
        self._make: Callable[[Endpoint, Place], Any] = (
            partial(direct, self._flavour, settings=arguments)
            if inner is None
            else lambda endpoint, place: through(self._flavour, endpoint, inner(endpoint))
        )
        self._make_ordinary: Callable[[], TransportT] = (
            partial(getattr(module, self._transport_name), **arguments) if passthrough is None else lambda: passthrough
        )
        self._begin()
        self._hook = _hook(self)
        services.add_hook(self._hook)
        survive_forks(self, Shell._after_fork)

    @abstractmethod
    def _begin(self) -> None:
        """Begin without connections."""

    @abstractmethod
    def _all_links(self) -> Iterable[Links[TransportT]]:
        """Those of every event loop."""

    @abstractmethod
    def _endpoints_changed(self, service: str) -> None:
        """Close connections to endpoints that left and that no call uses. Called on any thread."""

    def _stop(self) -> None:
        self._closed = True
        self._services.remove_hook(self._hook)

    def _after_fork(self) -> None:
        """In a forked child: leave the parent's connections alone, for closing them would talk over them."""
        for links in self._all_links():
            links.inherited = True
            never_free(links)
        self._begin()

    def _new_links(self) -> Links[TransportT]:
        return Links(self._make, self._make_ordinary, self._max_idle, self._places.of)

    def service_of(self, url: URL) -> str | None:
        """The name of the service that a URL is for; None for an ordinary host."""
        if self._closed:
            raise ClosedError("the transport is closed")
        return self._rule(url.host) if url.scheme in SCHEMES else None

    def matches(self, url: URL) -> bool:
        """Whether the URL is for a service. That it is handled next is remembered."""
        service = self.service_of(url)
        self._matched = url, service
        return service is not None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._services!r}>"


class SyncShell(Shell[SyncTransportT], Generic[AnyRequest, AnyResponse, SyncTransportT]):
    """A transport for the sync client. Threads share it; a forked child makes connections of its own."""

    _transport_name = "HTTPTransport"
    _ways = (Direct, Through)

    def _begin(self) -> None:
        self._links = self._new_links()
        self._crew = Crew()

    def _all_links(self) -> Iterable[Links[SyncTransportT]]:
        return [self._links]

    def _endpoints_changed(self, service: str) -> None:
        links = self._links
        if links.endpoints_changed(service):
            close_retired(links)

    def handle_request(self, request: AnyRequest) -> AnyResponse:
        """Send a request to an endpoint of its service, or pass it through.

        Raises:
            NoEndpointsError: No endpoint of the service became known in time; it is the flavour's `ConnectError` too.
            DeadlineExceededError: The deadline was over before the call was sent; it is a `ConnectTimeout` too.
            ThrottledError: The client refused the call, see `ThrottleOptions`; it is a `ConnectError` too.
            ConfigurationError: The options in `request.extensions["clientlb"]` are wrong.
            ClosedError: The transport or its services are closed.
        """
        url, matched = request.url, self._matched
        service = matched[1] if matched[0] is url else self.service_of(url)
        links = self._links
        if service is None:
            ordinary: AnyResponse = links.ordinary.handle_request(request)
            return ordinary
        balancer = self._services[service]
        exchange = Exchange(self._flavour, balancer, links, request)
        try:
            response = exchange.call(self._crew)
        except NotSentError as error:
            raise self._flavour.not_sent_error(error, request) from None
        if response.is_closed:  # made with its body: nobody will close its stream
            response.stream.close()
        result: AnyResponse = response
        return result

    def close(self) -> None:
        """Close every connection. Idempotent."""
        self._stop()
        links = self._links
        links.closed = True  # how a call ends from now on is our doing
        self._crew.close()  # first: whoever reads from a connection that is closed waits on, and can no longer be cut
        links.retire_all()
        close_retired(links)


class AsyncShell(Shell[AsyncTransportT], Generic[AnyRequest, AnyResponse, AsyncTransportT]):
    """A transport for the async client. Every event loop that uses it has its own connections."""

    _transport_name = "AsyncHTTPTransport"
    _ways = (AsyncDirect, AsyncThrough)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        # replaced, never changed, so that reading needs no lock
        self._by_loop: dict[Hashable, Links[AsyncTransportT]] = {}

    def _all_links(self) -> Iterable[Links[AsyncTransportT]]:
        return self._by_loop.values()

    def _endpoints_changed(self, service: str) -> None:
        for loop, links in self._by_loop.items():
            if links.endpoints_changed(service):
                run_in(loop, aclose_retired, links)

    def handle_async_request(self, request: AnyRequest) -> Coroutine[Any, Any, AnyResponse]:
        """Send a request to an endpoint of its service, or pass it through; a coroutine, with a frame less than most.

        Raises:
            NoEndpointsError: No endpoint of the service became known in time; it is the flavour's `ConnectError` too.
            DeadlineExceededError: The deadline was over before the call was sent; it is a `ConnectTimeout` too.
            ThrottledError: The client refused the call, see `ThrottleOptions`; it is a `ConnectError` too.
            ConfigurationError: The options in `request.extensions["clientlb"]` are wrong.
            ClosedError: The transport or its services are closed.
        """
        url, matched = request.url, self._matched
        service = matched[1] if matched[0] is url else self.service_of(url)
        links = self._links_here()
        if service is None:
            ordinary: Coroutine[Any, Any, AnyResponse] = links.ordinary.handle_async_request(request)
            return ordinary
        return AsyncExchange(self._flavour, self._services[service], links, request).call()

    def _links_here(self) -> Links[AsyncTransportT]:
        loop = running_loop()
        links = self._by_loop.get(loop)
        return self._begin_in(loop) if links is None else links

    def _begin_in(self, loop: Hashable) -> Links[AsyncTransportT]:
        links = self._new_links()
        with self._lock:
            # connections of a loop that is closed cannot be closed any more, only dropped
            alive = {other: theirs for other, theirs in self._by_loop.items() if not is_over(other)}
            self._by_loop = {**alive, loop: links}
        return links

    async def aclose(self) -> None:
        """Close every connection, in the event loop that it belongs to. Idempotent."""
        self._stop()
        here = running_loop()
        for loop, links in self._by_loop.items():
            links.retire_all()
            if loop is not here:
                run_in(loop, aclose_retired, links)
        own = self._by_loop.get(here)
        if own is not None:  # last, for this may be cancelled
            await aclose_retired(own)


def _hook(shell: Shell[Any]) -> events.EventHook:
    """Tell a transport about endpoints that left, as long as somebody else holds it."""
    reference = weakref.ref(shell)
    services = shell._services

    def hook(event: events.Event) -> None:
        if isinstance(event, events.EndpointsChanged):
            found = reference()
            if found is None:
                services.remove_hook(hook)
            else:
                found._endpoints_changed(event.service)

    return hook
