"""The lines that open a model folder: with optimum or transformers where they can, else with Pressoir."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pressoir.data.texts import takes_pairs
from pressoir.extensions.task import Task
from pressoir.formats.folder import GRAPH, QUANTIZATION, read_json
from pressoir.formats.packed_streams import has_streams
from pressoir.formats.problems import MULTI_LABEL, REGRESSION, problem_of

_PLACE = 'folder = "."  # the whole folder; from the hub: huggingface_hub.snapshot_download("USER/NAME")'


class _Pipeline(NamedTuple):
    """How a pipeline of transformers runs a model."""

    automatic: str
    """transformers' class for a checkpoint."""
    onnx: str
    """optimum's class for a graph."""
    options: str
    example: str


_GENERATION = _Pipeline(
    "AutoModelForCausalLM",
    "ORTModelForCausalLM",
    "",
    'print(answer("Once upon a time", max_new_tokens=64, do_sample=False)[0]["generated_text"])',
)
_PIPELINES = {
    "ForSequenceClassification": _Pipeline(
        "AutoModelForSequenceClassification",
        "ORTModelForSequenceClassification",
        "truncation=True",
        'print(answer("A sentence to classify."))',
    ),
    "ForTokenClassification": _Pipeline(
        "AutoModelForTokenClassification",
        "ORTModelForTokenClassification",
        'aggregation_strategy="first"',
        'print(answer("Maria lives in Porto."))',
    ),
    "ForCausalLM": _GENERATION,
    "LMHeadModel": _GENERATION,
}
"""By the end of the class name in `config.json`."""
_OF_PAIRS = {
    'answer("A sentence to classify.")': 'answer({"text": "A sentence.", "text_pair": "Another one."})',
    'model.predict(["A sentence to classify."])': 'model.predict([("A sentence.", "Another one.")])',
}
"""How a classifier of pairs is called, by the call of one of single texts."""
_EXAMPLES = {
    "TextClassifier": 'print(model.predict(["A sentence to classify."]))',
    "TokenClassifier": 'print([found.entities for found in model.tag(["Maria lives in Porto."])])',
    "TextGenerator": 'print("".join(model.generate("Once upon a time", max_new_tokens=64)))',
}


_SCORES = {
    MULTI_LABEL.name: 'function_to_apply="sigmoid", top_k=None',
    REGRESSION.name: 'function_to_apply="none"',
}
"""What a pipeline is told of a kind of problem that `config.json` alone does not say."""


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
    found = _loading(folder, task)
    if takes_pairs(read_json(folder / "config.json")):
        for single, pair in _OF_PAIRS.items():
            found = found._replace(code=found.code.replace(single, pair))
    return found


def _loading(folder: Path, task: Task) -> Loading:
    names = read_json(folder / "config.json").get("architectures") or [""]
    pipeline = next((row for head, row in _PIPELINES.items() if str(names[0]).endswith(head)), None)
    graph = (folder / GRAPH).is_file()
    if reason := _unreadable(folder, graph):
        note = f"Neither transformers nor optimum can open this folder: {reason}."
        return Loading("pressoir", "Pressoir", _with_pressoir(task), note)
    if pipeline is None:
        note = f"The class is the one that Pressoir has for the task {task.name}."
        return Loading("pressoir", "Pressoir", _with_pressoir(task), note)
    own = f"`{_adapter(task)[1]}.open(folder)`"
    scores = ""
    if str(names[0]).endswith("ForSequenceClassification"):
        scores = _SCORES.get(problem_of(read_json(folder / "config.json"), str(folder)).name, "")
    if graph:
        return Loading(
            "onnx",
            '`pip install "optimum[onnxruntime]"`',
            _with_pipeline("optimum.onnxruntime", pipeline.onnx, pipeline, task, scores),
            f"ONNX Runtime also opens `{GRAPH}` by itself, and Pressoir the folder: {own}, without PyTorch.",
        )
    return Loading(
        "transformers",
        "`pip install transformers torch`",
        _with_pipeline("transformers", pipeline.automatic, pipeline, task, scores),
        f"Pressoir opens the folder with {own}.",
    )


def _unreadable(folder: Path, graph: bool) -> str | None:
    """Why only Pressoir reads a folder; None where others do, too."""
    if graph:
        streams = has_streams(folder / GRAPH)
        return "its 3-bit weights are a bit stream, which Pressoir expands on loading" if streams else None
    packed = (folder / QUANTIZATION).is_file()
    return "its quantised weights are in Pressoir's own format" if packed else None


def _with_pipeline(library: str, name: str, pipeline: _Pipeline, task: Task, scores: str = "") -> str:
    if library == "transformers":
        imports = [f"from transformers import {', '.join(sorted((name, 'AutoTokenizer')))}, pipeline"]
    else:
        imports = [f"from {library} import {name}", "from transformers import AutoTokenizer, pipeline"]
    arguments = (f'"{task.pipeline_tag}"', "model=model", "tokenizer=tokenizer", pipeline.options)
    call = ", ".join(filter(None, (*arguments, scores)))
    opened = [f"model = {name}.from_pretrained(folder)", "tokenizer = AutoTokenizer.from_pretrained(folder)"]
    return "\n".join([*imports, "", _PLACE, *opened, f"answer = pipeline({call})", pipeline.example])


def _with_pressoir(task: Task) -> str:
    module, name = _adapter(task)
    example = _EXAMPLES.get(name)
    lines = [f"from {module} import {name}", "", _PLACE, f"model = {name}.open(folder)"]
    return "\n".join([*lines, *([example] if example else [])])


def _adapter(task: Task) -> tuple[str, str]:
    """Where the class is that opens the task's models, and its name; Pressoir's own are public."""
    module, _, name = (task.adapter or "").partition(":")
    return ("pressoir" if module.startswith("pressoir.") else module), name
