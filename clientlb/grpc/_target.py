"""Where one endpoint's channel goes, and the channel arguments that it gets. No I/O.

What we set can be set otherwise by the user, argument by argument.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

import grpc

from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError

_SINGLE_THREADED = "SingleThreadedUnaryStream"

ChannelOptions = Sequence[tuple[str, Any]]


@lru_cache(maxsize=1024)
def is_address(host: str) -> bool:
    """Whether a host is an IP address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def target_of(endpoint: Endpoint) -> str:
    """The endpoint as a gRPC target."""
    if not is_address(endpoint.host):
        return f"dns:///{endpoint.address}"
    return f"{'ipv6' if ':' in endpoint.host else 'ipv4'}:{endpoint.address}"


def credentials_of(endpoint: Endpoint, credentials: grpc.ChannelCredentials | None) -> grpc.ChannelCredentials | None:
    """The user's credentials; else TLS for an endpoint whose registry says that it speaks TLS."""
    if credentials is None and endpoint.secure:
        return grpc.ssl_channel_credentials()
    return credentials


def require_options(service: str, options: object) -> None:
    """Refuse channel arguments that grpcio would refuse only when the first endpoint is connected to."""
    if options is None:
        return
    pairs = isinstance(options, Collection) and all(
        isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], (str, bytes)) for pair in options
    )
    if not pairs:
        raise ConfigurationError(f"service {service!r}: options is {options!r}; give pairs of (name, value)")


def options_of(service: str, options: ChannelOptions | None, *, secure: bool) -> list[tuple[str, Any]]:
    """The user's channel arguments, and ours where the user has none.

    Args:
        service: Name of the service: what servers see as `:authority`, and what a certificate has to say.
        options: The user's.
        secure: The channel uses TLS.
    """
    ours: dict[str, Any] = {
        # an http_proxy variable would otherwise send calls to internal addresses through the proxy
        "grpc.enable_http_proxy": 0,
        # subchannels shared by the whole process do not survive a fork
        "grpc.use_local_subchannel_pool": 1,
        "grpc.default_authority": service,
        # retries are ours; a retryPolicy out of a DNS record would multiply them. Transparent retries stay on
        "grpc.service_config_disable_resolution": 1,
        # a restarted server gets calls within moments, not after up to two minutes; other endpoints serve meanwhile
        "grpc.initial_reconnect_backoff_ms": 100,
        "grpc.max_reconnect_backoff_ms": 2000,
        # which is also how long one attempt to connect may take
        "grpc.min_reconnect_backoff_ms": 5000,
        # a peer that vanished without a word is noticed under a silent stream. Servers punish pings (with
        # ENHANCE_YOUR_CALM) that come more often than every five minutes, or while there are no calls
        "grpc.keepalive_time_ms": 330_000,
        "grpc.keepalive_timeout_ms": 20_000,
        "grpc.keepalive_permit_without_calls": 0,
    }
    if secure:
        ours["grpc.ssl_target_name_override"] = service
    # a stream that is read on a single thread tells nobody about its end, so its calls in flight could not be counted
    theirs = [pair for pair in options or () if pair[0] != _SINGLE_THREADED]
    known = {key for key, _ in theirs}
    return [*theirs, *((key, value) for key, value in ours.items() if key not in known)]
