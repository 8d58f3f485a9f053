"""Does every type of model write what transformers' own tokenizer and `generate` write of it?

One row a type: of how many inputs (texts to translate, sounds to transcribe) the text is transformers',
greedy and with 4 beams, in PyTorch, as float32 graphs, and served over HTTP (the graphs, or PyTorch where a
type has none); and what int8 keeps: equal texts, and chrF against the float texts. The models are the tiny
random ones of the tests, of wide initial weights: a row counts where their outputs hold 8 distinct tokens at
least and differ between inputs, else it says so. Exports pass their parity gate; that of int8 is lowered for
random models. Needs the development dependencies.

    python benchmarks/model_types.py
    python benchmarks/model_types.py --only T5
    python benchmarks/model_types.py --model FOLDER --source FILE      # translation: a text a line
    python benchmarks/model_types.py --model FOLDER --source FOLDER    # Whisper: WAV files

Minutes. Prints Markdown; exit code 1 if a text of a float model is not transformers'.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import loopback
import speech_types
import translation_types

from pressoir.metrics import chrf
from pressoir.recipe.sections import ExportConfig
from pressoir.reporting import LogReporter
from pressoir.stage import StageContext
from pressoir.system.runtime import describe_machine, use_threads

MOST, BEAMS, DISTINCT = 24, 4, 8
THREADS = 1
INT8_AGREEMENT = 0.5  # random models feel int8 more than trained ones do

Texts = list[str]


class Type(Protocol):
    """A type of model: a checkpoint of it, inputs, what transformers writes, and what we do."""

    name: str
    exported: bool
    """Whether it has graphs; else it runs in PyTorch alone."""
    beams: bool
    """Whether it has beams: a CTC model reads its text off its frames."""
    request: dict[str, Any]
    """Settings of a tier that serves it."""
    folder: Path | None
    """A model that exists, in place of a random one."""

    def make(self, work: Path) -> Path:
        """Folder of a checkpoint."""

    def inputs(self, most: int) -> Sequence[Any]:
        """What it is given."""

    def expected(self, folder: Path, inputs: Sequence[Any], num_beams: int) -> tuple[Texts, int]:
        """What transformers alone writes, an input at a time, and how many distinct tokens that is."""

    def written(self, folder: Path, runtime: str, inputs: Sequence[Any], num_beams: int) -> Texts:
        """What we write."""

    def answered(self, port: int, tier: str, inputs: Sequence[Any]) -> Texts:
        """What a server of ours answers, each input asked for alone."""


@dataclass
class Row:
    """What one model wrote."""

    name: str
    inputs: int
    tokens: int
    """Distinct ones, greedily written by transformers."""
    different: int
    """Distinct texts of transformers."""
    equal: dict[str, tuple[int, ...]]
    """Texts equal to transformers', greedy and with beams, by where they were written."""
    chrf: float | None

    @property
    def counts(self) -> bool:
        """Whether equality says anything."""
        return self.tokens >= DISTINCT and self.different > 1

    @property
    def same(self) -> bool:
        """Whether every float text is transformers'."""
        return all(set(found) <= {self.inputs} for name, found in self.equal.items() if name != "int8")

    def __str__(self) -> str:
        name = self.name if self.counts else f"{self.name} (does not count)"
        cells = [name, f"{self.tokens} / {self.different}"]
        for place in ("PyTorch", "ONNX", "served", "int8"):
            found = self.equal.get(place, ())
            cells.append(f"{', '.join(map(str, found))} of {self.inputs}" if found else "–")
        return f"| {' | '.join([*cells, '–' if self.chrf is None else f'{self.chrf:.1f}'])} |"


def main() -> int:
    """Make, export, serve, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="PATTERN", default="", help="types whose names match")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="this model instead of random ones")
    parser.add_argument("--source", type=Path, metavar="PATH", help="its texts, one a line, or WAV files")
    options = parser.parse_args()
    if options.model and not options.source:
        parser.error("--model needs --source")
    types: Sequence[Type] = [*translation_types.TYPES, *speech_types.TYPES]
    if options.model:
        kind = speech_types if options.source.is_dir() else translation_types
        types = [kind.given(options.model.absolute(), options.source)]
    use_threads(THREADS)
    logging.disable(logging.WARNING)  # of exporters
    print("| type | distinct tokens / texts | PyTorch | ONNX | served | int8 | int8 chrF |")
    print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
    rows = []
    for one in types:
        if re.search(options.only, one.name, re.IGNORECASE):
            with tempfile.TemporaryDirectory() as temporary:
                rows.append(compare(one, Path(temporary)))
            print(rows[-1], flush=True)
    machine = describe_machine(THREADS)
    print(f"\nEach cell: greedy, {BEAMS} beams. {machine['cpu']} ({machine['cpu_features']}).")
    return 0 if all(row.same for row in rows) else 1


def compare(one: Type, work: Path) -> Row:
    """The row of one type."""
    folder, inputs = one.make(work), one.inputs(MOST)
    counts = (1, BEAMS) if one.beams else (1,)
    found = [one.expected(folder, inputs, count) for count in counts]
    expected, tokens = [texts for texts, _ in found], found[0][1]
    folders = {"PyTorch": folder}
    if one.exported:
        folders |= {
            place: _export(folder, work / place, place == "int8", one.folder is not None)
            for place in ("ONNX", "int8")
        }
    written = {
        place: [one.written(path, "pytorch" if path == folder else "onnxruntime", inputs, n) for n in counts]
        for place, path in folders.items()
    }
    written["served"] = _served(one, folders.get("ONNX", folder), inputs, counts, work)
    equal = {
        place: tuple(
            sum(a == b for a, b in zip(ours, theirs, strict=True))
            for ours, theirs in zip(texts, expected, strict=True)
        )
        for place, texts in written.items()
    }
    score = chrf(written["int8"][0], expected[0]).value if one.exported else None
    return Row(one.name, len(inputs), tokens, len(set(expected[0])), equal, score)


def _export(source: Path, out: Path, int8: bool, trained: bool) -> Path:
    from pressoir.export import encoder_decoder

    work = out.with_name(f"{out.name}-work")
    for path in (out, work):
        path.mkdir()
    config = ExportConfig() if trained else ExportConfig(min_label_agreement=INT8_AGREEMENT)
    encoder_decoder.run(
        {"model": source}, config, StageContext(out, work, LogReporter(), seed=0, threads=THREADS), int8=int8
    )
    return out


def _served(one: Type, folder: Path, inputs: Sequence[Any], counts: Sequence[int], work: Path) -> list[Texts]:
    """The texts that a server answers, of a tier for each number of beams."""
    tiers = {
        f"beams-{count}": {"model": str(folder), "settings": {"num_beams": count, **one.request}}
        for count in counts
    }
    with loopback.pressoir({"tiers": tiers}, work, work / "home") as server:
        return [one.answered(server.port, tier, inputs) for tier in tiers]


if __name__ == "__main__":
    sys.exit(main())
