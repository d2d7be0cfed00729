"""The application: one client for the whole process, and a view that calls with it."""

import atexit

import httpx
from django.apps import AppConfig, apps
from django.conf import settings
from django.http import HttpRequest, JsonResponse
from django.urls import path

from clientlb import Services
from clientlb.httpx import Client


class OrdersConfig(AppConfig):
    name = "django_project"
    label = "orders"

    def ready(self) -> None:
        # nothing is watched before the first call, so this costs management commands nothing; it may also be before a
        # fork: each worker watches the registry itself and opens its own connections
        services = Services(settings.REGISTRY)
        self.http = Client(services, timeout=2.0)
        atexit.register(services.close)
        atexit.register(self.http.close)  # the last one first


def order(request: HttpRequest, order_id: int) -> JsonResponse:
    try:
        response = apps.get_app_config("orders").http.get(f"http://inventory/items/{order_id}")
        response.raise_for_status()
    except httpx.HTTPError as error:
        return JsonResponse({"error": f"inventory: {error}"}, status=502)
    return JsonResponse({"order": order_id, "item": response.text})


urlpatterns = [path("orders/<int:order_id>", order)]
