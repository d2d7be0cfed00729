"""TLS to an IP address: the certificate has to name the service. Credentials per call reach the server."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import grpc
import grpc.aio
import pytest

import clientlb
import clientlb.grpc
import clientlb.grpc.aio

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _known(discovery, tls_server) -> None:
    for service in ("orders", "invoices"):
        discovery.set(service, [tls_server.address])


class Token(grpc.AuthMetadataPlugin):
    def __call__(self, context, callback):
        callback((("authorization", "Bearer of the call"),), None)


def test_the_certificate_names_the_service(connect, services, stub_class, pb, root_certificate):
    credentials = grpc.ssl_channel_credentials(root_certificate)
    orders = connect(credentials=credentials)
    assert orders.Get(pb.Request(id="safe"), timeout=10).id == "safe"
    with clientlb.grpc.channel("invoices", services, credentials=credentials) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            stub_class(channel).Get(pb.Request(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_credentials_of_a_call(connect, pb, root_certificate):
    orders = connect(credentials=grpc.ssl_channel_credentials(root_certificate))
    token = grpc.metadata_call_credentials(Token())
    for reply in (
        orders.Get(pb.Request(), credentials=token),
        orders.Get.future(pb.Request(), credentials=token).result(10),
        next(orders.List(pb.Request(count=1), credentials=token)),
        orders.Add(iter([pb.Request()]), credentials=token),
    ):
        assert reply.metadata["authorization"] == "Bearer of the call"


async def test_the_same_for_coroutines(aconnect, pb, root_certificate):
    orders = aconnect(credentials=grpc.ssl_channel_credentials(root_certificate))
    token = grpc.metadata_call_credentials(Token())
    assert (await orders.Get(pb.Request(), credentials=token)).metadata["authorization"] == "Bearer of the call"
    replies = [reply async for reply in orders.List(pb.Request(count=1), credentials=token)]
    assert replies[0].metadata["authorization"] == "Bearer of the call"


def test_an_endpoint_may_say_that_it_speaks_tls(stubs, tls_server):
    script = f"""
        import sys
        sys.path.insert(0, {str(stubs)!r})
        import orders_pb2 as pb, orders_pb2_grpc
        import clientlb, clientlb.grpc
        from clientlb.testing import ManualDiscovery

        endpoint = clientlb.Endpoint("127.0.0.1", {tls_server.port}, secure=True)
        with clientlb.Services(ManualDiscovery({{"orders": [endpoint]}})) as services:
            with clientlb.grpc.channel("orders", services) as channel:
                print(orders_pb2_grpc.OrdersStub(channel).Get(pb.Request(id="safe"), timeout=10).id)
    """
    roots = Path(__file__).with_name("certificates") / "orders.crt"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env={**os.environ, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(roots)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "safe", done.stderr
