"""A serving configuration over HTTP, from its models to the last answer: what `pressoir serve` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pressoir.errors import RecipeError
from pressoir.serving.config import EXTERNAL, ServingConfig, load, resolve
from pressoir.serving.http.app import create_app
from pressoir.serving.http.limits import HttpLimits
from pressoir.serving.http.server import listen, run
from pressoir.store.store import Store


def serve(
    config: ServingConfig | str | Path | dict[str, Any],
    host: str = "127.0.0.1",
    port: int = 5001,
    limits: HttpLimits | None = None,
    on_started: Callable[[str], None] | None = None,
) -> None:
    """Serve the tiers of `config` (or of the YAML file or the mapping of one) until SIGTERM or Ctrl-C.

    Port 0 takes a free one; `on_started` is called with the address when requests are taken, though models
    may still load.

    Raises:
        RecipeError: `config` is wrong, or the port is taken.
        PressoirError: a model is not there, is not what was deployed, or cannot be loaded.
    """
    parsed: ServingConfig = load(config)
    limits, store = limits or HttpLimits(), Store()
    if not parsed.resolved and any(tier.model.startswith(EXTERNAL) for tier in parsed.tiers.values()):
        raise RecipeError(
            f"{parsed.name} names models of the MLflow registry ({EXTERNAL}…), which the "
            "server cannot resolve; run `pressoir deploy` on its file and serve the deployed configuration"
        )
    listening = listen(host, port)  # before anything is hashed or loaded
    try:
        if not parsed.resolved:
            parsed = resolve(parsed, store)
        app = create_app(parsed, store, limits)
    except BaseException:
        listening.close()
        raise
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}"
    run(app, listening, limits, parsed.drain_timeout_s, lambda: on_started and on_started(address))
