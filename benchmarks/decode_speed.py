"""How fast a random Llama of some size decodes: PyTorch in float32 against ONNX Runtime, at every level.

Speed does not depend on what the weights are, so they are random and nothing is downloaded. All contenders
take turns, so that a change of the machine's speed meets all of them. With the default size (125 million
parameters), two CPUs and an idle machine it takes about five minutes.

    python benchmarks/decode_speed.py
    python benchmarks/decode_speed.py --hidden 1536 --layers 16 --levels q4 --contexts 64 1024 --unfused
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pressoir.data import running_text
from pressoir.flows.commands.terminal import console, progress
from pressoir.inference.engines.decoder import open_decoder
from pressoir.inference.engines.decoder_protocol import Decoder
from pressoir.models import loading
from pressoir.models.layouts import count_parameters
from pressoir.recipe.sections import ExportConfig, QuantizeConfig
from pressoir.stage import StageContext
from pressoir.stages import export, quantize
from pressoir.system.runtime import available_cpus, describe_machine, use_threads

LEVELS = ("q8", "q4", "q3", "q2")


def main() -> None:
    """Make the model, every level's graph, measure, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=768, help="multiple of 128")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--levels", nargs="*", choices=LEVELS, default=LEVELS)
    parser.add_argument("--contexts", nargs="+", type=int, default=[64], help="tokens before those timed")
    parser.add_argument("--tokens", type=int, default=16, help="tokens timed in each turn")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--unfused", action="store_true", help="also without what `fuse` does to the graph")
    parser.add_argument("--threads", type=int, default=available_cpus())
    options = parser.parse_args()

    use_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        contenders = _contenders(Path(folder), options)
        for context in options.contexts:
            speeds = _measure(contenders, options.vocabulary, context, options.tokens, options.turns)
            console.print(_table(speeds, context))
    console.print(", ".join(f"{name}: {value}" for name, value in describe_machine(options.threads).items()))


def _contenders(folder: Path, options: argparse.Namespace) -> dict[str, Decoder]:
    source = folder / "source"
    _make(source, options)
    found = {"pytorch float32": open_decoder(source, options.threads)}
    with progress() as reporter:

        def stage(name: str) -> StageContext:
            for part in (name, f"{name}-work"):
                (folder / part).mkdir()
            return StageContext(folder / name, folder / f"{name}-work", reporter, 0, options.threads)

        def add(name: str, model: Path, fuse: bool = True) -> None:
            context = stage(f"onnx-{name}".replace(" ", "-"))
            export.run({"model": model}, ExportConfig(low_memory=True, fuse=fuse), context)
            found[f"onnx {name}"] = open_decoder(context.out_dir, options.threads)

        add("float32", source)
        for level in options.levels:
            context = stage(level)
            quantize.run({"model": source}, QuantizeConfig(scheme=level, algorithm="rtn"), context)
            add(level, context.out_dir)
            if options.unfused:
                add(f"{level} unfused", context.out_dir, fuse=False)
    return found


def _make(folder: Path, options: argparse.Namespace) -> None:
    from tokenizers import ByteLevelBPETokenizer

    heads = options.hidden // 64
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 8 // 3 // 128 * 128,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3 if heads % 3 == 0 else heads // 2,
        max_position_embeddings=4096,
    )
    model = LlamaForCausalLM(config)
    console.print(f"{count_parameters(model) / 1e6:.0f} million parameters")
    loading.save_model(model, folder)
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([running_text.embedded_calibration()], vocab_size=400, show_progress=False)
    loading.save_tokenizer(PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer), folder)


def _measure(
    contenders: dict[str, Decoder], vocabulary: int, context: int, tokens: int, turns: int
) -> dict[str, float]:
    """Median milliseconds a token, by contender."""
    prompt = np.random.default_rng(0).integers(0, vocabulary, (1, context))
    caches = {name: decoder.forward(prompt, last_only=True)[1] for name, decoder in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, decoder in contenders.items():
            cache, token = caches[name], prompt[:, :1]
            for _ in range(tokens):
                started = time.perf_counter()
                logits, cache = decoder.forward(token, cache, last_only=True)
                times[name].append(1e3 * (time.perf_counter() - started))
                token = logits[:, -1].argmax(axis=1)[:, None]
    return {name: statistics.median(values) for name, values in times.items()}


def _table(speeds: dict[str, float], context: int) -> Table:
    table = Table(f"after {context} tokens", "ms a token", "tokens/s", "speed-up")
    reference = next(iter(speeds.values()))
    for name, ms in speeds.items():
        table.add_row(name, f"{ms:.2f}", f"{1e3 / ms:.1f}", f"{reference / ms:.1f}×")
    return table


if __name__ == "__main__":
    main()
