"""What a model on a server is asked, and how answers become raw predictions, whatever the protocol."""

from __future__ import annotations

import string
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressoir.data.texts import Text
from pressoir.errors import PressoirError
from pressoir.evaluation.child.remote.endpoint import Endpoint
from pressoir.evaluation.datasets import DataSet
from pressoir.evaluation.jobs import Job, Remote
from pressoir.evaluation.records import EvaluationSample
from pressoir.extensions.task import task
from pressoir.inference.audio import SAMPLING_RATE, Waveform, read_audio


class RemoteModel(ABC):
    """A model on a server: a `Predictor`."""

    together = False

    def __init__(self, server: Endpoint, remote: Remote, job: Job, data: DataSet) -> None:
        self.server, self.name, self.job, self.labels = server, remote.model, job, data.labels
        self._places = {label.casefold(): index for index, label in enumerate(data.labels)}

    def length(self, sample: EvaluationSample) -> int:
        """Characters, or bytes of a file of sound."""
        return sample.length

    def predict(self, samples: Sequence[EvaluationSample]) -> list[Any]:
        """See `pressoir.evaluation.child.predictors`."""
        predict = task(self.job.task).part("remote")
        return [predict(self, sample.input) for sample in samples]

    @abstractmethod
    def check(self) -> None:
        """See that the server is ready and has the model, and that the protocol has what is asked for."""

    @abstractmethod
    def classify(self, text: Text) -> dict[str, Any]:
        """The raw prediction for a text, or for a pair."""

    def tag(self, words: Sequence[str]) -> list[str]:
        """The tag of each word."""
        raise PressoirError(
            f"{self.server.url}: its protocol has no tags of words; evaluate the model over kserve-v2"
        )

    @abstractmethod
    def translate(self, text: str) -> str:
        """The translation of a text."""

    @abstractmethod
    def transcribe(self, path: Path, sound: Waveform) -> str:
        """What is said in a file, whose sound at 16 kHz is `sound`."""

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Embeddings (texts, dimensions)."""

    @abstractmethod
    def score(self, text: str) -> list[float]:
        """Log-probabilities of a text's tokens, in nats, but for those that nothing precedes."""

    def label(self, name: str) -> int:
        """Place of a label, whatever case and punctuation its name comes in; −1 where there is none."""
        exact = name.strip().casefold()
        bare = exact.strip(string.punctuation + string.whitespace)
        return self._places.get(exact, self._places.get(bare, -1))

    def finite(self, values: NDArray[np.float64], what: str) -> NDArray[np.float64]:
        """The values; raises PressoirError where one is not finite."""
        if not np.isfinite(values).all():
            raise PressoirError(f"{self.server.url}: {self.name} returned {what} that are not finite")
        return values


def classification(model: RemoteModel, text: Text) -> dict[str, Any]:
    """A label."""
    return model.classify(text)


def token_classification(model: RemoteModel, words: Sequence[str]) -> dict[str, Any]:
    """The tags of words; of a tag that the data do not have, −1."""
    return {"tags": [model.label(tag) for tag in model.tag(words)]}


def translation(model: RemoteModel, text: str) -> dict[str, Any]:
    """A text in another language."""
    return {"text": model.translate(text).strip()}


def recognition(model: RemoteModel, file: str) -> dict[str, Any]:
    """What is said in a file of sound."""
    sound = read_audio(Path(file), SAMPLING_RATE)
    text = model.transcribe(Path(file), sound).strip()
    return {"text": text, "audio_s": len(sound) / SAMPLING_RATE}


def perplexity(model: RemoteModel, text: str) -> dict[str, Any]:
    """The likelihood of a text's tokens."""
    scores = model.finite(np.array(model.score(text)), "log-probabilities")
    return {"nll": -float(scores.sum()), "tokens": len(scores)}


def similarity(model: RemoteModel, pair: Sequence[str]) -> dict[str, Any]:
    """The cosine of two sentences' embeddings."""
    first, second = model.finite(model.embed(pair), "embeddings")
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return {"similarity": float(first @ second) / max(norms, 1e-12)}
