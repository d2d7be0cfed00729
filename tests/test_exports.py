"""The face: `__all__` is what is really there, and every public thing says what it does."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
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
    "clientlb.journal",
    "clientlb.load",
    "clientlb.load.asgi",
    "clientlb.load.grpc",
    "clientlb.load.wsgi",
    "clientlb.policy",
    "clientlb.probing",
    "clientlb.probing.asgi",
    "clientlb.probing.grpc",
    "clientlb.probing.wsgi",
    "clientlb.registration",
    "clientlb.registration.asgi",
    "clientlb.registration.grpc",
    "clientlb.registration.gunicorn",
    "clientlb.registration.wsgi",
    "clientlb.replay",
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


def test_what_type_checkers_see_is_what_is_loaded_on_first_use():
    tree = ast.parse(Path(clientlb.__file__).read_text())
    (for_type_checkers,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: statement.module
        for statement in for_type_checkers.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert set(seen) == set(clientlb.__all__)
    for name, home in seen.items():
        value = getattr(clientlb, name)
        assert value is getattr(importlib.import_module(home), name)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Service'"):
        clientlb.Service


@pytest.mark.parametrize("expression", ["clientlb.policy.LeastTime", "clientlb.events.Ejected", "clientlb.Services"])
def test_a_first_use_needs_no_import_of_its_own(expression):
    subprocess.run([sys.executable, "-c", f"import clientlb; {expression}"], check=True)
