"""Peak memory of a child by formula: process, weights, and the longest sample's work.

**What.** The sum of

- the process: interpreter and libraries, measured (see the constants);
- the weights in the runtime's number format, from headers and file sizes;
- what loading takes beside them, as far as one sample's work does not take it again;
- a sample's work: activations, logits and caches of the longest sample, by the architecture's sizes, times
  the batch.

The last three are `pressoir.evaluation.estimates.footprint`'s. How well they hold is measured by
`benchmarks/memory_estimates.py`, for the CPU: what a GPU's driver takes of the RAM is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pressoir.evaluation.datasets import DataSet
from pressoir.evaluation.estimates import footprint
from pressoir.evaluation.estimates.footprint import FLOAT, Work
from pressoir.evaluation.jobs import Job
from pressoir.evaluation.records import Estimate, Sample
from pressoir.formats.folder import Runtime, runtime_of
from pressoir.formats.tokenizer_limit import MAX_TOKENS
from pressoir.inference.engines.encoder_decoder import DEFAULT_NEW_TOKENS
from pressoir.inference.tokenizers.encoder_decoder import TOKENIZER

KB, MB = 10**3, 10**6

# Bytes of processes that have done their imports and a first tiny model's work (VmHWM). All of a child's:
INTERPRETER = 55 * MB  # Python, NumPy, pydantic
TORCH = 530 * MB  # with torch and transformers
ONNX = 105 * MB  # with onnxruntime and tokenizers
# What some add: soundfile, soxr and features; oneDNN's code and buffers; the datasets library.
SPEECH, CONVOLUTIONS = 10 * MB, 60 * MB
TORCH_DATASETS, ONNX_DATASETS = 40 * MB, 125 * MB
REMOTE = 90 * MB  # without any of these, with an HTTP client
REQUEST = 4  # of a sound in a request to a server, times what it takes as an array: numbers, and their text
PRODUCTS = 40 * MB  # what PyTorch's matrix products with a vocabulary of tens of thousands take

TOKENIZER_FACTOR = 20
"""Bytes in memory of a byte of a tokenizer's file: maps from tokens to ids and back."""
CHARACTER = 150
"""Bytes that a character takes while the tokenizers library encodes a long text."""
TABLE = 6
"""Bytes of a byte of a table of sentences while copies among its rows are looked for."""
SAMPLE = 1500
"""Bytes of a sample beside its text."""
HEAP = 1.15
"""PyTorch's activations, as the C library holds them: what is freed leaves holes."""
MARGIN = 0.05
"""Added to everything: the same run takes a little more now, a little less then."""
SPECIAL_TOKENS = 12  # languages, begin, end, T5's instruction
QUICK_TOKENIZER = 8 * MB
"""A tokenizer's file up to this size loads in a quarter of a second; most take 50 ms."""
_LOOKED_AT = 8  # longest samples, by characters or bytes
_NEEDS_NO_TOKENIZER = ("automatic-speech-recognition",)


def estimate(job: Job, data: DataSet) -> Estimate:
    """Peak memory by formula, without loading anything.

    `details` are the parts of `fixed_bytes`: `process`, `tokenizer`, `data`, `weights`, `work` (what does not
    grow with the batch), `loading` and `text` (what loading and cutting the text take beyond all that and one
    sample's work), and the margin.

    Raises:
        SourceError: the model's folder has no weights for its runtime.
    """
    if job.remote is not None:
        each = MB + REQUEST * _held(job, data)
        return _assemble(job, {"process": REMOTE, "data": _data_bytes(data)}, 0, each, 0, 0)
    runtime, config = runtime_of(job.folder, job.runtime), footprint.settings(job.folder)
    weights = footprint.weights(job.folder, runtime, config)
    work = _work(job, data, runtime, config)
    fast = (job.folder / TOKENIZER).exists()
    torch = runtime == "pytorch" or (not fast and job.task not in _NEEDS_NO_TOKENIZER)
    parts = {
        "process": _process(job, torch),
        "tokenizer": TOKENIZER_FACTOR * _tokenizer_bytes(job.folder),
        "data": _data_bytes(data),
        "weights": weights.resident,
    }
    heap = HEAP if runtime == "pytorch" else 1.0
    alone, each = (round(heap * size) for size in work)
    if not _together(job, runtime):
        alone, each = alone + each, _held(job, data)
    return _assemble(job, parts, alone, each, weights.loading, _text_bytes(job, data, torch and not fast))


def _assemble(job: Job, parts: dict[str, int], alone: int, each: int, loading: int, text: int) -> Estimate:
    """Loading and cutting the text are over when a sample's work begins: they do not add to it."""
    parts = parts | {"work": alone}
    parts["loading"] = max(0, loading - alone - each)
    parts["text"] = max(0, text - sum(parts.values()) - each)
    parts["margin"] = round(MARGIN * sum(parts.values()))
    parts = {name: size for name, size in parts.items() if size}
    return Estimate(
        model=job.model,
        fixed_bytes=sum(parts.values()),
        per_sample_bytes=round((1 + MARGIN) * each),
        origin="formula",
        details=parts,
    )


def _process(job: Job, torch: bool) -> int:
    process = TORCH if torch else ONNX
    if job.task == "automatic-speech-recognition":
        process += SPEECH
        process += CONVOLUTIONS if torch and _is_ctc(job) else 0
    classification = job.data.classification
    if job.task == "text-classification" and (classification.source == "hub" or classification.test_samples):
        process += TORCH_DATASETS if torch else ONNX_DATASETS
    return process


def _work(job: Job, data: DataSet, runtime: Runtime, config: dict[str, Any]) -> Work:
    """What the longest sample takes."""
    generation, limit = (
        job.generation,
        footprint.number(config, "max_position_embeddings", default=MAX_TOKENS),
    )
    if job.task == "causal-lm":
        work = footprint.causal_lm(config, generation.window, runtime)
        return Work(work.alone + (PRODUCTS if runtime == "pytorch" else 0), work.each)
    if job.task == "automatic-speech-recognition":
        if _is_ctc(job):
            return footprint.ctc(config, round(_longest_s(data) * _rate(job.folder)), runtime)
        work = footprint.whisper(config, _answer(job.folder, config), runtime)
        return Work(work.alone, work.each + _held(job, data))
    tokens = _tokens(job.folder, data, min(limit, MAX_TOKENS))
    if job.task == "translation":
        context = footprint.number(config, "max_position_embeddings", default=generation.max_new_tokens)
        target = min(generation.max_new_tokens, context) + 1
        return footprint.translation(config, tokens, target, generation.num_beams, runtime)
    return footprint.encoder(config, tokens, runtime, fused=job.task == "text-classification")


def _together(job: Job, runtime: Runtime) -> bool:
    """Whether samples go through the model together; see `predictors`."""
    alone = footprint.dynamic(job.folder)
    return not (_is_ctc(job) or (alone and (runtime == "onnxruntime" or job.task == "text-classification")))


def _answer(folder: Path, config: dict[str, Any]) -> int:
    """Tokens of the longest transcription; as `sequence_to_sequence.Generation` has it."""
    settings = {**config, **footprint.read_object(folder / "generation_config.json")}
    longest = footprint.number(settings, "max_new_tokens", "max_length", default=DEFAULT_NEW_TOKENS)
    return min(longest, footprint.number(settings, "max_target_positions", default=longest))


def _is_ctc(job: Job) -> bool:
    names = footprint.settings(job.folder).get("architectures")
    return isinstance(names, list) and bool(names) and str(names[0]).endswith("ForCTC")


def _held(job: Job, data: DataSet) -> int:
    """Bytes of a sample of a batch that waits for its turn: its sound, read, averaged and resampled."""
    if job.task != "automatic-speech-recognition":
        return KB
    return round(4 * FLOAT * _longest_s(data) * _rate(job.folder))


def _rate(folder: Path) -> int:
    return footprint.number(
        footprint.read_object(folder / "preprocessor_config.json"), "sampling_rate", default=16_000
    )


def _longest_s(data: DataSet) -> float:
    """Seconds of the longest sound; of files whose headers cannot be read, as if they were 8-bit and mono."""
    largest = sorted(data.samples, key=lambda sample: -sample.length)[:_LOOKED_AT]
    return max((_seconds(Path(sample.input), sample.length) for sample in largest), default=0.0)


def _seconds(path: Path, size: int) -> float:
    import soundfile

    with suppress(soundfile.SoundFileError, OSError, TypeError):
        return float(soundfile.info(path).duration)
    return size / 16_000


def _tokens(folder: Path, data: DataSet, limit: int) -> int:
    """Tokens of the longest sample at most, special ones included.

    The tokenizer counts them where it is quick to load; else a character of ASCII counts for half a token,
    any other for one.
    """
    texts = [text for sample in data.samples for text in _texts(sample)]
    settings = footprint.read_object(folder / "tokenizer_config.json")
    sentence = footprint.read_object(folder / "sentence_bert_config.json")
    own = footprint.number(settings, "model_max_length", default=MAX_TOKENS)
    limit = min(limit, own, footprint.number(sentence, "max_seq_length", default=MAX_TOKENS))
    longest = sorted(texts, key=len, reverse=True)[:_LOOKED_AT]
    counted = _count(folder / TOKENIZER, longest)
    if counted is None:
        counted = max((_bound(text) for text in longest), default=0)
    return min(counted + SPECIAL_TOKENS, limit)


def _count(path: Path, texts: Sequence[str]) -> int | None:
    if not path.is_file() or path.stat().st_size > QUICK_TOKENIZER:
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return max((len(one.ids) for one in tokenizer.encode_batch(list(texts))), default=0)
    except Exception:  # tokenizers raises plain Exception; the child will say what is wrong with it
        return None


def _bound(text: str) -> int:
    wide = len(text) - sum(map(str.isascii, text))
    return wide + (len(text) - wide + 1) // 2


def _texts(sample: Sample) -> Sequence[str]:
    return [sample.input] if isinstance(sample.input, str) else [str(text) for text in sample.input]


def _tokenizer_bytes(folder: Path) -> int:
    fast = folder / TOKENIZER
    files = (
        [fast] if fast.exists() else [folder / "vocab.json", *folder.glob("*.spm"), *folder.glob("*.model")]
    )
    return sum(path.stat().st_size for path in files if path.is_file())


def _data_bytes(data: DataSet) -> int:
    characters = sum(len(text) for sample in data.samples for text in _texts(sample))
    return SAMPLE * len(data.samples) + 4 * characters


def _text_bytes(job: Job, data: DataSet, torch: bool) -> int:
    """What reading the data, or cutting texts into windows, takes at its peak, the process included."""
    if job.task == "text-classification":
        source = job.data.classification
        files = (path for path in (source.train, source.validation, source.test) if path is not None)
        return INTERPRETER + TABLE * sum(path.stat().st_size for path in files if path.is_file())
    if job.task == "causal-lm":
        longest = max((len(sample.input) for sample in data.samples), default=0)
        return (TORCH if torch else INTERPRETER) + CHARACTER * longest
    return 0
