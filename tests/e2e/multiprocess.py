"""`python -m tests.e2e.multiprocess METHOD REGISTRY WEB RPC`: two processes of `multiprocessing` that call services.

Forked, they use what their parent made, used and keeps using; spawned, they begin with nothing and make their own. Each
says what it saw, waits for a line from us that says that another server came, and says it again.
"""

from __future__ import annotations

import multiprocessing
import sys
from typing import Any

from tests.e2e.busy import Busy
from tests.e2e.preforking import PATIENCE, say

WORKERS = 2
_busy: Busy | None = None


def work(number: int, names: tuple[str, str, str], newcomer: Any) -> None:
    busy = _busy or Busy(*names, keep_calling=False)
    say(f"worker {number}", **busy.answer())
    name = newcomer.get(timeout=PATIENCE)
    busy.caller.served_by(name)
    say(f"worker {number}", **busy.answer())


def main(method: str, *names: str) -> None:
    global _busy
    registry, web, rpc = names
    busy = _busy = Busy(registry, web, rpc)
    context = multiprocessing.get_context(method)
    newcomer = context.Queue()
    workers = [context.Process(target=work, args=(number, names, newcomer)) for number in range(WORKERS)]
    for worker in workers:
        worker.start()
    name = sys.stdin.readline().strip()
    for _ in workers:
        newcomer.put(name)
    for worker in workers:
        worker.join(PATIENCE)
        assert worker.exitcode == 0
    busy.caller.served_by(name)
    busy.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
