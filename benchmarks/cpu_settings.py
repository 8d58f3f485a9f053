"""What each CPU setting of `pressoir.system.runtime` gains: time, CPU use and peak memory, with and without.

python benchmarks/cpu_settings.py

Every case runs in fresh processes, on a random BERT classifier that the script makes. The cases of a table
take turns (A B C, B C A, …), so that a change of the machine's speed meets all of them. Figures are medians
over the rounds, with the smallest and the largest. It takes about ten minutes on two cores; nothing else
should run meanwhile.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pressoir.flows.commands.terminal import console, progress
from pressoir.system.runtime import (
    BRIEF_SPINNING,
    LOW_MEMORY_LOADING,
    available_cpus,
    describe_machine,
    inference_mode,
    release_memory,
    thread_environment,
)

BATCH, TOKENS, WARMUP = 8, 64, 3
SENTENCES = (16, 24)
"""A batch in training, whose sentences are short: threads wait for each other more often."""
_CLEARED = thread_environment(1, side_by_side=True).keys()


@dataclass(frozen=True)
class Case:
    """One row: what the children do, and with which environment."""

    name: str
    work: str
    """`grad`, `no_grad`, `inference_mode`, `train`, `train-bfloat16`, `mapped`, `copied` or `release`."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables set for the child, on top of ours without any thread limit."""
    children: int = 1
    """Processes that do it side by side."""
    hogs: int = 0
    """Other programs, each of which keeps a CPU of its own busy."""


def main() -> None:
    """Make the model, measure every case, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", metavar="WORD", help="the tables whose title contains it")
    parser.add_argument("--batches", type=int, default=40, help=f"of {BATCH} × {TOKENS} tokens, a process")
    parser.add_argument("--hidden", type=int, default=384, help="width of the model")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--child", metavar="WORK", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(do(options.child, options)), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        options.model = Path(folder)
        finish([start("make", options, {})])
        chosen = {k: v for k, v in sections(available_cpus()).items() if options.only.lower() in k.lower()}
        tables = measure(chosen, options)
    machine = describe_machine(available_cpus())
    console.print(
        f"{machine['cpu']}, {machine['cpus']} CPUs available, {machine['system']}, Python "
        f"{platform.python_version()}, torch {version('torch')}, transformers {version('transformers')}. "
        f"BERT of {options.layers} layers, width {options.hidden}; {options.batches} batches of {BATCH} × "
        f"{TOKENS} tokens a process; medians of {options.rounds} rounds (smallest–largest).",
        *tables,
        sep="\n",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def sections(cpus: int) -> dict[str, list[Case]]:
    """The tables, each with its rows."""
    limited, each = thread_environment(cpus), thread_environment(max(cpus // 2, 1))
    passive, active = thread_environment(cpus, side_by_side=True), {"OMP_WAIT_POLICY": "ACTIVE"}
    brief = dict(BRIEF_SPINNING)
    host = thread_environment(4 * cpus)
    threads = [
        Case("libraries' own choice", "inference_mode"),
        Case(f"limited to the {cpus} available", "inference_mode", limited),
        Case(f"{4 * cpus}, as on a host of {4 * cpus} CPUs", "inference_mode", host),
        Case("1", "inference_mode", thread_environment(1)),
    ]
    side_by_side = [
        Case("libraries' own choice", "inference_mode", {}, 2),
        Case(f"each limited to {max(cpus // 2, 1)}", "inference_mode", each, 2),
        Case(f"each {4 * cpus}", "inference_mode", host, 2),
    ]
    waiting = [
        Case("one process, unset", "inference_mode", limited),
        Case("one process, spinning briefly", "inference_mode", limited | brief),
        Case("one process, PASSIVE", "inference_mode", passive),
        Case("one process, ACTIVE", "inference_mode", limited | active),
        Case("two processes of all CPUs each, unset", "inference_mode", limited, 2),
        Case("two processes of all CPUs each, PASSIVE", "inference_mode", passive, 2),
        Case("two processes of all CPUs each, ACTIVE", "inference_mode", limited | active, 2),
    ]
    training = [
        Case(f"{name}, {'another program on each CPU' if hogs else 'alone'}", "train", environment, hogs=hogs)
        for hogs in (0, cpus)
        for name, environment in {
            "unset": limited,
            "spinning briefly": limited | brief,
            "PASSIVE": passive,
        }.items()
    ]
    precision = [Case("float32", "train", limited), Case("bfloat16", "train-bfloat16", limited)]
    modes = [Case(mode, mode, limited) for mode in ("grad", "no_grad", "inference_mode")]
    loading = [
        Case("LOW_MEMORY_LOADING", "mapped", limited),
        Case("file read, then copied into the model", "copied", limited),
    ]
    return {
        "Threads, one process": threads,
        "Threads, two processes side by side": side_by_side,
        "OMP_WAIT_POLICY": waiting,
        "Training beside other programs": training,
        "Precision of training": precision,
        "Inference mode": modes,
        "Loading": loading,
        "Giving back": [Case("release_memory", "release", limited)],
    }


def measure(tables: dict[str, list[Case]], options: argparse.Namespace) -> list[str]:
    """Run all rounds of every table; return the lines of Markdown."""
    lines: list[str] = []
    done, total = 0, options.rounds * sum(len(cases) for cases in tables.values())
    with progress() as reporter:
        for title, cases in tables.items():
            found: dict[str, list[dict[str, float]]] = {case.name: [] for case in cases}
            for turn in range(options.rounds):
                first = turn % len(cases)
                for case in cases[first:] + cases[:first]:
                    found[case.name].append(run(case, options))
                    done += 1
                    reporter.progress(done, total, "cases")
            figures = list(found[cases[0].name][0])
            lines += [
                "",
                f"### {title}",
                "",
                f"| | {' | '.join(figures)} |",
                f"|---|{'---:|' * len(figures)}",
            ]
            for name, rounds in found.items():
                cells = [_spread([one[figure] for one in rounds]) for figure in figures]
                lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def run(case: Case, options: argparse.Namespace) -> dict[str, float]:
    """One round of one case; of processes side by side the slowest time, and the sum of CPU and memory."""
    children = [start(case.work, options, case.environment) for _ in range(case.children)]
    answers = finish(children, case.hogs)
    if "CPU s" not in answers[0]:
        return answers[0]
    slowest = max(answer["ms a batch"] for answer in answers)
    used = sum(answer["CPU s"] for answer in answers)
    return {
        "ms a batch": slowest,
        "CPU %": 100 * used / (slowest / 1000 * options.batches) / available_cpus(),
        "CPU s": used,
        "peak RSS MB": sum(answer["peak RSS MB"] for answer in answers),
    }


@contextmanager
def _hog(cpu: int) -> Iterator[None]:
    """Another program that keeps a CPU busy."""
    words = f"import os\nos.sched_setaffinity(0, [{cpu}])\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", words]) as process:
        yield
        process.kill()


def start(work: str, options: argparse.Namespace, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start a child; it waits where its measurement begins."""
    ours = {name: value for name, value in os.environ.items() if name not in _CLEARED}
    words = [f"--{name}={getattr(options, name)}" for name in ("model", "batches", "hidden", "layers")]
    return subprocess.Popen(
        [sys.executable, __file__, "--child", work, *words],
        env={**ours, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(children: list[subprocess.Popen[str]], hogs: int = 0) -> list[dict[str, float]]:
    """Let children that have all come to their measurement go at once; return what they found."""
    for child in children:
        if child.stdout is None or child.stdout.readline() != "ready\n":
            raise SystemExit(f"a child failed:\n{child.communicate()[1]}")
    with ExitStack() as beside:
        for cpu in sorted(os.sched_getaffinity(0))[:hogs]:
            beside.enter_context(_hog(cpu))
        for child in children:
            if child.stdin is not None:
                child.stdin.write("go\n")
                child.stdin.flush()
        return [json.loads(child.communicate()[0]) for child in children]


def do(work: str, options: argparse.Namespace) -> dict[str, float]:
    """The child: what a case asks for."""
    import torch
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertForSequenceClassification

    torch.manual_seed(0)
    if work == "make":
        config = BertConfig(
            hidden_size=options.hidden,
            num_hidden_layers=options.layers,
            num_attention_heads=options.hidden // 32,
            intermediate_size=4 * options.hidden,
        )
        go()
        BertForSequenceClassification(config).save_pretrained(options.model)
        return {}
    if work == "release":
        return release(options.model)
    if work in ("mapped", "copied"):
        imports, own, begun = memory_mb("VmRSS"), memory_mb("RssAnon"), go()
        model = load(options.model, copied=work == "copied")
        seconds = time.perf_counter() - begun
        run_batches(model, 1, "inference_mode")
        return {
            "load s": seconds,
            "peak RSS MB beyond the imports": memory_mb("VmHWM") - imports,
            "after a batch": memory_mb("VmRSS") - imports,
            "of that not the file's pages": memory_mb("RssAnon") - own,
        }
    model = load(options.model)
    run_batches(model, WARMUP, work)
    begun, used = go(), time.process_time()
    run_batches(model, options.batches, work)
    return {
        "ms a batch": (time.perf_counter() - begun) / options.batches * 1000,
        "CPU s": time.process_time() - used,
        "peak RSS MB": memory_mb("VmHWM"),
    }


def release(folder: Path) -> dict[str, float]:
    """Resident memory while a model in the process's own memory is used, dropped, and given back."""
    found = {"imports, RSS MB": memory_mb("VmRSS")}
    go()
    gc.disable()  # so that it is seen what collecting does
    model = load(folder, copied=True)
    run_batches(model, WARMUP, "inference_mode")
    found["model in use"] = memory_mb("VmRSS")
    del model
    found["dropped"] = memory_mb("VmRSS")
    gc.collect()
    found["and collected"] = memory_mb("VmRSS")
    release_memory()
    found["and trimmed"] = memory_mb("VmRSS")
    return found


def load(folder: Path, copied: bool = False) -> Any:
    """The model by the options of `pressoir.system.runtime`; or from a file that was read into memory."""
    from transformers import BertConfig, BertForSequenceClassification

    if not copied:
        return BertForSequenceClassification.from_pretrained(folder, **LOW_MEMORY_LOADING).eval()
    from safetensors.torch import load as parse

    model = BertForSequenceClassification(BertConfig.from_pretrained(folder))
    model.load_state_dict(parse((folder / "model.safetensors").read_bytes()))
    return model.eval()


def run_batches(model: Any, batches: int, mode: str) -> None:
    """So many forward passes; `grad` keeps what a backward pass would need, `train…` makes it."""
    import torch

    contexts: dict[str, Any] = {
        "grad": torch.enable_grad,
        "train": torch.enable_grad,
        "train-bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        "no_grad": torch.no_grad,
        "inference_mode": inference_mode,
    }
    training = mode.startswith("train")
    shape = SENTENCES if training else (BATCH, TOKENS)
    ids = torch.randint(0, model.config.vocab_size, shape)
    for _ in range(batches):
        with contexts[mode]():
            logits = model(input_ids=ids).logits
        if training:
            logits.square().mean().backward()


def go() -> float:
    """Tell the parent that the measurement may begin, wait for its word, and return the time."""
    print("ready", flush=True)
    sys.stdin.readline()
    return time.perf_counter()


def memory_mb(figure: str) -> float:
    """A field of /proc/self/status in MB (10^6 bytes)."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.partition(f"{figure}:")[2].split()[0]) * 1024 / 1e6


def _spread(values: list[float]) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    digits = 2 if middle < 10 else 0
    return f"{middle:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


if __name__ == "__main__":
    main()
