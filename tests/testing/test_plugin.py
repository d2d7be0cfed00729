"""pytest finds the fixtures by itself, and they bring nothing heavy with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clientlb import Services
from clientlb.httpx import Client
from clientlb.testing import ScriptedServer
from tests.packaging.bare import BareEnvironment, build_wheel

USE = """
import threading
import urllib.request
import clientlb

def test_fixtures(clientlb_registry, clientlb_services, clientlb_endpoints):
    @clientlb_services.balanced("orders", idempotent=True)
    def load(endpoint):
        with urllib.request.urlopen(f"http://{endpoint}/", timeout=10) as response:
            return response.read().decode()

    one, two = clientlb_endpoints("orders", 2)
    assert {load() for _ in range(20)} == {one.address, two.address}
    one.refuse()
    assert {load() for _ in range(20)} == {two.address}
    clientlb_registry.fail("orders", ConnectionError("the registry is down"))
    assert load() == two.address
    clientlb_registry.set("orders", [one.address])
    one.accept()
    assert one.endpoint in clientlb_services["orders"].endpoints

def test_everything_was_closed():
    assert not [each for each in threading.enumerate() if each.name.startswith("clientlb")]
"""

# what is there when pytest has started: this is the conftest of the run
STARTED = """
import sys
def pytest_configure():
    heavy = {"httpx", "httpx2", "grpc", "kazoo", "consul", "requests", "dns", "rich", "http.server"} & set(sys.modules)
    print("heavy:", sorted(heavy))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> BareEnvironment:
    """pytest and clientlb without extras."""
    folder = tmp_path_factory.mktemp("plugin")
    return BareEnvironment(folder / "bare", build_wheel(folder), [], beside=["pytest"])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "conftest.py").write_text(STARTED)
    (tmp_path / "test_use.py").write_text(USE)
    return tmp_path


def test_pytest_finds_the_fixtures(environment: BareEnvironment, project: Path) -> None:
    done = environment.run("-m", "pytest", "-s", "-W", "error", folder=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert "plugins: clientlb-" in done.stdout
    assert "heavy: []" in done.stdout


def test_they_can_be_turned_off(environment: BareEnvironment, project: Path) -> None:
    done = environment.run("-m", "pytest", "-p", "no:clientlb", "--fixtures", "-q", folder=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clientlb_endpoints" not in done.stdout


def test_among_other_plugins(
    clientlb_endpoints: Callable[..., list[ScriptedServer]], clientlb_services: Services
) -> None:
    one, two = clientlb_endpoints("orders", 2)
    one.fail(times=None)
    with Client(clientlb_services) as http:
        assert {http.get("http://orders/").text for _ in range(10)} == {two.address}
