"""A list of models evaluated under a memory limit that is too small for it, and the same list all at once.

Makes random models of several kinds, and a memory cgroup. In it, `pressoir evaluate` runs as ever: it has to
find the limit, plan within it, and stay within it; Prefect and its server are in there, too. Then one process
loads all the models and runs each at the batch size that the strategy would like: once without a limit, which
tells what that takes, and once in a cgroup as small as the first.

    python benchmarks/evaluation_under_limit.py
    python benchmarks/evaluation_under_limit.py --config CONFIG --limit-gb 4

A cgroup needs root. Without one the limit is only told (`memory.budget_gb`), and nothing but Pressoir keeps
to it. Five to ten minutes on two cores. Prints Markdown; the exit code is 1 where a claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pressoir.evaluation import memory_log, planner, run
from pressoir.evaluation.config import EvaluationConfig
from pressoir.evaluation.guards import ended_by_sigterm
from pressoir.evaluation.journal import Journal
from pressoir.evaluation.report import write
from pressoir.evaluation.report.results import Consolidated
from pressoir.formats.tensor_bytes import WEIGHTS
from pressoir.store.store import Store
from pressoir.system.cgroups import Files, hierarchies
from pressoir.system.memory import process_tree
from pressoir.system.runtime import available_cpus, describe_machine

GB = 10**9
LOOK_S = 0.1
LONGEST_S = 1800
CHILD = "pressoir.evaluation.child"


# --- models and data ----------------------------------------------------------------------------------------


def make(work: Path) -> None:
    """Random models, data for each of their tasks, and `models.yaml`."""
    import random_models as rm

    speech, causal, translation = "automatic-speech-recognition", "causal-lm", "translation"
    kinds = {
        "bert-base": ("text-classification", rm.bert(768, 6)),
        "bert-many-words": ("text-classification", rm.bert(768, 2, 90_000)),
        "bert-wide": ("text-classification", rm.bert(1024, 2, 50_000)),
        "gpt2": (causal, rm.gpt2(768, 4, 50_257)),
        "gpt2-small": (causal, rm.gpt2(512, 4, 50_257)),
        "llama": (causal, rm.llama(768, 6, 32_000)),
        "llama-small": (causal, rm.llama(512, 4, 32_000)),
        "whisper": (speech, rm.whisper(512, 4, 51_865, 10)),
        "wav2vec2": (speech, rm.wav2vec2(512, 4)),
        "nllb": (translation, rm.nllb(512, 4, 100_000)),
        "nllb-wide": (translation, rm.nllb(768, 2, 64_000)),
        "t5": (translation, rm.t5(768, 2, 64_000)),
        "t5-small": (translation, rm.t5(512, 4, 64_000)),
    }
    sizes = {speech: 10, causal: 2, translation: 40, "text-classification": 120}
    data, models = {}, []
    for task, size in sizes.items():
        section = rm.data_of(task, work, size).model_dump(mode="json", exclude_defaults=True)
        if task == translation:
            section |= {"source_language": "eng_Latn", "target_language": "fra_Latn"}
        data[task] = {"task": task, **section}
    for name, (task, make_model) in kinds.items():
        make_model(work / name)
        halve(work / name)
        entry: dict[str, Any] = {"id": name, "model": str(work / name), "data": task}
        if task == causal:
            entry["generation"] = {"window": 384}
        elif task == translation:
            entry["generation"] = {"max_new_tokens": 16}
        models.append(entry)
    values = {
        "name": "under-limit",
        "models": models,
        "data": data,
        "samples": 8,
        "memory": {"reserve_gb": 0.2},
        "device": "cpu",
    }
    (work / "models.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def halve(folder: Path) -> None:
    """Weights as they are published: in 16 bits. Loading makes 32 of them, in memory of the process's own."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / WEIGHTS)
    save_file({name: tensor.half() for name, tensor in weights.items()}, folder / WEIGHTS, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float16"}), encoding="utf-8")


# --- cgroups ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cgroup:
    """A memory cgroup of our own."""

    folder: Path
    version: int

    def command(self, words: Sequence[str]) -> list[str]:
        """The command, run in here."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.folder / "cgroup.procs"), *words]

    def table(self, name: str) -> dict[str, int]:
        """A file of names and numbers."""
        return Files().table(self.folder / name)

    @property
    def oom_kills(self) -> int:
        """How many processes in here the kernel killed for want of memory."""
        return self.table("memory.events" if self.version == 2 else "memory.oom_control").get("oom_kill", 0)

    @property
    def peak_bytes(self) -> int | None:
        """The most it ever used, pages of files included; None where the kernel does not keep it."""
        name = "memory.peak" if self.version == 2 else "memory.max_usage_in_bytes"
        return Files().bytes_limit(self.folder / name)

    @property
    def anonymous_bytes(self) -> int:
        """What cannot be dropped: memory that belongs to no file, and shared memory."""
        stat = self.table("memory.stat")
        if self.version == 2:
            return stat.get("anon", 0) + stat.get("shmem", 0)
        return stat.get("total_rss", 0) + stat.get("total_shmem", 0)


@contextmanager
def cgroup(name: str, limit: int | None) -> Iterator[Cgroup | None]:
    """A cgroup with a limit, without swap, removed in the end; None where that is not allowed."""
    made = None
    for hierarchy in hierarchies("memory", Files()):
        folder = hierarchy.folders[-1] / f"pressoir-{name}-{os.getpid()}"
        limits = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        if hierarchy.version == 2:
            limits = ("memory.max", "memory.swap.max")
        with suppress(OSError):
            folder.mkdir()
            if (folder / limits[0]).exists():
                made = Cgroup(folder, hierarchy.version)
                if limit is not None:
                    (folder / limits[0]).write_text(str(limit))
                    with suppress(OSError):  # a kernel that does not count swap
                        (folder / limits[1]).write_text("0" if hierarchy.version == 2 else str(limit))
                break
            folder.rmdir()
    try:
        yield made
    finally:
        if made is not None:
            remove(made)


def remove(made: Cgroup) -> None:
    """End what is left in a cgroup, and remove it."""
    for _ in range(100):
        for pid in (made.folder / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        with suppress(OSError):
            made.folder.rmdir()
            return
        time.sleep(0.1)
    print(f"cannot remove {made.folder}", file=sys.stderr)


# --- measuring ----------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """What was seen of a command and its descendants. Bytes are peaks."""

    log: Path
    everything: int = 0
    """PSS of all."""
    children: int = 0
    """PSS of the evaluation's children together."""
    others: int = 0
    """PSS of all but those."""
    anonymous: int | None = None
    """What the kernel could not drop, of the cgroup."""
    cgroup_peak: int | None = None
    oom_kills: int | None = None
    code: int | None = None
    """Exit code; None where it took too long."""
    seconds: float = 0.0

    def messages(self) -> Iterator[dict[str, Any]]:
        """The lines of JSON that it printed."""
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("{"):
                yield json.loads(line)

    def last(self, name: str) -> int | None:
        """The last value of that name that it told."""
        return next((line[name] for line in reversed(list(self.messages())) if name in line), None)

    @property
    def finished(self) -> int:
        """Models that it told to be done."""
        return sum(line.get("verdict") == "ok" for line in self.messages())


def watched(words: Sequence[str], place: Cgroup | None, environment: dict[str, str], log: Path) -> Watched:
    """Run a command, and look at it meanwhile."""
    seen, ended, start = Watched(log), threading.Event(), time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            place.command(words) if place else list(words),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def look() -> None:
        while not ended.wait(LOOK_S):
            tree = process_tree(process.pid)
            children = sum(one.bytes for one in tree if is_child(one.pid))
            everything = sum(one.bytes for one in tree)
            seen.everything = max(seen.everything, everything)
            seen.children = max(seen.children, children)
            seen.others = max(seen.others, everything - children)
            if place is not None:
                seen.anonymous = max(seen.anonymous or 0, place.anonymous_bytes)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        seen.code = process.wait(LONGEST_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        ended.set()
        thread.join()
    seen.seconds = time.monotonic() - start
    if place is not None:
        seen.cgroup_peak, seen.oom_kills = place.peak_bytes, place.oom_kills
    return seen


def is_child(pid: int) -> bool:
    """Whether a process is one of the evaluation's children."""
    with suppress(OSError):
        return CHILD.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def all_at_once(config: Path, journal: Path) -> None:
    """The other way: every model loaded, then each run at the batch size that it would like."""
    from pressoir.system.runtime import limit_threads

    limit_threads(available_cpus())
    from pressoir.evaluation.child import __main__ as child
    from pressoir.evaluation.child.predictors import open_predictor
    from pressoir.system.allowance import peak_resident_bytes

    prepared = run.prepare(EvaluationConfig.from_yaml(config), Store())
    jobs = {
        name: job.model_copy(update={"journal": journal, "threads": available_cpus()})
        for name, job in prepared.jobs.items()
    }
    loaded = {}
    for name, job in jobs.items():
        loaded[name] = open_predictor(job, prepared.dataset(name))
        print(json.dumps({"loaded": len(loaded), "peak_bytes": peak_resident_bytes()}), flush=True)
    for name, job in jobs.items():
        end = child.run(job, lambda _: None, lambda job, _: loaded[job.model])
        print(json.dumps({"run": name, "verdict": end.verdict, "peak_bytes": end.peak_bytes}), flush=True)


# --- the comparison -----------------------------------------------------------------------------------------


def main() -> int:
    """Make the models, run them both ways, print the tables and whether the claims hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, help="an evaluation's YAML (default: models made for this)")
    parser.add_argument("--limit-gb", type=float, default=2.4, help="10^9 bytes (default 2.4)")
    parser.add_argument("--work", type=Path, help="folder for models and results (default: a temporary one)")
    parser.add_argument("--part", choices=("make", "all-at-once"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "make":
        make(options.work)
        return 0
    if options.part == "all-at-once":
        all_at_once(options.config, options.work / "all-at-once.sqlite")
        return 0
    with ended_by_sigterm(), tempfile.TemporaryDirectory(dir=options.work) as folder:
        return compare(options.config, round(options.limit_gb * GB) // 4096 * 4096, Path(folder))


def compare(config: Path | None, limit: int, work: Path) -> int:
    """Both ways, in `work`; the exit code."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "PRESSOIR_"))},
        "PRESSOIR_HOME": str(work / "home"),
        "PREFECT_HOME": str(work / "prefect"),
        "HF_HUB_OFFLINE": "1",
    }
    os.environ["PRESSOIR_HOME"] = environment["PRESSOIR_HOME"]
    this = [sys.executable, __file__, "--work", str(work)]
    if config is None:
        say("making the models")
        subprocess.run([*this, "--part", "make"], check=True, env=environment, stdout=sys.stderr)
        config = work / "models.yaml"
    words = [
        sys.executable,
        "-m",
        "pressoir.flows",
        "evaluate",
        str(config),
        "--set",
        f"results={work / 'results'}",
    ]
    with cgroup("limited", limit) as place:
        say("evaluating within the limit")
        if place is None:
            words.append(f"memory.budget_gb={limit / GB}")
        within = watched(words, place, environment, work / "evaluate.log")
    folder = next((path.parent for path in (work / "results").glob(f"*/{write.CONSOLIDATED}")), None)
    if folder is None:
        print((work / "evaluate.log").read_text()[-5000:], file=sys.stderr)
        print(f"`pressoir evaluate` ended with {within.code} and left no result", file=sys.stderr)
        return 1
    evaluated = Evaluated.read(folder)
    path = work / "all-at-once.yaml"
    values = run.read_config(folder).model_copy(update={"strategy": evaluated.strategy, "batches": {}})
    path.write_text(yaml.safe_dump(values.model_dump(mode="json")), encoding="utf-8")
    words = [*this, "--part", "all-at-once", "--config", str(path)]
    with cgroup("free", None) as free:
        say("all at once, without a limit")
        without = watched(words, free, environment, work / "all-at-once.log")
    same = None
    if place is not None:
        with cgroup("same", limit) as small:
            say("all at once, within the limit")
            (work / "all-at-once.sqlite").unlink()
            same = watched(words, small, environment, work / "same.log")
    prepared = run.prepare(values, Store())
    print_paragraph(limit, place, evaluated)
    print_peaks(limit, evaluated, within, without, same)
    print_models(evaluated, prepared)
    return print_claims(limit, place is not None, evaluated, prepared, within, without)


@dataclass(frozen=True)
class Evaluated:
    """What the evaluation says of itself."""

    result: Consolidated
    plan: planner.EvaluationPlan
    children_bytes: int
    """Peak of all children together, from `memory_stats.json`."""
    attempts: dict[str, list[str]]
    """Verdicts of all attempts at a model."""

    @classmethod
    def read(cls, folder: Path) -> Evaluated:
        """The folder of a run."""
        result = write.read(folder / write.CONSOLIDATED)
        plan = planner.EvaluationPlan.model_validate_json((folder / run.PLAN).read_text(encoding="utf-8"))
        journal = Journal(folder / run.JOURNAL)
        attempts = {
            one.id: [
                json.loads(end or '{"verdict": "unknown"}')["verdict"] for end in journal.outcomes(one.id)
            ]
            for one in result.models
        }
        journal.close()
        return cls(result, plan, memory_log.stats(folder).peaks.children_bytes, attempts)

    @property
    def strategy(self) -> str:
        """The strategy that was picked."""
        return str(self.result.context["strategy"])

    @property
    def finished(self) -> int:
        """Models that ended well, with all their samples."""
        return sum(one.verdict == "ok" and one.samples == one.total for one in self.result.models)


def print_paragraph(limit: int, place: Cgroup | None, evaluated: Evaluated) -> None:
    """Under what conditions."""
    machine = describe_machine(available_cpus())
    seen = evaluated.result.context
    kept = "told as `memory.budget_gb` only: no cgroup can be made here"
    if place is not None:
        kept = f"set by a version-{place.version} memory cgroup, without swap"
    print(
        f"{len(evaluated.result.models)} models, {machine['cpu']}, {machine['cpus']} CPUs. Limit "
        f"{limit / GB:.2f} GB, {kept}. The evaluation saw a limit of "
        f"{(seen['limit_bytes'] or seen['total_bytes']) / GB:.2f} GB (`{seen['limit_source']}`) and "
        f"{seen['available_bytes'] / GB:.2f} GB available, chose {evaluated.strategy}, kept "
        f"{seen['reserve_bytes'] / GB:.2f} GB in reserve, and planned its children within "
        f"{evaluated.plan.budget_bytes / GB:.2f} GB, in {len(evaluated.plan.batches)} batches.\n"
    )


def print_peaks(
    limit: int, evaluated: Evaluated, within: Watched, without: Watched, same: Watched | None
) -> None:
    """The ways side by side."""
    ways = [within, without] + ([same] if same else [])
    models = len(evaluated.result.models)
    rows = {
        "all processes, PSS": [gb(way.everything) for way in ways],
        "… of them the evaluation's children": [gb(within.children), *["–"] * (len(ways) - 1)],
        "… of them all others (Prefect, its server, MLflow)": [gb(within.others), *["–"] * (len(ways) - 1)],
        "memory that belongs to no file": [gb(way.anonymous) for way in ways],
        "the cgroup's own count, pages of files included": [gb(way.cgroup_peak) for way in ways],
        "largest resident size of the one process": ["–", *(gb(way.last("peak_bytes")) for way in ways[1:])],
        "killed by the kernel for want of memory": [
            "–" if way.oom_kills is None else str(way.oom_kills) for way in ways
        ],
        "models loaded": ["one by one", *(f"{way.last('loaded') or 0} of {models}" for way in ways[1:])],
        "models finished": [
            f"{n} of {models}" for n in (evaluated.finished, *(way.finished for way in ways[1:]))
        ],
        "ended with": [
            str(way.code) if way.code is not None else f"stopped after {LONGEST_S} s" for way in ways
        ],
        "seconds": [f"{way.seconds:.0f}" for way in ways],
    }
    head = ["peak, GB", "`pressoir evaluate`, limited", "all at once, unlimited"]
    head += ["all at once, limited"] if same else []
    print_table(head, [[name, *cells] for name, cells in rows.items()])


def print_models(evaluated: Evaluated, prepared: run.Prepared) -> None:
    """Model by model."""
    batches = {one.model: batch.name for batch in evaluated.plan.batches for one in batch.placements}
    rows = []
    for one in evaluated.result.models:
        measured = evaluated.result.measured[one.id]
        estimate, wanted = prepared.estimates[one.id], prepared.jobs[one.id].batch_size
        rows.append(
            [
                one.id,
                batches.get(one.id, "–"),
                str(wanted),
                gb(estimate.peak_bytes(wanted)),
                str(measured.batch_size or "–"),
                gb(measured.predicted_peak_bytes),
                gb(measured.measured_peak_bytes),
                f"{one.samples} of {one.total}",
                ", then ".join(evaluated.attempts[one.id]) or one.verdict,
            ]
        )
    head = ["model", "batch", "default batch size", "would take, GB", "batch size run", "predicted peak, GB"]
    print_table([*head, "measured peak, GB", "samples", "attempts"], rows)


def print_claims(
    limit: int, kernel: bool, evaluated: Evaluated, prepared: run.Prepared, within: Watched, without: Watched
) -> int:
    """Each claim, and whether it holds; 1 if one does not."""
    budget, models = evaluated.plan.budget_bytes, len(evaluated.result.models)
    children, alone = max(within.children, evaluated.children_bytes), without.last("peak_bytes") or 0
    peaks = [prepared.estimates[name].peak_bytes(job.batch_size) for name, job in prepared.jobs.items()]
    too_large = sum(peak > budget for peak in peaks)
    claims = {
        f"every model finished: {evaluated.finished} of {models}": evaluated.finished == models,
        f"the default batch size does not fit for {too_large} of them": too_large > 0,
        f"PSS of the children, {gb(children)} GB, stayed within their budget of {gb(budget)} GB": (
            children <= budget
        ),
        f"all at once, they take {gb(alone)} GB, {alone / limit:.1f} times the limit": alone > limit,
    }
    if kernel:
        claims |= {
            f"PSS of all processes, {gb(within.everything)} GB, stayed within the limit of {gb(limit)} GB": (
                within.everything <= limit
            ),
            f"the kernel killed nothing: {within.oom_kills}": within.oom_kills == 0,
        }
    for text, holds in claims.items():
        print(f"- {'holds' if holds else '**FAILS**'}: {text}")
    return 0 if all(claims.values()) else 1


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Markdown; all but the first column to the right."""
    print(f"| {' | '.join(head)} |\n|---|{'---:|' * (len(head) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()


def gb(size: int | None) -> str:
    """Bytes in GB."""
    return "–" if size is None else f"{size / GB:.2f}"


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
