"""A server that leaves without losing a call: a process of its own, called all the time, and sent SIGTERM."""

import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import clientlb
from clientlb.httpx import Client


def serve(registry: str) -> None:
    """The whole server: nothing in it knows of signals."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            with registration.request():  # leaving waits for it
                self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(0.02)
                self.send_response(204)
                self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    with clientlb.registration.register(
        "orders", host="127.0.0.1", port=server.server_port, to=registry, stop=server.shutdown
    ) as registration:
        server.serve_forever()


def start(registry: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, registry])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        registry = f"dir://{folder}"

        def start() -> subprocess.Popen[bytes]:
            server = subprocess.Popen([sys.executable, __file__, registry])
            running.callback(lambda: (server.terminate(), server.wait()))
            return server

        services = running.enter_context(clientlb.Services(registry))
        http = running.enter_context(Client(services))
        old = start()
        services["orders"].wait(10)

        answers: list[int] = []
        over = threading.Event()

        def call() -> None:
            while not over.is_set():
                try:
                    answers.append(http.post("http://orders/v1/items", content=b"1").status_code)
                except Exception as error:
                    print("failed:", error)
                    answers.append(0)

        caller = threading.Thread(target=call, daemon=True)
        caller.start()
        start()
        while len(services["orders"].endpoints) < 2:
            time.sleep(0.05)
        old.terminate()
        print("exit status of the old server:", old.wait(30))
        over.set()
        caller.join()
        print(f"{len(answers)} calls, {sum(answer != 204 for answer in answers)} failed")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(sys.argv[1])
    else:
        main()
