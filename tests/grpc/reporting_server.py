"""A gRPC server that reports as busy as it is told: `python reporting_server.py STUBS PORT sync|aio UTILIZATION`."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from typing import Any

import grpc
import grpc.aio

from clientlb.load import LoadRecorder
from clientlb.load.grpc import AsyncReporting, Reporting

stubs, port, kind, utilization = sys.argv[1:]
sys.path.insert(0, stubs)
import orders_pb2  # type: ignore[import-not-found]  # noqa: E402
import orders_pb2_grpc  # type: ignore[import-not-found]  # noqa: E402

recorder = LoadRecorder(utilization=lambda: float(utilization))


def reply(request: Any) -> Any:
    return orders_pb2.Reply(port=int(port), id=request.id)


class Orders(orders_pb2_grpc.OrdersServicer):  # type: ignore[misc]
    def Get(self, request: Any, context: Any) -> Any:
        context.set_trailing_metadata((("of", "the handler"),))
        if request.act == "fail":
            context.abort(grpc.StatusCode[request.argument], "asked to fail")
        return reply(request)

    def List(self, request: Any, context: Any) -> Iterator[Any]:
        yield from (reply(request) for _ in range(request.count))

    def Add(self, requests: Any, context: Any) -> Any:
        return reply(list(requests)[-1])

    def Chat(self, requests: Any, context: Any) -> Iterator[Any]:
        yield from map(reply, requests)


class AsyncOrders(orders_pb2_grpc.OrdersServicer):  # type: ignore[misc]
    async def Get(self, request: Any, context: Any) -> Any:
        context.set_trailing_metadata((*context.trailing_metadata(), ("of", "the handler")))
        if request.act == "fail":
            await context.abort(grpc.StatusCode[request.argument], "asked to fail")
        return reply(request)

    async def List(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for _ in range(request.count):
            yield reply(request)

    async def Add(self, requests: Any, context: Any) -> Any:
        return [reply(request) async for request in requests][-1]

    def Chat(self, requests: Any, context: Any) -> Iterator[Any]:  # not a coroutine: grpc.aio gives it a thread
        yield from map(reply, requests)


async def serve() -> None:
    server = grpc.aio.server(futures.ThreadPoolExecutor(8), interceptors=[AsyncReporting(recorder)])
    orders_pb2_grpc.add_OrdersServicer_to_server(AsyncOrders(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if kind == "aio":
    threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
else:
    plain = grpc.server(futures.ThreadPoolExecutor(8), interceptors=[Reporting(recorder)])
    orders_pb2_grpc.add_OrdersServicer_to_server(Orders(), plain)
    plain.add_insecure_port(f"127.0.0.1:{port}")
    plain.start()
sys.stdin.read()  # until whoever started this ends
os._exit(0)
