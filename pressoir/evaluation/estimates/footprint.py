"""What a model's weights and one sample's work take in memory, by the sizes in its files' headers.

**What.** Pure arithmetic on `config.json`, safetensors headers and file sizes; no model is loaded. With L
tokens, h the width, f the feed-forward width and a heads, all numbers float32 (4 bytes):

- a layer at work: its feed-forward, L (4h + 3f), or its attention, 6 L h and scores of a L² as often as the
  runtime holds them, whichever is more; the layers take turns. PyTorch's fused attention holds none, and a
  mask of L² at most; a graph whose attention is not fused has scores and probabilities, T5 one more.
- keys and values kept for the next token: 2 · layers · key width a token.
- logits: L · vocabulary, as often as they are held: as the model gives them, and shifted by their maximum.
- a convolution over sound: its output three times in PyTorch (itself, normalised, activated), twice in ONNX
  Runtime.

ONNX Runtime takes activations twice: what it took for a shape of input the first time it keeps in its arena,
and the second time it asks for one block that holds them all (`enable_mem_pattern`). Where that block is cut
out of what the logits had, they, too, are taken anew.

**Sources.** The layers' sizes as in V. Korthikanti et al. 2022, arXiv:2205.05198, section 3, without what is
kept for a backward pass; T. Dao et al. 2022, "FlashAttention" (arXiv:2205.14135); the factors are measured,
see docs/memory.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from pressoir.errors import SourceError
from pressoir.formats.folder import (
    QUANTIZATION,
    QuantizedLayer,
    Runtime,
    is_shape,
    quantized_layers,
    read_json,
)
from pressoir.formats.tensor_bytes import INDEX, read_index
from pressoir.system.reader import JSON_BYTES, parse_json

FLOAT = 4  # bytes of the number that everything is computed in
MASK = 2 * FLOAT  # bytes of a pair of tokens in an attention mask: as it is made, and as it is used
_GRAPH_FILES = ("*.onnx", "*.onnx.data", "*.onnx_data", "shard_*.safetensors")
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
ONNX_RUNS = 2  # see the module
# A frame of Whisper's sound in float64: its samples, windowed ones, spectrum and power (fft 400).
MEL_FRAME = 2 * 400 * 8 + 201 * (16 + 8)

Settings = Mapping[str, Any]


class Weights(NamedTuple):
    """What weights take."""

    resident: int
    """Bytes as long as the model is there."""
    loading: int
    """Bytes beside them while they are loaded."""


class Work(NamedTuple):
    """What a sample takes beside the weights."""

    alone: int
    """Bytes that do not grow with the batch."""
    each: int
    """Bytes a sample of a batch."""


# --- weights ------------------------------------------------------------------------------------------------


def weights(folder: Path, runtime: Runtime, config: Settings, unused: tuple[str, ...] = ()) -> Weights:
    """What a folder's weights take in a runtime; of damaged files, what they announce or hold.

    Those whose names begin with one of `unused` are not loaded.

    Raises:
        SourceError: there are none for that runtime.
    """
    return _graph(folder, config) if runtime == "onnxruntime" else _checkpoint(folder, unused)


def _checkpoint(folder: Path, unused: tuple[str, ...] = ()) -> Weights:
    """PyTorch computes in float32.

    Weights that are stored so are mapped: pages of the file, no copies. Others are copied one by one while
    their file is mapped. Packed ones are dequantised one by one; int8 of an encoder all at once.
    """
    files = sorted({*folder.glob("*.safetensors"), *_indexed(folder)})
    files = [path for path in files if path.is_file()]
    if not files:
        raise SourceError(f"{folder} has no *.safetensors weights; specify the folder of a PyTorch model")
    packed = {name: elements for name, (elements, _) in _quantised(folder).items()}
    resident = copied = 0
    for path in files:
        tensors = header(path)
        if not tensors:
            resident += path.stat().st_size
        for name, (dtype, elements, length) in tensors.items():
            if unused and name.startswith(unused):
                continue
            if name.rpartition(".")[0] in packed:
                resident += FLOAT * packed[name.rpartition(".")[0]] if name.endswith(".weight") else 0
                continue
            resident += FLOAT * elements if dtype in _FLOATS else length
            copied += length if dtype in _FLOATS and dtype != "F32" else 0
    if not packed:
        return Weights(resident, copied)
    if dynamic(folder):
        return Weights(resident, resident)
    largest = FLOAT * max(packed.values())
    return Weights(resident, copied + 3 * largest // 2)  # its numbers, and codes a byte each, twice


def _graph(folder: Path, config: Settings) -> Weights:
    """ONNX Runtime copies weights, one at a time, into the order that its kernels want."""
    files = sorted({path for pattern in _GRAPH_FILES for path in folder.glob(pattern) if path.is_file()})
    if not any(path.suffix == ".onnx" for path in files):
        raise SourceError(f"{folder} has no ONNX graph; export the model, or set runtime: pytorch")
    stored = sum(path.stat().st_size for path in files)
    layers = _quantised(folder)
    three = sum(elements for elements, bits in layers.values() if bits == 3)  # in memory they have 4 bits
    matrix = _largest_matrix(config)
    largest = max((elements for elements, _ in layers.values()), default=0)
    return Weights(stored + three // 2, min(stored, largest if largest >= matrix else FLOAT * matrix))


def _quantised(folder: Path) -> dict[str, QuantizedLayer]:
    return quantized_layers(read_object(folder / QUANTIZATION))


def header(path: Path) -> dict[str, tuple[str, int, int]]:
    """Type, elements and bytes of each tensor of a safetensors file, by name; empty where it says nothing.

    The file may be cut off behind its header.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(JSON_BYTES, path.stat().st_size):
                return {}
            entries = parse_json(file.read(length), str(path), SourceError, "")
        return {
            str(name): (
                str(entry["dtype"]),
                prod(int(size) for size in entry["shape"]),
                int(entry["data_offsets"][1]) - int(entry["data_offsets"][0]),
            )
            for name, entry in entries.items()
            if name != "__metadata__"
        }
    except (SourceError, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return {}


def _indexed(folder: Path) -> set[Path]:
    with suppress(SourceError):
        return set(read_index(folder / INDEX).values())
    return set()


def dynamic(folder: Path) -> bool:
    """Whether activations are quantised as they come, so that samples are run one at a time."""
    return read_object(folder / QUANTIZATION).get("activations") == "dynamic"


def _largest_matrix(config: Settings) -> int:
    """Elements of the largest table or matrix that an architecture has."""
    layer = layer_sizes(config)
    return max(layer.hidden * number(config, "vocab_size"), layer.hidden * layer.inner)


# --- work ---------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """Sizes of a stack of layers."""

    layers: int
    hidden: int
    inner: int
    heads: int
    key_width: int
    """Of all heads' keys, or values, together."""

    def work(self, tokens: int, copies_of_scores: int) -> int:
        """Bytes that one layer takes at work."""
        forward = tokens * (4 * self.hidden + 3 * self.inner)
        attention = 6 * tokens * self.hidden + copies_of_scores * self.heads * tokens**2
        return FLOAT * max(forward, attention)

    def cache(self, tokens: int) -> int:
        """Bytes of the keys and values of all layers."""
        return FLOAT * 2 * self.layers * self.key_width * tokens


def encoder(config: Settings, tokens: int, runtime: Runtime, fused: bool) -> Work:
    """A BERT-type encoder, classifier or not; `fused`: its graph's attention is one operator."""
    layer = layer_sizes(config, "encoder")
    states = FLOAT * 2 * tokens * layer.hidden
    if runtime == "pytorch":
        return Work(0, layer.work(tokens, 0) + MASK * tokens**2 + states)
    return Work(0, ONNX_RUNS * layer.work(tokens, 1 if fused else 2) + states)


def causal_lm(config: Settings, window: int, runtime: Runtime) -> Work:
    """A window of a causal LM: logits, those shifted by their maximum, the cache, a layer."""
    layer = layer_sizes(config)
    logits = FLOAT * window * number(config, "vocab_size")
    if runtime == "pytorch":
        return Work(0, 2 * logits + layer.cache(window) + layer.work(window, 0) + MASK * window**2)
    return Work(0, (1 + ONNX_RUNS) * logits + layer.cache(window) + ONNX_RUNS * layer.work(window, 2))


def translation(config: Settings, source: int, target: int, beams: int, runtime: Runtime) -> Work:
    """A text of `source` tokens to at most `target` tokens.

    The decoder's part comes once a beam. In ONNX Runtime texts are searched one by one where beams are more
    than one.
    """
    scores = 3 if "t5" in str(config.get("model_type")) else 0
    reading = layer_sizes(config, "encoder")
    once = reading.work(source, scores) + MASK * source**2 + FLOAT * 2 * source * reading.hidden
    row = decoder_row(config, source, target, beams > 1)
    if runtime == "pytorch":
        return Work(0, once + beams * row)
    once = ONNX_RUNS * reading.work(source, 2)
    ids = 64 * (source + target)
    return Work(0, once + row) if beams == 1 else Work(once + 2 * beams * row, ids)


def whisper(config: Settings, target: int, runtime: Runtime) -> Work:
    """One window of sound to at most `target` tokens."""
    layer, window = layer_sizes(config, "encoder"), number(config, "max_source_positions", default=1500)
    features = FLOAT * 2 * window * number(config, "num_mel_bins", default=80)
    convolved = FLOAT * 2 * window * layer.hidden * 3
    reading = max(convolved, layer.work(window, 0 if runtime == "pytorch" else 2))
    reading *= 1 if runtime == "pytorch" else ONNX_RUNS
    return Work(2 * window * MEL_FRAME, 2 * features + reading + decoder_row(config, window, target, False))


def ctc(config: Settings, samples: int, runtime: Runtime) -> Work:
    """A sound of so many samples, which is always run alone."""
    layer, length, convolved = layer_sizes(config, "encoder"), samples, 0
    kernels = zip(
        _sizes(config, "conv_dim", (512,) * 7),
        _sizes(config, "conv_kernel", (10, 3, 3, 3, 3, 2, 2)),
        _sizes(config, "conv_stride", (5, 2, 2, 2, 2, 2, 2)),
        strict=False,
    )
    for width, kernel, stride in kernels:
        length = max(1, (length - kernel) // max(stride, 1) + 1)
        convolved = max(convolved, FLOAT * width * length)
    groups = number(config, "num_conv_pos_embedding_groups", default=16)
    positions = layer.hidden**2 // groups * number(config, "num_conv_pos_embeddings", default=128)
    if runtime == "pytorch":
        return Work(max(3 * convolved, layer.work(length, 0)) + 3 * FLOAT * positions, 0)
    return Work(ONNX_RUNS * max(convolved * 21 // 10, layer.work(length, 2)), 0)


def decoder_row(config: Settings, source: int, target: int, searching: bool) -> int:
    """Bytes of one row in decoding: keys and values of both attentions, the encoder's states, logits.

    A step's cache is the last one's and one token more: for a moment both are there. Searching among beams,
    the cache is written in another order, and the scores of all tokens are sorted.
    """
    layer = layer_sizes(config, "decoder")
    states = FLOAT * source * layer.hidden
    logits = FLOAT * number(config, "vocab_size") * (6 if searching else 4)
    return layer.cache(source) * (2 if searching else 1) + 2 * layer.cache(target) + states + logits


def layer_sizes(config: Settings, prefix: str = "") -> Layer:
    """Sizes of the layers, by the usual names of their fields; `prefix`: of the `encoder` or `decoder`."""
    hidden = number(config, "hidden_size", "d_model", "n_embd", "dim")
    heads = max(
        1,
        number(config, f"{prefix}_attention_heads", "num_attention_heads", "n_head", "n_heads", "num_heads"),
    )
    layers = number(config, f"{prefix}_layers", "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    inner = number(
        config, f"{prefix}_ffn_dim", "intermediate_size", "n_inner", "d_ff", "hidden_dim", default=4 * hidden
    )
    if prefix == "decoder":
        layers = number(config, "num_decoder_layers", default=layers)
    head = number(config, "head_dim", "d_kv", default=hidden // heads)
    keys = number(config, "num_key_value_heads", default=heads)
    return Layer(layers, hidden, inner, heads, head * keys)


def number(config: Settings, *names: str, default: int = 0) -> int:
    """The first of these fields that is a positive number."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return default


def _sizes(config: Settings, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    value = config.get(name)
    return tuple(value) if is_shape(value) else default


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where it is missing or damaged, which the child will report."""
    try:
        return read_json(path)
    except SourceError:
        return {}


def settings(folder: Path) -> dict[str, Any]:
    """`config.json`, with the fields of its part about text; empty where it is missing or damaged."""
    config = read_object(folder / "config.json")
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config
