"""KServe v2, also named the Open Inference Protocol: tensors in, tensors out, as JSON.

https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from pressoir.data.texts import PAIR, Text
from pressoir.errors import DataError, PressoirError, RecipeError
from pressoir.evaluation.child.remote.model import RemoteModel
from pressoir.extensions.task import task
from pressoir.inference.audio import SAMPLING_RATE, Waveform

_FLOATS = ("FP16", "BF16", "FP32", "FP64")


class _Tensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    data: Any = None


_COUNTED = re.compile(r"(LABEL_)?\d+")  # what a class is called that has no name


class _Metadata(BaseModel):
    inputs: list[_Tensor] = []


class _Inference(BaseModel):
    outputs: list[_Tensor]


class KServe(RemoteModel):
    """Over KServe v2, also named the Open Inference Protocol."""

    def check(self) -> None:
        """See `RemoteModel.check`."""
        if "kserve-v2" not in task(self.job.task).protocols:
            raise RecipeError(
                f"{self.job.model}: perplexity is not supported by KServe v2; use a server with the OpenAI "
                "endpoint /v1/completions, and set protocol: openai"
            )
        self._path = f"/v2/models/{quote(self.name, safe='')}"
        self._check_ready("/v2/health/ready", "it", "check url and the log of the server")
        self._check_ready(f"{self._path}/ready", f"its model {self.name!r}", "check remote_model")
        answer = self.server.get(self._path)
        found = _Metadata() if answer.status == 404 else self.server.parsed(self._path, answer, _Metadata)
        self._inputs = found.inputs

    def classify(self, text: Text) -> dict[str, Any]:
        """See `RemoteModel.classify`; the name of a label that the data lack is an error."""
        first, *second = (text,) if isinstance(text, str) else text
        outputs = self._infer("BYTES", "text", [1], [first], second)
        rows = [self._numbers(tensor).reshape(-1) for tensor in _of(outputs, *_FLOATS)]
        values = next((self.finite(row, "values") for row in rows if len(row) == len(self.labels)), None)
        names = [self._texts(tensor)[0] for tensor in _of(outputs, "BYTES") if math.prod(tensor.shape) == 1]
        named = [index for index in map(self.label, names) if index >= 0]
        strange = len(names) == 1 and not named and not _COUNTED.fullmatch(names[0])
        if not named and (values is None or strange):
            if not names:
                raise self._unexpected(
                    f"FP32 (1, {len(self.labels)}), or BYTES (1,) with a label name", outputs
                )
            raise DataError(
                f"{self.server.url}: {self.name} returned {self.server.shown(names[0])!r}, but the labels "
                f"of the data are {', '.join(self.labels)}; use data that match the model"
            )
        best = -1 if values is None else int(values.argmax())
        label = named[0] if named else best
        return {"label": label, "logits": values.tolist() if values is not None and label == best else []}

    def tag(self, words: Sequence[str]) -> list[str]:
        """See `RemoteModel.tag`; words and tags are JSON in tensors of text, as for Pressoir's server."""
        outputs = self._infer("BYTES", "text", [1], [json.dumps(list(words))])
        for tensor in _of(outputs, "BYTES"):
            if tensor.name == "tags":
                with suppress(ValueError):
                    tags = json.loads(self._texts(tensor)[0])
                    if (
                        isinstance(tags, list)
                        and len(tags) == len(words)
                        and all(isinstance(t, str) for t in tags)
                    ):
                        return tags
        raise self._unexpected(f"BYTES (1,) named tags, a JSON list of {len(words)} tags", outputs)

    def translate(self, text: str) -> str:
        """See `RemoteModel.translate`."""
        outputs = self._infer(
            "BYTES",
            "text",
            [1],
            [text],
            source_language=self.job.data.source_language,
            target_language=self.job.data.target_language,
            max_new_tokens=self.job.generation.max_new_tokens,
            num_beams=self.job.generation.num_beams,
        )
        return self._text(outputs)

    def transcribe(self, path: Path, sound: Waveform) -> str:
        """See `RemoteModel.transcribe`."""
        language = self.job.data.source_language
        return self._text(
            self._infer(
                "FP32",
                "audio",
                [1, len(sound)],
                sound.tolist(),
                sampling_rate=SAMPLING_RATE,
                language=language,
            )
        )

    def embed(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """See `RemoteModel.embed`."""
        outputs = self._infer("BYTES", "text", [len(texts)], list(texts))
        for found in map(self._numbers, _of(outputs, *_FLOATS)):
            if found.ndim == 2 and len(found) == len(texts):
                return found
        raise self._unexpected(f"FP32 ({len(texts)}, dimensions)", outputs)

    def score(self, text: str) -> list[float]:
        """Not in this protocol, as `check` says."""
        raise NotImplementedError

    def _check_ready(self, path: str, what: str, todo: str) -> None:
        answer = self.server.get(path)
        body = answer.json
        said = body if isinstance(body, dict) else {}
        if answer.status == 404:
            raise PressoirError(f"{self.server.refused(path, answer)}; {todo}")
        if answer.status in (401, 403) or 300 <= answer.status < 400:
            raise self.server.refused(path, answer)
        if not answer.ok or said.get("ready") is False or said.get("live") is False:
            raise self.server.unreachable(f"{what} is not ready ({self.server.refused(path, answer)})", todo)

    def _infer(
        self,
        datatype: str,
        name: str,
        shape: list[int],
        data: list[Any],
        second: Sequence[str] = (),
        **parameters: str | int | None,
    ) -> list[_Tensor]:
        """What comes back for one input, whose name and rank are as the metadata say, and where there is a
        second text for that beside it, as `text_pair`.
        """
        fitting = sorted(_of(self._inputs, datatype), key=lambda tensor: tensor.name != name)
        if self._inputs and not fitting:
            raise PressoirError(
                f"{self.server.url}: {self.name} takes {self._shown(self._inputs)}, but {self.job.task} "
                f"needs a {datatype} input: the server must tokenize texts and extract features itself"
            )
        if fitting:
            name, rank = fitting[0].name, len(fitting[0].shape)
            shape = shape + [1] * (rank - len(shape)) if rank > 1 else [len(data)]
        tensor = {"name": name, "shape": shape, "datatype": datatype, "data": data}
        beside = [{**tensor, "name": PAIR, "data": [text]} for text in second]
        asked: dict[str, Any] = {"inputs": [tensor, *beside]}
        if given := {key: value for key, value in parameters.items() if value is not None}:
            asked["parameters"] = given
        return self.server.post(f"{self._path}/infer", _Inference, json=asked).outputs

    def _text(self, outputs: Sequence[_Tensor]) -> str:
        for texts in map(self._texts, _of(outputs, "BYTES")):
            if texts:
                return texts[0]
        raise self._unexpected("BYTES (1,): the text", outputs)

    def _numbers(self, tensor: _Tensor) -> NDArray[np.float64]:
        try:
            return np.array(tensor.data, dtype=np.float64).reshape(tensor.shape)
        except (ValueError, TypeError, OverflowError):
            raise self._unexpected("numbers that match the shape", [tensor]) from None

    def _texts(self, tensor: _Tensor) -> list[str]:
        texts = np.array(tensor.data, dtype=object).reshape(-1).tolist()
        if len(texts) != math.prod(tensor.shape) or not all(isinstance(text, str) for text in texts):
            raise self._unexpected("JSON strings that match the shape", [tensor])
        return texts

    def _unexpected(self, wanted: str, outputs: Sequence[_Tensor]) -> PressoirError:
        what = f"{self.job.task} needs {wanted}, but got {self._shown(outputs)}"
        return self.server.malformed(f"{self._path}/infer", what)

    def _shown(self, tensors: Sequence[_Tensor]) -> str:
        names = (f"{tensor.name} {tensor.datatype} {tuple(tensor.shape)}" for tensor in tensors)
        return self.server.shown(", ".join(names)) or "nothing"


def _of(tensors: Iterable[_Tensor], *datatypes: str) -> list[_Tensor]:
    return [tensor for tensor in tensors if tensor.datatype in datatypes]
