"""gRPC servers of other processes that leave on SIGTERM, and what their health service says meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from clientlb.registration.grpc import Serving
from tests.registration.programs import PATIENCE, python
from tests.servers.process import free_ports

START = """
import sys, time, asyncio
from concurrent.futures import ThreadPoolExecutor
import grpc, grpc.aio
from clientlb.registration.grpc import Serving
options = dict(port=int(sys.argv[2]), to=sys.argv[1], propagation=2.0)

def add_services(server, answer):
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Orders", {"Get": handler}),))
    server.add_insecure_port(f"127.0.0.1:{sys.argv[2]}")
"""
SYNC = (
    START
    + """
def answer(request, context):
    time.sleep(float(request))
    return b"served"

server = grpc.server(ThreadPoolExecutor(10))
add_services(server, answer)
with Serving(server, "orders", **options):
    server.wait_for_termination()
print("ended")
"""
)
AIO = (
    START
    + """
async def answer(request, context):
    await asyncio.sleep(float(request))
    return b"served"

async def main():
    server = grpc.aio.server()
    add_services(server, answer)
    async with Serving(server, "orders", **options):
        await server.wait_for_termination()

asyncio.run(main())
print("ended")
"""
)


class Callers:
    """Calls over one channel, until shortly after the server has left the registry; and one that takes long."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._get = channel.unary_unary("/shop.Orders/Get")
        self._gone = threading.Event()
        self._pool = ThreadPoolExecutor(5)
        self._slow = self._pool.submit(self._get, b"3", timeout=PATIENCE)
        self._others = [self._pool.submit(self._call) for _ in range(4)]

    def _call(self) -> int:
        answered = 0
        while not self._gone.wait(0.001):
            assert self._get(b"0.01", timeout=PATIENCE) == b"served"
            answered += 1
        return answered

    def check(self) -> None:
        """None has failed; and from now on there are no more."""
        self._gone.wait(0.2)  # so late have they heard of it
        self._gone.set()
        assert all(other.result(PATIENCE) for other in self._others)

    def check_slow(self) -> None:
        assert self._slow.result(PATIENCE) == b"served"
        self._pool.shutdown()


@pytest.mark.parametrize("code", [SYNC, AIO], ids=["sync", "aio"])
def test_a_server_leaves_without_losing_a_call(tmp_path: Path, code: str) -> None:
    [port] = free_ports(1)
    with python(code, tmp_path, port) as server, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        server.wait_announced()
        health = health_pb2_grpc.HealthStub(channel)
        question = health_pb2.HealthCheckRequest()
        assert health.Check(question, timeout=PATIENCE).status == health_pb2.HealthCheckResponse.SERVING
        callers = Callers(channel)
        server.send()
        server.wait_withdrawn()
        assert health.Check(question, timeout=PATIENCE).status == health_pb2.HealthCheckResponse.NOT_SERVING
        callers.check()
        assert server.wait() == 0, server.output
        callers.check_slow()
        assert server.output == "ended\n"


def test_the_end_of_the_block_leaves_as_well(tmp_path: Path) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    with Serving(server, "orders", port=port, to=f"dir://{tmp_path}", propagation=0.1) as registration:
        assert registration.wait(PATIENCE)
        assert len(list((tmp_path / "orders").iterdir())) == 1
    assert not list((tmp_path / "orders").iterdir())
    assert not server.wait_for_termination(0)  # False: it has ended, and not by the timeout


async def test_the_end_of_the_async_block_leaves_as_well(tmp_path: Path) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    async with Serving(server, "orders", port=port, to=f"dir://{tmp_path}", propagation=0.1, health=False) as mine:
        assert mine.endpoint.port == port
    assert not await server.wait_for_termination(0)


def test_a_server_that_cannot_be_registered_is_stopped(tmp_path: Path) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    with pytest.raises(ValueError, match="port 0"), Serving(server, "orders", port=0, to=f"dir://{tmp_path}"):
        pass
    assert not server.wait_for_termination(0)


async def test_a_server_of_the_other_kind(tmp_path: Path) -> None:
    url = f"dir://{tmp_path}"
    with pytest.raises(TypeError, match="async with"), Serving(grpc.aio.server(), "orders", port=1, to=url):
        pass
    with pytest.raises(TypeError, match="served with `with`"):
        async with Serving(grpc.server(ThreadPoolExecutor(1)), "orders", port=1, to=url):
            pass
