"""Servers that say how busy they are get calls by it, through every client. Without a policy for it nobody looks."""

import contextlib
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import httpx
import pytest

import clientlb
from clientlb.orca import of_headers
from clientlb.policy import Subset, WeightedRoundRobin
from clientlb.testing import ManualDiscovery

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=["asgi", "wsgi"])
def unequal(request):
    """Addresses of a server that is at 20 %, and of one that is at 80 % with the same calls."""
    with contextlib.ExitStack() as stack:
        addresses = {}
        for utilization in ("0.2", "0.8"):
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.http.reporting", request.param, utilization],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.communicate)
            addresses[utilization] = f"127.0.0.1:{int(process.stdout.readline())}"
        yield addresses


async def test_calls_follow_what_servers_report(kind, unequal):
    policy = partial(Subset, partial(WeightedRoundRobin, blackout=0, update_every=1e-6))  # handed on by a wrapper
    registry = ManualDiscovery({"orders": list(unequal.values())})
    with clientlb.Services(registry, options=clientlb.Options(policy=policy)) as services:
        async with kind.client(services) as http:
            for _ in range(30):
                await http.get("http://orders/")
            busy = {node.endpoint.address: node.report.utilization for node in services["orders"].nodes}
            assert busy == {address: float(utilization) for utilization, address in unequal.items()}
            for node in services["orders"].nodes:
                assert node.report.qps > 0
        # a server that reports as many calls per second at a quarter of the utilization has four times the weight
        for node in services["orders"].nodes:
            node.report = clientlb.node.LoadReport(10.0, node.report.utilization, 0.0, node.report.at)
        counted = Counter(services["orders"].pick().endpoint.address for _ in range(100))
        assert counted[unequal["0.2"]] > 2 * counted[unequal["0.8"]] > 0


async def test_a_report_of_a_call_takes_effect_on_the_next(kind, unequal):
    policy = partial(WeightedRoundRobin, blackout=0, update_every=1e-6)
    registry = ManualDiscovery({"orders": list(unequal.values())})
    with clientlb.Services(registry, options=clientlb.Options(policy=policy)) as services:
        async with kind.client(services) as http:
            served = Counter([(await http.get("http://orders/")).text for _ in range(120)])
        # weights are calls per second by utilization: who has more calls because of it, weighs yet more
        assert served["0.2"] > 1.3 * served["0.8"] > 0


async def test_nobody_looks_for_reports_that_nobody_wants(kind, unequal):
    registry = ManualDiscovery({"orders": list(unequal.values())})
    with clientlb.Services(registry) as services:
        async with kind.client(services) as http:
            answer = await http.get("http://orders/")
        assert of_headers(answer.headers, 0.0) is not None
        assert all(node.report is None for node in services["orders"].nodes)


async def test_a_report_comes_with_a_failure_too_and_nonsense_is_no_error(kind, shared_servers):
    policy = partial(WeightedRoundRobin, blackout=0)
    registry = ManualDiscovery({"orders": [shared_servers["a"].address]})
    with clientlb.Services(registry, options=clientlb.Options(policy=policy)) as services:
        (node,) = services["orders"].nodes if services["orders"].wait(5) else ()
        async with kind.client(services) as http:
            header = "Endpoint-Load-Metrics: TEXT cpu_utilization=0.5,rps_fractional=7"
            answer = await http.get("http://orders/status", params={"status": 503, "header": header})
            assert answer.status_code == 503
            assert (node.report.qps, node.report.utilization) == (7.0, 0.5)
            header = "Endpoint-Load-Metrics: BIN nonsense"
            answer = await http.get("http://orders/status", params={"status": 200, "header": header})
            assert answer.status_code == 200
            assert node.report.qps == 7.0


def test_the_header_is_there_for_any_client(unequal):
    report = of_headers(httpx.get(f"http://{unequal['0.8']}/", trust_env=False).headers, 1.0)
    assert (report.utilization, report.at) == (0.8, 1.0)
