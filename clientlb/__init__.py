"""clientlb: call a service instead of a server.

General layout, from the bottom up; imports point down only (`tests/test_layers.py`):

    endpoint outcome errors events options   values; registries and telemetry see nothing else
    policy health retry                      pure decisions: who is next, who may be tried, when again
    node balancer pick                       one service: its endpoints, its one lock, its one clock
    call drive decorator                     the life of one call, without I/O, and the loops that drive it
    discovery registration                   edges: who exists, and how to be found
    services                                 balancers by name, fed by a registry
    httpx httpx2 grpc telemetry cli          edges: import what you need

This module imports none of httpx, grpc, kazoo, consul and prometheus_client, and the rest of clientlb when it is used.
"""

import importlib as _importlib
import logging as _logging
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from clientlb import registration
    from clientlb.balancer import Balancer
    from clientlb.check_options import GrpcCheck, HttpCheck, TcpCheck
    from clientlb.config import load_options
    from clientlb.deadlines import deadline, time_remaining
    from clientlb.endpoint import Endpoint
    from clientlb.errors import (
        ClientLBError,
        ClosedError,
        ConfigurationError,
        DeadlineExceededError,
        DiscoveryError,
        InvalidEndpointError,
        NoEndpointsError,
        NotSentError,
        RegistrationError,
        ThrottledError,
    )
    from clientlb.health_options import HealthOptions, OutlierOptions, RatioOptions, SlowOptions
    from clientlb.options import CallOptions, GuardOptions, JournalOptions, Options, ThrottleOptions
    from clientlb.outcome import Cause, Outcome, Verdict
    from clientlb.pick import Pick
    from clientlb.retry_options import BudgetOptions, HedgeOptions, RetryOptions
    from clientlb.services import Services
    from clientlb.stats import EndpointStats, ServiceStats
    from clientlb.trace import Trace, Tried

__version__ = "0.1.0"

_logging.getLogger("clientlb").addHandler(_logging.NullHandler())  # silent, until the program configures logging

__all__ = [
    "Balancer",
    "BudgetOptions",
    "CallOptions",
    "Cause",
    "ClientLBError",
    "ClosedError",
    "ConfigurationError",
    "DeadlineExceededError",
    "DiscoveryError",
    "Endpoint",
    "EndpointStats",
    "GrpcCheck",
    "GuardOptions",
    "HealthOptions",
    "HedgeOptions",
    "HttpCheck",
    "InvalidEndpointError",
    "JournalOptions",
    "NoEndpointsError",
    "NotSentError",
    "Options",
    "Outcome",
    "OutlierOptions",
    "Pick",
    "RatioOptions",
    "RegistrationError",
    "RetryOptions",
    "ServiceStats",
    "Services",
    "SlowOptions",
    "TcpCheck",
    "ThrottleOptions",
    "ThrottledError",
    "Trace",
    "Tried",
    "Verdict",
    "deadline",
    "load_options",
    "registration",
    "time_remaining",
]

# A public name brings its module when it is first used, so that importing clientlb costs next to nothing.
_HOMES = {
    "balancer": ("Balancer",),
    "check_options": ("GrpcCheck", "HttpCheck", "TcpCheck"),
    "config": ("load_options",),
    "deadlines": ("deadline", "time_remaining"),
    "endpoint": ("Endpoint",),
    "errors": (
        "ClientLBError",
        "ClosedError",
        "ConfigurationError",
        "DeadlineExceededError",
        "DiscoveryError",
        "InvalidEndpointError",
        "NoEndpointsError",
        "NotSentError",
        "RegistrationError",
        "ThrottledError",
    ),
    "health_options": ("HealthOptions", "OutlierOptions", "RatioOptions", "SlowOptions"),
    "options": ("CallOptions", "GuardOptions", "JournalOptions", "Options", "ThrottleOptions"),
    "outcome": ("Cause", "Outcome", "Verdict"),
    "pick": ("Pick",),
    "retry_options": ("BudgetOptions", "HedgeOptions", "RetryOptions"),
    "services": ("Services",),
    "stats": ("EndpointStats", "ServiceStats"),
    "trace": ("Trace", "Tried"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
_ROOMS = {*_HOMES, "discovery", "events", "policy", "registration", "telemetry"}


def __getattr__(name: str) -> object:
    """Load a public name, or one of the modules that were always there (PEP 562)."""
    if name in _HOME:
        value = globals()[name] = getattr(_importlib.import_module(f"clientlb.{_HOME[name]}"), name)
        return value
    if name in _ROOMS:
        return _importlib.import_module(f"clientlb.{name}")
    raise AttributeError(f"module 'clientlb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
