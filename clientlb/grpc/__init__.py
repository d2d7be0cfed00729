"""gRPC for a service instead of a server: `channel("orders", services)` is an ordinary `grpc.Channel`.

    with clientlb.grpc.channel("orders", services) as channel:
        stub = OrdersStub(channel)

Every call is balanced, also calls of one stub and streams. `clientlb.grpc.aio` has the same for coroutines.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

try:
    import grpc
except ImportError as _error:
    raise ImportError("this needs grpcio: pip install 'clientlb[grpc]'", name=_error.name) from _error

from clientlb.grpc._base import KeyOf, WhereOf
from clientlb.grpc._channel import Channel
from clientlb.grpc._errors import (
    ChannelClosedError,
    DeadlineExceededRpcError,
    NoEndpointsRpcError,
    ThrottledRpcError,
)
from clientlb.grpc._serving import DeadlineInterceptor
from clientlb.options import CallKey, Where
from clientlb.services import Services

__all__ = [
    "Channel",
    "ChannelClosedError",
    "DeadlineExceededRpcError",
    "DeadlineInterceptor",
    "NoEndpointsRpcError",
    "ThrottledRpcError",
    "channel",
]


def channel(
    service: str,
    services: Services,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    options: Sequence[tuple[str, Any]] | None = None,
    compression: grpc.Compression | None = None,
    interceptors: Sequence[Any] = (),
    idempotent: bool | Collection[str] = False,
    key: CallKey | KeyOf | None = None,
    where: Where | WhereOf | None = None,
) -> grpc.Channel:
    """Make a channel to a service.

    Args:
        service: Its name in the registry; also its `:authority`, and the name that its certificate has to have.
        services: Where it is found. The channel borrows it: closing the channel leaves it open.
        credentials: As for `grpc.secure_channel`. None (default) means plain text, except for endpoints whose registry
            says that they speak TLS.
        options: Channel arguments for the channel to each endpoint. They win over ours: no HTTP proxy, a subchannel
            pool of our own (so that children of a fork can call), fast reconnection (0.1 to 2 s), a keepalive ping
            under calls that are silent for 5.5 minutes.
        compression: Of requests, unless a call says otherwise.
        interceptors: Client interceptors; they see a call once, however many attempts it takes.
        idempotent: The methods that may safely reach two servers: True for all, or their full names, such as
            `"shop.Orders/Get"`. Others (default: all) are repeated only if the server surely never saw them. gRPC has
            no way to tell, so you have to.
        key: Calls with the same key go to the same endpoint, if the policy is `Rendezvous` or `RingHash`. A callable
            that is given the full name of the method, the request (None for a stream of requests) and the metadata of
            each call: `key=lambda method, request, metadata: request.user_id`; or a value. Text, bytes or a whole
            number; None (default) is no key.
        where: Metadata that the endpoint should have, if the policy is wrapped in `Filter`; a mapping, or a callable as
            for `key`.

    A call fails with the error of its last attempt, a `grpc.RpcError`. When no endpoint becomes known in time, that
    is a `NoEndpointsRpcError` with the code UNAVAILABLE. `timeout` is the deadline of the whole call, all attempts
    included; so are `Options.deadline` (of a call with one response) and the deadline that it inherits from
    `clientlb.deadline`: the earliest counts. `Options.attempt_timeout` limits each attempt, that of a stream while
    its caller waits for the first message. `wait_for_ready` makes a call wait until then for an endpoint, if there
    is none, and for the connection to the endpoint that was picked, instead of trying another one.

    Raises:
        ClosedError: The `Services` are closed.
        ConfigurationError: An argument cannot be right.
    """
    made = Channel(
        service,
        services,
        credentials=credentials,
        options=options,
        compression=compression,
        idempotent=idempotent,
        key=key,
        where=where,
    )
    return grpc.intercept_channel(made, *interceptors) if interceptors else made
