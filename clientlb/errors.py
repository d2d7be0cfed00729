"""The exceptions of clientlb.

    ClientLBError
      ├─ ConfigurationError   (also ValueError)    a URL, an option or an argument that cannot be right
      │    └─ InvalidEndpointError                 a host, port or weight that no server can have
      ├─ DiscoveryError                            a registry could not be read; the last good list stays in use
      ├─ RegistrationError                         a server could not be announced or withdrawn
      ├─ NotSentError                              a call ended before it was sent anywhere
      │    ├─ NoEndpointsError                     no list of endpoints arrived in time
      │    ├─ DeadlineExceededError (also TimeoutError)  its deadline was over before it began
      │    └─ ThrottledError                       most calls fail, so the client refused this one itself
      └─ ClosedError          (also RuntimeError)  used after close()

An open circuit breaker never raises: when nothing healthy is left, the balancer uses what there is.
A call that fails after its retries raises the *last real error* of the transport underneath.
"""

from __future__ import annotations

from typing import TypeVar


class ClientLBError(Exception):
    """Base class of every exception that clientlb raises itself."""


class ConfigurationError(ClientLBError, ValueError):
    """A URL, an option or an argument is wrong; the message names it and says what would be right."""


class InvalidEndpointError(ConfigurationError):
    """An endpoint has a host, a port or a weight that no server can have."""


class DiscoveryError(ClientLBError):
    """A registry could not be read. It is reported to the listener and never empties a good list."""


class RegistrationError(ClientLBError):
    """A server could not be announced to, or withdrawn from, a registry."""


class NotSentError(ClientLBError):
    """A call ended before it was sent to any server."""


class DeadlineExceededError(NotSentError, TimeoutError):
    """The deadline of a call, its own or an inherited one, was over before it was sent."""


class ThrottledError(NotSentError):
    """The service turns most calls away, so this one was not even sent; see `ThrottleOptions`."""


class NoEndpointsError(NotSentError):
    """No endpoint of the service became known in time.

    The message says which service, which registry, since when it was asked and what the registry last answered.
    """


class ClosedError(ClientLBError, RuntimeError):
    """The object was used after `close()`."""


AnyError = TypeVar("AnyError", bound=ClientLBError)


def of_service(service: str, error: AnyError) -> AnyError:
    """The same error, whose message says now which service it is about."""
    error.args = (f"service {service!r}: {error}",)
    return error
