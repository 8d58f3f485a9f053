"""The lines that open a model folder: with optimum or transformers where they can, else with Pressoir."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pressoir.extensions.task import Task
from pressoir.formats.folder import GRAPH, QUANTIZATION, read_json
from pressoir.formats.packed_streams import has_streams

_PLACE = 'folder = "."  # the whole folder; from the hub: huggingface_hub.snapshot_download("USER/NAME")'
# By the end of the class name in `config.json`: transformers' class, optimum's, the pipeline, its options, an
# example.
_PIPELINES = {
    "ForSequenceClassification": (
        *("AutoModelForSequenceClassification", "ORTModelForSequenceClassification", "text-classification"),
        *("truncation=True", 'print(answer("A sentence to classify."))'),
    ),
    **dict.fromkeys(
        ("ForCausalLM", "LMHeadModel"),
        (
            *("AutoModelForCausalLM", "ORTModelForCausalLM", "text-generation", ""),
            'print(answer("Once upon a time", max_new_tokens=64, do_sample=False)[0]["generated_text"])',
        ),
    ),
}
_EXAMPLES = {
    "TextClassifier": 'print(model.predict(["A sentence to classify."]))',
    "TextGenerator": 'print("".join(model.generate("Once upon a time", max_new_tokens=64)))',
}


class Loading(NamedTuple):
    """How a folder is opened."""

    library: str
    """The hub's name for what opens it."""
    needs: str
    """What has to be installed."""
    code: str
    """Python that opens the folder it is run in, and prints one answer."""
    note: str
    """What cannot open it, and what else can."""


def loading(folder: Path, task: Task) -> Loading:
    """How the model of `folder` is opened.

    Raises:
        SourceError: a file of the folder is missing or damaged.
    """
    names = read_json(folder / "config.json").get("architectures") or [""]
    known = next((row for head, row in _PIPELINES.items() if str(names[0]).endswith(head)), None)
    graph = (folder / GRAPH).is_file()
    reason = _unreadable(folder, graph)
    if known is None or reason is not None:
        reason = reason or "they have no class for it"
        return Loading(
            "pressoir",
            "Pressoir",
            _with_pressoir(task),
            f"Neither transformers nor optimum can open this folder: {reason}.",
        )
    automatic, onnx, pipeline, options, example = known
    own = f"`{_adapter(task)[1]}.open(folder)`"
    if graph:
        return Loading(
            "onnx",
            '`pip install "optimum[onnxruntime]"`',
            _with_pipeline("optimum.onnxruntime", onnx, pipeline, options, example),
            f"ONNX Runtime also opens `{GRAPH}` by itself, and Pressoir the folder: {own}, without PyTorch.",
        )
    return Loading(
        "transformers",
        "`pip install transformers torch`",
        _with_pipeline("transformers", automatic, pipeline, options, example),
        f"Pressoir opens the folder with {own}.",
    )


def _unreadable(folder: Path, graph: bool) -> str | None:
    """Why only Pressoir reads a folder; None where others do, too."""
    if graph:
        streams = has_streams(folder / GRAPH)
        return "its 3-bit weights are a bit stream, which Pressoir expands on loading" if streams else None
    packed = (folder / QUANTIZATION).is_file()
    return "its quantised weights are in Pressoir's own format" if packed else None


def _with_pipeline(library: str, name: str, pipeline: str, options: str, example: str) -> str:
    if library == "transformers":
        imports = [f"from transformers import {', '.join(sorted((name, 'AutoTokenizer')))}, pipeline"]
    else:
        imports = [f"from {library} import {name}", "from transformers import AutoTokenizer, pipeline"]
    call = ", ".join(filter(None, (f'"{pipeline}"', "model=model", "tokenizer=tokenizer", options)))
    opened = [f"model = {name}.from_pretrained(folder)", "tokenizer = AutoTokenizer.from_pretrained(folder)"]
    return "\n".join([*imports, "", _PLACE, *opened, f"answer = pipeline({call})", example])


def _with_pressoir(task: Task) -> str:
    module, name = _adapter(task)
    example = _EXAMPLES.get(name)
    lines = [f"from {module} import {name}", "", _PLACE, f"model = {name}.open(folder)"]
    return "\n".join([*lines, *([example] if example else [])])


def _adapter(task: Task) -> tuple[str, str]:
    """Where the class is that opens the task's models, and its name; Pressoir's own are public."""
    module, _, name = (task.adapter or "").partition(":")
    return ("pressoir" if module.startswith("pressoir.") else module), name
