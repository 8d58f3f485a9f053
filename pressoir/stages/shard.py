"""Split a model's weights into safetensors shards, in the order in which a forward pass needs them.

**What.** Of a checkpoint: `shard_00.safetensors` has the embeddings and the first layers, the last shard the
final norm and the head. Of an ONNX graph: the initializers' bytes move out of `model.onnx`, in the order of
their first use. An ONNX `external_data` entry is a file, an offset and a length; here the offset points past
the safetensors header. One set of bytes thus serves ONNX Runtime and every safetensors reader.

**Why.** Files of a size that a host, a CDN or a flash partition takes; a download that resumes shard by
shard; a model whose first layers run before its last have arrived (`pressoir.inference.progressive.loader`);
a SHA-256 a shard, checked before anything is opened.

**Cost.** One copy of the weights on the disk and a megabyte of memory; no computation, no byte changed. A
tensor that the source has twice, because it is tied, is stored once.

**Sources.** ONNX external data, https://onnx.ai/onnx/repo-docs/ExternalData.html; safetensors,
https://huggingface.co/docs/safetensors; the index that transformers reads,
https://huggingface.co/docs/transformers/big_models.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import numpy as np

from pressoir.errors import ShardError, SourceError
from pressoir.formats import onnx_weights
from pressoir.formats.folder import GRAPH, PICKLES
from pressoir.formats.sharding import (
    FILE_NAME,
    FORMAT_VERSION,
    HEADER_BYTES,
    INFO,
    MANIFEST,
    SHARD_NAME,
    FileRecord,
    ShardManifest,
    ShardRecord,
    TensorRecord,
    kind_of,
    verify,
)
from pressoir.formats.sharding_info import describe
from pressoir.formats.tensor_bytes import (
    INDEX,
    TensorBytes,
    checkpoint_tensors,
    same_bytes,
    write_safetensors,
)
from pressoir.models import execution_order
from pressoir.recipe.sections import ShardConfig
from pressoir.stage import Stage, StageContext
from pressoir.system import files

GRAPH_ORDER = "graph order"
# Other copies of the weights, which are not copied.
_WEIGHTS = ("*.safetensors", "*.index.json", *PICKLES, "*.h5", "*.msgpack")
_GRAPHS = ("*.onnx", "*.onnx.data", "*.onnx_data")
# Copied, but not in the manifest: no program reads them, and people change them.
_FOR_PEOPLE = ("*.md", "LICENSE*", "NOTICE*")


def run(inputs: Mapping[str, Path], config: ShardConfig, context: StageContext) -> dict[str, float]:
    """Shard the folder `inputs["model"]`, an ONNX graph or a checkpoint; what else it holds is copied.

    Raises:
        ShardError: there are neither, or fewer tensors than `config.shards`.
        SourceError: the weights are broken.
    """
    source, out = inputs["model"], context.out_dir
    kind, tied = kind_of(source), dict[str, str]()
    if kind == "onnx":
        records, copied = _shard_graph(source, config, context)
    else:
        records, copied, tied = _shard_checkpoint(source, config, context)
    manifest = ShardManifest.model_validate(
        {
            "format_version": FORMAT_VERSION,
            "kind": kind,
            "shards": records,
            "total_bytes": sum(record.bytes for record in records),
            "tied": tied,
            "files": [_record(path) for path in sorted(copied) if not _matches(path, _FOR_PEOPLE)],
        }
    )
    (out / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (out / INFO).write_text(describe(manifest, out), encoding="utf-8")
    verify(out)
    return {
        "shards": float(len(records)),
        "total_mb": manifest.total_bytes / 1e6,
        "largest_shard_mb": max(record.bytes for record in records) / 1e6,
    }


def _shard_graph(
    source: Path, config: ShardConfig, context: StageContext
) -> tuple[list[ShardRecord], list[Path]]:
    """Shard records, and the other files that were written, of an ONNX folder."""
    import onnx

    out = context.out_dir
    model = onnx_weights.load(source / GRAPH)
    elsewhere = onnx_weights.external_files(model)
    weights = {weight.tensor.name: weight for weight in onnx_weights.weights(model, source)}
    records = _write([[weight.tensor] for weight in weights.values()], config, context, GRAPH_ORDER)
    for record in records:
        for tensor in record.tensors:
            weights[tensor.name].point(record.file, tensor.offset)
    onnx.save(model, out / GRAPH)
    return records, [out / GRAPH, *_copy_others(source, out, _WEIGHTS, {GRAPH, *elsewhere})]


def _shard_checkpoint(
    source: Path, config: ShardConfig, context: StageContext
) -> tuple[list[ShardRecord], list[Path], dict[str, str]]:
    """Shard records, other files, and what each tensor that was left out is tied to, of a checkpoint."""
    out = context.out_dir
    tensors = {tensor.name: tensor for tensor in checkpoint_tensors(source)}
    executed, groups, prefix = _architecture(source, context)
    order = execution_order.in_order(tensors, executed, prefix)
    tied = _stored_twice([tensors[name] for name in order], groups, prefix)
    units = [
        [tensors[name] for name in unit]
        for unit in execution_order.units([name for name in order if name not in tied])
    ]
    records = _write(units, config, context, None)
    index = {
        "metadata": {"total_size": sum(tensor.bytes for record in records for tensor in record.tensors)},
        "weight_map": {tensor.name: record.file for record in records for tensor in record.tensors},
    }
    (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return records, [out / INDEX, *_copy_others(source, out, (*_WEIGHTS, *_GRAPHS))], tied


def _architecture(source: Path, context: StageContext) -> tuple[list[str], list[list[str]], str]:
    """Parameter names in execution order, groups of tied ones, and the base model's prefix.

    All are empty for a model that transformers does not know: its tensors are then ordered by their names.
    """
    from pressoir.models import skeleton

    try:
        model = skeleton.build(source)
        return skeleton.executed(source), skeleton.tied(model), model.base_model_prefix
    except SourceError as error:
        context.reporter.message(f"ordering the tensors by name only: {error}")
        return [], [], ""


def _stored_twice(
    tensors: Sequence[TensorBytes], groups: Sequence[Sequence[str]], prefix: str
) -> dict[str, str]:
    """Tensors that need not be stored: the model ties them to an earlier one that has the same bytes."""
    group_of = {name: number for number, group in enumerate(groups) for name in group}
    kept: dict[int, TensorBytes] = {}
    tied = {}
    for tensor in tensors:
        number = group_of.get(execution_order.model_name(tensor.name, group_of, prefix))
        if number is not None and not same_bytes(kept.setdefault(number, tensor), tensor):
            continue
        if number is not None and kept[number] is not tensor:
            tied[tensor.name] = kept[number].name
    return tied


def _write(
    units: Sequence[Sequence[TensorBytes]], config: ShardConfig, context: StageContext, role: str | None
) -> list[ShardRecord]:
    """Write the shards; each has the given `role`, or one found from its tensors' names."""
    groups = partition(units, config)
    total = sum(tensor.length for group in groups for tensor in group)
    digits, records, done = max(2, len(str(len(groups) - 1))), [], 0

    def tell(written: int) -> None:
        nonlocal done
        done += written
        context.reporter.progress(min(done, total) // 1_000_000, total // 1_000_000, "MB written")

    for index, group in enumerate(groups):
        path = context.out_dir / f"shard_{index:0{digits}d}.safetensors"
        sha256, starts = write_safetensors(path, group, tell)
        record = ShardRecord(
            file=path.name,
            sha256=sha256,
            bytes=path.stat().st_size,
            order=index,
            role=role or execution_order.role(tensor.name for tensor in group),
            tensors=[
                TensorRecord(
                    name=t.name, dtype=t.dtype, shape=list(t.shape), offset=starts[t.name], bytes=t.length
                )
                for t in group
            ],
        )
        records.append(record)
        context.reporter.message(
            f"{record.file}: {record.role}, {len(group)} tensors, {record.bytes / 1e6:.2f} MB"
        )
    return records


def _copy_others(
    source: Path, out: Path, patterns: Sequence[str], names: Set[str] = frozenset()
) -> list[Path]:
    """Copy what belongs to the model besides its weights, given by `patterns` and `names`; return copies."""
    skip = {*names, MANIFEST, INFO, files.MANIFEST}
    copies = []
    for path in sorted(source.iterdir()):
        if not path.is_file() or path.name in skip or _matches(path, patterns):
            continue
        if not FILE_NAME.fullmatch(path.name) or SHARD_NAME.fullmatch(path.name):
            continue  # hidden files and such: nothing that a model is read from
        shutil.copyfile(path, out / path.name)
        copies.append(out / path.name)
    return copies


def _matches(path: Path, patterns: Sequence[str]) -> bool:
    return any(path.match(pattern) for pattern in patterns)


def _record(path: Path) -> FileRecord:
    return FileRecord(file=path.name, sha256=files.file_sha256(path), bytes=path.stat().st_size)


def recommended_shards(total_bytes: int) -> int:
    """How many shards a model of this size gets when nothing is said; it never falls with the size.

    Below 1 GB (10^9 bytes): 2, 3 from 1/3 GB, 4 from 2/3 GB. From 1 to 5 GB: 4 to 8, one more a GB. Above:
    8 to 16, one more for every 2.5 GB. Few enough that each is worth a request, many enough that a broken
    download loses little and that the last one adds little to the time to the first token.
    """
    gigabytes = total_bytes / 1e9
    if gigabytes < 1:
        return 2 + int(3 * gigabytes)
    if gigabytes <= 5:
        return 3 + int(gigabytes)
    return min(16, 8 + int((gigabytes - 5) / 2.5))


def partition(units: Sequence[Sequence[TensorBytes]], config: ShardConfig) -> list[list[TensorBytes]]:
    """Cut a list into runs: a number of them as even as can be, or none larger than the limit.

    A unit is a tensor with those that must stay beside it; it is never cut. One above the limit gets a shard
    of its own.

    Raises:
        ShardError: there are fewer units than shards asked for.
    """
    if not units:
        raise ShardError("the model has no weights to shard")
    costs = [sum(tensor.cost for tensor in unit) for unit in units]
    if config.max_shard_size_mb is not None:
        cuts = _fill(costs, int(config.max_shard_size_mb * 1e6) - HEADER_BYTES)
    else:
        total = sum(tensor.length for unit in units for tensor in unit)
        count = config.shards or min(recommended_shards(total), len(units))
        if count > len(units):
            packed = any(len(unit) > 1 for unit in units)
            together = " (a weight with its scale and zero point counts as one)" if packed else ""
            raise ShardError(
                f"shards is {count}, but the model has {len(units)} tensors{together}; specify at most "
                f"{len(units)}"
            )
        cuts = _even(costs, count)
    return [
        [tensor for unit in units[start:stop] for tensor in unit]
        for start, stop in itertools.pairwise([0, *cuts, len(units)])
    ]


def _even(costs: Sequence[int], count: int) -> list[int]:
    """Where to cut into `count` runs with the smallest sum of squared sizes (dynamic programming)."""
    ends = np.concatenate([[0.0], np.cumsum(costs, dtype=np.float64)])
    best, choices = ends**2, []
    best[0] = np.inf  # a run holds at least one unit
    for _ in range(count - 1):
        following, choice = np.full(len(ends), np.inf), np.zeros(len(ends), dtype=np.int64)
        for stop in range(1, len(ends)):
            totals = best[:stop] + (ends[stop] - ends[:stop]) ** 2
            choice[stop] = totals.argmin()
            following[stop] = totals[choice[stop]]
        choices.append(choice)
        best = following
    cuts = [len(costs)]
    for choice in reversed(choices):
        cuts.append(int(choice[cuts[-1]]))
    return cuts[:0:-1]


def _fill(costs: Sequence[int], limit: int) -> list[int]:
    """Where to cut so that each run is as long as `limit` lets it be."""
    cuts, used = [], 0
    for index, cost in enumerate(costs):
        if index and used + cost > limit:
            cuts.append(index)
            used = 0
        used += cost
    return cuts


STAGE = Stage(
    name="shard",
    version=2,
    kind="onnx",
    config=ShardConfig,
    run=run,
    searchable=True,
    memory=lambda _, size: 0 if size.language_model else 3 * size.weight_bytes,
)
