"""TLS to an address, with the name of the service on the wire and in the certificate."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest

import clientlb
from clientlb.testing import ManualDiscovery
from tests.http.conftest import Kind, Process


@pytest.fixture(scope="module")
def server(certificate: tuple[str, str]) -> Iterator[Process]:
    server = Process("a", *certificate)
    yield server
    server.stop()


def serve(*endpoints: clientlb.Endpoint) -> clientlb.Services:
    options = clientlb.Options(retry=clientlb.RetryOptions(stop=lambda state: True))
    return clientlb.Services(ManualDiscovery({"orders": endpoints, "payments": endpoints}), options=options)


@pytest.fixture(params=["https to a plain endpoint", "http to a secure endpoint", "https to a secure endpoint"])
def url_and_services(request: pytest.FixtureRequest, server: Process) -> Iterator[tuple[str, clientlb.Services]]:
    scheme, _, _, secure, _ = request.param.split()
    with serve(clientlb.Endpoint("127.0.0.1", server.port, secure=secure == "secure")) as services:
        yield f"{scheme}://orders/x", services


async def test_the_certificate_is_the_services(
    kind: Kind, url_and_services: tuple[str, clientlb.Services], trust: ssl.SSLContext
) -> None:
    url, services = url_and_services
    async with kind.client(services, verify=trust) as http:
        response = await http.get(url)
        again = await http.get(url)
    assert str(response.url) == url
    assert response.json()["server_name"] == "orders"
    assert response.json()["headers"]["host"] == "orders"
    assert again.json()["opened"] == response.json()["opened"]


async def test_another_services_certificate_is_refused(kind: Kind, server: Process, trust: ssl.SSLContext) -> None:
    with serve(clientlb.Endpoint("127.0.0.1", server.port, secure=True)) as services:
        async with kind.client(services, verify=trust) as http:
            assert (await http.get("https://orders/")).status_code == 200
            # the connection that `orders` has to the same address must not be used
            with pytest.raises(kind.library.ConnectError, match=r"(?i)certificate"):
                await http.get("https://payments/")


async def test_two_hosts_of_one_service_share_no_connection(kind: Kind, server: Process, trust: ssl.SSLContext) -> None:
    with serve(clientlb.Endpoint("127.0.0.1", server.port)) as services:
        async with kind.client(services, verify=trust, hosts={"orders": "orders", "shop": "orders"}) as http:
            assert (await http.get("https://orders/")).status_code == 200
            with pytest.raises(kind.library.ConnectError, match=r"(?i)certificate"):
                await http.get("https://shop/")


async def test_an_unknown_authority_is_refused(kind: Kind, server: Process) -> None:
    with serve(clientlb.Endpoint("127.0.0.1", server.port)) as services:
        async with kind.client(services) as http:
            with pytest.raises(kind.library.ConnectError, match=r"(?i)certificate"):
                await http.get("https://orders/")
        async with kind.client(services, verify=False) as http:
            assert (await http.get("https://orders/")).status_code == 200


async def test_the_caller_may_name_the_server(kind: Kind, server: Process, trust: ssl.SSLContext) -> None:
    with serve(clientlb.Endpoint("127.0.0.1", server.port)) as services:
        async with kind.client(services, verify=trust) as http:
            response = await http.get("https://payments/", extensions={"sni_hostname": "orders"})
    assert response.json()["server_name"] == "orders"
    assert response.json()["headers"]["host"] == "payments"
