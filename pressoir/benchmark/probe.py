"""What loading a model costs, measured in a process that has done nothing else.

A process that already holds other models cannot measure how much memory one of them takes, nor how long a
cold start lasts. So each model is opened in a fresh child, `python -m pressoir.benchmark.probe FOLDER
--runtime onnxruntime --threads 2 --text "…"`, which imports what it needs, loads engine and tokenizer,
classifies the text or continues it, and prints one JSON line.

On Linux the peak is `VmHWM` of `/proc/self/status`, not `ru_maxrss` of getrusage(2): the latter survives
exec, so a child would report its parent's peak where that is larger (measured: a bare interpreter started by
a 490 MB parent reports 490 MB).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from pressoir.config import Config
from pressoir.data.texts import Text, Words, as_read
from pressoir.errors import PressoirError, SourceError
from pressoir.extensions.task import Task, task
from pressoir.formats.folder import GRAPH, Runtime, read_json, task_of
from pressoir.formats.packed_streams import has_streams
from pressoir.system.memory import peak_rss_mb, rss_mb
from pressoir.system.runtime import child_environment, hide_scikit_learn

if TYPE_CHECKING:
    from pressoir.inference.text_classification import TextClassifier
    from pressoir.inference.text_generation import TextGenerator
    from pressoir.inference.token_classification import TokenClassifier

TIMEOUT_S = 900.0
NEW_TOKENS = 8  # that a language model goes on
_STDERR_LINES, _STDERR_COLUMNS = 8, 300


class Probe(Config, allow_inf_nan=False):
    """Cost of one cold start."""

    import_s: float
    """Importing torch and transformers, or ONNX Runtime."""
    load_s: float
    """Loading engine and tokenizer, imports not counted."""
    baseline_rss_mb: float
    """Resident memory after the imports, MB = 10^6 bytes."""
    peak_rss_mb: float
    """Largest resident memory up to the end of one batch-1 inference, the imports' share included."""


def probe(folder: Path, runtime: Runtime, threads: int, text: Text) -> Probe:
    """Open `folder` in a fresh process, use it once on `text` (or a pair), and return what that cost.

    Raises:
        PressoirError: the child failed, or took more than 15 minutes; its last lines are in the message.
    """
    command = [sys.executable, "-m", "pressoir.benchmark.probe", str(folder.absolute())]
    # `--text=`: a sentence may itself begin with a dash.
    first, *second = (as_read(text),) if isinstance(text, str | Words) else text
    command += [f"--runtime={runtime}", f"--threads={threads}", f"--text={first}"]
    command += [f"--text-pair={other}" for other in second]
    return run_child(command, threads, f"{folder} in {runtime}")


def run_child(command: Sequence[str], threads: int, what: str) -> Probe:
    """The `Probe` that a command prints as its last line; `what` it loads is named in errors.

    Raises:
        PressoirError: it failed, or took more than 15 minutes; its last lines are in the message.
    """
    try:
        child = subprocess.run(
            command,
            env=child_environment(threads),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise PressoirError(f"loading {what} did not finish within {TIMEOUT_S:.0f} s") from error
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines()[-_STDERR_LINES:]
        last = "\n".join(line[:_STDERR_COLUMNS] for line in lines)
        raise PressoirError(
            f"loading {what} failed in a fresh process (exit code {child.returncode}):\n{last}"
        )
    return Probe.model_validate_json(child.stdout.strip().splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    """The child: load, run the model once, print a `Probe` as one JSON line."""
    parser = argparse.ArgumentParser(prog="pressoir.benchmark.probe", description="Measure one cold start.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runtime", choices=get_args(Runtime), required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--text-pair")
    options = parser.parse_args(arguments)

    declared = task(task_of(options.folder))
    start = time.perf_counter()
    _import_libraries(options.folder, options.runtime, declared)
    import_s, baseline = time.perf_counter() - start, rss_mb()

    start = time.perf_counter()
    adapter = declared.part("adapter").open(options.folder, options.threads, options.runtime)
    load_s = time.perf_counter() - start
    text = options.text if options.text_pair is None else (options.text, options.text_pair)
    declared.part("try_out")(adapter, text)
    result = Probe(import_s=import_s, load_s=load_s, baseline_rss_mb=baseline, peak_rss_mb=peak_rss_mb())
    print(result.model_dump_json(), flush=True)


def classify(classifier: TextClassifier, text: Text) -> None:
    """Classify a text, or a pair."""
    classifier.predict([text])


def tag(classifier: TokenClassifier, text: str) -> None:
    """Tag the words of a text."""
    classifier.tag([text])


def continue_text(generator: TextGenerator, text: str) -> None:
    """Go on from a text for a few tokens."""
    list(generator.generate(text, max_new_tokens=NEW_TOKENS))


def _import_libraries(folder: Path, runtime: Runtime, declared: Task) -> None:
    """Import what opening the folder would import, so that it is not counted as loading."""
    language_model = declared.kind == "language model"
    declared.part("adapter")
    modules = ["pressoir.formats.sharding", "tokenizers"]
    if runtime == "onnxruntime":
        modules.append("onnxruntime")
        with suppress(PressoirError):
            modules += ["onnx"] if language_model and has_streams(folder / GRAPH) else []
    else:
        packed, int8 = "pressoir.formats.packed_checkpoint", "pressoir.models.simulated_int8"
        modules += ["pressoir.models.loading", packed if language_model else int8]
        with suppress(SourceError, KeyError):
            family = str(read_json(folder / "config.json")["model_type"]).replace("-", "_")
            modules += [
                f"transformers.models.{family}.{kind}_{family}" for kind in ("configuration", "modeling")
            ]
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:  # opening the folder will say which library is missing
            if (error.name or "").startswith("pressoir"):
                raise


if __name__ == "__main__":
    hide_scikit_learn()
    main()
