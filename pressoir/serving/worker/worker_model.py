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

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pressoir.config import Config, Positive
from pressoir.errors import PressoirError, SourceError
from pressoir.extensions.task import task
from pressoir.extensions.task_name import TaskName
from pressoir.formats.folder import Runtime, check_model_folder, model_files
from pressoir.inference.automatic_speech_recognition import SpeechRecognizer, join_windows
from pressoir.inference.feature_extraction import SentenceEncoder
from pressoir.inference.text_classification import TextClassifier, softmax
from pressoir.inference.text_generation import TextGenerator
from pressoir.inference.translation import Translator
from pressoir.serving.worker.step_scheduler import Operations, Steps
from pressoir.system.files import folder_digest
from pressoir.system.runtime import use_threads

EXAMPLE = "The film was good."
_EXAMPLE_S = 0.5  # of silence
Array = TypeVar("Array", bound="NDArray[Any]")


class LoadJob(Config):
    """What a model is loaded from and as."""

    name: str
    """For messages."""
    folder: Path
    digest: str
    task: TaskName
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
    model: WorkerModel = task(job.task).part("worker")(job)
    for _ in model.operations["example"]():
        pass
    return model


def open_classifier(job: LoadJob) -> WorkerModel:
    """A classifier."""
    classifier = TextClassifier.open(job.folder, job.threads, job.runtime)

    def classify(texts: Sequence[str], max_length: int | None, max_tokens: int) -> Steps:
        """Probabilities (texts, labels), in the order of the model's labels."""
        logits = np.zeros((len(texts), len(classifier.labels)), dtype=np.float32)
        for rows, found in classifier.iter_logits(texts, max_length, max_tokens):
            logits[rows] = found
            yield None
        return {"probabilities": _finite(softmax(logits), "probabilities").tolist()}, None

    info = {"labels": classifier.labels, "batch_invariant": classifier.engine.batch_invariant}
    return WorkerModel({"classify": classify}, info, lambda: classify([EXAMPLE], None, 0))


def open_encoder(job: LoadJob) -> WorkerModel:
    """An encoder of sentences."""
    encoder = SentenceEncoder.open(job.folder, job.threads, job.runtime)

    def embed(texts: Sequence[str], max_length: int | None, max_tokens: int) -> Steps:
        """Embeddings (texts, hidden)."""
        vectors: list[NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)] * len(texts)
        for rows, found in encoder.iter_embeddings(texts, max_length, max_tokens):
            for row, vector in zip(rows, found, strict=True):
                vectors[row] = vector
            yield None
        return {}, _finite(np.stack(vectors), "embeddings")

    info = {"batch_invariant": encoder.engine.batch_invariant}
    return WorkerModel({"embed": embed}, info, lambda: embed([EXAMPLE], None, 0))


def open_translator(job: LoadJob) -> WorkerModel:
    """A translator."""
    translator = Translator.open(job.folder, job.threads, job.runtime)

    def translate(
        texts: Sequence[str], source_language: str | None, target_language: str | None, **settings: Any
    ) -> Steps:
        """Translations, one per text; `settings` are those of `Translator.iter_translations`."""
        translations = [""] * len(texts)
        for rows, found in translator.iter_translations(texts, source_language, target_language, **settings):
            for row, text in zip(rows, found, strict=True):
                translations[row] = text
            yield None
        return {"texts": translations}, None

    languages = translator.languages
    pair = [default or code for default, code in zip(translator.defaults, _ends(languages), strict=True)]
    info = {"languages": languages, "batch_invariant": translator.engine.batch_invariant}
    return WorkerModel(
        {"translate": translate}, info, lambda: translate([EXAMPLE], pair[0], pair[1], max_new_tokens=2)
    )


def open_generator(job: LoadJob) -> WorkerModel:
    """A causal LM."""
    generator = TextGenerator.open(job.folder, job.threads, job.runtime)

    def generate(prompt: str, max_length: int | None, max_new_tokens: int, **sampling: Any) -> Steps:
        """Pieces of text, then the number of tokens and why it ended."""
        continuation = generator.generate(
            prompt, max_length=max_length, max_new_tokens=max_new_tokens, **sampling
        )
        yield from continuation
        counts = {
            "prompt_tokens": continuation.prompt_tokens,
            "completion_tokens": continuation.completion_tokens,
        }
        return {**counts, "finish_reason": continuation.finish_reason}, None

    def score(prompt: str, max_length: int | None) -> Steps:
        """Its tokens as text, and the log-probability of each but the first."""
        ids = generator.tokenizer.encode(prompt)
        if max_length is not None and len(ids) > max_length:
            raise PressoirError(f"the text has {len(ids)} tokens, but max_length is {max_length}; shorten it")
        scores: list[float] = []
        for part in generator.log_probabilities(ids):
            scores += _finite(part, "log-probabilities").tolist()
            yield None
        return {"tokens": generator.token_texts(ids), "log_probabilities": scores}, None

    info = {"context": generator.decoder.context, "batch_invariant": True}
    return WorkerModel({"generate": generate, "score": score}, info, lambda: generate(EXAMPLE, None, 2))


def open_recognizer(job: LoadJob) -> WorkerModel:
    """A speech recogniser."""
    recognizer = SpeechRecognizer.open(job.folder, job.threads, job.runtime)

    def transcribe(
        array: NDArray[np.float32], language: str | None, max_new_tokens: int | None, num_beams: int
    ) -> Steps:
        """The transcript of one waveform, a step per window."""
        windows = []
        for text in recognizer.iter_transcript(array, language, max_new_tokens, num_beams):
            windows.append(text)
            yield None
        return {"text": join_windows(windows)}, None

    silence = np.zeros(int(_EXAMPLE_S * recognizer.sampling_rate), dtype=np.float32)
    info = {"sampling_rate": recognizer.sampling_rate, "batch_invariant": True}
    return WorkerModel({"transcribe": transcribe}, info, lambda: transcribe(silence, None, 2, 1))


def _finite(values: Array, what: str) -> Array:
    if not np.isfinite(values).all():
        raise RuntimeError(f"its {what} are not finite; the weights are corrupt")
    return values


def _ends(languages: Sequence[str]) -> tuple[str | None, str | None]:
    """Two languages to try a translator with; none where its pair is fixed."""
    return (languages[0], languages[-1]) if languages else (None, None)
