"""The file of a journal: bounded, private, shared by processes, and never in the way of a call."""

from __future__ import annotations

import json
import logging
import os
import random
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from clientlb import Balancer, ConfigurationError, Endpoint, JournalOptions, Options, Outcome, Services
from clientlb.journal import Entry, read_journal
from clientlb.testing import ManualDiscovery


def balancer(path: Path, service: str = "orders", endpoints: int = 3, **options: Any) -> Balancer:
    made = Balancer(service, Options(policy="p2c", journal=JournalOptions(path=path, **options)), rng=random.Random(1))
    made.update([Endpoint("10.0.0.1", port, zone="a", metadata={"k": "v"}) for port in range(1, endpoints + 1)])
    return made


def make_calls(caller: Balancer, calls: int) -> None:
    for _ in range(calls):
        caller.pick().release(Outcome.SUCCESS, "200")


def bad_lines(path: Path) -> list[str]:
    found: list[str] = []
    read_journal(path, on_bad_line=lambda file, number, error: found.append(f"{file}:{number}: {error}"))
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_what_was_recorded_is_read_again(path: Path) -> None:
    caller = balancer(path)
    make_calls(caller, 50)
    caller.update([Endpoint("10.0.0.1", 1), Endpoint("10.0.0.1", 2, weight=2.0), Endpoint("10.0.0.9", 9)])
    make_calls(caller, 50)
    running = caller.pick()
    caller_used = caller.endpoints
    caller.close()
    assert caller.journal is not None
    (recording,) = read_journal(path)
    assert (recording.service, recording.policy, recording.client) == ("orders", "p2c", caller.journal.client)
    assert [len(listed.endpoints) for listed in recording.lists] == [3, 3]
    assert recording.lists[0].endpoints[2] == Endpoint("10.0.0.1", 3, zone="a", metadata={"k": "v"})
    assert set(recording.lists[1].endpoints) == set(caller_used)
    assert [entry.as_json() for entry in recording.entries[:100]] == [
        entry.as_json() for entry in caller.journal.entries()[:100]
    ]
    last = recording.entries[-1]
    assert (last.outcome, last.endpoint) == (None, running.endpoint.address), "what still ran is written, too"
    assert last.held is not None
    running.release()


def test_it_can_be_read_in_part(path: Path) -> None:
    for service in ("orders", "payments"):
        caller = balancer(path, service)
        make_calls(caller, 20)
        caller.close()
    assert [each.service for each in read_journal(path)] == ["orders", "payments"]
    (only,) = read_journal(path, service="payments", last=5, candidates=False)
    assert [entry.number for entry in only.entries] == [16, 17, 18, 19, 20]
    assert {entry.candidates for entry in only.entries} == {()}


def test_only_its_owner_reads_it(path: Path) -> None:
    before = os.umask(0)
    try:
        caller = balancer(path)
        make_calls(caller, 1)
        caller.close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_its_size_is_bounded_and_each_file_stands_for_itself(path: Path) -> None:
    caller = balancer(path, endpoints=20, max_bytes=2**20)
    assert caller.journal is not None
    for _ in range(12):
        make_calls(caller, 1000)
        assert caller.journal.flush(30)
    caller.close()
    older = path.with_name("journal.jsonl.1")
    assert {file.name for file in path.parent.iterdir()} == {path.name, older.name}
    assert max(path.stat().st_size, older.stat().st_size) <= 2**20
    (recording,) = read_journal(path)
    numbers = [entry.number for entry in recording.entries]
    assert numbers == list(range(numbers[0], 12_001)), "none is missing at the seam"
    assert len(recording.lists) == 1
    older.unlink()
    (rest,) = read_journal(path)
    assert len(rest.lists[0].endpoints) == 20
    assert rest.entries[-1].number == 12_000


def test_a_list_of_many_that_changes_by_one_is_a_short_line(path: Path) -> None:
    caller = balancer(path, endpoints=1000)
    assert caller.journal is not None
    make_calls(caller, 1)
    caller.journal.flush(10)
    before = path.stat().st_size
    caller.update(caller.endpoints[1:])
    make_calls(caller, 1)
    caller.close()
    assert path.stat().st_size - before < 1500
    assert [len(each.endpoints) for each in read_journal(path)[0].lists] == [1000, 999]


PROCESS = """
import sys
from clientlb import Balancer, Endpoint, JournalOptions, Options
caller = Balancer("orders", Options(journal=JournalOptions(path=sys.argv[1], max_bytes=2**20)))
caller.update([Endpoint("10.0.0.1", 1), Endpoint("10.0.0.1", 2)])
for number in range(3000):
    caller.pick().release()
    if number % 500 == 0:
        caller.journal.flush(30)
"""


def test_processes_share_a_file_and_what_is_left_is_written_at_exit(path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", PROCESS, str(path)]) for _ in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert bad_lines(path) == []
    files = [path, path.with_name("journal.jsonl.1")]
    assert max(file.stat().st_size for file in files) <= 2**20
    recordings = read_journal(path)
    for recording in recordings:
        numbers = [entry.number for entry in recording.entries]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert any(recording.entries[-1].number == 3000 for recording in recordings)


FORK = """
import os, sys
from clientlb import Endpoint, JournalOptions, Options, Services
from clientlb.testing import ManualDiscovery
options = Options(journal=JournalOptions(path=sys.argv[1]))
with Services("static://10.0.0.1:1,10.0.0.1:2", options=options) as services:
    caller = services["orders"]
    running = caller.pick()
    for _ in range(100):
        caller.pick().release()
    caller.journal.flush(30)
    child = os.fork()
    for _ in range(50):
        caller.pick().release()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        running.release()
"""


def test_parent_and_child_of_a_fork_are_two_clients(path: Path) -> None:
    subprocess.run([sys.executable, "-c", FORK, str(path)], check=True, timeout=60)
    assert bad_lines(path) == []
    parent, child = read_journal(path)
    assert parent.client != child.client
    assert [entry.number for entry in parent.entries] == list(range(1, 152))
    assert len(child.entries) == 50
    assert parent.entries[0].outcome == "success"


@pytest.mark.parametrize("place", ["missing/journal.jsonl", "folder", "pipe", "link"])
def test_a_file_that_cannot_be_written_is_told_once_and_breaks_no_call(
    tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    caller = balancer(tmp_path / place)
    assert caller.journal is not None
    with caplog.at_level(logging.WARNING, "clientlb"):
        for _ in range(3):
            make_calls(caller, 10)
            caller.journal.flush(10)
        caller.close()
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        f"the journal {tmp_path / place} could not be written"
    ]
    assert len(caller.journal.entries()) == 30
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_that_is_taken_away_is_made_again(path: Path) -> None:
    caller = balancer(path)
    assert caller.journal is not None
    make_calls(caller, 5)
    assert caller.journal.flush(10)
    path.unlink()
    make_calls(caller, 5)
    caller.close()
    (recording,) = read_journal(path)
    assert [entry.number for entry in recording.entries] == [6, 7, 8, 9, 10]
    assert len(recording.lists[0].endpoints) == 3


def test_lines_that_cannot_be_read_are_skipped(path: Path) -> None:
    caller = balancer(path)
    make_calls(caller, 5)
    caller.close()
    lines = path.read_text().splitlines(keepends=True)
    damaged = [*lines[:3], "\0\0\n", '{"client": "x"}\n', "[]\n", lines[3][:20] + "\n", *lines[4:], lines[2][:30]]
    path.write_text("".join(damaged))
    (recording,) = read_journal(path)
    assert [entry.number for entry in recording.entries] == [1, 3, 4, 5]
    assert [line.split(":")[1] for line in bad_lines(path)] == ["4", "5", "6", "7"]


@pytest.mark.parametrize("content", ["", "nonsense\n", '{"format": "clientlb journal", "version": 99}\n'])
def test_what_is_no_journal_is_refused(path: Path, content: str) -> None:
    path.write_text(content)
    if content:
        with pytest.raises(ConfigurationError, match="it is no journal of clientlb"):
            read_journal(path)
    else:
        assert read_journal(path) == []


def test_a_journal_that_is_not_there_is_refused(path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"journal\.jsonl: No such file"):
        read_journal(path)


def test_closing_twice_and_calling_on_is_fine(path: Path) -> None:
    caller = balancer(path)
    running = caller.pick()
    caller.close()
    caller.close()
    running.release()
    assert caller.journal is not None
    assert not caller.journal.flush(0.01)
    assert caller.journal.entries()[-1].outcome == "success"


def test_services_share_a_file_by_their_options(path: Path) -> None:
    registry = ManualDiscovery({"orders": ["10.0.0.1:1"], "payments": ["10.0.0.2:1"]})
    options = Options(journal=JournalOptions(path=path))
    with Services(registry, options=options) as services:
        for name in ("orders", "payments", "orders"):
            services[name].pick().release()
        told = services.explain(1)
        assert [line for line in told.splitlines() if line.startswith("service")] == [
            "service 'orders': 1 of 1 endpoints healthy; policy least_time; manual://",
            "service 'payments': 1 of 1 endpoints healthy; policy least_time; manual://",
        ]
        assert told.count("the last pick:") == 2
    assert {each.service: len(each.entries) for each in read_journal(path)} == {"orders": 2, "payments": 1}


def test_many_threads_write_every_pick_once(path: Path) -> None:
    caller = balancer(path, picks=100)
    workers = [threading.Thread(target=make_calls, args=(caller, 500)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert caller.journal is not None
    assert caller.journal.flush(60)
    caller.close()
    (recording,) = read_journal(path)
    assert [entry.number for entry in recording.entries] == list(range(1, 4001))
    assert all(isinstance(entry, Entry) and entry.outcome == "success" for entry in recording.entries)
    assert json.loads(path.read_text().splitlines()[0])["format"] == "clientlb journal"
