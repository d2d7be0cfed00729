"""Services: the balancers of one registry by name. It joins discovery to balancers and owns both.

Clients and channels borrow it: closing them leaves it open. It may be used from many threads and event loops at once,
and in a forked child, where it watches anew.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Concatenate

from clientlb import events
from clientlb.aio import to_thread
from clientlb.balancer import Balancer
from clientlb.call import asking
from clientlb.checking import Checker
from clientlb.classify import classify_exception
from clientlb.decorator import Params, Return, balanced
from clientlb.discovery import Discovery, RemarkingResolver, Resolver, open_discovery
from clientlb.discovery.snapshot import SnapshotFiles, SnapshotKeeper
from clientlb.endpoint import Endpoint
from clientlb.errors import ClosedError, ConfigurationError, of_service
from clientlb.forks import survive_forks
from clientlb.options import CallKey, CallOptions, Options, Where
from clientlb.outcome import Verdict
from clientlb.require import require_callable
from clientlb.retry_options import RetryOptions
from clientlb.stats import ServiceStats
from clientlb.telemetry.logging import LoggingHook

_log = logging.getLogger("clientlb.services")


class Services:
    """Every service that one registry knows. `services["orders"]` is a `Balancer`.

    Args:
        discovery: A registry's URL, such as `consul://127.0.0.1:8500`, or a `Discovery` object, which stays the
            caller's: `close` closes only what was made from a URL.
        options: `Options` for all services, or a mapping from service name to `Options`; its key `"*"` is the default
            for services that it does not name.
        snapshots: A folder for the last good list of each service. A process that starts while the registry is down
            uses it until the registry is back (default: none; a call then waits for the registry).
        hooks: Receive every `events.Event`. None (default) logs them to the logger `clientlb.events`, which is silent
            until the program configures logging.
        clock: Seconds from a fixed point, never going back (default `time.monotonic`).
        rng: Source of all randomness (default: seeded by the system).

    Raises:
        ConfigurationError: The URL or an option is wrong.
    """

    def __init__(
        self,
        discovery: str | Discovery,
        *,
        options: Options | Mapping[str, Options] | None = None,
        snapshots: str | os.PathLike[str] | None = None,
        hooks: Iterable[events.EventHook] | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._url = discovery if isinstance(discovery, str) else None
        self._discovery = open_discovery(discovery)
        self._options = _options_by_service(options)
        self._keeper: SnapshotKeeper | None = None
        if snapshots is not None:
            self._keeper = SnapshotKeeper(SnapshotFiles(snapshots, str(self._discovery)))
        self._hooks = [LoggingHook()] if hooks is None else _hooks(hooks)
        require_callable("clock", clock, "a callable that returns seconds")
        self._clock = clock
        self._rng = rng
        self._lock = threading.Lock()
        self._balancers: dict[str, Balancer] = {}
        self._resolvers: dict[str, Resolver] = {}
        self._closed = False
        self._stale = False
        self._checker = Checker()
        survive_forks(self, Services._after_fork)

    def __getitem__(self, service: str) -> Balancer:
        """The balancer of a service; the first time, this begins to watch it.

        Raises:
            ClosedError: After `close`.
            ConfigurationError: The name is empty or no string.
        """
        balancer = self._balancers.get(service)
        if balancer is None or service not in self._resolvers:
            balancer = self._watch(service)
        return balancer

    def _watch(self, service: str) -> Balancer:
        _require_name(service)
        with self._lock:
            if self._closed:
                raise ClosedError(f"service {service!r}: the Services are closed")
            balancer = self._balancers.get(service)
            if balancer is None:
                balancer = self._balancers[service] = self._new_balancer(service)
            if service in self._resolvers:
                return balancer
            if self._stale and self._url is not None:
                # forked: the discovery belongs to the parent. Only now, for a fork hook must not read files
                self._discovery = open_discovery(self._url)
                self._stale = False
            resolver = self._resolvers[service] = self._discovery.resolver(service)
            balancer.remarks = _remarks_of(resolver)
        try:
            if self._keeper is not None and balancer.updated_at is None:
                self._keeper.fetch(balancer)
            resolver.start(balancer)
            self._checker.watch(balancer)
        except BaseException:
            with self._lock:
                self._resolvers.pop(service, None)  # the next call tries again
            _close(resolver)
            raise
        return balancer

    def _new_balancer(self, service: str) -> Balancer:
        return Balancer(
            service,
            self.options_of(service),
            source=str(self._discovery),
            emit=self._emit,
            keep=self._keep,
            clock=self._clock,
            rng=self._rng,
        )

    def _keep(self, balancer: Balancer) -> None:
        if self._keeper is not None:
            self._keeper.keep(balancer)

    def options_of(self, service: str) -> Options:
        """The options that a service has."""
        return self._options.get(service) or self._options["*"]

    @property
    def configured(self) -> frozenset[str]:
        """Names of the services that have options of their own."""
        return frozenset(self._options) - {"*"}

    def balanced(
        self,
        service: str,
        *,
        idempotent: bool = False,
        retry: RetryOptions | bool = True,
        key: CallKey | Callable[..., CallKey | None] | None = None,
        where: Where | Callable[..., Where | None] | None = None,
        deadline: float | None = None,
        attempt_timeout: float | None = None,
        classify: Callable[[BaseException], Verdict] = classify_exception,
    ) -> Callable[[Callable[Concatenate[Endpoint, Params], Return]], Callable[Params, Return]]:
        """Decorate a function or coroutine function that calls a service: its first argument becomes the endpoint.

        Args:
            service: Name of the service.
            idempotent: The function may safely run twice (default False: it is repeated only after failures that
                surely never reached a server).
            retry: Replaces the service's retry options; `False` turns retries off.
            key: Calls with the same key go to the same endpoint, if the policy is `Rendezvous` or `RingHash`. A value,
                or a callable that is given the arguments of each call, without the endpoint, and returns one:
                `key=lambda order_id: order_id`. Text, bytes or a whole number; None is no key.
            where: Metadata that the endpoint should have, if the policy is wrapped in `Filter`; a mapping, or a
                callable as for `key`.
            deadline: Seconds that the call may take, all attempts included (default: the service's); `math.inf` is no
                limit. A coroutine is cancelled then, with a `TimeoutError`. A function is not interrupted: no further
                attempt begins, and what it calls inherits what is left, which `clientlb.time_remaining()` says.
            attempt_timeout: The same for one attempt; a call that may be repeated is.
            classify: Says what an exception means for the endpoint (default: network trouble counts against it, every
                other exception is the caller's own).

        Raises:
            ConfigurationError: `service` is no name (`@services.balanced` without an argument), an option cannot be
                right, or what is decorated is no function.
        """
        _require_name(service)
        require_callable(
            f"service {service!r}: classify", classify, "a callable that turns an exception into a Verdict"
        )
        try:
            options = CallOptions(
                idempotent=idempotent, retry=retry, deadline=deadline, attempt_timeout=attempt_timeout
            )
        except ConfigurationError as error:
            raise of_service(service, error) from None
        return balanced(lambda: self[service], options, classify, asking(service, key, where))

    def stats(self) -> dict[str, ServiceStats]:
        """Figures of every service that was used, by name."""
        return {name: balancer.stats() for name, balancer in sorted(self._balancers.items())}

    def explain(self, picks: int = 5) -> str:
        """Say of every service that was used why each of its endpoints is picked or not: see `Balancer.explain`."""
        return "\n".join(balancer.explain(picks) for _, balancer in sorted(self._balancers.items()))

    def add_hook(self, hook: events.EventHook) -> None:
        """Send all further events to this hook as well."""
        with self._lock:
            self._hooks = [*self._hooks, hook]  # replaced, not changed: an event may be on its way

    def remove_hook(self, hook: events.EventHook) -> None:
        """Send no more events to this hook. Does nothing if it gets none."""
        with self._lock:
            self._hooks = [other for other in self._hooks if other != hook]

    def _emit(self, event: events.Event) -> None:
        if isinstance(event, events.EndpointsChanged):
            self._checker.changed(event.service)
        for hook in self._hooks:
            try:
                hook(event)
            except Exception:
                _log.exception("an event hook failed on %s", type(event).__name__)

    def close(self) -> None:
        """Stop watching. Idempotent. Calls that run finish; new ones raise `ClosedError`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            resolvers, self._resolvers = list(self._resolvers.values()), {}
        self._checker.close()
        if self._keeper is not None:
            self._keeper.close()  # before the balancers forget their lists
        for balancer in self._balancers.values():
            balancer.close()
        owned: list[Discovery | Resolver] = [*resolvers]
        if self._url is not None and not self._stale:
            owned.insert(0, self._discovery)
        for each in owned:
            _close(each)

    async def aclose(self) -> None:
        """`close()` for async code: the event loop goes on meanwhile."""
        await to_thread(self.close)

    def __enter__(self) -> Services:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Services:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Services {self._discovery}: {', '.join(sorted(self._balancers)) or 'none used yet'}>"

    def _after_fork(self) -> None:
        """In a forked child: the threads that watch are gone. Keep the lists, watch anew on the next use."""
        self._lock = threading.Lock()
        self._resolvers = {}  # dropped, not closed: closing would talk over the parent's connections
        self._stale = self._url is not None
        self._checker.after_fork()
        if self._keeper is not None:
            self._keeper.after_fork()
        for balancer in self._balancers.values():
            balancer.after_fork()


def _remarks_of(resolver: Resolver) -> Callable[[], list[str]]:
    """What the resolver has to say about its list, if it is one that does."""
    if not isinstance(resolver, RemarkingResolver):
        return list

    def remarks() -> list[str]:
        try:
            return resolver.remarks()
        except Exception:
            _log.exception("the remarks of %r failed", resolver)
            return []

    return remarks


def _close(each: Discovery | Resolver) -> None:
    """Close something of which one failure must not keep the others open."""
    try:
        each.close()
    except Exception:
        _log.exception("%r could not be closed", each)


def _hooks(hooks: Iterable[events.EventHook]) -> list[events.EventHook]:
    if not isinstance(hooks, Iterable):
        raise ConfigurationError(f"hooks is {hooks!r}; give a list of callables that take an event")
    listed = list(hooks)
    for hook in listed:
        require_callable("hooks has an entry that", hook, "callables that take an event")
    return listed


def _require_name(service: object) -> None:
    if not isinstance(service, str) or not service:
        raise ConfigurationError(f"service name is {service!r}; give a non-empty string")


def require_services(value: object) -> None:
    """Refuse what is no `Services`, such as the URL that it is made from."""
    if not isinstance(value, Services):
        raise ConfigurationError(f"services is {value!r}; give clientlb.Services(URL)")


def _options_by_service(options: Options | Mapping[str, Options] | None) -> dict[str, Options]:
    if options is None:
        return {"*": Options()}
    if isinstance(options, Options):
        return {"*": options}
    if not isinstance(options, Mapping):
        raise ConfigurationError(f"options is {options!r}; give Options(...) or a mapping of service name to Options")
    for service, value in options.items():
        if not isinstance(service, str) or not service:
            raise ConfigurationError(f"options has the key {service!r}; give names of services, or '*' for all others")
        if not isinstance(value, Options):
            raise ConfigurationError(f"options[{service!r}] is {value!r}; give Options(...)")
    return {"*": Options(), **options}
