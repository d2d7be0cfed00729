"""A process of five registrars, each with a ZooKeeper session of its own that ends when the server is out for long.

    python -m tests.e2e.registrars HOSTS PATH SECONDS

Who lost its session announces itself again after SECONDS. Says `ready` when all are announced, and ends with its input.
"""

from __future__ import annotations

import sys
import threading

from kazoo.client import KazooClient, KazooState
from kazoo.exceptions import KazooException

SESSION = 4.0


def _announce_again_and_again(hosts: str, node: str, data: bytes, pause: float, announced: threading.Semaphore) -> None:
    lost = threading.Event()
    lost.set()
    client = KazooClient(hosts, timeout=SESSION)  # with the retries that kazoo has by default
    client.add_listener(lambda state: lost.set() if state == KazooState.LOST else None)
    client.start(timeout=30)
    first = True
    while True:
        lost.wait()
        lost.clear()
        if not first:
            threading.Event().wait(pause)
        try:
            client.create(node, data, ephemeral=True, makepath=True)
        except KazooException:
            lost.set()
            continue
        if first:
            announced.release()
        first = False


def main() -> None:
    hosts, path, pause = sys.argv[1:]
    announced = threading.Semaphore(0)
    for port in range(1, 6):
        data = b'{"host": "127.0.0.1", "port": %d}' % port
        arguments = (hosts, f"{path}/{port}", data, float(pause), announced)
        threading.Thread(target=_announce_again_and_again, args=arguments, daemon=True).start()
    for _ in range(5):
        announced.acquire()
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
