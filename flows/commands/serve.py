"""`pressoir serve`: the tiers of a configuration over HTTP, with the comparison page at `/`."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from pressoir.config import examples, plain, validate
from pressoir.errors import RecipeError, RegistryError
from pressoir.flows.commands.merge import ManyValues
from pressoir.registry.registry import Registry
from pressoir.serving.http.limits import HttpLimits
from pressoir.store.store import Store
from pressoir.system.reader import exists

if TYPE_CHECKING:
    from pressoir.serving.config import ServingConfig


@click.command(cls=ManyValues)
@click.argument("config")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=5001,
    show_default=True,
    envvar="PRESSOIR_PORT",
    show_envvar=True,
    help="Port to listen on; 0 chooses a free port.",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="FIELD=VALUE …", help="Override a field of CONFIG."
)
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="NAME=VALUE …",
    help="Set a limit of the server, see docs/serving.md.",
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Another name of the server, such as a proxy's; its pages may send requests.",
)
@click.option("--insecure", is_flag=True, help="Listen to other machines without an API key.")
@click.option("-v", "--verbose", is_flag=True, help="Also show the log of the workers.")
def serve(
    config: str,
    host: str,
    port: int,
    overrides: tuple[str, ...],
    limits: tuple[str, ...],
    allowed_hosts: tuple[str, ...],
    insecure: bool,
    verbose: bool,
) -> None:
    """Serve the tiers of CONFIG: a YAML file, the name of a deployed one, or serving-demo.

    Ctrl-C or SIGTERM stops the server.

    One JSON line per request is written to standard output, all other messages to standard error. The server
    goes on when its standard output is closed.
    """
    from pressoir.serving.http.serve import serve as serve_tiers

    parsed = _configuration(config, overrides, Store())
    allowed = validate(HttpLimits, plain({}, limits, "--limit"), "--limit")
    _log(verbose)
    serve_tiers(
        parsed,
        host,
        port,
        allowed,
        lambda address: click.echo(f"{address}  Ctrl-C stops the server", err=True),
        insecure=insecure,
        allowed_hosts=allowed_hosts,
    )


def _configuration(config: str, overrides: tuple[str, ...], store: Store) -> ServingConfig:
    """Of a file, of a deployment, or of an example that comes with Pressoir, in this order."""
    from pressoir.serving.config import ServingConfig
    from pressoir.serving.deployment import deployed

    if exists(config) or Path(config).suffix in (".yaml", ".yml"):
        return ServingConfig.from_yaml(config, overrides)
    shipped = examples(ServingConfig.LABEL)
    try:
        found = deployed(config, Registry(store.home))
    except RegistryError as error:
        if config in shipped:
            return ServingConfig.from_yaml(config, overrides)
        raise RegistryError(f"{error}; examples are: {', '.join(shipped)}") from error
    if overrides:
        raise RecipeError(
            f"--set cannot change the deployed configuration {config!r}; edit its file and deploy it again"
        )
    return found


def _log(verbose: bool) -> None:
    """Requests to standard output, as they are; all else to standard error, with the time."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    logging.getLogger("pressoir").setLevel(logging.DEBUG if verbose else logging.INFO)
    access = logging.getLogger("pressoir.access")
    access.handlers, access.propagate = [_AccessHandler(sys.stdout)], False
    access.setLevel(logging.INFO)


class _AccessHandler(logging.StreamHandler[TextIO]):
    """Writes to standard output until nobody reads it any more, which is said once: the server goes on."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- logging's own name
        """Where the reader is gone, discard the rest; report other errors as usual."""
        if not isinstance(sys.exception(), BrokenPipeError):
            super().handleError(record)
            return
        logging.getLogger(record.name).removeHandler(self)
        logging.getLogger("pressoir").warning("standard output was closed; requests are no longer logged")
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)
