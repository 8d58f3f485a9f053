"""Find a model: the only task that is tried again, since only the hub may work a minute later."""

from __future__ import annotations

import os
from typing import Any

from pressoir.errors import UnreachableError
from pressoir.pipeline.sources import Sources
from pressoir.sources.resolve import Source
from pressoir.tasks.stage import stage_task


def worth_retrying(task: Any, task_run: Any, state: Any) -> bool:
    """Whether the hub did not answer, and is not switched off by HF_HUB_OFFLINE."""
    return not os.environ.get("HF_HUB_OFFLINE") and isinstance(state.data, UnreachableError)


@stage_task(
    name="fetch",
    task_run_name="fetch {reference}",
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=worth_retrying,
)
def fetch(reference: str, sources: Sources) -> Source:
    """Find the model `reference`, download it where needed, and check that it is whole and safe."""
    return sources.model(reference)
