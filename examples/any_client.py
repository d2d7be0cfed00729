"""The decorator makes any function a balanced client: here with urllib, requests, aiohttp and a raw socket.

    pip install clientlb requests aiohttp
    python any_client.py

What these raise is understood: a refused connection goes to another server, a 404 is the server's good right.
"""

import asyncio
import socket
import tempfile
import urllib.request
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import aiohttp
import requests
from http_client import serve

from clientlb import Endpoint, Services


def by_urllib(services: Services) -> Callable[[str], str]:
    @services.balanced("orders", idempotent=True)
    def get(endpoint: Endpoint, path: str) -> str:
        with urllib.request.urlopen(f"http://{endpoint}{path}", timeout=5) as response:
            return response.read().decode()

    return get


def by_requests(services: Services, session: requests.Session) -> Callable[[str], str]:
    @services.balanced("orders", idempotent=True)
    def get(endpoint: Endpoint, path: str) -> str:
        response = session.get(f"http://{endpoint}{path}", timeout=5)
        response.raise_for_status()  # the exception says what the status means for the server
        return response.text

    return get


def by_aiohttp(services: Services, session: aiohttp.ClientSession) -> Callable[[str], Awaitable[str]]:
    @services.balanced("orders", idempotent=True)
    async def get(endpoint: Endpoint, path: str) -> str:
        async with session.get(f"http://{endpoint}{path}", timeout=aiohttp.ClientTimeout(5)) as response:
            response.raise_for_status()
            return await response.text()

    return get


def by_socket(services: Services) -> Callable[[str], str]:
    @services.balanced("orders", idempotent=True)
    def ask(endpoint: Endpoint, line: str) -> str:
        """One line there, one line back."""
        address = (endpoint.host, endpoint.port)
        with socket.create_connection(address, timeout=5) as server, server.makefile("rw", newline="") as stream:
            stream.write(f"{line}\r\n\r\n")
            stream.flush()
            answer = stream.readline()
        if not answer:
            raise EOFError("the server closed the connection")  # counts against it, and another one is asked
        return answer.strip()

    return ask


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        registry = f"dir://{folder}"
        first, _ = [serve(registry, running) for _ in range(2)]
        services = running.enter_context(Services(registry))
        session = running.enter_context(requests.Session())

        async def with_aiohttp(path: str) -> str:
            async with aiohttp.ClientSession() as session:
                return await by_aiohttp(services, session)(path)

        get = by_urllib(services)
        print("urllib:", get("/v1/items/7"))
        print("requests:", by_requests(services, session)("/v1/items/7"))
        print("aiohttp:", asyncio.run(with_aiohttp("/v1/items/7")))
        print("socket:", by_socket(services)("GET /v1/items/7 HTTP/1.0"))

        first.shutdown()
        first.server_close()
        print("still served by:", {get(f"/v1/items/{item}").split()[0] for item in range(20)})
        print("retries:", services.stats()["orders"].retries)


if __name__ == "__main__":
    main()
