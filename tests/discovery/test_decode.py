"""What registries hold is written by strangers: every form that is understood, and every way to get it wrong."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clientlb.discovery.decode import (
    MAX_INSTANCE_BYTES,
    InstanceDecoder,
    decode_address,
    decode_instance,
    decode_object,
    encode_instance,
)
from clientlb.endpoint import Endpoint
from clientlb.errors import InvalidEndpointError


def encoded(document: object) -> bytes:
    return json.dumps(document).encode()


GOOD = encoded({"host": "10.0.0.1", "port": 80})


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"host": "h", "port": 80}, Endpoint("h", 80, "n")),
        ({"host": "h", "port": "80"}, Endpoint("h", 80, "n")),
        ({"host": "::1", "port": 80}, Endpoint("::1", 80, "n")),
        ({"host": "h", "port": 80, "id": "inside"}, Endpoint("h", 80, "n")),
        (
            {"host": "h", "port": 80, "weight": 2, "zone": "z", "version": "1.2", "secure": True, "started_at": 5},
            Endpoint("h", 80, "n", weight=2.0, zone="z", version="1.2", secure=True, started_at=5.0),
        ),
        (
            {"host": "h", "port": 80, "metadata": {"rack": "r1", "tier": 3, "canary": True, "odd": [1], "zone": "m"}},
            Endpoint("h", 80, "n", zone="m", metadata={"rack": "r1", "tier": "3", "canary": "true"}),
        ),
        ({"host": "h", "port": 80, "zone": "beside", "metadata": {"zone": "m"}}, Endpoint("h", 80, "n", zone="beside")),
        ({"host": "h", "port": 80, "expires_at": 9, "new": {"field": 1}}, Endpoint("h", 80, "n")),
        ({"host": "h", "port": 80, "started_at": "soon", "zone": {"no": "text"}}, Endpoint("h", 80, "n")),
    ],
)
def test_host_and_port(document: dict[str, Any], expected: Endpoint) -> None:
    assert decode_instance(encoded(document), id="n") == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Endpoint("10.0.0.1", 8080, "n")),
        ({"payload": None}, Endpoint("10.0.0.1", 8080, "n")),
        ({"payload": "text"}, Endpoint("10.0.0.1", 8080, "n")),
        ({"sslPort": 8443}, Endpoint("10.0.0.1", 8443, "n", secure=True)),
        ({"port": None, "sslPort": 8443}, Endpoint("10.0.0.1", 8443, "n", secure=True)),
        ({"registrationTimeUTC": 1500}, Endpoint("10.0.0.1", 8080, "n", started_at=1.5)),
        ({"registrationTimeUTC": 0}, Endpoint("10.0.0.1", 8080, "n")),
        ({"registrationTimeUTC": "?"}, Endpoint("10.0.0.1", 8080, "n")),
        (
            {"payload": {"@class": "x.Y", "id": "i", "name": "s", "metadata": {"zone": "z", "weight": "3", "k": "v"}}},
            Endpoint("10.0.0.1", 8080, "n", zone="z", weight=3.0, metadata={"k": "v"}),
        ),
        (
            {"payload": {"@class": "x.Y", "zone": "z", "k": "v"}},
            Endpoint("10.0.0.1", 8080, "n", zone="z", metadata={"k": "v"}),
        ),
        ({"payload": {"metadata": {"instance_status": "UP", "secure": "TRUE"}}}, "secure"),
        ({"enabled": True}, Endpoint("10.0.0.1", 8080, "n")),
        ({"enabled": False}, None),
        ({"payload": {"metadata": {"instance_status": "OUT_OF_SERVICE"}}}, None),
    ],
)
def test_curator(fields: dict[str, Any], expected: Endpoint | str | None) -> None:
    document = {"name": "s", "id": "uuid", "address": "10.0.0.1", "port": 8080, "serviceType": "DYNAMIC"} | fields
    if expected == "secure":
        expected = Endpoint("10.0.0.1", 8080, "n", secure=True)
    assert decode_instance(encoded(document), id="n") == expected


def test_the_id_inside_serves_when_the_registry_has_none() -> None:
    assert decode_object({"host": "h", "port": 1, "id": "inside"}) == Endpoint("h", 1, "inside")
    assert decode_object({"host": "h", "port": 1}) == Endpoint("h", 1, "h:1")


BAD = [
    pytest.param(b"", "not JSON", id="empty"),
    pytest.param(b"not json", "not JSON", id="text"),
    pytest.param(b"\xff\xfe\x00\x01", "not JSON", id="binary"),
    pytest.param(b"[" * 60_000, "not JSON", id="deep"),
    pytest.param(b"9" * 5000, "not JSON", id="long-number"),
    pytest.param(b'["h", 80]', "an object was expected", id="list"),
    pytest.param(b"null", "an object was expected", id="null"),
    pytest.param(b'"10.0.0.1:80"', "an object was expected", id="string"),
    pytest.param(b"{}", "neither 'host' nor 'address' nor 'serviceEndpoint'", id="empty-object"),
    pytest.param(b'{"port": 80}', "neither 'host' nor 'address' nor 'serviceEndpoint'", id="no-host"),
    pytest.param(b'{"host": "h"}', "port None", id="no-port"),
    pytest.param(b'{"host": "h", "port": 0}', "port 0", id="port-0"),
    pytest.param(b'{"host": "h", "port": 70000}', "port 70000", id="port-70000"),
    pytest.param(b'{"host": "h", "port": -1}', "port -1", id="port-negative"),
    pytest.param(b'{"host": "h", "port": "70000"}', "port 70000", id="port-text-70000"),
    pytest.param(b'{"host": "h", "port": "http"}', "port 'http'", id="port-name"),
    pytest.param('{"host": "h", "port": "８０"}'.encode(), "port", id="port-foreign-digits"),
    pytest.param(b'{"host": "h", "port": 80.5}', "port 80.5", id="port-fraction"),
    pytest.param(b'{"host": "h", "port": true}', "port True", id="port-bool"),
    pytest.param(b'{"host": "", "port": 80}', "host ''", id="host-empty"),
    pytest.param(b'{"host": null, "port": 80}', "host ''", id="host-null"),
    pytest.param(b'{"host": ["h"], "port": 80}', "host ''", id="host-list"),
    pytest.param(b'{"host": "user:pw@h", "port": 80}', "host", id="host-credentials"),
    pytest.param(b'{"host": "h/../x", "port": 80}', "host", id="host-path"),
    pytest.param(b'{"host": "h\\r\\nX: y", "port": 80}', "host", id="host-header"),
    pytest.param(b'{"host": "\\ud800", "port": 80}', "host ''", id="host-surrogate"),
    pytest.param(b'{"host": "h", "port": 80, "weight": 0}', "weight", id="weight-0"),
    pytest.param(b'{"host": "h", "port": 80, "weight": -1}', "weight", id="weight-negative"),
    pytest.param(b'{"host": "h", "port": 80, "weight": NaN}', "weight", id="weight-nan"),
    pytest.param(b'{"host": "h", "port": 80, "weight": "much"}', "weight 'much'", id="weight-text"),
    pytest.param(b'{"address": "h", "port": null, "sslPort": null}', "port None", id="curator-no-port"),
    pytest.param(b'{"address": "h", "port": 80, "sslPort": 0}', "port 0", id="curator-tls-port-0"),
    pytest.param(b'{"host": "h", "port": 80, "x": "' + b"x" * 1_000_000 + b'"}', "bytes are more than", id="1-MB"),
]


@pytest.mark.parametrize(("data", "message"), BAD)
def test_what_is_no_instance(data: bytes, message: str) -> None:
    with pytest.raises(InvalidEndpointError) as caught:
        decode_instance(data, id="n")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 160


@pytest.mark.parametrize(("data", "message"), BAD)
def test_one_bad_instance_costs_one_line(data: bytes, message: str, caplog: pytest.LogCaptureFixture) -> None:
    decoder = InstanceDecoder("orders in test://")
    for _ in range(3):
        assert decoder.decode_all({"good": GOOD, "bad": data}) == [Endpoint("10.0.0.1", 80, "good")]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "orders in test://" in record.getMessage()
    assert "'bad'" in record.getMessage()
    assert message in record.getMessage()
    assert len(record.getMessage()) < 300


def test_a_bad_instance_is_named_again_when_it_changes_or_returns(caplog: pytest.LogCaptureFixture) -> None:
    decoder = InstanceDecoder("test")
    for content in ({"a": b"one"}, {"a": b"one"}, {"a": b"two"}, {}, {"a": b"two"}, {"a": GOOD}, {"a": b"two"}):
        decoder.decode_all(content)
    assert len(caplog.records) == 4


def test_what_did_not_change_is_not_read_again() -> None:
    decoder = InstanceDecoder("test")
    (before,) = decoder.decode_all({"a": GOOD})
    after, other = decoder.decode_all({"a": GOOD, "b": GOOD})
    assert after is before
    assert other.id == "b"


def test_a_drained_instance_gets_no_calls_and_no_log_line(caplog: pytest.LogCaptureFixture) -> None:
    drained = encoded({"host": "h", "port": 80, "enabled": False})
    assert InstanceDecoder("test").decode_all({"a": drained}) == []
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1:80", Endpoint("10.0.0.1", 80)),
        (" orders-1.internal:8080 ", Endpoint("orders-1.internal", 8080)),
        ("[::1]:80", Endpoint("::1", 80)),
    ],
)
def test_address(text: str, expected: Endpoint) -> None:
    assert decode_address(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "h", ":80", "h:", "h:0", "h:70000", "h:http", "::1:80", "[::1]", "[h]:80", "h:80/path", "h:80?x=1", "[]:1"],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InvalidEndpointError):
        decode_address(text)


def test_an_address_with_credentials_is_refused_without_repeating_them() -> None:
    with pytest.raises(InvalidEndpointError) as caught:
        decode_address("user:secret@10.0.0.1:80")
    assert "secret" not in str(caught.value)


def test_nor_does_a_host_with_credentials_repeat_them() -> None:
    with pytest.raises(InvalidEndpointError, match="maybe credentials") as caught:
        decode_object({"host": "user:secret@10.0.0.1", "port": 80})
    assert "secret" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
FIELDS = "host address port sslPort id weight zone metadata payload enabled registrationTimeUTC started_at secure"
instance_like = st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS.split(), json_values))


@given(st.binary(max_size=200) | instance_like.map(encoded) | json_values.map(encoded))
@example(b'{"host": "h", "port": 1, "started_at": 1e400}')
@example(b'{"address": "h", "port": 1, "registrationTimeUTC": 1' + b"0" * 400 + b"}")
def test_whatever_the_bytes_there_is_an_answer(data: bytes) -> None:
    try:
        endpoint = decode_instance(data, id="n")
    except InvalidEndpointError:
        return
    assert endpoint is None or endpoint.id == "n"


text = st.text(max_size=20)
own_metadata = st.dictionaries(
    st.text(max_size=10).filter(
        lambda key: key not in {"weight", "zone", "version", "secure", "started_at", "instance_status", "@class"}
    ),
    text,
    max_size=4,
)
endpoints = st.builds(
    Endpoint,
    host=st.ip_addresses().map(str) | st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z]{1,5})?", fullmatch=True),
    port=st.integers(1, 65535),
    id=st.text(max_size=20),
    weight=st.floats(1e-6, 1e6),
    secure=st.booleans(),
    zone=st.none() | text,
    version=st.none() | text,
    started_at=st.none() | st.floats(1.0, 4e9),
    metadata=own_metadata,
).filter(lambda endpoint: "%" not in endpoint.host)


@given(endpoints)
def test_what_is_written_is_read_back(endpoint: Endpoint) -> None:
    assert decode_instance(encode_instance("orders", endpoint), id=endpoint.id) == endpoint
    assert decode_instance(encode_instance("orders", endpoint), id="") == endpoint


def test_what_is_written_is_curators_form() -> None:
    endpoint = Endpoint("10.0.0.1", 80, "n", weight=2.0, zone="z", started_at=1.5, metadata={"k": "v"})
    document = json.loads(encode_instance("orders", endpoint))
    assert document.pop("uriSpec")["parts"][0] == {"value": "scheme", "variable": True}
    payload = document.pop("payload")
    assert payload["metadata"] == {"k": "v", "weight": "2.0", "zone": "z", "started_at": "1.5"}
    assert document == {
        "name": "orders",
        "id": "n",
        "address": "10.0.0.1",
        "port": 80,
        "sslPort": None,
        "registrationTimeUTC": 1500,
        "serviceType": "DYNAMIC",
    }


def test_metadata_cannot_pose_as_a_field() -> None:
    posing = Endpoint("h", 80, "n", metadata={"secure": "true", "instance_status": "DOWN", "weight": "9"})
    assert decode_instance(encode_instance("orders", posing), id="n") == Endpoint("h", 80, "n")


@pytest.mark.parametrize("status", ["beta", "active", "running", "prod", "UP", ""])
def test_a_status_that_says_something_else_is_metadata(status: str) -> None:
    expected = Endpoint("h", 80, "n", metadata={"status": status})
    assert decode_instance(encoded({"host": "h", "port": 80, "status": status}), id="n") == expected
    assert decode_instance(encoded({"address": "h", "port": 80, "payload": {"status": status}}), id="n") == expected
    assert decode_instance(encode_instance("orders", expected), id="n") == expected


@pytest.mark.parametrize("status", ["DOWN", "out_of_service", "Draining", "STARTING", "maintenance"])
def test_a_status_that_keeps_calls_away(status: str) -> None:
    assert decode_instance(encoded({"host": "h", "port": 80, "status": status}), id="n") is None
    assert decode_instance(encoded({"host": "h", "port": 80, "metadata": {"status": status}}), id="n") is None
    posing = Endpoint("h", 80, "n", metadata={"status": status})
    assert decode_instance(encode_instance("orders", posing), id="n") == Endpoint("h", 80, "n")


@pytest.mark.parametrize(
    ("status", "calls"), [("UP", True), ("up", True), ("", True), ("UNKNOWN", False), ("beta", False)]
)
def test_of_springs_status_only_up_gets_calls(status: str, calls: bool) -> None:
    document = {"address": "h", "port": 80, "payload": {"metadata": {"instance_status": status}}}
    assert decode_instance(encoded(document), id="n") == (Endpoint("h", 80, "n") if calls else None)


def test_what_no_reader_would_take_is_not_written() -> None:
    with pytest.raises(InvalidEndpointError, match="too much metadata"):
        encode_instance("orders", Endpoint("h", 80, metadata={"k": "v" * MAX_INSTANCE_BYTES}))
