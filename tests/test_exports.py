"""The face: `__all__` is what is really there, and every public thing says what it does."""

import importlib
import inspect
import pkgutil
import tomllib
from pathlib import Path

import pytest

import clientlb

PUBLIC = [
    "clientlb",
    "clientlb.discovery",
    "clientlb.events",
    "clientlb.grpc",
    "clientlb.grpc.aio",
    "clientlb.httpx",
    "clientlb.httpx2",
    "clientlb.policy",
    "clientlb.registration",
    "clientlb.registration.asgi",
    "clientlb.registration.grpc",
    "clientlb.registration.gunicorn",
    "clientlb.registration.wsgi",
    "clientlb.simulation",
    "clientlb.telemetry.logging",
    "clientlb.telemetry.prometheus",
    "clientlb.testing",
]
FACE = {
    "clientlb": ["Services", "Options", "Endpoint", "registration"],
    "clientlb.httpx": ["Client", "AsyncClient", "Transport", "AsyncTransport"],
    "clientlb.httpx2": ["Client", "AsyncClient", "Transport", "AsyncTransport"],
    "clientlb.grpc": ["channel"],
    "clientlb.grpc.aio": ["channel"],
    "clientlb.registration": ["register"],
}


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_what_is_there(name):
    module = importlib.import_module(name)
    own = {
        attribute
        for attribute, value in vars(module).items()
        if not attribute.startswith("_") and getattr(value, "__module__", None) == name
    }
    for attribute in module.__all__:
        assert hasattr(module, attribute), f"{name}.__all__ has {attribute}, which is not there"
    assert own <= set(module.__all__), f"{name}: public, but not in __all__: {own - set(module.__all__)}"


@pytest.mark.parametrize("name", FACE)
def test_the_face_is_there(name):
    module = importlib.import_module(name)
    for attribute in FACE[name]:
        assert hasattr(module, attribute)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_things_are_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for attribute in getattr(module, "__all__", ()):
        value = getattr(module, attribute)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{name}.{attribute} has no docstring"


def test_every_module_says_what_it_is():
    for module in pkgutil.walk_packages(clientlb.__path__, "clientlb."):
        if not module.name.endswith("__main__"):
            assert importlib.import_module(module.name).__doc__, module.name


def test_version_is_the_packages():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    assert clientlb.__version__ == project["project"]["version"]
