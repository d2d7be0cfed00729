"""Active health checks: servers are asked how they are, beside the calls. `HealthOptions.check` turns them on.

General layout: `clientlb.health.checkup` decides what a check means and when the next one is due (pure); `checker` is
the one thread that asks; `net` is how over TCP and HTTP, `grpc` how over gRPC. Checks are in no figures of calls.
"""

from clientlb.checking.checker import Checker

__all__ = ["Checker"]
