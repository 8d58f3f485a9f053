"""Sentence embeddings over a BERT-type encoder, in PyTorch or ONNX Runtime: sentences in, vectors out.

The tokens' last hidden states are pooled into one vector, by default their mean weighted by the attention
mask (Reimers and Gurevych 2019, "Sentence-BERT", arXiv:1908.10084, section 3). A folder that
sentence-transformers made says otherwise in its modules, see `pressoir.formats.sentence_modules`. A graph
that Pressoir exported does all of it, and gives the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pressoir.errors import DataError, SourceError
from pressoir.formats.folder import QUANTIZATION, Runtime, read_json, runtime_of
from pressoir.formats.sentence_modules import Dense, SentenceModules, Step, read_modules
from pressoir.inference.arguments import listed, opened
from pressoir.inference.engines.sentence_encoder import HiddenStates, OnnxEncoder, TorchEncoder
from pressoir.inference.engines.session import verify_shards
from pressoir.inference.token_groups import split_inputs
from pressoir.inference.tokenizers.steps import Encoded, iter_encoded
from pressoir.inference.tokenizers.tokenizers import FastTokenizer, encode_batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Embeddings(NamedTuple):
    """What an encoder gives for some of several texts."""

    rows: list[int]
    """Which of the texts they are."""
    vectors: NDArray[np.float32]
    """(rows, hidden)"""
    tokens: list[int]
    """How many the model was given, of each text."""
    truncated: list[bool]
    """Whether a text has more tokens than that."""


class SentenceEncoder:
    """An encoder, its tokenizer, and how its tokens become one vector."""

    def __init__(
        self,
        engine: TorchEncoder | OnnxEncoder,
        tokenizer: FastTokenizer | PreTrainedTokenizerBase,
        modules: SentenceModules | None = None,
        vocabulary_size: int = 0,
        pad_id: int = 0,
    ) -> None:
        self.engine, self.tokenizer = engine, tokenizer
        self.modules = SentenceModules() if modules is None else modules
        self.vocabulary_size, self.pad_id = vocabulary_size, pad_id

    @classmethod
    def open(
        cls, folder: Path | str, threads: int | None = None, runtime: Runtime | None = None
    ) -> SentenceEncoder:
        """Open a model folder: ONNX Runtime where it has `model.onnx`, else PyTorch; `runtime` insists.

        Raises:
            SourceError: the folder has no encoder for that runtime, no tokenizer, or a module that is not
                supported.
            ShardError: a shard is missing, truncated or altered.
        """
        folder, threads = opened(folder, threads)
        verify_shards(folder)
        modules = read_modules(folder)
        engine = _engine(folder, threads, runtime_of(folder, runtime))
        config = read_json(folder / "config.json")
        size, pad = int(config.get("vocab_size") or 0), int(config.get("pad_token_id") or 0)
        return cls(engine, _tokenizer(folder, modules.max_tokens), modules, size, pad)

    def encode(self, texts: Sequence[str], max_length: int | None = None) -> dict[str, NDArray[np.int64]]:
        """Token ids and masks, each (batch, longest sentence); see `encode_batch`."""
        return encode_batch(self.tokenizer, texts, max_length)

    def pad(
        self, ids: Sequence[Sequence[int]], max_length: int | None = None
    ) -> dict[str, NDArray[np.int64]]:
        """The same, of texts that are token ids already; they are taken as they are, special ones included.

        Raises:
            DataError: a list is empty or longer than the model or `max_length` allows (cutting it would lose
                its last special token), or an id is none of the model's.
        """
        limit = min(max_length or self.tokenizer.model_max_length, self.tokenizer.model_max_length)
        for index, row in enumerate(ids):
            if not 1 <= len(row) <= limit:
                raise DataError(f"input {index} has {len(row)} token ids; expected 1 to {limit}")
            if not 0 <= min(row) <= max(row) < self.vocabulary_size:
                raise DataError(f"input {index}: token ids are 0 to {self.vocabulary_size - 1}")
        shape = len(ids), max(map(len, ids))
        padded, mask = np.full(shape, self.pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for index, row in enumerate(ids):
            padded[index, : len(row)], mask[index, : len(row)] = row, 1
        known = {"input_ids": padded, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
        return {name: known[name] for name in self.encode(["a"])}  # the inputs that this model has

    def embed(self, texts: Sequence[str] | str, batch_size: int = 8) -> NDArray[np.float32]:
        """Embeddings (texts, dimensions) in the order of `texts`; of length 1 only if the model has a module
        Normalize.

        Sentences of like length are batched together. An engine whose result depends on the batch is run
        one sentence at a time.
        """
        texts = listed(texts)
        size = batch_size if self.engine.batch_invariant else 1
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        rows: list[NDArray[np.float32]] = [np.zeros(0, dtype=np.float32)] * len(texts)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            pooled = self._run(self.encode([texts[index] for index in chosen]))
            for index, row in zip(chosen, pooled, strict=True):
                rows[index] = row
        return np.stack(rows)

    def iter_embeddings(
        self, texts: Sequence[str], max_length: int | None = None, max_tokens: int = 0
    ) -> Iterator[Embeddings | None]:
        """Embeddings of a group of texts after another; None after a step of tokenising, see `iter_encoded`.

        A group has at most `max_tokens` tokens, see `token_groups`; with 0 each text is run alone.
        """
        for encoded in iter_encoded(self.tokenizer, texts, max_length):
            yield from [None] if encoded is None else self._groups(encoded, max_tokens)

    def iter_embeddings_of_ids(
        self, ids: Sequence[Sequence[int]], max_length: int | None = None, max_tokens: int = 0
    ) -> Iterator[Embeddings]:
        """The same, of texts that are token ids already; see `pad`."""
        encoded = Encoded(list(range(len(ids))), self.pad(ids, max_length), [False] * len(ids))
        yield from self._groups(encoded, max_tokens)

    def _groups(self, encoded: Encoded, max_tokens: int) -> Iterator[Embeddings]:
        for rows, inputs in split_inputs(encoded.inputs, max_tokens):
            tokens, cut = (
                inputs["attention_mask"].sum(axis=1).tolist(),
                [encoded.truncated[row] for row in rows],
            )
            yield Embeddings([encoded.rows[row] for row in rows], self._run(inputs), tokens, cut)

    def _run(self, inputs: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        states = self.engine.run(inputs)
        if states.ndim == 2:  # the graph has the modules inside
            return states
        mask = inputs["attention_mask"]
        vectors = np.concatenate([POOLINGS[mode](states, mask) for mode in self.modules.pooling], axis=1)
        for step in self.modules.steps:
            vectors = _stepped(step, vectors)
        return vectors

    def similarity(self, first: Sequence[str], second: Sequence[str]) -> NDArray[np.float64]:
        """Cosine similarity (pairs,) of each sentence of `first` to its counterpart in `second`, −1…1."""
        a = self.embed(first, len(first)).astype(np.float64)
        b = self.embed(second, len(second)).astype(np.float64)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        result: NDArray[np.float64] = (a * b).sum(axis=1) / np.maximum(norms, 1e-12)
        return result


def mean_pooling(states: HiddenStates, mask: NDArray[np.int64]) -> NDArray[np.float32]:
    """Mean of the tokens that the mask (batch, seq) has; padding counts for nothing."""
    weights = mask[..., None].astype(np.float32)  # (batch, seq, 1)
    mean: NDArray[np.float32] = (states * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9)
    return mean


def cls_pooling(states: HiddenStates, mask: NDArray[np.int64]) -> NDArray[np.float32]:
    """The first token that is not padding."""
    first: NDArray[np.float32] = states[np.arange(len(states)), mask.argmax(axis=1)]
    return first


def max_pooling(states: HiddenStates, mask: NDArray[np.int64]) -> NDArray[np.float32]:
    """The largest value of each dimension among the tokens that the mask has."""
    largest: NDArray[np.float32] = np.where(mask[..., None] == 1, states, -np.inf).max(axis=1)
    return largest.astype(np.float32)


def _sqrt_mean_pooling(states: HiddenStates, mask: NDArray[np.int64]) -> NDArray[np.float32]:
    root = np.sqrt(np.maximum(mask.sum(axis=1, dtype=np.float32), 1e-9))
    pooled: NDArray[np.float32] = mean_pooling(states, mask) * root[:, None]
    return pooled


def _weighted_mean_pooling(states: HiddenStates, mask: NDArray[np.int64]) -> NDArray[np.float32]:
    return mean_pooling(states, mask * np.arange(1, mask.shape[1] + 1))


def _last_token_pooling(states: HiddenStates, mask: NDArray[np.int64]) -> NDArray[np.float32]:
    last: NDArray[np.float32] = states[
        np.arange(len(states)), (mask * np.arange(mask.shape[1])).argmax(axis=1)
    ]
    return last


POOLINGS: dict[str, Callable[[HiddenStates, NDArray[np.int64]], NDArray[np.float32]]] = {
    "cls": cls_pooling,
    "max": max_pooling,
    "mean": mean_pooling,
    "mean_sqrt_len_tokens": _sqrt_mean_pooling,
    "weightedmean": _weighted_mean_pooling,
    "lasttoken": _last_token_pooling,
}
"""By the names in `pressoir.formats.sentence_modules.MODES`."""
_ACTIVATIONS: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "identity": lambda vectors: vectors,
    "tanh": np.tanh,
    "relu": lambda vectors: np.maximum(vectors, 0),
    "sigmoid": lambda vectors: np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * vectors)),
}


def _stepped(step: Step, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a module after pooling makes of (texts, dimensions)."""
    if isinstance(step, Dense):
        moved = vectors @ step.weight.T
        return _ACTIVATIONS[step.activation](moved if step.bias is None else moved + step.bias)
    scaled: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return scaled


def _engine(folder: Path, threads: int, runtime: Runtime) -> TorchEncoder | OnnxEncoder:
    if runtime == "onnxruntime":
        return OnnxEncoder(folder, threads)
    if (folder / QUANTIZATION).exists():
        raise SourceError(
            f"{folder} contains a quantised encoder, which is not supported in PyTorch; export it to ONNX"
        )
    from pressoir.models.loading import load_encoder

    return TorchEncoder(load_encoder(folder))


def _tokenizer(folder: Path, limit: int | None) -> FastTokenizer | PreTrainedTokenizerBase:
    if (folder / "tokenizer.json").exists():
        return FastTokenizer(folder, limit)
    from pressoir.models.loading import load_tokenizer  # a tokenizer that exists only in Python

    tokenizer = load_tokenizer(folder)
    if limit is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    return tokenizer
