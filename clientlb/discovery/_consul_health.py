"""From the answer of `/v1/health/service/NAME` to endpoints: which instances get calls, and how many.

We filter ourselves rather than with Consul's `passing`: that hides why an instance is missing, and drops warnings.
A list of ten thousand has eleven megabytes, and mostly one instance of it changed. So the answer is cut into its
entries without being parsed, and an entry whose bytes are known costs one look into a dictionary.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clientlb.discovery._consul_http import ConsulError
from clientlb.discovery.decode import MAX_INSTANCE_BYTES, decode_object
from clientlb.endpoint import Endpoint
from clientlb.errors import InvalidEndpointError

logger: logging.Logger = logging.getLogger("clientlb.discovery")

_FROM_TAGS = ("zone", "version", "secure", "weight")
_PASSING, _WARNING, _CRITICAL = 0, 1, 2
_SEVERITY = {"passing": _PASSING, "warning": _WARNING}  # every other status, also one that nobody knows, is critical
_NODE_CHECK = "serfHealth"  # the gossip's opinion of the node
_NOTHING: Mapping[str, Any] = {}
_SHOWN = 120

# How Consul writes a list of entries: where it begins, what stands between two entries, how it ends. Neither middle can
# be inside a string, where a quote would have a backslash and a line break is not allowed. In a nested list it can, and
# the pieces are then no JSON.
_LAYOUTS = (
    (b'[{"Node":{', b'},{"Node":{', b"}]"),
    (b'[\n    {\n        "Node": {', b'\n    },\n    {\n        "Node": {', b"\n    }\n]"),  # ?pretty, and `agent -dev`
)


@dataclass(frozen=True, slots=True)
class _Entry:
    """What one entry of the answer says."""

    id: str
    endpoint: Endpoint | None  # None: it is there, but gets no calls
    node_lost: bool = False
    problem: str = ""


class HealthReader:
    """Reads the answers for one service, again and again, at the price of what changed. For one thread at a time.

    An instance that cannot be read is left out, and named in the log once per problem; so is the loss of nodes.

    Args:
        source: The service and its registry, for the log.
        warning: Instances with warnings get calls too, with their weight for that; 0 means none.
        sort: Order the endpoints by node and id; Consul's own order means something only with `near`.
        attributes: What every endpoint gets into its metadata.
    """

    def __init__(
        self, source: str, *, warning: bool = False, sort: bool = True, attributes: Mapping[str, str] = _NOTHING
    ) -> None:
        self._source = source
        self._warning = warning
        self._sort = sort
        self._attributes = attributes
        self._known: dict[int, _Entry] = {}
        self._named: dict[str, str] = {}
        self.node_lost: int = 0
        """Instances of the last answer whose own checks pass, but whose node the cluster has lost."""
        self.skipped: int = 0
        """Instances of the last answer that could not be read."""

    def read(self, body: bytes) -> list[Endpoint]:
        """Return the endpoints that get calls. Raises ConsulError for what is not a list."""
        try:
            entries = self._entries(_pieces(body))
        except ValueError:
            entries = self._entries(_parsed_pieces(body))
        if self._sort:
            entries.sort(key=_by_id)
        self._report(entries)
        return [entry.endpoint for entry in entries if entry.endpoint is not None]

    def _entries(self, pieces: Iterator[bytes]) -> list[_Entry]:
        known: dict[int, _Entry] = {}
        entries = []
        for piece in pieces:
            version = hash(piece)
            entry = self._known.get(version)
            if entry is None:
                entry = self._read_piece(piece)
            known[version] = entry
            entries.append(entry)
        self._known = known
        return entries

    def _read_piece(self, piece: bytes) -> _Entry:
        try:
            entry = json.loads(piece)
        except RecursionError:  # Consul itself reads deeper than Python does
            return _Entry("?", None, problem="it is nested too deeply")
        node, service = _mapping(entry, "Node"), _mapping(entry, "Service")
        id = f"{node.get('Node')}/{service.get('ID')}"  # an id is unique only within its node
        severity, node_lost = _health(entry)
        if severity > (_WARNING if self._warning else _PASSING):
            return _Entry(id, None, node_lost)
        try:
            if len(piece) > 4 * MAX_INSTANCE_BYTES:  # four: the entry has the checks too, with what they printed
                raise InvalidEndpointError(f"{len(piece)} bytes are more than an instance may have")
            endpoint = self._endpoint(node, service, severity, id)
        except InvalidEndpointError as error:
            return _Entry(id, None, problem=str(error))
        return _Entry(id, endpoint)

    def _endpoint(self, node: Mapping[str, Any], service: Mapping[str, Any], severity: int, id: str) -> Endpoint | None:
        listed = service.get("Tags")
        tags = [tag for tag in listed if isinstance(tag, str)] if isinstance(listed, list) else []
        attributes: dict[str, Any] = {"tags": ",".join(tags)} if tags else {}
        # older Spring Cloud writes its metadata as tags
        pairs = (tag.partition("=") for tag in tags)
        attributes |= {key: value for key, _, value in pairs if key in _FROM_TAGS and value}
        attributes |= _mapping(service, "Meta")
        attributes |= self._attributes
        weights = _mapping(service, "Weights")
        attributes.setdefault("weight", weights.get("Passing", 1))
        if severity == _WARNING:
            share = _share(weights)
            if not share:
                return None
            attributes["weight"] = _float(attributes["weight"]) * share
        host = service.get("Address") or node.get("Address")
        return decode_object({"host": host, "port": service.get("Port"), "metadata": attributes}, id=id)

    def _report(self, entries: list[_Entry]) -> None:
        problems = {entry.id: entry.problem for entry in entries if entry.problem}
        for id, problem in problems.items():
            if self._named.get(id) != problem:
                logger.warning("%s: instance %r is left out: %s", self._source, id[:_SHOWN], problem)
        self._named, self.skipped = problems, len(problems)
        lost = sum(entry.node_lost for entry in entries)
        if lost and not self.node_lost:
            logger.warning("%s: %d instances pass their checks, but their nodes are lost", self._source, lost)
        self.node_lost = lost


def _pieces(body: bytes) -> Iterator[bytes]:
    """The entries of the list as JSON texts, cut where Consul puts its seams.

    What is cut in a wrong place, or is not in one of Consul's layouts, is no JSON.
    """
    text = body.strip()
    if text == b"[]":
        return
    for head, seam, tail in _LAYOUTS:
        if text.startswith(head) and text.endswith(tail):
            opening, closing = head[1:], b"}"
            for piece in text[len(head) : -len(tail)].split(seam):
                yield opening + piece + closing
            return
    raise ValueError("an unknown layout")


def _parsed_pieces(body: bytes) -> Iterator[bytes]:
    """The same for any JSON."""
    try:
        entries = json.loads(body)
    except (ValueError, RecursionError):
        raise ConsulError(f"the answer is not JSON: {body[:_SHOWN]!r}") from None
    if not isinstance(entries, list):
        raise ConsulError(f"a list was expected, not {type(entries).__name__}")
    return (json.dumps(entry).encode() for entry in entries)


def _by_id(entry: _Entry) -> str:
    return entry.id


def _health(entry: Any) -> tuple[int, bool]:
    """How bad the worst check is, and whether the node is lost while the instance's own checks pass."""
    checks = entry.get("Checks") if isinstance(entry, dict) else None
    if not isinstance(checks, list):
        return _PASSING, False  # no checks at all: Consul counts that as passing
    own, node = _PASSING, _PASSING
    for check in checks:
        check = check if isinstance(check, dict) else _NOTHING
        status = check.get("Status")
        severity = _SEVERITY.get(status, _CRITICAL) if isinstance(status, str) else _CRITICAL
        if check.get("CheckID") == _NODE_CHECK:
            node = max(node, severity)
        else:
            own = max(own, severity)
    return max(own, node), node == _CRITICAL and own < _CRITICAL


def _share(weights: Mapping[str, Any]) -> float:
    """What is left of an instance's weight while it warns; 0 if it shall get nothing."""
    passing, warning = weights.get("Passing", 1), weights.get("Warning", 1)
    try:
        return max(0.0, float(warning)) / float(passing)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return 1.0


def _float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidEndpointError(f"weight {str(value)[:40]!r} is not a number") from None


def _mapping(value: Any, key: str) -> Mapping[str, Any]:
    """`value[key]` if both are objects; what strangers registered may be anything."""
    inner = value.get(key) if isinstance(value, dict) else None
    return inner if isinstance(inner, dict) else _NOTHING
