"""Endpoint: what is a server, and what cannot be one."""

import pickle

import pytest

from clientlb import Endpoint, InvalidEndpointError


@pytest.mark.parametrize(
    ("host", "port", "text"),
    [
        ("", 80, "host"),
        ("a b", 80, "host"),
        ("user:secret@host", 80, "host"),
        ("host/path", 80, "host"),
        ("host\r\nX-Evil: 1", 80, "host"),
        ("[::1]", 80, "host"),
        ("x" * 254, 80, "host"),
        (None, 80, "host"),
        ("host", 0, "port 0 "),
        ("host", 70000, "port 70000 "),
        ("host", -1, "port -1 "),
        ("host", "80", "port '80' "),
        ("host", True, "port True "),
        ("host", 80.0, "port 80.0 "),
    ],
)
def test_what_no_server_can_have(host, port, text):
    with pytest.raises(InvalidEndpointError, match=text):
        Endpoint(host, port)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), 10**400, "heavy"])
def test_weight_is_above_zero(weight):
    with pytest.raises(InvalidEndpointError, match="weight"):
        Endpoint("host", 80, weight=weight)


def test_long_rubbish_is_not_repeated_in_the_error():
    with pytest.raises(InvalidEndpointError) as caught:
        Endpoint("host", "7" * 1_000_000)
    assert len(str(caught.value)) < 200


def test_identity_is_the_address_unless_the_registry_has_one():
    assert Endpoint("10.0.0.1", 80).id == "10.0.0.1:80"
    assert Endpoint("10.0.0.1", 80, id="a").key != Endpoint("10.0.0.1", 80, id="b").key


def test_ipv6_address_is_bracketed():
    assert Endpoint("::1", 80).address == "[::1]:80"
    assert str(Endpoint("::1", 80)) == "[::1]:80"


def test_is_a_value():
    one = Endpoint("h", 1, metadata={"a": "b"})
    same = Endpoint("h", 1, metadata={"a": "b"})
    assert one == same
    assert hash(one) == hash(same)
    assert pickle.loads(pickle.dumps(one)) == one
    with pytest.raises(TypeError):
        one.metadata["a"] = "c"
