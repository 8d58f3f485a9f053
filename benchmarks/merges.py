"""The table of merges: perplexity of base, parents and every method's child on each text.

python benchmarks/merges.py --base BASE --models A B --text wiki=FILE --text plays=FILE
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pressoir.flows.commands.terminal import console, progress
from pressoir.formats.folder import read_json
from pressoir.inference.text_generation import TextGenerator
from pressoir.pipeline.build import build_stage
from pressoir.recipe.sections import MergeConfig, TextConfig
from pressoir.sources import resolve
from pressoir.store.store import Store
from pressoir.system.runtime import available_cpus

METHODS = ("linear", "slerp", "ties", "dare_ties", "dare_linear", "passthrough")


def main() -> None:
    """Merge by every method, measure, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", required=True, help="the model that all others were fine-tuned from")
    parser.add_argument("--models", nargs=2, required=True)
    parser.add_argument("--text", action="append", required=True, metavar="NAME=FILE", help="evaluation text")
    parser.add_argument("--density", type=float, default=0.5, help="of ties and dare")
    parser.add_argument("--windows", type=int, help="128-token windows of each text (default: all)")
    parser.add_argument("--threads", type=int, default=available_cpus())
    options = parser.parse_args()

    store = Store()
    texts = {name: Path(file) for name, _, file in (text.partition("=") for text in options.text)}
    base, *parents = (resolve.resolve(model, store) for model in (options.base, *options.models))
    folders = {"base": base.folder, **{f"parent {Path(p.reference).name}": p.folder for p in parents}}
    with progress() as reporter:
        data, _ = build_stage(
            "text",
            TextConfig(evaluation=texts, evaluation_windows=options.windows),
            {},
            store,
            reporter,
            seed=42,
            threads=options.threads,
        )
        for method in METHODS:
            sparse = method.startswith(("ties", "dare"))
            options_of = {"density": options.density} if sparse else {}
            if method == "passthrough":  # the first half of one model's layers, the second of the other's
                options_of = {"slices": halves(parents[0].folder)}
            config = MergeConfig(
                method=method,
                models=tuple(options.models),
                base=options.base if sparse else None,
                ratios=None if method == "passthrough" else (0.5, 0.5),
                **options_of,
            )
            inputs = {"parent_0": parents[0], "parent_1": parents[1], "data": data}
            merged, _ = build_stage(
                "merge",
                config,
                {**inputs, "base": base if sparse else None},
                store,
                reporter,
                seed=42,
                threads=options.threads,
            )
            folders[method] = store.path(merged)
        rows = {}
        for done, (name, folder) in enumerate(folders.items(), start=1):
            generator = TextGenerator.open(folder, options.threads, "pytorch")
            rows[name] = {
                text: generator.perplexity(path.read_text(encoding="utf-8"), 128, options.windows).value
                for text, path in texts.items()
            }
            reporter.progress(done, len(folders), "models scored")
    lines = [f"| model | {' | '.join(texts)} |", f"|---|{'---:|' * len(texts)}"]
    lines += [f"| {name} | {' | '.join(f'{v:.1f}' for v in row.values())} |" for name, row in rows.items()]
    console.print("\n".join(lines), soft_wrap=True)
    console.print(json.dumps(rows))


def halves(folder: Path) -> list[dict[str, object]]:
    """Slices of a model as deep as its parents: layers of the first, then of the second."""
    layers = read_json(folder / "config.json")["num_hidden_layers"]
    ranges = ((0, layers // 2), (layers // 2, layers))
    return [{"sources": [{"model": i, "layer_range": one}]} for i, one in enumerate(ranges)]


if __name__ == "__main__":
    main()
