"""Registries full of nonsense: no watch ends, no good instance is lost, no host is anything but a host."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clientlb.discovery._consul_health import HealthReader
from clientlb.discovery._consul_http import ConsulError
from clientlb.discovery.decode import InstanceDecoder, decode_address, decode_object
from clientlb.endpoint import Endpoint
from clientlb.errors import InvalidEndpointError
from tests.discovery.fuzzing import INJECTIONS, beside, data, fuzz_consul, fuzz_directory, fuzz_zookeeper, name, no_list
from tests.discovery.scripted_agent import entry
from tests.servers.zookeeper import ZooKeeperServer

GOOD = b"10.0.0.1:80"
FORMATS = [None, "curator", "serverset", "serverset:http", "dubbo", "json", "address"]


@given(st.sampled_from(FORMATS), st.text(max_size=80) | st.text("%3AF2dubohst:/@?&=.0 "), st.binary(max_size=200))
def test_any_name_and_any_bytes(format: str | None, id: str, content: bytes) -> None:
    endpoint = InstanceDecoder("test", format).decode(id, content)
    assert endpoint is None or isinstance(endpoint, Endpoint)


@pytest.mark.parametrize("seed", range(3))
def test_a_good_instance_beside_any_others(seed: int) -> None:
    rng, decoder = random.Random(seed), InstanceDecoder("test")
    for _ in range(100):
        endpoints = decoder.decode_all({name(rng): data(rng) for _ in range(4)} | {"good": GOOD})
        assert Endpoint("10.0.0.1", 80, "good") in endpoints
        assert decoder.skipped <= 4


@pytest.mark.parametrize("seed", range(3))
def test_a_good_instance_in_any_answer_of_consul(seed: int) -> None:
    rng, reader = random.Random(seed), HealthReader("test")
    good = entry(80, id="good")
    for _ in range(100):
        endpoints = reader.read(json.dumps(beside(good, rng)).encode())
        assert Endpoint("10.0.0.1", 80, "n1/good") in endpoints
        with pytest.raises(ConsulError):
            reader.read(no_list(rng))


def test_an_id_that_cannot_be_written_out() -> None:
    """Half of a surrogate pair would break whoever writes it: a snapshot, a page of figures."""
    for id in ("\udcff", 5):
        with pytest.raises(InvalidEndpointError, match="id"):
            Endpoint("h", 80, id)  # type: ignore[arg-type]
    decoder = InstanceDecoder("test")
    assert decoder.decode_all({"\udcff": GOOD, "good": GOOD}) == [Endpoint("10.0.0.1", 80, "good")]


@pytest.mark.parametrize("host", INJECTIONS, ids=ascii)
def test_a_host_that_is_something_else_is_refused(host: str) -> None:
    with pytest.raises(InvalidEndpointError):
        Endpoint(host, 80)
    with pytest.raises(InvalidEndpointError):
        decode_object({"host": host, "port": 80})
    if host != "[::1]":
        with pytest.raises(InvalidEndpointError):
            decode_address(f"{host}:80")


@pytest.mark.parametrize("host", ["h", "a-b.c_d.", "10.0.0.1", "::1", "::ffff:10.0.0.1", "b\u00fccher.example"])
def test_a_host_is_taken(host: str) -> None:
    assert Endpoint(host, 80).host == host


def test_consul(service: str) -> None:
    fuzz_consul(service, seconds=1.0, seed=1)


def test_directory(tmp_path: Path, service: str) -> None:
    fuzz_directory(tmp_path, service, seconds=1.0, seed=1)


def test_zookeeper(zookeeper: ZooKeeperServer, service: str) -> None:
    fuzz_zookeeper(zookeeper, service, seconds=1.0, seed=1)
