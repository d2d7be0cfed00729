"""Which instances of Consul's answer get calls, with which weight; and cutting an answer is as good as parsing it."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clientlb.discovery._consul_health import HealthReader, _parsed_pieces, _pieces
from clientlb.discovery._consul_http import ConsulError
from tests.discovery.scripted_agent import entry


def checked(port: int, *statuses: str, node: str = "passing", **more: Any) -> dict[str, Any]:
    """An instance with checks of its own."""
    own = [{"CheckID": f"check:{number}", "Status": status} for number, status in enumerate(statuses)]
    return {
        **entry(port, id=f"i{port}", **more),
        "Checks": [{"CheckID": "serfHealth", "Status": node}, *own],
    }


def compact(*entries: Any) -> bytes:
    return json.dumps(entries, separators=(",", ":")).encode()


def weights(reader: HealthReader, *entries: Any) -> dict[int, float]:
    return {endpoint.port: endpoint.weight for endpoint in reader.read(compact(*entries))}


STATES = [
    checked(1),
    checked(2, "passing", "passing"),
    checked(3, "passing", "warning", Weights={"Passing": 10, "Warning": 2}),
    checked(4, "warning", Weights={"Passing": 10, "Warning": 0}),
    checked(5, "warning", "critical"),
    checked(6, "passing", node="critical"),
    checked(7, "maintenance"),
    checked(8, "warning", Weights={"Passing": 10, "Warning": 5}, Meta={"weight": "7.0"}),
    {**checked(9), "Checks": None},
    {**checked(10), "Checks": ["passing"]},
]


def test_only_passing() -> None:
    assert weights(HealthReader("x"), *STATES) == {1: 1.0, 2: 1.0, 9: 1.0}


def test_passing_and_warning() -> None:
    found = weights(HealthReader("x", warning=True), *STATES)
    assert found == {1: 1.0, 2: 1.0, 3: 2.0, 8: 3.5, 9: 1.0}


def test_lost_nodes_are_counted_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    reader = HealthReader("orders in consul://a:1")
    with caplog.at_level(logging.WARNING, "clientlb"):
        for _ in range(2):
            assert weights(reader, checked(1), checked(2, "passing", node="critical"), checked(3, "critical")) == {
                1: 1.0
            }
        assert reader.node_lost == 1
        assert weights(reader, checked(1), checked(2, "critical", node="critical")) == {1: 1.0}
        assert reader.node_lost == 0
    assert [record.getMessage() for record in caplog.records] == [
        "orders in consul://a:1: 1 instances pass their checks, but their nodes are lost"
    ]


def test_the_order_is_that_of_the_ids_or_consuls_own() -> None:
    body = compact(*(checked(port) for port in (3, 1, 2)))
    assert [endpoint.port for endpoint in HealthReader("x").read(body)] == [1, 2, 3]
    assert [endpoint.port for endpoint in HealthReader("x", sort=False).read(body)] == [3, 1, 2]


def test_attributes_are_added() -> None:
    (found,) = HealthReader("x", attributes={"datacenter": "dc2"}).read(compact(checked(1)))
    assert found.metadata["datacenter"] == "dc2"


def test_what_did_not_change_is_the_same_object() -> None:
    reader = HealthReader("x")
    first = reader.read(compact(checked(1), checked(2), checked(3)))
    again = reader.read(compact(checked(3), checked(2, "passing", Weights={"Passing": 4}), checked(1)))
    assert [before is after for before, after in zip(first, again, strict=True)] == [True, False, True]
    assert again[1].weight == 4.0


def test_a_bad_instance_is_named_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    reader = HealthReader("x")
    with caplog.at_level(logging.WARNING, "clientlb"):
        for index in range(3):
            assert weights(reader, checked(1), {**entry(0, id="bad"), "Index": index}) == {1: 1.0}
            assert reader.skipped == 1
    assert len(caplog.records) == 1
    assert "n1/bad" in caplog.text
    assert weights(reader, checked(1)) == {1: 1.0}
    assert reader.skipped == 0


def test_one_instance_that_is_nested_too_deeply() -> None:
    deep = b'{"Node":{"Node":"n1"},"Service":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    good = compact(checked(1), checked(2))
    body = b"[" + good[1:-1] + b"," + deep + b"]"
    assert [endpoint.port for endpoint in HealthReader("x").read(body)] == [1, 2]


@pytest.mark.parametrize("body", [b"", b"{}", b"null", b"[", b'[{"Node":{]', b'[{"Node":{}}', b"[" * 100_000, b"\xff["])
def test_what_is_not_a_list_is_an_error(body: bytes) -> None:
    with pytest.raises(ConsulError):
        HealthReader("x").read(body)


texts = st.text() | st.sampled_from(['},{"Node":{', '"', "\\", '\\"},{"Node":{', '\n    },\n    {\n        "Node": {'])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.just("Node"), inner, max_size=3),
    max_leaves=8,
)
entries = st.fixed_dictionaries({"Node": st.dictionaries(texts, values, max_size=2), "Service": values})


@settings(max_examples=50)
@given(st.lists(entries | values, max_size=4), st.booleans())
def test_cutting_an_answer_is_as_good_as_parsing_it(content: list[Any], pretty: bool) -> None:
    """Whatever is in the strings: either the pieces are the entries, or one of them is no JSON and all is parsed."""
    body = json.dumps(content, indent=4, ensure_ascii=False) if pretty else json.dumps(content, separators=(",", ":"))
    data = body.encode("utf-8", "surrogatepass")
    try:
        found = [json.loads(piece) for piece in _pieces(data)]
    except ValueError:
        found = [json.loads(piece) for piece in _parsed_pieces(data)]
    assert found == content


@settings(max_examples=50)
@given(st.lists(values, max_size=4))
def test_anything_in_an_answer_costs_nothing_but_itself(content: list[Any]) -> None:
    body = compact(checked(1), *content, {"Node": content, "Service": content, "Checks": content}, checked(2))
    found = {endpoint.port for endpoint in HealthReader("x", warning=True).read(body)}
    assert found >= {1, 2}
