"""Measure all artifacts of the run side by side."""

from __future__ import annotations

from pressoir.artifact import Artifact
from pressoir.sections import BenchmarkConfig
from tasks._stage import RunContext, run_stage, stage_task


@stage_task(name="benchmark", task_run_name="benchmark")
def benchmark(
    config: BenchmarkConfig,
    data: Artifact,
    teacher: Artifact,
    teacher_onnx: Artifact,
    run: RunContext,
    distill: Artifact | None = None,
    prune: Artifact | None = None,
    quantize: Artifact | None = None,
    export: Artifact | None = None,
    shard: Artifact | None = None,
) -> Artifact:
    """Compare the models, the first (the teacher) being the reference and the last the result."""
    inputs = {
        "data": data,
        "teacher": teacher,
        "teacher_onnx": teacher_onnx,
        "distill": distill,
        "prune": prune,
    }
    later = {"quantize": quantize, "export": export, "shard": shard}
    return run_stage("benchmark", config, {**inputs, **later}, run)
