"""Real registries for the tests. A missing server is an error, never a skipped test: `make servers` fetches them.

`zookeeper` and `consul` are shared by the whole run: tests keep apart by service name (`service`) and never break
them. `own_zookeeper` and `own_consul` belong to one test, which may kill, wipe and restart them.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import pytest
from hypothesis import HealthCheck, settings

from tests.servers.consul import ConsulCluster, ConsulServer
from tests.servers.zookeeper import ZooKeeperEnsemble, ZooKeeperServer

# the same examples everywhere, however slow the machine; `pytest --hypothesis-profile=search` tries others
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("steady", settings.get_profile("search"), derandomize=True)
settings.load_profile("steady")


class _Server(Protocol):
    def start(self) -> None: ...
    def stop(self) -> None: ...


_S = TypeVar("_S", bound=_Server)


@contextmanager
def running(server: _S) -> Iterator[_S]:
    """Start a server, and stop it in the end."""
    try:
        server.start()
        yield server
    finally:
        server.stop()


def consul_library() -> str:
    """Which of the two packages that own the module `consul` is imported: the fork alone has `consul.callback`."""
    return "py-consul" if importlib.util.find_spec("consul.callback") else "python-consul"


def pytest_report_header() -> str:
    return f"consul library: {consul_library()}"


def pytest_configure() -> None:
    expected = os.environ.get("CLIENTLB_EXPECT_CONSUL_LIBRARY")
    if expected and expected != consul_library():
        raise pytest.UsageError(f"expected {expected}, but `import consul` finds {consul_library()}")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate for the name `orders`, which is its own authority, and its key."""
    folder: Path = tmp_path_factory.mktemp("tls")
    certificate, key = str(folder / "certificate.pem"), str(folder / "key.pem")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=orders"
    files = ["-addext", "subjectAltName=DNS:orders", "-keyout", key, "-out", certificate]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return certificate, key


@pytest.fixture
def service() -> str:
    """A service name that no other test uses."""
    return f"orders-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def zookeeper() -> Iterator[ZooKeeperServer]:
    with running(ZooKeeperServer()) as server:
        yield server


@pytest.fixture
def own_zookeeper() -> Iterator[ZooKeeperServer]:
    with running(ZooKeeperServer()) as server:
        yield server


@pytest.fixture
def zookeeper_cluster() -> Iterator[ZooKeeperEnsemble]:
    with running(ZooKeeperEnsemble()) as ensemble:
        yield ensemble


@pytest.fixture(scope="session")
def consul() -> Iterator[ConsulServer]:
    with running(ConsulServer(dev=True)) as server:
        yield server


@pytest.fixture
def own_consul() -> Iterator[ConsulServer]:
    with running(ConsulServer()) as server:
        yield server


@pytest.fixture
def consul_cluster() -> Iterator[ConsulCluster]:
    with running(ConsulCluster()) as cluster:
        yield cluster
