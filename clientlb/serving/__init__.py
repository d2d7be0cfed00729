"""For servers that make calls while they serve one: the calls inherit the deadline of the call that is served.

    asgi    `DeadlineMiddleware` for FastAPI, Starlette, Django, Quart …
    wsgi    `DeadlineMiddleware` for Flask, Django, Bottle …

gRPC tells servers the deadline by itself: see `clientlb.grpc.DeadlineInterceptor`.
"""

from clientlb.serving.header import DEADLINE_HEADER

__all__ = ["DEADLINE_HEADER"]
