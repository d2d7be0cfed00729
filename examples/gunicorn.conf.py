"""What gunicorn does with flask_app.py and django_project: its master registers, once for all workers.

gunicorn reads this file by itself if it is started in this folder. On SIGTERM the master leaves the registry, its
workers serve on until the clients know, and then gunicorn ends as ever.
"""

import os

from clientlb.registration.gunicorn import hooks

port = int(os.environ.get("PORT", "8000"))
registry = os.environ.get("REGISTRY", "dir:///tmp/clientlb-examples")

bind = f"0.0.0.0:{port}"
workers = 2
preload_app = True
when_ready, on_exit = hooks("orders", port=port, to=registry)
