"""Models as a server runs them: operations in steps, within a budget of tokens, and an example of each.

`open_model` verifies a folder's digest, loads the model, and runs its example once, so that a model that is
reported as ready has answered. The answers are those of `pressoir.inference`; in addition, a batch is split
by its actual number of tokens, and every part is a step (see `pressoir.serving.worker.step_scheduler`).

========================  ===========================================================
task                      operations
========================  ===========================================================
text-classification       classify
token-classification      tag
feature-extraction        embed, embed_tokens
translation               translate
causal-lm                 generate, score
speech recognition        transcribe
all of them               example: a small request of its own, checked
========================  ===========================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pressoir.config import Config, Positive
from pressoir.data.texts import Text, Words, words_of
from pressoir.errors import PressoirError, SourceError
from pressoir.extensions.task import task
from pressoir.extensions.task_name import TaskName
from pressoir.formats.folder import Runtime, check_model_folder, model_files
from pressoir.formats.problems import SINGLE_LABEL
from pressoir.inference.automatic_speech_recognition import SpeechRecognizer
from pressoir.inference.feature_extraction import Embeddings, SentenceEncoder
from pressoir.inference.generation.penalties import Penalties
from pressoir.inference.generation.token_scores import TokenScore
from pressoir.inference.text_classification import TextClassifier
from pressoir.inference.text_generation import TextGenerator
from pressoir.inference.token_classification import TokenClassifier
from pressoir.inference.transcript import Heard
from pressoir.inference.translation import Translator
from pressoir.serving.worker.step_scheduler import Operations, Steps
from pressoir.system.files import folder_digest
from pressoir.system.runtime import use_threads

EXAMPLE = "The film was good."
_EXAMPLE_S = 0.5  # of silence
Item = TypeVar("Item")
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

    def classify(texts: Sequence[str | Sequence[str]], max_length: int | None, max_tokens: int) -> Steps:
        """Probabilities (texts, labels), in the order of the model's labels, or scores (texts, 1); which
        texts were truncated.

        A pair is a list of two, as JSON has it.
        """
        asked: list[Text] = [text if isinstance(text, str) else (text[0], text[1]) for text in texts]
        logits = np.zeros((len(texts), len(classifier.labels)), dtype=np.float32)
        truncated = [False] * len(texts)
        for found in classifier.iter_logits(asked, max_length, max_tokens):
            if found is not None:
                logits[found.rows] = found.values
                _fill(truncated, found.rows, found.truncated)
            yield None
        probabilities = _finite(classifier.problem.probabilities(logits), "probabilities").tolist()
        return {"probabilities": probabilities, "truncated": truncated}, None

    info = {
        "labels": classifier.labels,
        "pairs": classifier.pairs,
        "batch_invariant": classifier.engine.batch_invariant,
    }
    if classifier.problem is not SINGLE_LABEL:
        info |= {"problem": classifier.problem.name, "thresholds": classifier.thresholds}
    example: Text = (EXAMPLE, EXAMPLE) if classifier.pairs else EXAMPLE
    return WorkerModel({"classify": classify}, info, lambda: classify([example], None, 0))


def open_token_classifier(job: LoadJob) -> WorkerModel:
    """A token classifier."""
    classifier = TokenClassifier.open(job.folder, job.threads, job.runtime)

    def tag(texts: Sequence[Sequence[str]], max_length: int | None, max_tokens: int) -> Steps:
        """The tags of the words of each text, and their probabilities."""
        tags: list[list[str]] = [[] for _ in texts]
        scores: list[list[float]] = [[] for _ in texts]
        for found in classifier.iter_tagged([Words(text) for text in texts], max_length, max_tokens):
            if found is not None:
                row, tagged = found
                tags[row] = tagged.tags
                scores[row] = _finite(np.asarray(tagged.scores), "probabilities").tolist()
            else:
                yield None
        return {"tags": tags, "scores": scores}, None

    info = {"labels": classifier.labels, "batch_invariant": classifier.engine.batch_invariant}
    return WorkerModel({"tag": tag}, info, lambda: tag([words_of(EXAMPLE)], None, 0))


def open_encoder(job: LoadJob) -> WorkerModel:
    """An encoder of sentences."""
    encoder = SentenceEncoder.open(job.folder, job.threads, job.runtime)

    def embed(texts: Sequence[str], max_length: int | None, max_tokens: int) -> Steps:
        """Embeddings (texts, hidden), how many tokens of each text the model was given, and which it was not
        given as a whole."""
        return (yield from collected(encoder.iter_embeddings(texts, max_length, max_tokens), len(texts)))

    def embed_tokens(texts: Sequence[Sequence[int]], max_length: int | None, max_tokens: int) -> Steps:
        """The same, of texts that are token ids."""
        steps = encoder.iter_embeddings_of_ids(texts, max_length, max_tokens)
        return (yield from collected(steps, len(texts)))

    def collected(steps: Iterator[Embeddings | None], count: int) -> Steps:
        tokens, truncated = [0] * count, [False] * count
        vectors: list[NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)] * count
        for found in steps:
            if found is not None:
                _fill(vectors, found.rows, found.vectors)
                _fill(tokens, found.rows, found.tokens)
                _fill(truncated, found.rows, found.truncated)
            yield None
        return {"tokens": tokens, "truncated": truncated}, _finite(np.stack(vectors), "embeddings")

    info = {"batch_invariant": encoder.engine.batch_invariant}
    operations: Operations = {"embed": embed, "embed_tokens": embed_tokens}
    return WorkerModel(operations, info, lambda: embed([EXAMPLE], None, 0))


def open_translator(job: LoadJob) -> WorkerModel:
    """A translator."""
    translator = Translator.open(job.folder, job.threads, job.runtime)

    def translate(
        texts: Sequence[str], source_language: str | None, target_language: str | None, **settings: Any
    ) -> Steps:
        """Translations, one per text; `settings` are those of `Translator.iter_translations`."""
        translations, truncated = [""] * len(texts), [False] * len(texts)
        for found in translator.iter_translations(texts, source_language, target_language, **settings):
            if found is not None:
                _fill(translations, found.rows, found.texts)
                _fill(truncated, found.rows, found.truncated)
            yield None
        return {"texts": translations, "truncated": truncated}, None

    languages = translator.languages
    pair = [default or code for default, code in zip(translator.defaults, _ends(languages), strict=True)]
    info = {"languages": languages, "batch_invariant": translator.engine.batch_invariant}
    return WorkerModel(
        {"translate": translate}, info, lambda: translate([EXAMPLE], pair[0], pair[1], max_new_tokens=2)
    )


def open_generator(job: LoadJob) -> WorkerModel:
    """A causal LM."""
    generator = TextGenerator.open(job.folder, job.threads, job.runtime)

    def generate(
        prompt: str | list[int],
        max_length: int | None,
        max_new_tokens: int,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: Mapping[int | str, float] | None = None,
        **sampling: Any,
    ) -> Steps:
        """Pieces of text with their scored tokens, then the number of tokens and why it ended."""
        bias = {int(token): value for token, value in (logit_bias or {}).items()}  # JSON's keys are texts
        penalties = Penalties(frequency_penalty, presence_penalty, repetition_penalty, bias)
        continuation = generator.generate(
            prompt, max_length=max_length, max_new_tokens=max_new_tokens, penalties=penalties, **sampling
        )
        for piece in continuation:
            scored = continuation.take_scored()
            yield {"text": piece, "scored": scored} if scored else piece
        end = {
            "prompt_tokens": continuation.prompt_tokens,
            "completion_tokens": continuation.completion_tokens,
            "finish_reason": continuation.finish_reason,
        }
        return {**end, "scored": continuation.take_scored()}, None

    def score(prompt: str | list[int], max_length: int | None, top_scores: int = 0) -> Steps:
        """Its tokens, and the log-probability of each but the first."""
        ids = generator.ids(prompt)
        if max_length is not None and len(ids) > max_length:
            raise PressoirError(f"the text has {len(ids)} tokens, but max_length is {max_length}; shorten it")
        scores: list[TokenScore] = []
        for chunk in generator.scores(ids, top_scores):
            scores += chunk
            yield None
        return {"tokens": generator.described(scores)}, None

    info = {"context": generator.decoder.context, "batch_invariant": True}
    return WorkerModel({"generate": generate, "score": score}, info, lambda: generate(EXAMPLE, None, 2))


def open_recognizer(job: LoadJob) -> WorkerModel:
    """A speech recogniser."""
    recognizer = SpeechRecognizer.open(job.folder, job.threads, job.runtime)

    def transcribe(
        array: NDArray[np.float32],
        language: str | None,
        max_new_tokens: int | None,
        num_beams: int,
        times: Sequence[str] = (),
        scored: bool = True,
        **options: Any,
    ) -> Steps:
        """The transcript of one waveform, a step and a piece per window; with `times`, its segments or words.

        The rest as in `SpeechRecognizer.iter_transcript`.
        """
        given = (array, language, max_new_tokens, num_beams)
        if times:
            steps = recognizer.iter_segments(*given, words="word" in times, scored=scored, **options)
            return (yield from timed(steps))
        text = ""
        for window in recognizer.iter_transcript(*given, **options):
            piece = f" {window}" if text and window else window  # as `join_windows` has it
            text += piece
            yield piece
        return {"text": text, "language": None}, None

    def timed(steps: Iterator[Heard]) -> Steps:
        heard = []
        for step in steps:
            heard.append(step)
            yield None
        segments = [asdict(segment) for step in heard for segment in step.segments]
        words = [asdict(word) for step in heard for word in step.words]
        text = "".join(step.text for step in heard).strip()
        return {"text": text, "language": heard[-1].language, "segments": segments, "words": words}, None

    silence = np.zeros(int(_EXAMPLE_S * recognizer.sampling_rate), dtype=np.float32)
    info = {"sampling_rate": recognizer.sampling_rate, "batch_invariant": True}
    language = next(iter(recognizer.needed_languages), None)
    return WorkerModel({"transcribe": transcribe}, info, lambda: transcribe(silence, language, 2, 1))


def _fill(values: list[Item], rows: Sequence[int], found: Iterable[Item]) -> None:
    """Put what was found for some rows where it belongs."""
    for row, value in zip(rows, found, strict=True):
        values[row] = value


def _finite(values: Array, what: str) -> Array:
    if not np.isfinite(values).all():
        raise RuntimeError(f"its {what} are not finite; the weights are corrupt")
    return values


def _ends(languages: Sequence[str]) -> tuple[str | None, str | None]:
    """Two languages to try a translator with; none where its pair is fixed."""
    return (languages[0], languages[-1]) if languages else (None, None)
