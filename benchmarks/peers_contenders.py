"""Who is compared by `benchmarks/peers.py`: what a recipe made, and what other tools make of its teacher."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import peers_onnx
import peers_torch

from pressoir.benchmark.probe import Probe, probe
from pressoir.errors import PressoirError
from pressoir.formats.folder import GRAPH, Runtime
from pressoir.inference.engines.classifier import OnnxEngine
from pressoir.inference.text_classification import TextClassifier
from pressoir.pipeline.plan import Planner
from pressoir.pipeline.runner import PipelineOutput
from pressoir.pipeline.sources import Sources
from pressoir.recipe.recipe import Recipe
from pressoir.sources.resolve import Source
from pressoir.store.artifact import Artifact
from pressoir.store.store import Store
from pressoir.system.runtime import available_cpus

if TYPE_CHECKING:
    from pressoir.pipeline.plan import Unbuilt

ROWS = ("pytorch", "onnx", "optimum", "olive", "onnxruntime", "pytorch-int8", "pressoir")
"""What `--rows` takes."""
OURS = "Pressoir"
BESIDE = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model"),
)
"""What a graph needs beside it, taken from the teacher."""


@dataclass(frozen=True)
class Contender:
    """A way to run the teacher, or what was made of it."""

    name: str
    settings: str
    build: Callable[[], Path]
    """Gives the folder that is measured."""
    open: Callable[[Path], TextClassifier]
    probe: Callable[[Path, str], Probe]
    peer: bool = False
    """Whether it is one of those to be ahead of."""


@dataclass(frozen=True)
class Run:
    """What a recipe made, found in the store."""

    recipe: Recipe
    threads: int
    teacher: Path
    teacher_onnx: Path
    final: Path
    data: Path
    stages: tuple[str, ...]
    """Of the final model, in order."""


def find(recipe: Recipe, store: Store, file: Path) -> Run:
    """What `recipe` made.

    Raises:
        PressoirError: it is not a classifier's, or something that is needed is not in the store.
    """
    from pressoir.flows.compress import pipeline

    if recipe.task != "text-classification":
        raise PressoirError(f"{file}: the peers are compared on a classifier, but task is {recipe.task!r}")
    found: PipelineOutput[Artifact | Unbuilt] = pipeline(
        recipe, Planner(recipe.model_copy(update={"refresh": False}), Sources(store))
    )
    needed = {
        "data": found.data,
        "teacher": found.artifacts["teacher"],
        "teacher_onnx": found.artifacts["teacher_onnx"],
        "final": found.final,
    }
    folders = {}
    for name, made in needed.items():
        if not isinstance(made, Artifact | Source):
            raise PressoirError(
                f"{store.root} does not hold the {name.replace('_onnx', ' as an ONNX graph')} of {file}; run "
                f"`pressoir compress {file}` first, with the same --set"
            )
        folders[name] = made.folder if isinstance(made, Source) else store.path(made)
    stages = tuple(name for name in found.artifacts if not name.startswith("teacher"))
    return Run(recipe=recipe, threads=recipe.threads or available_cpus(), stages=stages, **folders)


def contenders(run: Run, work: Path) -> dict[str, Contender]:
    """All of them, by row."""
    reduced = peers_onnx.reduce_range()
    int8 = f"int8 weights by channel, reduce_range {reduced}"
    float32 = "float32, scaled-dot-product attention, inference_mode"

    def graph(make: Callable[[Path, Path], Path], folder: str) -> Callable[[], Path]:
        return lambda: assemble(make(run.teacher, work), run.teacher, work / folder)

    def traced() -> Path:
        folder = assemble(None, run.teacher, work / "pytorch-int8")
        peers_torch.make(run.teacher, folder)
        return folder

    def opened(folder: Path) -> TextClassifier:
        return TextClassifier.open(folder, run.threads)

    def opened_int8(folder: Path) -> TextClassifier:
        classifier = opened(folder)
        classifier.engine = OnnxEngine(folder / GRAPH, run.threads, batch_invariant=False)
        return classifier

    def probed(runtime: Runtime) -> Callable[[Path, str], Probe]:
        return lambda folder, text: probe(folder, runtime, run.threads, text)

    onnx = probed("onnxruntime")
    return {
        "pytorch": Contender("teacher, PyTorch", float32, lambda: run.teacher, opened, probed("pytorch")),
        "onnx": Contender("teacher, ONNX Runtime", "float32, fused", lambda: run.teacher_onnx, opened, onnx),
        "optimum": Contender(
            "optimum-cli",
            f"`export onnx --task text-classification`; `onnxruntime quantize {peers_onnx.optimum_target()} "
            "--per_channel`",
            graph(peers_onnx.optimum, "optimum"),
            opened_int8,
            onnx,
            peer=True,
        ),
        "olive": Contender(
            "Olive",
            "`olive run`: OnnxConversion, OrtTransformersOptimization, OnnxDynamicQuantization "
            f"(quant_preprocess, {int8})",
            graph(peers_onnx.olive, "olive-model"),
            opened_int8,
            onnx,
            peer=True,
        ),
        "onnxruntime": Contender(
            "ONNX Runtime int8",
            f"`optimize_model` (bert), `quant_pre_process`, `quantize_dynamic` ({int8})",
            graph(peers_onnx.onnxruntime, "onnxruntime"),
            opened_int8,
            onnx,
            peer=True,
        ),
        "pytorch-int8": Contender(
            "PyTorch int8",
            "`torch.ao.quantization.quantize_dynamic`: Linear per_channel_dynamic_qconfig, Embedding "
            "float_qparams_weight_only_qconfig; traced (TorchScript)",
            traced,
            peers_torch.open_classifier,
            lambda folder, text: peers_torch.probe(folder, run.threads, text),
            peer=True,
        ),
        "pressoir": Contender(
            OURS, f"{run.recipe.name}: {', '.join(run.stages)}", lambda: run.final, opened, onnx
        ),
    }


def assemble(graph: Path | None, teacher: Path, folder: Path) -> Path:
    """A folder of a graph, with its external data, and what it needs beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in BESIDE:
        if (teacher / name).exists():
            shutil.copyfile(teacher / name, folder / name)
    if graph is not None:
        shutil.copyfile(graph, folder / GRAPH)
        for external in graph.parent.glob(f"{graph.name}[._]data"):  # named so in the graph
            shutil.copyfile(external, folder / external.name)
    return folder
