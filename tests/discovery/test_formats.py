"""The formats of other libraries, from golden files; and a service whose instances come in any of them."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clientlb.discovery import open_discovery
from clientlb.discovery.decode import InstanceDecoder, encode_instance, open_decoder
from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError, InvalidEndpointError
from tests.discovery.watching import watching

GOLDEN = Path(__file__).parent / "golden"
MEMBER, VECTOR = "member_0000000001", "vector_0000000001"
REGISTERED = 1610116500.446
DUBBO = (GOLDEN / "dubbo2.name").read_text()


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


ALL = [
    ("curator", "curator.json", Endpoint("10.0.0.1", 8005, "n", started_at=REGISTERED)),
    ("curator", "spring.json", Endpoint("10.0.0.1", 8443, "n", secure=True, zone="a", started_at=REGISTERED)),
    ("curator", "spring_drained.json", None),
    (
        "curator",
        "dubbo3.json",
        Endpoint(
            "10.0.0.1",
            20880,
            "n",
            started_at=1610116500.5,
            metadata={
                "dubbo.metadata.storage-type": "local",
                "timestamp": "1610116500446",
            },
        ),
    ),
    ("serverset", "serverset_member.json", Endpoint("10.0.0.1", 7100, "n", zone="a", metadata={"shard": "3"})),
    ("serverset:http", "serverset_member.json", Endpoint("10.0.0.1", 7101, "n", zone="a", metadata={"shard": "3"})),
    ("json", "grpc.json", Endpoint("10.0.0.1", 50051, "n")),
    ("address", "plain.txt", Endpoint("10.0.0.1", 8080, "n")),
]


@pytest.mark.parametrize(("format", "file", "expected"), ALL, ids=[f"{format}-{file}" for format, file, _ in ALL])
def test_golden(format: str, file: str, expected: Endpoint | None) -> None:
    assert open_decoder(format)("n", golden(file)) == expected
    if format != "serverset:http":
        assert open_decoder()("n", golden(file)) == expected


def test_what_is_written_is_golden() -> None:
    endpoint = Endpoint(
        "10.0.0.1",
        8443,
        "one",
        weight=2.0,
        secure=True,
        zone="a",
        version="1.2",
        started_at=1610116500.5,
        metadata={"rack": "r1"},
    )
    assert encode_instance("orders", endpoint) == golden("written.json")
    assert open_decoder("curator")("one", golden("written.json")) == endpoint


def test_a_dubbo_provider_is_its_name() -> None:
    for decoder in (InstanceDecoder("test"), InstanceDecoder("test", "dubbo")):
        assert decoder.data_is_in_name(DUBBO)
        assert not decoder.data_is_in_name("10.0.0.1:80")
        endpoint = decoder.decode(DUBBO, b"")
        assert endpoint is not None
        assert (endpoint.address, endpoint.weight, endpoint.version) == ("10.0.0.1:20880", 0.5, "1.0")
        assert endpoint.id == "10.0.0.1:20880/com.example.Orders#1610116500446"
        assert endpoint.started_at == REGISTERED
        assert endpoint.metadata["interface"] == "com.example.Orders"
    assert not InstanceDecoder("test", "json").data_is_in_name(DUBBO)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("category%3Dproviders", "category%3Dconsumers"),
        ("dynamic%3Dtrue", "disabled%3Dtrue"),
        ("dynamic%3Dtrue", "enabled%3Dfalse"),
        ("weight%3D50", "weight%3D0"),
    ],
)
def test_a_dubbo_provider_that_gets_no_calls(old: str, new: str) -> None:
    decoder = InstanceDecoder("test")
    assert decoder.decode(DUBBO.replace(old, new), b"") is None
    assert decoder.skipped == 0


def test_the_values_of_a_dubbo_provider_are_encoded_once() -> None:
    endpoint = InstanceDecoder("test").decode(DUBBO.replace("version%3D1.0", "version%3D1.0%2B7%2541+b"), b"")
    assert endpoint is not None
    assert endpoint.version == "1.0+7%41 b"


def test_credentials_in_a_name_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    decoder = InstanceDecoder("test")
    assert decoder.decode("dubbo%3A%2F%2Fadmin%3Asecret%40h%3A0%2Fx", b"") is None
    assert decoder.skipped == 1
    assert "secret" not in caplog.text


def test_an_empty_node_is_its_name() -> None:
    assert InstanceDecoder("test").decode("[::1]:80", b"") == Endpoint("::1", 80, "[::1]:80")


@pytest.mark.parametrize("status", ["DEAD", "STARTING", "STOPPING", "WARNING", None])
def test_only_living_members_of_a_serverset_get_calls(status: str | None) -> None:
    member = json.loads(golden("serverset_member.json")) | {"status": status}
    assert InstanceDecoder("test").decode(MEMBER, json.dumps(member).encode()) is None


def test_vectors_multiply_the_weights_of_a_serverset() -> None:
    children = {MEMBER: golden("serverset_member.json"), VECTOR: golden("serverset_vector.json")}
    decoder = InstanceDecoder("test", "serverset")
    assert [each.weight for each in decoder.decode_all(children)] == [3.0]
    assert [each.weight for each in decoder.decode_all({MEMBER: children[MEMBER]})] == [1.0]
    none = b'{"vector":[{"select":"shard=3","weight":0.0,"priority":1}]}'
    assert decoder.decode_all(children | {VECTOR: none}) == []
    assert [each.weight for each in decoder.decode_all(children | {VECTOR: b"bad"})] == [1.0]
    assert decoder.skipped == 1


def test_one_by_one() -> None:
    decoder = InstanceDecoder("test")
    member = decoder.decode(MEMBER, golden("serverset_member.json"))
    assert member is not None
    assert decoder.decode(VECTOR, golden("serverset_vector.json")) is None
    assert [each.weight for each in decoder.weighted([member])] == [3.0]
    decoder.forget([VECTOR])
    assert decoder.weighted([member]) == [member]


def test_the_unreadable_are_counted_until_they_leave(caplog: pytest.LogCaptureFixture) -> None:
    decoder = InstanceDecoder("test")
    for _ in range(3):
        decoder.decode("a", b"one")
    decoder.decode("b", b"two")
    assert (decoder.skipped, len(caplog.records)) == (2, 2)
    decoder.decode("a", golden("plain.txt"))
    decoder.forget(["b"])
    assert decoder.skipped == 0


def test_the_log_does_not_keep_what_it_names(caplog: pytest.LogCaptureFixture) -> None:
    InstanceDecoder("test").decode("a", b"not an instance")
    (record,) = caplog.records
    assert isinstance(record.args, tuple)
    assert all(isinstance(argument, str) for argument in record.args)


def test_a_decoder_of_the_users() -> None:
    def upper(id: str, data: bytes) -> Endpoint | None:
        if data == b"refused":
            raise InvalidEndpointError("refused")
        return Endpoint(data.decode().lower(), 80 // len(data), id)

    decoder = InstanceDecoder("test", upper)
    assert decoder.decode_all({"a": b"HOST", "b": b"", "c": b"\xff", "d": b"refused"}) == [Endpoint("host", 20, "a")]
    assert decoder.skipped == 3


def test_a_decoder_that_returns_nonsense(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert InstanceDecoder("test", lambda id, data: "h:80").decode("a", b"") is None  # type: ignore[arg-type,return-value]
    assert "returned a str" in caplog.text


@pytest.mark.parametrize("format", ["curators", "serverset:", "", 5])
def test_what_is_no_format(format: str) -> None:
    with pytest.raises(ConfigurationError, match="format"):
        open_decoder(format)


@pytest.fixture
def a_package_with_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """As pip would install it."""
    (tmp_path / "installed_formats.py").write_text(
        "from clientlb import Endpoint\n"
        "def pipes(id, data):\n"
        "    host, port = data.decode().split('|')\n"
        "    return Endpoint(host, int(port), id)\n"
        "constant = 5\n"
    )
    (tmp_path / "broken_formats.py").write_text("1 / 0\n")
    metadata = tmp_path / "formats-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: formats\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[clientlb.decoders]\n"
        "pipes = installed_formats:pipes\n"
        "constant = installed_formats:constant\n"
        "gone = installed_formats:gone\n"
        "nowhere = no_such_module_of_formats:pipes\n"
        "broken = broken_formats:pipes\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("installed_formats", None)


def test_a_format_of_another_package(a_package_with_formats: Path) -> None:
    registry = a_package_with_formats / "registry"
    (registry / "orders").mkdir(parents=True)
    (registry / "orders" / "n.json").write_bytes(b"10.0.0.1|7101")
    with watching(open_discovery(f"dir://{registry}?format=pipes"), "orders") as seen:
        seen.expect(7101)


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("constant", "'constant' is neither"),
        ("gone", "'gone' cannot be imported"),
        ("nowhere", "'nowhere' cannot be imported"),
        ("broken", "'broken' cannot be imported: ZeroDivisionError"),
        ("other", "known are .*address, broken, constant, curator, .*pipes, serverset"),
    ],
)
def test_a_package_with_a_format_that_is_none(a_package_with_formats: Path, format: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        open_decoder(format)


def test_a_directory_with_a_format(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="unknown format 'xml'"):
        open_discovery(f"dir://{tmp_path}?format=xml")
    (tmp_path / "orders").mkdir()
    (tmp_path / "orders" / "n.json").write_bytes(golden("serverset_member.json"))
    with watching(open_discovery(f"dir://{tmp_path}?format=serverset:http"), "orders") as seen:
        seen.expect(7101)
