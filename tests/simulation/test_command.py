"""`clientlb simulate`, as a user runs it."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from clientlb.cli import main
from clientlb.simulation import SCENARIOS, plot, simulate

POLICY = """
class First:
    def choose(self, nodes, now, rng):
        return nodes[0]
"""


@pytest.fixture
def run(capsys):
    """Runs the command; returns its exit status and what it wrote to stdout and stderr."""

    def run(*arguments):
        try:
            status = main(["simulate", *arguments])
        except SystemExit as refused:
            status = refused.code
        return (status, *capsys.readouterr())

    return run


def test_help_lists_every_scenario(run):
    _, shown, _ = run("--help")
    for name, scenario in SCENARIOS.items():
        assert name in shown
        assert scenario.summary in shown


def test_a_table_has_a_line_per_point_and_policy_be_it_ones_own(run, tmp_path, monkeypatch):
    (tmp_path / "own_policies.py").write_text(POLICY)
    monkeypatch.syspath_prepend(str(tmp_path))
    status, found, _ = run("correlated", "--policy", "own_policies:First", "--policy", "p2c")
    assert status == 0
    head, *lines = found.splitlines()
    assert "p99 ms" in head
    assert len(lines) == 4
    assert [line.split()[:2] for line in lines[2:]] == [["crawling", "own_policies:First"], ["crawling", "p2c"]]


def test_options_of_a_file_are_those_of_every_client(run, tmp_path):
    path = tmp_path / "options.toml"
    path.write_text("[default]\npolicy = 'p2c'\n[default.retry]\nattempts = 1\n[default.health]\nsuspend = false")
    status, found, _ = run("correlated", "--options", str(path), "--json")
    assert status == 0
    once, _ = json.loads(found)
    assert (once["policy"], once["attempts per call"]) == ("p2c", 1.0)
    assert once["ejections"] > 0


def test_options_that_cannot_be_right_are_named(run, tmp_path):
    path = tmp_path / "options.toml"
    path.write_text("[default.health]\npanic_below = 50")
    status, _, said = run("few-left", "--options", str(path))
    assert status != 0
    assert "in default.health: health.panic_below is 50; give a number at least 0 and at most 1" in said


def test_json_and_plot(run, tmp_path):
    picture = tmp_path / "picture.png"
    status, found, _ = run("correlated", "--json", "--plot", str(picture))
    assert status == 0
    rows = json.loads(found)
    assert [(row["scenario"], row["point"], row["policy"]) for row in rows] == [
        ("correlated", "one pause", "least_time"),
        ("correlated", "crawling", "least_time"),
    ]
    assert all(row["calls"] > 0 for row in rows)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_ramp_is_drawn_against_its_points(tmp_path):
    picture = tmp_path / "ramp.svg"
    ramp = SCENARIOS["fig6"]
    runs = {
        (label, "least_time"): simulate(
            replace(setting, calls_per_second=10.0, clients=2, servers=4), name="least_time"
        )
        for label, setting in ramp.points.items()
    }
    plot.draw(ramp, runs, str(picture))
    assert picture.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "invalid choice: 'nowhere'"),
        (["stale", "--seeds", "0"], "at least 1"),
        (["stale", "--seeds", "many"], "--seeds"),
        (["stale", "--policy", "best"], "policy 'best' does not exist; known: least_time"),
        (["stale", "--policy", "nobody:Best"], "policy 'nobody:Best'"),
        (["stale", "--policy", "clientlb:Best"], "policy 'clientlb:Best'"),
        (["stale", "--policy", "clientlb:Endpoint"], "give a module:name that makes a Policy"),
        (["stale", "--plot", "fleet.txt"], "fleet.txt: matplotlib draws"),
        (["stale", "--plot", "/nowhere/fleet.png"], "there is no directory /nowhere"),
    ],
)
def test_what_cannot_be_is_said_at_once(run, arguments, says):
    status, written, complaint = run(*arguments)
    assert (status, written) == (2, "")
    assert says in complaint


def test_without_matplotlib_a_plot_is_refused_before_anything_runs():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from clientlb.cli import main\n"
        "sys.exit(main(['simulate', 'stale', '--plot', 'fleet.png']))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    assert "pip install 'clientlb[plot]'" in found.stderr


def test_matplotlib_is_imported_by_nobody_but_a_plot():
    code = "import sys, clientlb.cli, clientlb.simulation; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
