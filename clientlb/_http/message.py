"""The copy of a request that goes to an endpoint, and what the request allows: to be repeated, to be sent again.

The caller's request is never changed: `response.request`, cookies, redirects and `response.url` stay logical. What the
endpoint gets is a shallow copy with another URL. That costs 2 µs; building a request of its own costs 35.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar

from clientlb.options import CallOptions
from clientlb.retry_options import RetryOptions

IDEMPOTENCY_HEADERS = ("Idempotency-Key", "X-Idempotency-Key")


class Headers(Protocol):
    """What is used of `httpx.Headers`."""

    def __contains__(self, name: Any, /) -> bool:
        """Whether there is such a header."""
        ...

    def __setitem__(self, name: str, value: str, /) -> None:
        """Replace a header."""
        ...

    def get(self, name: str, /) -> Any:
        """The value of a header, or None."""
        ...

    def copy(self) -> Any:
        """The same headers, to be changed."""
        ...


class URL(Protocol):
    """What is used of `httpx.URL`."""

    @property
    def scheme(self) -> str:
        """In lower case."""
        ...

    @property
    def host(self) -> str:
        """In lower case, IDNA decoded."""
        ...

    @property
    def raw_host(self) -> bytes:
        """In lower case, IDNA encoded."""
        ...

    @property
    def raw_path(self) -> bytes:
        """Path and query."""
        ...

    def copy_with(self, **changes: Any) -> Any:
        """The same URL with some parts changed."""
        ...


class Request(Protocol):
    """What is used of `httpx.Request`."""

    @property
    def method(self) -> str:
        """In upper case."""
        ...

    @property
    def url(self) -> URL:
        """The logical one."""
        ...

    @property
    def headers(self) -> Headers:
        """With the logical Host."""
        ...

    @property
    def stream(self) -> Any:
        """The body."""
        ...

    @property
    def extensions(self) -> Mapping[str, Any]:
        """`clientlb` has the options of the call."""
        ...


AnyRequest = TypeVar("AnyRequest", bound=Request)


class EndpointURL:
    """A URL that leads to an endpoint; each flavour mixes in its own URL class.

    It has at once the four parts that a transport reads. Asked for anything else it becomes an ordinary URL, which
    costs 30 µs and is only ever done by an `inner` transport that looks at the URL, or by a debugger.
    """

    raw_scheme: bytes = b""
    raw_host: bytes = b""
    port: int | None = None
    raw_path: bytes = b""
    logical: URL

    def __getattr__(self, name: str) -> Any:
        known = self.__dict__
        if "logical" not in known or name.startswith("__"):
            raise AttributeError(name)
        changes = {"scheme": self.raw_scheme.decode(), "host": self.raw_host.decode(), "port": self.port}
        ordinary = vars(known["logical"].copy_with(**changes))
        known.update(ordinary)
        if name not in ordinary:
            raise AttributeError(name)
        return ordinary[name]


def copy_to(
    request: AnyRequest,
    url_class: type[EndpointURL],
    scheme: bytes,
    address: Mapping[str, Any],
    changes: Mapping[str, Any],
) -> AnyRequest:
    """Copy a request for an endpoint.

    Args:
        request: The caller's; it shares everything with the copy but what is replaced.
        url_class: The `EndpointURL` of the flavour.
        scheme: Of the URL.
        address: `raw_host` and `port` of the URL.
        changes: Attributes of the copy that differ, such as the stream.
    """
    url = url_class.__new__(url_class)
    logical = request.url
    url.__dict__ = {**address, "raw_scheme": scheme, "raw_path": logical.raw_path, "logical": logical}
    copy = object.__new__(type(request))
    copy.__dict__ = {**request.__dict__, **changes, "url": url}
    return copy


def is_idempotent(request: Request, options: CallOptions | None, retry: RetryOptions) -> bool:
    """Whether the request may safely reach two servers: by its options, its method or its idempotency key."""
    if options is not None and options.idempotent is not None:
        return options.idempotent
    return request.method in retry.methods or any(name in request.headers for name in IDEMPOTENCY_HEADERS)


def is_replayable(stream: Any, byte_stream: type) -> bool:
    """Whether a body can be sent twice as it is: bytes, or a multipart form of bytes and of files with a `seek`."""
    if isinstance(stream, byte_stream):
        return True
    fields = getattr(stream, "fields", None)  # httpx's multipart stream, which rewinds its files itself
    return isinstance(fields, list) and all(_can_be_read_again(getattr(field, "file", b"")) for field in fields)


def rewinding(stream: Any, chunks: type) -> Callable[[], object] | None:
    """What makes a body ready to be read again: a file is rewound to where it was; None if that is impossible.

    Args:
        stream: The body of a request.
        chunks: httpx's stream over a file or an iterable; which of them, it does not tell.
    """
    source = getattr(stream, "_stream", None) if type(stream) is chunks else None
    if isinstance(source, (list, tuple)):
        return lambda: None
    return partial(source.seek, source.tell()) if source is not None and _can_be_read_again(source) else None


def _can_be_read_again(file: Any) -> bool:
    if isinstance(file, (bytes, str)):
        return True
    seekable = getattr(file, "seekable", None)
    return callable(seekable) and bool(seekable())
