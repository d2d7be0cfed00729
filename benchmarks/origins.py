"""The servers that the benchmarks call: nginx for HTTP, and a gRPC echo in a process of its own.

Each listens on a free loopback port and is stopped by its process id. Run as a program, this is the gRPC server: it
prints its port, and ends when its stdin is closed, so that it never outlives the benchmark.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

METHOD = "/bench.Echo/Echo"
NGINX_CONFIG = """
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    keepalive_requests 100000000;
    keepalive_timeout 1h;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{ default_type application/json; return 200 '{{"id": 7, "state": "shipped"}}'; }}
    }}
}}
"""


def find_nginx() -> str | None:
    """The nginx that proxies.sh has unpacked, or the one on PATH."""
    unpacked = Path(__file__).parents[1] / ".tools" / "servers" / "nginx" / "nginx"
    return str(unpacked) if unpacked.exists() else shutil.which("nginx")


@contextlib.contextmanager
def nginx(program: str) -> Iterator[int]:
    """Run nginx; gives its port.

    Raises:
        RuntimeError: It did not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="clientlb-nginx-") as folder:
        config = Path(folder) / "nginx.conf"
        config.write_text(NGINX_CONFIG.format(port=port))
        command = [program, "-p", folder, "-c", str(config), "-e", "stderr"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        try:
            _wait_for(port, process)
            yield port
        finally:
            process.terminate()
            process.wait(10)


@contextlib.contextmanager
def grpc_echo(addresses: int = 1) -> Iterator[int]:
    """Run the gRPC server, on so many addresses of the loopback device; gives its port."""
    command = [sys.executable, __file__, str(addresses)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(10)


def loopback_hosts(count: int) -> list[str]:
    """127.0.0.1 and those that follow: on Linux all of them are this machine."""
    return [f"127.0.0.{last}" for last in range(1, count + 1)]


def _wait_for(port: int, process: subprocess.Popen[bytes], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.02)
    raise RuntimeError(f"nginx does not answer on port {port}; exit status {process.poll()}")


def _serve_grpc() -> None:
    import grpc

    echo: Any = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Echo": echo}),))
    host, *others = loopback_hosts(int(sys.argv[1]))
    port = server.add_insecure_port(f"{host}:0")
    for other in others:
        server.add_insecure_port(f"{other}:{port}")
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(None).wait()


if __name__ == "__main__":
    _serve_grpc()
