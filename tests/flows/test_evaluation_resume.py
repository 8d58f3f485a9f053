"""An evaluation of real models, killed again and again, ends as if nothing had happened."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import real_evaluation
import yaml
from real_evaluation import Watch, child_of, until

pytestmark = [pytest.mark.flow, pytest.mark.slow]
SAMPLES = 120


@pytest.fixture(scope="module")
def values(tiny_bert, tiny_llama, tiny_gpt2, tiny_text, tmp_path_factory):
    """Three models, one sample at a time: each sample is a commit, so that a kill falls between two."""
    folder = tmp_path_factory.mktemp("long-data")
    lines = (tiny_text / "evaluation" / "good.txt").read_text().splitlines() * 4
    (folder / "long.txt").write_text("\n".join(lines) + "\n")
    pairs = zip(lines, lines[1:][: SAMPLES + 10], strict=False)
    (folder / "pairs.tsv").write_text("".join(f"{a}\t{b}\t{i / 10}\n" for i, (a, b) in enumerate(pairs)))
    lm = {"data": "text", "generation": {"window": 16}, "batch_size": 1}
    return {
        "name": "killed",
        "models": [
            {"id": "encoder", "model": str(tiny_bert), "data": "pairs", "batch_size": 1},
            {"id": "llama", "model": str(tiny_llama), **lm},
            {"id": "gpt2", "model": str(tiny_gpt2), **lm},
        ],
        "data": {
            "pairs": {"task": "feature-extraction", "pairs": str(folder / "pairs.tsv")},
            "text": {"task": "causal-lm", "text": str(folder / "long.txt")},
        },
        "samples": SAMPLES,
        "max_parallel": 1,
    }


@pytest.fixture
def config(values, tmp_path):
    """Writes the configuration whose results go to a folder of that name."""

    def write(name):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**values, "results": str(tmp_path / name)}))
        return path

    return write


class Run(Watch):
    """A run that is started, killed, and started again."""

    def __init__(self, config, log):
        super().__init__(yaml.safe_load(config.read_text())["results"])
        self.config, self.log, self.killed = config, log, []
        self.process = None

    def start(self, *, command=False):
        """Begin, or go on; `command` with all that the command line brings along."""
        from prefect.settings import PREFECT_API_URL

        words = [sys.executable, real_evaluation.__file__]
        if command:
            words = [sys.executable, "-m", "pressoir.flows", "evaluate"]
        words.append(str(self.config))
        if self.folder is not None:
            words += ["--resume", str(self.folder)]
        with self.log.open("ab") as log:
            self.process = psutil.Popen(
                words,
                env={**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value(), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_for(self, condition, what):
        def met():
            return condition() or (self.process.poll() is not None and "ended")

        found = until(met, what)
        assert found != "ended", f"it ended before: {what}\n{self.log.read_text()[-3000:]}"
        return found

    def kill_child(self, model, when, what):
        """SIGKILL for the child of a model; wait until its parent has noted it."""
        child = self.wait_for(lambda: when() and child_of(self.process, model), what)
        child.kill()
        self.killed.append(what)
        self.wait_for(lambda: self.attempts(model)[-1], f"the end of {model} noted")
        assert json.loads(self.attempts(model)[-1])["verdict"] == "killed_signal"

    def kill(self, when, what):
        """SIGKILL for the parent; its children end by themselves. Nothing that was committed is lost."""
        before = self.predictions()
        self.wait_for(when, what)
        children = self.process.children()
        self.process.kill()
        self.process.wait()
        self.killed.append(what)
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive
        assert before.items() <= self.predictions().items()

    def finish(self):
        assert self.process.wait(timeout=300) == 0, self.log.read_text()[-3000:]

    def ends(self, model):
        return [outcome for outcome in self.attempts(model) if outcome is not None]

    def ended_well(self, model):
        return any(json.loads(outcome)["verdict"] == "ok" for outcome in self.ends(model))

    def loading(self, model):
        """Whether the model's child has come as far as loading libraries."""
        child = child_of(self.process, model)
        with suppress(psutil.Error, OSError):
            return child is not None and "libtorch" in Path(f"/proc/{child.pid}/maps").read_text()
        return False

    def part(self, model):
        """Whether some samples of a model are committed, and some are not."""
        return 0 < self.committed(model) < SAMPLES

    @property
    def results_bytes(self):
        """What must not differ between two runs."""
        whole = json.loads((self.folder / "consolidated_results.json").read_text())
        return (
            json.dumps(whole["models"], ensure_ascii=False).encode(),
            (self.folder / "consolidated_detailed.jsonl").read_bytes(),
        )


@pytest.fixture
def start(config, tmp_path):
    """Start a run; whatever becomes of the test, no process is left."""
    runs = []

    def start(name, **options):
        run = Run(config(name), tmp_path / f"{name}.log")
        runs.append(run)
        run.start(**options)
        return run

    yield start
    for run in runs:
        with suppress(psutil.NoSuchProcess):
            run.process.kill()
            run.process.wait()


@pytest.mark.usefixtures("prefect_harness", "home")
def test_killed_at_a_dozen_points_and_resumed_after_each_it_ends_as_an_uninterrupted_run(start):
    whole = start("whole")
    whole.finish()
    plan = json.loads((whole.folder / "plan.json").read_text())
    first, second, third = (batch["placements"][0]["model"] for batch in plan["batches"])

    run = start("killed")
    run.kill(lambda: run.exists("plan.json"), "planned, nothing started")
    run.start()
    run.kill(lambda: run.attempts(first), "the first child launched")
    run.start()
    run.kill(lambda: run.loading(first), "the first model loading")
    assert not run.predictions()

    run.start()
    run.kill_child(first, lambda: run.loading(first), "child: loading")
    run.kill_child(second, lambda: run.committed(second) >= 5, "child: between two samples")
    assert run.part(second)
    run.kill(lambda: len(run.attempts(third)) == 1, "between two models")

    run.start(command=True)
    run.kill(lambda: run.committed(first) >= 5, "the command: between two samples of the first model")
    assert run.part(first)
    run.start()
    run.kill(lambda: run.ended_well(first), "the first model ended")
    run.start()
    run.kill_child(second, lambda: run.committed(second) >= SAMPLES // 2, "child: half of the second model")
    assert run.part(second)
    run.kill(lambda: run.committed(third) >= 5, "between two samples of the third model")
    assert run.part(third)
    run.start()
    run.kill(lambda: run.ended_well(second), "the second model ended")
    run.start()
    run.kill(lambda: run.ended_well(third), "all models ended")
    run.start()
    run.kill(lambda: run.exists("*metrics.png"), "drawing the report")
    run.start()
    run.kill(lambda: run.exists("consolidated_results.json"), "writing the report")
    assert len(run.killed) >= 10

    before = run.predictions()
    run.start(command=True)
    run.finish()
    assert run.predictions() == before
    assert run.results_bytes == whole.results_bytes
    assert len(before) == 3 * SAMPLES
    assert len({attempt for _, attempt in before.values()}) > 3, "several attempts did a part each"
    # A sample that ran twice could not be committed, and its child would have ended with that exception.
    verdicts = [json.loads(end)["verdict"] for model in (first, second, third) for end in run.ends(model)]
    assert set(verdicts) == {"ok", "killed_signal"}
    assert verdicts.count("ok") == 3
