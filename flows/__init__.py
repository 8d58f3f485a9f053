"""Prefect flows: what runs, in what order. No arithmetic, no file formats.

A recipe or another configuration enters; registered artifacts, and a run in Prefect and MLflow, leave.
"""

import tasks as tasks  # before Prefect and MLflow: it turns their telemetry off
