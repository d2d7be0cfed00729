"""The ways to watch a service that `discovery.py` compares: clientlb's, kazoo's recipes and python-consul's query.

All but clientlb's do less: no decoding, no balancer, just the bytes of every instance.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import common
import consul
from kazoo.client import KazooClient
from kazoo.recipe.cache import TreeCache, TreeEvent

from clientlb import Services, events

PATIENCE = 120.0
WINDOW = 100
"""Requests of kazoo's under way at once: at some 270 it blocks."""


class Way:
    """One way to watch a service. Subclasses tell `note` the size of every list.

    Attributes:
        size: Of the last list.
        noted_at: When that was, in seconds of the monotonic clock.
    """

    def __init__(self) -> None:
        self.size = -1
        self.noted_at = 0.0
        self._changed = threading.Condition()

    def note(self, size: int) -> None:
        with self._changed:
            if size != self.size:
                self.size, self.noted_at = size, time.monotonic()
                self._changed.notify_all()

    def wait(self, size: int) -> float:
        """Wait for a list of this size; when it was there."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.size == size, PATIENCE):
                common.refuse(f"{type(self).__name__} has {self.size} instances, not {size}, after {PATIENCE:g} s")
            return self.noted_at

    def close(self) -> None:
        """Stop watching."""


class Clientlb(Way):
    def __init__(self, url: str, service: str) -> None:
        super().__init__()
        self._services = Services(url, hooks=[self._hear])
        self.note(len(self._services[service].endpoints))

    def _hear(self, event: events.Event) -> None:
        if isinstance(event, events.EndpointsChanged):
            self.note(event.size)

    def close(self) -> None:
        self._services.close()


class ChildrenWatch(Way):
    """kazoo's recipe, with a get for each new child. It does not hear of changed data."""

    def __init__(self, hosts: str, path: str) -> None:
        super().__init__()
        self._path = path
        self._data: dict[str, bytes] = {}
        self._client = KazooClient(hosts)
        self._client.start()
        self._client.ChildrenWatch(path, self._hear)

    def _hear(self, children: list[str]) -> None:
        known = self._data
        new = [name for name in children if name not in known]
        data = {name: known[name] for name in children if name in known}
        for start in range(0, len(new), WINDOW):
            asked = [(name, self._client.get_async(f"{self._path}/{name}")) for name in new[start : start + WINDOW]]
            data |= {name: answer.get()[0] for name, answer in asked}
        self._data = data
        self.note(len(data))

    def close(self) -> None:
        self._client.stop()
        self._client.close()


class KazooTreeCache(Way):
    """kazoo's recipe."""

    def __init__(self, hosts: str, path: str) -> None:
        super().__init__()
        self._path = path
        self._client = KazooClient(hosts)
        self._client.start()
        self._cache = TreeCache(self._client, path)
        self._complete = False
        self._cache.listen(self._hear)
        self._cache.start()

    def _hear(self, event: Any) -> None:
        if event.event_type == TreeEvent.INITIALIZED:
            self._complete = True
        if self._complete:
            self.note(len(self._cache.get_children(self._path)))

    def close(self) -> None:
        self._cache.close()
        self._client.stop()
        self._client.close()


class PythonConsul(Way):
    """python-consul's blocking query, as its documentation shows it."""

    def __init__(self, port: int, service: str) -> None:
        super().__init__()
        self._consul = consul.Consul(port=port)
        self._service = service
        self._closed = False
        self._instances: list[dict[str, Any]] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        index = None
        while not self._closed:
            index, self._instances = self._consul.health.service(
                self._service, index=index, wait="2s" if index else None, passing=True
            )
            self.note(len(self._instances))

    def close(self) -> None:
        self._closed = True
