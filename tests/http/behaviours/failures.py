"""What goes wrong, and what the caller is told of it."""

from __future__ import annotations

from typing import Any

from tests.http.behaviours import World, behaviour, error, outcome, seen
from tests.http.behaviours.responses import streamed
from tests.http.conftest import settle


@behaviour
async def urls_that_are_none(world: World) -> object:
    async with world.client() as http:
        urls = [
            "/relative",
            "ftp://orders/",
            "http://",
            "http://[::bad/",
            "http://a b/",
            "http://orders:x/",
            7,
            "http://ä..ö/",
        ]
        return [await error(lambda url=url: http.get(url)) for url in urls]


@behaviour
async def requests_that_cannot_be_sent(world: World) -> object:
    async with world.client() as http:
        return [
            await error(lambda headers=headers: http.get(world.url(), headers=headers))
            for headers in ({"X-A": "a\nb"}, {"X A": "1"}, {"X-A": 7}, {"Transfer-Encoding": "gzip"})
        ], seen(await http.get(world.url()))


@behaviour
async def arguments_that_do_not_exist(world: World) -> object:
    async with world.client() as http:
        errors = [await error(lambda: http.get(world.url(), tiemout=1))]
        errors.append(await error(lambda: http.get(world.url(), timeout="soon")))
        errors.append(await error(lambda: http.get(world.url(), auth=7)))
    return errors


@behaviour
async def servers_that_do_not_answer(world: World) -> object:
    async with world.client(timeout=world.kind.library.Timeout(5, connect=0.05)) as http:
        return [
            await error(http.request(method, world.url("/echo", service)))
            for service in ("refusing", "stuck")
            for method in ("GET", "POST")
        ]


@behaviour
async def broken_answers(world: World) -> object:
    errors = []
    for path in ("/drop", "/reset", "/nonsense", "/break"):
        async with world.client() as http:
            errors += [await error(http.post(world.url(path))), await error(http.get(world.url(path)))]
            errors.append(seen(await http.get(world.url())))
    return errors


@behaviour
async def broken_bodies(world: World) -> object:
    heads = {
        "gzip": "Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        "deflate": "Content-Encoding: deflate\r\nContent-Length: 3\r\n\r\nabc",
        "chunks": "Transfer-Encoding: chunked\r\n\r\nnonsense",
        "no last chunk": "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        "lengths": "Content-Length: 2\r\nContent-Length: 3\r\n\r\nok",
    }
    errors: list[Any] = []
    for head in heads.values():
        async with world.client() as http:
            answer = f"HTTP/1.1 200 OK\r\n{head}"
            errors.append(await outcome(http.get(world.url("/raw"), params={"answer": answer})))
    async with world.client() as http:
        async with streamed(world, http, world.url("/break")) as response:
            errors.append(await error(lambda: world.listed(world.of(response, "iter_bytes")())))
            errors.append(response.is_closed)
        errors.append(seen(await http.get(world.url())))
    return errors


@behaviour
async def timeouts(world: World) -> object:
    slow, paused = world.url("/sleep?seconds=5"), world.url("/stream?chunks=2&pause=5")
    timeout: Any = world.kind.library.Timeout
    errors = []
    # long enough to connect in
    async with world.client(timeout=0.3) as http:
        errors += [await error(http.post(slow)), await error(http.post(paused))]
    async with world.client(timeout=None) as http:
        forms: list[Any] = [0.3, (5, 0.1, 5, 5), timeout(5, read=0.1), timeout(connect=5, read=0.1, write=5, pool=5)]
        for form in forms:
            errors.append(await error(http.post(slow, timeout=form)))
        errors.append(await error(http.get(slow, timeout=0.3)))
        errors.append(seen(await http.get(world.url("/sleep?seconds=0.1"), timeout=timeout(None)))[0])
    return errors


@behaviour
async def no_connection_left(world: World) -> object:
    limits = world.kind.library.Limits(max_connections=1)
    async with world.client(limits=limits, timeout=world.kind.library.Timeout(5, pool=0.05)) as http:
        async with streamed(world, http, world.url("/stream?chunks=1000&pause=0.01")):
            failed = await error(http.get(world.url()))
        return failed, seen(await http.get(world.url()))


@behaviour
async def a_body_that_nobody_reads(world: World) -> object:
    body = b"x" * 20_000_000
    async with world.client(timeout=world.kind.library.Timeout(5, write=0.1)) as http:
        return await error(http.post(world.url("/deaf"), content=body)), seen(await http.get(world.url()))


@behaviour
async def a_client_that_is_closed(world: World) -> object:
    async with world.client() as http:
        await http.get(world.url())
        states = [http.client.is_closed]
        await http.close()
        states.append(http.client.is_closed)
        request = http.client.build_request("GET", world.url())
        return states, await error(lambda: settle(http.client.send(request)))
