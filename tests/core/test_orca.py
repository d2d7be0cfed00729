"""Load reports: read in every form, never an error, and what a policy that wants them is given."""

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clientlb import Options
from clientlb.balancer import Balancer
from clientlb.node import LoadReport
from clientlb.orca import HEADER, TRAILER, of_header, of_headers, of_message, of_trailers, to_message, to_text
from clientlb.policy import Filter, Subset, WeightedRoundRobin

# every field of OrcaLoadReport: cpu 0.3, mem 0.5, rps 7, an entry in request_cost and in utilization, rps_fractional
# 120.5, eps 2, an entry in named_metrics, application 0.75
ENTRY = b"\x0a\x01x\x11" + b"\x00" * 8
MESSAGE = (
    b"\x09\x33\x33\x33\x33\x33\x33\xd3\x3f\x11\x00\x00\x00\x00\x00\x00\xe0\x3f\x18\x07"
    + b"".join(bytes((tag, len(ENTRY))) + ENTRY for tag in (0x22, 0x2A))
    + b"\x31\x00\x00\x00\x00\x00\x20\x5e\x40\x39\x00\x00\x00\x00\x00\x00\x00\x40"
    + bytes((0x42, len(ENTRY)))
    + ENTRY
    + b"\x49\x00\x00\x00\x00\x00\x00\xe8\x3f"
)
REPORT = LoadReport(120.5, 0.75, 2.0, at=9.0)


@pytest.mark.parametrize(
    "value",
    [
        "TEXT cpu_utilization=0.3,application_utilization=0.75,rps_fractional=120.5,eps=2",
        "TEXT cpu_utilization=0.3, application_utilization=0.75, rps_fractional=120.5, eps=2, named_metrics.queue=70",
        "application_utilization=0.75,rps_fractional=120.5,eps=2,mem_utilization=much,nobody.knows=this",
        'JSON {"cpu_utilization": 0.3, "application_utilization": 0.75, "rps_fractional": 120.5, "eps": 2}',
        'JSON {"applicationUtilization": 0.75, "rpsFractional": "120.5", "eps": 2, "named_metrics": {"queue": 70}}',
        f"BIN {b64encode(MESSAGE).decode()}",
        f"BIN {b64encode(MESSAGE).decode().rstrip('=')}",
    ],
)
def test_every_form_of_the_header_is_read(value):
    assert of_header(value, 9.0) == REPORT
    assert of_headers({HEADER: value}, 9.0) == REPORT


def test_the_message_is_read_from_trailers_and_from_the_binary_header():
    assert of_message(MESSAGE, 9.0) == REPORT
    assert of_trailers((("other", "x"), (TRAILER, MESSAGE)), 9.0) == REPORT
    assert of_headers({TRAILER: b64encode(MESSAGE).decode()}, 9.0) == REPORT
    assert of_headers({}, 9.0) is None
    assert of_trailers(((HEADER, to_text(REPORT)),), 9.0) == REPORT
    assert of_trailers(None, 9.0) is None
    assert of_trailers(((TRAILER, "text"),), 9.0) is None


def test_the_processor_counts_where_the_application_says_nothing():
    assert of_header("TEXT cpu_utilization=0.3,application_utilization=0,rps_fractional=5", 1.0) == LoadReport(
        5.0, 0.3, 0.0, 1.0
    )


@pytest.mark.parametrize(
    "value",
    [
        "",
        "TEXT",
        "TEXT cpu_utilization=",
        "TEXT cpu_utilization=a lot,rps_fractional=5",
        "TEXT cpu_utilization=nan,rps_fractional=5",
        "TEXT cpu_utilization=inf,rps_fractional=5",
        "TEXT cpu_utilization=-0.1,rps_fractional=5",
        "TEXT mem_utilization=0.5",
        "JSON [1]",
        "JSON {",
        'JSON {"cpu_utilization": true}',
        'JSON {"cpu_utilization": null}',
        'JSON {"cpu_utilization": NaN}',
        'JSON {"cpu_utilization": 1' + "0" * 400 + "}",
        "JSON " + "[" * 100_000,
        "BIN %%%",
        "BIN CQ==",
        "BIN CTMz",
    ],
)
def test_what_cannot_be_read_is_no_report(value):
    assert of_header(value, 9.0) is None


@pytest.mark.parametrize("length", [length for length in range(len(MESSAGE)) if length not in (0,)])
def test_a_message_that_is_cut_off_is_no_report_or_a_shorter_one(length):
    found = of_message(MESSAGE[:length], 9.0)
    assert found is None or found.utilization in (0.3, 0.75)


def test_a_tag_or_number_that_no_message_has_is_no_report():
    for message in (b"\x00\x00", b"\x0b", b"\xff" * 20, b"\x08" + b"\x80" * 11, b"\x4a\xff\xff\xff\xff\x7f"):
        assert of_message(MESSAGE + message, 9.0) is None


@given(st.binary(max_size=200))
def test_no_bytes_are_an_error(message):
    found = of_message(message, 1.0)
    assert found is None or (found.qps >= 0 and found.utilization >= 0)


@given(
    st.sampled_from(["", "TEXT ", "JSON ", "BIN "]),
    st.one_of(
        st.text(max_size=100),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
            lambda inner: st.dictionaries(st.sampled_from(["cpu_utilization", "eps", "rpsFractional", "x"]), inner),
        ).map(lambda value: str(value).replace("'", '"')),
        st.lists(st.sampled_from(["cpu_utilization", "=", ",", "0.5", "eps", " ", "e9", "-", "inf"])).map("".join),
    ),
)
def test_no_header_is_an_error(prefix, text):
    found = of_header(prefix + text, 1.0)
    assert found is None or (found.qps >= 0 and found.utilization >= 0)


@given(*[st.floats(0.001, 1e9)] * 3)
def test_what_is_written_is_read(qps, utilization, eps):
    report = LoadReport(qps, utilization, eps, at=3.0)
    assert of_message(to_message(report), 3.0) == report
    read = of_header(to_text(report), 3.0)
    assert (read.qps, read.utilization, read.eps) == pytest.approx((qps, utilization, eps), rel=1e-5)


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        ("least_time", False),
        ("weighted_round_robin", True),
        (lambda: Subset("weighted_round_robin"), True),
        (lambda: Filter(lambda: Subset(WeightedRoundRobin)), True),
        (lambda: Subset("p2c"), False),
    ],
)
def test_reports_are_wanted_by_policies_that_look_at_them(policy, wanted):
    assert Balancer("orders", Options(policy=policy)).wants_reports is wanted
