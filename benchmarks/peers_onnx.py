"""What other tools make of a teacher: contenders of `benchmarks/peers.py` that ONNX Runtime runs.

Each function takes the teacher's folder and a work folder, and returns the graph that the tool wrote, by the
settings that its documentation gives for a transformer on this CPU (docs/peers.md names the pages).
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from pressoir.errors import PressoirError
from pressoir.formats.folder import GRAPH
from pressoir.system.runtime import describe_machine

OPTIMUM_TARGETS = ("avx512_vnni", "avx512", "avx2")
"""Instruction sets that optimum-cli has settings for, the best first; each is a CPU feature, or its start."""
_OFFLINE = {"HF_HUB_OFFLINE": "1", "OLIVE_DISABLE_TELEMETRY": "1"}


def cpu_features() -> list[str]:
    """Vector features of this CPU, as `describe_machine` names them."""
    return describe_machine(1)["cpu_features"].split()


def optimum_target() -> str:
    """The option of `optimum-cli onnxruntime quantize` for this CPU."""
    features = cpu_features()
    fitting = (name for name in OPTIMUM_TARGETS if any(feature.startswith(name) for feature in features))
    return f"--{next(fitting, 'arm64')}"


def reduce_range() -> bool:
    """Whether weights need 7 bits: on x86 CPUs without VNNI, whose int8 products saturate."""
    features = cpu_features()
    return "avx2" in features and not any(feature.endswith("_vnni") for feature in features)


@functools.cache
def export(teacher: Path, work: Path) -> Path:
    """The float32 graph, as `optimum-cli export onnx` writes it; what two of the contenders begin with."""
    out = _empty(work / "exported")
    _call(_optimum("export", "onnx", "--model", teacher, "--task", "text-classification", out))
    return out / GRAPH


def optimum(teacher: Path, work: Path) -> Path:
    """`optimum-cli onnxruntime quantize`: dynamic int8, for this CPU's instruction set, by output channel."""
    exported = export(teacher, work)
    out = _empty(work / "optimum-quantized")
    words = ("quantize", "--onnx_model", exported.parent, optimum_target(), "--per_channel", "-o", out)
    _call(_optimum("onnxruntime", *words))
    return out / "model_quantized.onnx"


def onnxruntime(teacher: Path, work: Path) -> Path:
    """ONNX Runtime's own tools: transformer optimizer, pre-processing, `quantize_dynamic`."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from onnxruntime.transformers import optimizer

    exported = export(teacher, work)
    out = _empty(work / "onnxruntime-quantized")
    fused, prepared, quantised = (out / f"{name}.onnx" for name in ("fused", "prepared", "quantised"))
    # 0: the number of heads and the width are read off the graph.
    model = optimizer.optimize_model(str(exported), model_type="bert", num_heads=0, hidden_size=0)
    model.save_model_to_file(str(fused))
    quant_pre_process(fused, prepared)
    quantize_dynamic(
        prepared, quantised, per_channel=True, reduce_range=reduce_range(), weight_type=QuantType.QInt8
    )
    return quantised


def olive(teacher: Path, work: Path) -> Path:
    """`olive run` in an environment of its own: conversion, transformer optimizer, dynamic int8."""
    binaries = install_olive(work)
    out = _empty(work / "olive-run")
    passes = {
        "conversion": {"type": "OnnxConversion"},
        "transformers_optimization": {"type": "OrtTransformersOptimization"},
        "quantization": {
            "type": "OnnxDynamicQuantization",
            "quant_preprocess": True,
            "per_channel": True,
            "reduce_range": reduce_range(),
        },
    }
    accelerator = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    config = {
        "input_model": {
            "type": "HfModel",
            "model_path": str(teacher),
            "task": "text-classification",
            "load_kwargs": {"attn_implementation": "eager"},
        },
        "systems": {"local_system": {"type": "LocalSystem", "accelerators": [accelerator]}},
        "host": "local_system",
        "target": "local_system",
        "passes": passes,
        "cache_dir": str(out / "cache"),
        "output_dir": str(out / "model"),
    }
    (out / "olive.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    _call([binaries / "olive", "run", "--config", out / "olive.json", "--disable_telemetry"])
    return out / "model" / GRAPH


def install_olive(work: Path) -> Path:
    """Folder of Olive's programs, in an environment that sees no package of this one; installed once."""
    folder = work / "olive"
    binaries = folder / "bin"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        # The same versions of what both use, so that the tool is what differs.
        shared = [f"{name}=={version_of(name)}" for name in ("torch", "transformers", "onnxruntime")]
        _call([binaries / "python", "-m", "pip", "install", "--quiet", "olive-ai", *shared])
        (folder / "installed").touch()
    return binaries


def olive_version(work: Path) -> str:
    """What is installed in Olive's environment."""
    code = "from importlib.metadata import version; print(version('olive-ai'))"
    return _call([work / "olive" / "bin" / "python", "-c", code]).strip()


def version_of(package: str) -> str:
    """An installed package's version, without what names its build (`+cpu`)."""
    return metadata.version(package).partition("+")[0]


def _optimum(*words: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "optimum.commands.optimum_cli", *words]


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _call(command: Sequence[str | Path]) -> str:
    """Run a tool, offline but for pip; return what it printed.

    Raises:
        PressoirError: it failed; its last line is in the message.
    """
    environment = os.environ | ({} if "pip" in command else _OFFLINE)
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise PressoirError(f"{command[0]} cannot be started: {error}") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise PressoirError(f"{' '.join(map(str, command))} failed (exit code {done.returncode}): {said}")
    return done.stdout
