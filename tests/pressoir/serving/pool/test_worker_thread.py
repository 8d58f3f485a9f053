"""A model in a thread: what it takes is what it takes, not what its libraries do."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, json, sys
from pressoir.serving.config import ServingConfig, resolve
from pressoir.serving.service import Service
from pressoir.store.store import Store

async def main():
    tiers = {name: {"model": sys.argv[1], "runtime": sys.argv[2]} for name in ("a", "b")}
    store = Store()
    raw = {"isolation": "thread", "threads": 1, "tiers": tiers}
    config = resolve(ServingConfig.model_validate(raw), store)
    async with Service(config, store) as service:
        await service.classify("good", tier="a")
        print(json.dumps(await service.models.statistics()))

asyncio.run(main())
"""


@pytest.mark.process
def test_a_small_model_saves_little_though_it_brought_its_libraries(tiny_classifier, tmp_path):
    """Of a model of 0.2 MB, torch's hundreds of megabytes were counted as saved."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny_classifier), "pytorch"],
        env={**os.environ, "PRESSOIR_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["unique_models_loaded"] == 1
    assert found["measured_memory_saved_mb"] < 60
