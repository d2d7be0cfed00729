"""A real gRPC server in a process of its own: `python server.py STUBS PORT [tls | ageing]`.

Requests say what it does.
"""

from __future__ import annotations

import collections
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
from google.rpc import status_pb2
from grpc_status import rpc_status

stubs, port = sys.argv[1], int(sys.argv[2])
sys.path.insert(0, stubs)
import orders_pb2  # type: ignore[import-not-found]  # noqa: E402
import orders_pb2_grpc  # type: ignore[import-not-found]  # noqa: E402


class Orders(orders_pb2_grpc.OrdersServicer):  # type: ignore[misc]
    def __init__(self) -> None:
        self._seen: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()

    def _reply(self, request: Any, context: grpc.ServicerContext, number: int = 0) -> Any:
        metadata = {key: str(value) for key, value in context.invocation_metadata()}
        metadata["the peer"] = context.peer()
        metadata["time remaining"] = str(context.time_remaining())
        return orders_pb2.Reply(port=port, id=request.id, number=number, metadata=metadata)

    def _obey(self, request: Any, context: grpc.ServicerContext) -> None:
        if request.act == "seen":
            return
        with self._lock:
            self._seen[request.id] += 1
            times = self._seen[request.id]
        if request.act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif request.act == "sleep":
            time.sleep(float(request.argument))
        elif request.act == "sleep at" and request.argument.startswith(f"{port} "):
            time.sleep(float(request.argument.split()[1]))
        elif request.act == "sleep and fail":
            time.sleep(float(request.argument))
            context.abort(grpc.StatusCode.UNAVAILABLE, "asked to sleep and fail")
        elif request.act == "fail":
            context.set_trailing_metadata((("why", "asked to"), ("grpc-status-details-bin", b"\x08\x05\xff")))
            context.abort(grpc.StatusCode[request.argument], "asked to fail")
        elif request.act == "rich":
            status = status_pb2.Status(code=grpc.StatusCode.FAILED_PRECONDITION.value[0], message="asked to be rich")
            status.details.add().Pack(orders_pb2.Request(id="in the details"))
            context.abort_with_status(rpc_status.to_status(status))
        elif request.act == "fail once" and times == 1:
            context.abort(grpc.StatusCode[request.argument], "asked to fail once")
        elif request.act == "push back":
            context.set_trailing_metadata((("grpc-retry-pushback-ms", request.argument),))
            context.abort(grpc.StatusCode.UNAVAILABLE, "asked to push back")
        elif request.act == "raise":
            raise RuntimeError("asked to raise")
        elif request.act == "greet":
            context.send_initial_metadata((("greeting", "hello"),))
            context.set_trailing_metadata((("farewell", "goodbye"),))

    def Get(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._obey(request, context)
        return self._reply(request, context, self._seen[request.id])

    def List(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        if request.act == "break off":
            yield from (self._reply(request, context, number) for number in range(request.count))
            time.sleep(0.2)  # the replies leave before the process does
            os.kill(os.getpid(), signal.SIGKILL)
        if request.act == "fail later":
            yield from (self._reply(request, context, number) for number in range(request.count))
            context.abort(grpc.StatusCode[request.argument], "asked to fail later")
        self._obey(request, context)
        for number in range(request.count):
            yield self._reply(request, context, number)

    def Add(self, requests: Iterable[Any], context: grpc.ServicerContext) -> Any:
        number = 0
        request = orders_pb2.Request()
        for request in requests:
            number += 1
            self._obey(request, context)
        return self._reply(request, context, number)

    def Chat(self, requests: Iterable[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        for number, request in enumerate(requests):
            self._obey(request, context)
            yield self._reply(request, context, number)


ageing = [("grpc.max_connection_age_ms", 300), ("grpc.max_connection_age_grace_ms", 10_000)]
server = grpc.server(futures.ThreadPoolExecutor(100), options=ageing if sys.argv[3:] == ["ageing"] else None)
orders_pb2_grpc.add_OrdersServicer_to_server(Orders(), server)
if sys.argv[3:] == ["tls"]:
    certificates = Path(__file__).with_name("certificates")
    key, certificate = ((certificates / f"orders.{kind}").read_bytes() for kind in ("key", "crt"))
    server.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([(key, certificate)]))
else:
    server.add_insecure_port(f"127.0.0.1:{port}")
server.start()
sys.stdin.read()  # until whoever started this ends
os._exit(0)
