"""Write the model as an ONNX graph that computes what the checkpoint computes, and prove it.

**What.** The float32 model is traced to ONNX, its attention, GELU and normalisation are fused into ONNX
Runtime's own operators, and for an int8 checkpoint the checkpoint's own codes and scales take the place of
the float weights (`pressoir.export.int8_graph.lower_to_int8`). Real sentences then go through PyTorch and
through the graph.

**Why.** ONNX Runtime runs the fused graph several times faster than PyTorch runs the modules, needs no
PyTorch to do it, and has integer kernels. A graph that departs from its checkpoint is worse than none: parity
is a gate.

**Cost.** Seconds to a minute. Float32: max |Δlogit| must stay within `max_logit_difference`. Int8: kernels
round activations at their own places, a code flips now and then, so at least `min_label_agreement` of the
labels must agree with the simulated int8 model. A graph that fails is not published; the message names the
first layer that departs.

**Sources.** Optimum's exporter, https://huggingface.co/docs/optimum-onnx; ONNX Runtime's transformer
optimizer, https://onnxruntime.ai/docs/performance/transformers-optimization.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pressoir.extensions.task import task
from pressoir.formats.folder import task_of
from pressoir.recipe.sections import ExportConfig
from pressoir.stage import Stage, StageContext


def run(inputs: Mapping[str, Path], config: ExportConfig, context: StageContext) -> dict[str, float]:
    """Export `inputs["model"]`, a float or an int8 folder; check it on the texts of `inputs["data"]`.

    Raises:
        ParityError: the graph cannot hold a quantised layer exactly, or does not compute what the checkpoint
        computes. SourceError: the model does not load.
    """
    export = task(task_of(inputs["model"])).part("export")
    metrics: dict[str, float] = export(inputs, config, context)
    return metrics


STAGE = Stage(
    name="export",
    version=2,
    kind="onnx",
    config=ExportConfig,
    run=run,
    label="export {model.stage}",
    searchable=True,
    memory=lambda _, size: 5 * size.weight_bytes,
)
