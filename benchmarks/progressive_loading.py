"""How much of a model's first forward pass hides behind its loading: shards against the whole, in one run.

Makes a random Llama, shards it, and measures in fresh processes, one place after the other, round by round:

- load: every shard fetched, verified and in the model; no computation;
- compute: a forward pass over the prompt, all weights there and warm;
- TTFT progressive: from the call to the first token's logits, layers computing while later shards load;
- TTFT whole: the same model as one shard, loaded and verified first, then computed.

Places are a loopback HTTP server that gives no more than `--rate-mb-s` in all (a token bucket, in a process
of its own), and the local disk with the files' pages dropped from the page cache. Imports are not counted.

The goal is TTFT progressive ≤ 1.15 × max(load, compute). Takes a few minutes; other work on the machine
spoils the figures. `python benchmarks/progressive_loading.py` prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

from pressoir.models.layouts import count_parameters
from pressoir.system.runtime import available_cpus, child_environment, describe_machine

GOAL = 1.15
VOCABULARY = 32_000
# Width by size: parameters up to (millions), hidden size.
WIDTHS = ((200, 768), (600, 1024), (2_000, 2048), (1_000_000, 4096))
CASES = ("load", "compute", "progressive", "whole")


def main() -> None:
    """Parse the command line; the hidden options are for the script's own children."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters-m", type=int, default=120, help="millions of parameters (default 120)")
    parser.add_argument("--shards", type=int, default=8, help="number of shards (default 8)")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="tokens of the prompt (default 64)")
    parser.add_argument("--rate-mb-s", type=float, default=50.0, help="the server's limit (default 50)")
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many (default 3)")
    parser.add_argument("--threads", type=int, default=available_cpus(), help="default: all CPUs")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="as it is stored"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("out"), help="folder for the model, on the disk to measure"
    )
    parser.add_argument("--measure", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--place", help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.rate_mb_s)
    elif options.measure:
        print(json.dumps(measure(options)), flush=True)
    else:
        options.work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="progressive-", dir=options.work) as work:
            report(options, Path(work))


def report(options: argparse.Namespace, work: Path) -> None:
    """Make the model, measure every place and case, print the table."""
    parameters, layers, hidden = make_models(options, work)
    total_mb = sum(path.stat().st_size for path in (work / "sharded").glob("shard_*")) / 1e6
    with served(work, options.rate_mb_s) as url:
        places = {
            f"HTTP, {options.rate_mb_s:g} MB/s": (f"{url}/sharded", f"{url}/whole"),
            "local disk, cold": (str(work / "sharded"), str(work / "whole")),
        }
        rows = {}
        for name, (sharded, whole) in places.items():
            figures: dict[str, list[float]] = {case: [] for case in CASES}
            for number in range(options.rounds):
                for case in CASES:
                    seconds = in_child(options, work, case, whole if case == "whole" else sharded)
                    figures[case].append(seconds)
                    print(f"{name}, round {number + 1}: {case} {seconds:.3f} s", file=sys.stderr, flush=True)
            rows[name] = {case: statistics.median(values) for case, values in figures.items()}
    machine = describe_machine(options.threads)
    print(
        f"Random Llama, {parameters / 1e6:.0f} M parameters ({layers} layers, hidden {hidden}), "
        f"{options.dtype}, {total_mb:.0f} MB in {options.shards} shards; prompt of "
        f"{options.prompt_tokens} tokens; {machine['cpu']}, {options.threads} threads; "
        f"median of {options.rounds} rounds, seconds.\n"
    )
    print(
        "| from | load alone | compute alone | TTFT whole | TTFT progressive | "
        "TTFT progressive / max(load, compute) | goal ≤ 1.15 |"
    )
    print("|---|---:|---:|---:|---:|---:|---|")
    for name, row in rows.items():
        ratio = row["progressive"] / max(row["load"], row["compute"])
        print(
            f"| {name} | {row['load']:.2f} | {row['compute']:.2f} | {row['whole']:.2f} | "
            f"{row['progressive']:.2f} | {ratio:.2f} | {'holds' if ratio <= GOAL else 'does not hold'} |"
        )


def make_models(options: argparse.Namespace, work: Path) -> tuple[int, int, int]:
    """Write `sharded/` and `whole/` (one shard); return parameters, layers and hidden size."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from pressoir.models import loading
    from pressoir.recipe.sections import ShardConfig
    from pressoir.reporting import LogReporter
    from pressoir.stage import StageContext
    from pressoir.stages import shard

    hidden = next(width for limit, width in WIDTHS if options.parameters_m <= limit)
    inner = hidden * 8 // 3 // 64 * 64
    per_layer = 4 * hidden * hidden + 3 * hidden * inner
    layers = max(1, round((options.parameters_m * 1e6 - 2 * VOCABULARY * hidden) / per_layer))
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        max_position_embeddings=max(512, options.prompt_tokens),
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, options.dtype))
    loading.save_model(model, work / "source")
    for name, count in (("sharded", options.shards), ("whole", 1)):
        (work / name).mkdir()
        context = StageContext(work / name, work, LogReporter(), 0, options.threads)
        shard.run({"model": work / "source"}, ShardConfig(shards=count), context)
    shutil.rmtree(work / "source")
    return count_parameters(model), layers, hidden


def in_child(options: argparse.Namespace, work: Path, case: str, place: str) -> float:
    """Seconds that one case takes in a process of its own, with nothing of the model in memory."""
    home = work / "home"
    shutil.rmtree(home, ignore_errors=True)
    for path in work.rglob("*"):
        if path.is_file():
            drop_pages(path)
    command = [sys.executable, __file__, "--measure", case, "--place", place]
    command += ["--prompt-tokens", str(options.prompt_tokens), "--threads", str(options.threads)]
    environment = {**child_environment(options.threads), "PRESSOIR_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def drop_pages(path: Path) -> None:
    """Let the kernel forget a file's content, so that the next read goes to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(options: argparse.Namespace) -> float:
    """In the child: seconds that `options.measure` takes at `options.place`."""
    import torch
    from transformers.models.llama import modeling_llama  # noqa: F401 -- imports are not what is measured

    from pressoir.inference.progressive.loader import ProgressiveLoader
    from pressoir.system.runtime import use_threads

    use_threads(options.threads)
    ids = torch.arange(options.prompt_tokens)[None] % VOCABULARY  # (1, prompt)
    torch.ones(256, 256) @ torch.ones(256, 256)  # starts the thread pool

    def forward(model: Any) -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            model(ids, logits_to_keep=1).logits.argmax()
        return time.perf_counter() - began

    began = time.perf_counter()
    with ProgressiveLoader.from_folder(options.place, initial_shards=0) as loader:
        if options.measure != "progressive":
            loader.wait()
        if options.measure == "load":
            return time.perf_counter() - began
        if options.measure == "compute":
            forward(loader.model)
            return statistics.median(forward(loader.model) for _ in range(5))
        forward(loader.model)
        return time.perf_counter() - began


class TokenBucket:
    """Bytes that may be sent: refilled at a rate, a tenth of a second's worth at most in store."""

    def __init__(self, bytes_per_s: float) -> None:
        self._rate, self._lock = bytes_per_s, threading.Lock()
        self._tokens, self._filled = 0.0, time.monotonic()

    def take(self, count: int) -> None:
        """Wait until `count` bytes may be sent."""
        with self._lock:
            while True:
                now = time.monotonic()
                self._tokens = min(self._rate / 10, self._tokens + (now - self._filled) * self._rate)
                self._filled = now
                if self._tokens >= count:
                    self._tokens -= count
                    return
                time.sleep((count - self._tokens) / self._rate)


class ThrottledHandler(SimpleHTTPRequestHandler):
    """Serves files, all connections together at the bucket's rate."""

    bucket: TokenBucket

    def copyfile(self, source: BinaryIO, outputfile: BinaryIO) -> None:  # type: ignore[override]
        """Send a file a piece at a time."""
        while piece := source.read(1 << 16):
            self.bucket.take(len(piece))
            outputfile.write(piece)

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def serve(folder: Path, rate_mb_s: float) -> None:
    """In the child: serve `folder`, print the port, and go on until standard input closes."""
    ThrottledHandler.bucket = TokenBucket(rate_mb_s * 1e6)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(ThrottledHandler, directory=str(folder))) as server:
        print(server.server_port, flush=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdin.read()
        server.shutdown()


@contextmanager
def served(folder: Path, rate_mb_s: float) -> Iterator[str]:
    """The URL of `folder` on a throttled server."""
    command = [sys.executable, __file__, "--serve", str(folder), "--rate-mb-s", str(rate_mb_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        assert server.stdin is not None
        server.stdin.close()


if __name__ == "__main__":
    main()
