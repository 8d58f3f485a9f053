"""Whether exported graphs write what their checkpoint writes: its own tokenizer, search and texts included.

A model is compared with transformers itself, not with another side of ours: its tokenizer or feature
extractor gives the inputs (of a text that is cut, too), its `generate` writes greedily and with beams under
the model's generation settings, and its tokenizer makes the text. Then both runtimes are given those tokens,
and the logits of each next token are compared. A CTC model has logits alone; its inputs and its text are
transformers' own, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pressoir.data import running_text
from pressoir.errors import ParityError, RecipeError
from pressoir.extensions.task import task
from pressoir.formats.folder import is_ctc, task_of
from pressoir.inference.audio import SAMPLING_RATE
from pressoir.inference.ctc import CtcModel
from pressoir.inference.engines.encoder_decoder import (
    Generation,
    Inputs,
    SequenceToSequence,
    TorchSequenceToSequence,
    until,
)
from pressoir.inference.generation.rules import log_softmax
from pressoir.inference.translation import T5_TYPES, Translator
from pressoir.inference.whisper import WhisperModel
from pressoir.models import loading
from pressoir.recipe.sections import ExportConfig
from pressoir.stage import StageContext

PARITY_INPUTS = 32  # at most; fewer where they already give `parity_samples` positions to compare
GREEDY_INPUTS = 8  # of these, in one padded batch
BEAM_INPUTS, BEAMS = 4, 4
OTHER_TOKENS = "texts have other tokens than transformers gives"
OTHER_TEXT = "tokens become another text than transformers makes of them"
FEATURE_TOLERANCE = 1e-3
"""Of log-mel features, whose range is about 2: float32 sums in another order."""
MAX_NEW_TOKENS = 32  # a model may ramble on inputs that it was not made for
SOUND_S = 2.0
# Int8 may choose another of two tokens that float32 rates alike: a position counts for its gate where the
# best token is 1.5 times as probable as the second. On inputs that a model was not made for, a third is not.
DECIDED_MARGIN = float(np.log(1.5))


def check_parity(
    source: Path, exported: Path, config: ExportConfig, context: StageContext, int8: bool
) -> dict[str, float]:
    """Compare an exported folder with the checkpoint it was made from, in PyTorch; return the metrics.

    Raises:
        ParityError: they differ by more than `config` allows.
    """
    if task(task_of(source)).sound:
        compare = _compare_ctc if is_ctc(source) else _compare_speech
    else:
        compare = _compare_translation
    found = compare(source, exported, config, context, int8)
    expected = np.concatenate([logits.expected for logits in found.places]).astype(np.float64)
    actual = np.concatenate([logits.actual for logits in found.places])
    differences = np.abs(expected - actual).max(axis=1)
    largest = float(np.where(np.isnan(differences), np.inf, differences).max())
    same = expected.argmax(axis=1) == actual.argmax(axis=1)
    best = np.partition(expected, -2, axis=1)[:, -2:]
    decided = best[:, 1] - best[:, 0] >= DECIDED_MARGIN
    metrics = {
        "max_logit_difference": largest,
        "token_agreement": float(same.mean()),
        "decided_token_agreement": float(same[decided].mean()) if decided.any() else float(same.mean()),
        "greedy_agreement": found.greedy,
        **({} if found.beams is None else {"beam_agreement": found.beams}),
        "parity_inputs": float(len(found.places)),
        "parity_positions": float(len(same)),
        "decided_positions": float(decided.sum()),
    }
    if int8:
        agreement = metrics["decided_token_agreement"]
        alike = agreement >= config.min_label_agreement and bool(np.isfinite(largest))
        fault = (
            f"of the clearly decided float32 tokens, only {agreement:.4f} are equal in int8, below "
            f"export.min_label_agreement {config.min_label_agreement}; use float32, or lower the threshold "
            "and evaluate the model on its task"
        )
    else:
        alike = largest <= config.max_logit_difference
        fault = (
            f"max |Δlogit| is {largest:.3g}, above export.max_logit_difference "
            f"{config.max_logit_difference:g}; try another opset"
        )
    if not alike:
        raise ParityError(f"the ONNX graphs differ from PyTorch at {len(same)} positions: {fault}")
    if found.unexplained:
        raise ParityError(f"the exported model differs from the checkpoint: {found.unexplained}")
    return metrics


@dataclass(frozen=True)
class _Places:
    """Logits of the same positions in both runtimes, each (positions, vocabulary)."""

    expected: NDArray[np.float32]
    actual: NDArray[np.float32]


@dataclass(frozen=True)
class _Comparison:
    places: list[_Places]
    greedy: float
    """Fraction of the decoded inputs whose tokens are all equal."""
    unexplained: str = ""
    """A difference between tokens or texts that close logits do not explain."""
    decoded: Sequence[list[int]] = ()
    """The reference's greedy tokens of each input."""
    beams: float | None = None
    """Fraction of the inputs for which beam search finds the same tokens; None: not compared."""


def _compare_translation(
    source: Path, exported: Path, config: ExportConfig, context: StageContext, int8: bool
) -> _Comparison:
    """The checkpoint is read, tokenised and run by transformers alone."""
    model, tokenizer = loading.load_encoder_decoder(source), loading.load_tokenizer(source)
    own = Translator.open(exported, context.threads)
    reference = TorchSequenceToSequence(model, Generation.read(source, model))
    languages = _languages(own)
    if hasattr(tokenizer, "src_lang") and own.languages:
        tokenizer.src_lang = languages[0]
    embedded = running_text.embedded_calibration().splitlines()
    texts = [*embedded[:PARITY_INPUTS], " ".join(embedded)]
    before = own.instruction(*languages)
    longest = own.max_source_tokens
    rows = tokenizer([before + text for text in texts], truncation=True, max_length=longest)["input_ids"]
    try:
        encoded, begin = own.encode(texts, *languages)
    except RecipeError as error:
        raise ParityError(f"{OTHER_TOKENS}: {error}") from error
    fault = "" if encoded == rows else OTHER_TOKENS
    inputs, batch = [own.batch([row]) for row in rows[:-1]], own.batch(rows[:GREEDY_INPUTS])
    limit = MAX_NEW_TOKENS + reference.generation.rules.min_length
    options: dict[str, Any] = {"max_new_tokens": limit, **begin._asdict()}

    def generate(given: Inputs, num_beams: int) -> list[int]:
        settings = {"decoder_start_token_id": begin.prompt[0]} if begin.prompt else {}
        if begin.forced_first is not None:
            settings["forced_bos_token_id"] = begin.forced_first
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array) for name, array in given.items()}
            library: Any = model  # torch's modules take any attribute for a tensor
            found = library.generate(
                **tensors, num_beams=num_beams, do_sample=False, max_new_tokens=limit, **settings
            )
        return until(found[0, 1:].tolist(), reference.generation.rules.eos_ids)

    comparison = _compare_steps(
        inputs,
        batch,
        reference,
        own.engine,
        options,
        config,
        context,
        int8,
        generate,
    )
    written = [
        (str(tokenizer.decode(tokens, skip_special_tokens=True)).strip(), own.vocabulary.decode(tokens))
        for tokens in comparison.decoded
    ]
    fault = fault or comparison.unexplained
    if not fault and any(theirs != ours for theirs, ours in written):
        fault = OTHER_TEXT
    return _with_beams(comparison, fault, inputs, reference, own.engine, options, config, int8, generate)


def _with_beams(
    comparison: _Comparison,
    fault: str,
    inputs: Sequence[Inputs],
    reference: SequenceToSequence,
    engine: SequenceToSequence,
    options: Mapping[str, Any],
    config: ExportConfig,
    int8: bool,
    generate: Callable[[Inputs, int], list[int]],
) -> _Comparison:
    """The comparison with that of `BEAMS` beams; what was found before (`fault`) goes before its faults."""
    beams = [
        (generate(given, BEAMS), engine.generate(given, num_beams=BEAMS, **options)[0])
        for given in inputs[:BEAM_INPUTS]
    ]
    for index, (theirs, ours) in enumerate(beams):
        if not int8 and not fault and theirs != ours:
            gap = _gap(reference, inputs[index], theirs, ours, options)
            scale = len(ours) / len(ours) ** reference.generation.rules.length_penalty
            if not gap <= 2 * config.max_logit_difference * scale:
                fault = f"{BEAMS} beams find another text of input {index}, whose scores are {gap:.3g} apart"
    return replace(
        comparison,
        unexplained=fault,
        beams=float(np.mean([theirs == ours for theirs, ours in beams])),
    )


def _compare_speech(
    source: Path, exported: Path, config: ExportConfig, context: StageContext, int8: bool
) -> _Comparison:
    """The features, the first tokens, the search and the text of the checkpoint are transformers' own."""
    extract, tokenizer = loading.load_feature_extractor(source), loading.load_tokenizer(source)
    model = loading.load_encoder_decoder(source)
    own = WhisperModel.open(exported, context.threads)
    reference = TorchSequenceToSequence(model, Generation.read(source, model))
    sounds = _sounds(PARITY_INPUTS, own.extract.sampling_rate, context.seed)
    inputs = [{"input_features": np.asarray(extract(sound)["input_features"])} for sound in sounds]
    fault = ""
    for sound, given in zip(sounds, inputs, strict=True):
        if not np.allclose(own.features(sound)[0], given["input_features"][0], atol=FEATURE_TOLERANCE):
            fault = "sounds have other features than transformers gives"
    batch = {"input_features": np.concatenate([i["input_features"] for i in inputs[:GREEDY_INPUTS]])}
    prompt = own.prompt(inputs[0])
    limit = reference.generation.limit(MAX_NEW_TOKENS, len(prompt))
    options: dict[str, Any] = {"max_new_tokens": limit, "prompt": prompt}
    languages = reference.generation.settings.get("lang_to_id") or {}
    spoken = next((name for name, token in languages.items() if token in prompt), None)
    settings = {} if spoken is None else {"language": spoken, "task": "transcribe"}
    ends = reference.generation.rules.eos_ids

    def generate(given: Inputs, num_beams: int) -> list[int]:
        library: Any = model  # torch's modules take any attribute for a tensor
        with torch.inference_mode():
            found = library.generate(
                torch.from_numpy(given["input_features"]),
                num_beams=num_beams,
                do_sample=False,
                max_new_tokens=limit,
                return_timestamps=False,
                **settings,
            )
        tokens = found[0].tolist()
        begun = tokens[: len(prompt)] == [*prompt]  # older versions repeat them
        return until(tokens[len(prompt) :] if begun else tokens, ends)

    comparison = _compare_steps(
        inputs, batch, reference, own.engine, options, config, context, int8, generate
    )
    fault = fault or comparison.unexplained
    for tokens in comparison.decoded:
        theirs = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
        if not fault and theirs != own.vocabulary.decode(tokens):
            fault = OTHER_TEXT
    return _with_beams(comparison, fault, inputs, reference, own.engine, options, config, int8, generate)


def _compare_steps(
    inputs: Sequence[Inputs],
    batch: Inputs,
    reference: SequenceToSequence,
    engine: SequenceToSequence,
    options: Mapping[str, Any],
    config: ExportConfig,
    context: StageContext,
    int8: bool,
    generate: Callable[[Inputs, int], list[int]],
) -> _Comparison:
    """The reference decodes greedily; both give their logits along its tokens, and the engine decodes too."""
    start = options.get("prompt") or (reference.generation.decoder_start,)
    places: list[_Places] = []
    decoded: list[list[int]] = []
    for done, given in enumerate(inputs, start=1):
        tokens = generate(given, 1)
        path = np.asarray([[*start, *tokens]], dtype=np.int64)
        logits = (side.forced_logits(given, path)[0, len(start) - 1 :] for side in (reference, engine))
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
    return _Comparison(places, equal / len(own), unexplained, decoded)


def _compare_ctc(
    source: Path, exported: Path, config: ExportConfig, context: StageContext, int8: bool
) -> _Comparison:
    """The inputs, the model and the text of the checkpoint are transformers' own."""
    extract, tokenizer = loading.load_feature_extractor(source), loading.load_tokenizer(source)
    model: Any = loading.load_ctc(source)
    own = CtcModel.open(exported, context.threads)
    places, equal, fault = list[_Places](), list[bool](), ""
    for done, sound in enumerate(_sounds(PARITY_INPUTS, SAMPLING_RATE, context.seed), start=1):
        with torch.inference_mode():
            given = {name: torch.from_numpy(np.asarray(value)) for name, value in extract(sound).items()}
            logits = model(**given).logits[0].numpy()
        places.append(_Places(logits, own.logits(sound)))
        best = places[-1].expected.argmax(axis=1)
        if not fault and str(tokenizer.decode(best)).strip() != own.vocabulary.decode(best).strip():
            fault = OTHER_TEXT
        equal.append(bool((best == places[-1].actual.argmax(axis=1)).all()))
        context.reporter.progress(done, PARITY_INPUTS, "inputs compared")
        if done >= GREEDY_INPUTS and sum(len(p.expected) for p in places) >= config.parity_samples:
            break
    return _Comparison(places, float(np.mean(equal)), fault)


def _margin(theirs: Sequence[int], ours: Sequence[int], expected: NDArray[np.float32]) -> float:
    """How far apart the reference's logits of the first two differing tokens are."""
    index = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b)
    row = expected[index]
    return float(abs(row[theirs[index]] - row[ours[index]]))


def _gap(
    reference: SequenceToSequence,
    given: Inputs,
    theirs: Sequence[int],
    ours: Sequence[int],
    options: Mapping[str, Any],
) -> float:
    """How far apart two texts' log-probabilities are by the reference, under the model's rules."""
    rules, limit = reference.generation.rules, options["max_new_tokens"]
    if (forced := options.get("forced_first")) is not None:
        rules = replace(rules, forced_first=forced)
    start = [*(options.get("prompt") or (reference.generation.decoder_start,))]
    sources = [given["input_ids"][0].tolist()] if "input_ids" in given else None
    scores: list[float] = []
    for tokens in ([*theirs, min(rules.eos_ids)], [*ours, min(rules.eos_ids)]):
        path = np.asarray([[*start, *tokens[:-1]]], dtype=np.int64)
        logits = log_softmax(reference.forced_logits(given, path)[0, len(start) - 1 :])
        allowed = [
            rules.apply(
                logits[[i]],
                [[*start, *tokens[:i]]],
                prompt=len(start),
                limit=limit,
                sources=sources,
            )[0, tokens[i]]
            for i in range(min(len(tokens), limit))
        ]
        scores.append(float(np.sum(allowed)) / len(allowed) ** rules.length_penalty)
    return abs(scores[0] - scores[1])


def _languages(translator: Translator) -> tuple[str | None, str | None]:
    """A pair that the model knows: its tokenizer's, else English and French, else the first two."""
    if translator.model_type in T5_TYPES:
        return "en", "fr"
    known = translator.languages
    if not known:
        return None, None
    chosen = []
    for default, common, other in zip(translator.defaults, ("en", "fr"), (known[0], known[-1]), strict=True):
        chosen.append(translator.find_language(default or common) or other)
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
