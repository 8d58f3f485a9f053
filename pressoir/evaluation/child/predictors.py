"""One adapter a task, over the engines of `pressoir.inference`: a batch of samples in, raw predictions out.

===========================  ==========================================
task                         raw prediction
===========================  ==========================================
text-classification          `{"label": int, "logits": [float, …]}`; multi-label
                             `{"labels": [int, …], "logits": [float, …]}`, regression `{"score": float}`
token-classification         `{"tags": [int, …]}`, one for each word
automatic-speech-recognition `{"text": str, "audio_s": float}`
translation                  `{"text": str}`
causal-lm                    `{"nll": float, "tokens": int}` of a window
feature-extraction           `{"similarity": float}` of a pair
===========================  ==========================================

Raw predictions are what metrics are computed from later, so that a new metric needs no new inference. They
must not depend on what a sample is batched with: engines that cannot promise that (dynamic int8 activations)
get one sample at a time, and so do CTC models, whose padding would be heard.

Here nothing is committed, and memory is not checked; see `pressoir.evaluation.child`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pressoir.data import running_text
from pressoir.errors import PressoirError, RecipeError, SourceError
from pressoir.evaluation.datasets import DataSet
from pressoir.evaluation.jobs import Device, Job
from pressoir.evaluation.records import EvaluationSample
from pressoir.extensions.task import task
from pressoir.formats.folder import model_type_of, runtime_of
from pressoir.formats.labels import match
from pressoir.formats.problems import MULTI_LABEL, PROBLEMS, REGRESSION, TOKENS
from pressoir.inference.engines.decoder import open_decoder
from pressoir.inference.feature_extraction import SentenceEncoder
from pressoir.inference.text_classification import TextClassifier
from pressoir.inference.text_generation import negative_log_likelihood
from pressoir.inference.token_classification import TokenClassifier
from pressoir.inference.tokenizers.tokenizers import LanguageModelTokenizer
from pressoir.inference.translation import Translator
from pressoir.system.runtime import use_threads


class BatchPredictor(Protocol):
    """A loaded model of one task."""

    together: bool
    """False where samples go through the model one at a time, whatever the batch."""

    def length(self, sample: EvaluationSample) -> int:
        """What a sample takes of a batch's memory, in tokens or windows; the longest are run first."""

    def predict(self, samples: Sequence[EvaluationSample]) -> list[Any]:
        """The raw prediction of each sample, JSON-able."""


Loaded = tuple[BatchPredictor, Any]
"""What a task's opener gives: the predictor, and the engine, whose `model` is moved to the device."""


def samples_of(job: Job, data: DataSet) -> tuple[EvaluationSample, ...]:
    """What the model is asked: the data's samples; of a causal LM, the windows of the data's texts.

    The id of a window is `<text>:<index>`, its input the window's token ids. Takes the tokenizer at most.

    Raises:
        DataError: a text is shorter than a window.
        SourceError: the tokenizer is missing or broken.
    """
    if not task(job.task).windows:
        return data.samples

    tokenizer = LanguageModelTokenizer.open(job.folder)
    size = job.generation.window
    windows: list[EvaluationSample] = []
    for sample in data.samples:
        left = None if job.samples is None else job.samples - len(windows)
        if left == 0:
            break
        cut = running_text.windows(tokenizer.encode(sample.input), size, left)
        windows += [
            EvaluationSample(id=f"{sample.id}:{index}", input=row, reference=None, length=size)
            for index, row in enumerate(cut)
        ]
    return tuple(windows)


def open_predictor(job: Job, data: DataSet) -> BatchPredictor:
    """Load a job's model.

    Raises:
        SourceError: its files are missing, damaged, or of another kind of model.
        RecipeError: the data do not go with the model, or the device does not exist.
    """
    runtime = runtime_of(job.folder, job.runtime)
    device = _device(job.device) if runtime == "pytorch" else "cpu"
    if runtime == "pytorch":
        use_threads(job.threads)
    loaded: Loaded = task(job.task).part("predictor")(job, data)
    predictor, engine = loaded
    if device != "cpu":
        engine.model.to(device)
    return predictor


class Classification:
    """Sentences to labels or scores; indices and logits are in the order of the data's labels."""

    def __init__(self, classifier: Any, columns: Sequence[int]) -> None:
        self._classifier, self._columns = classifier, list(columns)
        self.together = bool(classifier.engine.batch_invariant)

    def length(self, sample: EvaluationSample) -> int:
        """Tokens."""
        return int(self._classifier.encode([sample.input])["input_ids"].shape[1])

    def predict(self, samples: Sequence[EvaluationSample]) -> list[Any]:
        """See the module."""
        logits = self._classifier.logits([sample.input for sample in samples], len(samples))
        logits = _finite(logits[:, self._columns], "logits")  # (batch, labels of the data)
        problem, limits = self._classifier.problem, self._classifier.thresholds
        labels = problem.decide(logits, limits and [limits[column] for column in self._columns])
        if problem is REGRESSION:
            return [{"score": float(score)} for score in labels]
        if problem is MULTI_LABEL:
            return [
                {"labels": np.flatnonzero(own).tolist(), "logits": [float(value) for value in row]}
                for own, row in zip(labels, logits, strict=True)
            ]
        return [
            {"label": int(label), "logits": [float(value) for value in row]}
            for label, row in zip(labels, logits, strict=True)
        ]


class TokenClassification:
    """Words to tags; indices are in the order of the data's labels."""

    def __init__(self, classifier: TokenClassifier, columns: Sequence[int]) -> None:
        self._classifier, self._columns = classifier, list(columns)
        self.together = bool(classifier.engine.batch_invariant)

    def length(self, sample: EvaluationSample) -> int:
        """Tokens."""
        return int(self._classifier.encode([sample.input])["input_ids"].shape[1])

    def predict(self, samples: Sequence[EvaluationSample]) -> list[Any]:
        """See the module; −100 of a word without a token."""
        texts = [sample.input for sample in samples]
        logits = _finite(self._classifier.logits(texts, len(samples))[..., self._columns], "logits")
        tags = TOKENS.decide(logits, None)
        return [{"tags": row[: len(text)].tolist()} for row, text in zip(tags, texts, strict=True)]


class Recognition:
    """Sound to text."""

    def __init__(self, recognizer: Any, language: str | None, together: bool) -> None:
        self._recognizer, self._language, self.together = recognizer, language, together

    def length(self, sample: EvaluationSample) -> int:
        """Whisper hears windows of one length; others are run alone, the longest files first."""
        return 1 if self.together else sample.length

    def predict(self, samples: Sequence[EvaluationSample]) -> list[Any]:
        """See the module."""
        from pressoir.inference.audio import read_audio

        rate = self._recognizer.sampling_rate
        sounds = [read_audio(Path(sample.input), rate) for sample in samples]
        texts = (
            self._windows_together(sounds)
            if self.together
            else self._recognizer.transcribe(sounds, self._language)
        )
        return [
            {"text": text, "audio_s": len(sound) / rate} for text, sound in zip(texts, sounds, strict=True)
        ]

    def _windows_together(self, sounds: Sequence[NDArray[np.float32]]) -> list[str]:
        """Whisper: windows that the decoder is prompted alike for, as many together as there are sounds."""
        from pressoir.inference.audio import join_windows

        model, limit = self._recognizer.model, len(sounds)
        windows: list[tuple[int, NDArray[np.float32]]] = []
        alike: dict[tuple[int, ...], list[int]] = {}
        for index, sound in enumerate(sounds):
            features = model.features(sound)
            prompt = model.prompt({"input_features": features[0][None]}, self._language)
            alike.setdefault(prompt, []).extend(range(len(windows), len(windows) + len(features)))
            windows += [(index, window) for window in features]
        texts = [""] * len(windows)
        for prompt, positions in alike.items():
            for start in range(0, len(positions), limit):
                chosen = positions[start : start + limit]
                inputs = {"input_features": np.stack([windows[position][1] for position in chosen])}
                for position, tokens in zip(
                    chosen, model.engine.generate(inputs, prompt=prompt), strict=True
                ):
                    texts[position] = model.vocabulary.decode(tokens)
        heard: list[list[str]] = [[] for _ in sounds]
        for (index, _), text in zip(windows, texts, strict=True):
            heard[index].append(text)
        return [join_windows(window_texts) for window_texts in heard]


class Translation:
    """Text to text."""

    def __init__(self, translator: Any, job: Job, together: bool) -> None:
        self._translator = translator
        self._languages = job.data.source_language, job.data.target_language
        self._generation = job.generation
        self.together = together

    def length(self, sample: EvaluationSample) -> int:
        """Tokens of the source, and of the longest translation."""
        ids, _ = self._translator.encode([sample.input], *self._languages)
        return len(ids[0]) + self._generation.max_new_tokens

    def predict(self, samples: Sequence[EvaluationSample]) -> list[Any]:
        """See the module."""
        texts = self._translator.translate(
            [sample.input for sample in samples],
            *self._languages,
            max_new_tokens=self._generation.max_new_tokens,
            num_beams=self._generation.num_beams,
            batch_size=len(samples),
        )
        return [{"text": text} for text in texts]


class Windows:
    """Token windows to the negative log-likelihood of all their tokens but the first."""

    together = True

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    def length(self, sample: EvaluationSample) -> int:
        """Tokens."""
        return sample.length

    def predict(self, samples: Sequence[EvaluationSample]) -> list[Any]:
        """See the module; `nll` is in nats, summed over the `tokens`."""
        ids = np.stack([sample.input for sample in samples])  # (batch, window)
        logits, _ = self._decoder.forward(ids)
        sums = _finite(negative_log_likelihood(logits[:, :-1], ids[:, 1:]).sum(axis=1), "logits")
        return [{"nll": float(value), "tokens": ids.shape[1] - 1} for value in sums]


class Similarity:
    """Pairs of sentences to the cosine similarity of their embeddings."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder
        self.together = bool(encoder.engine.batch_invariant)

    def length(self, sample: EvaluationSample) -> int:
        """Tokens of the longer sentence."""
        return int(self._encoder.encode(list(sample.input))["input_ids"].shape[1])

    def predict(self, samples: Sequence[EvaluationSample]) -> list[Any]:
        """See the module."""
        first, second = zip(*(sample.input for sample in samples), strict=True)
        values = _finite(self._encoder.similarity(first, second), "embeddings")
        return [{"similarity": float(value)} for value in values]


def classification(job: Job, data: DataSet) -> Loaded:
    """A classifier."""
    classifier = TextClassifier.open(job.folder, job.threads, job.runtime)
    if classifier.pairs and job.data.classification.text_pair_column is None:
        raise RecipeError(
            f"{job.model} was trained on pairs of texts; set text_pair_column of the data set, or leave the "
            "model out"
        )
    wanted = PROBLEMS[data.problem]
    if classifier.problem is not wanted:
        raise SourceError(f"{job.model} is {classifier.problem.model}; {wanted.model} is needed")
    if wanted is REGRESSION:
        return Classification(classifier, [0]), classifier.engine
    columns = match(classifier.labels, data.labels, ordered=job.data.classification.labels is not None)
    return Classification(classifier, columns), classifier.engine


def token_classification(job: Job, data: DataSet) -> Loaded:
    """A token classifier."""
    classifier = TokenClassifier.open(job.folder, job.threads, job.runtime)
    columns = match(classifier.labels, data.labels, ordered=job.data.classification.labels is not None)
    return TokenClassification(classifier, columns), classifier.engine


def recognition(job: Job, data: DataSet) -> Loaded:
    """A speech recogniser of any kind."""
    from pressoir.inference.automatic_speech_recognition import SpeechRecognizer
    from pressoir.inference.whisper import WhisperModel

    recognizer = SpeechRecognizer.open(job.folder, job.threads, job.runtime)
    model = recognizer.model
    # The data may be for models of one language, too: those are not given one.
    language = job.data.source_language if model.takes_language else None
    together = isinstance(model, WhisperModel) and bool(model.engine.batch_invariant)
    return Recognition(recognizer, language, together), model.engine


def translation(job: Job, data: DataSet) -> Loaded:
    """A translator."""
    if model_type_of(job.folder) in task(job.task).evaluated_only:
        from pressoir.inference.transformers_speech import SeamlessTranslator

        seamless = SeamlessTranslator.open(job.folder, job.threads)
        return Translation(seamless, job, together=False), seamless.engine
    translator = Translator.open(job.folder, job.threads, job.runtime)
    return Translation(translator, job, bool(translator.engine.batch_invariant)), translator.engine


def perplexity(job: Job, data: DataSet) -> Loaded:
    """A causal LM; raises RecipeError where a window is longer than its context."""
    decoder = open_decoder(job.folder, job.threads, job.runtime)
    if job.generation.window > decoder.context:
        raise RecipeError(
            f"generation.window is {job.generation.window}, but {job.model} has a context of "
            f"{decoder.context} tokens; specify at most that"
        )
    return Windows(decoder), decoder


def similarity(job: Job, data: DataSet) -> Loaded:
    """A sentence encoder."""
    encoder = SentenceEncoder.open(job.folder, job.threads, job.runtime)
    return Similarity(encoder), encoder.engine


def _finite(values: NDArray[Any], what: str) -> NDArray[Any]:
    if not np.isfinite(values).all():
        raise PressoirError(f"the model produced {what} that are not finite; its weights are corrupt")
    return values


def _device(asked: Device) -> str:
    if asked == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        raise RecipeError("device is 'cuda', but PyTorch finds no GPU; set device to auto or cpu")
    return "cpu"
