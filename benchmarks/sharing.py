"""What sharing saves: three tiers on two models in one server, against the same without sharing.

Serves four ways, one after the other, each asked the same, and weighs all its processes (PSS):

- shared: three tiers on two models, one server;
- two models alone: one server with a tier for each model, nothing to share;
- two servers: each model in a server of its own;
- three servers: each tier in a server of its own, as without sharing.

The claims: the shared one loads two models; it takes what two models alone take, within 5 %; 200 mixed
concurrent requests reload nothing; tiers that share a model answer identically.

    python benchmarks/sharing.py                             # what `make demo` made
    python benchmarks/sharing.py --models FOLDER FOLDER      # two classifiers

About a minute. Prints Markdown; exit code 1 if a claim fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopback import Server, ask_all, demo_texts, post, pressoir

from pressoir.system.memory import process_tree, pss_bytes
from pressoir.system.runtime import available_cpus, describe_machine

GOAL = 0.05
REQUESTS = 200
MB = 1e6
Tiers = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Weighed:
    """One way to serve; bytes of PSS."""

    servers: int
    loads: int
    everything: int
    models: int
    """Of the workers alone, the servers themselves left out."""


def main() -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs=2, default=["demo", "demo:teacher_onnx"], metavar="MODEL")
    parser.add_argument(
        "--home", type=Path, default=Path(".pressoir"), help="Pressoir's (default: .pressoir)"
    )
    parser.add_argument("--isolation", choices=("process", "thread"), default="process")
    options = parser.parse_args()
    first, second = options.models
    tiers: Tiers = {
        "basic": {"model": first, "settings": {"max_batch": 4}},
        "medium": {"model": first, "settings": {"max_batch": 8}},
        "premium": {"model": second, "settings": {"max_batch": 16}},
    }
    alone: Tiers = {"medium": tiers["medium"], "premium": tiers["premium"]}
    separate = [{name: tier} for name, tier in tiers.items()]
    texts = demo_texts(64)
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(Path(work), options.home, options.isolation, texts)
        shared = bench.weigh([tiers])
        two_models = bench.weigh([alone])
        two_servers = bench.weigh([{name: tier} for name, tier in alone.items()])
        three_servers = bench.weigh(separate)
        loads_before, loads_after, differences = bench.mixed(tiers)

    print(f"Models: {first}, {second}. Isolation: {options.isolation}.")
    print("; ".join(f"{name}: {value}" for name, value in describe_machine(available_cpus()).items()) + "\n")
    print("| | servers | loads | PSS MB | of it models MB | against shared |\n|---|---:|---:|---:|---:|---:|")
    rows = {
        "shared: three tiers on two models": shared,
        "two models alone, one server": two_models,
        "two models alone, two servers": two_servers,
        "three tiers, three servers": three_servers,
    }
    for name, one in rows.items():
        print(
            f"| {name} | {one.servers} | {one.loads} | {one.everything / MB:.1f} | {one.models / MB:.1f} | "
            f"{one.everything / shared.everything:.2f} |"
        )
    print()
    ratio = shared.everything / two_models.everything
    claims = {
        f"three tiers on two models are {shared.loads} loads": shared.loads == 2,
        f"PSS of the shared server is {ratio:.3f} of two models alone in one server": abs(ratio - 1) <= GOAL,
        f"and {shared.everything / two_servers.everything:.3f} of two one-model servers, at most 1.05": (
            shared.everything <= (1 + GOAL) * two_servers.everything
        ),
        f"{REQUESTS} mixed concurrent requests cause {loads_after - loads_before} loads": (
            loads_after == loads_before == 2
        ),
        f"of {len(texts)} texts, {differences} are answered differently by the tiers that share": (
            differences == 0
        ),
    }
    for text, holds in claims.items():
        print(f"- {'holds' if holds else '**FAILS**'}: {text}")
    return 0 if all(claims.values()) else 1


@dataclass(frozen=True)
class Bench:
    """Where and how servers are run, and what they are asked."""

    work: Path
    home: Path
    isolation: str
    texts: list[str]

    def weigh(self, servers: list[Tiers]) -> Weighed:
        """Start servers together, ask each of their tiers the same, and weigh them."""
        loads = everything = models = 0
        with ExitStack() as stack:
            running = [stack.enter_context(self._serve(tiers)) for tiers in servers]
            for server, tiers in zip(running, servers, strict=True):
                for tier in tiers:
                    ask_all(server.port, self._requests(tier), clients=4)
            for server in running:
                loads += _loads(server)
                everything += pss_bytes(server.pid)
                models += sum(process.bytes for process in process_tree(server.pid)[1:])
        return Weighed(len(servers), loads, everything, models)

    def mixed(self, tiers: Tiers) -> tuple[int, int, int]:
        """Loads before and after mixed requests at once; number of texts that sharing tiers answer apart."""
        with self._serve(tiers) as server:
            before = _loads(server)
            names, texts = list(tiers), self.texts
            mixed = [
                _request(names[index % len(names)], texts[index // len(names) % len(texts)])
                for index in range(REQUESTS)
            ]
            ask_all(server.port, mixed, clients=REQUESTS)
            basic, medium = (
                [answer["results"] for answer in ask_all(server.port, self._requests(tier), clients=8)]
                for tier in names[:2]
            )
            differences = sum(one != other for one, other in zip(basic, medium, strict=True))
            return before, _loads(server), differences

    def _serve(self, tiers: Tiers) -> Any:
        config = {"isolation": self.isolation, "tiers": tiers}
        config["batching"] = {"max_queue": REQUESTS}  # none of those that come at once is turned away
        return pressoir(config, self.work, self.home)

    def _requests(self, tier: str) -> list[bytes]:
        return [_request(tier, text) for text in self.texts]


def _request(tier: str, text: str) -> bytes:
    return post("/classify", {"text": text, "tier": tier})


def _loads(server: Server) -> int:
    """How often a model was loaded, since the server started."""
    loads = 0.0
    for line in server.get("/metrics").splitlines():
        if line.startswith("pressoir_model_events_total") and 'event="loaded"' in line:
            loads += float(line.split()[-1])
    return int(loads)


if __name__ == "__main__":
    sys.exit(main())
