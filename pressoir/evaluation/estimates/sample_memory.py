"""What the samples of each task take of a child's memory, by the architecture's sizes and the data.

A `TaskMemory` is the part of the formula (`pressoir.evaluation.estimates.formula`) that differs from task to
task: libraries that it alone needs, the longest sample's work, and what reading the data takes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pressoir.evaluation.datasets import DataSet
from pressoir.evaluation.estimates import footprint, speech_footprint
from pressoir.evaluation.estimates.footprint import FLOAT, Work
from pressoir.evaluation.jobs import Job
from pressoir.evaluation.records import EvaluationSample
from pressoir.extensions.task import task
from pressoir.formats.folder import Runtime, has_ctc_head
from pressoir.formats.tokenizer_limit import MAX_TOKENS, most_source_tokens
from pressoir.inference.ctc import CHUNK_S
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
PRODUCTS = 40 * MB  # what PyTorch's matrix products with a vocabulary of tens of thousands take

CHARACTER = 150
"""Bytes that a character takes while the tokenizers library encodes a long text."""
TABLE = 6
"""Bytes of a byte of a table of sentences while copies among its rows are looked for."""
SPECIAL_TOKENS = 12  # languages, begin, end, T5's instruction
QUICK_TOKENIZER = 8 * MB
"""A tokenizer's file up to this size loads in a quarter of a second; most take 50 ms."""
_LOOKED_AT = 8  # longest samples, by characters or bytes


class TaskMemory(ABC):
    """What the samples of a job take, all in bytes."""

    needs_tokenizer = True
    """Without a fast one, the child imports transformers for it."""
    unused: tuple[str, ...] = ()
    """Beginnings of the names of weights that are not loaded."""

    def __init__(self, job: Job, data: DataSet) -> None:
        self.job, self.data, self.folder = job, data, job.folder

    def process(self, torch: bool) -> int:
        """What libraries of this task alone add to a process with or without PyTorch."""
        return 0

    @abstractmethod
    def work(self, runtime: Runtime, config: dict[str, Any]) -> Work:
        """What the longest sample takes."""

    def together(self, runtime: Runtime) -> bool:
        """Whether samples go through the model together; see `pressoir.evaluation.child.predictors`."""
        return not (footprint.dynamic(self.folder) and runtime == "onnxruntime")

    def held(self) -> int:
        """Of a sample of a batch that waits for its turn."""
        return KB

    def reading(self, torch: bool) -> int:
        """What reading the data, or cutting texts into windows, takes at its peak, the process included."""
        return 0

    def longest(self, config: dict[str, Any]) -> int:
        """Tokens of the longest sample, as far as the model takes them."""
        limit = footprint.number(config, "max_position_embeddings", default=MAX_TOKENS)
        return tokens(self.folder, self.data, min(limit, MAX_TOKENS))


class EncoderMemory(TaskMemory):
    """Texts through an encoder."""

    fused = False
    """Whether its graph's attention is one operator."""

    def work(self, runtime: Runtime, config: dict[str, Any]) -> Work:
        """See `TaskMemory.work`."""
        return footprint.encoder(config, self.longest(config), runtime, fused=self.fused)


class ClassificationMemory(EncoderMemory):
    """Texts through a classifier."""

    fused = True

    def process(self, torch: bool) -> int:
        """See `TaskMemory.process`."""
        source = self.job.data.classification
        if source.source != "hub" and not source.test_samples:
            return 0
        return TORCH_DATASETS if torch else ONNX_DATASETS

    def together(self, runtime: Runtime) -> bool:
        """See `TaskMemory.together`; PyTorch simulates dynamic activations, too."""
        return not footprint.dynamic(self.folder)

    def reading(self, torch: bool) -> int:
        """See `TaskMemory.reading`."""
        source = self.job.data.classification
        files = (path for path in (source.train, source.validation, source.test) if path is not None)
        return INTERPRETER + TABLE * sum(path.stat().st_size for path in files if path.is_file())


class WindowMemory(TaskMemory):
    """Windows of tokens through a causal LM."""

    def work(self, runtime: Runtime, config: dict[str, Any]) -> Work:
        """See `TaskMemory.work`."""
        work = footprint.causal_lm(config, self.job.generation.window, runtime)
        return Work(work.alone + (PRODUCTS if runtime == "pytorch" else 0), work.each)

    def reading(self, torch: bool) -> int:
        """See `TaskMemory.reading`."""
        longest = max((len(sample.input) for sample in self.data.samples), default=0)
        return (TORCH if torch else INTERPRETER) + CHARACTER * longest


class TranslationMemory(TaskMemory):
    """Texts through an encoder, and their translations out of a decoder."""

    unused = speech_footprint.NOT_FOR_TEXT

    def longest(self, config: dict[str, Any]) -> int:
        """See `TaskMemory.longest`; as `Translator.open` has it."""
        tokenizer = footprint.read_object(self.folder / "tokenizer_config.json")
        return tokens(self.folder, self.data, most_source_tokens(config, tokenizer))

    def work(self, runtime: Runtime, config: dict[str, Any]) -> Work:
        """See `TaskMemory.work`."""
        generation = self.job.generation
        context = footprint.number(config, "max_position_embeddings", default=generation.max_new_tokens)
        target = min(generation.max_new_tokens, context) + 1
        return footprint.translation(config, self.longest(config), target, generation.num_beams, runtime)

    def together(self, runtime: Runtime) -> bool:
        """See `TaskMemory.together`; SeamlessM4T translates one text at a time."""
        kind = footprint.read_object(self.folder / "config.json").get("model_type")
        return kind not in task(self.job.task).evaluated_only and super().together(runtime)


class SpeechMemory(TaskMemory):
    """Sounds through Whisper, an encoder with a CTC head, or a model that transformers runs itself."""

    needs_tokenizer = False
    unused = speech_footprint.NOT_FOR_SOUND

    def process(self, torch: bool) -> int:
        """See `TaskMemory.process`."""
        return SPEECH + (CONVOLUTIONS if torch and has_ctc_head(footprint.settings(self.folder)) else 0)

    def work(self, runtime: Runtime, config: dict[str, Any]) -> Work:
        """See `TaskMemory.work`."""
        heard = round(min(longest_s(self.data), CHUNK_S) * _rate(self.folder))
        whole = footprint.read_object(
            self.folder / "config.json"
        )  # in `config`, what is about text stands on top
        if self._in_pytorch_only(whole):
            work = speech_footprint.work(whole, heard, _answer(self.folder, whole))
        elif has_ctc_head(config):
            work = footprint.ctc(config, heard, runtime)
        else:
            work = footprint.whisper(config, _answer(self.folder, config), runtime)
            return Work(work.alone, work.each + self.held())
        return Work(work.alone + self.held(), 0)

    def together(self, runtime: Runtime) -> bool:
        """See `TaskMemory.together`; padding of a CTC model would be heard."""
        config = footprint.read_object(self.folder / "config.json")
        alone = has_ctc_head(config) or self._in_pytorch_only(config)
        return not alone and super().together(runtime)

    def _in_pytorch_only(self, config: dict[str, Any]) -> bool:
        return config.get("model_type") in task(self.job.task).pytorch_only

    def held(self) -> int:
        """Its sound, read, averaged and resampled."""
        return round(4 * FLOAT * longest_s(self.data) * _rate(self.folder))


def _answer(folder: Path, config: dict[str, Any]) -> int:
    """Tokens of the longest transcription; as `sequence_to_sequence.Generation` has it."""
    settings = {**config, **footprint.read_object(folder / "generation_config.json")}
    longest = footprint.number(settings, "max_new_tokens", "max_length", default=DEFAULT_NEW_TOKENS)
    return min(longest, footprint.number(settings, "max_target_positions", default=longest))


def _rate(folder: Path) -> int:
    return footprint.number(
        footprint.read_object(folder / "preprocessor_config.json"), "sampling_rate", default=16_000
    )


def longest_s(data: DataSet) -> float:
    """Seconds of the longest sound; of files whose headers cannot be read, as if they were 8-bit and mono."""
    largest = sorted(data.samples, key=lambda sample: -sample.length)[:_LOOKED_AT]
    return max((_seconds(Path(sample.input), sample.length) for sample in largest), default=0.0)


def _seconds(path: Path, size: int) -> float:
    import soundfile

    with suppress(soundfile.SoundFileError, OSError, TypeError):
        return float(soundfile.info(path).duration)
    return size / 16_000


def tokens(folder: Path, data: DataSet, limit: int) -> int:
    """Tokens of the longest sample at most, special ones included.

    The tokenizer counts them where it is quick to load; else a character of ASCII counts for half a token,
    any other for one.
    """
    texts = [text for sample in data.samples for text in texts_of(sample)]
    settings = footprint.read_object(folder / "tokenizer_config.json")
    sentence = footprint.read_object(folder / "sentence_bert_config.json")
    own = footprint.number(settings, "model_max_length", default=limit)
    limit = min(limit, own, footprint.number(sentence, "max_seq_length", default=limit))
    longest = sorted(texts, key=len, reverse=True)[:_LOOKED_AT]
    counted = _count(folder / TOKENIZER, longest)
    if counted is None:
        counted = max((bound(text) for text in longest), default=0)
    return min(counted + SPECIAL_TOKENS, limit)


def _count(path: Path, texts: Sequence[str]) -> int | None:
    if not path.is_file() or path.stat().st_size > QUICK_TOKENIZER:
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return max((len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))), default=0)
    except Exception:  # tokenizers raises plain Exception; the child will say what is wrong with it
        return None


def bound(text: str) -> int:
    """Tokens of a text at most, as they are counted without its tokenizer."""
    wide = len(text) - sum(map(str.isascii, text))
    return wide + (len(text) - wide + 1) // 2


def texts_of(sample: EvaluationSample) -> Sequence[str]:
    """What goes through the model by itself: the text, a classifier's pair joined, or each of the two that
    are compared; of a sound, its file's name."""
    if isinstance(sample.input, tuple):
        return [" ".join(sample.input)]
    return [sample.input] if isinstance(sample.input, str) else [str(text) for text in sample.input]
