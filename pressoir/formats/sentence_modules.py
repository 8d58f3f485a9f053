"""What a sentence-transformers folder does with the tokens' hidden states: `modules.json`, read and written.

The first module is the Transformer, in the folder itself; then comes Pooling, which makes one vector of the
tokens', by one mode or by several whose vectors are joined; then any number of Dense (a linear layer with an
activation) and Normalize (length 1). A folder without `modules.json` is pooled as `1_Pooling/config.json`
says, else by the mean. Anything else changes the embeddings, so it is refused by its name.

Source: https://sbert.net/docs/package_reference/sentence_transformer/models.html; N. Reimers and I. Gurevych
2019, "Sentence-BERT" (arXiv:1908.10084), section 3.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pressoir.errors import SourceError
from pressoir.formats.folder import read_json
from pressoir.formats.tensor_bytes import check_file
from pressoir.system import reader

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODULES, SETTINGS, PROMPTS = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
POOLING = Path("1_Pooling") / "config.json"
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""Ways to make one vector of the tokens', in the order in which sentence-transformers joins several."""
ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
}
"""Names by the class in a Dense module's `config.json`."""
DIMENSIONS = "matryoshka_dimensions"
"""Field of `config_sentence_transformers.json`: the lengths that the beginning of an embedding was trained
for, descending."""
# As sentence-transformers writes it up to version 4; later it writes "pooling_mode": "mean".
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_PACKAGE = "sentence_transformers"
_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Dense:
    """A linear layer and its activation."""

    weight: NDArray[np.float32]
    """(out, in)"""
    bias: NDArray[np.float32] | None
    """(out,)"""
    activation: str
    """One of `ACTIVATIONS`."""


@dataclass(frozen=True)
class Normalize:
    """Divides a vector by its length."""


Step = Dense | Normalize


@dataclass(frozen=True)
class SentenceModules:
    """How the tokens' hidden states become an embedding."""

    pooling: tuple[str, ...] = ("mean",)
    """Some of `MODES`; the vectors of several are joined in this order."""
    steps: tuple[Step, ...] = ()
    """What follows, in order."""
    max_tokens: int | None = None
    """Of a sentence, where the folder says it."""
    dimensions: tuple[int, ...] = ()
    """See `DIMENSIONS`."""


def read_modules(folder: Path) -> SentenceModules:
    """What the folder of a sentence encoder says; the mean of the tokens where it says nothing.

    Raises:
        SourceError: it has a module, a pooling or an activation that is not known, prompts or lower-cases its
            texts, or a file of it is missing or damaged.
    """
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).exists() else {}
    if settings.get("do_lower_case"):
        raise SourceError(
            f"{folder / SETTINGS} sets do_lower_case, which is not supported; use a tokenizer that "
            "lower-cases by itself, and set do_lower_case to false"
        )
    limit = settings.get("max_seq_length")
    if limit is not None and not _is_size(limit):
        raise SourceError(
            f"{folder / SETTINGS}: max_seq_length is {reader.shown(limit)}, not a number above 0"
        )
    prompts = read_json(folder / PROMPTS) if (folder / PROMPTS).exists() else {}
    if (name := prompts.get("default_prompt_name")) is not None:
        raise SourceError(
            f"{folder / PROMPTS} puts the prompt {reader.shown(name)} before every text, which is not "
            "supported; set default_prompt_name to null, and put it before the texts yourself"
        )
    dimensions = prompts.get(DIMENSIONS, [])
    if not isinstance(dimensions, list) or not all(map(_is_size, dimensions)):
        raise SourceError(f"{folder / PROMPTS}: {DIMENSIONS} is not a list of numbers above 0")
    if not (folder / MODULES).exists():
        pooling = _pooling(folder / POOLING) if (folder / POOLING).exists() else ("mean",)
        return SentenceModules(pooling, (), limit, tuple(dimensions))
    pooling, steps = (), list[Step]()
    for index, (kind, place) in enumerate(_modules(folder / MODULES)):
        if (index == 0) != (kind == "Transformer") or (index == 1) != (kind == "Pooling"):
            raise SourceError(
                f"{folder / MODULES}: module {index} is {kind}; expected are a Transformer, Pooling, and "
                "then any of Dense and Normalize"
            )
        if kind == "Transformer" and place not in ("", "."):
            raise SourceError(
                f"{folder / MODULES} has its Transformer in {place!r}; open the folder with "
                "sentence-transformers and save it again, which puts it into the folder itself"
            )
        if kind == "Pooling":
            pooling = _pooling(folder / place / "config.json")
        elif kind == "Dense":
            steps.append(_dense(folder / place))
        elif kind == "Normalize":
            steps.append(Normalize())
        elif kind != "Transformer":
            raise SourceError(
                f"{folder / MODULES} has a module {kind}, which is not supported; supported are Transformer, "
                "Pooling, Dense and Normalize"
            )
    if not pooling:
        raise SourceError(
            f"{folder / MODULES} has no Transformer and Pooling; download or create the model again"
        )
    return SentenceModules(pooling, tuple(steps), limit, tuple(dimensions))


def write_modules(modules: SentenceModules, width: int, folder: Path) -> None:
    """Write what `read_modules` reads, as sentence-transformers does; `width` is that of a token's vector."""
    from safetensors.numpy import save_file

    listed = [("", "Transformer"), (POOLING.parent.name, "Pooling")]
    flags = {flag: mode in modules.pooling for flag, mode in _FLAGS.items()}
    modes: Any = list(modules.pooling) if len(modules.pooling) > 1 else modules.pooling[0]
    in_order = tuple(mode for mode in MODES if mode in modules.pooling) == modules.pooling
    spelt = flags if in_order else {"pooling_mode": modes}  # flags: also for versions before 5
    _write_json(folder / POOLING, {"word_embedding_dimension": width, **spelt, "include_prompt": True})
    for number, step in enumerate(modules.steps, start=2):
        place = f"{number}_{type(step).__name__}"
        listed.append((place, type(step).__name__))
        if isinstance(step, Dense):
            config = {
                "in_features": step.weight.shape[1],
                "out_features": step.weight.shape[0],
                "bias": step.bias is not None,
                "activation_function": next(k for k, v in ACTIVATIONS.items() if v == step.activation),
            }
            _write_json(folder / place / "config.json", config)
            tensors = {"linear.weight": step.weight}
            tensors |= {} if step.bias is None else {"linear.bias": step.bias}
            save_file(tensors, folder / place / _WEIGHTS, metadata={"format": "pt"})
    entries = [
        {"idx": index, "name": str(index), "path": place, "type": f"{_PACKAGE}.models.{kind}"}
        for index, (place, kind) in enumerate(listed)
    ]
    _write_json(folder / MODULES, entries)
    _write_json(folder / SETTINGS, {"max_seq_length": modules.max_tokens, "do_lower_case": False})
    dimensions = {DIMENSIONS: list(modules.dimensions)} if modules.dimensions else {}
    _write_json(
        folder / PROMPTS,
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine", **dimensions},
    )


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _modules(path: Path) -> Sequence[tuple[str, str]]:
    """Class and folder of each module."""
    entries: Any = reader.read_json(path, SourceError, "download or create the model again")
    found = []
    for entry in entries if isinstance(entries, list) else ():
        kind, place = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(place, str):
            break
        package, _, name = kind.rpartition(".")
        if package.partition(".")[0] != _PACKAGE:
            raise SourceError(
                f"{path} has a module {kind}, which is another package's code; only modules of "
                "sentence-transformers are supported"
            )
        if "/" in place or "\\" in place or place == "..":
            raise SourceError(f"{path}: {reader.shown(place)} is not the name of a folder below it")
        found.append((name, place))
    else:
        if isinstance(entries, list):
            return found
    raise SourceError(
        f"{path} is not a list of modules with `type` and `path`; download or create the model again"
    )


def _pooling(path: Path) -> tuple[str, ...]:
    settings = read_json(path)
    given: Any = settings.get("pooling_mode") or [mode for flag, mode in _FLAGS.items() if settings.get(flag)]
    modes = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list) else ()
    if not modes or not all(mode in MODES for mode in modes):
        raise SourceError(
            f"{path} specifies pooling by {' and '.join(map(str, modes)) or 'nothing'}; supported are "
            f"{', '.join(MODES)}"
        )
    return modes


def _dense(folder: Path) -> Dense:
    from safetensors.numpy import load_file

    settings, path = read_json(folder / "config.json"), folder / _WEIGHTS
    activation = ACTIVATIONS.get(str(settings.get("activation_function", "torch.nn.modules.activation.Tanh")))
    if activation is None:
        raise SourceError(
            f"{folder / 'config.json'} has the activation "
            f"{reader.shown(settings['activation_function'])}, which is not supported; supported are "
            f"{', '.join(ACTIVATIONS)}"
        )
    for key in ("module_input_name", "module_output_name"):
        if settings.get(key, "sentence_embedding") != "sentence_embedding":
            raise SourceError(
                f"{folder / 'config.json'}: {key} is {reader.shown(settings[key])}; a Dense module is "
                "supported for the sentence embedding only"
            )
    if not reader.is_file(path):
        raise SourceError(
            f"{path} is missing; open the folder with sentence-transformers and save it again as safetensors"
        )
    check_file(path)
    tensors = load_file(path)
    weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
    if weight is None or weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        raise SourceError(f"{path} does not hold a linear layer; download or create the model again")
    return Dense(weight.astype("float32"), None if bias is None else bias.astype("float32"), activation)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
