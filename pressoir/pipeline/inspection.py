"""What a model is, before any work: read from its configuration and the headers of its files.

No weights are loaded and nothing is run, so neither time nor memory grow with the model; a graph whose
weights are inside it is read whole. Latency is not estimated: it depends on kernels, caches and threads, and
arithmetic on sizes would be wrong by factors. `pressoir compress` and `pressoir evaluate` measure it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pressoir.config import Config
from pressoir.data.texts import takes_pairs
from pressoir.errors import ExtensionError, SourceError
from pressoir.evaluation.config import DataSetConfig
from pressoir.evaluation.datasets import DataSet
from pressoir.evaluation.estimates import footprint
from pressoir.evaluation.estimates.footprint import Layer
from pressoir.evaluation.estimates.formula import MARGIN, estimate
from pressoir.evaluation.estimates.sample_memory import TaskMemory
from pressoir.evaluation.jobs import Job
from pressoir.evaluation.records import EvaluationSample
from pressoir.extensions import architecture
from pressoir.extensions.task import Task, task
from pressoir.extensions.task_name import TaskName
from pressoir.formats.folder import (
    MODEL_FILES,
    QUANTIZATION,
    Runtime,
    check_model_folder,
    is_shape,
    read_json,
    runtime_of,
    tasks_of,
)
from pressoir.formats.labels import labels_of
from pressoir.formats.supported import unsupported
from pressoir.formats.tokenizer_limit import CONTEXT, most_source_tokens, most_tokens
from pressoir.inference.ctc import CHUNK_S
from pressoir.models import parts
from pressoir.models.parts import PartName, Stack
from pressoir.pipeline.stage_support import StageSupport, stage_support
from pressoir.sources import resolve
from pressoir.store.store import Store
from pressoir.system.reader import JSON_BYTES

FileKind = Literal["weights", "graph", "tokenizer", "configuration", "other"]
_KINDS: dict[FileKind, tuple[str, ...]] = {
    "weights": ("*.safetensors", "*.onnx.data", "*.onnx_data"),
    "graph": ("*.onnx",),
    "tokenizer": (
        *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
        *("*.spm", "*.model", "bpe.codes", "prophetnet.tokenizer", "normalizer.json", "*.jinja"),
        "sentence_bert_config.json",
    ),
    "configuration": ("*.json",),
}
_NO_LIMIT = 10**6  # see `formats.tokenizer_limit`
_SAMPLING_RATE = 16_000
_MOST_LAYERS = 1_000  # see `models.loading`


class PartSize(Config):
    """What one part of the model takes."""

    part: PartName
    stack: Stack
    """Whose layers it belongs to; empty where there is one stack, or it is outside the layers."""
    parameters: int
    bytes: int
    """As stored, scales and zero points included."""
    bits_per_weight: float | None
    """Null where the weights are another part's, as those of a tied head."""


class StackSize(Config):
    """A stack of equal layers."""

    stack: Stack
    layers: int
    heads: int | tuple[int, ...]
    """A number for each layer where pruning has left them different."""
    key_value_heads: int | None
    """Where they are fewer than the heads."""
    feed_forward: int | tuple[int, ...]


class MemoryEstimate(Config):
    """Peak memory of a fresh process, by the formula of `pressoir evaluate`; bytes."""

    load: int
    """Until the model is loaded, interpreter and libraries included."""
    run: int
    """With one sample, the longest that the model takes."""
    sample: str
    """What that is."""


class Inspection(Config):
    """What a model is."""

    reference: str
    folder: Path
    model_type: str
    architecture: str | None
    tasks: tuple[TaskName, ...]
    """The main one first; none where no task is for the architecture."""
    runtime: Runtime
    """What runs the folder by default."""
    quantization: str | None
    """Scheme of the weights; null is floating point."""
    unsupported: str | None
    """Why Pressoir does not run it; null where it does."""
    stages: tuple[StageSupport, ...]
    width: int | None
    """Of a token's vector."""
    stacks: tuple[StackSize, ...]
    vocabulary: int | None
    positions: int | None
    """That the model has vectors for or was built for."""
    labels: tuple[str, ...]
    """Of a classifier, in the order of its logits."""
    pairs: bool
    """Whether it is a classifier that Pressoir trained on pairs of texts."""
    tokenizer: str | None
    max_tokens: int | None
    """Of a text, as Pressoir gives it to the model; null for sound, or where nothing limits it."""
    parameters: int
    bits_per_weight: float
    """Of all parts together."""
    parts: tuple[PartSize, ...]
    files: dict[FileKind, int]
    """Bytes on disk by kind."""
    memory: MemoryEstimate | None
    """Null where the model is not supported."""


def inspect_model(reference: str, store: Store | None = None) -> Inspection:
    """Inspect the model that `reference` leads to (see `pressoir.sources.resolve`); a model of the hub is
    fetched first. Hashes are not checked.

    Raises:
        SourceError: nothing is there, or no whole, safe model. ShardError: a graph is broken, or a file that
        it names missing.
    """
    folder = resolve.locate(reference, store or Store())
    check_model_folder(folder, reference)
    config, reason = read_json(folder / "config.json"), unsupported(folder)
    labels = _labels(config, folder)
    sizes, names, runtime = parts.parts(folder), _tasks(folder), runtime_of(folder)
    declared = task(names[0]) if names else None
    found = [
        PartSize(
            part=size.place.part,
            stack=size.place.stack,
            parameters=size.parameters,
            bytes=size.bytes,
            bits_per_weight=8 * size.bytes / size.parameters if size.parameters else None,
        )
        for size in sizes
    ]
    settings = footprint.settings(folder)
    total, limit = sum(size.parameters for size in sizes), _max_tokens(folder, settings, declared)
    return Inspection(
        reference=reference,
        folder=folder,
        model_type=str(config.get("model_type") or ""),
        architecture=_class_name(config),
        tasks=names,
        runtime=runtime,
        quantization=_scheme(folder),
        unsupported=reason,
        stages=tuple(stage_support(folder)),
        width=_layer(settings).hidden or None,
        stacks=_stacks(settings),
        vocabulary=footprint.number(settings, "vocab_size") or None,
        positions=footprint.number(settings, *CONTEXT, "max_target_positions") or None,
        labels=labels,
        pairs=takes_pairs(config),
        tokenizer=_tokenizer(folder),
        max_tokens=limit,
        parameters=total,
        bits_per_weight=8 * sum(size.bytes for size in sizes) / max(1, total),
        parts=tuple(found),
        files=files_by_kind(folder),
        memory=None if reason or declared is None else _memory(folder, declared, runtime, limit),
    )


def files_by_kind(folder: Path) -> dict[FileKind, int]:
    """Bytes of a folder's files (with the pooling of a sentence encoder) by kind; kinds without any are left
    out. The weights inside a graph count as the graph's."""
    paths = {path for path in folder.iterdir() if path.is_file()}
    paths |= {path for pattern in MODEL_FILES if "/" in pattern for path in folder.glob(pattern)}
    sizes: dict[FileKind, int] = {}
    for path in sorted(paths):
        fitting = (kind for kind, names in _KINDS.items() if any(map(path.match, names)))
        kind: FileKind = next(fitting, "other")
        sizes[kind] = sizes.get(kind, 0) + path.stat().st_size
    order: tuple[FileKind, ...] = (*_KINDS, "other")
    return {kind: sizes[kind] for kind in order if kind in sizes}


def _class_name(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else None


def _labels(config: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    if not (_class_name(config) or "").endswith("Classification"):
        return ()
    try:
        return tuple(labels_of(config))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SourceError(
            f"{folder / 'config.json'}: id2label is not a mapping of numbers to names; download or create "
            "the model again"
        ) from error


def _tasks(folder: Path) -> tuple[TaskName, ...]:
    try:
        return tasks_of(folder)
    except (SourceError, ExtensionError):  # which `unsupported` says
        return ()


def _scheme(folder: Path) -> str | None:
    path = folder / QUANTIZATION
    return str(read_json(path).get("scheme") or "") or None if path.exists() else None


def _layer(config: Mapping[str, Any], stack: Stack = "") -> Layer:
    """Sizes of a stack's layers, by an architecture's own names of fields where it is declared."""
    usual, names = footprint.layer_sizes(config, stack), architecture.find(config.get("model_type"))
    if names is None:
        return usual
    fields = (names.layer_count_field, names.hidden_size_field, names.ffn_width_field, names.head_count_field)
    layers, hidden, inner, heads = (footprint.number(config, name) for name in fields)
    return Layer(layers, hidden, inner, heads, usual.key_width)


def _stacks(config: Mapping[str, Any]) -> tuple[StackSize, ...]:
    names: tuple[Stack, ...] = ("encoder", "decoder") if config.get("is_encoder_decoder") else ("",)
    return tuple(_stack(config, name) for name in names)


def _stack(config: Mapping[str, Any], name: Stack) -> StackSize:
    layer = _layer(config, name)
    pruned, widths = config.get("pruned_heads"), config.get("intermediate_sizes")
    widths = config.get("intermediate_size") if widths is None else widths
    heads: int | tuple[int, ...] = layer.heads
    if isinstance(pruned, dict) and pruned:
        gone = [pruned.get(str(index)) for index in range(min(layer.layers, _MOST_LAYERS))]
        heads = _one_or_all([layer.heads - (len(of) if isinstance(of, list) else 0) for of in gone])
    groups = footprint.number(config, "num_key_value_heads")
    return StackSize(
        stack=name,
        layers=layer.layers,
        heads=heads,
        key_value_heads=groups if 0 < groups < layer.heads else None,
        feed_forward=_one_or_all(widths) if is_shape(widths) else layer.inner,
    )


def _one_or_all(sizes: list[int]) -> int | tuple[int, ...]:
    return sizes[0] if len(set(sizes)) == 1 else tuple(sizes)


def _tokenizer(folder: Path) -> str | None:
    """The algorithm of a tokenizer, and the class that transformers opens it with."""
    kind, fast = None, folder / "tokenizer.json"
    if fast.is_file() and fast.stat().st_size <= JSON_BYTES:
        model = read_json(fast).get("model")
        kind = model.get("type") if isinstance(model, dict) else None
    elif any(folder.glob("*.spm")) or any(folder.glob("*.model")):
        kind = "SentencePiece"
    settings = folder / "tokenizer_config.json"
    opened = read_json(settings).get("tokenizer_class") if settings.exists() else None
    words = [str(word) for word in (kind, opened) if word]
    return f"{words[0]} ({words[1]})" if len(words) > 1 else next(iter(words), None)


def _max_tokens(folder: Path, config: Mapping[str, Any], declared: Task | None) -> int | None:
    """Tokens of a text as the task's adapter takes them at most."""
    tokenizer = footprint.read_object(folder / "tokenizer_config.json")
    if declared is None or declared.sound:
        return None
    if declared.windows:
        return footprint.number(config, *CONTEXT) or None
    if config.get("is_encoder_decoder"):
        return most_source_tokens(config, tokenizer)
    sentence = footprint.read_object(folder / "sentence_bert_config.json")
    own = footprint.number(tokenizer, "model_max_length", default=_NO_LIMIT)
    return min(most_tokens(folder), own, footprint.number(sentence, "max_seq_length", default=_NO_LIMIT))


def _memory(folder: Path, declared: Task, runtime: Runtime, limit: int | None) -> MemoryEstimate:
    """By the formula that evaluations are planned with, for a batch of one of the longest samples."""
    length = round(CHUNK_S * _SAMPLING_RATE) if declared.sound else 2 * (limit or 0)
    text = "" if declared.sound or declared.windows else "a " * length
    sample = EvaluationSample(id="0", input=text, reference=None, length=length)
    job = Job(
        model="inspected",
        folder=folder,
        task=declared.name,
        data=DataSetConfig.model_validate(
            {"task": declared.name, **dict.fromkeys(declared.required_data, Path())}
        ),
        key="",
        journal=Path(),
        batch_size=1,
    )
    data = DataSet(declared.name, (sample,), "")
    found, memory = estimate(job, data), _task_memory(declared, job, data)
    weights = footprint.weights(folder, runtime, footprint.settings(folder), memory.unused)
    load = found.details["process"] + found.details.get("tokenizer", 0) + weights.resident + weights.loading
    if declared.sound:
        what = f"{CHUNK_S:.0f} s of sound"
    elif declared.windows:
        what = f"a window of {job.generation.window} tokens"
    else:
        what = f"a text of {limit} tokens"
    run = found.peak_bytes(1)
    return MemoryEstimate(load=min(run, round((1 + MARGIN) * load)), run=run, sample=what)


def _task_memory(declared: Task, job: Job, data: DataSet) -> TaskMemory:
    memory: TaskMemory = declared.part("estimate")(job, data)
    return memory
