"""Prequal's probes: a client asks servers how loaded they are, and servers answer, over HTTP or gRPC.

    probe = clientlb.probing.HttpProbe()                          # or clientlb.probing.grpc.GrpcProbe()
    Options(policy=partial(Prequal, probe))

A server counts its requests and answers the question: `clientlb.probing.asgi.Probed` and `clientlb.probing.wsgi.Probed`
around an application, `clientlb.probing.grpc.LoadInterceptor` and `AioLoadInterceptor` for gRPC, and a `LoadMeter` for
anything else.

General layout: `load` is what a server knows of itself (pure) and `meter` how it counts; `asker` the threads that ask;
`http`, `grpc`, `asgi` and `wsgi` are the ways there and back.
"""

from clientlb.probing.http import PATH, HttpProbe
from clientlb.probing.load import Load, LoadEstimate
from clientlb.probing.meter import LoadMeter, Running

__all__ = ["PATH", "HttpProbe", "Load", "LoadEstimate", "LoadMeter", "Running"]
