"""Running text for language models: what calibrates a quantiser, and what perplexity is measured on.

A text folder holds `calibration.txt`, `evaluation/<name>.txt` and `text.json` (windows, counts). Without
files of one's own the embedded reviews serve: their training split calibrates, their test split evaluates.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pressoir.data import sentences
from pressoir.errors import DataError
from pressoir.recipe.sections import DataConfig, TextConfig
from pressoir.store.artifact import digest_of
from pressoir.system.files import file_sha256

INFO = "text.json"
EMBEDDED = "reviews"


def source_digest(config: TextConfig) -> str:
    """SHA-256 of what the texts hold, wherever they lie.

    Raises:
        DataError: a file does not exist.
    """
    files = {"calibration": config.calibration, **config.evaluation}
    missing = [f"{name} {path}" for name, path in files.items() if path is not None and not path.is_file()]
    if missing:
        raise DataError(f"file not found: {', '.join(missing)}; specify UTF-8 text files in `text`")
    hashes = {name: file_sha256(path) for name, path in files.items() if path is not None}
    if config.calibration is None or not config.evaluation:
        hashes["embedded"] = sentences.source_digest(DataConfig())
    return digest_of(hashes)


def save(config: TextConfig, folder: Path) -> dict[str, int]:
    """Write the text folder; return the number of characters of each text.

    Raises:
        DataError: a file is missing, empty or not UTF-8.
    """
    calibration = embedded_calibration() if config.calibration is None else _read(config.calibration)
    evaluation = {name: _read(path) for name, path in config.evaluation.items()} or embedded_evaluation()
    (folder / "evaluation").mkdir()
    (folder / "calibration.txt").write_text(calibration, encoding="utf-8")
    for name, content in evaluation.items():
        (folder / "evaluation" / f"{name}.txt").write_text(content, encoding="utf-8")
    sizes = {"calibration": len(calibration), **{name: len(text) for name, text in evaluation.items()}}
    settings = config.model_dump(mode="json", include={"window", "calibration_windows", "evaluation_windows"})
    description = {**settings, "characters": sizes}
    (folder / INFO).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return sizes


def info(folder: Path) -> TextConfig:
    """The windows that a text folder is to be cut into."""
    description = json.loads((folder / INFO).read_text(encoding="utf-8"))
    description.pop("characters")
    return TextConfig.model_validate(description)


def load_calibration(folder: Path) -> str:
    """The calibration text of a text folder."""
    return _read(folder / "calibration.txt")


def load_evaluation(folder: Path) -> dict[str, str]:
    """The evaluation texts of a text folder by name."""
    return {path.stem: _read(path) for path in sorted((folder / "evaluation").glob("*.txt"))}


def embedded_calibration() -> str:
    """The embedded reviews' training split, one a line."""
    return _embedded("train")


def embedded_evaluation() -> dict[str, str]:
    """The embedded reviews' test split, one a line, under the name `reviews`."""
    return {EMBEDDED: _embedded("test")}


def windows(
    ids: Sequence[int], window: int, limit: int | None = None, spread: bool = False
) -> NDArray[np.int64]:
    """Cut token ids into windows (n, window) that do not overlap; at most `limit`, the rest is dropped.

    With `spread` the windows taken are evenly spread over the text, else they are its first.

    Raises:
        DataError: the text is shorter than one window.
    """
    count = len(ids) // window
    if count == 0:
        raise DataError(
            f"the text has {len(ids)} tokens, fewer than one window of {window}; use a longer text"
        )
    cut = np.asarray(ids[: count * window], dtype=np.int64).reshape(count, window)
    if limit is None or limit >= count:
        return cut
    chosen = np.linspace(0, count - 1, limit).round().astype(int) if spread else slice(limit)
    result: NDArray[np.int64] = cut[chosen]
    return result


def _embedded(split: str) -> str:
    return "\n".join(sentences.load(DataConfig(), seed=0).splits[split]["text"]) + "\n"


def _read(path: Path) -> str:
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"text {path}: {error.strerror or error}; specify a UTF-8 text file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"text {path} is not UTF-8 (byte {error.start}); convert it to UTF-8") from error
    if not content.strip():
        raise DataError(f"text {path} is empty")
    return content
