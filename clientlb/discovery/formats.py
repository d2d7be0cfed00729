"""From the bytes in a registry to an `Endpoint`: one function per wire format, and one that recognises the format.

Each function turns what a format says into a `_Description`; `_endpoint` is the only place where a description becomes
an `Endpoint`. What a registry holds was written by strangers, so every function here answers with an endpoint, `None`
(present, but must not get calls) or `InvalidEndpointError`, and nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import unquote_plus, urlsplit

from clientlb.endpoint import Endpoint
from clientlb.errors import InvalidEndpointError

MAX_INSTANCE_BYTES = 64 * 1024
"""The largest description that is read. Real ones have a few hundred bytes."""

KNOWN: frozenset[str] = frozenset({"weight", "zone", "version", "secure", "started_at", "instance_status"})
"""Attributes with a meaning of their own; every other one is the endpoint's `metadata`."""
_BESIDE = KNOWN | {"status"}

# What a `status` among the attributes must say to keep calls away. Strangers write anything there ("beta", "prod"), so
# no other word does; Spring's `instance_status` is an enumeration, of which only UP gets calls.
_NO_CALLS = frozenset(
    {
        "DOWN",
        "OUT_OF_SERVICE",
        "DRAINING",
        "DRAINED",
        "STARTING",
        "STOPPING",
        "STOPPED",
        "DEAD",
        "DISABLED",
        "MAINTENANCE",
    }
)

DUBBO_WEIGHT = 100.0
"""The weight of a Dubbo provider that says nothing (Dubbo's own default); it counts as 1.0 here."""

_MARK_OF_DUBBO = "%3A%2F%2F"
_DUBBO_ONLY = frozenset({"category", "enabled", "disabled", "timestamp", "username", "password"})


class _Description(NamedTuple):
    """What a format found in an instance, before any of it is believed."""

    host: Any
    port: Any
    attributes: dict[str, str]
    """Made for this description: whoever reads it may take things out."""
    id: Any = None
    secure: bool = False
    drained: bool = False
    registered_at: float | None = None


# --- whole instances -------------------------------------------------------------------------------------------------


def decode_instance(data: bytes, *, id: str) -> Endpoint | None:
    """Read one instance in whatever format it is.

    Args:
        data: What the registry holds for the instance, at most `MAX_INSTANCE_BYTES`.
        id: The instance's name in the registry, `""` when there is none. It wins over an id inside the data. A Dubbo 2
            provider is described by it alone, and so is an instance without data that is called `host:port`.

    Returns:
        The endpoint, or None for an instance that is there but asks for no calls: `"enabled": false`, an
        `instance_status` that is not `UP`, or a `status` that clearly says so, such as `DRAINING`.

    Raises:
        InvalidEndpointError: The data describe no server.
    """
    if is_dubbo(id):
        return decode_dubbo(id)
    _check_size(data)
    try:
        document = json.loads(data)
    except RecursionError:
        raise InvalidEndpointError(f"not JSON: {_short(bytes(data[:80]))}") from None
    except ValueError:
        return decode_plain(data, id=id)
    return decode_object(document, id=id)


def decode_object(document: object, *, id: str = "") -> Endpoint | None:
    """Read one instance from a parsed JSON or TOML value; as `decode_instance` otherwise."""
    found = _object(document)
    return _endpoint(_detect(found)(found), id)


def decode_curator(data: bytes, *, id: str = "") -> Endpoint | None:
    """Read Apache Curator's JSON, which Spring Cloud ZooKeeper and Dubbo 3 write too."""
    return _endpoint(_curator(_parsed(data, "address")), id)


def decode_json(data: bytes, *, id: str = "") -> Endpoint | None:
    """Read `{"host": …, "port": …}`: gRPC's former resolver for ZooKeeper, and clientlb's own plain form."""
    return _endpoint(_host_and_port(_parsed(data, "host")), id)


def decode_serverset(data: bytes, *, id: str = "", name: str = "") -> Endpoint | None:
    """Read a member of a Finagle or Aurora ServerSet.

    Args:
        data: The member's JSON.
        id: The name of its node.
        name: Which of its `additionalEndpoints`; `""` is the `serviceEndpoint`.
    """
    return _endpoint(_serverset(_parsed(data, "serviceEndpoint"), name), id)


def decode_plain(data: bytes, *, id: str = "") -> Endpoint:
    """Read `host:port` from the data, or from the instance's name if it has no data."""
    _check_size(data)
    try:
        text = data.decode() if data.strip() else id
        return decode_address(text, id=id)
    except (UnicodeDecodeError, InvalidEndpointError):
        raise InvalidEndpointError(f"not JSON, nor host:port: {_shown(data)}") from None


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


def is_dubbo(name: str) -> bool:
    """Whether a name is a Dubbo 2 provider: a URL, encoded so that it fits into a path."""
    return "%" in name and _MARK_OF_DUBBO in name[:MAX_INSTANCE_BYTES].upper()


def decode_dubbo(name: str) -> Endpoint | None:
    """Read a Dubbo 2 provider, whose description is its name in the registry.

    The endpoint's id is made of address, path and start time, not of the name: that may hold credentials.
    """
    if len(name) > MAX_INSTANCE_BYTES:
        raise InvalidEndpointError(f"a name of {len(name)} characters is no Dubbo URL")
    try:
        url = urlsplit(unquote_plus(name))  # as Java's URLEncoder has it
        host, port = url.hostname, url.port
        # Dubbo encodes the whole once, so the values in it are plain: a "+" or "%" in a version means itself.
        query = {key: value for key, _, value in (pair.partition("=") for pair in url.query.split("&") if pair)}
    except ValueError:
        raise InvalidEndpointError("the name is not the encoded URL of a Dubbo provider") from None
    if not url.scheme or not host or port is None:
        raise InvalidEndpointError("the name is not the encoded URL of a Dubbo provider: scheme://host:port/interface")
    weight = _weight(query.pop("weight", str(DUBBO_WEIGHT))) / DUBBO_WEIGHT
    drained = (
        "providers" not in query.get("category", "providers").split(",")
        or query.get("enabled", "").lower() == "false"
        or query.get("disabled", "").lower() == "true"
        or weight == 0
    )
    attributes = {key: value for key, value in query.items() if key not in _DUBBO_ONLY}
    attributes |= {"protocol": url.scheme, "path": url.path.lstrip("/"), "weight": repr(weight or 1.0)}
    started = query.get("timestamp", "")
    found = _Description(
        host=host,
        port=port,
        attributes=_texts(attributes),
        secure=query.get("ssl-enabled", "").lower() == "true",
        drained=drained,
        registered_at=_seconds(started, unit=1000),
    )
    return _endpoint(found, _text(f"{host}:{port}{url.path}#{started}") or "")


# --- vectors ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Vector:
    """The weights that a `vector_*` node of a ServerSet gives to its members."""

    factors: tuple[tuple[str, str, float], ...]
    """What is compared (`inet`, `member`, `shard`), with what, and the factor of those that match."""

    def factor(self, endpoint: Endpoint) -> float:
        """By how much it multiplies the weight of an endpoint."""
        own = {"inet": endpoint.address, "member": endpoint.id, "shard": endpoint.metadata.get("shard")}
        return math.prod(factor for what, value, factor in self.factors if own[what] == value)


def is_vector(name: str) -> bool:
    """Whether a child of a ServerSet holds weights rather than a member."""
    return name.startswith("vector_")


def decode_vector(data: bytes) -> Vector:
    """Read a `vector_*` node. Selectors that nobody knows match nobody, as in Finagle.

    Raises:
        InvalidEndpointError: It is no vector, or a weight in it is no number from 0 up.
    """
    entries = _parsed(data, "vector")["vector"]
    if not isinstance(entries, list):
        raise InvalidEndpointError(f"vector: a list was expected, not {_short(entries)}")
    factors = []
    for entry in entries:
        selector, weight = (entry.get("select"), entry.get("weight", 1)) if isinstance(entry, dict) else (None, 1)
        what, _, value = selector.partition("=") if isinstance(selector, str) else ("", "", "")
        factor = _weight(_text(weight) or "")
        if not math.isfinite(factor) or factor < 0:
            raise InvalidEndpointError(f"weight {_short(weight)} is not a number from 0 up")
        if what in ("inet", "member", "shard"):
            factors.append((what, value, factor))
    return Vector(tuple(factors))


# --- the formats -----------------------------------------------------------------------------------------------------


def _detect(document: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], _Description]:
    if "address" in document:
        return _curator
    if "host" in document:
        return _host_and_port
    if "serviceEndpoint" in document:
        return _serverset
    raise InvalidEndpointError(f"neither 'host' nor 'address' nor 'serviceEndpoint' in {_short(dict(document))}")


def _curator(document: Mapping[str, Any]) -> _Description:
    """Apache Curator's ServiceInstance. Spring and Dubbo keep their metadata in its payload; uriSpec is ignored."""
    payload = document.get("payload")
    if isinstance(payload, list) and len(payload) == 2:  # Jackson's other way to name the class: [class, object]
        payload = payload[1]
    attributes: dict[str, str] = {}
    if isinstance(payload, dict):
        inner = payload.get("metadata")
        attributes = _texts(inner if isinstance(inner, dict) else payload)
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
    beside = {key: document[key] for key in _BESIDE & document.keys()}
    return _Description(
        host=document["host"],
        port=document.get("port"),
        attributes=_texts(inner if isinstance(inner, dict) else {}) | _texts(beside),
        id=document.get("id"),
        drained=document.get("enabled") is False,
    )


def _serverset(document: Mapping[str, Any], name: str = "") -> _Description:
    """A member of a ServerSet: the address that was asked for, and `status`, of which only ALIVE gets calls."""
    endpoint = document.get("serviceEndpoint")
    if name:
        others = document.get("additionalEndpoints")
        endpoint = others.get(name) if isinstance(others, dict) else None
    if not isinstance(endpoint, dict):
        raise InvalidEndpointError(f"it has no endpoint {_short(name)}" if name else "serviceEndpoint is no object")
    inner = document.get("metadata")
    shard = _text(document.get("shard"))
    return _Description(
        host=endpoint.get("host"),
        port=endpoint.get("port"),
        attributes=_texts(inner if isinstance(inner, dict) else {}) | ({} if shard is None else {"shard": shard}),
        drained=document.get("status") != "ALIVE",
    )


# --- values ----------------------------------------------------------------------------------------------------------


def _endpoint(found: _Description, id: str) -> Endpoint | None:
    take = found.attributes.pop
    weight, secure, started_at = take("weight", None), take("secure", None), _seconds(take("started_at", None))
    instance_status = take("instance_status", None)
    endpoint = Endpoint(
        host=_text(found.host) or "",
        port=_port(found.port),
        id=id or _text(found.id) or "",
        weight=1.0 if weight is None else _weight(weight),
        secure=found.secure or (secure is not None and secure.lower() == "true"),
        zone=take("zone", None),
        version=take("version", None),
        started_at=found.registered_at if started_at is None else started_at,
        metadata=found.attributes,  # what is left of them
    )
    drained = (
        found.drained
        or (instance_status is not None and instance_status.upper() not in ("UP", ""))
        or says_no_calls(found.attributes.get("status", ""))
    )
    return None if drained else endpoint


def says_no_calls(status: str) -> bool:
    """Whether a `status` among the attributes keeps calls away."""
    return status.upper() in _NO_CALLS


def _parsed(data: bytes, field: str) -> Mapping[str, Any]:
    _check_size(data)
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidEndpointError(f"not JSON: {_shown(data)}") from None
    document = _object(parsed)
    if field not in document:
        raise InvalidEndpointError(f"no {field!r} in {_short(dict(document))}")
    return document


def _object(document: object) -> Mapping[str, Any]:
    if not isinstance(document, dict):
        raise InvalidEndpointError(f"an object was expected, not {_short(document)}")
    return document


def _check_size(data: bytes) -> None:
    if len(data) > MAX_INSTANCE_BYTES:
        raise InvalidEndpointError(f"{len(data)} bytes are more than an instance may have ({MAX_INSTANCE_BYTES})")


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
    texts = {}
    for name, value in values.items():
        key, text = _text(name), _text(value)
        if key is not None and text is not None:
            texts[key] = text
    return texts


def _text(value: object) -> str | None:
    """A scalar as a string; None for everything else, and for text that cannot be written out again."""
    if isinstance(value, str):
        if value.isascii():  # nearly always, and without a copy
            return value
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair: JSON can express it, nothing else accepts it
            return None
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > 1000:  # Python refuses to write out the longest
        return None
    return repr(value) if isinstance(value, (int, float)) else None


def _shown(data: bytes) -> str:
    return "bytes with an @, maybe credentials" if b"@" in data else _short(bytes(data[:80]))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
