"""Measure language models side by side: perplexity, time to the first token, tokens a second, size, memory.

What is fair for classifiers is fair here (see `pressoir.stages.benchmark`): one process, models in turn in
the order of a Williams square, each timed prompt after an untimed prompt of the same model, medians and p95;
memory and load time from a fresh process a model.

Two things are timed apart, because they are limited by different things. Reading the prompt (prefill)
multiplies matrices by matrices and is limited by arithmetic: it makes the time to the first token (TTFT).
Each further token (decode) multiplies every weight by one vector and is limited by how fast weights come from
memory, which is where fewer bits pay. Prompts are real text; tokens are chosen greedily, and an end token
does not end the text, so that every model does the same work.

All models are held in memory at once: together they must fit, beside the largest logits. Costs, for each
model, one pass over the texts, and about twice the timed prefills plus the timed tokens.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pressoir.benchmark.language_model_report import GenerationBenchmark, GenerationRow, headline, to_markdown
from pressoir.benchmark.probe import Probe, probe
from pressoir.benchmark.reports import LATENCIES, RESULT, TABLE, versions
from pressoir.benchmark.size import size_mb
from pressoir.benchmark.timing import drift, in_turn
from pressoir.data import running_text
from pressoir.errors import PressoirError
from pressoir.formats.folder import GRAPH, QUANTIZATION, read_json, runtime_of
from pressoir.inference.text_generation import TextGenerator
from pressoir.models import layouts
from pressoir.recipe.sections import BenchmarkConfig, TextConfig
from pressoir.reporting import Reporter
from pressoir.stage import StageContext
from pressoir.system.load import FreeCpus
from pressoir.system.runtime import describe_machine, use_threads

if TYPE_CHECKING:
    from pressoir.inference.engines.decoder_protocol import Decoder
    from pressoir.inference.text_generation import Perplexity

_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8}  # as safetensors names them
_SAME_TOKENS = 20_000  # characters of text that two tokenizers must cut alike


class Times(NamedTuple):
    """Of one prompt."""

    ttft_ms: float
    """From the prompt to the first new token."""
    decode_ms: float
    """From the first new token to the last."""


@dataclass(frozen=True)
class _Contender:
    name: str
    folder: Path
    cost: Probe
    generator: TextGenerator
    scores: Mapping[str, Perplexity]
    """By text."""

    @property
    def perplexity(self) -> float:
        """The geometric mean over the texts."""
        return math.exp(sum(score.nll for score in self.scores.values()) / len(self.scores))


def compare(
    folders: Mapping[str, Path], data: Path, config: BenchmarkConfig, context: StageContext
) -> dict[str, float]:
    """Compare causal LMs on the texts of the folder `data`; the first is the reference.

    Writes `benchmark.json`, `comparison.md`, `latencies.json` and two pictures; returns the last row's
    figures.

    Raises:
        PressoirError: a model fails to load in a fresh process, gives logits that are not finite, cuts text
            into other tokens than the first, or has too short a context for the prompts.
        DataError: a text is shorter than a window, or the first is shorter than a prompt.
    """
    texts, cut = running_text.load_evaluation(data), running_text.info(data)
    use_threads(context.threads)
    contenders = _contenders(folders, texts, cut, context)
    prompts = _prompts(contenders, next(iter(texts.values())), config)
    free = FreeCpus()
    times = time_in_turn(
        [contender.generator.decoder for contender in contenders],
        prompts,
        config.new_tokens,
        config.warmup,
        lambda done, total: context.reporter.progress(done, total, "prompts timed"),
    )
    free_cpus = free.mean()
    benchmark = GenerationBenchmark(
        recorded_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine(context.threads),
        versions=versions(),
        threads=context.threads,
        seed=context.seed,
        window=cut.window,
        scored_tokens={name: score.tokens for name, score in contenders[0].scores.items()},
        prompts=len(prompts),
        prompt_tokens=config.prompt_tokens,
        new_tokens=config.new_tokens,
        warmup=config.warmup,
        free_cpus=free_cpus,
        drift=drift(np.array([[prompt.decode_ms for prompt in own] for own in times])),
        rows=_rows(contenders, times, config),
    )
    _write(benchmark, times, context.out_dir)
    context.reporter.message(headline(benchmark))
    if (busy := benchmark.busy()) is not None:
        context.reporter.message(f"WARNING: {busy}")
    first, last = benchmark.rows[0], benchmark.rows[-1]
    metrics = last.model_dump(exclude={"stage", "runtime", "perplexities"})
    return {
        **{name: float(value) for name, value in metrics.items()},
        **{f"perplexity_{name}": value for name, value in last.perplexities.items()},
        "reference_perplexity": first.perplexity,
        "reference_decode_tokens_per_s": first.decode_tokens_per_s,
        "reference_size_mb": first.size_mb,
    }


def time_in_turn(
    decoders: Sequence[Decoder],
    prompts: NDArray[np.int64],
    new_tokens: int,
    warmup: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> list[list[Times]]:
    """Time every decoder on every prompt (prompts, tokens), in turn; return times (decoders, prompts).

    Each decoder is first called `warmup` times; the first call reads a prompt. Then, at each of its
    turns, it reads the prompt before and one new token untimed, and this one timed.
    """
    for decoder in decoders:
        if warmup:
            generate(decoder, prompts[0], warmup, clock)

    def timed(decoder: int, prompt: int) -> Times:
        generate(decoders[decoder], prompts[prompt - 1], 2, clock)
        return generate(decoders[decoder], prompts[prompt], new_tokens, clock)

    return in_turn(len(decoders), len(prompts), timed, progress)


def generate(decoder: Decoder, prompt: NDArray[np.int64], new_tokens: int, clock: Callable[[], int]) -> Times:
    """Greedily add `new_tokens` to `prompt` (tokens,), whatever they are, and say how long that took."""
    start = clock()
    logits, cache = decoder.forward(prompt[None], last_only=True)
    token = logits[0, -1].argmax()
    first = clock()
    for _ in range(new_tokens - 1):
        logits, cache = decoder.forward(np.array([[token]]), cache, last_only=True)
        token = logits[0, -1].argmax()
    return Times((first - start) / 1e6, (clock() - first) / 1e6)


def bits_per_weight(folder: Path) -> float:
    """Stored bits of a matrix weight: as `quantization.json` says, else of its floating-point type."""
    if (folder / QUANTIZATION).exists():
        return float(read_json(folder / QUANTIZATION)["bits_per_weight"])
    sizes = _graph_weights(folder) if (folder / GRAPH).exists() else _checkpoint_weights(folder)
    if not sizes:
        raise PressoirError(f"{folder} has neither floating-point weights nor {QUANTIZATION}")
    return sum(bits * count for bits, count in sizes) / sum(count for _, count in sizes)


def count_parameters(folder: Path) -> int:
    """Weights of the architecture that `config.json` describes; shared ones count once."""
    from pressoir.models import loading

    return layouts.count_parameters(loading.empty_causal_lm(loading.load_config(folder)))


def _contenders(
    folders: Mapping[str, Path], texts: Mapping[str, str], cut: TextConfig, context: StageContext
) -> list[_Contender]:
    """Measure what opening each folder costs, then open them all here and score them on the texts."""
    sample = next(iter(texts.values()))
    costs = []
    for done, folder in enumerate(folders.values(), start=1):  # first, while this process is still small
        runtime = runtime_of(folder)
        costs.append(probe(folder, runtime, context.threads, sample[:200]))
        context.reporter.progress(done, len(folders), "load time and memory")

    generators = _open(folders, sample, context.threads)
    tokens = [len(next(iter(generators.values())).tokenizer.encode(text)) for text in texts.values()]
    windows = sum(min(count // cut.window, cut.evaluation_windows or count) for count in tokens)
    contenders: list[_Contender] = []
    for (name, folder), cost in zip(folders.items(), costs, strict=True):
        scores: dict[str, Perplexity] = {}
        for text_name, text in texts.items():
            before = len(contenders) * windows + sum(s.tokens for s in scores.values()) // (cut.window - 1)
            score = generators[name].perplexity(
                text,
                cut.window,
                cut.evaluation_windows,
                _from(before, len(folders) * windows, context.reporter),
            )
            if not math.isfinite(score.value):
                raise PressoirError(
                    f"{name} ({folder}) has no finite perplexity on {text_name}; the model is corrupt"
                )
            scores[text_name] = score
        contenders.append(_Contender(name.removesuffix("_onnx"), folder, cost, generators[name], scores))
    return contenders


def _open(folders: Mapping[str, Path], sample: str, threads: int) -> dict[str, TextGenerator]:
    generators: dict[str, TextGenerator] = {}
    known = None
    for name, folder in folders.items():
        generators[name] = TextGenerator.open(folder, threads)
        ids = generators[name].tokenizer.encode(sample[:_SAME_TOKENS])
        if known is not None and ids != known:
            raise PressoirError(
                f"{name} ({folder}) tokenizes text differently from {next(iter(folders))}, so their "
                "perplexities cannot be compared; benchmark models with the same tokenizer"
            )
        known = ids
    return generators


def _from(before: int, total: int, reporter: Reporter) -> Callable[[int, int], None]:
    """Tell the windows of one text as part of those of all."""
    return lambda done, _: reporter.progress(before + done, total, "perplexity")


def _prompts(contenders: Sequence[_Contender], text: str, config: BenchmarkConfig) -> NDArray[np.int64]:
    """Prompts (prompts, tokens) evenly spread over a text; repeated where it is too short."""
    length = config.prompt_tokens + config.new_tokens
    for contender in contenders:
        if length > contender.generator.decoder.context:
            raise PressoirError(
                f"{contender.name} has a context of {contender.generator.decoder.context} tokens, but a "
                f"timed text has {length}; lower benchmark.prompt_tokens or benchmark.new_tokens"
            )
    ids = contenders[0].generator.tokenizer.encode(text)
    prompts = running_text.windows(ids, config.prompt_tokens, config.prompts, spread=True)
    return np.resize(prompts, (config.prompts, config.prompt_tokens))


def _rows(
    contenders: Sequence[_Contender], times: Sequence[Sequence[Times]], config: BenchmarkConfig
) -> tuple[GenerationRow, ...]:
    sizes = [size_mb(contender.folder) for contender in contenders]
    decode_s = [float(np.median([prompt.decode_ms for prompt in own])) / 1e3 for own in times]
    rows = []
    for i, (contender, own) in enumerate(zip(contenders, times, strict=True)):
        p50, p95 = np.percentile([prompt.ttft_ms for prompt in own], [50, 95])
        decoder: Any = contender.generator.decoder
        rows.append(
            GenerationRow(
                stage=contender.name,
                runtime=decoder.runtime,
                perplexity=contender.perplexity,
                perplexities={name: score.value for name, score in contender.scores.items()},
                perplexity_increase=contender.perplexity / contenders[0].perplexity - 1,
                bits_per_weight=bits_per_weight(contender.folder),
                parameters=count_parameters(contender.folder),
                size_mb=sizes[i],
                expanded_mb=getattr(decoder, "expanded_bytes", 0) / 1e6,
                compression=sizes[0] / sizes[i],
                ttft_ms_p50=float(p50),
                ttft_ms_p95=float(p95),
                prefill_tokens_per_s=config.prompt_tokens / (float(p50) / 1e3),
                decode_tokens_per_s=(config.new_tokens - 1) / decode_s[i],
                speedup=decode_s[0] / decode_s[i],
                baseline_rss_mb=contender.cost.baseline_rss_mb,
                peak_rss_mb=contender.cost.peak_rss_mb,
                load_s=contender.cost.load_s,
            )
        )
    return tuple(rows)


def _write(benchmark: GenerationBenchmark, times: Sequence[Sequence[Times]], folder: Path) -> None:
    from pressoir.benchmark import language_model_plots

    samples = [
        {
            "stage": row.stage,
            "runtime": row.runtime,
            "ttft_ms": [prompt.ttft_ms for prompt in own],
            "decode_ms": [prompt.decode_ms for prompt in own],
        }
        for row, own in zip(benchmark.rows, times, strict=True)
    ]
    benchmark.write(folder / RESULT)
    (folder / TABLE).write_text(to_markdown(benchmark), encoding="utf-8")
    (folder / LATENCIES).write_text(json.dumps(samples) + "\n", encoding="utf-8")
    language_model_plots.perplexity_size(benchmark.rows, folder / "perplexity_size.png")
    language_model_plots.decode_speed(benchmark.rows, folder / "decode_speed.png")


def _checkpoint_weights(folder: Path) -> list[tuple[int, int]]:
    """Bits and number of weights of each floating-point tensor of a checkpoint."""
    from safetensors import safe_open

    found = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            slices = (file.get_slice(name) for name in file.keys())  # noqa: SIM118
            found += [(_BITS.get(s.get_dtype(), 0), math.prod(s.get_shape())) for s in slices]
    return [(bits, count) for bits, count in found if bits]


def _graph_weights(folder: Path) -> list[tuple[int, int]]:
    """Bits and number of weights of each floating-point initializer of a graph."""
    import onnx

    bits = {onnx.TensorProto.FLOAT: 32, onnx.TensorProto.FLOAT16: 16, onnx.TensorProto.BFLOAT16: 16}
    graph = onnx.load(folder / GRAPH, load_external_data=False).graph
    return [(bits[t.data_type], math.prod(t.dims)) for t in graph.initializer if t.data_type in bits]
