"""A program that uses clientlb, forks like a server with worker processes, and uses the same objects in all of them.

`python -m tests.e2e.preforking REGISTRY WEB RPC`. Two children are forked by hand and two by `multiprocessing`; one of
each ends without the interpreter's clean-up, the other one with it. Every process says on standard output, as one JSON
object per line, who it is and who served it first, and then who else did: the parent only after its children have
ended. A call that fails ends the process, and with it the program, with status 1.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time

import clientlb
import clientlb.grpc
import clientlb.httpx
from tests.e2e.server import GRPC_SERVICE

CHILDREN = 4
PATIENCE = 30.0


class Caller:
    """Calls a service through HTTP and one through gRPC, and keeps who answered."""

    def __init__(self, registry: str, web: str, rpc: str) -> None:
        self.services = clientlb.Services(registry)
        self.http = clientlb.httpx.Client(self.services, timeout=10.0)
        self.channel = clientlb.grpc.channel(rpc, self.services, idempotent=True)
        self._load = self.channel.unary_unary(f"/{GRPC_SERVICE}/Load")
        self._url = f"http://{web}/orders/7"
        self._web, self._rpc = web, rpc

    def call(self) -> dict[str, str]:
        """One call of each; who answered."""
        answer = self.http.get(self._url)
        assert answer.status_code == 200, answer
        return {"web": answer.text, "rpc": self._load(b"7", timeout=10.0).decode()}

    def served_by(self, name: str) -> None:
        """Call until this server has answered both."""
        answered: set[str] = set()
        deadline = time.monotonic() + PATIENCE
        while answered != {"web", "rpc"}:
            assert time.monotonic() < deadline, f"{name} never answered: {self.services[self._web].explain()}"
            answered |= {kind for kind, server in self.call().items() if server == name}

    def newcomer(self) -> str:
        """Call until somebody has answered both who is not in the list of now; who that is."""
        known = {endpoint.port for endpoint in self.services[self._rpc].endpoints}
        deadline = time.monotonic() + PATIENCE
        while {endpoint.port for endpoint in self.services[self._rpc].endpoints} <= known:
            assert time.monotonic() < deadline, f"nobody came: {self.services[self._rpc].explain()}"
            self.call()
        [endpoint] = [each for each in self.services[self._rpc].endpoints if each.port not in known]
        name = endpoint.id.rpartition(":")[2].removesuffix(f"-{self._rpc}")
        self.served_by(name)
        return name

    def close(self) -> None:
        self.channel.close()
        self.http.close()
        self.services.close()


def say(who: str, **what: object) -> None:
    os.write(1, json.dumps({"who": who, **what}).encode() + b"\n")  # in one piece: all write to the same pipe


def work(caller: Caller, who: str) -> None:
    say(who, served=caller.call())
    say(who, newcomer=caller.newcomer())


def forked(caller: Caller, who: str, clean_up: bool) -> int:
    """Work in a child, which ends by `exit` or by `_exit`. Returns its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work(caller, who)
        if clean_up:
            caller.close()
            sys.exit(0)
        status = 0
    finally:
        if not clean_up:
            os._exit(status)
    raise AssertionError("a child is back in its parent's code")


def main(registry: str, web: str, rpc: str) -> None:
    caller = Caller(registry, web, rpc)
    caller.call()
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=work, args=(caller, f"multiprocessing {number}")) for number in range(2)]
    for process in started:
        process.start()
    children = [forked(caller, f"fork {number}", clean_up=bool(number)) for number in range(2)]
    say("parent", served=caller.call())
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for process in started:
        process.join(PATIENCE)
        assert process.exitcode == 0
    work(caller, "parent, childless")
    caller.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
