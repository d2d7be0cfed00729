"""The proxies that the benchmarks compare with: HAProxy, nginx and Envoy on loopback, each over the same servers.

Each has one thread, keeps its connections to the servers open, logs nothing and gives a call to the server with the
fewest calls (HAProxy: `leastconn`; nginx: `least_conn`; Envoy: `LEAST_REQUEST`).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

SERVERS = Path(__file__).parents[1] / ".tools" / "servers"
HAPROXY_CONFIG = """
global
    nbthread 1
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout http-keep-alive 1h
    http-reuse always
listen servers
    bind 127.0.0.1:{port} {protocol}
    balance leastconn
{servers}
"""
NGINX_CONFIG = """
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 100000000;
    keepalive_timeout 1h;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream servers {{
        least_conn;
{servers}
        keepalive 128;
        keepalive_requests 100000000;
        keepalive_timeout 1h;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://servers;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"""


class Proxy(Protocol):
    """Starts a proxy over servers on these ports of loopback; gives the port of the proxy."""

    def __call__(self, program: str, ports: Sequence[int], grpc: bool = False) -> AbstractContextManager[int]: ...


def find(program: str) -> str | None:
    """What proxies.sh has unpacked, or what is on PATH."""
    unpacked = SERVERS / program / program
    return str(unpacked) if unpacked.exists() else shutil.which(program)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextlib.contextmanager
def haproxy(program: str, ports: Sequence[int], grpc: bool = False) -> Iterator[int]:
    protocol = "proto h2" if grpc else ""
    servers = "\n".join(f"    server s{port} 127.0.0.1:{port} {protocol}" for port in ports)
    port = free_port()
    config = HAPROXY_CONFIG.format(port=port, protocol=protocol, servers=servers)
    with _running("haproxy.cfg", config, port, lambda file: [program, "-db", "-q", "-f", file]):
        yield port


@contextlib.contextmanager
def nginx(program: str, ports: Sequence[int], grpc: bool = False) -> Iterator[int]:
    if grpc:
        raise ValueError("nginx has no part in the comparison of gRPC")
    port = free_port()
    config = NGINX_CONFIG.format(port=port, servers="\n".join(f"        server 127.0.0.1:{each};" for each in ports))
    with _running("nginx.conf", config, port, lambda file: [program, "-p", str(Path(file).parent), "-c", file]):
        yield port


@contextlib.contextmanager
def envoy(
    program: str, ports: Sequence[int], grpc: bool = False, *, health: dict[str, Any] | None = None
) -> Iterator[int]:
    """Run Envoy. `health` has its `outlier_detection` and `retry_policy`, if there is to be any."""
    port = free_port()
    config = json.dumps(_envoy_config(port, ports, grpc, **(health or {})))
    options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "off"]
    with _running("envoy.json", config, port, lambda file: [program, "-c", file, *options]):
        yield port


PROXIES: dict[str, Proxy] = {"haproxy": haproxy, "nginx": nginx, "envoy": envoy}


def _envoy_config(
    port: int,
    ports: Sequence[int],
    grpc: bool,
    outlier_detection: dict[str, Any] | None = None,
    retry_policy: dict[str, Any] | None = None,
) -> dict[str, Any]:
    def kind(name: str, **values: Any) -> dict[str, Any]:
        return {"@type": f"type.googleapis.com/envoy.{name}", **values}

    def address(port: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    route = {"cluster": "servers", "timeout": "0s", **({"retry_policy": retry_policy} if retry_policy else {})}
    manager = kind(
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="in",
        codec_type="HTTP2" if grpc else "HTTP1",
        route_config={
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]},
            ]
        },
        http_filters=[
            {"name": "envoy.filters.http.router", "typed_config": kind("extensions.filters.http.router.v3.Router")}
        ],
    )
    protocol = {"http2_protocol_options": {}} if grpc else {"http_protocol_options": {}}
    cluster = {
        "name": "servers",
        "type": "STATIC",
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": {
            "cluster_name": "servers",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(each)}} for each in ports]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": kind(
                "extensions.upstreams.http.v3.HttpProtocolOptions", explicit_http_config=protocol
            )
        },
        **({"outlier_detection": outlier_detection} if outlier_detection else {}),
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    listener = {"name": "in", "address": address(port), "filter_chains": [{"filters": filters}]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


@contextlib.contextmanager
def _running(name: str, config: str, port: int, command: Any) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="clientlb-proxy-") as folder:
        file = Path(folder) / name
        file.write_text(config)
        process = subprocess.Popen(command(str(file)), stdin=subprocess.DEVNULL)
        try:
            _wait_for(port, process)
            yield
        finally:
            process.terminate()
            process.wait(10)


def _wait_for(port: int, process: subprocess.Popen[bytes], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.02)
    raise RuntimeError(f"{process.args} does not answer on port {port}; exit status {process.poll()}")
