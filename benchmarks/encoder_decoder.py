"""Translation and speech models in PyTorch, as float32 graphs and as int8 graphs: score, size and speed.

Both exports are made in a temporary folder. Then every input goes through each of the three in turn, one
input at a time, so that whatever else the machine does meets all of them alike; the order changes with every
input.

    python benchmarks/encoder_decoder.py --translation MODEL --source FILE --reference FILE \\
        --speech MODEL --audio DIR

FILE has one text a line, source and reference aligned; DIR has sound files and a `manifest.json`, a list of
`{"audio": FILE, "text": TRANSCRIPT}`. MODEL is a folder, a catalogue id or a hub id.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pressoir.flows.commands.terminal import console, progress
from pressoir.inference.audio import read_audio
from pressoir.inference.automatic_speech_recognition import SpeechRecognizer
from pressoir.inference.translation import Translator
from pressoir.metrics import TextScore, bleu, cer, chrf, wer
from pressoir.recipe.sections import ExportConfig
from pressoir.reporting import Reporter
from pressoir.sources import resolve
from pressoir.stage import StageContext
from pressoir.system.runtime import available_cpus, describe_machine, use_threads

WARM_UP = 5


@dataclass
class Contender:
    """One model in one runtime, and what was measured of it."""

    name: str
    folder: Path
    run: Callable[[Any], str]
    load_s: float
    texts: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def p50_ms(self) -> float:
        """Median time of one input."""
        return 1000 * float(np.median(self.seconds))

    @property
    def size_mb(self) -> float:
        """Everything in the folder but the export's report."""
        files = (path for path in self.folder.iterdir() if path.is_file() and path.name != "export.json")
        return sum(path.stat().st_size for path in files) / 1e6


def main() -> None:
    """Export, measure, print one table a model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--translation", metavar="MODEL", help="a translation model")
    parser.add_argument("--source", type=Path, metavar="FILE", help="texts to translate")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="their translations")
    parser.add_argument("--source-language", metavar="CODE", help="default: the tokenizer's own")
    parser.add_argument("--target-language", metavar="CODE", help="default: the tokenizer's own")
    parser.add_argument("--speech", metavar="MODEL", help="a Whisper or CTC model")
    parser.add_argument("--audio", type=Path, metavar="DIR", help="sound files with a manifest.json")
    parser.add_argument("--limit", type=int, metavar="N", help="take the first N inputs (default: all)")
    parser.add_argument("--threads", type=int, default=available_cpus())
    options = parser.parse_args()
    if options.translation and not (options.source and options.reference):
        parser.error("--translation needs --source and --reference")
    if options.speech and not options.audio:
        parser.error("--speech needs --audio")
    if not (options.translation or options.speech):
        parser.error("give --translation, --speech or both")

    use_threads(options.threads)
    machine, load = describe_machine(options.threads), os.getloadavg()[0]
    tables = []
    with progress() as reporter, tempfile.TemporaryDirectory() as work:
        if options.translation:
            tables.append(translation(options, Path(work), reporter))
        if options.speech:
            tables.append(speech(options, Path(work), reporter))
    for table in tables:
        console.print(table, soft_wrap=True, markup=False, highlight=False)
    console.print(
        f"{machine['cpu']} ({machine['cpu_features']}), {options.threads} threads; load average "
        f"{load:.1f} before, {os.getloadavg()[0]:.1f} after.",
        soft_wrap=True,
        highlight=False,
    )


def translation(options: argparse.Namespace, work: Path, reporter: Reporter) -> str:
    """The table of a translation model."""
    texts, references = (read_lines(path, options.limit) for path in (options.source, options.reference))
    languages = options.source_language, options.target_language

    def opened(folder: Path) -> Callable[[str], str]:
        translator = Translator.open(folder, options.threads)
        return lambda text: translator.translate([text], *languages)[0]

    contenders = build(options.translation, work / "translation", options.threads, reporter, opened)
    measure(contenders, texts, "sentences", reporter)
    scores = {"BLEU": bleu, "chrF": chrf}
    title = f"Translation: {options.translation}, {len(texts)} sentences one at a time, greedy"
    return table(title, contenders, references, scores, digits=2, unit="sentence", audio_s=None)


def speech(options: argparse.Namespace, work: Path, reporter: Reporter) -> str:
    """The table of a speech model."""
    manifest = json.loads((options.audio / "manifest.json").read_text(encoding="utf-8"))[: options.limit]

    def opened(folder: Path) -> Callable[[Any], str]:
        recognizer = SpeechRecognizer.open(folder, options.threads)
        return lambda samples: recognizer.transcribe([samples])[0]

    contenders = build(options.speech, work / "speech", options.threads, reporter, opened)
    rate = json.loads((contenders[0].folder / "preprocessor_config.json").read_text())["sampling_rate"]
    audio = [read_audio(options.audio / entry["audio"], rate) for entry in manifest]
    measure(contenders, audio, "sounds", reporter)
    scores = {"WER": wer, "CER": cer}
    references = [entry["text"] for entry in manifest]
    title = f"Speech: {options.speech}, {len(audio)} sounds one at a time, greedy"
    audio_s = sum(map(len, audio)) / rate
    return table(title, contenders, references, scores, digits=4, unit="sound", audio_s=audio_s)


def build(
    model: str, work: Path, threads: int, reporter: Reporter, opened: Callable[[Path], Callable[[Any], str]]
) -> list[Contender]:
    """The checkpoint and its two exports, opened. Each is opened twice: the first time imports libraries."""
    from pressoir.export import encoder_decoder

    source = resolve.resolve(model).folder
    folders = {"PyTorch fp32": source}
    for name, int8 in (("ONNX fp32", False), ("ONNX int8", True)):
        folders[name] = work / name.replace(" ", "-")
        (work / "work").mkdir(parents=True, exist_ok=True)
        folders[name].mkdir()
        context = StageContext(folders[name], work / "work", reporter, seed=0, threads=threads)
        encoder_decoder.run({"model": source}, ExportConfig(), context, int8=int8)
    contenders = []
    for name, folder in folders.items():
        opened(folder)
        start = time.perf_counter()
        run = opened(folder)
        contenders.append(Contender(name, folder, run, time.perf_counter() - start))
    return contenders


def measure(contenders: Sequence[Contender], inputs: Sequence[Any], what: str, reporter: Reporter) -> None:
    """Give every input to every contender, in an order that changes, and keep texts and times."""
    for given in inputs[:WARM_UP]:
        for contender in contenders:
            contender.run(given)
    for done, given in enumerate(inputs, start=1):
        turn = done % len(contenders)
        for contender in (*contenders[turn:], *contenders[:turn]):
            start = time.perf_counter()
            contender.texts.append(contender.run(given))
            contender.seconds.append(time.perf_counter() - start)
        reporter.progress(done, len(inputs), what)


def table(
    title: str,
    contenders: Sequence[Contender],
    references: Sequence[str],
    scores: dict[str, Callable[[Sequence[str], Sequence[str]], TextScore]],
    digits: int,
    unit: str,
    audio_s: float | None,
) -> str:
    """Markdown: one row a contender, ratios against the first."""
    first = contenders[0]
    factor = [] if audio_s is None else ["real-time factor"]
    heads = ["model", *scores, "same text", "size MB", "ratio", f"p50 ms a {unit}", "p95", *factor]
    heads += ["speed-up", "load s"]
    rows, signatures = [], dict[str, None]()
    for contender in contenders:
        found = [score(contender.texts, references) for score in scores.values()]
        signatures.update(dict.fromkeys(score.signature for score in found))
        same = np.mean([a == b for a, b in zip(contender.texts, first.texts, strict=True)])
        cells = [contender.name, *(f"{score.value:.{digits}f}" for score in found), f"{100 * same:.1f} %"]
        cells += [f"{contender.size_mb:.2f}", f"{first.size_mb / contender.size_mb:.2f}×"]
        cells += [f"{contender.p50_ms:.2f}", f"{1000 * np.percentile(contender.seconds, 95):.2f}"]
        cells += [] if audio_s is None else [f"{sum(contender.seconds) / audio_s:.4f}"]
        cells += [f"{first.p50_ms / contender.p50_ms:.2f}×", f"{contender.load_s:.2f}"]
        rows.append(cells)
    lines = [f"### {title}", "", *("| " + " | ".join(cells) + " |" for cells in [heads, *rows])]
    lines.insert(3, "|---|" + "---:|" * (len(heads) - 1))
    return "\n".join([*lines, "", *(f"`{signature}`  " for signature in signatures), ""])


def read_lines(path: Path, limit: int | None) -> list[str]:
    """The lines of a UTF-8 text."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()][:limit]


if __name__ == "__main__":
    main()
