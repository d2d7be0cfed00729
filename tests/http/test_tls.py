"""TLS to an address, with the name of the service on the wire and in the certificate."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest

import clientlb
from clientlb.testing import ManualDiscovery
from tests.http.certificates import Authority
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


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Authority]:
    """One for each service, and one for the clients."""
    return {
        name: Authority(tmp_path_factory.mktemp(name), f"CA of {name}") for name in ("orders", "payments", "clients")
    }


@pytest.fixture(scope="module")
def strict(authorities: dict[str, Authority]) -> Iterator[dict[str, Process]]:
    """A server for each service, with a certificate of its authority; they serve those that show one themselves."""
    servers = {
        name: Process(name, *authorities[name].issue(name), "--clients", authorities["clients"].certificate)
        for name in ("orders", "payments")
    }
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture
def strict_services(strict: dict[str, Process]) -> Iterator[clientlb.Services]:
    # `impostor` is a service whose servers show the certificate of `orders`
    addresses = {name: [server.address] for name, server in strict.items()} | {"impostor": [strict["orders"].address]}
    options = clientlb.Options(retry=clientlb.RetryOptions(stop=lambda state: True))
    with clientlb.Services(ManualDiscovery(addresses), options=options) as services:
        yield services


async def test_each_service_has_its_authority(
    kind: Kind, strict_services: clientlb.Services, authorities: dict[str, Authority]
) -> None:
    shown = authorities["clients"].issue("caller")
    trust = {name: authorities[name].trust() for name in ("orders", "payments")}
    for context in trust.values():
        context.load_cert_chain(*shown)
    payments = kind.transport_type(strict_services, verify=trust["payments"])
    async with kind.client(strict_services, verify=trust["orders"], mounts={"all://payments": payments}) as http:
        for name in ("orders", "payments"):
            response = await http.get(f"https://{name}/x")
            assert (response.json()["server"], response.json()["server_name"]) == (name, name)
    async with kind.client(strict_services, verify=trust["orders"]) as http:
        with pytest.raises(kind.library.ConnectError, match="certificate verify failed: unable to get local issuer"):
            await http.get("https://payments/")


async def test_a_wrong_name_is_said_to_be_wrong(
    kind: Kind, strict_services: clientlb.Services, authorities: dict[str, Authority]
) -> None:
    trust = authorities["orders"].trust()
    async with kind.client(strict_services, verify=trust) as http:
        with pytest.raises(kind.library.ConnectError, match="certificate is not valid for 'impostor'") as caught:
            await http.get("https://impostor/")
    assert "service 'impostor': attempt 1 at 127.0.0.1" in caught.value.__notes__[0]


@pytest.mark.filterwarnings("ignore:`cert=")
async def test_a_client_shows_its_certificate(
    kind: Kind, strict_services: clientlb.Services, authorities: dict[str, Authority]
) -> None:
    shown = authorities["clients"].issue("caller")
    trust = authorities["orders"].trust()
    async with kind.client(strict_services, verify=trust) as http:
        # TLS 1.3 tells a client that it is refused when it reads
        with pytest.raises((kind.library.NetworkError, kind.library.RemoteProtocolError)):
            await http.get("https://orders/")
    async with kind.client(strict_services, verify=False, cert=shown) as http:
        for name in ("orders", "payments", "impostor"):
            assert (await http.get(f"https://{name}/")).json()["server_name"] == name
