"""The compress flow: from a base model to a small, fast, measured and registered one.

`compress("configs/demo.yaml")` runs it in plain Python; `prefect.yaml` deploys it. A stage that the recipe
sets to null is left out, and what the store already has is not made again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from pydantic import BeforeValidator

from pressoir.benchmark import reports
from pressoir.flows.linked import linked_run
from pressoir.pipeline import plan as planning
from pressoir.pipeline.checks import base_reference, check_inputs
from pressoir.pipeline.plan import PlanRow
from pressoir.pipeline.runner import CompressResult, Output, PipelineOutput, Runner
from pressoir.recipe.recipe import Recipe, load
from pressoir.sources.resolve import Source
from pressoir.store.store import Store
from pressoir.system.runtime import available_cpus
from pressoir.tasks import tracking
from pressoir.tasks.register import register
from pressoir.tasks.runner import TaskRunner
from pressoir.tasks.stage import RunContext

if TYPE_CHECKING:
    from pressoir.stages.teacher_outputs import OutputsConfig


def pipeline(recipe: Recipe, run: Runner[Output]) -> PipelineOutput[Output]:
    """The whole chain. The flow carries it out with tasks, `--dry-run` with a planner that builds nothing.

    What a recipe leaves out is skipped: a classifier is taught, distilled and pruned, a causal LM is not.
    """
    base = None if recipe.merge else run.fetch(base_reference(recipe))
    parents = {f"parent_{i}": run.fetch(m) for i, m in enumerate(recipe.merge.models)} if recipe.merge else {}
    ancestor = run.fetch(recipe.merge.base) if recipe.merge and recipe.merge.base else None
    named = recipe.distill.student if recipe.distill else None
    student = run.fetch(named.model) if named and named.model else None

    data = run("data", recipe.data) if recipe.teacher else run("text", recipe.text)
    current: Output | Source | None = base
    name = "source"
    if recipe.merge:
        name, current = "merge", run("merge", recipe.merge, data=data, base=ancestor, **parents)
    origin = current
    if recipe.teacher:
        name, current = "teacher", run("teacher", recipe.teacher, model=origin, data=data)
    reference = current
    artifacts = {name: reference}
    lessons = data
    if recipe.augment:
        lessons = run("augment", recipe.augment, model=origin, teacher=reference, data=data)
    if recipe.vocabulary:
        current = run("vocabulary", recipe.vocabulary, model=reference, data=data)
    outputs = None
    if config := _outputs(recipe):
        judge = {"reference": reference} if recipe.vocabulary else {}
        outputs = run("teacher_outputs", config, teacher=current, data=lessons, student=student, **judge)
    exported = artifacts[f"{name}_onnx"] = run("export", recipe.export, model=reference, data=data)
    if recipe.vocabulary:
        artifacts["vocabulary"] = current

    if recipe.distill:
        current = artifacts["distill"] = run(
            "distill", recipe.distill, teacher=current, outputs=outputs, data=lessons, student=student
        )
    if recipe.prune:
        recovery = outputs if recipe.prune.epochs else None
        inputs = {"model": current, "outputs": recovery, "data": lessons}
        current = artifacts["prune"] = run("prune", recipe.prune, **inputs)
    if recipe.quantize:
        current = artifacts["quantize"] = run("quantize", recipe.quantize, model=current, data=data)
    if current is not reference:
        exported = artifacts["export"] = run("export", recipe.export, model=current, data=data)
    if recipe.shard:
        exported = artifacts["shard"] = run("shard", recipe.shard, model=exported)
    report = run("benchmark", recipe.benchmark, data=data, **artifacts)
    return PipelineOutput(artifacts=artifacts, data=data, final=exported, report=report)


def _outputs(recipe: Recipe) -> OutputsConfig | None:
    """Which of the teacher's outputs are learnt from; None where nobody learns."""
    from pressoir.stages.teacher_outputs import OutputsConfig

    learners = [
        stage
        for stage in (recipe.distill, recipe.prune)
        if stage and (stage is recipe.distill or stage.epochs)
    ]
    if not learners:
        return None
    student = recipe.distill.student if recipe.distill else None
    return OutputsConfig(
        hidden=any(stage.hidden_weight > 0 for stage in learners),
        relations=any(stage.relation_weight > 0 for stage in learners),
        student=student,
    )


def plan(recipe: Recipe) -> list[PlanRow]:
    """Every step that `compress` would take, and whether the store has its result; builds nothing."""
    return planning.plan(pipeline, recipe)


@flow(name="compress", flow_run_name="{recipe.name}")
def compress(recipe: Annotated[Recipe, BeforeValidator(load)]) -> CompressResult:
    """Compress the model of `recipe`: teacher, student, pruning, int8, ONNX, shards, benchmark."""
    store = Store()
    check_inputs(recipe, store)
    with linked_run(recipe.name, "flows.compress.compress", store) as parent:
        tracking.log_recipe(parent, recipe)
        threads = recipe.threads or available_cpus()
        context = RunContext(store, parent, recipe.seed, threads, recipe.refresh)
        made = pipeline(recipe, TaskRunner(context))
        report = store.path(made.report)
        measured = reports.read(report / "benchmark.json")
        parent.log_comparison(measured, report)
        create_markdown_artifact((report / "comparison.md").read_text(encoding="utf-8"), key="comparison")
        promoted, decision = None, None
        if recipe.registry:
            promoted, decision = register(
                recipe,
                recipe.registry,
                made.artifacts,
                made.final,
                made.report,
                measured.rows[-1],
                context,
            )
    return CompressResult(
        artifact=made.final,
        folder=store.path(made.final),
        report=report,
        rows=measured.rows,
        registry_id=recipe.registry_id if recipe.registry else None,
        promoted=promoted,
        decision=decision,
        prefect_run_id=str(flow_run.id),
        mlflow_run_id=parent.run_id,
        tracking_uri=parent.uri,
    )
