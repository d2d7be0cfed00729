"""One check over TCP or HTTP, on the event loop of the checker. Whatever these functions raise means: it failed.

HTTP is spoken by hand, as little of it as a check needs: one request on a connection of its own, of whose answer only
the status matters. So a check needs no HTTP client, and is no call.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from clientlb.check_options import Check, HttpCheck
from clientlb.endpoint import Endpoint

_LONGEST_HEAD = 2**16
_DRAIN = 0.2
"""Seconds for which the body is read, so that the server can end in peace."""
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])[ \r]").match
_HOST = re.compile(r"[A-Za-z0-9._-]+").fullmatch


class Asked:
    """What a checker has open, and what it keeps for the next check."""

    def __init__(self) -> None:
        self.sockets: set[socket.socket] = set()
        self.contexts: dict[bool | str, ssl.SSLContext] = {}


def close_inherited(asked: Asked) -> None:
    """In a forked child: close our copies of the parent's sockets, so that its servers see them end."""
    for each in asked.sockets:
        each.close()


async def ask(check: Check, service: str, endpoint: Endpoint, asked: Asked) -> None:
    """Check an endpoint once, within the timeout."""
    async with (
        asyncio.timeout(check.timeout) as deadline,
        _connected(endpoint.host, check.port or endpoint.port, asked) as connection,
    ):
        if isinstance(check, HttpCheck):
            await _ask_http(check, service, endpoint, connection, asked, deadline)


def words_of(error: BaseException, check: Check) -> str:
    """Say in a few words why a check failed."""
    if isinstance(error, TimeoutError) and not (isinstance(error, OSError) and error.errno):
        return f"no answer within {check.timeout:g} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if isinstance(error, (asyncio.IncompleteReadError, EOFError)):
        return "the connection was closed without an answer"
    if isinstance(error, asyncio.LimitOverrunError):
        return "its answer is no HTTP"
    if isinstance(error, ssl.SSLError):
        return f"no TLS: {error.reason or error}"
    if isinstance(error, socket.gaierror):
        return f"its host is unknown: {error.strerror}"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__


@asynccontextmanager
async def _connected(host: str, port: int, asked: Asked) -> AsyncIterator[socket.socket]:
    """A connection to a host, at the first of its addresses that takes one."""
    loop = asyncio.get_running_loop()
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:  # a name: somebody else has to be asked, and may be waited for
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for number, (family, kind, protocol, _, address) in enumerate(found, 1):
        connection = socket.socket(family, kind, protocol)
        asked.sockets.add(connection)
        try:
            connection.setblocking(False)
            try:
                await loop.sock_connect(connection, address)
            except OSError:
                if number == len(found):
                    raise
                continue
            yield connection
            return
        finally:
            asked.sockets.discard(connection)
            connection.close()


async def _ask_http(
    check: HttpCheck,
    service: str,
    endpoint: Endpoint,
    connection: socket.socket,
    asked: Asked,
    deadline: asyncio.Timeout,
) -> None:
    name = check.server_name or (service if _HOST(service) else endpoint.host)
    secure = endpoint.secure if check.secure is None else check.secure
    context = _context(check, asked) if secure else None
    reader, writer = await asyncio.open_connection(
        sock=connection,
        limit=_LONGEST_HEAD,
        ssl=context,
        server_hostname=name if context is not None else None,
    )
    try:
        writer.write(_request(check, name))
        status = await _status(reader)
        if status not in check.statuses:
            raise ValueError(f"answered {status}")
        deadline.reschedule(None)
        await _drain(reader)
    finally:
        writer.transport.abort()


def _request(check: HttpCheck, host: str) -> bytes:
    headers = {"Host": host, "User-Agent": "clientlb-check", "Accept": "*/*"}
    ours = {name.lower(): name for name in headers}
    for name, value in check.headers.items():
        headers[ours.get(name.lower(), name)] = value
    lines = [f"{check.method} {check.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("ascii")


async def _status(reader: asyncio.StreamReader) -> int:
    """The status of the answer, after those that only announce it."""
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        found = _STATUS(head)
        if found is None:
            raise ValueError("its answer is no HTTP")
        if (status := int(found[1])) >= 200:
            return status


async def _drain(reader: asyncio.StreamReader) -> None:
    """Read what is left, within bounds: what it says does not matter."""
    try:
        async with asyncio.timeout(_DRAIN):
            await reader.read(_LONGEST_HEAD)
    except (OSError, TimeoutError):
        pass


def _context(check: HttpCheck, asked: Asked) -> ssl.SSLContext:
    if isinstance(check.verify, ssl.SSLContext):
        return check.verify
    context = asked.contexts.get(check.verify)
    if context is None:
        cafile = check.verify if isinstance(check.verify, str) else None
        context = ssl.create_default_context(cafile=cafile)
        if check.verify is False:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        asked.contexts[check.verify] = context
    return context
