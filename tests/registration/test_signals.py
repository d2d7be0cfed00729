"""SIGTERM and other ends of real programs: what is taken out of the registry, when, and who hears the signal."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from clientlb.registration import register
from tests.registration.programs import Callers, ask, python
from tests.servers.process import free_ports

START = """
import signal, sys, threading, time
from clientlb.registration import register
url = sys.argv[1]
"""

SERVER = (
    START
    + """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        with registration.request():
            time.sleep(0.02)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"served")
    def log_message(self, *arguments): pass

server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler)
server.daemon_threads = True
stop = server.shutdown if sys.argv[3] == "stop" else None
with register("orders", port=int(sys.argv[2]), to=url, propagation=2.0, stop=stop) as registration:
    server.serve_forever()
print("ended", flush=True)
"""
)


@pytest.mark.parametrize(("end", "status", "said"), [("stop", 0, True), ("killed", -signal.SIGTERM, False)])
def test_a_server_that_knows_nothing_of_signals_loses_no_call(
    tmp_path: Path, end: str, status: int, said: bool
) -> None:
    """With `stop` the program ends as it would have ended by itself, else by the signal, as without us."""
    [port] = free_ports(1)
    with python(SERVER, tmp_path, port, end) as server:
        server.wait_announced()
        callers = Callers(server, port)
        server.send()
        server.wait_withdrawn()
        assert ask(port)[1] == "served"
        assert server.wait() == status
        callers.check()
        assert ("ended" in server.output) is said


WITH_HANDLER = (
    START
    + """
ended = threading.Event()
def obey(number, frame):
    print("obeyed", number, flush=True)
    ended.set()
signal.signal(signal.SIGTERM, obey)
with register("orders", port=1, to=url, propagation=0.1):
    with register("orders", port=2, to=url, propagation=float(sys.argv[2])):
        ended.wait()
assert signal.getsignal(signal.SIGTERM) is obey
"""
)


def test_the_programs_own_handler_comes_second_and_is_put_back(tmp_path: Path) -> None:
    with python(WITH_HANDLER, tmp_path, 0.2) as running:
        running.wait_announced()
        running.send()
        running.wait_withdrawn()
        assert running.wait() == 0, running.output
        assert running.output.count("obeyed 15") == 1


def handler() -> Any:
    return signal.getsignal(signal.SIGTERM)


def test_signals_are_held_only_where_and_while_they_should_be(tmp_path: Path) -> None:
    url, before = f"dir://{tmp_path}", handler()
    with register("orders", port=1, to=url, signals=()):
        assert handler() is before
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with register("orders", port=1, to=url):
        assert handler() is signal.SIG_IGN
    signal.signal(signal.SIGTERM, before)
    thread = threading.Thread(target=lambda: register("orders", port=1, to=url).close())
    thread.start()
    thread.join()
    assert handler() is before
    first = register("orders", port=1, to=url)
    held = handler()
    assert held is not before
    with register("orders", port=2, to=url):
        assert handler() is held
    assert handler() is held
    closing = threading.Thread(target=first.close)  # no thread but the main one may put a handler back
    closing.start()
    closing.join()
    assert handler() is held
    first.close()
    assert handler() is before


def test_no_handler_is_left_to_the_next_registration(tmp_path: Path) -> None:
    """Another thread that ends a registration cannot put the handler back: the next one does."""
    before = handler()
    for _ in range(3):
        closing = threading.Thread(target=register("orders", port=1, to=f"dir://{tmp_path}").close)
        closing.start()
        closing.join()
    last = register("orders", port=1, to=f"dir://{tmp_path}")
    assert handler() is not before
    last.close()
    assert handler() is before


@pytest.mark.parametrize("stop", ["lambda: 1 / 0", "lambda: time.sleep(600)"], ids=["fails", "hangs"])
def test_the_signal_is_obeyed_when_stop_does_not_end_the_program(tmp_path: Path, stop: str) -> None:
    code = START + f'register("orders", port=1, to=url, timeout=1, propagation=0.1, drain_timeout=0, stop={stop})\n'
    with python(code + "time.sleep(600)", tmp_path) as running:
        running.wait_announced()
        assert running.terminate() == -signal.SIGTERM
        assert not running.entries


def test_a_second_signal_is_not_held_back(tmp_path: Path) -> None:
    with python(WITH_HANDLER, tmp_path, 600) as running:
        running.wait_announced()
        running.send()
        running.wait_withdrawn()
        assert "obeyed" not in running.output
        running.send()
        assert running.wait() == 0, running.output


def test_the_end_of_a_program_takes_its_entry_out(tmp_path: Path) -> None:
    code = START + 'register("orders", port=1, to=url, propagation=600).wait(10); print("bye")'
    with python(code, tmp_path) as running:
        assert running.wait() == 0
        assert running.output == "bye\n"
        assert (tmp_path / "orders").exists()
        assert not running.entries


@pytest.mark.parametrize("way", ["sys.exit()", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_a_forked_child_takes_nothing_out_and_dies_as_ever(tmp_path: Path, way: str) -> None:
    code = (
        START
        + f"""
import os
registration = register("orders", port=1, to=url, propagation=0.1)
registration.wait(10)
child = os.fork()
if not child:
    {way}
    time.sleep(600)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), len(os.listdir(url[6:] + "/orders")))
"""
    )
    with python(code, tmp_path) as running:
        assert running.wait() == 0, running.output
        assert running.output == ("0 1\n" if "exit" in way else "-15 1\n")


def test_the_registry_that_hangs_does_not_keep_a_program(tmp_path: Path) -> None:
    code = (
        START
        + """
import logging
from clientlb.registration.directory import DirectoryRegistrar
logging.basicConfig()
class Hanging(DirectoryRegistrar):
    def withdraw(self, service, endpoint):
        time.sleep(600)
register("orders", port=1, to=Hanging(url[6:]), timeout=0.2, propagation=0.1)
time.sleep(600)
"""
    )
    with python(code, tmp_path) as running:
        running.wait_announced()
        before = time.monotonic()
        assert running.terminate() == -signal.SIGTERM
        assert time.monotonic() - before < 10
        assert "within 0.2 s" in running.output


def test_a_loop_that_handles_the_signal_itself_is_not_disturbed(tmp_path: Path) -> None:
    """asyncio reads signals from a pipe, past every handler; the program leaves where it learns of it."""
    code = (
        START
        + """
import asyncio
async def main():
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    async with register("orders", port=1, to=url, propagation=0.1) as registration:
        await told.wait()
        await registration.aleave()
        print(registration.stage.value)
asyncio.run(main())
"""
    )
    with python(code, tmp_path) as running:
        running.wait_announced()
        assert running.terminate() == 0, running.output
        assert running.output == "left\n"
        assert not running.entries
