"""A real gRPC server that calls another one on the way: `python relay_server.py STUBS PORT UPSTREAM sync|aio`.

It gives its calls no timeout of their own: what they have they inherit.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent import futures
from typing import Any

import grpc
import grpc.aio

import clientlb
import clientlb.grpc
import clientlb.grpc.aio

stubs, port, upstream, kind = sys.argv[1:]
sys.path.insert(0, stubs)
import orders_pb2  # type: ignore[import-not-found]  # noqa: E402
import orders_pb2_grpc  # type: ignore[import-not-found]  # noqa: E402

services = clientlb.Services(f"static://{upstream}")


class Relay(orders_pb2_grpc.OrdersServicer):  # type: ignore[misc]
    def __init__(self) -> None:
        self._stub = orders_pb2_grpc.OrdersStub(clientlb.grpc.channel("orders", services))

    def Get(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._stub.Get(request)

    def List(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        for _ in range(request.count):
            yield self._stub.Get(orders_pb2.Request())

    def Add(self, requests: Iterable[Any], context: grpc.ServicerContext) -> Any:
        return [self._stub.Get(request) for request in requests][-1]

    def Chat(self, requests: Iterable[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        for request in requests:
            yield self._stub.Get(request)


class AioRelay(orders_pb2_grpc.OrdersServicer):  # type: ignore[misc]
    def __init__(self) -> None:
        self._stub = orders_pb2_grpc.OrdersStub(clientlb.grpc.aio.channel("orders", services))

    async def Get(self, request: Any, context: Any) -> Any:
        return await self._stub.Get(request)

    async def List(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for _ in range(request.count):
            yield await self._stub.Get(orders_pb2.Request())

    async def Add(self, requests: Any, context: Any) -> Any:
        return [await self._stub.Get(request) async for request in requests][-1]

    async def Chat(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield await self._stub.Get(request)


async def serve() -> None:
    server = grpc.aio.server(interceptors=[clientlb.grpc.aio.DeadlineInterceptor()])
    orders_pb2_grpc.add_OrdersServicer_to_server(AioRelay(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)


if kind == "aio":
    asyncio.run(serve())
else:
    server = grpc.server(futures.ThreadPoolExecutor(4), interceptors=[clientlb.grpc.DeadlineInterceptor()])
    orders_pb2_grpc.add_OrdersServicer_to_server(Relay(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    sys.stdin.read()  # until whoever started this ends
    os._exit(0)
