"""The backend in `examples/etcd_backend`, found by its entry points, against a real etcd."""

from __future__ import annotations

import importlib
import sys
import threading
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import clientlb
from clientlb.discovery import Discovery, open_discovery
from clientlb.discovery.decode import encode_instance
from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError
from clientlb.registration import Registrar, open_registrar, register
from clientlb.testing import DiscoveryContract, RegistrarContract
from tests.conftest import running
from tests.discovery.watching import watching
from tests.servers.etcd import EtcdServer
from tests.servers.process import wait_until

PACKAGE = Path(__file__).parents[2] / "examples" / "etcd_backend"


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The package on the import path, with the entry points that an installer would take from its pyproject.toml."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    site = tmp_path_factory.mktemp("site")
    info = site / f"clientlb_etcd-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    with (info / "entry_points.txt").open("w") as file:
        for group, entries in project["entry-points"].items():
            print(f"[{group}]", *(f"{name} = {target}" for name, target in entries.items()), sep="\n", file=file)
    with pytest.MonkeyPatch.context() as patch:
        for folder in (site, PACKAGE):
            patch.syspath_prepend(folder)
        importlib.invalidate_caches()
        yield
    sys.modules.pop("clientlb_etcd", None)


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    with running(EtcdServer()) as server:
        yield server


class TestContract(DiscoveryContract):
    breakable = True
    can_be_malformed = True

    @pytest.fixture(autouse=True)
    def registry(self, etcd: EtcdServer) -> None:
        etcd.clear()
        self.etcd = etcd
        self.present: dict[str, set[str]] = {}

    def make_discovery(self) -> Discovery:
        return open_discovery(self.etcd.url)

    def put(self, service: str, endpoints: Sequence[Endpoint]) -> None:
        wanted = {f"services/{service}/{endpoint.id}": encode_instance(service, endpoint) for endpoint in endpoints}
        for key in self.present.get(service, set()) - wanted.keys():
            self.etcd.delete(key)
        for key, data in wanted.items():
            self.etcd.put(key, data)
        self.present[service] = set(wanted)

    def put_malformed(self, service: str) -> None:
        self.etcd.put(f"services/{service}/bad", b"not json")

    def break_registry(self) -> None:
        self.etcd.kill()

    def mend_registry(self) -> None:
        self.etcd.start()

    def describe(self, endpoint: Endpoint) -> object:
        return endpoint


class TestRegistrar(RegistrarContract):
    expires = True

    @pytest.fixture(autouse=True)
    def registry(self, etcd: EtcdServer) -> None:
        etcd.clear()
        self.etcd = etcd

    def make_registrar(self) -> Registrar:
        return open_registrar(self.etcd.url)

    def make_discovery(self) -> Discovery:
        return open_discovery(self.etcd.url)


def test_a_server_registers_and_is_called_and_leaves(etcd: EtcdServer, service: str) -> None:
    with clientlb.Services(etcd.url) as services:
        registration = register(service, port=8080, to=etcd.url, weight=2.0, zone="z")
        with services[service].pick() as pick:
            assert str(pick.endpoint) == "127.0.0.1:8080"
            assert (pick.endpoint.weight, pick.endpoint.zone) == (2.0, "z")
        registration.close()
        assert not any(service in key for key in etcd.keys())  # noqa: SIM118


def test_a_wiped_registry_is_written_again(service: str) -> None:
    with running(EtcdServer()) as own, watching(open_discovery(own.url), service) as seen:
        with register(service, host="127.0.0.1", port=8080, to=own.url, ttl=1.0):
            seen.expect(8080)
            own.kill()
            own.wipe()
            own.start()
            wait_until(lambda: any(service in key for key in own.keys()))  # noqa: SIM118
            seen.expect(8080)
        seen.expect()


def test_threads_end(etcd: EtcdServer, service: str) -> None:
    with watching(open_discovery(etcd.url), service) as seen:
        seen.expect()
        etcd.put(f"services/{service}/a", b'{"host": "127.0.0.1", "port": 8080}')
        seen.expect(8080)  # so it waits in its watch
        (thread,) = [it for it in threading.enumerate() if it.name.endswith(f"{service}/")]
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize("url", ["etcd://", "etcd://h/x", "etcd://u:sesame@h", "etcd://h:70000", "etcd://h?x=1"])
def test_urls_that_cannot_be(url: str) -> None:
    for opened in (open_discovery, open_registrar):
        with pytest.raises(ConfigurationError) as caught:
            opened(url)
        assert "sesame" not in str(caught.value)
