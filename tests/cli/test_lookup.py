from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import clientlb
from clientlb.cli import main
from clientlb.registration import register
from tests.cli.running import run, started

LIST = {"orders": ["10.0.0.1:80", {"host": "10.0.0.2", "port": 81, "id": "two", "weight": 2, "zone": "a"}]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "services.json"
    path.write_text(json.dumps(LIST))
    return path


def write(path: Path, content: object) -> None:
    """Replace the file in one step, as an editor does."""
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(content))
    draft.replace(path)


def test_version() -> None:
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"clientlb {clientlb.__version__}\n")


def test_resolve_prints_addresses_first(file: Path) -> None:
    result = run("resolve", f"file://{file}", "orders")
    assert result.stdout.splitlines() == ["10.0.0.1:80", "10.0.0.2:81  id=two weight=2 zone=a"]
    assert (result.returncode, result.stderr) == (0, "")


def test_resolve_as_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resolve", "--json", f"file://{file}", "orders"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first == {"host": "10.0.0.1", "port": 80, "id": "10.0.0.1:80", "weight": 1.0, "secure": False}
    assert second == {"host": "10.0.0.2", "port": 81, "id": "two", "weight": 2.0, "secure": False, "zone": "a"}


def test_resolve_shows_what_a_server_registered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"dir://{tmp_path}"
    with register("orders", host="127.0.0.1", port=80, id="one", to=url, version="1.2", metadata={"k": "v"}) as entry:
        assert entry.wait(10)
        assert main(["resolve", url, "orders"]) == 0
    assert capsys.readouterr().out == "127.0.0.1:80  id=one version=1.2 k=v\n"
    assert main(["resolve", url, "orders"]) == 1


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_resolve_finds_nobody(file: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resolve", *flags, f"file://{file}", "payments"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ("[]\n" if flags else "")
    assert captured.err == "clientlb: nobody is registered as 'payments'\n"


BAD_INPUT = [
    (["resolve", "nonsense", "orders"], "is not the URL of a registry"),
    (["resolve", "carrier-pigeon://h", "orders"], "unknown scheme 'carrier-pigeon'"),
    (["resolve", "file:///does/not/exist.json", "orders"], "file:///does/not/exist.json: No such file"),
    (["resolve", "static://h:99999", "orders"], "99999"),
    (["watch", "nonsense", "orders"], "is not the URL of a registry"),
    (["explain", "nonsense", "orders"], "is not the URL of a registry"),
    (["demo", "--registry", "nonsense"], "is not the URL of a registry"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT, ids=lambda value: " ".join(value)[:40])
def test_what_cannot_be_done_is_one_line(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("clientlb: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["resolve", "static://h:1"],
        ["resolve", "static://h:1", ""],
        ["resolve", "static://h:1", "orders", "--timeout", "0"],
        ["resolve", "static://h:1", "orders", "--timeout", "soon"],
        ["demo", "--seconds", "1"],
        ["demo", "--rate", "nan"],
    ],
    ids=lambda arguments: " ".join(arguments) or "nothing",
)
def test_wrong_arguments_show_the_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: clientlb" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        (
            ["resolve", "static://h:1", "orders", "--timeout", "soon"],
            "'soon' is no time; give a number of seconds above 0",
        ),
        (
            ["explain", "static://h:1", "orders", "--picks", "many"],
            "'many' is no count; give a whole number, at least 1",
        ),
        (["demo", "--rate", "much"], "'much' is too small or no number; give one of at least 1"),
    ],
    ids=lambda value: value[-2] if isinstance(value, list) else "",
)
def test_wrong_arguments_say_what_would_be_right(
    arguments: list[str], right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert right in capsys.readouterr().err


@pytest.mark.parametrize("command", ["resolve", "explain"])
def test_an_instance_that_cannot_be_read_is_said_to_be_missing_and_why(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "services.json"
    file.write_text('{"orders": ["10.0.0.1:80", {"host": "10.0.0.2"}]}')
    assert main([command, f"file://{file}", "orders"]) == 0
    said = capsys.readouterr()
    assert "10.0.0.1:80" in said.out
    assert "entry 2 is left out: port None is not a number from 1 to 65535" in said.err


def test_an_unreachable_registry_is_one_line_without_its_secrets() -> None:
    result = run("resolve", "consul://127.0.0.1:1?token=hunter2", "orders")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "127.0.0.1:1" in result.stderr
    assert "hunter2" not in result.stderr + result.stdout


def test_explain(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"file://{file}", "orders"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("service 'orders': 2 of 2 endpoints healthy")
    assert lines[1].startswith("  10.0.0.1:80: may be picked")


@pytest.mark.parametrize(("bad", "said"), [(1, "1 instance"), (2, "2 instances")])
def test_explain_counts_what_could_not_be_read(
    tmp_path: Path, bad: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "services.json"
    file.write_text(json.dumps({"orders": ["10.0.0.1:80", *["10.0.0.2:http"] * bad]}))
    folder = tmp_path / "registry" / "orders"
    folder.mkdir(parents=True)
    (folder / "good.json").write_text('{"host": "10.0.0.1", "port": 80}')
    for number in range(bad):
        (folder / f"bad{number}.json").write_text("nonsense")
    for url in (f"file://{file}", f"dir://{folder.parent}"):
        assert main(["explain", url, "orders"]) == 0
        assert f"\n  {said} could not be read\n" in capsys.readouterr().out


def test_explain_says_what_is_wrong(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"file://{file}", "payments"]) == 1
    assert "0 of 0 endpoints" in capsys.readouterr().out
    assert main(["explain", "file:///does/not/exist.json", "orders", "--timeout", "0.2"]) == 1
    assert "No such file" in capsys.readouterr().out


def test_watch_prints_changes_until_interrupted(file: Path) -> None:
    with started("watch", f"file://{file}", "orders") as process:
        assert process.stdout is not None

        def next_line() -> str:
            assert process.stdout is not None
            time, rest = process.stdout.readline().rstrip("\n").split(" ", 1)
            assert len(time) == len("12:34:56")
            return rest

        assert [next_line(), next_line()] == ["+ 10.0.0.1:80", "+ 10.0.0.2:81  id=two weight=2 zone=a"]
        write(file, {"orders": ["10.0.0.3:80", {"host": "10.0.0.2", "port": 81, "id": "two", "weight": 3}]})
        changes = {next_line(), next_line(), next_line()}
        assert changes == {"- 10.0.0.1:80", "+ 10.0.0.3:80", "~ 10.0.0.2:81  id=two weight=3"}
        file.unlink()
        assert next_line().startswith("! file://")
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
    assert (process.returncode, rest, errors) == (0, "", "")


def test_watch_as_json(tmp_path: Path) -> None:
    url = f"dir://{tmp_path}"
    with started("watch", "--json", url, "orders") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "empty"
        with register("orders", host="127.0.0.1", port=80, id="one", to=url):
            joined = json.loads(process.stdout.readline())
        left = json.loads(process.stdout.readline())
    assert (joined["event"], joined["endpoint"]["id"]) == ("added", "one")
    assert (left["event"], left["endpoint"]["id"]) == ("removed", "one")


def test_a_reader_that_has_enough_is_no_error(file: Path) -> None:
    with started("watch", f"file://{file}", "orders") as process:
        assert process.stdout is not None
        assert process.stdout.readline().endswith("10.0.0.1:80\n")
        process.stdout.close()
        write(file, {"orders": ["10.0.0.9:80"]})
        assert process.wait(timeout=30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_the_command_line_loads_no_extras() -> None:
    program = (
        "import sys, clientlb.cli;"
        "extras = {'httpx', 'httpx2', 'grpc', 'kazoo', 'consul', 'prometheus_client', 'rich'} & sys.modules.keys();"
        "assert not extras, extras"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
