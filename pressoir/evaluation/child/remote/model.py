"""What a model on a server is asked, and how answers become raw predictions, whatever the protocol."""

from __future__ import annotations

import string
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressoir.errors import PressoirError
from pressoir.evaluation.child.remote.endpoint import Endpoint
from pressoir.evaluation.datasets import DataSet
from pressoir.evaluation.jobs import Job, Remote
from pressoir.evaluation.records import Sample
from pressoir.inference.audio import SAMPLING_RATE, Waveform, read_audio


class RemoteModel(ABC):
    """A model on a server: a `Predictor`."""

    together = False

    def __init__(self, server: Endpoint, remote: Remote, job: Job, data: DataSet) -> None:
        self.server, self.name, self.job, self.labels = server, remote.model, job, data.labels
        self._places = {label.casefold(): index for index, label in enumerate(data.labels)}

    def length(self, sample: Sample) -> int:
        """Characters, or bytes of a file of sound."""
        return sample.length

    def predict(self, samples: Sequence[Sample]) -> list[Any]:
        """See `pressoir.evaluation.child.predictors`."""
        return [self._predict(sample.input) for sample in samples]

    def _predict(self, asked: Any) -> dict[str, Any]:
        if self.job.task == "text-classification":
            return self.classify(asked)
        if self.job.task == "translation":
            return {"text": self.translate(asked).strip()}
        if self.job.task == "automatic-speech-recognition":
            sound = read_audio(Path(asked), SAMPLING_RATE)
            text = self.transcribe(Path(asked), sound).strip()
            return {"text": text, "audio_s": len(sound) / SAMPLING_RATE}
        if self.job.task == "causal-lm":
            scores = self._finite(np.array(self.score(asked)), "log-probabilities")
            return {"nll": -float(scores.sum()), "tokens": len(scores)}
        first, second = self._finite(self.embed(asked), "embeddings")
        norms = float(np.linalg.norm(first) * np.linalg.norm(second))
        return {"similarity": float(first @ second) / max(norms, 1e-12)}

    @abstractmethod
    def check(self) -> None:
        """See that the server is ready and has the model, and that the protocol has what is asked for."""

    @abstractmethod
    def classify(self, text: str) -> dict[str, Any]:
        """The raw prediction for a text."""

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

    def _finite(self, values: NDArray[np.float64], what: str) -> NDArray[np.float64]:
        if not np.isfinite(values).all():
            raise PressoirError(f"{self.server.url}: {self.name} returned {what} that are not finite")
        return values
