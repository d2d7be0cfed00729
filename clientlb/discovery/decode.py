"""What registries hold for the instances of a service, in whatever format, and what clientlb writes there.

`formats` knows the wire formats; this module applies one of them, or one of the user's own, to all instances of a
service, so that a bad instance costs a line in the log and nothing else.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from urllib.parse import unquote

from clientlb.discovery.formats import (
    KNOWN,
    MAX_INSTANCE_BYTES,
    Vector,
    decode_address,
    decode_curator,
    decode_dubbo,
    decode_instance,
    decode_json,
    decode_object,
    decode_plain,
    decode_serverset,
    decode_vector,
    is_dubbo,
    is_vector,
    says_no_calls,
)
from clientlb.discovery.url import redact
from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError, InvalidEndpointError

__all__ = [
    "MAX_INSTANCE_BYTES",
    "Decoder",
    "InstanceDecoder",
    "decode_address",
    "decode_instance",
    "decode_object",
    "encode_attributes",
    "encode_instance",
    "open_decoder",
    "within_limit",
]

logger: logging.Logger = logging.getLogger("clientlb.discovery")

Decoder = Callable[[str, bytes], Endpoint | None]
"""`(id, data)` to an endpoint, or None for one that must not get calls. Raises InvalidEndpointError for nonsense."""

ENTRY_POINTS = "clientlb.decoders"
"""The entry-point group with which other packages add formats: `name = "module:function"`."""

_URI_SPEC = {
    "parts": [
        {"value": "scheme", "variable": True},
        {"value": "://", "variable": False},
        {"value": "address", "variable": True},
        {"value": ":", "variable": False},
        {"value": "port", "variable": True},
    ]
}
_SPRING_PAYLOAD = "org.springframework.cloud.zookeeper.discovery.ZookeeperInstance"


# --- which format ----------------------------------------------------------------------------------------------------


def open_decoder(format: str | Decoder | None = None) -> Decoder:
    """Return the function that reads a format.

    Args:
        format: None to recognise the format of each instance (default); `"curator"`, `"serverset"` (or
            `"serverset:NAME"` for one of its additional endpoints), `"dubbo"`, `"json"`, `"address"`; a name that a
            package adds in the entry-point group `clientlb.decoders`; or a function `(id, data) -> Endpoint | None`.

    Raises:
        ConfigurationError: Nothing of that name is there, or it is no function.
    """
    if format is None:
        return _detected
    if not isinstance(format, str):
        return _checked(format, f"{type(format).__name__}")
    kind, colon, name = format.partition(":")
    if kind == "serverset" and bool(colon) == bool(name):
        return lambda id, data: None if is_vector(id) else decode_serverset(data, id=id, name=name)
    if format in _BUILT_IN:
        return _BUILT_IN[format]

    from importlib.metadata import entry_points  # only here: it costs more than the rest of the package

    added = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if format not in added:
        known = ", ".join(sorted({*_BUILT_IN, "serverset", "serverset:NAME", *added}))
        raise ConfigurationError(f"unknown format {format!r} of instances; known are {known}")
    try:
        found = added[format].load()
    except Exception as error:  # the module is somebody else's: it may fail with anything
        raise ConfigurationError(f"the format {format!r} cannot be imported: {error!r}") from error
    return _checked(found, repr(format))


def _checked(found: object, name: str) -> Decoder:
    if not callable(found):
        raise ConfigurationError(f"a format is a name or a function (id, data) -> Endpoint | None; {name} is neither")
    return found


def _detected(id: str, data: bytes) -> Endpoint | None:
    return decode_instance(data, id=id)


_BUILT_IN: Mapping[str, Decoder] = {
    "curator": lambda id, data: decode_curator(data, id=id),
    "json": lambda id, data: decode_json(data, id=id),
    "address": lambda id, data: decode_plain(data, id=id),
    "dubbo": lambda id, data: decode_dubbo(id),
}


# --- a whole service -------------------------------------------------------------------------------------------------


class InstanceDecoder:
    """Reads the instances of one service, again and again, at the price of what changed.

    A bad instance is left out, counted, and logged once per version of its bytes; the good ones beside it stay. There
    are two ways to use it. Whoever keeps the endpoints by id calls `decode` for what changed, `forget` for what left,
    and `weighted` for what is delivered. Whoever has all instances at hand calls `decode_all`.

    Args:
        source: The service and its registry, for the log.
        format: As for `open_decoder`.

    Raises:
        ConfigurationError: As from `open_decoder`.
    """

    def __init__(self, source: str, format: str | Decoder | None = None) -> None:
        self._source = source
        self._decoder = open_decoder(format)
        serverset = isinstance(format, str) and format.partition(":")[0] == "serverset"
        self._has_vectors = format is None or serverset
        self._has_dubbo = format is None or format == "dubbo"
        self._skipped: dict[str, int] = {}
        self._vectors: dict[str, Vector] = {}
        self._known: dict[str, tuple[bytes | int, Endpoint | None]] = {}

    @property
    def skipped(self) -> int:
        """How many of the instances that are there could not be read."""
        return len(self._skipped)

    def data_is_in_name(self, name: str) -> bool:
        """Whether the name says everything, so that the data need not be fetched: a Dubbo 2 provider."""
        return self._has_dubbo and is_dubbo(name)

    def decode(self, id: str, data: bytes) -> Endpoint | None:
        """Read one instance; None for one that gets no calls, or cannot be read. Never raises."""
        try:
            if len(data) > MAX_INSTANCE_BYTES:
                raise InvalidEndpointError(f"{len(data)} bytes are more than an instance may have")
            if self._has_vectors and is_vector(id):
                self._vectors[id] = decode_vector(data)
                endpoint = None
            else:
                endpoint = self._decoder(id, data)
            if endpoint is not None and not isinstance(endpoint, Endpoint):
                raise InvalidEndpointError(f"the decoder returned a {type(endpoint).__name__}, not an Endpoint")
        except Exception as error:
            self._skip(id, data, error)
            return None
        self._skipped.pop(id, None)
        return endpoint

    def leave_out(self, id: str, problem: str) -> None:
        """Note that an instance is there and its data cannot be had."""
        self._skip(id, problem.encode(), InvalidEndpointError(problem))

    def forget(self, ids: Iterable[str]) -> None:
        """Note that instances left: they are no longer counted, and their vectors no longer apply."""
        for id in ids:
            self._skipped.pop(id, None)
            self._vectors.pop(id, None)

    def weighted(self, endpoints: list[Endpoint]) -> list[Endpoint]:
        """Apply the weights of a ServerSet's vectors; the same list if it has none. A weight of 0 means no calls."""
        if not self._vectors:
            return endpoints
        weighed = ((each, self._weight(each)) for each in endpoints)
        return [each if weight == each.weight else replace(each, weight=weight) for each, weight in weighed if weight]

    def decode_all(self, instances: Mapping[str, bytes]) -> list[Endpoint]:
        """Return the endpoints of `instances` (id -> data) that can take calls, in the same order."""
        known: dict[str, tuple[bytes | int, Endpoint | None]] = {}
        for id, data in instances.items():
            # Do not hold on to a megabyte of nonsense only to recognise it.
            version = data if len(data) <= MAX_INSTANCE_BYTES else hash(data)
            before = self._known.get(id)
            known[id] = before if before and before[0] == version else (version, self.decode(id, data))
        self.forget(self._known.keys() - known.keys())
        self._known = known
        return self.weighted([endpoint for _, endpoint in known.values() if endpoint is not None])

    def _weight(self, endpoint: Endpoint) -> float:
        weight = endpoint.weight * math.prod(vector.factor(endpoint) for vector in self._vectors.values())
        return weight if math.isfinite(weight) else endpoint.weight

    def _skip(self, id: str, data: bytes, error: Exception) -> None:
        version = hash(data)
        self._vectors.pop(id, None)
        if self._skipped.get(id) != version:
            self._skipped[id] = version
            shown = redact(unquote(id[:1000])) if is_dubbo(id) else id
            # As text: the error itself would keep the bytes alive, by its traceback, in handlers that keep records.
            problem = (
                str(error) if isinstance(error, InvalidEndpointError) else f"{type(error).__name__} in its decoder"
            )
            logger.warning("%s: instance %s is left out: %s", self._source, _short(shown), problem)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- writing ---------------------------------------------------------------------------------------------------------


def encode_instance(service: str, endpoint: Endpoint) -> bytes:
    """Write the instance as Curator's JSON, in the shape that Curator, Spring Cloud and Dubbo read.

    `decode_instance` reads an equal endpoint from it, provided that its metadata do not use the names of its own
    fields (`weight`, `zone`, `version`, `secure`, `started_at`, `instance_status`) nor say that the instance gets no
    calls (`status`): those are left out.

    Raises:
        InvalidEndpointError: The description has more than `MAX_INSTANCE_BYTES`.
    """
    started_at = endpoint.started_at
    document = {
        "name": service,
        "id": endpoint.id,
        "address": endpoint.host,
        # A reader that knows nothing of sslPort must fail rather than speak plain text to a TLS port.
        "port": None if endpoint.secure else endpoint.port,
        "sslPort": endpoint.port if endpoint.secure else None,
        "payload": {
            "@class": _SPRING_PAYLOAD,
            "id": endpoint.id,
            "name": service,
            "metadata": encode_attributes(endpoint),
        },
        "registrationTimeUTC": 0 if started_at is None else round(started_at * 1000),
        "serviceType": "DYNAMIC",
        "uriSpec": _URI_SPEC,
    }
    return within_limit(json.dumps(document, separators=(",", ":")).encode())


def encode_attributes(endpoint: Endpoint) -> dict[str, str]:
    """The endpoint's metadata together with weight, zone, version and start time, all as strings."""
    attributes = {key: value for key, value in endpoint.metadata.items() if key not in KNOWN}
    if says_no_calls(attributes.get("status", "")):
        del attributes["status"]
    if endpoint.weight != 1.0:
        attributes["weight"] = repr(endpoint.weight)
    if endpoint.zone is not None:
        attributes["zone"] = endpoint.zone
    if endpoint.version is not None:
        attributes["version"] = endpoint.version
    if endpoint.started_at is not None:
        attributes["started_at"] = repr(endpoint.started_at)
    return attributes


def within_limit(data: bytes) -> bytes:
    """Return the data, or raise `InvalidEndpointError` when no reader would take that much."""
    if len(data) > MAX_INSTANCE_BYTES:
        raise InvalidEndpointError(
            f"the description of the instance has {len(data)} bytes, more than {MAX_INSTANCE_BYTES}: too much metadata"
        )
    return data
