"""The compress flow: from a base model to a small, fast, measured and registered one.

`compress("demo")` runs it in plain Python; `prefect.yaml` deploys it. A stage that the recipe
sets to null is left out, and what the store already has is not made again.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, cast

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from pydantic import BeforeValidator

from pressoir.benchmark import reports
from pressoir.flows.linked import linked_run
from pressoir.pipeline import plan as planning
from pressoir.pipeline.chain import ModelChain, fetch_models, outputs_config
from pressoir.pipeline.checks import check_inputs
from pressoir.pipeline.plan import PlanRow
from pressoir.pipeline.runner import CompressResult, Output, PipelineOutput, Runner
from pressoir.pipeline.sources import Sources, current_sources
from pressoir.recipe.recipe import Recipe, load
from pressoir.system.machine import alone
from pressoir.system.runtime import available_cpus
from pressoir.tasks.progress import say
from pressoir.tasks.register import register
from pressoir.tasks.stage import RunContext
from pressoir.tasks.stages import TaskRunner
from pressoir.tasks.tracking.run import log_recipe

if TYPE_CHECKING:
    from pressoir.sources.resolve import Source


def pipeline(recipe: Recipe, run: Runner[Output]) -> PipelineOutput[Output]:
    """The whole chain. The flow carries it out with tasks, `--dry-run` with a planner that builds nothing.

    What a recipe leaves out is skipped: a classifier is taught, distilled and pruned, a causal LM is not.
    Stages of other packages stand where they say, see `ModelChain`.
    """
    fetched = fetch_models(recipe, run)
    data = run("data", recipe.data) if recipe.teacher else run("text", recipe.text)

    base_model: Output | Source | None = fetched.base
    name = "source"
    if recipe.merge:
        name, base_model = "merge", run("merge", recipe.merge, data=data, **fetched.parents)
    teacher = base_model
    if recipe.teacher:
        name, teacher = "teacher", run("teacher", recipe.teacher, model=base_model, data=data)
    models = ModelChain(recipe, run, data, name, teacher)

    student_data = data
    if recipe.augment:
        student_data = run("augment", recipe.augment, model=base_model, teacher=teacher, data=data)
    models.step("vocabulary", model=models.latest, data=data)
    teacher_outputs = None
    if outputs := outputs_config(recipe):
        inputs = {"teacher": models.latest, "data": student_data, "student": fetched.student}
        inputs["reference"] = teacher if models.latest is not teacher else None
        teacher_outputs = run("teacher_outputs", outputs, **inputs)
    exported = models.artifacts[f"{name}_onnx"] = run("export", recipe.export, model=teacher, data=data)

    inputs = {"outputs": teacher_outputs, "data": student_data}
    models.step("distill", teacher=models.latest, student=fetched.student, **inputs)
    if recipe.prune and not recipe.prune.epochs:
        inputs["outputs"] = None  # nobody recovers
    models.step("prune", model=models.latest, **inputs)
    models.step("quantize", model=models.latest, data=data)
    if models.latest is teacher:
        models.use("export", exported)
    else:
        models.step("export", model=models.latest, data=data)
    models.step("shard", model=models.latest)
    report = run("benchmark", recipe.benchmark, data=data, **models.artifacts)
    return PipelineOutput(
        artifacts=models.artifacts, data=data, final=cast("Output", models.latest), report=report
    )


def plan(recipe: Recipe, sources: Sources | None = None) -> list[PlanRow]:
    """Every step that `compress` would take, and whether the store has its result; builds nothing."""
    return planning.plan(pipeline, recipe, sources or current_sources())


@flow(name="compress", flow_run_name="{recipe.name}")
def compress(recipe: Annotated[Recipe, BeforeValidator(load)]) -> CompressResult:
    """Compress the model of `recipe`: teacher, student, pruning, int8, ONNX, shards, benchmark."""
    sources = current_sources()
    store = sources.store
    check_inputs(recipe, sources)
    builds = any(row.state == "build" for row in plan(recipe, sources))
    with (
        alone(f"compress {recipe.name}", say) if builds else nullcontext(),
        linked_run(recipe.name, "flows.compress.compress", store) as parent,
    ):
        log_recipe(parent, recipe)
        threads = recipe.threads or available_cpus()
        context = RunContext(sources, parent, recipe.seed, threads, recipe.refresh)
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
        tracking_uri=parent.shown_uri,
    )
