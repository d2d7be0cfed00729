"""What is sent: methods, URLs, headers, bodies of every kind, auth, cookies."""

from __future__ import annotations

import io
import tempfile
from collections.abc import AsyncIterator, Iterator
from typing import IO, Any

from tests.http.behaviours import World, behaviour, echoed, error, seen
from tests.http.conftest import settle

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PURGE", "get")


@behaviour
async def methods(world: World) -> object:
    async with world.client() as http:
        return [seen(await http.request(method, world.url())) for method in METHODS]


@behaviour
async def the_functions_of_a_client(world: World) -> object:
    async with world.client() as http:
        short = [getattr(http.client, name) for name in ("get", "head", "options", "post", "put", "patch", "delete")]
        return [seen(await settle(function(world.url()))) for function in short]


@behaviour
async def urls(world: World) -> object:
    targets = ["", "/", "/a%20b/%C3%BC", "/ü?q=ü ä&&x", "/a/../b", "/a;b=c?d", "//double", "/q?", "/x#fragment"]
    async with world.client() as http:
        responses = [await http.get(world.url(target)) for target in targets]
        return [(echoed(response)["target"], str(response.url)) for response in responses]


@behaviour
async def params(world: World) -> object:
    async with world.client(params={"always": "1"}) as http:
        forms: list[Any] = [{"a": [1, 2], "b": None, "c": True}, [("x", "1"), ("x", "2")], "raw=1&raw=2", {}, None]
        return [seen(await http.get(world.url("/echo?mine=0"), params=form)) for form in forms]


@behaviour
async def base_url(world: World) -> object:
    seen_there = []
    for base in ("", "/", "/v1", "/v1/"):
        async with world.client(base_url=world.url(base)) as http:
            for target in ("", "/", "items", "/items?q=1", "?q=2", world.url("/absolute")):
                response = await http.get(target, params={"at": "none"})
                seen_there.append((str(response.url), echoed(response)["target"]))
    return seen_there


@behaviour
async def headers(world: World) -> object:
    async with world.client(headers=[("X-Client", "1"), ("X-Twice", "a"), ("X-Twice", "b")]) as http:
        forms: list[Any] = [
            None,
            {"x-client": "2", "Accept": "text/plain"},
            {b"X-Bytes": b"\xff"},
            {"Host": "else.where"},
        ]
        return [seen(await http.get(world.url(), headers=form)) for form in forms]


@behaviour
async def a_request_that_was_built_first(world: World) -> object:
    async with world.client(cookies={"c": "1"}) as http:
        request = http.client.build_request("PUT", world.url("/echo?x=1"), json={"n": 7}, headers={"X-Own": "1"})
        request.headers["X-Late"] = "2"
        response = await settle(http.client.send(request))
        twice = await settle(http.client.send(request))
        return seen(response), seen(twice), response.request is request, str(request.url), request.headers.raw


@behaviour
async def the_target_in_an_extension(world: World) -> object:
    async with world.client() as http:
        response = await http.request("OPTIONS", world.url("/echo"), extensions={"target": b"*"})
        return echoed(response)["target"]


@behaviour
async def bodies_of_bytes(world: World) -> object:
    async with world.client() as http:
        forms: list[dict[str, Any]] = [
            {"content": b""},
            {"content": b"bytes"},
            {"content": "text ü"},
            {"content": b"x" * 300_000},
            {"data": {"a": "1", "b": ["2", "3"]}},
            {"json": {"a": [1, None, "ü"]}},
            {"json": {}},
            {"content": b"{}", "headers": {"Content-Type": "application/json"}},
        ]
        return [seen(await http.post(world.url(), **form)) for form in forms]


def _generator() -> Iterator[bytes]:
    yield b"one"
    yield b""
    yield b"two"


async def _async_generator() -> AsyncIterator[bytes]:
    for chunk in _generator():
        yield chunk


class _Chunks:
    """An iterable that can be iterated again."""

    def __iter__(self) -> Iterator[bytes]:
        return _generator()


class _AsyncChunks:
    def __aiter__(self) -> AsyncIterator[bytes]:
        return _async_generator()


class _AsyncFile:
    """What anyio and aiofiles have."""

    def __init__(self) -> None:
        self._file = io.BytesIO(b"of a file")

    async def aread(self, size: int) -> bytes:
        return self._file.read(size)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _async_generator()


def _file() -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115  # who sends it is its owner
    file.write(b"x" * 100_000)
    file.seek(0)
    return file


@behaviour
async def bodies_that_are_streamed_up(world: World) -> object:
    forms: list[Any] = [_generator, _Chunks, lambda: io.BytesIO(b"x" * 100_000), _file]
    if world.kind.is_async:
        forms = [_async_generator, _AsyncChunks, _AsyncFile]
    answers = []
    async with world.client() as http:
        for method in ("POST", "PUT"):
            answers += [seen(await http.request(method, world.url(), content=form())) for form in forms]
        with_length = {"Content-Length": "6"}
        answers.append(seen(await http.post(world.url(), content=forms[0](), headers=with_length)))
    return answers


@behaviour
async def bodies_of_the_wrong_kind(world: World) -> object:
    form: Any = _generator() if world.kind.is_async else _async_generator()
    async with world.client() as http:
        return await error(http.post(world.url(), content=form))


@behaviour
async def forms_with_files(world: World) -> object:
    boundary = {"Content-Type": "multipart/form-data; boundary=here"}
    forms: list[dict[str, Any]] = [
        {"files": {"f": b"bytes"}},
        {"files": {"f": ("name.txt", io.BytesIO(b"of a file"), "text/plain")}, "data": {"a": "1"}},
        {"files": [("f", ("a", "text")), ("f", ("b", io.BytesIO(b"2"), None, {"X-Part": "1"}))]},
    ]
    async with world.client() as http:
        return [seen(await http.post(world.url(), headers=boundary, **form)) for form in forms]


@behaviour
async def a_body_that_fails(world: World) -> object:
    body = world.kind.body(b"one", ValueError("the caller's own"))
    async with world.client() as http:
        return await error(http.post(world.url(), content=body)), seen(await http.get(world.url()))


@behaviour
async def a_body_that_is_too_short_for_its_length(world: World) -> object:
    async with world.client() as http:
        body = world.kind.body(b"one")
        failed = await error(http.post(world.url(), content=body, headers={"Content-Length": "5"}))
        return failed, seen(await http.get(world.url()))


@behaviour
async def auth(world: World) -> object:
    library: Any = world.kind.library
    async with world.client(auth=("all", "secret")) as http:
        ways: list[dict[str, Any]] = [{}, {"auth": ("one", "ü")}, {"auth": library.BasicAuth("a", "b")}, {"auth": None}]
        answers = [seen(await http.get(world.url(), **way)) for way in ways]
        answers.append(seen(await http.get(world.url(userinfo="me:pass%20word@"))))
    return answers


@behaviour
async def digest_auth(world: World) -> object:
    challenge = 'WWW-Authenticate: Digest realm="r", nonce="n", qop="auth", algorithm=SHA-256'
    query = {"status": "401", "header": challenge, "unless": "authorization"}
    async with world.client(auth=world.kind.library.DigestAuth("me", "secret")) as http:
        responses = [await http.get(world.url("/status"), params=query) for _ in range(2)]
        responses.append(await http.post(world.url("/status"), params=query, content=b"body"))
    said = []
    for response in responses:
        parts = dict(part.split("=", 1) for part in echoed(response)["headers"]["authorization"].split(", "))
        said.append((sorted(parts), parts["uri"], parts["nc"], [each.status_code for each in response.history]))
    return said


@behaviour
async def auth_of_the_users_own(world: World) -> object:
    log: list[Any] = []

    class Own(world.kind.library.Auth):  # type: ignore[name-defined, misc]
        requires_request_body = True
        requires_response_body = True

        def auth_flow(self, request: Any) -> Iterator[Any]:
            request.headers["X-Digest"] = str(len(request.content))
            response = yield request
            log.append((response.status_code, len(response.content) > 0))
            request.headers["X-Token"] = "t"
            response = yield request
            log.append(echoed(response)["headers"]["x-token"])

    async with world.client() as http:
        response = await http.post(world.url(), content=b"four", auth=Own())
        return log, seen(response), len(response.history)


@behaviour
async def cookies(world: World) -> object:
    jar = [
        "Set-Cookie: session=7",
        "Set-Cookie: deep=1; Path=/echo/deep",
        "Set-Cookie: secret=1; Secure",
        "Set-Cookie: old=1; Max-Age=0",
        'Set-Cookie: quoted="a b"; HttpOnly; SameSite=Lax',
    ]
    async with world.client(cookies={"always": "1"}) as http:
        first = await http.get(world.url(), params={"header": jar}, cookies={"mine": "2"})
        answers = [
            echoed(await http.get(world.url(target, service))).get("headers", {}).get("cookie")
            for target, service in (("/echo", "orders"), ("/echo/deep/er", "orders"))
        ]
        http.client.cookies.clear()
        answers.append(echoed(await http.get(world.url()))["headers"].get("cookie"))
        return sorted(first.cookies.items()), first.headers.get_list("set-cookie"), answers
