import os

SECRET_KEY = os.environ.get("SECRET_KEY", "only for the example")
ALLOWED_HOSTS = ["*"]  # clients that know the server by its name send that
ROOT_URLCONF = "django_project.orders"
INSTALLED_APPS = ["django_project.orders.OrdersConfig"]
USE_TZ = True

REGISTRY = os.environ.get("REGISTRY", "dir:///tmp/clientlb-examples")
