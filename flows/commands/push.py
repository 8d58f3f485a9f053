"""`pressoir push`: a compressed model and its card on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape

from pressoir.flows.commands.terminal import console


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.argument("repo_id")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--revision", metavar="BRANCH", help="Branch to push to; created if missing [default: main].")
@click.option("--token", envvar="HF_TOKEN", help="Token that may write [default: HF_TOKEN, or the login].")
def push(folder: Path, repo_id: str, private: bool, revision: str | None, token: str | None) -> None:
    """Upload the model in FOLDER to the repository REPO_ID (user/name) of the Hugging Face hub.

    FOLDER is what `pressoir compress --output` wrote, or its `model` folder. Only the model's files and its
    card are sent. The repository is created if it does not exist. HF_ENDPOINT names another hub.
    """
    from pressoir.publishing import push as publishing

    pushed = publishing.push(folder, repo_id, token=token, private=private, revision=revision)
    console.print(
        escape(f"pushed {pushed.files} files, {pushed.size_bytes / 1e6:.1f} MB: {pushed.url}"), soft_wrap=True
    )
