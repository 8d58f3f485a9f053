"""What a run sees and does inside a container: the limits are those that the kernel really sets."""

import contextlib
import json
import os
import subprocess
import sys

import pytest

from pressoir.system.cgroups import Files, hierarchies

pytestmark = pytest.mark.process

LIMIT = 2_000_003_072  # a multiple of the page
PROGRAM = """
import json, sys
from pathlib import Path
(Path(sys.argv[1]) / "cgroup.procs").write_text("0")
from pressoir.store.store import Store
from pressoir.evaluation import run
from pressoir.evaluation.config import load
prepared = run.prepare(load(json.loads(sys.argv[3])), Store(Path(sys.argv[2])))
seen, plan = prepared.survey, prepared.plan
print(json.dumps({
    "limit": seen.memory.limit_bytes, "source": seen.memory.limit_source,
    "available": seen.memory.available_bytes, "strategy": seen.strategy,
    "reserve": seen.reserve_bytes, "budget": plan.budget_bytes,
    "peaks": [batch.peak_bytes for batch in plan.batches], "skipped": len(plan.skipped),
}))
"""


READ_TWICE = """
import json, sys
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text("0")
from pressoir.evaluation import supervisor
folder = Path(sys.argv[2])
(folder / "model.safetensors").write_bytes(bytes(300_000_000))
with (folder / "model.safetensors").open("rb") as file:
    supervisor.os.fsync(file.fileno())
for _ in range(2):
    (folder / "model.safetensors").read_bytes()
before = supervisor._available()
supervisor._drop_pages(folder)
print(json.dumps([before, supervisor._available()]))
"""


@pytest.fixture
def limited():
    """A memory cgroup of 2 GB below the root of its hierarchy, and its limit's file; skips if it may not."""
    made = []
    for hierarchy in hierarchies("memory", Files()):
        folder = hierarchy.folders[-1] / f"pressoir-survey-{os.getpid()}"
        with contextlib.suppress(OSError):
            folder.mkdir()
            made.append(folder)
            file = folder / ("memory.limit_in_bytes" if hierarchy.version == 1 else "memory.max")
            if file.exists():
                file.write_text(str(LIMIT))
                break
    else:
        for folder in made:
            folder.rmdir()
        pytest.skip("cannot make a cgroup")
    yield folder, file
    for folder in made:
        folder.rmdir()


def test_a_run_inside_a_cgroup_is_planned_within_its_limit(
    limited, tiny_classifier, tiny_llama, tiny_data, tmp_path
):
    folder, file = limited
    files = {split: str(tiny_data / f"{split}.tsv") for split in ("train", "validation", "test")}
    config = {
        "models": [
            {"id": "classifier", "model": str(tiny_classifier), "data": "reviews"},
            {"id": "fits", "model": str(tiny_llama), "data": "text", "memory_gb": 1.2},
            {"id": "huge", "model": str(tiny_llama), "data": "text", "memory_gb": 1.9},
        ],
        "data": {
            "reviews": {"task": "text-classification", "classification": {"source": "files", **files}},
            "text": {"task": "causal-lm"},
        },
        "memory": {"reserve_gb": 0.3},
    }
    program = [sys.executable, "-c", PROGRAM, str(folder), str(tmp_path / "home"), json.dumps(config)]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["limit"], found["source"]) == (LIMIT, str(file))
    assert found["strategy"] == "conservative", "whatever the machine itself has"
    assert found["available"] < LIMIT, "the process that plans takes some itself"
    assert found["budget"] == found["available"] - found["reserve"]
    assert all(peak <= found["budget"] for peak in found["peaks"])
    assert len(found["peaks"]) == 2
    assert found["skipped"] == 1


def test_files_that_were_read_twice_take_no_memory_from_a_model_that_waits(limited, tmp_path):
    folder, _ = limited
    program = [sys.executable, "-c", READ_TWICE, str(folder), str(tmp_path)]
    before, after = json.loads(subprocess.run(program, capture_output=True, check=True).stdout)
    assert before < LIMIT - 300_000_000
    assert after > before + 250_000_000
