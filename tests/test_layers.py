"""The house stands: imports point down only, decisions are pure, and importing clientlb imports no extra."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "clientlb"

# From the bottom up. A module may import from its own floor and from those below it. `docs/design.md` shows the same.
FLOORS = [
    [
        "errors",
        "endpoint",
        "outcome",
        "events",
        "backoff",
        "require",
        "check_options",
        "health_options",
        "retry_options",
        "options",
        "config",
        "classify",
        "histogram",
        "aio",
        "deadlines",
        "outbox",
        "arrival",
    ],
    ["forks"],
    ["health", "guard"],
    ["node", "figures"],
    ["orca"],
    ["policy", "retry"],
    ["pick", "trace", "stats", "explain", "explanation", "journal"],
    ["roster", "news", "retrying"],
    ["balancer"],
    ["call", "drive", "crew", "hedging", "decorator"],
    ["discovery", "registration", "telemetry", "load", "probing", "checking", "serving"],
    ["services"],
    ["testing", "simulation", "replay"],
    ["_http", "httpx", "httpx2", "grpc"],
    ["cli", "__main__"],
]
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}
ROOF = {"__init__"}  # `clientlb` itself: shows the public names, and nobody below imports from it

# these stand beside the balancer, not on it: it meets discovery only in update() and error(), telemetry only in events
SEES_THE_GROUND_ONLY = {"discovery", "registration", "telemetry"}
PURE = {
    "health",
    "policy",
    "retry",
    "backoff",
    "outcome",
    "endpoint",
    "histogram",
    "figures",
    "node",
    "orca",
    "guard",
    "simulation",
    "replay",
}
IMPURE_MODULES = {"time", "threading", "asyncio", "socket", "logging", "os", "subprocess"}
EXTRAS = {"httpx", "httpx2", "grpc", "kazoo", "consul", "requests", "prometheus_client", "rich", "dns", "matplotlib"}
EXTRAS |= {"httpcore", "httpcore2", "anyio", "trio"}

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    return ".".join(("clientlb", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def room_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(path, everywhere=True):
    """Modules that a file imports; names under TYPE_CHECKING are for readers and type checkers, and do not count."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree) if everywhere else tree.body:
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "clientlb":
                yield from (f"clientlb.{alias.name}" for alias in node.names)
            else:
                yield node.module


def test_every_room_has_a_floor():
    rooms = {room_of(name_of(path)) for path in MODULES}
    assert rooms - ROOF == set(FLOOR), "a new module: say on which floor it stands"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path):
    room = room_of(name_of(path))
    if room in ROOF:
        return
    for imported in imports_of(path):
        if not imported.startswith("clientlb."):
            continue
        other = room_of(imported)
        if other == room:
            continue
        assert other in FLOOR, f"{room} imports {imported} from the roof; import it from where it lives"
        assert FLOOR[other] <= FLOOR[room], f"{room} imports {other}, which stands above it"
        if room in SEES_THE_GROUND_ONLY:
            assert FLOOR[other] == 0 or other in SEES_THE_GROUND_ONLY, f"{room} sees the ground floor only, not {other}"
        if room == "policy" or room == "retry":
            assert other not in ("policy", "retry"), "policies and retries do not know each other"


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(name_of(p)) in PURE], ids=name_of)
def test_decisions_are_pure(path):
    impure = {imported.split(".")[0] for imported in imports_of(path)} & IMPURE_MODULES
    assert not impure, f"{path.name} decides, so time and randomness are its arguments; it imports {impure}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_extras_are_imported_only_in_their_own_rooms(path):
    allowed = {
        "httpx": {"httpx", "_http"},
        "httpx2": {"httpx2", "_http"},
        "grpc": {"grpc", "load", "probing", "checking"},
        "prometheus_client": {"telemetry"},
        "kazoo": {"discovery", "registration"},
        "consul": {"discovery", "registration"},
        "requests": {"discovery", "registration"},
        "rich": {"cli"},
        "dns": {"discovery"},
        "matplotlib": set(),
        "httpcore": {"httpx"},
        "httpcore2": {"httpx2"},
        "anyio": set(),
        "trio": set(),
    }
    for imported in imports_of(path, everywhere=False):
        extra = imported.split(".")[0]
        if extra in EXTRAS:
            assert room_of(name_of(path)) in allowed[extra], f"{path.name} imports {extra} at its top"


def test_import_clientlb_imports_no_extra():
    code = f"import sys, clientlb; print(sorted({EXTRAS!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_import_clientlb_starts_nothing():
    code = "import threading, os, clientlb; print(threading.active_count(), len(os.listdir('/proc/self/fd')))"
    bare = "import threading, os; print(threading.active_count(), len(os.listdir('/proc/self/fd')))"
    with_it, without = (
        subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout
        for source in (code, bare)
    )
    assert with_it == without
