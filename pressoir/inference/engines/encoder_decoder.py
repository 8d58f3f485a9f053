"""Encoder-decoder engines with one face: PyTorch (transformers' `generate`) and ONNX Runtime.

An ONNX folder has two graphs. `encoder_model.onnx` runs once an input and gives the keys and values that the
decoder's cross-attention reads; `decoder_model.onnx` takes them, the cache of earlier tokens (empty at first)
and the next tokens. So a decoding step never computes anything twice, and no graph has a branch.

Nothing here imports torch unless a model is opened in PyTorch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pressoir.errors import SourceError
from pressoir.formats.folder import DECODER, ENCODER, Runtime, read_json, runtime_of
from pressoir.inference.engines.session import batch_invariant, make_session, verify_shards
from pressoir.inference.generation.beam_search import beam, greedy
from pressoir.inference.generation.rules import Rules, Timestamps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LIBRARY_LENGTH = 20  # transformers' default of `max_length`
DEFAULT_NEW_TOKENS = 256  # where the model's own configuration names no limit

Inputs = Mapping[str, NDArray[Any]]
"""`input_ids` and `attention_mask` (batch, seq) int64, or `input_features` (batch, bins, frames) float32."""


@dataclass(frozen=True)
class Generation:
    """What `config.json` and `generation_config.json` say about generating."""

    decoder_start: int
    """The decoder's first token."""
    max_new_tokens: int
    """Default limit of generated tokens."""
    context: int | None
    """Most tokens, prompt included, that the decoder has positions for; None: no limit."""
    rules: Rules
    settings: Mapping[str, Any]
    """Everything that the two files say, the generation's file first."""

    @classmethod
    def read(cls, folder: Path, model: PreTrainedModel | None = None) -> Generation:
        """Read a model folder; what a loaded `model` says counts where there is no generation_config.json.

        Raises:
            SourceError: a file is broken, names no token to start or end with, or has a setting that would
                change the text and is not supported.
        """
        config, path = read_json(folder / "config.json"), folder / "generation_config.json"
        if path.exists():
            own = {name: value for name, value in read_json(path).items() if value is not None}
        else:
            legacy = None if model is None else model.generation_config
            own = config if legacy is None else legacy.to_diff_dict()
        settings = {**config, **own}
        # Not of config.json beside generation_config.json, where transformers does not look for them.
        start, eos = own.get("decoder_start_token_id", own.get("bos_token_id")), own.get("eos_token_id")
        if start is None or eos is None:
            raise SourceError(
                f"{folder}: {path.name if path.exists() else 'config.json'} specifies no "
                "decoder_start_token_id and eos_token_id to generate with; is it an encoder-decoder model?"
            )
        eos_ids, pad = (
            frozenset(eos) if isinstance(eos, list) else frozenset([eos]),
            settings.get("pad_token_id"),
        )
        try:
            # Not of config.json beside generation_config.json, where transformers does not look for rules.
            rules = Rules.read(own, eos_ids, min(eos_ids) if pad is None else pad)
        except (TypeError, ValueError) as error:
            raise SourceError(f"{path if path.exists() else folder / 'config.json'}: {error}") from error
        context = settings.get("max_target_positions", settings.get("max_position_embeddings"))
        length = own.get("max_length", DEFAULT_NEW_TOKENS + 1)
        # transformers takes its own default for a number of new tokens, wherever it was read.
        limit = own.get("max_new_tokens") or (length if length == LIBRARY_LENGTH else length - 1)
        return cls(start, limit, context, rules, settings)

    @property
    def first_stamp(self) -> int | None:
        """Whisper's token of the time 0.00 s; None where the files name none."""
        plain = self.settings.get("no_timestamps_token_id")
        return None if plain is None else int(plain) + 1

    def rules_of(self, timestamps: bool) -> Rules:
        """The rules, with those of Whisper's time stamps where it writes them."""
        if not timestamps:
            return self.rules
        assert self.first_stamp is not None
        latest = self.settings.get("max_initial_timestamp_index")
        return replace(self.rules, timestamps=Timestamps(self.first_stamp, min(self.rules.eos_ids), latest))

    def limit(self, max_new_tokens: int | None, prompt: int) -> int:
        """How many tokens to generate at most after a prompt of `prompt` tokens."""
        # Counted from a prompt of one token, as `max_length` is.
        limit = self.max_new_tokens + 1 - prompt if max_new_tokens is None else max_new_tokens
        return max(1, limit if self.context is None else min(limit, self.context - prompt))


class SequenceToSequence(Protocol):
    """A loaded encoder-decoder."""

    runtime: Runtime
    batch_invariant: bool
    """False where a row's result depends on its batch (dynamic int8 activations, per tensor)."""
    generation: Generation

    def generate(
        self,
        inputs: Inputs,
        *,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        forced_first: int | None = None,
        prompt: tuple[int, ...] = (),
        timestamps: bool = False,
    ) -> list[list[int]]:
        """Generated tokens of each row, greedily or with `num_beams` beams; prompt and end tokens left out.

        `prompt` replaces the decoder's start token; `forced_first` is the token that must follow it, else
        the configuration's, whose other rules are obeyed, see `Rules`. Nothing is sampled. `timestamps` are
        Whisper's, see `Timestamps`; the files must name them.
        """

    def forced_logits(self, inputs: Inputs, decoder_input_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits (batch, seq, vocabulary) after each of the decoder's given tokens (batch, seq)."""


class TorchSequenceToSequence:
    """A transformers encoder-decoder in evaluation mode, under `inference_mode`."""

    runtime: Runtime = "pytorch"
    batch_invariant = True

    def __init__(self, model: PreTrainedModel, generation: Generation) -> None:
        self.model, self.generation = model.eval(), generation

    def generate(
        self,
        inputs: Inputs,
        *,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        forced_first: int | None = None,
        prompt: tuple[int, ...] = (),
        timestamps: bool = False,
    ) -> list[list[int]]:
        """See `SequenceToSequence.generate`."""
        import torch
        from transformers import GenerationMixin

        start, batch = prompt or (self.generation.decoder_start,), len(next(iter(inputs.values())))
        rules = self.generation.rules_of(timestamps)
        config: Any = copy.deepcopy(self.model.generation_config)
        settings = {
            # Not `max_length`: where that is the library's default, 20, it allows one more.
            "max_new_tokens": self.generation.limit(max_new_tokens, len(start)),
            "num_beams": num_beams,
            "num_return_sequences": 1,
            "return_dict_in_generate": False,
            "do_sample": False,
            "forced_bos_token_id": rules.forced_first if forced_first is None else forced_first,
            "forced_decoder_ids": None,  # the prompt holds what these would force
            "eos_token_id": sorted(rules.eos_ids),
            "pad_token_id": rules.pad_id,
        }
        for name, value in settings.items():
            setattr(config, name, value)
        with torch.inference_mode():
            # Not `self.model.generate`: Whisper's own cuts long audio by its timestamps, which small models
            # have not learnt; for one window it comes to the same.
            generate: Any = GenerationMixin.generate
            output = generate(
                self.model,
                **_tensors(inputs, self.model.device),
                decoder_input_ids=torch.tensor([start] * batch, device=self.model.device),
                generation_config=config,
                logits_processor=_stamps(rules.timestamps, len(start)),
                use_model_defaults=False,  # else a setting that is the library's default is replaced again
            )
        return [until(row[len(start) :], rules.eos_ids) for row in output.tolist()]

    def forced_logits(self, inputs: Inputs, decoder_input_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `SequenceToSequence.forced_logits`."""
        import torch

        with torch.inference_mode():
            given = {**inputs, "decoder_input_ids": decoder_input_ids}
            output = self.model(**_tensors(given, self.model.device))
        logits: NDArray[np.float32] = output.logits.float().cpu().numpy()
        return logits


class OnnxSequenceToSequence:
    """Two ONNX Runtime sessions on the CPU."""

    runtime: Runtime = "onnxruntime"

    def __init__(
        self, folder: Path, threads: int, generation: Generation, batch_invariant: bool = True
    ) -> None:
        self.generation, self.batch_invariant = generation, batch_invariant
        self.encoder = make_session(folder / ENCODER, threads)
        self.decoder = make_session(folder / DECODER, threads)
        self._encoder_inputs = {value.name for value in self.encoder.get_inputs()}
        self._encoder_outputs = [value.name for value in self.encoder.get_outputs()]
        self._decoder_outputs = [value.name for value in self.decoder.get_outputs()]
        # The cache's names and shapes, (batch, heads, seq, head size).
        self._cache = {
            value.name: (value.shape[1], value.shape[3])
            for value in self.decoder.get_inputs()
            if value.name.startswith("past_key_values.") and ".decoder." in value.name
        }
        self._takes_mask = any(value.name == "encoder_attention_mask" for value in self.decoder.get_inputs())

    def generate(
        self,
        inputs: Inputs,
        *,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        forced_first: int | None = None,
        prompt: tuple[int, ...] = (),
        timestamps: bool = False,
    ) -> list[list[int]]:
        """See `SequenceToSequence.generate`."""
        start, rules = prompt or (self.generation.decoder_start,), self.generation.rules_of(timestamps)
        if forced_first is not None:
            rules = replace(rules, forced_first=forced_first)
        limit, batch = self.generation.limit(max_new_tokens, len(start)), len(next(iter(inputs.values())))
        if num_beams == 1:
            tokens = np.tile(np.asarray(start, dtype=np.int64), (batch, 1))
            return greedy(self._decoding(inputs), tokens, rules, limit, _sources(inputs))
        tokens = np.tile(np.asarray(start, dtype=np.int64), (num_beams, 1))
        rows = ({name: array[row : row + 1] for name, array in inputs.items()} for row in range(batch))
        return [
            beam(self._decoding(row, copies=num_beams), tokens, rules, limit, *(_sources(row) or ()))
            for row in rows
        ]

    def forced_logits(self, inputs: Inputs, decoder_input_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `SequenceToSequence.forced_logits`."""
        return self._decoding(inputs).forward(decoder_input_ids)

    def _decoding(self, inputs: Inputs, copies: int = 1) -> _OnnxDecoding:
        """Encode `inputs`; a single row may be copied for as many beams."""
        given = {name: _value(array) for name, array in inputs.items() if name in self._encoder_inputs}
        outputs = self.encoder.run_with_ort_values(self._encoder_outputs, given)
        fixed = dict(zip(self._encoder_outputs, outputs, strict=True))
        if self._takes_mask:
            fixed["encoder_attention_mask"] = given["attention_mask"]
        rows = len(next(iter(inputs.values())))
        if copies > 1:
            fixed = {name: _value(np.repeat(value.numpy(), copies, axis=0)) for name, value in fixed.items()}
        empty = {
            name: _value(np.zeros((rows * copies, heads, 0, size), dtype=np.float32))
            for name, (heads, size) in self._cache.items()
        }
        return _OnnxDecoding(self.decoder, self._decoder_outputs, fixed, empty)


class _OnnxDecoding:
    """One batch in decoding; see `search.Decoding`. The cache stays in ONNX Runtime's own memory."""

    def __init__(
        self, session: Any, outputs: list[str], fixed: dict[str, Any], cache: dict[str, Any]
    ) -> None:
        self._session, self._outputs, self._fixed, self._cache = session, outputs, fixed, cache

    def forward(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append `tokens` (rows, n); return the logits (rows, n, vocabulary)."""
        feed = {"input_ids": _value(tokens), **self._fixed, **self._cache}
        results = dict(
            zip(self._outputs, self._session.run_with_ort_values(self._outputs, feed), strict=True)
        )
        logits: NDArray[np.float32] = results.pop("logits").numpy()
        self._cache = {name.replace("present", "past_key_values"): value for name, value in results.items()}
        return logits

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `search.Decoding.step`."""
        return self.forward(tokens)[:, -1]

    def reorder(self, rows: NDArray[np.int64]) -> None:
        """See `search.Decoding.reorder`."""
        if not np.array_equal(rows, np.arange(len(rows))):
            self._cache = {name: _value(value.numpy()[rows]) for name, value in self._cache.items()}


def open_sequence_to_sequence(
    folder: Path, threads: int, runtime: Runtime | None = None
) -> SequenceToSequence:
    """Open an encoder-decoder: ONNX Runtime where the folder has its graphs, else PyTorch.

    Raises:
        SourceError: the folder has no model for that runtime.
        ShardError: a shard is missing, truncated or altered.
    """
    if runtime_of(folder, runtime) == "onnxruntime":
        verify_shards(folder)
        return OnnxSequenceToSequence(folder, threads, Generation.read(folder), batch_invariant(folder))
    from pressoir.models.loading import load_encoder_decoder

    model = load_encoder_decoder(folder)
    return TorchSequenceToSequence(model, Generation.read(folder, model))


def _value(array: NDArray[Any]) -> Any:
    import onnxruntime as ort

    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _sources(inputs: Inputs) -> list[list[int]] | None:
    """The source tokens of each row without padding; None where the source is sound."""
    if "input_ids" not in inputs:
        return None
    rows = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    return [ids[mask > 0].tolist() for ids, mask in rows]


def _tensors(inputs: Inputs, device: Any) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(array).to(device) for name, array in inputs.items()}


def _stamps(rules: Timestamps | None, prompt: int) -> list[Any]:
    """transformers' own processor of Whisper's time stamps after a prompt of `prompt` tokens."""
    if rules is None:
        return []
    from transformers import WhisperTimeStampLogitsProcessor

    config: Any = SimpleNamespace(
        no_timestamps_token_id=rules.first - 1,
        eos_token_id=rules.end,
        max_initial_timestamp_index=rules.latest_first,
    )
    return [WhisperTimeStampLogitsProcessor(config, begin_index=prompt)]


def until(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """The tokens before the first end token."""
    end = next((index for index, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:end]
