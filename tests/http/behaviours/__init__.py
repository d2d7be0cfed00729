"""What an httpx user may do, one function each, written once for the ordinary client and for ours.

A behaviour is run twice: by the plain client at the address of a server, and by clientlb's at the name of the service.
It returns what it has seen, and what it has seen must be the same. `World` is what differs between the two runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import clientlb
from tests.http.conftest import Http, Kind, settle


@dataclass(frozen=True)
class World:
    """One run of a behaviour.

    Args:
        kind: Flavour, sync or async.
        addresses: What the services stand for, one server each.
        services: None for the plain client.
        context: One TLS context for all, because making one takes 25 ms.
    """

    kind: Kind
    addresses: dict[str, str]
    services: clientlb.Services | None
    context: Any

    def url(self, target: str = "/echo", service: str = "orders", userinfo: str = "") -> str:
        host = service if self.services is not None else self.addresses[service]
        return f"http://{userinfo}{host}{target}"

    @contextlib.asynccontextmanager
    async def client(self, **arguments: Any) -> AsyncIterator[Http]:
        arguments = {"verify": self.context, "trust_env": False, **arguments}
        if self.services is not None:
            http = Http(self.kind.client_type(self.services, **arguments))
        else:
            http = Http(self.kind.ordinary_client_type(**arguments))
        try:
            yield http
        finally:
            await http.close()

    def plain(self, seen: object) -> str:
        """What was seen, in words that do not depend on who was asked."""
        text = repr(seen)
        for service, address in self.addresses.items():
            text = text.replace(address, service).replace(quote(address), service)
        return text

    def hook(self, function: Callable[..., None]) -> Callable[..., Any]:
        """The function, or a coroutine function that calls it."""

        async def hook(*arguments: Any) -> None:
            function(*arguments)

        return hook if self.kind.is_async else function

    def of(self, thing: Any, name: str) -> Any:
        """A method of the sync API, or the one that the async API has for it."""
        return getattr(thing, f"a{name}" if self.kind.is_async else name)

    async def listed(self, parts: Any) -> list[Any]:
        """All parts of an iterator of either kind."""
        return [part async for part in parts] if self.kind.is_async else list(parts)


Behaviour = Callable[[World], Awaitable[object]]
BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(function: Behaviour) -> Behaviour:
    """Add one to the table."""
    name = function.__name__
    assert name not in BEHAVIOURS, name
    BEHAVIOURS[name] = function
    return function


async def outcome(result: Any) -> object:
    """What a call gave: the response, or its error."""
    try:
        return seen(await settle(result))
    except Exception as caught:
        return type(caught).__name__, str(caught)


async def error(result: Any) -> tuple[str, str, str | None, str | None]:
    """The exception of a call or coroutine: its class, its words, and the request that it names."""
    try:
        value = await settle(result() if callable(result) else result)
    except Exception as caught:
        request = getattr(caught, "_request", None)
        named = (None, None) if request is None else (request.method, str(request.url))
        return (f"{type(caught).__module__}.{type(caught).__name__}", str(caught), *named)
    raise AssertionError(f"no error, but {value!r}")


def seen(response: Any) -> tuple[Any, ...]:
    """All that a response says; the length is left out, because the name of a service is not as long as an address."""
    headers = [pair for pair in response.headers.raw if pair[0].lower() != b"content-length"]
    return (
        response.status_code,
        response.reason_phrase,
        response.http_version,
        headers,
        str(response.url),
        response.text,
    )


def echoed(response: Any) -> dict[str, Any]:
    """What the server has got."""
    answer: dict[str, Any] = response.json()
    return answer
