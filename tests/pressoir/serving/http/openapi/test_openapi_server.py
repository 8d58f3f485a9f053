"""A server of every task against its own OpenAPI document, by schemathesis: every check in every phase.

`make openapi` sends 5,000 cases at least; `OPENAPI_EXAMPLES` says how many of each operation are made up.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import httpx
import pytest
import uvicorn
from serving_http import app_of

from pressoir.serving.http.limits import HttpLimits
from pressoir.serving.http.protocol import protocol_with
from pressoir.serving.http.server import listen
from pressoir.store.store import Store

HERE = Path(__file__).parent
EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "0"))
FEW = 5
"""Examples of an operation where none are asked for."""
KEYS = {"OPENAPI_USER_KEY": "sesame", "OPENAPI_ADMIN_KEY": "mellon"}
# The bodies with the most fields have thousands of cases at their limits: only the long run sends these.
SHORT = """
[[operations]]
include-path-regex = "infer$|completions$|embeddings$|audio|translate$|stream$|reload$"
phases.coverage.enabled = false
"""
# More is drawn of what a valid request always gets an answer from.
ANSWERED = f"""
[[operations]]
include-path-regex = "^/(classify|compare)$"
generation.max-examples = {3 * (EXAMPLES or FEW)}
"""


@pytest.fixture(scope="module")
def chatty(tiny_llama, tmp_path_factory):
    """`tiny_llama` with a chat template."""
    import shutil

    folder = shutil.copytree(tiny_llama, tmp_path_factory.mktemp("chatty") / "llama")
    path = folder / "tokenizer_config.json"
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    return folder


@pytest.fixture(scope="module")
def url(tmp_path_factory, tiny_classifier, tiny_bert, tiny_nllb, chatty, tiny_whisper):
    """A server of every task, with keys, in a thread of this process."""
    limits = {"timeout_s": 20}
    tiers = {
        "reviews": (tiny_classifier, {**limits, "max_length": 60}),
        "again": (tiny_classifier, {**limits, "max_length": 60}),
        "vectors": (tiny_bert, {**limits, "max_length": 60}),
        "french": (tiny_nllb, {**limits, "max_new_tokens": 4}),
        "story": (chatty, {**limits, "max_new_tokens": 4}),
        "speech": (tiny_whisper, {**limits, "max_new_tokens": 4, "max_audio_s": 2}),
    }
    user, admin = KEYS.values()
    app = app_of(Store(tmp_path_factory.mktemp("home")), tiers, api_key=user, admin_key=admin)
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(app, http=protocol_with(HttpLimits()), ws="none", lifespan="on", log_config=None)
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
    thread.start()
    port = listening.getsockname()[1]
    while not app.state.backend.service.models.ready:
        assert thread.is_alive()
        assert app.state.backend.failure is None
        threading.Event().wait(0.02)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.mark.process
def test_the_server_does_what_its_document_says(url, tmp_path):
    config, report = tmp_path / "schemathesis.toml", tmp_path / "report.ndjson"
    rules = (HERE / "schemathesis.toml").read_text().replace("hooks.py", str(HERE / "hooks.py"))
    config.write_text(rules + ANSWERED + ("" if EXAMPLES else SHORT))
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", "--no-color"),
        *(f"{url}/openapi.json", "--header", f"Authorization: Bearer {KEYS['OPENAPI_ADMIN_KEY']}"),
        *("--checks", "all", "--seed", "1", "--max-examples", str(EXAMPLES or FEW)),
        *("--report", "ndjson", "--report-ndjson-path", str(report)),
    ]
    done = subprocess.run(command, env={**os.environ, **KEYS}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    statuses = Counter(_statuses(report))
    cases = statuses.total()
    print(f"{cases} cases, by status: {dict(sorted(statuses.items()))}")  # `make openapi` shows it
    succeeded = sum(number for status, number in statuses.items() if status < 300)
    assert cases >= (5000 if EXAMPLES else 300)
    assert succeeded >= 0.3 * cases
    _check_idle(url)


def _statuses(report):
    """The status of each answer."""
    for line in report.read_text(encoding="utf-8").splitlines():
        recorded = json.loads(line).get("ScenarioFinished", {}).get("recorder", {})
        for interaction in recorded.get("interactions", {}).values():
            if interaction.get("response"):
                yield interaction["response"]["status_code"]


def _check_idle(url):
    """No model is still in use, and no request waits for one."""
    headers = {"Authorization": f"Bearer {KEYS['OPENAPI_USER_KEY']}"}
    metrics = httpx.get(f"{url}/metrics", headers=headers).text.splitlines()
    names = ("pressoir_model_leases{", "pressoir_model_queue_length{")
    assert {line.split()[-1] for line in metrics if line.startswith(names)} <= {"0.0"}
