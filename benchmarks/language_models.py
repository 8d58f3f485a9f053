"""The table of levels and algorithms: perplexity, size, bits a weight and speed of one causal LM.

Every level × algorithm is quantised and exported (or found in the store), then all of them, the float graph
and the PyTorch source are measured in one interleaved run.

    python benchmarks/language_models.py --model MODEL --calibration FILE --text wiki=FILE --text plays=FILE
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pressoir.flows.commands.terminal import console, progress
from pressoir.pipeline.build import build_stage
from pressoir.recipe.sections import BenchmarkConfig, ExportConfig, QuantizeConfig, TextConfig
from pressoir.sources import resolve
from pressoir.store.artifact import Artifact
from pressoir.store.store import Store
from pressoir.system.runtime import available_cpus

LEVELS, ALGORITHMS = ("q8", "q4", "q3", "q2"), ("rtn", "hqq", "gptq")


def main() -> None:
    """Build what is missing, measure, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder, catalogue id or hub id of a causal LM")
    parser.add_argument("--calibration", type=Path, help="text for GPTQ; default: the embedded reviews")
    parser.add_argument("--text", action="append", default=[], metavar="NAME=FILE", help="evaluation text")
    parser.add_argument("--windows", type=int, help="128-token windows of each text (default: all)")
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=LEVELS)
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=ALGORITHMS)
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens decoded a prompt")
    parser.add_argument("--threads", type=int, default=available_cpus())
    options = parser.parse_args()

    store = Store()
    source = resolve.resolve(options.model, store)
    evaluation = {name: Path(file) for name, _, file in (text.partition("=") for text in options.text)}
    text = TextConfig(
        calibration=options.calibration, evaluation=evaluation, evaluation_windows=options.windows
    )
    with progress() as reporter:

        def build(stage: str, config: object, **inputs: object) -> Artifact:
            made, cached = build_stage(
                stage, config, inputs, store, reporter, seed=42, threads=options.threads
            )
            reporter.message(f"{stage}: {'found' if cached else 'built'}, {made.size_bytes / 1e6:.2f} MB")
            return made

        data = build("text", text)
        contenders = {
            "source": source,
            "source_onnx": build("export", ExportConfig(), model=source, data=data),
        }
        for level in options.levels:
            for algorithm in options.algorithms:
                config = QuantizeConfig(scheme=level, algorithm=algorithm)
                packed = build("quantize", config, model=source, data=data)
                name = f"{level}-{algorithm}"
                contenders[name] = build("export", ExportConfig(), model=packed, data=data)
        report = build("benchmark", BenchmarkConfig(new_tokens=options.new_tokens), data=data, **contenders)
    console.print((store.path(report) / "comparison.md").read_text(encoding="utf-8"), soft_wrap=True)
    console.print(f"report: {store.path(report)}")


if __name__ == "__main__":
    main()
