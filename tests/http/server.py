"""A small HTTP/1.1 server that misbehaves on request: `python -m tests.http.server NAME [CERTIFICATE KEY] [OPTIONS]`.

It prints its port and ends when its standard input is closed, so it cannot outlive the test that started it. The query
says how to answer: `?at=a` means that only server `a` does what the path says, `header=` adds a header to the answer,
`kept=1` that it is done only on a connection that has served a request before. `unless=` that it is not
done if the request has this header. `/raw?answer=` sends those very bytes. `/linger?seconds=` is `/sleep?seconds=` that
notices when the client hangs up, and counts that as a call of `/hung-up`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import ssl
import struct
import sys
from collections import Counter
from typing import Any
from urllib.parse import parse_qs, urlsplit

HOSTS = [f"127.0.0.{number}" for number in range(1, 31)]
"""Where it listens, so that one process can be thirty endpoints."""


class Server:
    def __init__(self, name: str) -> None:
        self.name = name
        self.opened = 0
        self.open = 0
        self.calls: Counter[str] = Counter()
        self.server_names: list[str | None] = []

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        self.open += 1
        kept = False
        try:
            while await self.one_request(reader, writer, kept):
                kept = True
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            writer.transport.abort()

    async def one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bool) -> bool:
        """Serve one request; False ends the connection."""
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        addressed = query.get("at", self.name) == self.name and (kept or "kept" not in query)
        path = url.path if addressed and query.get("unless") not in headers else "/"
        self.calls[url.path] += 1
        if path == "/deaf":
            await asyncio.sleep(5)
            return False
        body = await read_body(reader, headers)
        if path == "/drop":  # the request arrived, no answer does
            return False
        if path == "/reset":  # the same, but the client hears of it at once
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return False
        if path == "/nonsense":
            writer.write(b"this is not HTTP\r\n\r\n")
            await writer.drain()
            return False
        if path == "/last":  # the answer does not say that no other one will follow
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return False
        if path == "/raw":
            writer.write(query["answer"].encode("latin-1"))
            await writer.drain()
            return "keep" in query
        if path == "/break":  # the body ends too early
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this")
            await writer.drain()
            return False
        if path == "/sleep":
            await asyncio.sleep(float(query["seconds"]))
        if path == "/linger" and await hung_up(reader, float(query["seconds"])):
            self.calls["/hung-up"] += 1
            return False
        if path == "/drip":  # the head of the answer comes byte by byte
            for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(float(query["pause"]))
        if path == "/stream":
            await self.stream(writer, int(query["chunks"]), float(query.get("pause", 0)))
            return True
        status = int(query.get("status", 200)) if path == "/status" else 200
        answer: dict[str, Any] = {
            "method": method,
            "target": target,
            "headers": headers,
            "body": body.decode("latin-1"),
        }
        if path != "/echo":
            answer |= {
                "server": self.name,
                "opened": self.opened,
                "open": self.open,
                "calls": self.calls,
                "server_name": self.server_names[-1] if self.server_names else None,
            }
        content = b"" if method == "HEAD" else json.dumps(answer).encode()
        head = [f"HTTP/1.1 {status} Because", f"Content-Length: {len(content)}"]
        if path != "/":  # "/" is how a server behaves that is not the one addressed by `at`
            head += parse_qs(url.query).get("header", [])
        writer.write("\r\n".join([*head, "", ""]).encode() + content)
        await writer.drain()
        return True

    async def stream(self, writer: asyncio.StreamWriter, chunks: int, pause: float) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(chunks):
            chunk = f"{self.name}{number};".encode()
            writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            await writer.drain()
            await asyncio.sleep(pause)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async def serve(self, context: ssl.SSLContext | None, unix: str | None) -> None:
        server = await asyncio.start_server(self.connected, HOSTS[0], 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        others = [await asyncio.start_server(self.connected, HOSTS[1:], port, ssl=context)]
        if unix is not None:
            others.append(await asyncio.start_unix_server(self.connected, unix, ssl=context))
            others.append(await asyncio.start_server(self.connected, "::1", port, ssl=context))
        print(port, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        for each in (server, *others):
            each.close()


async def hung_up(reader: asyncio.StreamReader, seconds: float) -> bool:
    """Whether the client hangs up within so many seconds."""
    try:
        return await asyncio.wait_for(reader.read(1), seconds) == b""
    except TimeoutError:
        return False


async def read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if "chunked" not in headers.get("transfer-encoding", ""):
        return await reader.readexactly(int(headers.get("content-length", 0)))
    body = b""
    while size := int(await reader.readuntil(b"\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return body


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("certificate", nargs="*")
    parser.add_argument("--clients", help="certificate of the authority whose clients alone are served")
    parser.add_argument("--unix", help="listen on this socket and on IPv6, too")
    arguments = parser.parse_args()
    server = Server(arguments.name)
    context = None
    if arguments.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*arguments.certificate)
        context.sni_callback = lambda connection, server_name, context: server.server_names.append(server_name)
        if arguments.clients:
            context.load_verify_locations(arguments.clients)
            context.verify_mode = ssl.CERT_REQUIRED
    asyncio.run(server.serve(context, arguments.unix))


if __name__ == "__main__":
    main()
