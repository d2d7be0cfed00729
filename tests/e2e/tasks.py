"""A celery application whose one task calls services, as its main process did before it forked the workers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery


def celery_in(folder: Path) -> Celery:
    """An application whose messages and results are files in this folder."""
    for name in ("messages", "processed", "results"):
        (folder / name).mkdir(exist_ok=True)
    app = Celery("tests.e2e.tasks", broker="filesystem://", backend=f"file://{folder}/results")
    messages, processed = str(folder / "messages"), str(folder / "processed")
    app.conf.broker_transport_options = {
        "data_folder_in": messages,
        "data_folder_out": messages,
        "processed_folder": processed,
        "control_folder": str(folder / "control"),
        "store_processed": False,
        "polling_interval": 0.05,
    }
    app.conf.worker_prefetch_multiplier = 1
    app.conf.broker_connection_retry_on_startup = True
    return app


if "CELERY_FOLDER" in os.environ:
    from tests.e2e.apps import busy

    app = celery_in(Path(os.environ["CELERY_FOLDER"]))

    @app.task(name="answer")
    def answer() -> dict[str, Any]:
        return busy.answer()
