"""The decorator makes any function a balanced client: here `urllib`, with retries on another server."""

import tempfile
import urllib.request
from contextlib import ExitStack

from http_client import serve

import clientlb


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        registry = f"dir://{folder}"
        first, _ = [serve(registry, running) for _ in range(2)]
        services = running.enter_context(clientlb.Services(registry))

        @services.balanced("orders", idempotent=True)
        def load(endpoint: clientlb.Endpoint, item: int) -> str:
            with urllib.request.urlopen(f"http://{endpoint}/v1/items/{item}", timeout=5) as response:
                return response.read().decode()

        print(load(7))
        first.shutdown()
        first.server_close()
        print("still served by:", {load(item).split()[0] for item in range(20)})
        print("retries:", services.stats()["orders"].retries)


if __name__ == "__main__":
    main()
