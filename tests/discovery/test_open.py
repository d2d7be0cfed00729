"""From what a user names a registry with, to the registry: or to an error that says what would be right."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from clientlb.discovery import Discovery, open_discovery
from clientlb.discovery.directory import DirectoryDiscovery
from clientlb.discovery.file import FileDiscovery
from clientlb.discovery.static import StaticDiscovery
from clientlb.discovery.url import redact
from clientlb.errors import ConfigurationError
from clientlb.testing import ManualDiscovery


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("static://10.0.0.1:80,10.0.0.2:80", StaticDiscovery),
        ("STATIC://10.0.0.1:80", StaticDiscovery),
        ("file:///etc/services.json", FileDiscovery),
        ("file:///etc/services.toml?interval=2", FileDiscovery),
        ("dir:///run/registry", DirectoryDiscovery),
        ("dir:///run/registry?interval=0.05", DirectoryDiscovery),
    ],
)
def test_url(url: str, kind: type) -> None:
    discovery = open_discovery(url)
    assert type(discovery) is kind
    assert isinstance(discovery, Discovery)
    assert str(discovery) == url.lower().partition("?")[0]


def test_an_object_is_taken_as_it_is() -> None:
    discovery = ManualDiscovery()
    assert open_discovery(discovery) is discovery


@pytest.mark.parametrize("source", [None, 8500, ["static://10.0.0.1:80"], b"static://h:1", StaticDiscovery, object()])
def test_what_is_neither(source: object) -> None:
    with pytest.raises(ConfigurationError, match="neither a URL nor a Discovery"):
        open_discovery(source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "is not the URL of a registry"),
        ("orders", "is not the URL of a registry"),
        ("10.0.0.1:80", "is not the URL of a registry"),
        ("file:services.json", "is not the URL of a registry"),
        ("etcd://10.0.0.1", "unknown scheme 'etcd'"),
        ("static://", "'' is not host:port"),
        ("static://10.0.0.1", "'10.0.0.1' is not host:port"),
        ("static://10.0.0.1:80,", "'' is not host:port"),
        ("static://10.0.0.1:0", "port 0"),
        ("static://10.0.0.1:70000", "port 70000"),
        ("static://::1:80", "an IPv6 address is written as [address]:port"),
        ("static://10.0.0.1:80/path", "port '80/path'"),
        ("file://services.json", "the path must be absolute"),
        ("file://host/services.json", "the path must be absolute"),
        ("file:///etc/services.json?intervall=1", "unknown option 'intervall'; it knows interval"),
        ("file:///etc/services.json?interval=1&interval=2", "given twice"),
        ("file:///etc/services.json?interval=often", "interval is a number of seconds"),
        ("file:///etc/services.json#part", "no #fragment"),
        ("file:///etc/%00", "is not a path"),
        ("dir://run/registry", "the path must be absolute"),
        ("dir://", "the path must be absolute"),
        ("dir:///run/registry?interval=0", "interval is a number of seconds"),
        ("dir:///run/registry?interval=-1", "interval is a number of seconds"),
        ("dir:///run/registry?interval=nan", "interval is a number of seconds"),
        ("dir:///run/registry?interval=1e12", "at most a year"),
        ("dir:///run/registry?interval", "is not a URL"),
        ("dir://[::1/x", "is not a URL"),
    ],
)
def test_bad_url(url: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_discovery(url)
    assert message in str(caught.value)


def test_an_unknown_scheme_hears_of_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"known are .*consul, dir, dns, dns\+srv, file, static, zookeeper"):
        open_discovery("etcd://10.0.0.1")


@pytest.mark.parametrize(
    "url",
    [
        "static://user:sesame@10.0.0.1:80",
        "etcd://user:sesame@10.0.0.1",
        "dir://user:sesame@host/path",
        "dir:///run/registry?token=sesame",
        "file:///services.json?acl_token=sesame&x=1",
        "etcd://user:se/sesame@10.0.0.1/a@b",
    ],
)
def test_errors_keep_secrets(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_discovery(url)
    assert "sesame" not in str(caught.value)
    assert "***" in str(caught.value) or "credentials" in str(caught.value)


def test_redact() -> None:
    assert redact("zookeeper://u:p@h:1,i:2/root?session_timeout=3") == "zookeeper://***@h:1,i:2/root?session_timeout=3"
    assert redact("consul://h:1?dc=x&token=abc#d") == "consul://h:1?dc=x&token=***#d"
    assert redact("consul://h:1?token_file=/run/t&TOKEN=abc") == "consul://h:1?token_file=***&TOKEN=***"
    assert redact("dir:///run/registry") == "dir:///run/registry"


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(open_discovery("dir://~/registry")) == f"dir://{tmp_path}/registry"
    assert str(open_discovery("file:///~/services.json")) == f"file://{tmp_path}/services.json"


def test_a_relative_path_of_an_object_stays_where_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    discovery = DirectoryDiscovery("registry")
    monkeypatch.chdir("/")
    assert str(discovery) == f"dir://{tmp_path}/registry"


class Installed:
    """A package on the import path that adds schemes, with the metadata that pip would write."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        monkeypatch.syspath_prepend(folder)

    def add(self, schemes: dict[str, str], module: str, source: str) -> None:
        (self._folder / f"{module}.py").write_text(source)
        info = self._folder / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        lines = "\n".join(f"{scheme} = {target}" for scheme, target in schemes.items())
        (info / "entry_points.txt").write_text(f"[clientlb.discovery]\n{lines}\n")
        importlib.invalidate_caches()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    return Installed(tmp_path, monkeypatch)


def test_a_third_party_adds_a_scheme(installed: Installed) -> None:
    installed.add(
        {"acme+list": "acme_registry:Acme"},
        "acme_registry",
        "from clientlb.testing import ManualDiscovery\n"
        "class Acme(ManualDiscovery):\n"
        "    @classmethod\n"
        "    def from_url(cls, url):\n"
        "        return cls({'orders': [url.partition('://')[2]]})\n",
    )
    discovery = open_discovery("acme+list://10.0.0.1:80")
    assert type(discovery).__name__ == "Acme"
    assert isinstance(discovery, ManualDiscovery)


def test_a_third_party_may_be_wrong(installed: Installed) -> None:
    installed.add(
        {
            "lazy": "wrong_registry:Lazy",
            "needy": "needy_registry:Needy",
            "empty": "wrong_registry:Empty",
            "gone": "wrong_registry:Gone",
        },
        "wrong_registry",
        "class Lazy: pass\nclass Empty:\n    from_url = classmethod(lambda cls, url: cls())\n",
    )
    with pytest.raises(ConfigurationError, match="has no from_url"):
        open_discovery("lazy://x")
    with pytest.raises(ConfigurationError, match="neither a URL nor a Discovery"):
        open_discovery("empty://x")
    with pytest.raises(ConfigurationError, match=r"the backend of 'needy' cannot be imported: .*needy_registry"):
        open_discovery("needy://x")
    with pytest.raises(ConfigurationError, match=r"the backend of 'gone' cannot be imported: .*Gone"):
        open_discovery("gone://x")


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("zookeeper://127.0.0.1:2181/services", "kazoo", "zookeeper"),
        ("consul://127.0.0.1:8500", "consul", "consul"),
        ("dns://:8080", "dns", "dns"),
    ],
)
def test_a_missing_extra_says_what_to_install(url: str, package: str, extra: str) -> None:
    # another interpreter, in which the package is as good as not installed
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from clientlb.discovery import open_discovery\n"
        "from clientlb.errors import ConfigurationError\n"
        f"try: open_discovery({url!r})\n"
        "except ConfigurationError as error: print(error)\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert f"pip install clientlb[{extra}]" in shown.stdout
