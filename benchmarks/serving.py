"""Requests a second, and how long they take: Pressoir's server against MLflow's and LitServe, in one run.

All serve the same files of a classifier, with all CPUs, through the same `TextClassifier`, so that what
differs is the server:

- Pressoir: `pressoir serve`, as it comes; and with `batching.batch_variant`, which computes texts together
  even where answers then depend on each other (dynamic int8);
- MLflow: `mlflow models serve --env-manager local`, the pyfunc that the pipeline registers;
- LitServe, as it comes; and with batches of up to 32 texts that are waited for up to 2 ms.

LitServe is no dependency: it is installed into a virtual environment of its own under the work folder, which
also sees the packages of this one. If that fails the table says so, and why.

Each contender answers all texts first, which is its warm-up, and is compared with the model itself. Then
clients (a connection each, one text a request) keep it busy. Contenders take turns, round by round, each in
fresh processes with nothing else running. A trivial server, which answers without work, shows what the client
itself can do.

    python benchmarks/serving.py                      # the demo's model, see `make demo`
    python benchmarks/serving.py --model FOLDER --rounds 2 --seconds 4
    python benchmarks/serving.py --hostile --seconds 4

With `--hostile` Pressoir alone is asked, on random models and by its default limits: by nine clients, alone
and beside each kind of client of `benchmarks/hostile.py`, which sends every tenth of all requests. What the
nine see is compared: the median, over the rounds, of each round's p50 and p99, and of how many times the p99
is that without hostile requests.

About five minutes; other work on the machine spoils the figures. Prints Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import hostile
from loopback import HOST, Load, Server, ask_all, demo_texts, free_port, load, post, pressoir, running

from pressoir.sources import resolve
from pressoir.store.store import Store
from pressoir.system.runtime import available_cpus, child_environment, describe_machine

LEVELS = (1, 8, 32)
HEALTHY = 9
"""Clients, and their answers for each hostile request."""
MOST_SLOWER = 1.5
CHECKING = 8
"""Clients of the warm-up, in which answers are checked."""
TRIVIAL = """
import asyncio, sys

class Trivial(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.received = transport, b""
    def data_received(self, data):
        self.received += data
        head, ended, body = self.received.partition(b"\\r\\n\\r\\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\\r\\n")[0]
        if ended and len(body) >= int(length or 0):
            self.received = b""
            self.transport.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}")

async def main():
    server = await asyncio.get_running_loop().create_server(Trivial, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()

asyncio.run(main())
"""
LITSERVE = """
import sys
from pathlib import Path

import litserve

class Classify(litserve.LitAPI):
    def setup(self, device):
        from pressoir.inference.text_classification import TextClassifier
        self.classifier = TextClassifier.open(Path(sys.argv[2]), int(sys.argv[3]))
    def decode_request(self, request):
        return request["text"]
    def predict(self, texts):
        batched = isinstance(texts, list)
        found = self.classifier.predict(texts if batched else [texts])
        return found if batched else found[0]
    def encode_response(self, output):
        return output

if __name__ == "__main__":
    api = Classify(max_batch_size=int(sys.argv[4]), batch_timeout=float(sys.argv[5]))
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, num_api_servers=1)
"""


@dataclass
class Contender:
    """A server, how it is asked, and what was measured."""

    name: str
    serve: Callable[[], Any]
    """Context manager of a running `Server`."""
    request: Callable[[str], bytes]
    probabilities: Callable[[Any], dict[str, float]]
    """Of an answer."""
    loads: dict[int, Load] = field(default_factory=lambda: {level: Load() for level in LEVELS})
    difference: float = 0.0
    """Largest |Δp| from the model itself."""


def main() -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="demo", help="folder or registry id of a classifier (default: demo)"
    )
    parser.add_argument(
        "--home", type=Path, default=Path(".pressoir"), help="Pressoir's (default: .pressoir)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default 3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each level in a round (default 5)")
    parser.add_argument("--texts", type=int, default=256, help="different texts (default 256)")
    parser.add_argument(
        "--work", type=Path, default=Path("out/serving"), help="for LitServe, logs (default out/serving)"
    )
    parser.add_argument("--hostile", action="store_true", help="measure hostile clients instead")
    options = parser.parse_args()
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ.update(child_environment(available_cpus()))  # the same for all, and for this process
    if options.hostile:
        return measure_hostile(options, work)
    source = resolve.resolve(options.model, Store(options.home))
    texts = demo_texts(options.texts)

    contenders = [
        Contender(name, pressoir_server(options.model, work, options.home, variant), classify, classified)
        for name, variant in (("Pressoir", False), ("Pressoir, batches", True))
    ]
    contenders += [
        Contender("MLflow", mlflow_server(source, work), invocation, invoked),
    ]
    missing = {}
    try:
        python = install_litserve(work)
        for name, batch, wait_s in (("LitServe", 1, 0.0), ("LitServe, batches", 32, 0.002)):
            serve = litserve_server(python, source.folder, batch, wait_s, work)
            contenders.append(Contender(name, serve, lambda text: post("/predict", {"text": text}), dict))
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        missing["LitServe"] = said.strip().splitlines()[-1]

    expected = predictions(source.folder, texts)
    ceiling = {level: Load() for level in LEVELS}
    for round_ in range(options.rounds):
        with trivial_server(work) as server:
            measure(server, [classify(text) for text in texts], ceiling, options.seconds / 2)
        for contender in contenders[round_ % len(contenders) :] + contenders[: round_ % len(contenders)]:
            print(f"round {round_ + 1} of {options.rounds}: {contender.name}", file=sys.stderr, flush=True)
            requests = [contender.request(text) for text in texts]
            with contender.serve() as server:
                answers = ask_all(server.port, requests, CHECKING)
                for answer, row in zip(answers, expected, strict=True):
                    found = contender.probabilities(answer)
                    differences = [abs(found[label] - value) for label, value in row.items()]
                    contender.difference = max(contender.difference, *differences)
                measure(server, requests, contender.loads, options.seconds)
    print_results(options, contenders, ceiling, missing)
    return 1 if any(one.failures for contender in contenders for one in contender.loads.values()) else 0


def measure(server: Server, requests: Sequence[bytes], loads: dict[int, Load], seconds: float) -> None:
    """Measure all levels, and add them to what is there."""
    for level, found in loads.items():
        found.add(load(server.port, requests, level, seconds))


def measure_hostile(options: argparse.Namespace, work: Path) -> int:
    """What clients see while a tenth of all requests is hostile."""
    texts = demo_texts(options.texts)
    requests = [post("/classify", {"text": text, "tier": hostile.CLASSIFIER}) for text in texts]
    seen = {kind: list[Load]() for kind in ("none", *hostile.KINDS)}
    told = dict.fromkeys(hostile.KINDS, "")
    with pressoir({"tiers": hostile.random_models(work)}, work, options.home) as server:
        ask_all(server.port, requests, CHECKING)
        for round_ in range(options.rounds):
            for kind, loads in seen.items():
                print(f"round {round_ + 1} of {options.rounds}: {kind}", file=sys.stderr, flush=True)
                if kind == "none":
                    loads.append(load(server.port, requests, HEALTHY, options.seconds))
                else:
                    found, told[kind] = load_beside(server.port, kind, requests, options.seconds)
                    loads.append(found)
    print("; ".join(f"{name}: {value}" for name, value in describe_machine(available_cpus()).items()) + "\n")
    print("| a tenth of requests | p50 ms | p99 ms | p99 against none | failures | it is told (last round) |")
    print("|---|---:|---:|---:|---:|---|")
    worst = 0.0
    for kind, loads in seen.items():
        halves, tails = ([one.percentile_ms(percent) for one in loads] for percent in (50, 99))
        ratio = median(
            tail / alone.percentile_ms(99) for tail, alone in zip(tails, seen["none"], strict=True)
        )
        worst = max(worst, ratio)
        failures = sum(len(one.failures) for one in loads)
        print(
            f"| {kind} | {median(halves):.1f} | {median(tails):.1f} | {ratio:.2f} | {failures} | "
            f"{told.get(kind, '')} |"
        )
    print(
        f"\n- Goal, p99 at most {MOST_SLOWER} times that without: {'yes' if worst <= MOST_SLOWER else 'no'}"
    )
    return 1 if any(one.failures for loads in seen.values() for one in loads) else 0


def load_beside(port: int, kind: str, requests: Sequence[bytes], seconds: float) -> tuple[Load, str]:
    """What clients see beside a hostile client, and what it is told."""
    command = [sys.executable, hostile.__file__, str(port), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()  # its request is made
        answers = itertools.count(1)

        def send_a_tenth() -> None:
            if next(answers) % HEALTHY == 0:
                process.stdin.write("\n")
                process.stdin.flush()

        found = load(port, requests, HEALTHY, seconds, send_a_tenth)
        process.stdin.close()
        return found, process.stdout.read().strip()


def print_results(
    options: argparse.Namespace,
    contenders: Sequence[Contender],
    ceiling: dict[int, Load],
    missing: dict[str, str],
) -> None:
    """The table, and whether the goal is met."""
    print(
        f"Model: {options.model}; {options.texts} texts of the demo's test split, one a request; "
        f"{options.rounds} rounds of {options.seconds:g} s."
    )
    print("; ".join(f"{name}: {value}" for name, value in describe_machine(available_cpus()).items()) + "\n")
    print("| server | clients | requests/s | p50 ms | p95 ms | failures | largest Δp |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for level in LEVELS:
        for contender in contenders:
            found = contender.loads[level]
            print(
                f"| {contender.name} | {level} | {found.per_second:.0f} | {found.percentile_ms(50):.2f} | "
                f"{found.percentile_ms(95):.2f} | {len(found.failures)} | {contender.difference:.1e} |"
            )
        for name in missing:
            print(f"| {name} | {level} | not installed | | | | |")
    for name, why in missing.items():
        print(f"\n{name} is not installed: {why}")
    print("\nThe client's own ceiling, against a server that does nothing:")
    for level, found in ceiling.items():
        fastest = max(contender.loads[level].per_second for contender in contenders)
        ratio = found.per_second / fastest
        print(
            f"- {level} clients: {found.per_second:.0f} requests/s, {ratio:.1f} times the fastest contender"
        )
    ours = contenders[0]
    others = [contender for contender in contenders if not contender.name.startswith("Pressoir")]
    print()
    ahead = []
    for level in LEVELS:
        mine, theirs = ours.loads[level], [other.loads[level] for other in others]
        wins = {
            "requests/s": mine.per_second > max(one.per_second for one in theirs),
            "p50": mine.percentile_ms(50) < min(one.percentile_ms(50) for one in theirs),
            "p95": mine.percentile_ms(95) < min(one.percentile_ms(95) for one in theirs),
        }
        ahead.append(all(wins.values()))
        told = ", ".join(f"{name} {'yes' if won else '**no**'}" for name, won in wins.items())
        print(f"- {level} clients: ahead in {told}")
    named = f", of those that were measured (not {', '.join(missing)})" if missing else ""
    print(f"- Goal, ahead of both at every level: {'yes' if all(ahead) else 'no'}{named}")
    for contender in contenders:
        for failure in [text for one in contender.loads.values() for text in one.failures][:3]:
            print(f"\n{contender.name} failed: {failure}")


def classify(text: str) -> bytes:
    """A request to Pressoir."""
    return post("/classify", {"text": text})


def classified(answer: Any) -> dict[str, float]:
    """Pressoir's answer."""
    return dict(answer["results"][0]["probabilities"])


def invocation(text: str) -> bytes:
    """A request to MLflow."""
    return post("/invocations", {"dataframe_split": {"columns": ["text"], "data": [[text]]}})


def invoked(answer: Any) -> dict[str, float]:
    """MLflow's answer."""
    return dict(answer["predictions"][0])


def pressoir_server(model: str, work: Path, home: Path, variant: bool) -> Callable[[], Any]:
    """Starts Pressoir."""
    tiers = {"demo": {"model": model, "task": "text-classification"}}
    return lambda: pressoir({"tiers": tiers, "batching": {"batch_variant": variant}}, work, home)


def mlflow_server(source: resolve.Source, work: Path) -> Callable[[], Any]:
    """Starts MLflow on the pyfunc that the pipeline registers, with the same signature."""
    saved = save_pyfunc(source, work)

    @contextmanager
    def serve() -> Iterator[Server]:
        port, binaries = free_port(), Path(sys.executable).parent
        words = f"-m mlflow models serve --env-manager local --host {HOST} --port {port} --model-uri".split()
        environment = {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}  # it calls uvicorn
        command = [sys.executable, *words, saved]
        with running(command, port, "/ping", work / "mlflow.log", environment, work) as server:
            yield server

    return serve


def save_pyfunc(source: resolve.Source, work: Path) -> Path:
    """An MLflow model of the classifier, which is looked up as in a store."""
    import shutil

    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    from pressoir.inference.predictor import open_predictor
    from pressoir.system.files import folder_digest
    from pressoir.tasks.tracking.model_version import CODE

    folder, stage, key = source.folder.resolve(), "model", "served"
    place = Store(work / "home").root / stage / key
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(folder, target_is_directory=True)
    columns = open_predictor(folder, available_cpus()).columns
    saved = work / "pyfunc"
    shutil.rmtree(saved, ignore_errors=True)
    mlflow.pyfunc.save_model(
        path=str(saved),
        python_model=str(CODE),
        model_config={
            "home": str(work / "home"),
            "stage": stage,
            "key": key,
            "digest": folder_digest(folder)[0],
        },
        pip_requirements=["mlflow"],
        signature=ModelSignature(
            inputs=Schema([ColSpec(DataType.string, "text")]),
            outputs=Schema([ColSpec(DataType[kind], name) for name, kind in columns.items()]),
        ),
    )
    return saved


def install_litserve(work: Path) -> Path:
    """Its interpreter, in an environment that also sees the packages of this one; installed once."""
    folder = work / "litserve"
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "litserve"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        [packages] = (folder / "lib").glob("python*/site-packages")
        ours = [sysconfig.get_path("purelib"), str(Path(__file__).resolve().parents[1])]
        (packages / "ours.pth").write_text("\n".join(ours), encoding="utf-8")  # after its own
        (folder / "installed").touch()
    return python


def litserve_server(python: Path, folder: Path, batch: int, wait_s: float, work: Path) -> Callable[[], Any]:
    """Starts LitServe."""
    script = work / "litserve_api.py"
    script.write_text(LITSERVE, encoding="utf-8")

    @contextmanager
    def serve() -> Iterator[Server]:
        port = free_port()
        arguments = [str(port), str(folder.resolve()), str(available_cpus()), str(batch), str(wait_s)]
        command = [python, script, *arguments]
        with running(command, port, "/health", work / f"litserve-{batch}.log", folder=work) as server:
            yield server

    return serve


@contextmanager
def trivial_server(work: Path) -> Iterator[Server]:
    """A block in which a server runs that answers everything at once."""
    port = free_port()
    with running([sys.executable, "-c", TRIVIAL, str(port)], port, "/", work / "trivial.log") as server:
        yield server


def predictions(folder: Path, texts: Sequence[str]) -> list[dict[str, float]]:
    """What the model itself says, of each text alone."""
    from pressoir.inference.text_classification import TextClassifier

    classifier = TextClassifier.open(folder, available_cpus())
    return [classifier.predict([text])[0] for text in texts]


if __name__ == "__main__":
    sys.exit(main())
