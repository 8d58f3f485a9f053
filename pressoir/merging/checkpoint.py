"""What a checkpoint holds, read from its configuration and its safetensors headers: no tensor is loaded.

So a merge of models that do not go together is refused within a second, however large they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pressoir.errors import SourceError
from pressoir.formats.folder import QUANTIZATION, check_model_folder, read_json
from pressoir.formats.tensor_bytes import TensorBytes, checkpoint_tensors
from pressoir.system.reader import exists

FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of an element, by safetensors' name of its type."""
# Masks, positions and frequencies that old versions of transformers saved, and that every version makes anew.
_BUFFER = re.compile(r"(^|\.)(position_ids|inv_freq|masked_bias|h\.\d+\.attn\.bias)$")
# Models with and without a head call the same tensor by names that differ in their beginning.
_PREFIXES = ("model.", "transformer.", "bert.", "roberta.", "distilbert.", "electra.")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_EMBEDDING = re.compile(r"(embed_tokens|embed_in|wte|word_embeddings)\.weight$")


@dataclass(frozen=True)
class Tokenizer:
    """What decides how text becomes ids."""

    ids: dict[str, int]
    """Id of every token, added ones included."""
    rules: dict[str, Any] = field(default_factory=dict)
    """The other parts of `tokenizer.json` that change ids: normaliser, splitting, merges."""


@dataclass(frozen=True)
class Checkpoint:
    """A model that is to be merged."""

    name: str
    """Of the stage's input: `parent_0`, `parent_1`, …, `base`."""
    reference: str
    """As the recipe or the command line names it."""
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorBytes]
    """Its weights, without buffers."""
    tokenizer: Tokenizer | None
    """None where it has none whose tokens can be read without loading it."""

    @property
    def label(self) -> str:
        """Its name and reference, for messages."""
        return f"{self.name} ({self.public_reference})"

    @property
    def public_reference(self) -> str:
        """The reference, without the path of a local folder: for files that leave this machine."""
        local = self.reference.startswith((".", "/", "~")) or exists(self.reference)
        return " ".join((self.folder.name if local else self.reference).split())  # on one line of a file

    @property
    def architecture(self) -> str:
        """The one class that `config.json` names; empty where there is none, or more than one."""
        names = self.config.get("architectures")
        return str(names[0]) if isinstance(names, list) and len(names) == 1 else ""

    @property
    def dtype(self) -> str:
        """The type that most of its bytes are in."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.length
        return max(sizes, key=lambda dtype: sizes[dtype], default="F32")

    @property
    def vocabulary(self) -> int:
        """Rows that `config.json` gives the token embedding; 0 where it does not say."""
        return int(self.config.get("vocab_size") or 0)

    @property
    def layers(self) -> int:
        """Number of layers; 0 where they are not one stack of like layers, as in an encoder-decoder."""
        stacks, suffixes = set(), dict[int, set[str]]()
        for name in self.tensors:
            if layer := layer_of(name):
                stacks.add(layer[0])
                suffixes.setdefault(layer[1], set()).add(name.partition(f".{layer[1]}.")[2])
        count = next((self.config[key] for key in _LAYER_COUNTS if key in self.config), None)
        alike = len(stacks) == 1 and sorted(suffixes) == list(range(len(suffixes))) and len(suffixes) == count
        return len(suffixes) if alike and all(names == suffixes[0] for names in suffixes.values()) else 0

    def find(self, name: str) -> str | None:
        """What this model calls the tensor that another calls `name`."""
        if name in self.tensors:
            return name
        candidates = [prefix + name for prefix in _PREFIXES]
        candidates += [name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)]
        if name == "lm_head.weight" and self.config.get("tie_word_embeddings", True):
            candidates += [own for own in self.tensors if _EMBEDDING.search(own)]
        return next((candidate for candidate in candidates if candidate in self.tensors), None)


def layer_of(name: str) -> tuple[str, int] | None:
    """Stack and index of the layer that a tensor belongs to: `model.layers.3.…` is (`model.layers`, 3)."""
    match = re.match(r"(.+?)\.(\d+)\.", name)
    return (match[1], int(match[2])) if match else None


def summary(names: Iterable[str]) -> str:
    """Tensors by name, those of many layers as one: `model.layers.*.mlp.up_proj.weight (2)`."""
    counts: dict[str, int] = {}
    for name in names:
        layer = layer_of(name)
        form = name.replace(f"{layer[0]}.{layer[1]}.", f"{layer[0]}.*.", 1) if layer else name
        counts[form] = counts.get(form, 0) + 1
    return ", ".join(form + (f" ({count})" if count > 1 else "") for form, count in counts.items())


def is_embedding(name: str, entry: TensorBytes, vocabulary: int) -> bool:
    """Whether a tensor has a row for each token: a token embedding, or a head over the vocabulary."""
    return (
        len(entry.shape) == 2
        and entry.shape[0] == vocabulary
        and "position" not in name
        and "wpe" not in name
    )


def read_checkpoint(folder: Path, name: str, reference: str) -> Checkpoint:
    """Read configuration, headers and vocabulary of a model folder.

    Raises:
        SourceError: it is no whole, safe model folder with float weights.
    """
    check_model_folder(folder, reference)
    config = read_json(folder / "config.json")
    if (folder / QUANTIZATION).exists() or config.get("quantization_config"):
        raise SourceError(
            f"model {reference!r} is quantised; merge the original models, then quantise the result"
        )
    if not any(folder.glob("*.safetensors")):
        raise SourceError(
            f"model {reference!r}: {folder} has only an ONNX graph and no *.safetensors weights; merge the "
            "original checkpoint"
        )
    tensors = {t.name: t for t in checkpoint_tensors(folder) if not _BUFFER.search(t.name)}
    if other := sorted({entry.dtype for entry in tensors.values()} - set(FLOATS)):
        example = next(own for own, entry in tensors.items() if entry.dtype == other[0])
        raise SourceError(
            f"model {reference!r}: {example} and others are stored as {', '.join(other)}; only weights in "
            f"{', '.join(FLOATS)} can be merged"
        )
    return Checkpoint(name, reference, folder, config, tensors, read_tokenizer(folder))


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """Tokens and rules of a model folder's tokenizer, or None where it has none in a text format.

    Raises:
        SourceError: `tokenizer.json` is broken.
    """
    path = folder / "tokenizer.json"
    try:
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            model = content["model"]
            vocabulary = model["vocab"]  # Unigram has a list of [token, score]
            ids = (
                {str(token): index for index, (token, _) in enumerate(vocabulary)}
                if isinstance(vocabulary, list)
                else dict(vocabulary)
            )
            ids |= {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
            merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges") or ()]
            rules = {key: content.get(key) for key in ("normalizer", "pre_tokenizer")}
            return Tokenizer(ids, rules | {"kind": model.get("type"), "merges": merges})
        if (folder / "vocab.txt").exists():
            content = (folder / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n")
            return Tokenizer({token: index for index, token in enumerate(content.split("\n"))})
        if (folder / "vocab.json").exists():
            return Tokenizer(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise SourceError(f"{path} is not a tokenizer ({error!r}); download the model again") from error
    return None
