"""What exceptions say about endpoints, with real exceptions of the real libraries."""

import http.client
import io
import socket
import urllib.error

import aiohttp
import grpc
import httpx
import httpx2
import pytest
import requests
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from clientlb.classify import classify_code, classify_exception, classify_status
from clientlb.outcome import Cause, Outcome


class Status(grpc.RpcError):
    def __init__(self, code):
        self._code = code

    def code(self):
        return self._code


def of_requests(status):
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("bad", response=response)


def of_httpx(flavour, status):
    request = flavour.Request("GET", "http://h/")
    return flavour.HTTPStatusError("bad", request=request, response=flavour.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "outcome", "sent"),
    [
        (ConnectionRefusedError(), Outcome.RETRYABLE, False),
        (ConnectionResetError(), Outcome.RETRYABLE, True),
        (TimeoutError(), Outcome.RETRYABLE, True),
        (EOFError(), Outcome.RETRYABLE, True),
        (socket.gaierror(), Outcome.RETRYABLE, True),
        (http.client.RemoteDisconnected(), Outcome.RETRYABLE, True),
        (http.client.IncompleteRead(b""), Outcome.RETRYABLE, True),
        (urllib.error.URLError("refused"), Outcome.RETRYABLE, True),
        (urllib.error.HTTPError("u", 503, "busy", {}, io.BytesIO()), Outcome.RETRYABLE, True),
        (urllib.error.HTTPError("u", 500, "bug", {}, io.BytesIO()), Outcome.FAILURE, True),
        (urllib.error.HTTPError("u", 404, "gone", {}, io.BytesIO()), Outcome.SUCCESS, True),
        (requests.ConnectionError(), Outcome.RETRYABLE, True),
        (of_requests(404), Outcome.SUCCESS, True),
        (of_requests(502), Outcome.RETRYABLE, True),
        (httpx.ConnectError("x"), Outcome.RETRYABLE, False),
        (httpx2.ConnectError("x"), Outcome.RETRYABLE, False),
        (httpx.ReadTimeout("x"), Outcome.RETRYABLE, True),
        (httpx.PoolTimeout("x"), Outcome.IGNORED, True),
        (of_httpx(httpx, 500), Outcome.FAILURE, True),
        (of_httpx(httpx2, 404), Outcome.SUCCESS, True),
        (Status(grpc.StatusCode.UNAVAILABLE), Outcome.RETRYABLE, True),
        (Status(grpc.StatusCode.NOT_FOUND), Outcome.SUCCESS, True),
        (Status(grpc.StatusCode.INTERNAL), Outcome.FAILURE, True),
        (Status(grpc.StatusCode.CANCELLED), Outcome.IGNORED, True),
        (Status(None), Outcome.FAILURE, True),
        (grpc.RpcError(), Outcome.FAILURE, True),
        (FileNotFoundError(), Outcome.IGNORED, True),
        (PermissionError(), Outcome.IGNORED, True),
        (KeyError("k"), Outcome.IGNORED, True),
        (SystemExit(500), Outcome.IGNORED, True),
        (KeyboardInterrupt(), Outcome.IGNORED, True),
    ],
    ids=lambda value: getattr(value, "name", None) or type(value).__name__,
)
def test_exception(error, outcome, sent):
    verdict = classify_exception(error)
    assert (verdict.outcome, verdict.sent) == (outcome, sent)
    assert verdict.reason


@pytest.mark.parametrize("code", [code.name for code in grpc.StatusCode])
def test_every_grpc_code_has_a_verdict(code):
    assert classify_code(code).outcome in Outcome
    assert classify_code(code, frozenset({code})).outcome is Outcome.RETRYABLE


@pytest.mark.parametrize(
    ("verdict", "cause"),
    [
        (classify_exception(ConnectionRefusedError()), Cause.CONNECT),
        (classify_exception(ConnectionResetError()), Cause.APPLICATION),
        (classify_exception(TimeoutError()), Cause.APPLICATION),
        (classify_status(429), Cause.OVERLOAD),
        (classify_status(503), Cause.APPLICATION),
        (classify_status(500), Cause.APPLICATION),
        (classify_code("RESOURCE_EXHAUSTED"), Cause.OVERLOAD),
        (classify_code("UNAVAILABLE"), Cause.APPLICATION),
    ],
)
def test_kind_of_failure(verdict, cause):
    assert verdict.cause is cause


@pytest.mark.filterwarnings("error")
def test_the_status_of_aiohttp_is_read_without_its_warning():
    """Its exceptions warn whoever reads their `code`."""
    request = aiohttp.RequestInfo(URL("http://orders/"), "GET", CIMultiDictProxy(CIMultiDict()), URL("http://orders/"))
    verdict = classify_exception(aiohttp.ClientResponseError(request, (), status=503))
    assert (verdict.outcome, verdict.reason) == (Outcome.RETRYABLE, "503")
