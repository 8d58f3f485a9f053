"""What a model folder is for, read from its `config.json` alone: no library is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pressoir.errors import SourceError
from pressoir.inference.engines import read_json
from pressoir.registry import Task

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
