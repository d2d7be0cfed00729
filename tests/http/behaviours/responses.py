"""What comes back: heads, bodies, streams, what a client says about them, hooks and extensions."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import pickle
import socket
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

from tests.http.behaviours import World, behaviour, echoed, error, seen
from tests.http.conftest import Http, settle

STREAM = "/stream?chunks=4"
HEADS = {
    "reasons": "HTTP/1.1 299 Mostly Fine\r\nContent-Length: 0\r\n\r\n",
    "no reason": "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
    "old": "HTTP/1.0 200 OK\r\n\r\nuntil the end",
    "twice": "HTTP/1.1 200 OK\r\nX-A: 1\r\nx-a: 2\r\nX-B:\r\nX-Latin: \xe9\r\nContent-Length: 2\r\n\r\nok",
    "hints": "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "trailers": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n",
    "no content": "HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
    "unmodified": "HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
    "latin": "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=latin-1\r\nContent-Length: 1\r\n\r\n\xe9",
    "links": "HTTP/1.1 200 OK\r\nLink: </next>; rel=next\r\nContent-Length: 0\r\n\r\n",
    "last": "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
}
CLOSING = ("old", "last")
ZIPPED = gzip.compress(b"plain text " * 1000, mtime=0).decode("latin-1")
ZIPPED_ANSWER = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(ZIPPED)}\r\n\r\n{ZIPPED}"


@contextlib.asynccontextmanager
async def streamed(world: World, http: Http, url: str, **arguments: Any) -> AsyncIterator[Any]:
    """`client.stream()` of either kind."""
    manager = http.client.stream("GET", url, **arguments)
    if world.kind.is_async:
        async with manager as response:
            yield response
    else:
        with manager as response:
            yield response


@behaviour
async def heads(world: World) -> object:
    async with world.client() as http:
        responses = [
            await http.get(
                world.url("/raw"), params={"answer": head} if name in CLOSING else {"answer": head, "keep": 1}
            )
            for name, head in HEADS.items()
        ]
    return [(*seen(each)[:4], each.content, each.encoding, each.links, each.is_success) for each in responses]


@behaviour
async def statuses(world: World) -> object:
    async with world.client() as http:
        # those that clientlb repeats are in test_retries.py
        responses = [await http.get(world.url(f"/status?status={status}")) for status in (201, 301, 404, 418, 500)]
        return [
            (
                each.status_code,
                each.is_error,
                each.is_redirect,
                await error(each.raise_for_status) if each.is_error else 0,
            )
            for each in responses
        ]


@behaviour
async def compressed(world: World) -> object:
    async with world.client(default_encoding="utf-8") as http:
        response = await http.get(world.url("/raw"), params={"answer": ZIPPED_ANSWER, "keep": 1})
        async with streamed(world, http, world.url("/raw"), params={"answer": ZIPPED_ANSWER, "keep": 1}) as raw:
            parts = await world.listed(world.of(raw, "iter_raw")())
        return response.text, response.num_bytes_downloaded, b"".join(parts)


@behaviour
async def a_body_read_in_every_way(world: World) -> object:
    read: list[Any] = []
    async with world.client() as http:
        for way in ("iter_raw", "iter_bytes", "iter_text", "iter_lines"):
            async with streamed(world, http, world.url(STREAM)) as response:
                read.append((await world.listed(world.of(response, way)()), response.num_bytes_downloaded))
        for way in ("iter_raw", "iter_bytes"):
            async with streamed(world, http, world.url(STREAM)) as response:
                read.append(await world.listed(world.of(response, way)(5)))
        async with streamed(world, http, world.url(STREAM)) as response:
            read += [await settle(world.of(response, "read")()), response.text, response.is_closed]
            read.append(await world.listed(world.of(response, "iter_bytes")(3)))
    return read


@behaviour
async def a_body_read_in_the_wrong_way(world: World) -> object:
    async with world.client() as http:
        async with streamed(world, http, world.url(STREAM)) as response:
            errors = [await error(lambda: response.content), await error(response.json)]
        errors.append(await error(world.of(response, "read")))
        async with streamed(world, http, world.url(STREAM)) as response:
            await world.listed(world.of(response, "iter_raw")())
            errors.append(await error(lambda: world.listed(world.of(response, "iter_raw")())))
    errors.append(await error(lambda: http.get(world.url())))
    return errors


@behaviour
async def a_body_left_early(world: World) -> object:
    read: list[Any] = []
    async with world.client() as http:
        for _ in range(2):
            async with streamed(world, http, world.url("/stream?chunks=1000&pause=0.001")) as response:
                parts = world.of(response, "iter_raw")()
                read.append(await anext(parts) if world.kind.is_async else next(parts))
                if world.kind.is_async:
                    await parts.aclose()
                read.append(response.is_stream_consumed)
            read.append(response.is_closed)
        async with streamed(world, http, world.url(STREAM)):
            pass
        read.append(seen(await http.get(world.url())))
    return read


@behaviour
async def a_response_that_is_sent_for_as_a_stream(world: World) -> object:
    async with world.client() as http:
        request = http.client.build_request("GET", world.url(STREAM))
        response = await settle(http.client.send(request, stream=True))
        before = response.is_closed
        await settle(world.of(response, "close")())
        await settle(world.of(response, "close")())
        return before, response.is_closed, response.is_stream_consumed


@behaviour
async def what_a_response_knows(world: World) -> object:
    async with world.client() as http:
        async with streamed(world, http, world.url(STREAM)) as response:
            early = await error(lambda: response.elapsed)
        response = await http.get(world.url("/sleep?seconds=0.05"))
        slept = timedelta(seconds=0.05) <= response.elapsed < timedelta(seconds=5)
        return early, slept, repr(response), response.history, response.next_request, response.charset_encoding


@behaviour
async def pickled(world: World) -> object:
    async with world.client() as http:
        response = pickle.loads(pickle.dumps(await http.post(world.url(), content=b"x")))
        return seen(response)[0::4], response.request.method, str(response.request.url), response.is_closed


@behaviour
async def extensions(world: World) -> object:
    async with world.client() as http, streamed(world, http, world.url()) as response:
        stream = response.extensions["network_stream"]
        info = [stream.get_extra_info(name) for name in ("server_addr", "ssl_object", "nonsense")]
        names = sorted(set(response.extensions) - {"clientlb"})
        return (
            names,
            info,
            isinstance(stream.get_extra_info("socket"), socket.socket),
            response.extensions["http_version"],
        )


@behaviour
async def traced(world: World) -> object:
    events: list[Any] = []

    def note(name: str, info: dict[str, Any]) -> None:
        events.append((name, sorted(info), info.get("host"), info.get("port"), info.get("timeout")))

    async with world.client(timeout=7) as http:
        for _ in range(2):
            await http.post(world.url(), content=b"x", extensions={"trace": world.hook(note)})
        async with streamed(world, http, world.url(STREAM), extensions={"trace": world.hook(note)}):
            pass
    return events


@behaviour
async def a_trace_that_fails(world: World) -> object:
    def fail(name: str, info: object) -> None:
        raise LookupError(name)

    async with world.client() as http:
        failed = await error(lambda: http.get(world.url(), extensions={"trace": world.hook(fail)}))
        return failed, seen(await http.get(world.url()))


@behaviour
async def another_protocol_afterwards(world: World) -> object:
    switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: own\r\nConnection: upgrade\r\n\r\nhello"
    upgrade = {"Connection": "upgrade", "Upgrade": "own"}
    arguments: dict[str, Any] = {"params": {"answer": switch}, "headers": upgrade}
    async with world.client() as http, streamed(world, http, world.url("/raw"), **arguments) as response:
        stream = response.extensions["network_stream"]
        return response.status_code, await settle(stream.read(100)), await settle(stream.read(100))


@behaviour
async def hooks(world: World) -> object:
    log: list[Any] = []

    def on_request(request: Any) -> None:
        request.headers["X-Hook"] = "1"
        log.append((request.method, str(request.url)))

    def on_response(response: Any) -> None:
        log.append((response.status_code, str(response.url), response.is_closed))
        if response.url.path == "/refused":
            raise PermissionError("by the hook")

    event_hooks = {"request": [world.hook(on_request)], "response": [world.hook(on_response)]}
    redirect = {"status": "302", "header": "Location: /echo"}
    async with world.client(event_hooks=event_hooks, follow_redirects=True) as http:
        response = await http.get(world.url("/status"), params=redirect)
        refused = await error(http.get(world.url("/refused")))
        return log, seen(response), refused, seen(await http.get(world.url()))


@behaviour
async def many_at_once(world: World) -> object:
    async with world.client(limits=world.kind.library.Limits(max_connections=3)) as http:
        answers = await asyncio.gather(*(http.get(world.url(f"/echo?{number}")) for number in range(20)))
    return [echoed(each)["target"] for each in answers]


@behaviour
async def connections_are_kept(world: World) -> object:
    library: Any = world.kind.library
    counts = []
    for limits in (None, library.Limits(keepalive_expiry=0), library.Limits(max_keepalive_connections=0)):
        async with world.client(**({} if limits is None else {"limits": limits})) as http:
            opened = [(await http.get(world.url("/"))).json()["opened"] for _ in range(4)]
        counts.append(len(set(opened)))
    return counts
