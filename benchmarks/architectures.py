"""How fast each declared encoder architecture is: its int8 graph against PyTorch in float32.

    python benchmarks/architectures.py
    python benchmarks/architectures.py --only albert deberta-v2 --tokens 16 128

Random classifiers of the shape of BERT-base, cut to six layers (MobileBERT of its own), are quantised
and exported as a recipe does it, with the parity check; then both take turns on the same texts of one
length, one by one. Prints Markdown: medians, and the ratio. It takes several minutes; nothing else
should run meanwhile.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from random_models import LABELS, SEED, word_tokenizer, words

from pressoir.benchmark.timing import time_in_turn
from pressoir.data import sentences
from pressoir.extensions import architecture, loader
from pressoir.inference.engines.classifier import Engine, open_engine
from pressoir.recipe.sections import DataConfig, ExportConfig, QuantizeConfig
from pressoir.reporting import Silent
from pressoir.stage import StageContext, load_stage
from pressoir.system.runtime import available_cpus, describe_machine, use_threads

HIDDEN, HEADS, FEED_FORWARD, NAMES, POSITIONS = 768, 12, 3072, 30_522, 514
TEXTS, WARMUP = 16, 5
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
OWN: dict[str, dict[str, Any]] = {
    "deberta-v2": {
        **{"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 256},
        **{"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False},
        "type_vocab_size": 0,
    },
    "mobilebert": {"hidden_size": 512, "num_attention_heads": 4, "intermediate_size": 512},
    "modernbert": {"reference_compile": False},
    "mpnet": {"pad_token_id": 1},
}
"""What published models of a type have besides BERT-base's shape."""


def main() -> None:
    """Make each model, measure it, print its row."""
    declared = [
        name
        for name in loader.names(architecture.GROUP)
        if loader.origin(architecture.GROUP, name) is None and "export" not in _entry(name).unsupported
    ]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=declared, default=declared, metavar="TYPE")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tokens", type=int, nargs="+", default=[32])
    parser.add_argument("--runs", type=int, default=100, help="timed texts of each model and length")
    parser.add_argument("--threads", type=int, default=available_cpus())
    options = parser.parse_args()
    use_threads(options.threads)
    machine = describe_machine(options.threads)
    print(
        f"{machine['cpu']}, {options.threads} threads; random weights, {options.layers} layers; one text at "
        "a time, medians of interleaved runs.\n"
    )
    print("| `model_type` | parameters, M | graph, MB | tokens | PyTorch float32, ms | int8, ms | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for model_type in options.only:
        with tempfile.TemporaryDirectory() as folder:
            measure(model_type, Path(folder), options)


def measure(model_type: str, work: Path, options: argparse.Namespace) -> None:
    """Print a row for each length."""
    source, graph, parameters = build(model_type, work, options)
    engines = [open_engine(source, options.threads), open_engine(graph, options.threads)]
    size = (graph / "model.onnx").stat().st_size / 1e6
    for tokens in options.tokens:
        float_ms, int8_ms = (float(np.median(times)) for times in times_of(engines, tokens, options.runs))
        print(
            f"| `{model_type}` | {parameters / 1e6:.1f} | {size:.1f} | {tokens} | {float_ms:.2f} | "
            f"{int8_ms:.2f} | {float_ms / int8_ms:.2f} × |",
            flush=True,
        )


def times_of(engines: Sequence[Engine], tokens: int, runs: int) -> Any:
    """Milliseconds (engines, runs) of random texts of `tokens` tokens."""
    rng = np.random.default_rng(SEED)
    ids = rng.integers(4, NAMES, (runs, 1, tokens))
    batches = [{"input_ids": row, "attention_mask": np.ones_like(row)} for row in ids]
    return time_in_turn(engines, [batches] * len(engines), WARMUP)


def build(model_type: str, work: Path, options: argparse.Namespace) -> tuple[Path, Path, int]:
    """Folders of the float32 checkpoint and of its int8 graph, and the number of parameters."""
    from transformers import AutoConfig

    from pressoir.models import loading
    from pressoir.models.layouts import count_parameters

    names, source = _entry(model_type), work / "source"
    shape = {
        names.hidden_size_field: HIDDEN,
        names.head_count_field: HEADS,
        names.ffn_width_field: FEED_FORWARD,
        names.layer_count_field: options.layers,
        "vocab_size": NAMES,
        "max_position_embeddings": POSITIONS,
    }
    config = AutoConfig.for_model(model_type, **{**shape, **IDS, **OWN.get(model_type, {})})
    loading.rename(config, LABELS)
    model = loading.new_classifier(config)
    loading.save_model(model, source)
    word_tokenizer(source, NAMES, SPECIAL, "[CLS] $A [SEP]")
    data, small, graph = work / "data", work / "int8", work / "onnx"
    make_data(data)
    run_stage("quantize", QuantizeConfig(max_accuracy_drop=None), source, data, small, options.threads)
    run_stage("export", ExportConfig(min_label_agreement=0), small, data, graph, options.threads)
    return source, graph, count_parameters(model)


def run_stage(name: str, config: Any, model: Path, data: Path, out: Path, threads: int) -> None:
    """Run a stage of the pipeline on its own."""
    scratch = out.with_name(f"{out.name}-work")
    for folder in (out, scratch):
        folder.mkdir()
    context = StageContext(out, scratch, Silent(), seed=SEED, threads=threads)
    load_stage(name).run({"model": model, "data": data}, config, context)


def make_data(folder: Path) -> None:
    """A few made-up texts, for the stages that look at some."""
    folder.mkdir()
    rng, known = random.Random(SEED), words()
    files = {split: folder / f"{split}.tsv" for split in ("train", "validation", "test")}
    for path in files.values():
        rows = (f"{' '.join(rng.choices(known, k=12))}\t{LABELS[i % 2]}" for i in range(TEXTS))
        path.write_text("\n".join(["text\tlabel", *rows]) + "\n", encoding="utf-8")
    config = DataConfig(source="files", **files)
    sentences.save(sentences.load(config, seed=SEED), folder, max_tokens=32)


def _entry(model_type: str) -> architecture.EncoderArchitecture:
    return architecture.known(model_type)


if __name__ == "__main__":
    main()
