"""`clientlb replay`, and `clientlb explain` with a journal: as a user runs them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from clientlb import Balancer, Endpoint, JournalOptions, Options, Outcome
from clientlb.cli import main
from clientlb.replay import CAVEAT
from clientlb.testing import FakeClock
from tests.cli.running import run

URL = "static://10.0.0.1:80,10.0.0.2:80"


def record(path: Path, service: str = "orders", calls: int = 300) -> None:
    """Calls one after the other; the second server takes ten times as long, and one call at the first one fails."""
    clock = FakeClock()
    options = Options(policy="round_robin", journal=JournalOptions(path=path))
    caller = Balancer(service, options, clock=clock, rng=random.Random(1))
    caller.update([Endpoint("10.0.0.1", 80), Endpoint("10.0.0.2", 80)])
    failed = False
    for _ in range(calls):
        pick = caller.pick()
        first = pick.endpoint.host == "10.0.0.1"
        clock.advance(0.01 if first else 0.1)
        if first and not failed:
            failed = True
            pick.release(Outcome.RETRYABLE, "503")
        else:
            pick.release(Outcome.SUCCESS, "200")
    caller.close()


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal.jsonl"
    record(path)
    return path


def test_replay_prints_both_tables_and_the_caveat(journal: Path) -> None:
    result = run("replay", str(journal), "--policy", "round_robin", "--policy", "least_time")
    assert (result.returncode, result.stderr) == (0, "")
    head, _, columns, before, same, better, _, *traffic, _, caveat = result.stdout.splitlines()
    assert head == f"journal {journal}: service 'orders', 1 process, 300 picks in 16.4 s"
    assert columns.split()[:4] == ["policy", "calls", "lost", "%"]
    assert before.startswith("round_robin (recorded)    300  0.3333")
    assert same.split()[:2] == ["round_robin", "300"]
    assert better.split()[:3] == ["least_time", "300", "0"]
    assert traffic[0].split() == [
        "share",
        "of",
        "the",
        "attempts",
        "round_robin",
        "(recorded)",
        "round_robin",
        "least_time",
    ]
    assert [line.split()[:2] for line in traffic[1:]] == [["10.0.0.1:80", "50.0%"], ["10.0.0.2:80", "50.0%"]]
    assert float(traffic[2].split()[3].rstrip("%")) < 20
    assert caveat == CAVEAT


def test_replay_as_json(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(journal), "--json", "--seed", "3"]) == 0
    first = capsys.readouterr().out
    told = json.loads(first)
    assert (told["service"], told["caveat"]) == ("orders", CAVEAT)
    assert told["recorded"]["policy"] == "round_robin"
    assert told["recorded"]["endpoints"] == {"10.0.0.1:80": 0.5, "10.0.0.2:80": 0.5}
    (again,) = told["replayed"]
    assert again["policy"] == Options().policy
    assert again["p99 ms"] <= told["recorded"]["p99 ms"]
    assert main(["replay", str(journal), "--json", "--seed", "3"]) == 0
    assert capsys.readouterr().out == first


def test_replay_with_options_from_a_file(journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "options.toml"
    config.write_text("[services.orders.retry]\nattempts = 1\n")
    assert main(["replay", str(journal), "--policy", "round_robin", "--options", str(config), "--json"]) == 0
    (again,) = json.loads(capsys.readouterr().out)["replayed"]
    assert again["attempts per call"] == 1.0


def test_a_journal_of_several_services_asks_which(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(journal, "payments", calls=10)
    assert main(["replay", str(journal)]) == 2
    assert capsys.readouterr().err == f"clientlb: journal {journal} is of orders, payments; choose one with --service\n"
    assert main(["replay", str(journal), "--service", "payments"]) == 0
    assert "service 'payments', 1 process, 10 picks" in capsys.readouterr().out
    assert main(["replay", str(journal), "--service", "users"]) == 2
    assert "there is no pick of service 'users' in it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["replay", "/does/not/exist"], "journal /does/not/exist: No such file"),
        (["replay", __file__], "it is no journal of clientlb"),
        (["explain", URL, "orders", "--journal", "/does/not/exist"], "journal /does/not/exist: No such file"),
    ],
)
def test_what_cannot_be_read_is_one_line(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr.splitlines()[-1]


def test_a_policy_that_does_not_exist(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(journal), "--policy", "clever"]) == 2
    assert "policy 'clever' does not exist" in capsys.readouterr().err


def test_explain_says_what_a_journal_has(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", URL, "orders", "--journal", str(journal), "--picks", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("service 'orders': 2 of 2 endpoints healthy")
    assert lines[3:7] == [
        f"  journal {journal}: 1 process, 300 picks in 16.4 s",
        "    10.0.0.1:80: 150 picks, 1 failed, median 10.0 ms",
        "    10.0.0.2:80: 150 picks, 0 failed, median 100.0 ms",
        "  the last 2 picks in it:",
    ]
    assert len(lines) == 9
    assert lines[-1].endswith(" (0 in flight), one of 2: ok after 100.0 ms") or lines[-1].endswith("ok after 10.0 ms")


def test_explain_as_json(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", URL, "orders", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["service"], told["healthy"], len(told["endpoints"])) == ("orders", 2, 2)
    assert main(["explain", URL, "orders", "--json", "--journal", str(journal), "--picks", "3"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["journal"]["endpoints"]["10.0.0.2:80"] == {"picks": 150, "failed": 0, "median": pytest.approx(0.1)}
    assert [pick["number"] for pick in told["journal"]["picks"]] == [298, 299, 300]


def test_lines_that_cannot_be_read_are_told(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with journal.open("a") as file:
        file.write("nonsense\n" * 7)
    assert main(["explain", URL, "orders", "--journal", str(journal)]) == 0
    complaints = capsys.readouterr().err.splitlines()
    assert complaints[0].startswith(f"clientlb: skipped {journal}, line 303: ")
    assert complaints[5] == "clientlb: skipped 2 more lines"


@pytest.mark.parametrize("flags", [["--picks", "0"], ["--picks", "few"], ["--timeout", "0"]])
def test_bad_arguments_of_explain(flags: list[str]) -> None:
    assert run("explain", URL, "orders", *flags).returncode == 2
