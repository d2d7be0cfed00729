"""Two gRPC servers register themselves; one balanced channel calls both. Generated stubs take it like any channel."""

import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc

import clientlb
import clientlb.grpc

METHOD = "/shop.Orders/Get"


def serve(registry: str, running: ExitStack) -> int:
    server = grpc.server(ThreadPoolExecutor(4))
    port = server.add_insecure_port("127.0.0.1:0")
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: b"%d has %s" % (port, request))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Orders", {"Get": handler}),))
    server.start()
    running.callback(lambda: server.stop(None).wait())
    registration = running.enter_context(
        clientlb.registration.register("orders", host="127.0.0.1", port=port, to=registry)
    )
    registration.wait(5)
    return port


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        registry = f"dir://{folder}"
        for _ in range(2):
            serve(registry, running)

        services = running.enter_context(clientlb.Services(registry))
        channel = running.enter_context(clientlb.grpc.channel("orders", services, idempotent=[METHOD]))
        get = channel.unary_unary(METHOD)
        served = Counter(get(b"item 7", timeout=5).split()[0].decode() for _ in range(40))
        print("40 calls over two servers:", dict(served))
        print(services["orders"].explain())


if __name__ == "__main__":
    main()
