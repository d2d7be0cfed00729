"""Three HTTP servers register themselves; an httpx client calls them by the name of their service."""

import tempfile
import threading
from collections import Counter
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import clientlb
from clientlb.httpx import Client


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = f"{self.server.server_address[1]} serves {self.headers['Host']}{self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def serve(registry: str, running: ExitStack) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    running.callback(server.server_close)
    running.callback(server.shutdown)
    registration = running.enter_context(
        clientlb.registration.register("orders", host="127.0.0.1", port=server.server_address[1], to=registry)
    )
    registration.wait(5)
    return server


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        registry = f"dir://{folder}"
        first, *_ = [serve(registry, running) for _ in range(3)]

        services = running.enter_context(clientlb.Services(registry))
        http = running.enter_context(Client(services))
        response = http.get("http://orders/v1/items/7")
        print(response.text)
        print("the trace:", response.extensions["clientlb"])

        # the first server goes without a word, and nobody notices
        first.shutdown()
        first.server_close()
        served = Counter(http.get("http://orders/").text.split()[0] for _ in range(60))
        print("60 more calls, one server gone:", dict(served))
        print(services["orders"].explain())


if __name__ == "__main__":
    main()
