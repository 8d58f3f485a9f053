"""Commands that are killed or stopped, anywhere: run again, they end as if nothing had happened.

A run that nobody disturbs says how long a command takes and how often it publishes something. Then it is
stopped at some moment: after a part of that time, or in the midst of publishing. Nothing may be left running,
what was published is not made again, a training goes on from its last whole checkpoint, and the results that
hold no measured time are the same to the byte.

`make kills` tries 12 moments and three signals of every command; the tests a few of them.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from prefect.settings import PREFECT_API_URL

from pressoir.formats.folder import CARD
from pressoir.store.store import Store
from pressoir.system.files import folder_digest

pytestmark = [pytest.mark.flow, pytest.mark.slow]
PROGRAM = Path(__file__).with_name("killed_program.py")
MARK = "PRESSOIR_TEST_KILLED"
MOMENTS = int(os.environ.get("KILL_MOMENTS", "0"))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MEASURED = ("benchmark", "search-shape", "search-figures")
COMMANDS = ("compress", "search", "press", "evaluate", "merge", "deploy")
# How far a command has come, by time, or counted in drafts that become something published.
FEW = [
    ("compress", signal.SIGKILL, "publishing", 0.55),
    ("search", signal.SIGINT, "publishing", 0.5),
    ("press", signal.SIGTERM, "time", 0.6),
    ("evaluate", signal.SIGTERM, "time", 0.6),
    ("merge", signal.SIGKILL, "time", 0.7),
    ("deploy", signal.SIGINT, "time", 0.8),
]


def many():
    """Half of the moments by time, half of them in the midst of publishing."""
    half = MOMENTS // 2
    for command in COMMANDS:
        for number in SIGNALS:
            for how, count in (("time", MOMENTS - half), ("publishing", half)):
                for place in range(count):
                    yield command, number, how, (place + 1) / (count + 1)


class Home:
    """A folder with a home and the files that a command is given."""

    def __init__(self, folder, values):
        self.folder, self.home = folder, folder / "home"
        for name, value in values.items():
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(value), encoding="utf-8")

    def words(self, command):
        if command == "merge":
            models = yaml.safe_load((self.folder / "merge.yaml").read_text())["models"]
            return [command, "--models", *models, "--method", "linear", "--output", self.folder / "out"]
        if command == "press":
            asked = yaml.safe_load((self.folder / "press.yaml").read_text())
            return [command, *asked["words"], "--output", self.folder / "out"]
        words = [command, self.folder / f"{command}.yaml"]
        if command == "evaluate":
            runs = (self.folder / "results").glob("*/journal.sqlite")
            words += [word for run in runs for word in ("--resume", run.parent)]
        return [*words, "--output", self.folder / "out"] if command == "compress" else words

    def start(self, command):
        self.mark = uuid.uuid4().hex
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, str(PROGRAM), *map(str, self.words(command))],
                env=kept
                | {
                    "PRESSOIR_HOME": str(self.home),
                    "PREFECT_API_URL": PREFECT_API_URL.value(),
                    "OMP_NUM_THREADS": "1",
                    MARK: self.mark,
                },
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self):
        return (self.folder / "log").read_text(errors="replace")

    def drafts(self):
        """What is about to be published: folders and files that are renamed when they are whole."""
        patterns = ("home/store/*/.*", "home/.*", ".*")
        return {str(path) for pattern in patterns for path in self.folder.glob(pattern)}

    def running(self):
        """Processes that the last command has started, or that these have."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                pass
        return found

    def published(self):
        """Each artifact's stage and key, its digest, and when it was made."""
        return {
            (one.stage, one.key): (one.digest, one.created_at)
            for one in Store(self.home).artifacts()
            if one.stage not in MEASURED
        }

    def checkpoints(self):
        """The last whole checkpoint of each training whose result is not published."""
        published, found = {key for _, key in self.published()}, {}
        for path in self.home.glob("work/**/checkpoint-*/trainer_state.json"):
            if published.intersection(path.parts):  # stopped before what it worked with was removed
                continue
            try:
                step = json.loads(path.read_text(encoding="utf-8"))["global_step"]
            except ValueError:  # stopped while it was being written
                continue
            found[path.parents[1]] = max(step, found.get(path.parents[1], 0))
        return found

    def results(self, command):
        """What must not differ: digests, predictions, what is deployed."""
        if command == "evaluate":
            (lines,) = (self.folder / "results").glob("*/consolidated_detailed.jsonl")
            return lines.read_text(encoding="utf-8")
        if command == "merge":
            return folder_digest(self.folder / "out", sorted((self.folder / "out").glob("*.safetensors")))
        if command == "deploy":
            served = json.loads((self.home / "models.json").read_text())["serving"]
            return {name: one["config"]["tiers"] for name, one in served.items()}
        results = {key: digest for key, (digest, _) in self.published().items()}
        if command in ("compress", "press"):
            model = self.folder / "out" / "model"
            files = sorted(path for path in model.rglob("*") if path.is_file() and path.name != CARD)
            results["out"] = folder_digest(model, files)  # the card has measured times
        return results


@pytest.fixture(scope="module")
def values(tiny_bert, tiny_data, tiny_classifier, tiny_llama, tiny_text, tmp_path_factory):
    """The files of the commands, by name."""
    brief = {"epochs": 2, "learning_rate": 1e-3, "checkpoint_every_steps": 5}
    files = {split: str(tiny_data / f"{split}.tsv") for split in ("train", "validation", "test")}
    recipe = {
        "name": "tiny",
        "model": str(tiny_bert),
        "threads": 1,
        "data": {"source": "files", **files},
        "teacher": brief,
        "distill": {**brief, "student": {"layers": 2}},
        "prune": {**brief, "calibration_samples": 16},
        "quantize": {"max_accuracy_drop": None},
        "export": {"min_label_agreement": 0.5},
        "benchmark": {"warmup": 1, "latency_samples": 10, "throughput_batches": 1},
    }
    pairs = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    pairs.write_text("".join(f"a good book {i}\ta bad book {i}\t{i / 10}\n" for i in range(40)))
    return {
        "compress": recipe,
        "search": {
            "name": "tiny",
            "recipe": {**recipe, "prune": {"epochs": 0, "head_sparsity": 0.25, "calibration_samples": 16}},
            "budget": {"max_size_mb": 50, "max_latency_ms": 1000, "min_accuracy": 0.0},
            "space": {"distill.student.layers": [1, 2], "prune.ffn_sparsity": [0.25, 0.75]},
            "trials": 2,
            "proxy": {"epochs": 1, "slack": 1.0},
            "latency_samples": 10,
            "results": "results",
        },
        "evaluate": {
            "name": "killed",
            "results": "results",
            "models": [
                {"id": "encoder", "model": str(tiny_bert), "data": "pairs", "batch_size": 1},
                {"id": "llama", "model": str(tiny_llama), "data": "text", "batch_size": 1},
            ],
            "data": {
                "pairs": {"task": "feature-extraction", "pairs": str(pairs)},
                "text": {"task": "causal-lm", "text": str(tiny_text / "evaluation" / "good.txt")},
            },
            "max_parallel": 1,
        },
        "press": {
            "words": [
                *("--data", *files.values(), "--model", str(tiny_bert), "--max-latency-ms", "1000"),
                *("--set", "teacher.epochs=1", "distill.epochs=1", "distill.student.layers=2"),
                *("prune.epochs=1", "prune.head_sparsity=0", "export.min_label_agreement=0.5", "threads=1"),
            ]
        },
        "merge": {"models": [str(tiny_llama), str(shutil.copytree(tiny_llama, pairs.with_name("other")))]},
        "deploy": {
            "name": "tiny",
            "tiers": {"basic": {"model": str(tiny_classifier), "settings": {"max_length": 32}}},
        },
    }


@pytest.fixture(scope="module")
def homes(values, prefect_harness, database, tmp_path_factory):
    """`homes()`: a new one; Prefect's server, which takes long to start, is there."""

    def make():
        folder = tmp_path_factory.mktemp("home")
        (folder / "home").mkdir()
        shutil.copy(database, folder / "home")
        return Home(folder, values)

    return make


@pytest.fixture(scope="module")
def undisturbed(homes):
    """Of a command that nobody disturbs: its home, how long it takes, and how many drafts it makes."""
    known = {}

    def of(command):
        if command not in known:
            home, seen, began = homes(), set(), time.monotonic()
            process = home.start(command)
            while process.poll() is None:
                seen |= home.drafts()
                time.sleep(0.002)
            assert process.returncode == 0, home.log
            known[command] = home, time.monotonic() - began, len(seen)
        return known[command]

    return of


def wait_for_the_moment(home, process, how, place, taken, drafts):
    """Until a part of the usual time has gone, or of the drafts been seen; the last of these is there now."""
    began, seen = time.monotonic(), set()
    while process.poll() is None:
        if how == "time" and time.monotonic() - began >= place * taken:
            return
        seen |= home.drafts()
        if how == "publishing" and len(seen) >= max(1, round(place * drafts)):
            return
        time.sleep(0.002)


@pytest.mark.parametrize(("command", "number", "how", "place"), list(many()) or FEW)
def test_what_is_stopped_goes_on_and_ends_the_same(command, number, how, place, homes, undisturbed):
    reference, taken, drafts = undisturbed(command)
    home = homes()
    process = home.start(command)
    wait_for_the_moment(home, process, how, place, taken, drafts)
    stopped = process.poll() is None
    if number == signal.SIGINT:
        with suppress(ProcessLookupError):  # it has just ended
            os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    began = time.monotonic()
    code = process.wait(timeout=60)
    ended_s = time.monotonic() - began
    said = [log.splitlines()[-1:] for log in (home.log, reference.log)]
    all_done = code == -number and said[0] == said[1]  # the interpreter was ending
    if stopped and code != 0 and not all_done:
        assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number], home.log
        assert "Traceback" not in home.log
        assert number == signal.SIGKILL or home.log.splitlines()[-1].startswith("stopped; "), home.log
        assert ended_s < (25 if command == "deploy" else 6)
    limit = time.monotonic() + 10
    while left := home.running():
        assert time.monotonic() < limit, [process.cmdline() for process in left]
        time.sleep(0.1)
    before, checkpoints = home.published(), home.checkpoints()

    process = home.start(command)
    assert process.wait(timeout=300) == 0, home.log
    after = home.published()
    again = [stage for (stage, key), made in before.items() if after.get((stage, key)) != made]
    assert again == [], "published before, and made again"
    for step in checkpoints.values():
        assert f"resuming from checkpoint-{step}" in home.log
    assert home.results(command) == reference.results(command)
    assert home.running() == []
    assert [path for path in home.drafts() if "/store/" in path or "/.out" in path] == []
