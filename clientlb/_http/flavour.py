"""The classes of httpx or of httpx2. The two libraries have the same names and unrelated classes, so nothing may mix.

What a shell hands to a client must be of the client's flavour: streams, URLs and exceptions. They are made here, once
per flavour, from the shared half and the library's own base class.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from clientlb._http.body import AsyncOneShotBody, AsyncResponseBody, OneShotBody, ResponseBody
from clientlb._http.direct import CoreErrors
from clientlb._http.message import EndpointURL, Request
from clientlb._http.verdict import ErrorVerdicts
from clientlb.errors import NotSentError


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How inner transports connect; the arguments of `httpx.HTTPTransport`. None for `limits` takes its default."""

    verify: ssl.SSLContext | str | bool
    cert: Any
    trust_env: bool
    http1: bool
    http2: bool
    limits: Any

    def arguments(self, module: ModuleType) -> dict[str, Any]:
        """The keyword arguments of a transport or client, with one TLS context for all: making one takes 25 ms."""
        context = module.create_ssl_context(verify=self.verify, cert=self.cert, trust_env=self.trust_env)
        arguments = {"verify": context, "trust_env": self.trust_env, "http1": self.http1, "http2": self.http2}
        return arguments if self.limits is None else {**arguments, "limits": self.limits}


class Flavour:
    """What the shared code needs of a library.

    Args:
        module: `httpx` or `httpx2`.
        core: What it sends with, `httpcore` or `httpcore2`.
        *not_sent: Errors of the library that are one of `clientlb.errors.NotSentError`'s kinds as well.
    """

    def __init__(self, module: ModuleType, core: ModuleType, *not_sent: type[NotSentError]) -> None:
        self.module = module
        self.core = core
        self.core_errors: CoreErrors = CoreErrors(module, core)
        self._not_sent = not_sent
        self.errors = ErrorVerdicts(module)
        self.byte_stream: type = module.ByteStream
        self.sync_stream: type = module.SyncByteStream
        self.async_stream: type = module.AsyncByteStream
        self.url: type[EndpointURL] = _mixed(EndpointURL, module.URL)
        self.response_body: type[ResponseBody] = _mixed(ResponseBody, module.SyncByteStream)
        self.async_response_body: type[AsyncResponseBody] = _mixed(AsyncResponseBody, module.AsyncByteStream)
        self.one_shot_body: type[OneShotBody] = _mixed(OneShotBody, module.SyncByteStream)
        self.async_one_shot_body: type[AsyncOneShotBody] = _mixed(AsyncOneShotBody, module.AsyncByteStream)
        self.one_shot_body.refusal = self.async_one_shot_body.refusal = module.RemoteProtocolError
        self.chunks: type = type(module.Request("POST", "http://unused", content=iter(())).stream)

    def not_sent_error(self, error: NotSentError, request: Request) -> NotSentError:
        """The same error as the caller's flavour knows it."""
        own = next(kind for kind in self._not_sent if issubclass(kind, type(error)))(str(error))
        own.request = request  # type: ignore[attr-defined]  # of httpx.RequestError
        return own


def _mixed(ours: type, theirs: type) -> Any:
    return type(ours.__name__, (ours, theirs), {"__doc__": ours.__doc__, "__module__": ours.__module__})
