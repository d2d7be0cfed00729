"""The files of the last good lists: what is written, and what is not believed."""

import json
import logging
import os
import resource
import signal
import threading

import pytest

from clientlb import ConfigurationError, Endpoint, GuardOptions, Options, Services, events
from clientlb.discovery.snapshot import MOST_BYTES, SnapshotFiles
from clientlb.testing import ManualDiscovery
from tests.servers.process import wait_until

ONE = Endpoint(
    "10.0.0.1", 80, id="a", weight=2.5, secure=True, zone="z", version="1", started_at=5, metadata={"k": "v"}
)
TWO = Endpoint("::1", 81)


@pytest.fixture
def files(tmp_path):
    return SnapshotFiles(tmp_path / "made" / "here", "consul://127.0.0.1:8500")


def test_list_comes_back_as_it_was(files):
    files.save("orders", (ONE, TWO))
    endpoints, age = files.load("orders")
    assert endpoints == (ONE, TWO)
    assert dict(endpoints[0].metadata) == {"k": "v"}
    assert 0 <= age < 60
    path = files.path("orders")
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert [each.name for each in path.parent.iterdir()] == [path.name], "nothing else is left behind"


def test_no_file_is_no_error(files):
    assert files.load("orders") is None
    files.delete("orders")


@pytest.mark.parametrize("service", ["../../etc/passwd", "..", "/", "a/b", "x" * 5000, "\0", "ü\ud800", ".hidden"])
def test_no_name_leads_out_of_the_folder(files, service):
    path = files.path(service)
    assert path.parent == files.path("orders").parent
    assert len(path.name) < 255
    files.save(service.encode(errors="replace").decode(), (ONE,))
    assert files.path(service).resolve().parent == path.parent.resolve()


def test_services_and_registries_never_share_a_file(files, tmp_path):
    other = SnapshotFiles(tmp_path / "made" / "here", "consul://127.0.0.1:9500")
    paths = {files.path("a/b"), files.path("a%2Fb"), files.path("A/b"), other.path("a/b")}
    assert len(paths) == 4


def rewritten(change):
    """Damage by a change of the lines, each a JSON object."""

    def damage(path):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        change(lines)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    return damage


DAMAGES = {
    "empty": lambda path: path.write_text(""),
    "cut": lambda path: path.write_text(path.read_text()[:-20]),
    "one line short": rewritten(lambda lines: lines.pop()),
    "no JSON": lambda path: path.write_bytes(b"\xff\xfe\x00{"),
    "deep": lambda path: path.write_text("[" * 200_000 + "\n"),
    "too big": lambda path: path.write_bytes(b" " * (MOST_BYTES + 1)),
    "other version": rewritten(lambda lines: lines[0].update(version=2)),
    "other registry": rewritten(lambda lines: lines[0].update(registry="consul://elsewhere:8500")),
    "other service": rewritten(lambda lines: lines[0].update(service="users")),
    "no time": rewritten(lambda lines: lines[0].update(written="yesterday")),
    "bad host": rewritten(lambda lines: lines[1].update(host="user:secret@h")),
    "bad port": rewritten(lambda lines: lines[1].update(port=0)),
    "bad weight": rewritten(lambda lines: lines[1].update(weight=float("nan"))),
    "bad zone": rewritten(lambda lines: lines[1].update(zone=["z"])),
    "bad metadata": rewritten(lambda lines: lines[1].update(metadata={"k": 1})),
    "unknown field": rewritten(lambda lines: lines[1].update(command="rm")),
    "missing field": rewritten(lambda lines: lines[1].pop("host")),
    "writable by others": lambda path: path.chmod(0o666),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link": lambda path: (path.rename(path.with_name("real")), path.symlink_to(path.with_name("real"))),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_not_as_it_should_be_is_not_believed(files, damage):
    files.save("orders", (ONE, TWO))
    damage(files.path("orders"))
    with pytest.raises((ValueError, OSError)):
        files.load("orders")


def test_list_that_is_too_long_leaves_the_old_one(files):
    files.save("orders", (ONE,))
    with pytest.raises(ValueError, match="more than"):
        files.save("orders", (Endpoint("h", 1, metadata={"k": "v" * MOST_BYTES}),))
    assert files.load("orders").endpoints == (ONE,)
    assert len(list(files.path("orders").parent.iterdir())) == 1


def test_half_written_file_of_a_dead_process_is_removed(files):
    files.save("orders", (ONE,))
    left = files.path("orders").with_name(files.path("orders").stem + ".dead.tmp")
    left.write_text("half")
    os.utime(left, (0, 0))
    files.save("orders", (TWO,))
    assert not left.exists()


def test_many_writers_leave_one_whole_list(files):
    writers = [threading.Thread(target=files.save, args=("orders", (Endpoint("h", n),) * 50)) for n in range(1, 9)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    endpoints, _ = files.load("orders")
    assert len(endpoints) == 50
    assert len(set(endpoints)) == 1


@pytest.mark.parametrize("folder", [3, "", b"x", None])
def test_bad_folder_is_named(folder, tmp_path):
    (tmp_path / "file").write_text("")
    for bad in (folder, tmp_path / "file"):
        if bad is not None:
            with pytest.raises(ConfigurationError, match="snapshots"):
                Services("static://h:1", snapshots=bad)


def test_list_is_written_and_removed_as_the_guard_believes_it(tmp_path):
    registry = ManualDiscovery({"orders": ["h:1", "h:2"]})
    files = SnapshotFiles(tmp_path, str(registry))
    with Services(registry, snapshots=tmp_path, options=Options(guard=GuardOptions(empty_hold=0))) as services:
        balancer = services["orders"]
        wait_until(lambda: files.load("orders"), what="the first list is written")
        registry.set("orders", ["h:1", "h:2", "h:3"])
        wait_until(lambda: files.load("orders").endpoints == balancer.endpoints, what="the change is written")
        registry.set("orders", [])
        wait_until(lambda: files.load("orders") is None, what="nobody is left, so the next process need not wait")


def test_closing_writes_what_is_yet_to_be_written_and_deletes_nothing(tmp_path):
    registry = ManualDiscovery({"orders": ["h:1"]})
    files = SnapshotFiles(tmp_path, str(registry))
    with Services(registry, snapshots=tmp_path) as services:
        wait_until(lambda: services["orders"] and files.load("orders"), what="the first list is written")
        registry.set("orders", ["h:1", "h:2"])
    assert len(files.load("orders").endpoints) == 2


def test_held_empty_list_leaves_the_file(tmp_path):
    registry = ManualDiscovery({"orders": ["h:1"]})
    files = SnapshotFiles(tmp_path, str(registry))
    with Services(registry, snapshots=tmp_path) as services:
        wait_until(lambda: services["orders"] and files.load("orders"), what="the first list is written")
        registry.set("orders", [])
    assert len(files.load("orders").endpoints) == 1


def test_file_that_cannot_be_used_is_told_once_and_replaced(tmp_path, caplog):
    registry = ManualDiscovery({})
    files = SnapshotFiles(tmp_path, str(registry))
    files.path("orders").write_text("rubbish")
    with caplog.at_level(logging.WARNING, "clientlb.discovery"), Services(registry, snapshots=tmp_path) as services:
        balancer = services["orders"]
        wait_until(lambda: caplog.records, what="the file is told of")
        assert not balancer.wait(0.5)
        registry.set("orders", ["h:1"])
        wait_until(lambda: files.path("orders").stat().st_size > 50, what="the file is replaced")
    assert len(caplog.records) == 1
    assert "is not used" in caplog.text
    assert len(files.load("orders").endpoints) == 1


def test_folder_that_cannot_be_written_is_told_once(tmp_path, caplog):
    (tmp_path / "folder").write_text("")
    registry = ManualDiscovery({"orders": ["h:1"]})
    with (
        caplog.at_level(logging.WARNING, "clientlb.discovery"),
        Services(registry, snapshots=tmp_path / "gone") as services,
    ):
        os.rename(tmp_path / "folder", tmp_path / "gone")
        services["orders"].pick().release()
        wait_until(lambda: caplog.records, what="the folder is told of")
        registry.set("orders", ["h:1", "h:2"])
    assert sum("could not be written" in record.getMessage() for record in caplog.records) == 1


def test_hook_may_close_everything_when_the_list_is_used(tmp_path):
    registry = ManualDiscovery({})
    SnapshotFiles(tmp_path, str(registry)).save("orders", (Endpoint("h", 1),))
    closed = threading.Event()

    def hook(event):
        if isinstance(event, events.SnapshotUsed):
            services.close()
            closed.set()

    services = Services(registry, snapshots=tmp_path, hooks=[hook])
    balancer = services["orders"]
    registry.fail("orders", OSError("down"))
    assert closed.wait(10)
    assert balancer.closed


def test_symbolic_link_is_neither_read_nor_written_through(tmp_path):
    registry = ManualDiscovery({"orders": ["h:1"]})
    files, elsewhere = SnapshotFiles(tmp_path, str(registry)), tmp_path / "elsewhere"
    files.save("orders", (Endpoint("h", 2),))
    os.rename(files.path("orders"), elsewhere)
    before = elsewhere.read_bytes()
    os.symlink(elsewhere, files.path("orders"))
    with pytest.raises(OSError, match="symbolic"):
        files.load("orders")
    files.save("orders", (Endpoint("h", 1),))
    assert [endpoint.port for endpoint in files.load("orders").endpoints] == [1]
    assert elsewhere.read_bytes() == before


def test_full_disk_leaves_the_old_list_and_no_rubbish(files):
    """A limit on the size of files fails as a full disk does: in the middle of writing."""
    files.save("orders", (Endpoint("h", 1),))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            with pytest.raises(OSError, match="too large"):
                files.save("orders", tuple(Endpoint("h", port) for port in range(1, 100)))
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert len(files.load("orders").endpoints) == 1
    assert os.listdir(files.path("orders").parent) == [files.path("orders").name]


def test_forked_child_keeps_lists_of_its_own(tmp_path):
    registry = f"file://{tmp_path / 'services.json'}"
    (tmp_path / "services.json").write_text('{"orders": ["h:1"], "users": ["h:2"]}')
    with Services(registry, snapshots=tmp_path / "kept") as services:
        files = SnapshotFiles(tmp_path / "kept", services["orders"].source)
        wait_until(lambda: files.load("orders"), what="the parent has written")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                assert services["users"].wait(10)
                wait_until(lambda: files.load("users"), what="the child has written")
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
