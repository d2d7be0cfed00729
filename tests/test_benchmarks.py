"""Every benchmark can be imported, says what its figures are, and takes the options that all have."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NAMES = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
WITH_FIGURES = [name for name in NAMES if "common.Report(" in (BENCHMARKS / f"{name}.py").read_text()]


@pytest.fixture
def from_there(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_documented(name):
    assert ast.get_docstring(ast.parse((BENCHMARKS / f"{name}.py").read_text()))


@pytest.mark.parametrize("name", WITH_FIGURES)
def test_it_can_be_imported_and_has_the_common_options(name):
    asked = subprocess.run([sys.executable, BENCHMARKS / f"{name}.py", "--help"], capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    assert "--json" in asked.stdout
    assert "--quick" in asked.stdout


@pytest.mark.parametrize("name", WITH_FIGURES)
def test_the_report_has_the_name_of_its_file(name):
    assert f'common.Report("{name}"' in (BENCHMARKS / f"{name}.py").read_text()


def test_run_sh_runs_what_there_is():
    line = next(
        line for line in (BENCHMARKS / "run.sh").read_text().splitlines() if line.startswith("for benchmark in")
    )
    run = set(line.removeprefix("for benchmark in").removesuffix("; do").split())
    assert run == set(WITH_FIGURES) - {"fleet"}, "fleet.py takes longer than all others together"


def test_figures_that_miss_their_target_are_named(from_there, capsys):
    common = importlib.import_module("common")
    report = common.Report("pick")
    report.add("good", 0.9, target=1)
    report.add_ratio("bad", [3.0, 2.0, 2.0], [1.0, 1.0, 1.0], target=1, anchor="1: theirs")
    assert report.missed == ["bad"]
    assert set(report.targets) <= set(report.figures)
    report.print(as_json=False)
    assert "targets missed: bad" in capsys.readouterr().out


def test_sides_take_turns(from_there):
    common = importlib.import_module("common")
    turns = []
    common.alternate({side: lambda side=side: turns.append(side) or 1.0 for side in "abc"}, rounds=3)
    assert "".join(turns) == "abcbcacab"


@pytest.mark.parametrize(("percent", "value"), [(50, 50), (99, 99), (99.9, 100), (0, 1)])
def test_percentiles_are_values_that_occurred(from_there, percent, value):
    common = importlib.import_module("common")
    assert common.percentile(range(100, 0, -1), percent) == value


def test_processor_time_is_that_of_the_process(from_there):
    common = importlib.import_module("common")
    sleeper = subprocess.Popen([sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    sleeper.stdout.readline()
    assert sleeper.pid in common.processes()
    with open(f"/proc/{sleeper.pid}/stat", encoding="ascii") as stat:
        ticks = sum(map(int, stat.read().rpartition(")")[2].split()[11:13]))
    assert common.processor_seconds([sleeper.pid]) == pytest.approx(ticks / 100, abs=0.05)
    sleeper.communicate()
