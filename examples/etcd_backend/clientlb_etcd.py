"""etcd for clientlb: a complete backend for discovery and registration, in one file, to read and to copy.

    services = clientlb.Services("etcd://127.0.0.1:2379")
    clientlb.registration.register("orders", port=8080, to="etcd://127.0.0.1:2379")

What it keeps in etcd: `services/<service>/<instance id>` with the instance as JSON, attached to a lease, so that etcd
removes it when its owner stops renewing. It speaks etcd's HTTP gateway (`/v3/...`, JSON, keys and values in base64).
"""

from __future__ import annotations

import base64
import json
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, unquote

import httpx

from clientlb.discovery import Listener
from clientlb.discovery.decode import InstanceDecoder, encode_instance
from clientlb.discovery.feed import Feed
from clientlb.discovery.url import redact, split_url
from clientlb.endpoint import Endpoint
from clientlb.errors import ClosedError, ConfigurationError, DiscoveryError, RegistrationError

REQUEST_TIMEOUT = 3.0
LONGEST_SILENCE = 30.0  # a watch that hears nothing for so long makes sure that its connection is still alive
LONGEST_PAUSE = 5.0


def address_of(url: str) -> tuple[str, int]:
    """Read `etcd://HOST:PORT`. A wrong URL is a ConfigurationError, which does not repeat a password in it."""
    parts, _ = split_url(url)
    if not parts.hostname or "@" in parts.netloc or parts.path.strip("/"):
        raise ConfigurationError(f"{redact(url)!r}: etcd is etcd://HOST:PORT, such as etcd://127.0.0.1:2379")
    try:
        return parts.hostname, parts.port or 2379
    except ValueError as error:
        raise ConfigurationError(f"{redact(url)!r}: {error}") from None


def folder_of(service: str) -> str:
    """Where the instances of a service are. Quoted, so that no name reaches into the folder of another."""
    return f"services/{quote(service, safe='')}/"


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Gateway:
    """etcd's HTTP interface: one POST per call. Raises httpx.HTTPError when there is no good answer."""

    def __init__(self, address: tuple[str, int]) -> None:
        host, port = address
        host = f"[{host}]" if ":" in host else host
        # trust_env=False: a proxy that the environment names is for the internet, not for the registry
        self.http = httpx.Client(base_url=f"http://{host}:{port}/v3", timeout=REQUEST_TIMEOUT, trust_env=False)

    def call(self, path: str, **body: Any) -> dict[str, Any]:
        answer = self.http.post(path, json=body).raise_for_status().json()
        return answer if isinstance(answer, dict) else {}


# --- discovery -------------------------------------------------------------------------------------------------------


class EtcdDiscovery:
    """What the scheme `etcd` stands for. Making one, or a resolver, does no I/O: that begins with `start`."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address

    @classmethod
    def from_url(cls, url: str) -> EtcdDiscovery:
        return cls(address_of(url))

    def resolver(self, service: str) -> EtcdResolver:
        return EtcdResolver(self, service)

    def close(self) -> None:
        """The resolvers share nothing, so there is nothing to release."""

    def __str__(self) -> str:
        return "etcd://{}:{}".format(*self.address)


class EtcdResolver:
    """Watches one service, on one daemon thread with one connection."""

    def __init__(self, discovery: EtcdDiscovery, service: str) -> None:
        self._discovery = discovery
        self._folder = folder_of(service)
        self._name = f"{service} in {discovery}"
        self._closed = threading.Event()
        self._feed: Feed | None = None
        self._stream: socket.socket | None = None
        self._pid = 0

    def start(self, listener: Listener) -> None:
        if self._closed.is_set():
            raise ClosedError(f"the watch of {self._name} was closed")
        # The feed keeps our duties to the listener: no list twice, no stream of equal errors, silence after close().
        self._feed = Feed(listener, self._name)
        self._pid = os.getpid()
        threading.Thread(
            target=self._run, args=(self._feed,), name=f"clientlb-etcd-{self._folder}", daemon=True
        ).start()

    def close(self) -> None:
        self._closed.set()
        if self._feed is not None:
            self._feed.close()
        # The thread may wait in recv() for a long time. A shutdown wakes it; but not from a forked child, where the
        # connection is still the parent's.
        if self._stream is not None and self._pid == os.getpid():
            try:
                self._stream.shutdown(socket.SHUT_RDWR)
            except OSError:  # it was closed already
                pass

    def _run(self, feed: Feed) -> None:
        decoder = InstanceDecoder(self._name)  # leaves a bad instance out, with one line in the log
        gateway = Gateway(self._discovery.address)
        pause = 0.1
        with gateway.http:
            while not self._closed.is_set():
                try:
                    for instances in self._lists(gateway):
                        feed.update(decoder.decode_all(instances))
                        pause = 0.1
                    self._closed.wait(pause)  # etcd ended the watch; if it does so again and again, be no burden
                except httpx.ReadTimeout:
                    pass  # silence; reading everything again says whether etcd is still there
                except Exception as error:  # whatever it is: the thread lives on, and the last good list stays
                    feed.error(DiscoveryError(f"{self._discovery}: {error or type(error).__name__}"))
                    self._closed.wait(pause * random.uniform(0.5, 1.0))
                    pause = min(2 * pause, LONGEST_PAUSE)

    def _lists(self, gateway: Gateway) -> Iterator[dict[str, bytes]]:
        """The complete list now, and again after every change, until the watch ends. etcd numbers its changes, so
        the watch continues exactly where the list ends: nothing is lost in between."""
        everything = {"key": encoded(self._folder), "range_end": encoded(self._folder[:-1] + "0")}  # "0" follows "/"
        try:
            answer = gateway.call("/kv/range", **everything)
        except httpx.ReadTimeout as error:
            raise DiscoveryError(f"no answer within {REQUEST_TIMEOUT:g} s") from error
        instances = dict(map(self._instance, answer.get("kvs", ())))
        yield instances
        request = {"create_request": everything | {"start_revision": int(answer["header"]["revision"]) + 1}}
        timeout = httpx.Timeout(REQUEST_TIMEOUT, read=LONGEST_SILENCE)
        with gateway.http.stream("POST", "/watch", json=request, timeout=timeout) as news:
            news.raise_for_status()
            self._stream = news.extensions["network_stream"].get_extra_info("socket")
            for line in news.iter_lines():
                result = json.loads(line).get("result", {})
                if self._closed.is_set() or result.get("canceled"):  # the latter: our place in history was compacted
                    return
                for event in result.get("events", ()):
                    id, data = self._instance(event["kv"])
                    if event.get("type") == "DELETE":
                        instances.pop(id, None)
                    else:
                        instances[id] = data
                yield instances

    def _instance(self, pair: dict[str, str]) -> tuple[str, bytes]:
        key = base64.b64decode(pair["key"]).decode(errors="replace")
        return unquote(key.removeprefix(self._folder)), base64.b64decode(pair.get("value", ""))


# --- registration ----------------------------------------------------------------------------------------------------


class EtcdRegistrar:
    """Announces servers. clientlb calls `announce` every third of `ttl`, and soon again after an exception."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._gateway = Gateway(address)
        self._leases: dict[str, str] = {}

    @classmethod
    def from_url(cls, url: str) -> EtcdRegistrar:
        return cls(address_of(url))

    def attach(self, wake: Callable[[], None]) -> None:
        """We hold no connection whose end could be news."""

    def detach(self, wake: Callable[[], None]) -> None:
        """As `attach`."""

    def announce(self, service: str, endpoint: Endpoint, ttl: float) -> None:
        key = folder_of(service) + quote(endpoint.id, safe="")
        try:
            if not self._renewed(key):
                # Only under a new lease is there something to write. A lease that ended took its key with it.
                lease = self._gateway.call("/lease/grant", TTL=max(1, round(ttl)))["ID"]
                value = base64.b64encode(encode_instance(service, endpoint)).decode()
                self._gateway.call("/kv/put", key=encoded(key), value=value, lease=lease)
                self._leases[key] = lease
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise RegistrationError(f"{self}: {error or type(error).__name__}") from error

    def withdraw(self, service: str, endpoint: Endpoint) -> None:
        key = folder_of(service) + quote(endpoint.id, safe="")
        try:
            self._gateway.call("/kv/deleterange", key=encoded(key))
        except (httpx.HTTPError, ValueError) as error:
            raise RegistrationError(f"{self}: {error or type(error).__name__}") from error
        self._leases.pop(key, None)  # it ends by itself

    def close(self) -> None:
        self._gateway.http.close()

    def default_host(self) -> str:
        """The address from which this machine would speak to etcd. A UDP socket finds out without sending anything."""
        with socket.socket(socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(self._address)
            return str(probe.getsockname()[0])

    def __str__(self) -> str:
        return "etcd://{}:{}".format(*self._address)

    def _renewed(self, key: str) -> bool:
        lease = self._leases.get(key)
        return lease is not None and "TTL" in self._gateway.call("/lease/keepalive", ID=lease).get("result", {})
