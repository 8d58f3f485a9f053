"""Prefect flows: what runs, in what order. No arithmetic, no file formats.

A recipe or another configuration enters; registered artifacts, and a run in Prefect and MLflow, leave.
The package is `pressoir.flows`; in the repository it can also be imported as `flows`, and is the same.
"""

from pressoir import tasks as tasks  # before Prefect and MLflow: it turns their telemetry off
from pressoir.aliases import stand_for

if __name__ == "flows":
    stand_for(__name__, "pressoir.flows")
