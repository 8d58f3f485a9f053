"""Prefect flows: what runs, in what order. No arithmetic, no file formats."""

import tasks as tasks  # before Prefect and MLflow: it turns their telemetry off
