"""A FastAPI application that is found by its name, `orders`, and asks another service, `inventory`, by its name.

    pip install 'clientlb[httpx]' fastapi uvicorn
    PORT=8000 REGISTRY=consul://127.0.0.1:8500 uvicorn fastapi_app:app --host 0.0.0.0 --port 8000

On SIGTERM it leaves the registry, serves on until its clients know, finishes what it does, and closes its clients.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypedDict

import httpx
from fastapi import Depends, FastAPI, HTTPException, Request

from clientlb import Services
from clientlb.httpx import AsyncClient
from clientlb.registration.asgi import Registered

REGISTRY = os.environ.get("REGISTRY", "dir:///tmp/clientlb-examples")
PORT = int(os.environ.get("PORT", "8000"))


class State(TypedDict):
    http: AsyncClient


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[State]:
    async with Services(REGISTRY) as services, AsyncClient(services, timeout=2.0) as http:
        yield {"http": http}


app = FastAPI(lifespan=lifespan)
app.add_middleware(Registered, service="orders", port=PORT, to=REGISTRY, readiness="/ready")


def client(request: Request) -> AsyncClient:
    return request.state.http


@app.get("/orders/{order_id}")
async def order(order_id: int, http: Annotated[AsyncClient, Depends(client)]) -> dict[str, Any]:
    try:
        response = await http.get(f"http://inventory/items/{order_id}")
        response.raise_for_status()
    except httpx.HTTPError as error:
        raise HTTPException(502, f"inventory: {error}") from error
    return {"order": order_id, "item": response.text}
