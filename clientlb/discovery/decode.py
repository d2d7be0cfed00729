"""From the bytes in a registry to an `Endpoint`, and back.

One function per wire format turns a JSON object into a `_Description`; `_detect` chooses the format; `_endpoint` is the
only place where a description becomes an `Endpoint`. What a registry holds was written by strangers, so every function
here answers with an endpoint, `None` (present, but must not get calls) or `InvalidEndpointError`, and nothing else.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from clientlb.endpoint import Endpoint
from clientlb.errors import InvalidEndpointError

logger: logging.Logger = logging.getLogger("clientlb.discovery")

MAX_INSTANCE_BYTES = 64 * 1024
"""The largest description that is read. Real ones have a few hundred bytes."""

_KNOWN = frozenset({"weight", "zone", "version", "secure", "started_at", "instance_status"})
"""Attributes with a meaning of their own; every other one is the endpoint's `metadata`."""

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


@dataclass(frozen=True, slots=True)
class _Description:
    """What a format found in an instance, before any of it is believed."""

    host: Any
    port: Any
    attributes: Mapping[str, str]
    id: Any = None
    secure: bool = False
    drained: bool = False
    registered_at: float | None = None


# --- reading ---------------------------------------------------------------------------------------------------------


def decode_instance(data: bytes, *, id: str) -> Endpoint | None:
    """Read one instance: Curator's JSON (also Spring's and Dubbo 3's), or `{"host": …, "port": …}`.

    Args:
        data: What the registry holds for the instance, at most `MAX_INSTANCE_BYTES`.
        id: The instance's identity in the registry. It wins over an id inside the data; `""` when there is none.

    Returns:
        The endpoint, or None for an instance that is there but asks for no calls (`"enabled": false`, or an
        `instance_status` other than `UP`).

    Raises:
        InvalidEndpointError: The data describe no server.
    """
    if len(data) > MAX_INSTANCE_BYTES:
        raise InvalidEndpointError(f"{len(data)} bytes are more than an instance may have ({MAX_INSTANCE_BYTES})")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidEndpointError(f"not JSON: {_short(bytes(data[:80]))}") from None
    return decode_object(document, id=id)


def decode_object(document: object, *, id: str = "") -> Endpoint | None:
    """Read one instance from a parsed JSON or TOML value; as `decode_instance` otherwise."""
    if not isinstance(document, Mapping):
        raise InvalidEndpointError(f"an object was expected, not {_short(document)}")
    return _endpoint(_detect(document)(document), id)


def decode_address(text: str, *, id: str = "") -> Endpoint:
    """Read `host:port`; an IPv6 host is written in brackets.

    Raises:
        InvalidEndpointError: The text is no such address. Credentials in it are not repeated.
    """
    if "@" in text:
        raise InvalidEndpointError("an address is host:port, without credentials")
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]") and ":" in host:
        host = host[1:-1]
    elif ":" in host:
        raise InvalidEndpointError(f"{_short(text)}: an IPv6 address is written as [address]:port")
    if not colon or not host:
        raise InvalidEndpointError(f"{_short(text)} is not host:port")
    return Endpoint(host, _port(port), id)


def _detect(document: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], _Description]:
    if "address" in document:
        return _curator
    if "host" in document:
        return _host_and_port
    raise InvalidEndpointError(f"neither 'host' nor 'address' in {_short(dict(document))}")


def _curator(document: Mapping[str, Any]) -> _Description:
    """Apache Curator's ServiceInstance. Spring and Dubbo keep their metadata in its payload."""
    payload = document.get("payload")
    attributes: dict[str, str] = {}
    if isinstance(payload, Mapping):
        inner = payload.get("metadata")
        attributes = _texts(inner if isinstance(inner, Mapping) else payload)
        attributes.pop("@class", None)
    tls_port = document.get("sslPort")
    registered = document.get("registrationTimeUTC")
    return _Description(
        host=document["address"],
        port=document.get("port") if tls_port is None else tls_port,
        attributes=attributes,
        id=document.get("id"),
        secure=tls_port is not None,
        drained=document.get("enabled") is False,
        registered_at=_seconds(registered, unit=1000),
    )


def _host_and_port(document: Mapping[str, Any]) -> _Description:
    """The plain form: `host`, `port`, and the attributes beside them or under `metadata`."""
    inner = document.get("metadata")
    beside = {key: value for key, value in document.items() if key in _KNOWN}
    return _Description(
        host=document["host"],
        port=document.get("port"),
        attributes=_texts(inner if isinstance(inner, Mapping) else {}) | _texts(beside),
        id=document.get("id"),
        drained=document.get("enabled") is False,
    )


def _endpoint(found: _Description, id: str) -> Endpoint | None:
    attributes = found.attributes
    weight, started_at = attributes.get("weight"), _seconds(attributes.get("started_at"))
    endpoint = Endpoint(
        host=_text(found.host) or "",
        port=_port(found.port),
        id=id or _text(found.id) or "",
        weight=1.0 if weight is None else _weight(weight),
        secure=found.secure or attributes.get("secure", "").lower() == "true",
        zone=attributes.get("zone"),
        version=attributes.get("version"),
        started_at=found.registered_at if started_at is None else started_at,
        metadata={key: value for key, value in attributes.items() if key not in _KNOWN},
    )
    if found.drained or attributes.get("instance_status", "UP").upper() != "UP":
        return None
    return endpoint


def _port(value: object) -> int:
    """Registries write ports as numbers and as strings; the range is judged by `Endpoint`."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 6:
        return int(value)
    if isinstance(value, int):
        return value
    raise InvalidEndpointError(f"port {_short(value)} is not a number from 1 to 65535")


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidEndpointError(f"weight {_short(text)} is not a number") from None


def _seconds(value: object, unit: int = 1) -> float | None:
    """A moment since the epoch; None if it cannot be one, which is no reason to lose a server."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        seconds = float(value) / unit
    except (ValueError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def _texts(values: Mapping[Any, Any]) -> dict[str, str]:
    pairs = ((_text(key), _text(value)) for key, value in values.items())
    return {key: value for key, value in pairs if key is not None and value is not None}


def _text(value: object) -> str | None:
    """A scalar as a string; None for everything else, and for text that cannot be written out again."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if not isinstance(value, str):
        return None
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can express it, nothing else accepts it
        return None
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- writing ---------------------------------------------------------------------------------------------------------


def encode_instance(service: str, endpoint: Endpoint) -> bytes:
    """Write the instance as Curator's JSON, in the shape that Curator, Spring Cloud and Dubbo read.

    `decode_instance` reads an equal endpoint from it, provided that its metadata do not use the names of its own
    fields (`weight`, `zone`, `version`, `secure`, `started_at`, `instance_status`): those are left out.

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
    attributes = {key: value for key, value in endpoint.metadata.items() if key not in _KNOWN}
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


# --- a whole service -------------------------------------------------------------------------------------------------


class InstanceDecoder:
    """Reads the instances of one service, again and again, at the price of what changed.

    A bad instance is left out and logged once per version of its bytes; the good ones beside it stay. An instance
    whose bytes did not change is not read again.

    Args:
        source: The service and its registry, for the log.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._known: dict[str, tuple[bytes | int, Endpoint | None]] = {}

    def decode_all(self, instances: Mapping[str, bytes]) -> list[Endpoint]:
        """Return the endpoints of `instances` (id -> data) that can take calls, in the same order."""
        known: dict[str, tuple[bytes | int, Endpoint | None]] = {}
        for id, data in instances.items():
            # Do not hold on to a megabyte of nonsense only to recognise it.
            version = data if len(data) <= MAX_INSTANCE_BYTES else hash(data)
            before = self._known.get(id)
            known[id] = before if before and before[0] == version else (version, self._decode(id, data))
        self._known = known
        return [endpoint for _, endpoint in known.values() if endpoint is not None]

    def _decode(self, id: str, data: bytes) -> Endpoint | None:
        try:
            return decode_instance(data, id=id)
        except InvalidEndpointError as error:
            logger.warning("%s: instance %s is left out: %s", self._source, _short(id), error)
            return None
