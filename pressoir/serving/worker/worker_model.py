"""Models as a server runs them: operations in steps, within a budget of tokens, and an example of each.

`open_model` verifies a folder's digest, loads the model, and runs its example once, so that a model that is
reported as ready has answered. The answers are those of `pressoir.inference`; in addition, a batch is split
by its actual number of tokens, and every part is a step (see `pressoir.serving.worker.step_scheduler`).

========================  ===========================================================
task                      operations
========================  ===========================================================
text-classification       classify
feature-extraction        embed
translation               translate
causal-lm                 generate, score
speech recognition        transcribe
all of them               example: a small request of its own, checked
========================  ===========================================================
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressoir.config import Config, Positive
from pressoir.errors import PressoirError, SourceError
from pressoir.formats.folder import Runtime, Task, check_model_folder, model_files
from pressoir.inference.audio import check_waveforms
from pressoir.inference.automatic_speech_recognition import CtcModel, SpeechRecognizer
from pressoir.inference.feature_extraction import POOLINGS, SentenceEncoder
from pressoir.inference.text_classification import TextClassifier
from pressoir.inference.text_generation import TextGenerator
from pressoir.inference.tokenizers.tokenizers import FastTokenizer, TextStream
from pressoir.inference.translation import Translator
from pressoir.serving.worker.step_scheduler import Operations, Steps
from pressoir.system.files import folder_digest
from pressoir.system.runtime import use_threads

EXAMPLE = "The film was good."
_EXAMPLE_S = 0.5  # of silence
_LIMITS = 8  # tokenizers that are kept, one for each `max_length`


class LoadJob(Config):
    """What a model is loaded from and as."""

    name: str
    """For messages."""
    folder: Path
    digest: str
    task: Task
    runtime: Runtime
    threads: Positive


class WorkerModel:
    """A loaded model in the worker: its operations, and the `info` that the server keeps."""

    def __init__(self, operations: Operations, info: dict[str, Any], example: Callable[[], Steps]) -> None:
        self.operations: Operations = {**operations, "example": example}
        self.info = info


def open_model(job: LoadJob) -> WorkerModel:
    """Verify, load, and warm up.

    Raises:
        SourceError: the files are missing, damaged, or not those that were resolved.
        PressoirError: the model cannot be loaded, or fails its example.
    """
    check_model_folder(job.folder, job.name)
    found = folder_digest(job.folder, model_files(job.folder))[0]
    if found != job.digest:
        raise SourceError(
            f"model {job.name!r}: the files in {job.folder} have the digest {found}, but had {job.digest} "
            "when the configuration was resolved; restore them, or resolve the configuration again"
        )
    if job.runtime == "pytorch":
        use_threads(job.threads)
    model = _OPEN[job.task](job)
    for _ in model.operations["example"]():
        pass
    return model


def _classifier(job: LoadJob) -> WorkerModel:
    classifier = TextClassifier.open(job.folder, job.threads, job.runtime)
    encode = _Encoder(classifier.tokenizer, job.folder)

    def classify(texts: Sequence[str], max_length: int | None, max_tokens: int) -> Steps:
        """Probabilities (texts, labels), in the order of the model's labels."""
        inputs = encode(texts, max_length)
        logits = np.zeros((len(texts), len(classifier.labels)), dtype=np.float32)
        for rows in groups(_lengths(inputs), max_tokens):
            logits[rows] = classifier.engine.run(_part(inputs, rows))
            yield None
        shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
        if not np.isfinite(probabilities).all():
            raise RuntimeError("its probabilities are not finite; the weights are corrupt")
        return {"probabilities": probabilities.tolist()}, None

    info = {"labels": classifier.labels, "batch_invariant": classifier.engine.batch_invariant}
    return WorkerModel({"classify": classify}, info, lambda: classify([EXAMPLE], None, 0))


def _encoder(job: LoadJob) -> WorkerModel:
    encoder = SentenceEncoder.open(job.folder, job.threads, job.runtime)
    encode = _Encoder(encoder.tokenizer, job.folder)

    def embed(texts: Sequence[str], max_length: int | None, max_tokens: int) -> Steps:
        """Embeddings (texts, hidden)."""
        inputs = encode(texts, max_length)
        vectors: list[NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)] * len(texts)
        for rows in groups(_lengths(inputs), max_tokens):
            part = _part(inputs, rows)
            pooled = POOLINGS[encoder.pooling](encoder.engine.run(part), part["attention_mask"])
            for row, vector in zip(rows, pooled, strict=True):
                vectors[row] = vector
            yield None
        array = np.stack(vectors)
        if not np.isfinite(array).all():
            raise RuntimeError("its embeddings are not finite; the weights are corrupt")
        return {}, array

    info = {"batch_invariant": encoder.engine.batch_invariant}
    return WorkerModel({"embed": embed}, info, lambda: embed([EXAMPLE], None, 0))


def _translator(job: LoadJob) -> WorkerModel:
    translator = Translator.open(job.folder, job.threads, job.runtime)

    def translate(
        texts: Sequence[str],
        source_language: str | None,
        target_language: str | None,
        max_length: int | None,
        max_new_tokens: int | None,
        num_beams: int,
        max_tokens: int,
    ) -> Steps:
        """Translations, one a text."""
        model = copy.copy(translator)
        model.max_source_tokens = min(model.max_source_tokens, max_length or model.max_source_tokens)
        encoded, _ = model.encode(texts, source_language, target_language)
        answers = [""] * len(texts)
        for rows in groups([len(ids) for ids in encoded], max_tokens):
            found = model.translate(
                [texts[row] for row in rows],
                source_language,
                target_language,
                max_new_tokens=max_new_tokens,
                num_beams=num_beams,
                batch_size=len(rows),
            )
            for row, answer in zip(rows, found, strict=True):
                answers[row] = answer
            yield None
        return {"texts": answers}, None

    languages = translator.languages
    pair = [default or code for default, code in zip(translator.defaults, _ends(languages), strict=True)]
    info = {"languages": languages, "batch_invariant": translator.engine.batch_invariant}
    return WorkerModel(
        {"translate": translate}, info, lambda: translate([EXAMPLE], pair[0], pair[1], None, 2, 1, 0)
    )


class _CountedGenerator(TextGenerator):
    """One continuation, of which it is known how many tokens it took."""

    prompt = given = limit = 0
    max_length: int | None = None

    def generate_ids(self, ids: Sequence[int], max_new_tokens: int = 64, **sampling: Any) -> Iterator[int]:
        """See `TextGenerator.generate_ids`; prompt and continuation stay within `max_length` together."""
        if self.max_length is not None:
            if len(ids) >= self.max_length:
                raise PressoirError(
                    f"the prompt has {len(ids)} tokens, but max_length is {self.max_length} including "
                    f"generated tokens; shorten the prompt to {self.max_length - 1} tokens at most"
                )
            max_new_tokens = min(max_new_tokens, self.max_length - len(ids))
        self.prompt, self.limit = len(ids), min(max_new_tokens, self.decoder.context - len(ids))
        return self._counted(super().generate_ids(ids, max_new_tokens, **sampling))

    def _counted(self, tokens: Iterator[int]) -> Iterator[int]:
        for token in tokens:
            self.given += 1
            yield token


def _generator(job: LoadJob) -> WorkerModel:
    loaded = TextGenerator.open(job.folder, job.threads, job.runtime)

    def generate(prompt: str, max_length: int | None, max_new_tokens: int, **sampling: Any) -> Steps:
        """Pieces of text, then the number of tokens and why it ended."""
        generator = _CountedGenerator(loaded.decoder, loaded.tokenizer)
        generator.max_length = max_length
        yield from generator.generate(prompt, max_new_tokens=max_new_tokens, **sampling)
        reason = "length" if generator.given >= generator.limit else "stop"
        counts = {"prompt_tokens": generator.prompt, "completion_tokens": generator.given}
        return {**counts, "finish_reason": reason}, None

    def score(prompt: str, max_length: int | None) -> Steps:
        """Its tokens as text, and the log-probability of each but the first."""
        ids = loaded.tokenizer.encode(prompt)
        if max_length is not None and len(ids) > max_length:
            raise PressoirError(f"the text has {len(ids)} tokens, but max_length is {max_length}; shorten it")
        scores: list[float] = []
        for part in loaded.log_probabilities(ids):
            scores += part.tolist()
            yield None
        if not np.isfinite(scores).all():
            raise RuntimeError("its log-probabilities are not finite; the weights are corrupt")
        stream = TextStream(loaded.tokenizer)
        return {"tokens": [stream.push(id) for id in ids], "log_probabilities": scores}, None

    info = {"context": loaded.decoder.context, "batch_invariant": True}
    return WorkerModel({"generate": generate, "score": score}, info, lambda: generate(EXAMPLE, None, 2))


def _recognizer(job: LoadJob) -> WorkerModel:
    recognizer = SpeechRecognizer.open(job.folder, job.threads, job.runtime)
    model = recognizer.model

    def transcribe(
        array: NDArray[np.float32], language: str | None, max_new_tokens: int | None, num_beams: int
    ) -> Steps:
        """The transcript of one sound."""
        check_waveforms([array])
        if isinstance(model, CtcModel):
            yield None
            return {"text": model.transcribe(array, language)}, None
        parts = []
        for features in model.features(array):
            inputs = {"input_features": features[None]}
            prompt = model.prompt(inputs, language)
            tokens = model.engine.generate(
                inputs, prompt=prompt, max_new_tokens=max_new_tokens, num_beams=num_beams
            )
            parts.append(model.vocabulary.decode(tokens[0]))
            yield None
        return {"text": " ".join(filter(None, parts))}, None

    silence = np.zeros(int(_EXAMPLE_S * recognizer.sampling_rate), dtype=np.float32)
    info = {"sampling_rate": recognizer.sampling_rate, "batch_invariant": True}
    return WorkerModel({"transcribe": transcribe}, info, lambda: transcribe(silence, None, 2, 1))


_OPEN: dict[Task, Callable[[LoadJob], WorkerModel]] = {
    "text-classification": _classifier,
    "feature-extraction": _encoder,
    "translation": _translator,
    "causal-lm": _generator,
    "automatic-speech-recognition": _recognizer,
}


def groups(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Rows of like length together, each group of no more than `max_tokens` tokens with its padding.

    A row that alone is longer is a group of its own, as is every row if `max_tokens` is 0.
    """
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if group and (len(group) + 1) * lengths[row] > max_tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


class _Encoder:
    """A tokenizer that also cuts earlier than the model makes it."""

    def __init__(self, tokenizer: Any, folder: Path) -> None:
        self._tokenizer = tokenizer
        self._limited = lru_cache(_LIMITS)(lambda limit: FastTokenizer(folder, limit))

    def __call__(self, texts: Sequence[str], max_length: int | None) -> dict[str, NDArray[np.int64]]:
        """Token ids and masks, each (texts, longest), padded to the longest."""
        options: dict[str, Any] = {"padding": True, "truncation": True, "return_tensors": "np"}
        tokenizer = self._tokenizer
        if max_length is not None and max_length < tokenizer.model_max_length:
            if isinstance(tokenizer, FastTokenizer):
                tokenizer = self._limited(max_length)
            else:
                options["max_length"] = max_length
        encoded = tokenizer(list(texts), **options)
        return {name: np.asarray(array, dtype=np.int64) for name, array in encoded.items()}


def _lengths(inputs: dict[str, NDArray[np.int64]]) -> list[int]:
    lengths: list[int] = inputs["attention_mask"].sum(axis=1).tolist()
    return lengths


def _part(inputs: dict[str, NDArray[np.int64]], rows: list[int]) -> dict[str, NDArray[np.int64]]:
    """Some rows of a batch, and only the columns that one of them needs."""
    columns = inputs["attention_mask"][rows].any(axis=0)
    return {name: np.ascontiguousarray(array[rows][:, columns]) for name, array in inputs.items()}


def _ends(languages: Sequence[str]) -> tuple[str | None, str | None]:
    """Two languages to try a translator with; none where its pair is fixed."""
    return (languages[0], languages[-1]) if languages else (None, None)
