"""What the sync and the aio channel have in common: whose calls they balance, how they hear of changes and forks."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import grpc

from clientlb import events
from clientlb.balancer import Balancer
from clientlb.call import Asking, asking
from clientlb.endpoint import Endpoint
from clientlb.errors import ClosedError, ConfigurationError
from clientlb.forks import never_free, survive_forks
from clientlb.grpc._target import ChannelOptions, credentials_of, options_of, require_options, target_of
from clientlb.grpc._verdict import Idempotence
from clientlb.options import CallKey, Where
from clientlb.services import Services, require_services

KeyOf: TypeAlias = Callable[[str, Any, Any], CallKey | None]
"""Gives the key of a call by its method, its request (None for a stream of requests) and its metadata."""
WhereOf: TypeAlias = Callable[[str, Any, Any], Where | None]
"""Gives what a call asks of its endpoint, by the same."""


class ServiceChannel:
    """A channel to a service. `begin`, `inherited`, `endpoints_changed` and `ejected` are the two kinds' own.

    Args:
        service: Name of the service.
        services: Where it is found.
        credentials: The user's.
        options: The user's channel arguments.
        compression: The user's.
        idempotent: The methods that may be repeated.
        key: Of calls.
        where: What calls ask of their endpoint.
    """

    def __init__(
        self,
        service: str,
        services: Services,
        credentials: grpc.ChannelCredentials | None,
        options: ChannelOptions | None,
        compression: grpc.Compression | None,
        idempotent: bool | Collection[str],
        key: CallKey | KeyOf | None,
        where: Where | WhereOf | None,
    ) -> None:
        require_services(services)
        require_options(service, options)
        if credentials is not None and not isinstance(credentials, grpc.ChannelCredentials):
            raise ConfigurationError(
                f"service {service!r}: credentials is {credentials!r}; give grpc.ChannelCredentials"
            )
        self.service = service
        self.idempotence: Idempotence = Idempotence(idempotent)
        self.ask: Asking | None = asking(service, key, where)
        self._services = services
        self._balancer = services[service]
        self._credentials = credentials
        self._options = options
        self._compression = compression
        self._closed = False
        self.watching: Balancer | None = self._balancer
        """The balancer of the next call, if nothing has to be done before it; else `balancer()` says."""
        self.begin()
        self._hook = _hook(self)
        services.add_hook(self._hook)
        survive_forks(self, ServiceChannel.after_fork)

    def begin(self) -> None:
        """Make everything that does not survive a fork."""

    def inherited(self) -> Any:
        """In a forked child: what belongs to the parent."""

    def endpoints_changed(self) -> None:
        """Discovery has delivered another list; this is its thread."""

    def ejected(self, endpoint: Endpoint) -> None:
        """The breaker of an endpoint has opened; this is the thread of the call that it was opened by."""

    def closed_error(self) -> ClosedError:
        """What a call gets after `close`."""
        return ClosedError("the channel is closed")

    def balancer(self) -> Balancer:
        """Whoever picks the endpoint of the next call.

        Raises:
            ClosedError: This channel or its `Services` is closed.
        """
        if self._closed:
            raise self.closed_error()
        self.watching = self._services[self.service]
        return self.watching

    def stop_listening(self) -> bool:
        """Begin to close. Returns False when that has happened before."""
        if self._closed:
            return False
        self._closed = True
        self.watching = None
        self._services.remove_hook(self._hook)
        return True

    def arguments(self, endpoint: Endpoint) -> tuple[str, grpc.ChannelCredentials | None, list[tuple[str, Any]]]:
        """Target, credentials and options for the channel to one endpoint."""
        credentials = credentials_of(endpoint, self._credentials)
        options = options_of(self.service, self._options, secure=credentials is not None)
        return target_of(endpoint), credentials, options

    def after_fork(self) -> None:
        """In a forked child: the parent's channels are of no use here, and must not be closed here either."""
        never_free(self.inherited())
        self.watching = None  # the registry has to be watched anew
        self.begin()

    def __repr__(self) -> str:
        return f"<{type(self).__module__.removesuffix('._channel')}.Channel {self.service!r}>"


def _hook(channel: ServiceChannel) -> events.EventHook:
    """Tell a channel about changes, as long as somebody else holds it."""
    reference = weakref.ref(channel)
    service = channel.service
    services = channel._services

    def hook(event: events.Event) -> None:
        kind = type(event)
        if (kind is events.EndpointsChanged or kind is events.Ejected) and event.service == service:
            found = reference()
            if found is None:
                services.remove_hook(hook)
            elif isinstance(event, events.Ejected):
                found.ejected(event.endpoint)
            else:
                found.endpoints_changed()

    return hook
