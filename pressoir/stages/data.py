"""Data: read, check, de-duplicate, split and sub-sample the sentences, once.

Every later stage reads this artifact, so that teacher, student and benchmark see the same splits, and its
digest is the fingerprint of the data that goes into their keys. Costs seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pressoir.data import sentences
from pressoir.data.texts import PAIR
from pressoir.recipe.sections import DataConfig
from pressoir.stage import LoggedDataset, Stage, StageContext, StageKeyParts

_COUNTED = {
    "copies_dropped": "duplicates, or also in another split",
    "label_conflicts": "the same text also has another label",
}


def run(inputs: Mapping[str, Path], config: DataConfig, context: StageContext) -> dict[str, float]:
    """Write the three splits, and the unlabelled sentences where a file of them is given; return their sizes,
    the number of copies dropped from each, and of rows whose text has another label too.

    Raises:
        DataError: a row is malformed, a split is too small, or the unlabelled text is missing or not UTF-8.
        SourceError: the hub data set cannot be loaded.
    """
    corpus = context.prepared or sentences.load(config, context.seed)
    for remark in corpus.remarks:
        context.reporter.message(f"data: {remark}")
    for name, count in corpus.counts.items():
        for kind, meaning in _COUNTED.items():
            if count and name.endswith(kind):
                context.reporter.message(f"data: {count} {name.replace('_', ' ')} ({meaning})")
    return sentences.save(corpus, context.out_dir, config.max_tokens)


def key(config: DataConfig) -> StageKeyParts:
    """Of files their formats, of a hub data set that it is one; and the digest of what they hold.

    The column of second texts is left out where there is none.
    """
    values = config.model_dump(mode="json")
    for split in (*sentences.SPLITS, sentences.UNLABELLED):
        path: Path | None = getattr(config, split)
        values[split] = None if path is None else path.suffix.lower()
    values["hub_id"] = config.hub_id is not None
    if config.text_pair_column is None:
        del values["text_pair_column"]
    if config.problem == "single-label":  # as results were stored before there were others
        for name in ("problem", "label_separator", "thresholds"):
            del values[name]
    return StageKeyParts(values, {"source": sentences.source_digest(config)})


def dataset(folder: Path, config: DataConfig) -> LoggedDataset:
    """The three splits."""
    files = {split: folder / f"{split}.jsonl" for split in sentences.SPLITS}
    second = {} if config.text_pair_column is None else {PAIR: "string"}
    kind = {"single-label": "long", "regression": "double"}.get(config.problem, "string")
    columns = {"text": "string", **second, "label": kind}
    return LoggedDataset(config.hub_id or config.source, files, columns)


STAGE = Stage(
    name="data",
    version=2,
    kind="dataset",
    config=DataConfig,
    run=run,
    key=key,
    prepare=sentences.load,
    dataset=dataset,
    memory=lambda _, size: 0,
)
