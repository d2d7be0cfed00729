"""The address under which others reach this machine."""

from __future__ import annotations

import socket


def local_address(host: str, port: int) -> str:
    """The address that this machine has on its way to `host`; 127.0.0.1 when there is no way. Sends nothing."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # of a datagram socket: only chooses the route
            return str(probe.getsockname()[0]).partition("%")[0]
    except OSError:
        return "127.0.0.1"
