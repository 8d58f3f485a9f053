"""Write a translation or speech model as ONNX graphs, in float32 or int8, and prove what they compute.

**What.** M2M100 and NLLB, Marian and T5 (translation), Whisper (speech) become an encoder and one decoder
with a cache; wav2vec2 and its kin with a CTC head become one graph (`pressoir.export.encoder_decoder_graph`).
With `int8`, linear layers, token embeddings and the head are stored as int8 codes, a scale an output channel
or token; activations are quantised as they come, per tensor. Convolutions, norms, biases, position tables and
a CTC head stay float32.

**Why.** ONNX Runtime decodes without the overhead of PyTorch's modules, needs no PyTorch, and has integer
kernels; most of a small translation model is its vocabulary, which shrinks to a quarter.

**Cost.** Seconds to minutes. Parity is a gate. PyTorch decodes a few inputs greedily; then both are given
those tokens, and each next token's logits are compared. Float32: max |Δlogit| within
`max_logit_difference`, and the graphs' own greedy decoding, in one padded batch, must give the same tokens
(two tokens whose logits are that close may change places). Int8: PyTorch's float32 model and the graphs must
agree on the best next token in at least `min_label_agreement` of the places where float32's best is 1.5 times
as probable as its second; agreement in all places is reported. Inputs are the embedded reviews for text, and
tones and noise for sound: no speech is shipped.

**Sources.** Optimum's exporter, https://huggingface.co/docs/optimum-onnx; int8 as in `stages.quantize`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressoir.data import running_text
from pressoir.errors import ParityError, SourceError
from pressoir.export import encoder_decoder_graph, int8_graph
from pressoir.export.graph import operator_counts
from pressoir.export.tracing import REPORT
from pressoir.extensions.task import task
from pressoir.formats.folder import QUANTIZATION, read_json, task_of
from pressoir.inference.audio import SAMPLING_RATE
from pressoir.inference.automatic_speech_recognition import CtcModel, WhisperModel
from pressoir.inference.tokenizers.encoder_decoder import TOKENIZER, PythonSeq2SeqTokenizer
from pressoir.inference.translation import T5_TYPES, Translator, spellings
from pressoir.models import loading
from pressoir.recipe.sections import ExportConfig
from pressoir.stage import StageContext

PARITY_INPUTS = 32  # at most; fewer where they already give `parity_samples` places to compare
GREEDY_INPUTS = 8  # of these, in one padded batch
MAX_NEW_TOKENS = 32  # a model may ramble on inputs that it was not made for
SOUND_S = 2.0
# Int8 may choose another of two tokens that float32 hardly tells apart: a place counts for its gate where the
# best token is 1.5 times as probable as the second. On inputs that a model was not made for, a third is not.
DECIDED_MARGIN = float(np.log(1.5))
SETTINGS = (
    *("config.json", "generation_config.json", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "normalizer.json", "*.spm", "*.model"),
)


def run(
    inputs: Mapping[str, Path], config: ExportConfig, context: StageContext, int8: bool = False
) -> dict[str, float]:
    """Export `inputs["model"]`, a plain float checkpoint.

    Raises:
        ParityError: the graphs do not compute what the checkpoint computes, or optimum cannot make them.
        SourceError: the model does not load, is quantised already, or is for another task.
    """
    source, out, tell = inputs["model"], context.out_dir, context.reporter.message
    declared, ctc = task(task_of(source)), _is_ctc(source)
    if declared.export != f"{__name__}:run":
        raise SourceError(
            f"{source} is a model for {declared.name}, not for translation or speech recognition"
        )
    if (source / QUANTIZATION).exists():
        raise SourceError(f"{source} is already quantised; export the original checkpoint")
    model = loading.load_ctc(source) if ctc else loading.load_encoder_decoder(source)
    original = sum(parameter.nbytes for parameter in model.parameters())
    parts = encoder_decoder_graph.layers(model)
    packed, errors = encoder_decoder_graph.quantize(parts) if int8 else ({}, {})
    tell("tracing the float32 model")
    graphs = encoder_decoder_graph.trace(model, config.opset, context.work_dir, config.fuse)
    del model
    for name, layers in packed.items():
        int8_graph.lower_to_int8(graphs[name], layers)
    size = encoder_decoder_graph.save(graphs, out)
    _copy_settings(source, out)
    if int8:
        description = {
            "format_version": 1,
            "scheme": "int8",
            "activations": "dynamic",
            "layers": {
                name: {
                    "kind": layer.kind,
                    "bits": 8,
                    "shape": list(layer.codes.shape),
                    "granularity": "output channel" if layer.kind == "linear" else "row",
                    "relative_error": errors[name],
                    "graph": graph,
                }
                for graph, layers in packed.items()
                for name, layer in layers.items()
            },
            "excluded": {"lm_head": "the head of a CTC model is small"} if ctc else {},
            "original_bytes": original,
            "new_bytes": size,
        }
        (out / QUANTIZATION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    figures = check_parity(source, out, config, context, int8)
    report = {
        "opset": config.opset,
        "operators": {name: operator_counts(graph) for name, graph in graphs.items()},
        "parity": figures,
        "graph_bytes": size,
        "original_bytes": original,
    }
    (out / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    tell(
        f"parity at {figures['parity_positions']:.0f} positions: max |Δlogit| "
        f"{figures['max_logit_difference']:.2g}, same token {figures['token_agreement']:.4f} "
        f"({figures['decided_token_agreement']:.4f} where decided); {original / 1e6:.1f} → "
        f"{size / 1e6:.1f} MB"
    )
    return {**figures, "graph_mb": size / 1e6, "size_ratio": original / size}


def check_parity(
    source: Path, exported: Path, config: ExportConfig, context: StageContext, int8: bool
) -> dict[str, float]:
    """Compare an exported folder with the checkpoint it was made from, in PyTorch; return the figures.

    Raises:
        ParityError: they differ by more than `config` allows.
    """
    compare = _compare_ctc if _is_ctc(source) else _compare_generation
    found = compare(source, exported, config, context, int8)
    expected = np.concatenate([place.expected for place in found.places]).astype(np.float64)
    actual = np.concatenate([place.actual for place in found.places])
    differences = np.abs(expected - actual).max(axis=1)
    largest = float(np.where(np.isnan(differences), np.inf, differences).max())
    same = expected.argmax(axis=1) == actual.argmax(axis=1)
    best = np.partition(expected, -2, axis=1)[:, -2:]
    decided = best[:, 1] - best[:, 0] >= DECIDED_MARGIN
    figures = {
        "max_logit_difference": largest,
        "token_agreement": float(same.mean()),
        "decided_token_agreement": float(same[decided].mean()) if decided.any() else float(same.mean()),
        "greedy_agreement": found.greedy,
        "parity_inputs": float(len(found.places)),
        "parity_positions": float(len(same)),
        "decided_positions": float(decided.sum()),
    }
    if int8:
        agreement = figures["decided_token_agreement"]
        passed = agreement >= config.min_label_agreement and bool(np.isfinite(largest))
        fault = (
            f"of the clearly decided float32 tokens, only {agreement:.4f} are equal in int8, below "
            f"export.min_label_agreement {config.min_label_agreement}; use float32, or lower the threshold "
            "and evaluate the model on its task"
        )
    else:
        alike = largest <= config.max_logit_difference
        passed = alike and not found.unexplained
        fault = (
            found.unexplained
            if alike
            else f"max |Δlogit| is {largest:.3g}, above export.max_logit_difference "
            f"{config.max_logit_difference:g}; try another opset"
        )
    if not passed:
        raise ParityError(f"the ONNX graphs differ from PyTorch at {len(same)} positions: {fault}")
    return figures


@dataclass(frozen=True)
class _Places:
    """Logits of the same places in both runtimes, each (places, vocabulary)."""

    expected: NDArray[np.float32]
    actual: NDArray[np.float32]


@dataclass(frozen=True)
class _Comparison:
    places: list[_Places]
    greedy: float
    """Part of the decoded inputs that came out token by token alike."""
    unexplained: str = ""
    """A difference between decoded tokens that close logits do not explain."""


def _compare_generation(
    source: Path, exported: Path, config: ExportConfig, context: StageContext, int8: bool
) -> _Comparison:
    threads = context.threads
    forced: int | None = None
    prompt: tuple[int, ...] = ()
    if not task(task_of(source)).sound:
        adapters = Translator.open(source, threads, "pytorch"), Translator.open(exported, threads)
        sentences = running_text.embedded_calibration().splitlines()[:PARITY_INPUTS]
        rows, forced = adapters[0].encode(sentences, *_languages(adapters[0]))
        inputs: list[dict[str, NDArray[Any]]] = [adapters[0].batch([row]) for row in rows]
        batch: dict[str, NDArray[Any]] = adapters[0].batch(rows[:GREEDY_INPUTS])
        reference, engine = adapters[0].engine, adapters[1].engine
    else:
        listeners = WhisperModel.open(source, threads, "pytorch"), WhisperModel.open(exported, threads)
        rate = listeners[0].extract.sampling_rate
        sounds = _sounds(PARITY_INPUTS, rate, context.seed)
        inputs = [{"input_features": listeners[0].features(sound)[0][None]} for sound in sounds]
        batch = {"input_features": np.concatenate([i["input_features"] for i in inputs[:GREEDY_INPUTS]])}
        reference, engine = listeners[0].engine, listeners[1].engine
        prompt = listeners[0].prompt(inputs[0])
    start = prompt or (reference.generation.decoder_start,)
    options: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS, "forced_first": forced, "prompt": prompt}
    places: list[_Places] = []
    decoded: list[list[int]] = []
    for done, given in enumerate(inputs, start=1):
        tokens = reference.generate(given, **options)[0]
        path = np.asarray([[*start, *tokens]], dtype=np.int64)
        logits = (one.forced_logits(given, path)[0, len(start) - 1 :] for one in (reference, engine))
        places.append(_Places(*logits))
        decoded.append(tokens)
        context.reporter.progress(done, len(inputs), "inputs compared")
        if done >= GREEDY_INPUTS and sum(len(p.expected) for p in places) >= config.parity_samples:
            break
    if engine.batch_invariant:
        own = engine.generate(batch, **options)
    else:
        own = [engine.generate(given, **options)[0] for given in inputs[:GREEDY_INPUTS]]
    equal, unexplained = 0, ""
    end = min(reference.generation.rules.eos_ids)
    for index, (theirs, ours) in enumerate(zip(decoded, own, strict=False)):
        equal += theirs == ours
        if theirs != ours and not int8:
            margin = _margin([*theirs, end], [*ours, end], places[index].expected)
            if not margin <= 2 * config.max_logit_difference:
                unexplained = (
                    f"input {index} decodes to different tokens, whose logits are {margin:.3g} apart"
                )
    return _Comparison(places, equal / len(own), unexplained)


def _compare_ctc(
    source: Path, exported: Path, config: ExportConfig, context: StageContext, int8: bool
) -> _Comparison:
    reference, engine = (
        CtcModel.open(source, context.threads, "pytorch"),
        CtcModel.open(exported, context.threads),
    )
    places: list[_Places] = []
    for done, sound in enumerate(_sounds(PARITY_INPUTS, SAMPLING_RATE, context.seed), start=1):
        places.append(_Places(reference.logits(sound), engine.logits(sound)))
        context.reporter.progress(done, PARITY_INPUTS, "inputs compared")
        if done >= GREEDY_INPUTS and sum(len(p.expected) for p in places) >= config.parity_samples:
            break
    decode = reference.vocabulary.decode
    equal = [decode(p.expected.argmax(axis=1)) == decode(p.actual.argmax(axis=1)) for p in places]
    return _Comparison(places, float(np.mean(equal)))


def _margin(theirs: Sequence[int], ours: Sequence[int], expected: NDArray[np.float32]) -> float:
    """How far apart the reference's logits are of the first two tokens that differ."""
    place = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b)
    row = expected[place]
    return float(abs(row[theirs[place]] - row[ours[place]]))


def _languages(translator: Translator) -> tuple[str | None, str | None]:
    """A pair that the model knows: its tokenizer's, else English and French, else the first two."""
    if translator.model_type in T5_TYPES:
        return "en", "fr"
    known = translator.languages
    if not known:
        return None, None
    chosen = []
    for default, common, other in zip(translator.defaults, ("en", "fr"), (known[0], known[-1]), strict=True):
        chosen.append(default or next((c for c in spellings(common) if c in known), other))
    return chosen[0], chosen[1]


def _sounds(count: int, sampling_rate: int, seed: int) -> list[NDArray[np.float32]]:
    """Waveforms of 2 s: a few harmonics that come and go, and noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(SOUND_S * sampling_rate)) / sampling_rate
    sounds = []
    for _ in range(count):
        sound = 0.01 * generator.standard_normal(len(time))
        for pitch, centre in zip(
            generator.uniform(80, 400, 4), generator.uniform(0, SOUND_S, 4), strict=True
        ):
            envelope = np.exp(-(((time - centre) / 0.15) ** 2))
            sound += envelope * sum(
                generator.uniform(0, 0.2) * np.sin(2 * np.pi * n * pitch * time) for n in range(1, 9)
            )
        sounds.append(sound.astype(np.float32))
    return sounds


def _is_ctc(folder: Path) -> bool:
    return str(read_json(folder / "config.json").get("architectures", [""])[0]).endswith("ForCTC")


def _copy_settings(source: Path, out: Path) -> None:
    """Everything beside the weights that opening the graphs needs, as it is; and a fast tokenizer."""
    for name in SETTINGS:
        for path in source.glob(name):
            shutil.copyfile(path, out / path.name)
    if not (source / TOKENIZER).exists() and not _is_ctc(source):
        PythonSeq2SeqTokenizer(source).save_fast(out)
