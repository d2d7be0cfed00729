"""ZooKeeper with TLS, SASL, ACLs and a chroot, on real servers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import NoAuthError
from kazoo.security import make_digest_acl

from clientlb.discovery import open_discovery
from clientlb.discovery.zookeeper import ZooKeeperDiscovery
from clientlb.endpoint import Endpoint
from clientlb.errors import ConfigurationError, RegistrationError
from clientlb.registration import register
from clientlb.registration.zookeeper import ZooKeeperRegistrar
from tests.conftest import running
from tests.discovery.watching import watching
from tests.discovery.zookeeper_writing import put, writing
from tests.servers.zookeeper import SaslZooKeeper, TlsZooKeeper, ZooKeeperServer

SECRET = "s3cret"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this machine, which is its own authority, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "certificate.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=zookeeper"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    return files


@pytest.fixture(scope="module")
def tls_zookeeper(certificate: tuple[Path, Path]) -> Iterator[TlsZooKeeper]:
    with running(TlsZooKeeper(*certificate)) as server:
        yield server


@pytest.fixture(scope="module")
def sasl_zookeeper() -> Iterator[SaslZooKeeper]:
    with running(SaslZooKeeper("me", SECRET)) as server:
        yield server


def test_tls(tls_zookeeper: TlsZooKeeper, certificate: tuple[Path, Path], service: str) -> None:
    ca, key = (quote(str(file)) for file in certificate)
    url = f"zookeeper://127.0.0.1:{tls_zookeeper.secure_port}?tls=true&ca_file={ca}&cert_file={ca}&key_file={key}"
    with watching(open_discovery(url), service) as seen, register(service, port=80, to=url) as mine:
        assert mine.wait(10)
        seen.expect(80)
        with writing(tls_zookeeper.hosts) as client:
            put(client, service, 81)
        seen.expect(80, 81)


def test_tls_with_a_server_that_is_not_known(tls_zookeeper: TlsZooKeeper, service: str) -> None:
    with watching(open_discovery(f"zookeeper://127.0.0.1:{tls_zookeeper.secure_port}?tls=true"), service) as seen:
        seen.expect_error("no session", "certificate verify failed")


def test_tls_without_our_certificate(tls_zookeeper: TlsZooKeeper, certificate: tuple[Path, Path], service: str) -> None:
    discovery = ZooKeeperDiscovery(f"127.0.0.1:{tls_zookeeper.secure_port}", tls=True, ca_file=str(certificate[0]))
    with watching(discovery, service) as seen:
        seen.expect_error("no session")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("zookeeper://zk1?tls=maybe", "tls is true or false"),
        ("zookeeper://zk1?tls=true&ca_file=/none/ca.pem", "ca_file: there is no file '/none/ca.pem'"),
        ("zookeeper://zk1?ca_file=/none/ca.pem", "without tls=true"),
        ("zookeeper://zk1?tls=true&cert_file=/x", "cert_file and key_file go together"),
        ("zookeeper://zk1?tls=true&tls_verify=false&tls_verify_hostname=true", "tls_verify_hostname needs tls_verify"),
        ("zookeeper://zk1?sasl_mechanism=PLAIN", "DIGEST-MD5, GSSAPI"),
        ("zookeeper://zk1?sasl_mechanism=DIGEST-MD5", "needs credentials"),
        ("zookeeper://s3cret@zk1", "user:password"),
        ("zookeeper://zk1?chroot=/a/../b", "not a path"),
    ],
)
def test_bad_options(url: str, problem: str) -> None:
    for open_it in (open_discovery, ZooKeeperRegistrar.from_url):
        with pytest.raises(ConfigurationError, match=problem) as caught:
            open_it(url)
        assert SECRET not in str(caught.value)


def test_unknown_keyword() -> None:
    with pytest.raises(ConfigurationError, match=r"unknown option 'timeout'; it knows .*session_timeout"):
        ZooKeeperDiscovery("zk1", timeout=3)  # type: ignore[call-arg]


def test_secrets_are_not_shown() -> None:
    discovery = ZooKeeperDiscovery("zk1", credentials=f"me:{SECRET}")
    assert SECRET not in f"{discovery} {discovery!r} {discovery._ensemble!r}"


def test_sasl(sasl_zookeeper: SaslZooKeeper, service: str) -> None:
    url = f"zookeeper://me:{SECRET}@{sasl_zookeeper.hosts}?sasl_mechanism=DIGEST-MD5&acl=creator"
    with watching(open_discovery(url), service) as seen:
        with register(service, port=80, to=url, id="one") as mine:
            assert mine.wait(10)
            seen.expect(80)
        seen.expect()
        sasl_zookeeper.restart()
        with register(service, port=81, to=url, id="two") as mine:
            assert mine.wait(20)
            seen.expect(81)


def test_sasl_with_a_wrong_password(sasl_zookeeper: SaslZooKeeper, service: str) -> None:
    url = f"zookeeper://me:wrong{SECRET}@{sasl_zookeeper.hosts}?sasl_mechanism=DIGEST-MD5"
    with watching(open_discovery(url), service) as seen:
        message = seen.expect_error(sasl_zookeeper.hosts, "SASL authentication failed")
        assert SECRET not in message
    registrar = ZooKeeperRegistrar.from_url(url)
    with pytest.raises(RegistrationError) as caught:
        registrar.announce(service, Endpoint("10.0.0.1", 80), 7.0)
    assert SECRET not in str(caught.value)
    registrar.close()


def test_chroot(zookeeper: ZooKeeperServer, service: str) -> None:
    url = f"{zookeeper.url}?chroot=/team/{service}"
    with watching(open_discovery(url), service) as seen, writing(zookeeper.hosts) as client:
        assert f"chroot=/team/{service}" in str(open_discovery(url))
        client.ensure_path(f"/team/{service}")  # as for ZooKeeper's own clients, it has to be there for writers
        with register(service, port=80, to=url, id="one") as mine:
            assert mine.wait(10)
            seen.expect(80)
            path = f"/team/{service}/services/{service}"
            assert client.get_children(path) == ["one"]
            client.create(f"{path}/two", json.dumps({"host": "10.0.0.1", "port": 81}).encode())
            seen.expect(80, 81)
        seen.expect(81)


def test_acl_of_the_creator(zookeeper: ZooKeeperServer, service: str) -> None:
    url = zookeeper.url.replace("://", f"://me:{SECRET}@") + "?acl=creator"
    path = f"/services/{service}/one"
    with writing(zookeeper.hosts) as stranger, register(service, port=80, to=url, id="one") as mine:
        assert mine.wait(10)
        assert json.loads(stranger.get(path)[0])["port"] == 80
        with pytest.raises(NoAuthError):
            stranger.set(path, b"mine now")
        with pytest.raises(NoAuthError):
            stranger.delete(path)
        put(stranger, f"{service}-other", 81)  # what is above the service is open


def test_acl_as_a_list(zookeeper: ZooKeeperServer, service: str) -> None:
    acl = [make_digest_acl("reader", SECRET, read=True), make_digest_acl("me", SECRET, all=True)]
    registrar = ZooKeeperRegistrar(zookeeper.hosts, credentials=f"me:{SECRET}", acl=acl)
    with register(service, port=80, to=registrar, id="one") as mine:
        assert mine.wait(10)
        reader = KazooClient(zookeeper.hosts, auth_data=[("digest", f"reader:{SECRET}")])
        reader.start()
        try:
            assert json.loads(reader.get(f"/services/{service}/one")[0])["port"] == 80
            with pytest.raises(NoAuthError):
                reader.set(f"/services/{service}/one", b"mine now")
        finally:
            reader.stop()
            reader.close()
    registrar.close()


@pytest.mark.parametrize(("acl", "problem"), [("creator", "needs credentials"), ("closed", "open or creator")])
def test_bad_acl(acl: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        ZooKeeperRegistrar.from_url(f"zookeeper://zk1?acl={acl}")
