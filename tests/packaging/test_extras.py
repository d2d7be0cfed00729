"""Each extra brings what it needs: the built package works in an environment that has this extra and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.bare import BareEnvironment, build_wheel, provided_extras
from tests.packaging.smoke import USES
from tests.servers.dns import DnsServer

SMOKE = Path(__file__).with_name("smoke.py")
SAYS = {
    "grpc-health": "SERVING",
    "zookeeper-sasl": "ZooKeeperDiscovery",
    "prometheus": 'clientlb_calls_total{service="orders"} 1.0',
    "cli": "LiveScreen",
    "plot": "can draw",
}
"""What a smoke program says in the end, where it is not `hello`, the answer of a server that was called."""

ALONE = {extra: [extra] for extra in USES} | {"none": []}
BROUGHT = {
    "consul": "python-consul",
    "dns": "dnspython",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "httpx": "httpx",
    "httpx2": "httpx2",
    "kazoo": "kazoo",
    "matplotlib": "matplotlib",
    "prometheus_client": "prometheus-client",
    "puresasl": "pure-sasl",
    "requests": "requests",
    "rich": "rich",
}
"""What the extras bring: module and distribution."""

# what is imported or opened without its extra, and what the error then tells to install
MISSING = {
    "import clientlb.httpx": "clientlb[httpx]",
    "import clientlb.httpx2": "clientlb[httpx2]",
    "import clientlb.grpc": "clientlb[grpc]",
    "import clientlb.grpc.aio": "clientlb[grpc]",
    "import clientlb.telemetry.prometheus": "clientlb[prometheus]",
    "clientlb.Services('zookeeper://127.0.0.1:2181')": "clientlb[zookeeper]",
    "clientlb.Services('consul://127.0.0.1:8500')": "clientlb[consul]",
    "clientlb.Services('dns://:80')": "clientlb[dns]",
    "clientlb.registration.open_registrar('consul://127.0.0.1')": "clientlb[consul]",
    "demo.run(None)": "clientlb[httpx,grpc,cli]",
    "plot.check('fleet.svg')": "clientlb[plot]",
}

TRY = """
import clientlb
from clientlb.cli import demo
from clientlb.simulation import plot
for statement in %r:
    try:
        exec(statement)
    except (ImportError, clientlb.ConfigurationError) as error:
        print(error)
    else:
        print("no error")
"""

LOOK = """
import json
from collections.abc import Iterator
from importlib.metadata import distributions
from importlib.util import find_spec
print(json.dumps({
    "distributions": sorted({each.metadata["Name"].lower().replace("_", "-") for each in distributions()}),
    "importable": sorted(name for name in %r if find_spec(name)),
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("dist"))


def test_every_extra_is_tested(wheel: Path) -> None:
    assert provided_extras(wheel) == set(USES) - {"none"} | {"all"}


@pytest.mark.parametrize("extra", USES)
def test_an_extra_alone(extra: str, wheel: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    environment = BareEnvironment(tmp_path / "bare", wheel, ALONE[extra])
    seen = environment.run("-c", LOOK % (list(BROUGHT),))
    assert seen.returncode == 0, seen.stderr
    found = json.loads(seen.stdout)
    assert set(found["distributions"]) == environment.distributions
    assert set(found["importable"]) == {name for name, owner in BROUGHT.items() if owner in environment.distributions}

    argument = ""
    if extra in ("zookeeper", "consul"):
        argument = request.getfixturevalue(extra).url
    elif extra == "dns":
        argument = request.getfixturevalue("nameserver")
    done = environment.run(str(SMOKE), extra, argument)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == SAYS.get(extra, "hello")


def test_two_extras_together(wheel: Path, tmp_path: Path) -> None:
    environment = BareEnvironment(tmp_path / "bare", wheel, ["httpx", "consul"])
    assert {"httpx", "python-consul"} < environment.distributions
    assert not {"httpx2", "grpcio", "kazoo", "dnspython", "prometheus-client", "rich"} & environment.distributions
    code = "import clientlb.httpx; clientlb.httpx.Client(clientlb.Services('consul://127.0.0.1')).close()"
    done = environment.run("-c", code)
    assert done.returncode == 0, done.stderr


def test_a_missing_extra_is_named(wheel: Path, tmp_path: Path) -> None:
    environment = BareEnvironment(tmp_path / "bare", wheel, [])
    done = environment.run("-c", TRY % (list(MISSING),))
    assert done.returncode == 0, done.stderr
    for (statement, extra), line in zip(MISSING.items(), done.stdout.splitlines(), strict=True):
        assert "pip install" in line, statement
        assert extra in line, statement


def test_the_command_works_without_extras(wheel: Path, tmp_path: Path) -> None:
    environment = BareEnvironment(tmp_path / "bare", wheel, [])
    done = environment.run("-m", "clientlb", "resolve", "static://10.0.0.1:80", "orders")
    assert done.returncode == 0, done.stderr
    assert "10.0.0.1:80" in done.stdout


@pytest.fixture
def nameserver() -> Iterator[str]:
    server = DnsServer()
    server.serve("orders.test. 5 IN A 127.0.0.1")
    try:
        server.start()
        yield f"dns://orders.test:PORT?resolver={server.address}"
    finally:
        server.stop()
