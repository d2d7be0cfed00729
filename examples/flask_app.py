"""A Flask application that asks the service `inventory` by its name. gunicorn.conf.py registers it as `orders`.

    pip install 'clientlb[httpx]' flask gunicorn
    PORT=8000 REGISTRY=consul://127.0.0.1:8500 gunicorn 'flask_app:create_app()'

The client may be made before gunicorn forks its workers (`preload_app`) or in each of them; clientlb is right with
both. A forked worker watches the registry itself and opens its own connections.
"""

import atexit
import os

import httpx
from flask import Flask, abort

from clientlb import Services
from clientlb.httpx import Client

REGISTRY = os.environ.get("REGISTRY", "dir:///tmp/clientlb-examples")


def create_app() -> Flask:
    app = Flask(__name__)
    services = Services(REGISTRY)
    http = Client(services, timeout=2.0)
    atexit.register(services.close)
    atexit.register(http.close)  # the last one first

    @app.get("/orders/<int:order_id>")
    def order(order_id: int):
        try:
            response = http.get(f"http://inventory/items/{order_id}")
            response.raise_for_status()
        except httpx.HTTPError as error:
            abort(502, f"inventory: {error}")
        return {"order": order_id, "item": response.text}

    return app
