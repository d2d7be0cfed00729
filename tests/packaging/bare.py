"""Environments that hold the built package, some of its extras, and nothing else; made without a package index.

What an extra needs is what pip would install: the requirements in the wheel's metadata, and theirs in turn. The files
of these distributions are linked from the environment that runs the tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable, Sequence
from email import message_from_string
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def build_wheel(folder: Path) -> Path:
    """Build the package as `pip install` does; returns the wheel."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = folder.glob("*.whl")
    return wheel


class BareEnvironment:
    """A virtual environment with the wheel and the distributions that some of its extras need.

    Args:
        folder: Where it is made.
        wheel: The built package.
        extras: Those that are wanted.
        beside: Distributions that are wanted as well, with what they need.
    """

    def __init__(self, folder: Path, wheel: Path, extras: Iterable[str], *, beside: Iterable[str] = ()) -> None:
        venv.EnvBuilder(symlinks=True, with_pip=False).create(folder)
        self.python = folder / "bin" / "python"
        [self._packages] = folder.glob("lib/python*/site-packages")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(self._packages)
        [info] = self._packages.glob("clientlb-*.dist-info")
        self.distributions = {"clientlb", *closure(PathDistribution(info), extras)}
        for name in beside:
            self.distributions |= {name, *closure(distribution(name), ())}
        for name in self.distributions - {"clientlb"}:
            self._link(distribution(name))

    def _link(self, found: Distribution) -> None:
        for file in found.files or ():
            if ".." in file.parts:
                continue  # commands, which are no part of what can be imported
            link = self._packages / file
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.fspath(found.locate_file(file)))

    def run(self, *arguments: str, timeout: float = 60.0, folder: Path = Path("/")) -> subprocess.CompletedProcess[str]:
        """Run its interpreter, which sees nothing of ours: no variables, no user's packages, no current directory."""
        command: Sequence[str] = [str(self.python), "-I", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=folder, env={}, check=False)


def closure(found: Distribution, extras: Iterable[str]) -> set[str]:
    """The names of all distributions that one needs with these extras, and that those need, as pip reads it."""
    needed: set[str] = set()
    todo: list[tuple[Distribution, frozenset[str]]] = [(found, frozenset(extras))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        each, wanted = todo.pop()
        for line in each.requires or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in wanted or {""}):
                continue
            name = canonicalize_name(requirement.name)
            step = (name, frozenset(requirement.extras))
            if step in seen:
                continue
            seen.add(step)
            if name == canonicalize_name(found.metadata["Name"]):
                todo.append((found, step[1]))
            else:
                needed.add(name)
                todo.append((distribution(name), step[1]))
    return needed


def provided_extras(wheel: Path) -> set[str]:
    """The extras that the wheel offers."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return set(message_from_string(archive.read(name).decode()).get_all("Provides-Extra", ()))
