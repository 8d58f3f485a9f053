"""A running server that a deployment switches to another configuration, and back."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

from pressoir.errors import PressoirError, RecipeError, RegistryError
from pressoir.registry.registry import Registry
from pressoir.serving import deployment
from pressoir.serving.client import Server
from pressoir.serving.config import ADMIN_KEY_VARIABLE, ServingConfig
from pressoir.serving.keys import Keys


@dataclass(frozen=True)
class ServerState:
    """What a server serves."""

    server: str
    config: ServingConfig | None
    """Where it tells, or the registry knows."""
    digests: Mapping[str, str]
    """Of its tiers."""


def check(server: str) -> None:
    """See, before any work, that a server is there and takes our key.

    Raises:
        RecipeError: the address or the key is wrong. UnreachableError, DeploymentError: it does not answer.
    """
    if not Keys.read().admins:
        raise RecipeError(
            f"{ADMIN_KEY_VARIABLE} is not set; set it to the administrator's key of the server, which is "
            "required to reload it"
        )
    with closing(Server(server)) as running:
        running.digests()


def look(server: str, name: str, registry: Registry) -> ServerState:
    """What a server serves now; where it does not tell, what was deployed as `name`, if it has these digests.

    Raises:
        UnreachableError, DeploymentError: it does not answer.
    """
    with closing(Server(server)) as running:
        digests = running.digests()
        return ServerState(server, running.config() or _deployed(name, registry, digests), digests)


def switch(config: ServingConfig, server: str) -> None:
    """Have a running server serve `config`, and load and ask all its tiers there.

    The files may be others where it runs, and it loads by itself only what it had loaded of a tier before.

    Raises:
        UnreachableError, DeploymentError: it does not answer, or a tier does not work there.
    """
    with closing(Server(server)) as running:
        running.reload(config)
        for name, tier in config.tiers.items():
            running.load(name, config.load_timeout_s)
            running.ask(name, tier)


def turn_back(before: ServerState) -> None:
    """Have a server serve again what it did, also where it is not known whether it has changed over.

    Raises:
        PressoirError: it has, and what it served is not known.
    """
    with closing(Server(before.server)) as running:
        if before.config is not None:
            running.reload(before.config)
        elif running.digests() != before.digests:
            raise PressoirError(
                "it serves the new configuration, and its previous one is unknown; restart it"
            )


def _deployed(name: str, registry: Registry, digests: Mapping[str, str]) -> ServingConfig | None:
    try:
        found = deployment.deployed(name, registry)
    except RegistryError:
        return None
    return found if {name: tier.digest for name, tier in found.tiers.items()} == digests else None
