"""The data sets of an evaluation: samples with stable ids, and one fingerprint of all that they hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pressoir import metrics
from pressoir.data import running_text, sentences
from pressoir.data.texts import characters, text_of
from pressoir.errors import DataError
from pressoir.evaluation.config import DataSetConfig
from pressoir.evaluation.records import EvaluationSample
from pressoir.extensions.task import Task, task
from pressoir.extensions.task_name import TaskName
from pressoir.formats.problems import SINGLE_LABEL
from pressoir.store.artifact import digest_of
from pressoir.system import reader
from pressoir.system.files import file_sha256

EMBEDDED_PAIRS = Path(__file__).parents[1] / "data" / "demo" / "pairs.tsv"
"""Sentences of reviews in twos, graded by Pressoir's authors from 0 (unrelated) to 5 (the same meaning), with
contradictions at 1.5."""


_RECORDINGS = 'is not a list of {"audio": file, "text": transcription}'


@dataclass(frozen=True)
class DataSet:
    """What a model is asked, and what would be right."""

    task: TaskName
    samples: tuple[EvaluationSample, ...]
    """In the data's order. A causal LM has one sample a text; its child cuts it into windows."""
    fingerprint: str
    """SHA-256 of all ids, inputs and references; of audio, of the files' content."""
    labels: tuple[str, ...] = ()
    """Names of the classes, in their order; none where the task has no classes."""
    language: str | None = None
    """Of the references: a translation's target, or the speech's; None where it is not given."""
    bleu_tokenizer: metrics.BleuTokenizer | None = None
    normaliser: metrics.Normaliser | None = None
    notes: tuple[str, ...] = ()
    """What a reader of the scores must know about the data."""
    problem: str = SINGLE_LABEL.name
    """What a classifier decides of a sample, see `pressoir.formats.problems`."""


Data = tuple[tuple[str, ...], list[EvaluationSample]]
"""What a task's reader gives: names of the classes, and all samples, of which equal ones count once."""


def load(config: DataSetConfig, limit: int | None = None, seed: int = 0) -> DataSet:
    """Read a data set, or its first `limit` samples.

    Raises:
        DataError: a file is missing or malformed; the message names the line.
    """
    declared = task(config.task)
    found: Data = declared.part("read_data")(config, seed)
    labels, samples = found
    if not samples:
        raise DataError(f"the data set for {config.task} has no samples; specify a file that has some")
    different: dict[str, EvaluationSample] = {}
    for sample in samples:
        if different.setdefault(sample.id, sample) != sample:
            raise DataError(f"{sample.id} is listed twice with different references; keep one of them")
    chosen = list(different.values()) if declared.windows else list(different.values())[:limit]
    repeated = len(samples) - len(different)
    return DataSet(
        config.task,
        tuple(chosen),
        _fingerprint(declared, chosen),
        labels,
        config.target_language or config.source_language,
        config.bleu_tokenizer,
        config.normaliser,
        (f"{repeated} samples are listed more than once and count once",) if repeated else (),
        config.classification.problem,
    )


def labelled_sentences(config: DataSetConfig, seed: int) -> Data:
    """The test split of a labelled data set, of texts or pairs, with the labels' names."""
    source = config.classification
    if (problem := task(config.task).problem) is not None:
        source = source.model_copy(update={"problem": problem})
    labels, rows = sentences.test_rows(source, seed)
    return labels, [
        EvaluationSample(id=str(i), input=text, reference=row["label"], length=characters(text))
        for i, row in enumerate(rows)
        for text in [text_of(row)]
    ]


def running_texts(config: DataSetConfig, seed: int) -> Data:
    """Whole texts, by default the embedded reviews'."""
    texts = (
        running_text.embedded_evaluation() if config.text is None else {config.text.stem: _read(config.text)}
    )
    return (), [
        EvaluationSample(id=name, input=t, reference=None, length=len(t)) for name, t in texts.items()
    ]


def recordings(config: DataSetConfig, seed: int) -> Data:
    """Files of sound with their transcriptions, as a manifest lists them."""
    manifest = _required(config.manifest)
    entries = reader.read_json(manifest, DataError, "specify a list of recordings")
    if not isinstance(entries, list):
        raise DataError(f"{manifest} {_RECORDINGS}")
    rows: list[tuple[str, str]] = []
    for index, entry in enumerate(entries):
        match entry:
            case {"audio": str(name), "text": str(transcription)}:
                rows.append((name, transcription))
            case _:
                raise DataError(f"{manifest} {_RECORDINGS}; entry {index} is {reader.shown(entry)}")
    missing = [name for name, _ in rows if not reader.is_file(manifest.parent / name)]
    if missing:
        raise DataError(
            f"{manifest} names {reader.shown(missing[0])}, which is not in the same folder "
            f"({len(missing)} files missing)"
        )
    return (), [
        EvaluationSample(
            id=name,
            input=str(manifest.parent / name),
            reference=transcription,
            length=(manifest.parent / name).stat().st_size,
        )
        for name, transcription in rows
    ]


def aligned_lines(config: DataSetConfig, seed: int) -> Data:
    """Sentences with their translations, line by line."""
    source, reference = _required(config.source), _required(config.reference)
    sources, references = _lines(source), _lines(reference)
    if len(sources) != len(references):
        raise DataError(
            f"{source} has {len(sources)} lines, but {reference} has {len(references)}; the files must "
            "have the same number of lines"
        )
    metrics.check_bleu_tokenizer(
        config.bleu_tokenizer or metrics.bleu_tokenizer(config.target_language, references)
    )
    return (), [
        EvaluationSample(id=str(i), input=line, reference=right, length=len(line))
        for i, (line, right) in enumerate(zip(sources, references, strict=True))
    ]


def graded_pairs(config: DataSetConfig, seed: int) -> Data:
    """Pairs of sentences with their similarity, by default the embedded ones."""
    path, samples = config.pairs or EMBEDDED_PAIRS, []
    for number, line in enumerate(_lines(path), 1):
        try:
            first, second, similarity = line.split("\t")
            value = float(similarity)
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: expected two sentences and a number, tab-separated"
            ) from error
        samples.append(
            EvaluationSample(
                id=str(number - 1),
                input=[first, second],
                reference=value,
                length=max(len(first), len(second)),
            )
        )
    return (), samples


def _fingerprint(task: Task, samples: list[EvaluationSample]) -> str:
    def content(value: Any) -> Any:
        try:
            return file_sha256(Path(value)) if task.sound else value
        except OSError as error:
            raise DataError(f"data file {value}: {error.strerror or error}") from error

    return digest_of(
        [task.name, [[sample.id, content(sample.input), sample.reference] for sample in samples]]
    )


def _required(path: Path | None) -> Path:
    if path is None:
        raise DataError("no data file is specified")
    return path


def _lines(path: Path) -> list[str]:
    """The lines of a text file, which end with a line break and with no other of Unicode's separators."""
    content = _read(path)
    return content.removesuffix("\n").split("\n") if content else []


def _read(path: Path) -> str:
    return reader.read_text(path, DataError, "specify a UTF-8 text file", most=None)
