"""What a model folder is for, and what runs it: read from its files alone, no library is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeGuard

from pressoir.errors import ExtensionError, QuantizationError, SourceError
from pressoir.extensions import architecture, loader, task
from pressoir.formats.problems import TOKEN_HEAD
from pressoir.formats.tensor_bytes import INDEX, check_file, read_index
from pressoir.system import reader
from pressoir.system.files import MANIFEST

if TYPE_CHECKING:
    from pressoir.extensions.loader import Origin
    from pressoir.extensions.task_name import TaskName

WEIGHT_PATTERNS = ("*.safetensors", "*.onnx")
MODEL_FILES = (
    *(*WEIGHT_PATTERNS, "*.onnx.data", "*.onnx_data", "*.json", "*.txt", "*.model", "*.spm"),
    *("*.jinja", "additional_chat_templates/*.jinja", "bpe.codes", "prophetnet.tokenizer"),
    # how a sentence encoder makes one vector of its tokens'
    *("[1-9]_Pooling/config.json", "[1-9]_Dense/config.json", "[1-9]_Dense/model.safetensors"),
)
CARD = "README.md"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

ENCODER, DECODER = "encoder_model.onnx", "decoder_model.onnx"

Runtime = Literal["pytorch", "onnxruntime"]
GRAPH = "model.onnx"
QUANTIZATION = "quantization.json"
SHARD_MANIFEST = "shard_manifest.json"


def task_of(folder: Path) -> TaskName:
    """The task of a model, the first of its `tasks_of`."""
    return tasks_of(folder)[0]


def tasks_of(folder: Path) -> tuple[TaskName, ...]:
    """What a model can do, from the class that its configuration names: mostly one task.

    A model without a head is for feature extraction.

    Raises:
        SourceError: `config.json` is missing, broken, or names no architecture.
    """
    config: dict[str, Any] = read_json(folder / "config.json")
    names = config.get("architectures") or []
    if not isinstance(names, list) or not names:
        raise SourceError(
            f'{folder / "config.json"} specifies no architecture; add "architectures", such as '
            '["LlamaForCausalLM"]'
        )
    return tuple(declaration.name for declaration in task.tasks_of_architecture(str(names[0])))


def model_type_of(folder: Path) -> str:
    """The `model_type` of a model's configuration; empty where it names none.

    Raises:
        SourceError: `config.json` is missing or broken.
    """
    return str(read_json(folder / "config.json").get("model_type") or "")


def is_ctc(folder: Path) -> bool:
    """Whether a model has a CTC head, which gives each moment of a sound a letter.

    Raises:
        SourceError: `config.json` is missing or broken.
    """
    return has_ctc_head(read_json(folder / "config.json"))


def has_ctc_head(config: Mapping[str, Any]) -> bool:
    """The same, of a model's configuration."""
    names = config.get("architectures")
    return isinstance(names, list) and bool(names) and str(names[0]).endswith("ForCTC")


def is_token_classifier(folder: Path) -> bool:
    """Whether a folder has a model that tags each token; False where it has no configuration.

    Raises:
        SourceError: `config.json` is broken.
    """
    path = folder / "config.json"
    return path.exists() and has_token_head(read_json(path))


def has_token_head(config: Mapping[str, Any]) -> bool:
    """The same, of a model's configuration."""
    names = config.get("architectures")
    return isinstance(names, list) and bool(names) and str(names[0]).endswith(TOKEN_HEAD)


class QuantizedLayer(NamedTuple):
    """A matrix whose weights are stored as codes."""

    elements: int
    bits: int


def quantized_layers(description: Mapping[str, Any]) -> dict[str, QuantizedLayer]:
    """The layers that a `quantization.json` describes; one that shares another's weights is left out."""
    layers = description.get("layers")
    found = {}
    for name, layer in layers.items() if isinstance(layers, dict) else ():
        if isinstance(layer, dict) and is_shape(layer.get("shape")) and not layer.get("tied_to"):
            bits = layer.get("bits")
            if not isinstance(bits, int) or isinstance(bits, bool) or bits <= 0:
                bits = 8
            found[str(name)] = QuantizedLayer(prod(layer["shape"]), bits)
    return found


def is_shape(value: Any) -> TypeGuard[list[int]]:
    """Whether a value of a JSON file is a list of sizes."""
    return isinstance(value, list) and bool(value) and all(isinstance(size, int) for size in value)


def check_not_quantized(folder: Path) -> None:
    """Refuse a folder whose weights are codes already.

    Raises:
        QuantizationError: they are.
    """
    if (folder / QUANTIZATION).exists():
        raise QuantizationError(f"{folder} is already quantised; specify the original model")


def declared_by(folder: Path) -> set[Origin]:
    """The packages other than Pressoir that declare a model's architecture or task.

    Raises:
        SourceError: `config.json` is broken.
    """
    if not (folder / "config.json").exists():
        return set()
    kind, found = read_json(folder / "config.json").get("model_type"), set()
    if kind in loader.names(architecture.GROUP):
        found.add(loader.origin(architecture.GROUP, str(kind)))
    with suppress(SourceError, ExtensionError):  # a base model may have no task, or one that nobody declares
        found.add(loader.origin(task.GROUP, task_of(folder)))
    return {origin for origin in found if origin is not None}


def runtime_of(folder: Path, asked: Runtime | None = None) -> Runtime:
    """The runtime that a folder is run in: what is asked for, else ONNX Runtime where it has a graph."""
    if asked is not None:
        return asked
    return "onnxruntime" if any((folder / name).exists() for name in (GRAPH, ENCODER)) else "pytorch"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that belongs to a model folder; some configurations have numbers that are not finite.

    Raises:
        SourceError: it is missing, or not a JSON object within the limits of `pressoir.system.reader`.
    """
    return reader.read_object(path, SourceError, "download or create the model again", finite=False)


def model_files(folder: Path) -> list[Path]:
    """What is fetched of a model, and decides its digest: weights, graphs, configuration and tokenizer."""
    found = {path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.name != MANIFEST}
    return sorted(path for path in found if reader.is_file(path))


def check_model_folder(folder: Path, reference: str) -> None:
    """Check, from headers alone, that `folder` has a configuration and readable safetensors or a graph.

    Raises:
        SourceError: it says which file is missing, broken or unsafe.
    """
    if not (folder / "config.json").is_file():
        raise SourceError(
            f"model {reference!r}: {folder} has no config.json; is it a transformers model folder?"
        )
    weights = sorted({*folder.glob("*.safetensors"), *_indexed(folder, reference)})
    if not weights and not any(folder.glob("*.onnx")):  # an encoder-decoder is exported as two graphs
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise SourceError(
                f"model {reference!r}: {folder} has only pickled weights ({', '.join(pickles)}), which are "
                "rejected because loading them can execute code. If you trust them, convert them: "
                "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER, safe_serialization=True)"
            )
        raise SourceError(f"model {reference!r}: {folder} has no *.safetensors weights")
    for path in weights:
        try:
            check_file(path)
        except SourceError as error:
            raise SourceError(f"model {reference!r}: {error}") from error


def _indexed(folder: Path, reference: str) -> list[Path]:
    """The files that `model.safetensors.index.json` spreads the weights over; none without an index."""
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        return list(read_index(index).values())
    except SourceError as error:
        raise SourceError(f"model {reference!r}: {error}") from error
