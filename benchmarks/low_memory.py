"""Peak memory of quantising a causal LM, against the size of the model.

Makes a random Llama in safetensors, written tensor by tensor, and quantises it in a fresh process for each
algorithm. Peak RSS is VmHWM: everything that the process ever held, its libraries (about 0.5 GB) included.
The goal is peak RSS ≤ 0.6 × the model's size in float32 + 600 MB.

    python benchmarks/low_memory.py

RTN takes about a minute, HQQ a few minutes, GPTQ ten minutes and more on two cores. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pressoir.system.runtime import available_cpus, child_environment, use_threads

GOAL_PART, GOAL_MB = 0.6, 600.0
VOCABULARY, HIDDEN, FEED_FORWARD, HEADS = 32_000, 1536, 4096, 12
ALGORITHMS = ("rtn", "hqq", "gptq")


def main() -> None:
    """Make the model, quantise it once an algorithm, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters-m", type=int, default=520, help="millions of parameters (default 520)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float16")
    parser.add_argument("--level", choices=("q8", "q4", "q3", "q2"), default="q4")
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=ALGORITHMS)
    parser.add_argument("--windows", type=int, default=32, help="calibration windows of 128 tokens, for GPTQ")
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--work", type=Path, help="folder for the model (default: a temporary one)")
    parser.add_argument("--child", metavar="ALGORITHM", choices=ALGORITHMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(quantize(options)), flush=True)
        return
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        options.work = Path(folder)
        run_child(options, "make")
        print_table(options)


def print_table(options: argparse.Namespace) -> None:
    """A row an algorithm, as each is done."""
    parameters = json.loads((options.work / "parameters.json").read_text(encoding="utf-8"))
    float_mb = 4 * parameters / 1e6
    goal = GOAL_PART * float_mb + GOAL_MB
    print(
        f"Random Llama of {parameters / 1e6:.0f} M parameters, from {options.dtype} to {options.level}; "
        f"{float_mb:.0f} MB in float32; {options.threads} threads; goal: peak RSS ≤ {GOAL_PART} × "
        f"{float_mb:.0f} + {GOAL_MB:.0f} = {goal:.0f} MB\n"
    )
    print("| algorithm | peak RSS, MB | part of float32 | after, MB | bits a weight | time, s | goal |")
    print("|---|---|---|---|---|---|---|")
    for algorithm in options.algorithms:
        start = time.perf_counter()
        figures = json.loads(run_child(options, algorithm))
        peak, seconds = figures["peak_rss_mb"], time.perf_counter() - start
        holds = "holds" if peak <= goal else f"missed by {peak - goal:.0f} MB"
        print(
            f"| {algorithm} | {peak:.0f} | {peak / float_mb:.2f} | {figures['new_mb']:.0f} | "
            f"{figures['bits_per_weight']:.3f} | {seconds:.0f} | {holds} |",
            flush=True,
        )


def run_child(options: argparse.Namespace, what: str) -> str:
    """Make the model, or quantise it by the algorithm `what`, in a fresh process; return what it printed."""
    command = [sys.executable, __file__, "--work", str(options.work), "--level", options.level]
    command += ["--windows", str(options.windows), "--threads", str(options.threads)]
    if what == "make":
        code = (
            "import sys; sys.path.insert(0, sys.argv[1]); import low_memory; low_memory.make(*sys.argv[2:])"
        )
        place = [str(Path(__file__).parent), str(options.work), str(options.parameters_m), options.dtype]
        command = [sys.executable, "-c", code, *place]
    else:
        command += ["--child", what]
    environment = child_environment(options.threads)
    child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return child.stdout


def make(work: str, parameters_m: str, dtype: str) -> None:
    """Write `model/` (random weights, one tensor at a time), and calibration text."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    from pressoir.data import running_text
    from pressoir.formats.tensor_bytes import WEIGHTS
    from pressoir.formats.tensor_files import Writer
    from pressoir.models import skeleton

    folder = Path(work) / "model"
    folder.mkdir()
    layer = 4 * HIDDEN**2 + 3 * HIDDEN * FEED_FORWARD
    count = max(1, round((1e6 * int(parameters_m) - 2 * VOCABULARY * HIDDEN) / layer))
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=count,
        num_attention_heads=HEADS,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    ).save_pretrained(folder)
    words = sorted(set(running_text.embedded_calibration().split()))
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", *words])}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(folder)
    model = skeleton.build(folder)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    torch.manual_seed(0)
    writer = Writer(folder / WEIGHTS, {name: (kind, shape) for name, shape in shapes.items()})
    for name, shape in shapes.items():
        tensor = torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * 0.02
        writer.write(name, tensor.to(getattr(torch, dtype)).view(torch.uint8).numpy())
    writer.close()
    total = sum(p.numel() for p in model.parameters())
    (Path(work) / "parameters.json").write_text(json.dumps(total), encoding="utf-8")


def quantize(options: argparse.Namespace) -> dict[str, float]:
    """The child: quantise the model, return its figures."""
    use_threads(options.threads)
    from pressoir.data import running_text
    from pressoir.quantization import weight_only
    from pressoir.recipe.sections import QuantizeConfig, TextConfig
    from pressoir.reporting import LogReporter
    from pressoir.stage import StageContext

    out, data = options.work / "out", options.work / "data"
    for folder in (out, data):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    running_text.save(TextConfig(calibration_windows=options.windows), data)
    inputs = {"model": options.work / "model", "data": data}
    context = StageContext(out, options.work, LogReporter(), seed=0, threads=options.threads)
    return weight_only.run(inputs, QuantizeConfig(scheme=options.level, algorithm=options.child), context)


if __name__ == "__main__":
    main()
