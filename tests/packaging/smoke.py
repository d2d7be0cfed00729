"""What each extra is for, done for real: `python smoke.py EXTRA ARGUMENT`, in an environment that has nothing else.

It uses clientlb and the standard library, besides what the extra brings. Its last line says what came of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import clientlb


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def server() -> Iterator[int]:
    """An HTTP server; its port."""
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    try:
        yield made.server_port
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


def call_registered(registry: str, service: str) -> str:
    """Register a server, find it, call it."""
    with (
        server() as port,
        clientlb.registration.register(service, host="127.0.0.1", port=port, to=registry, propagation=0),
        clientlb.Services(registry) as services,
    ):
        return call(services, service)


def call(services: clientlb.Services, service: str) -> str:
    @services.balanced(service, idempotent=True)
    def load(endpoint: clientlb.Endpoint) -> str:
        with urllib.request.urlopen(f"http://{endpoint}/", timeout=10) as response:
            return str(response.read().decode())

    assert services[service].wait(20)
    return load()


def none(_: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return call_registered(f"dir://{folder}", "orders")


def http(flavour: str) -> Callable[[str], str]:
    def use(_: str) -> str:
        shells = __import__(f"clientlb.{flavour}", fromlist=["Client"])

        async def load(services: clientlb.Services) -> str:
            async with shells.AsyncClient(services) as client:
                return str((await client.get("http://orders/")).text)

        with server() as port, clientlb.Services(f"static://127.0.0.1:{port}") as services:
            with shells.Client(services) as client:
                assert client.get("http://orders/").text == "hello"
            return asyncio.run(load(services))

    return use


def hello(request: bytes, context: Any) -> bytes:
    return b"hello"


def grpc(_: str) -> str:
    import grpc

    import clientlb.grpc
    import clientlb.grpc.aio

    handlers = {"Get": grpc.unary_unary_rpc_method_handler(hello)}
    made = grpc.server(ThreadPoolExecutor(2))
    made.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Orders", handlers),))
    port = made.add_insecure_port("127.0.0.1:0")
    made.start()

    async def load(services: clientlb.Services) -> str:
        async with clientlb.grpc.aio.channel("orders", services) as channel:
            return str((await channel.unary_unary("/Orders/Get")(b"", timeout=10)).decode())

    with clientlb.Services(f"static://127.0.0.1:{port}") as services:
        with clientlb.grpc.channel("orders", services) as channel:
            assert channel.unary_unary("/Orders/Get")(b"", timeout=10) == b"hello"
        answer = asyncio.run(load(services))
    made.stop(None).wait()
    return answer


def grpc_health(_: str) -> str:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from clientlb.registration.grpc import Serving

    made = grpc.server(ThreadPoolExecutor(2))
    port = made.add_insecure_port("127.0.0.1:0")
    with (
        tempfile.TemporaryDirectory() as folder,
        Serving(made, "orders", host="127.0.0.1", port=port, to=f"dir://{folder}", propagation=0),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10).status
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))


def registry(url: str) -> str:
    return call_registered(url, f"bare-{os.getpid()}")


def dns(url: str) -> str:
    with server() as port, clientlb.Services(url.replace("PORT", str(port))) as services:
        return call(services, "orders")


def zookeeper_sasl(_: str) -> str:
    from clientlb.discovery.zookeeper import ZooKeeperDiscovery

    made = ZooKeeperDiscovery("127.0.0.1:1", credentials="user:password", sasl_mechanism="DIGEST-MD5")
    made.close()
    return type(made).__name__


def prometheus(_: str) -> str:
    from prometheus_client import CollectorRegistry, generate_latest

    from clientlb.telemetry.prometheus import PrometheusSink

    collectors = CollectorRegistry()
    with (
        server() as port,
        clientlb.Services(f"static://127.0.0.1:{port}") as services,
        PrometheusSink(services, registry=collectors),
    ):
        call(services, "orders")
        text = generate_latest(collectors).decode()
    [line] = [line for line in text.splitlines() if line.startswith("clientlb_calls_total{")]
    return line


def cli(_: str) -> str:
    from clientlb.cli.demo.screen import LiveScreen

    with LiveScreen() as screen:
        screen.news("hello")
    return type(screen).__name__


def plot(_: str) -> str:
    from clientlb.simulation.plot import check

    check("fleet.svg")  # no drawing: in a fresh environment matplotlib first looks at every font of the machine
    return "can draw"


USES: dict[str, Callable[[str], str]] = {
    "none": none,
    "httpx": http("httpx"),
    "httpx2": http("httpx2"),
    "grpc": grpc,
    "grpc-health": grpc_health,
    "zookeeper": registry,
    "zookeeper-sasl": zookeeper_sasl,
    "consul": registry,
    "dns": dns,
    "prometheus": prometheus,
    "cli": cli,
    "plot": plot,
}

if __name__ == "__main__":
    signal.alarm(50)
    print("\n" + USES[sys.argv[1]](sys.argv[2]))
