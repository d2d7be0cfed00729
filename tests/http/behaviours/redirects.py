"""Where redirects lead: within a service, to another one, to an address."""

from __future__ import annotations

from typing import Any

from tests.http.behaviours import World, behaviour, echoed, error, seen
from tests.http.conftest import settle


def to(location: str, status: int = 302) -> dict[str, str]:
    return {"status": str(status), "header": f"Location: {location}"}


@behaviour
async def redirects(world: World) -> object:
    locations = ["/echo?1", "echo?2", "?at=none", "//" + world.url("/echo?3").split("//")[1], world.url("/echo?4")]
    async with world.client(follow_redirects=True) as http:
        answers = [await http.get(world.url("/status#part"), params=to(each)) for each in locations]
    return [(str(each.url), echoed(each)["target"], [str(hop.url) for hop in each.history]) for each in answers]


@behaviour
async def redirects_to_another_service(world: World) -> object:
    arguments: dict[str, Any] = {"auth": ("me", "secret"), "cookies": {"c": "1"}, "headers": {"X-Own": "1"}}
    async with world.client(follow_redirects=True, **arguments) as http:
        response = await http.get(world.url("/status"), params=to(world.url("/echo", "payments")))
    return seen(response)


@behaviour
async def redirects_to_an_address(world: World) -> object:
    address = world.addresses["orders"]
    async with world.client(follow_redirects=True, auth=("me", "secret")) as http:
        response = await http.get(world.url("/status", "payments"), params=to(f"http://{address}/echo"))
    return str(response.url), sorted(echoed(response)["headers"]), echoed(response)["headers"]["host"]


@behaviour
async def methods_after_a_redirect(world: World) -> object:
    async with world.client(follow_redirects=True) as http:
        return [
            seen(await http.request(method, world.url("/status"), params=to("/echo", status), content=b"body"))
            for status in (301, 302, 303, 307, 308)
            for method in ("POST", "PUT", "DELETE", "HEAD")
        ]


@behaviour
async def a_stream_cannot_be_redirected(world: World) -> object:
    async with world.client(follow_redirects=True) as http:
        kept, body = to("/echo", 307), world.kind.body(b"one", b"two")
        failed = await error(http.post(world.url("/status"), params=kept, content=body))
        return failed, seen(await http.get(world.url()))


@behaviour
async def redirects_step_by_step(world: World) -> object:
    async with world.client() as http:
        response = await http.get(world.url("/status"), params=to("/status?status=200"))
        following = response.next_request
        return response.has_redirect_location, str(following.url), seen(await settle(http.client.send(following)))[0]


@behaviour
async def redirects_without_end(world: World) -> object:
    async with world.client(follow_redirects=True, max_redirects=3) as http:
        around = to("/status?status=302&header=Location:%20/status")
        endless = "/status?status=302&header=Location:%20%3Fstatus%3D302%26header%3DLocation:"
        failed = await error(http.get(world.url(endless)))
        return failed, seen(await http.get(world.url("/status"), params=around))[0]


@behaviour
async def redirects_to_nonsense(world: World) -> object:
    async with world.client(follow_redirects=True) as http:
        return [
            await error(http.get(world.url("/status"), params=to(location)))
            for location in ("http://[::bad/", "ftp://orders/", "http://orders:x/")
        ]


@behaviour
async def cookies_over_a_redirect(world: World) -> object:
    query: dict[str, Any] = {"status": "302", "header": ["Location: /echo", "Set-Cookie: session=7"]}
    async with world.client(follow_redirects=True) as http:
        response = await http.get(world.url("/status"), params=query)
        return echoed(response)["headers"].get("cookie"), list(http.client.cookies)
