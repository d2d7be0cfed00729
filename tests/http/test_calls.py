"""Ordinary calls of all four clients: they are spread, and everything that the caller sees stays logical."""

from __future__ import annotations

import concurrent.futures
import threading
from collections import Counter
from typing import Any

import pytest

import clientlb
import clientlb.httpx
from clientlb.testing import ManualDiscovery
from tests.http.conftest import Kind, Process, settle

pytestmark = pytest.mark.usefixtures("nobody_in_flight")


async def test_calls_are_spread(kind: Kind, services: clientlb.Services) -> None:
    async with kind.client(services) as http:
        seen = Counter([(await http.get("http://orders/")).json()["server"] for _ in range(40)])
    assert seen == {"a": 20, "b": 20}


async def test_it_is_a_client_of_its_flavour(kind: Kind, services: clientlb.Services) -> None:
    async with kind.client(services, base_url="http://orders/v1/", headers={"X-Tenant": "t"}, timeout=7) as http:
        assert isinstance(http.client, kind.ordinary_client_type)
        response = await http.get("items", params={"n": "1"})
    assert type(response) is kind.library.Response
    assert response.json()["target"] == "/v1/items?n=1"
    assert response.json()["headers"]["x-tenant"] == "t"
    assert http.client.is_closed


async def test_the_usual_arguments_are_taken(kind: Kind, services: clientlb.Services) -> None:
    limits = kind.library.Limits(max_connections=2)
    async with kind.client(
        services, http2=True, limits=limits, verify=False, trust_env=False, params={"p": "1"}
    ) as http:
        assert (await http.get("http://orders/")).json()["target"] == "/?p=1"
    with pytest.raises(TypeError, match="tiemout"):
        kind.client_type(services, tiemout=3)


async def test_the_caller_sees_the_service_and_the_server_too(kind: Kind, services: clientlb.Services) -> None:
    async with kind.client(services) as http:
        response = await http.get("http://orders/x?a=1#f")
    assert str(response.url) == "http://orders/x?a=1#f"
    assert str(response.request.url) == "http://orders/x?a=1#f"
    assert response.json()["headers"]["host"] == "orders"
    assert response.json()["target"] == "/x?a=1"


async def test_extensions_say_what_happened_and_keep_what_httpx_says(kind: Kind, services: clientlb.Services) -> None:
    async with kind.client(services) as http:
        response = await http.get("http://orders/")
    trace = response.extensions["clientlb"]
    assert isinstance(trace, clientlb.Trace)
    assert trace.service == "orders"
    assert [tried.reason for tried in trace.attempts] == [""]
    assert trace.endpoint in services["orders"].endpoints
    assert response.http_version == "HTTP/1.1"
    assert response.reason_phrase == "Because"
    assert "network_stream" in response.extensions


async def test_cookies_belong_to_the_service(kind: Kind, services: clientlb.Services) -> None:
    async with kind.client(services) as http:
        await http.get("http://orders/set", params={"header": "Set-Cookie: session=7"})
        headers = [(await http.get("http://orders/")).json()["headers"] for _ in range(8)]
        other = (await http.get("http://payments/")).json()["headers"]
    assert {each.get("cookie") for each in headers} == {"session=7"}
    assert "cookie" not in other


@pytest.mark.parametrize(
    ("location", "lands_on"),
    [
        ("/landed", "http://orders/landed"),
        ("http://orders/landed", "http://orders/landed"),
        ("http://orders:8080/landed", "http://orders:8080/landed"),
        ("http://payments/landed", "http://payments/landed"),
    ],
)
async def test_redirects_stay_among_services(
    kind: Kind, services: clientlb.Services, location: str, lands_on: str
) -> None:
    url = "http://orders/status"
    async with kind.client(services, follow_redirects=True) as http:
        response = await http.get(url, params={"status": 302, "header": f"Location: {location}"})
    assert str(response.url) == lands_on
    assert response.json()["target"] == "/landed"
    assert [hop.status_code for hop in response.history] == [302]
    assert response.json()["headers"]["host"] == lands_on.split("/")[2]


async def test_a_port_in_the_url_of_a_service_is_ignored(kind: Kind, services: clientlb.Services) -> None:
    async with kind.client(services) as http:
        response = await http.get("http://orders:1/")
    assert response.status_code == 200
    assert response.json()["headers"]["host"] == "orders:1"


async def test_other_hosts_are_left_alone(
    kind: Kind, services: clientlb.Services, shared_servers: dict[str, Process]
) -> None:
    url = f"http://{shared_servers['a'].address}/x"
    async with kind.client(services) as http:
        response = await http.get(url)
    assert str(response.url) == url
    assert "clientlb" not in response.extensions
    async with kind.over(kind.transport_type(services)) as http:
        response = await http.get(url)
        assert response.json()["server"] == "a"
        assert "clientlb" not in response.extensions
        assert (await http.get("http://orders/")).extensions["clientlb"].service == "orders"


async def test_passthrough_is_the_callers_own_transport(kind: Kind, services: clientlb.Services) -> None:
    passthrough = kind.library.MockTransport(lambda request: kind.library.Response(418))
    async with kind.over(kind.transport_type(services, passthrough=passthrough)) as http:
        assert (await http.get("http://example.com/")).status_code == 418
        assert (await http.get("http://orders/")).status_code == 200


async def test_inner_transports_are_made_by_the_caller(kind: Kind, services: clientlb.Services) -> None:
    made: list[clientlb.Endpoint] = []

    def inner(endpoint: clientlb.Endpoint) -> object:
        made.append(endpoint)
        return kind.library.MockTransport(lambda request: kind.library.Response(200, text=str(request.url)))

    async with kind.client(services, inner=inner) as http:
        texts = {(await http.get("http://orders/x?y=1")).text for _ in range(40)}
    assert sorted(made, key=str) == sorted(services["orders"].endpoints, key=str)
    assert texts == {f"http://{endpoint}/x?y=1" for endpoint in made}


@pytest.mark.parametrize(
    ("scheme", "secure", "dialled", "server_name"),
    [
        ("http", False, b"http", None),
        ("http", True, b"https", "orders"),
        ("https", False, b"https", "orders"),
        ("https", True, b"https", "orders"),
        ("ws", False, b"ws", None),
        ("ws", True, b"wss", "orders"),
        ("wss", False, b"wss", "orders"),
    ],
)
async def test_the_url_or_the_endpoint_asks_for_tls(
    kind: Kind, scheme: str, secure: bool, dialled: bytes, server_name: str | None
) -> None:
    seen = []

    def answer(request: Any) -> Any:
        seen.append((request.url.raw_scheme, request.url.port, request.extensions.get("sni_hostname")))
        return kind.library.Response(200)

    registry = ManualDiscovery({"orders": [clientlb.Endpoint("10.0.0.1", 8443, secure=secure)]})
    with clientlb.Services(registry) as services:
        async with kind.client(services, inner=lambda _: kind.library.MockTransport(answer)) as http:
            response = await http.get(f"{scheme}://orders/")
    assert seen == [(dialled, 8443, server_name)]
    assert "sni_hostname" not in response.request.extensions


async def test_a_scheme_that_is_not_http_is_an_error_of_the_client(kind: Kind, services: clientlb.Services) -> None:
    async with kind.client(services) as http:
        with pytest.raises(kind.library.UnsupportedProtocol):
            await http.get("ftp://orders/")


@pytest.mark.parametrize("mount", ["http://orders", "all://orders"])
async def test_a_mount_that_names_a_host_comes_first(kind: Kind, services: clientlb.Services, mount: str) -> None:
    mock = kind.library.MockTransport(lambda request: kind.library.Response(418))
    async with kind.client(services, mounts={mount: mock}) as http:
        assert (await http.get("http://orders/")).status_code == 418
        assert (await http.get("http://payments/")).status_code == 200


async def test_proxies_and_other_mounts_are_for_ordinary_hosts(
    kind: Kind, services: clientlb.Services, shared_servers: dict[str, Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    mock = kind.library.MockTransport(lambda request: kind.library.Response(418))
    async with kind.client(services, mounts={"all://": mock}) as http:
        assert (await http.get("http://orders/")).status_code == 200
        assert (await http.get("http://example.com/")).status_code == 418
    proxy = f"http://{shared_servers['a'].address}"
    async with kind.client(services, proxy=proxy) as http:
        assert (await http.get("http://example.com/x")).json()["target"] == "http://example.com/x"
        assert (await http.get("http://orders/x")).json()["target"] == "/x"
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "orders")
    async with kind.client(services) as http:
        assert (await http.get("http://example.com/x")).json()["target"] == "http://example.com/x"
        assert (await http.get("http://orders/x")).json()["target"] == "/x"
        assert (await http.get("http://payments/x")).json()["target"] == "/x"


async def test_event_hooks_and_auth_see_the_service(kind: Kind, services: clientlb.Services) -> None:
    seen: list[str] = []

    def note(message: object) -> None:
        seen.append(str(getattr(message, "url", None)))

    async def note_async(message: object) -> None:
        note(message)

    hook = note_async if kind.is_async else note
    async with kind.client(services, event_hooks={"request": [hook], "response": [hook]}, auth=("u", "p")) as http:
        response = await http.get("http://orders/")
    assert seen == ["http://orders/", "http://orders/"]
    assert response.json()["headers"]["authorization"].startswith("Basic ")


async def test_services_outlive_the_client_and_close_is_idempotent(kind: Kind, services: clientlb.Services) -> None:
    for _ in range(2):
        async with kind.client(services) as http:
            await http.get("http://orders/")
            await http.close()
    with pytest.raises(RuntimeError):
        await http.get("http://orders/")
    transport = kind.transport_type(services)
    for _ in range(2):
        await settle(transport.aclose() if kind.is_async else transport.close())
    async with kind.over(transport) as http:
        with pytest.raises(clientlb.ClosedError):
            await http.get("http://orders/")


async def test_no_endpoints_is_an_error_of_the_flavour(
    kind: Kind, registry: ManualDiscovery, services: clientlb.Services
) -> None:
    registry.fail("nobody", clientlb.DiscoveryError("connection refused by the registry"))
    with clientlb.Services(registry, options=clientlb.Options(wait_for_endpoints=0.01)) as impatient:
        async with kind.client(impatient) as http:
            with pytest.raises(kind.library.ConnectError) as caught:
                await http.get("http://nobody/x")
    assert isinstance(caught.value, clientlb.NoEndpointsError)
    assert isinstance(caught.value, kind.ours.NoEndpointsError)
    assert str(caught.value.request.url) == "http://nobody/x"
    for detail in ("nobody", "manual://", "connection refused by the registry"):
        assert detail in str(caught.value)


async def test_a_call_waits_for_the_first_list(kind: Kind, shared_servers: dict[str, Process]) -> None:
    registry = ManualDiscovery()
    with clientlb.Services(registry) as services:
        soon = threading.Timer(0.1, registry.set, ("orders", [shared_servers["a"].address]))
        soon.start()
        async with kind.client(services) as http:
            assert (await http.get("http://orders/")).json()["server"] == "a"
        soon.join()


async def test_closed_services_are_said_to_be_closed(kind: Kind, registry: ManualDiscovery) -> None:
    closed = clientlb.Services(registry)
    closed.close()
    async with kind.client(closed) as http:
        with pytest.raises(clientlb.ClosedError, match="orders"):
            await http.get("http://orders/")


async def test_a_name_with_upper_case_is_found_through_hosts_or_options(
    kind: Kind, shared_servers: dict[str, Process]
) -> None:
    registry = ManualDiscovery({"Orders": [shared_servers["a"].address]})
    with clientlb.Services(registry, options={"Orders": clientlb.Options()}) as services:
        async with kind.client(services) as http:
            assert (await http.get("http://Orders/")).extensions["clientlb"].service == "Orders"
    with clientlb.Services(registry) as services:
        async with kind.client(services, hosts={"shop.example.com": "Orders"}) as http:
            response = await http.get("http://shop.example.com/")
    assert response.extensions["clientlb"].service == "Orders"
    assert response.json()["headers"]["host"] == "shop.example.com"


def test_threads_share_a_sync_transport(services: clientlb.Services) -> None:
    with clientlb.httpx.Client(services) as http, concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: http.get(f"http://orders/{n}").json()["target"], range(200)))
    assert answers == [f"/{n}" for n in range(200)]
