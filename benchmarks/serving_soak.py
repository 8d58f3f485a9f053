"""Does a server stay right, and level, while its workers are killed and its models reloaded?

A server of random models (a classifier's graph that two tiers share, and a small causal LM in PyTorch) is
asked by four clients, each as fast as it is answered. Every answer is compared with that of the model itself.
Each minute one of the workers is killed by SIGKILL, and half a minute later the model of one tier is
reloaded, in turn. A request that is refused (a worker died under it) is counted, and sent again. The memory
of the server with its workers (PSS) and its open files are sampled every five seconds.

    python benchmarks/serving_soak.py                  # 30 minutes
    python benchmarks/serving_soak.py --minutes 5

Prints Markdown; exit code 1 if an answer is wrong, or if the last third of the time has more files open, or a
tenth more memory, than the first.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import hostile
import psutil
from loopback import HOST, Server, demo_texts, pressoir

from pressoir.inference.text_classification import TextClassifier
from pressoir.inference.text_generation import TextGenerator
from pressoir.system.memory import pss_bytes
from pressoir.system.runtime import describe_machine

KEY = "soak"
CLIENTS = 4
SAMPLE_S, KILL_S = 5.0, 60.0
PATIENCE_S = 600.0
MOST_GROWTH = 1.1
TOLERANCE = 1e-6
NEW_TOKENS = 8
SHARING = "reviews-2"


@dataclass(frozen=True)
class Question:
    """A request, and whether an answer to it is right."""

    path: str
    body: dict[str, Any]
    is_right: Callable[[Any], bool]


@dataclass
class Seen:
    """What clients were answered, and what the server took."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    samples: list[tuple[float, int, int]] = field(default_factory=list)
    """Second, PSS in bytes, open files of the server."""
    killed: int = 0
    reloaded: Counter[str] = field(default_factory=Counter)


def main() -> int:
    """Parse the command line, soak, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="default 30")
    parser.add_argument(
        "--work", type=Path, default=Path("out/serving"), help="for models and logs (default out/serving)"
    )
    options = parser.parse_args()
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["PRESSOIR_ADMIN_KEY"] = KEY
    tiers = hostile.random_models(work)
    tiers[SHARING] = tiers[hostile.CLASSIFIER]
    questions = make_questions(tiers)
    seen, over = Seen(), threading.Event()
    with pressoir({"tiers": tiers, "threads": 1}, work, work / "home") as server:
        clients = [
            threading.Thread(target=ask, args=(server, questions[number:] + questions[:number], seen, over))
            for number in range(0, len(questions), len(questions) // CLIENTS)
        ]
        for client in clients:
            client.start()
        try:
            disturb(server, list(tiers), seen, 60 * options.minutes)
        finally:
            over.set()
            for client in clients:
                client.join()
    return print_results(seen, options.minutes)


def make_questions(tiers: dict[str, Any]) -> list[Question]:
    """Requests to all tiers, and what their models answer without a server."""
    texts = demo_texts(24)
    config = tiers[hostile.CLASSIFIER]
    classifier = TextClassifier.open(config["model"], 1)
    generator = TextGenerator.open(tiers[hostile.GENERATOR]["model"], 1)
    questions = []
    for index, (text, probabilities) in enumerate(zip(texts, classifier.predict(texts), strict=True)):
        tier = (hostile.CLASSIFIER, SHARING)[index % 2]
        questions.append(Question("/classify", {"text": text, "tier": tier}, equals(probabilities)))
        if index % 4 == 0:
            prompt = " ".join(text.split()[:4])
            written = "".join(generator.generate(prompt, max_new_tokens=NEW_TOKENS))
            body = {"model": hostile.GENERATOR, "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0}
            questions.append(Question("/v1/completions", body, writes(written)))
    return questions


def equals(expected: dict[str, float]) -> Callable[[Any], bool]:
    """Whether an answer has these probabilities."""
    return lambda answer: all(
        abs(answer["results"][0]["probabilities"][label] - value) <= TOLERANCE
        for label, value in expected.items()
    )


def writes(expected: str) -> Callable[[Any], bool]:
    """Whether an answer is this text."""
    return lambda answer: bool(answer["choices"][0]["text"] == expected)


def ask(server: Server, questions: Sequence[Question], seen: Seen, over: threading.Event) -> None:
    """A client: one question after another, each until it is answered."""
    connection = http.client.HTTPConnection(HOST, server.port, timeout=PATIENCE_S)
    for question in itertools.cycle(questions):
        while not over.is_set():
            status, answer = post(connection, question.path, question.body)
            with seen.lock:
                if status == 200:
                    if question.is_right(answer):
                        seen.right += 1
                    else:
                        seen.wrong.append(f"{question.body}: {answer}")
                    break
                seen.refused[f"{status} {answer}"] += 1
            time.sleep(0.2)
        if over.is_set():
            break
    connection.close()


def post(connection: http.client.HTTPConnection, path: str, body: Any) -> tuple[int, Any]:
    """Status, and the answer or the kind of an error."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    connection.request("POST", path, json.dumps(body), headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    if response.status != 200:
        error = answer.get("error", answer)
        return response.status, error.get("type") if isinstance(error, dict) else str(error)[:60]
    return response.status, answer


def disturb(server: Server, tiers: Sequence[str], seen: Seen, seconds: float) -> None:
    """Kill workers, reload models and take samples, for some time."""
    start = time.monotonic()
    process = psutil.Process(server.pid)
    kill_at, reload_at = KILL_S / 2, KILL_S
    for turn in itertools.count():
        now = time.monotonic() - start
        if now >= seconds:
            break
        if now >= kill_at:
            workers = [child for child in process.children(recursive=True) if child.num_threads() > 1]
            workers[seen.killed % len(workers)].kill()
            seen.killed += 1
            kill_at += KILL_S
        if now >= reload_at:
            tier = tiers[seen.reloaded.total() % len(tiers)]
            connection = http.client.HTTPConnection(HOST, server.port, timeout=PATIENCE_S)
            status, answer = post(connection, f"/v2/repository/models/{tier}/reload", {})
            connection.close()
            seen.reloaded[f"{tier}: {status if status == 200 else answer}"] += 1
            reload_at += KILL_S
        seen.samples.append((now, pss_bytes(server.pid), process.num_fds()))
        if turn % 12 == 0:
            print(f"{now / 60:.0f} min: {seen.right} right", file=sys.stderr, flush=True)
        time.sleep(max(0.0, start + (turn + 1) * SAMPLE_S - time.monotonic()))


def print_results(seen: Seen, minutes: float) -> int:
    """The tables; 1 if something is not as it should be."""
    print("; ".join(f"{name}: {value}" for name, value in describe_machine(1).items()) + "\n")
    print(f"{minutes:g} minutes, {CLIENTS} clients: {seen.right} right answers, {len(seen.wrong)} wrong.")
    print(f"{seen.killed} workers killed; reloads: {dict(seen.reloaded)}; refused: {dict(seen.refused)}\n")
    print("| time | PSS MB, median (smallest–largest) | open files |")
    print("|---|---:|---:|")
    thirds = []
    for third in range(3):
        begin, end = (60 * minutes * (third + step) / 3 for step in (0, 1))
        sizes, files = zip(
            *((size, open) for now, size, open in seen.samples if begin <= now < end), strict=True
        )
        thirds.append((median(sizes), median(files)))
        print(
            f"| {begin / 60:.0f}–{end / 60:.0f} min | {median(sizes) / 1e6:.1f} ({min(sizes) / 1e6:.1f}–"
            f"{max(sizes) / 1e6:.1f}) | {median(files):g} ({min(files)}–{max(files)}) |"
        )
    (first_bytes, first_files), *_, (last_bytes, last_files) = thirds
    level = last_bytes <= MOST_GROWTH * first_bytes and last_files <= first_files
    print(f"\n- No wrong answer: {'no' if seen.wrong else 'yes'}")
    print(f"- Memory and open files level: {'yes' if level else 'no'}")
    for text in seen.wrong[:3]:
        print(f"\nwrong: {text}")
    return 0 if level and not seen.wrong else 1


if __name__ == "__main__":
    sys.exit(main())
