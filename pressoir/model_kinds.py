"""What a model folder is for, and what runs it: read from its files alone, no library is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pressoir.errors import SourceError
from pressoir.inference.engines import GRAPH, Runtime, read_json
from pressoir.inference.sequence_to_sequence import ENCODER
from pressoir.registry.catalogue import Task

_HEADS: dict[str, Task] = {
    "ForSequenceClassification": "text-classification",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForCTC": "automatic-speech-recognition",
    "ForSpeechSeq2Seq": "automatic-speech-recognition",
    "WhisperForConditionalGeneration": "automatic-speech-recognition",
    "ForConditionalGeneration": "translation",
    "MTModel": "translation",
}


def task_of(folder: Path) -> Task:
    """The task of a model, from the class that its configuration names.

    A model without a head is for feature extraction.

    Raises:
        SourceError: `config.json` is missing, broken, or names no architecture.
    """
    config: dict[str, Any] = read_json(folder / "config.json")
    names = config.get("architectures") or []
    if not isinstance(names, list) or not names:
        raise SourceError(
            f'{folder / "config.json"} names no architecture; add "architectures", such as '
            '["LlamaForCausalLM"]'
        )
    for head, task in _HEADS.items():
        if str(names[0]).endswith(head):
            return task
    return "feature-extraction"


def runtime_of(folder: Path, asked: Runtime | None = None) -> Runtime:
    """The runtime that a folder is run in: what is asked for, else ONNX Runtime where it has a graph."""
    if asked is not None:
        return asked
    return "onnxruntime" if any((folder / name).exists() for name in (GRAPH, ENCODER)) else "pytorch"
