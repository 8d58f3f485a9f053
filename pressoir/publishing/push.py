"""Upload a model folder with its card to the Hugging Face hub, by `huggingface_hub`."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pressoir.errors import SourceError, UnreachableError
from pressoir.formats.folder import CARD, check_model_folder, model_files
from pressoir.system import reader
from pressoir.system.addresses import without_password

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_FOR_PEOPLE = ("SHARDING_INFO.md", "LICENSE*", "NOTICE*")


class Pushed(NamedTuple):
    """What was uploaded."""

    url: str
    """Address of the commit."""
    files: int
    size_bytes: int


def model_folder(folder: Path) -> Path:
    """The folder of the model: `folder` itself, or `model/` of what `compress --output` wrote.

    Raises:
        SourceError: there is no whole, safe model, or it has no card.
    """
    inside = folder / "model"
    found = inside if reader.is_folder(inside) and not reader.is_file(folder / "config.json") else folder
    check_model_folder(found, str(folder))
    if not reader.is_file(found / CARD):
        raise SourceError(
            f"{found} has no model card ({CARD}); `pressoir compress RECIPE --output FOLDER` writes one"
        )
    return found


def files_to_push(folder: Path) -> list[Path]:
    """What belongs to the model: weights, graphs, configuration, tokenizer, its card and its license."""
    beside = [folder / CARD, *(path for pattern in _FOR_PEOPLE for path in folder.glob(pattern))]
    found = [*model_files(folder), *filter(reader.is_file, beside)]
    return sorted(path for path in found if not path.name.startswith("."))


def push(
    folder: Path,
    repository: str,
    *,
    token: str | None = None,
    private: bool = False,
    revision: str | None = None,
) -> Pushed:
    """Make the repository where there is none, and add the files of `folder` to it in one commit.

    `private` decides for a new repository alone. `revision` is a branch, made where there is none. Without
    a `token`, that of `hf auth login` is taken.

    Raises:
        SourceError: there is no model or no card, no token, or the hub refuses the repository or the card.
        UnreachableError: the hub does not answer.
    """
    from huggingface_hub import HfApi, get_token

    source = model_folder(folder)
    files = files_to_push(source)
    api = HfApi(token=_checked(token or get_token()), library_name="pressoir")
    with _hub_errors(without_password(api.endpoint), repository):
        made = api.create_repo(repository, private=private or None, exist_ok=True)
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(made.repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=made.repo_id,
            folder_path=source,
            allow_patterns=[glob.escape(path.relative_to(source).as_posix()) for path in files],
            revision=revision,
            commit_message="Upload a model compressed by Pressoir",
        )
    return Pushed(commit.commit_url, len(files), sum(path.stat().st_size for path in files))


def _checked(token: str | None) -> str:
    """The token; the error that `huggingface_hub` raises for a malformed one would quote it."""
    token = (token or "").strip()
    if not token:
        raise SourceError(
            "no token for the hub; set HF_TOKEN to one that may write, or log in with `hf auth login`"
        )
    if not re.fullmatch(r"[!-~]+", token):
        raise SourceError("the token for the hub has spaces or special characters; copy it again")
    return token


@contextmanager
def _hub_errors(endpoint: str, repository: str) -> Iterator[None]:
    """Raise what `huggingface_hub` raises as one line that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except HFValidationError as error:
        raise SourceError(f"{repository!r} is not the id of a repository: {_one_line(error)}") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: of a large file, with its cause
        cause = error if isinstance(error, OSError) else error.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise _refusal(cause, endpoint, repository) from error
        if isinstance(cause, OSError) and cause.filename:
            raise SourceError(f"{cause.filename} cannot be read: {cause.strerror}") from error
        offline = isinstance(cause, OfflineModeIsEnabled)
        state = "HF_HUB_OFFLINE is set; unset it" if offline else f"{endpoint} cannot be reached; try again"
        raise UnreachableError(f"{repository} was not pushed: {state}") from error
    except ValueError as error:  # the hub's answer to the card, or to a large file
        raise SourceError(f"{endpoint} refuses the model: {_one_line(error)}") from error


def _refusal(error: HfHubHTTPError, endpoint: str, repository: str) -> SourceError:
    """What the hub's answer means for who pushes."""
    status = error.response.status_code if error.response is not None else 0
    if status == 401:
        return SourceError(f"{endpoint} does not accept the token; make a new one that may write")
    if status == 403:
        return SourceError(f"{endpoint}: the token may not write to {repository}; use another token or id")
    if status >= 500:
        return UnreachableError(f"{endpoint} failed with status {status}; push again later")
    told = error.server_message or error
    return SourceError(f"{endpoint} refuses to change {repository}: {_one_line(told)}")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
