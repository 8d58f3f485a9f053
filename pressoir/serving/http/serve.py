"""A serving configuration over HTTP, from its models to the last answer: what `pressoir serve` does."""

from __future__ import annotations

from collections.abc import Callable, Collection
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pressoir.errors import RecipeError
from pressoir.serving.config import API_KEY_VARIABLE, EXTERNAL, ServingConfig, load, resolve
from pressoir.serving.http.app import create_app
from pressoir.serving.http.limits import HttpLimits
from pressoir.serving.http.server import listen, run
from pressoir.serving.keys import Keys
from pressoir.store.store import Store

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def serve(
    config: ServingConfig | str | Path | dict[str, Any],
    host: str = "127.0.0.1",
    port: int = 5001,
    limits: HttpLimits | None = None,
    on_started: Callable[[str], None] | None = None,
    *,
    insecure: bool = False,
    allowed_hosts: Collection[str] = (),
) -> None:
    """Serve the tiers of `config` (or of the YAML file or the mapping of one) until SIGTERM or Ctrl-C.

    Port 0 takes a free one; `on_started` is called with the address when requests are taken, though models
    may still load. On an address that other machines reach, an API key (`PRESSOIR_API_KEY`) is required
    unless `insecure`. On this machine's own address the server answers by its names alone, and by
    `allowed_hosts`, whose pages may send it requests.

    Raises:
        RecipeError: `config` is wrong, the port is taken, or the address is open and no key is set.
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
    own = ip_address(listening.getsockname()[0]).is_loopback
    try:
        if not (own or insecure or Keys.read().users):
            raise RecipeError(
                f"on {host} anyone who reaches this machine may use the models: set {API_KEY_VARIABLE}, "
                "or start with --insecure"
            )
        if not parsed.resolved:
            parsed = resolve(parsed, store)
        hosts = {*LOOPBACK, host.strip("[]").lower()} if own else ()
        app = create_app(
            parsed, store, limits, hosts=hosts, trusted_hosts=[name.lower() for name in allowed_hosts]
        )
    except BaseException:
        listening.close()
        raise
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}"
    run(app, listening, limits, parsed.drain_timeout_s, lambda: on_started and on_started(address))
