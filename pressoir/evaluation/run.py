"""One batch evaluation, from its configuration to its results: survey, prepare, run, collect.

**Survey.** What memory there really is, and what of it may be used: the budget is the available memory less
the reserve, and never more than `memory.budget_gb`.

**Prepare.** Every data set is read and every model looked up before anything runs; all mistakes of the
configuration are reported together. A model that is there but broken, or that cannot be fetched, is no
mistake of the configuration: it becomes an outcome, and the others run; so does one of an unsupported type.

**The folder.** `results/<run>/` has `config.yaml` and `plan.json`, the journal, and `jobs/` with what each
child was given and its log; then the results. Resuming takes the plan that is there, so that a run that was
killed ends as it would have ended.

No torch is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from pressoir.config import Config, read_yaml, validate
from pressoir.errors import DataError, RecipeError, RegistryError, SourceError, StoreError, UnreachableError
from pressoir.evaluation import datasets, planner, supervisor
from pressoir.evaluation.config import EvaluationConfig, ModelConfig, Strategy
from pressoir.evaluation.datasets import DataSet
from pressoir.evaluation.estimates import estimate
from pressoir.evaluation.jobs import Job, Remote, prediction_settings, wanted_batch_size
from pressoir.evaluation.journal import Journal, Prediction, prediction_key
from pressoir.evaluation.planner import GB, PRESETS, EvaluationPlan
from pressoir.evaluation.records import Estimate, RunOutcome
from pressoir.evaluation.report import scoring
from pressoir.evaluation.report.results import EvaluationOutcome, EvaluationRow
from pressoir.extensions.task import task
from pressoir.formats.folder import runtime_of, tasks_of
from pressoir.formats.supported import decoding_note, unsupported
from pressoir.sources import resolve
from pressoir.store.store import Store
from pressoir.system.files import disk_errors, make_folder, write_text_atomic
from pressoir.system.memory import GpuMemory, Memory, effective_memory, gpu_memory
from pressoir.system.reader import read_json
from pressoir.system.runtime import available_cpus

CONFIG, PLAN, JOURNAL = "config.yaml", "plan.json", "journal.sqlite"
SHORTER_TOGETHER = 4
"""Batches of short samples hold up to so many times the samples of a batch of the longest."""
MANY_AT_ONCE = 8
"""Children side by side where there is plenty of memory (`planner.PARALLEL_ABOVE`)."""


@dataclass(frozen=True)
class Survey:
    """The machine as it is now, and what a run may use of it."""

    memory: Memory
    gpus: tuple[GpuMemory, ...]
    cpus: int
    strategy: Strategy
    chosen: bool
    """Whether the configuration names the strategy; else the available memory decided."""
    reserve_bytes: int
    budget_bytes: int
    """Peak memory of all children together."""
    batch_size: int
    """Samples a batch to begin with."""
    max_parallel: int
    threads: int


@dataclass(frozen=True)
class Prepared:
    """A run that can be started: what each model is to do, and when."""

    config: EvaluationConfig
    survey: Survey
    names: dict[str, tuple[str, str]]
    """Model id and data set of each run id, in the configuration's order."""
    data: dict[str, DataSet]
    """By data set."""
    jobs: dict[str, Job]
    """By run id, like all that follow; without those that were refused."""
    estimates: dict[str, Estimate]
    plan: EvaluationPlan
    refused: dict[str, RunOutcome]
    """Models that are damaged or unsupported, or cannot be reached."""

    def dataset(self, run: str) -> DataSet:
        """What a run is asked."""
        return self.data[self.names[run][1]]


class EvaluationResult(Config):
    """What a batch evaluation leaves behind."""

    folder: Path
    """Where the results are; `report.md` is for people."""
    rows: tuple[EvaluationRow, ...]
    """Every model on each of its data sets, in the configuration's order."""
    prefect_run_id: str
    mlflow_run_id: str
    tracking_uri: str
    """Where MLflow keeps the run."""


def survey(config: EvaluationConfig) -> Survey:
    """Look at the machine, and choose the strategy where the configuration does not."""
    memory = effective_memory()
    strategy = config.strategy or planner.pick_strategy(memory.available_bytes, config.memory)
    preset = PRESETS[strategy]
    reserve = (
        preset.reserve_bytes if config.memory.reserve_gb is None else round(config.memory.reserve_gb * GB)
    )
    budget = max(memory.available_bytes - reserve, 0)
    if config.memory.budget_gb is not None:
        budget = min(budget, round(config.memory.budget_gb * GB))
    plenty = config.strategy is None and memory.available_bytes > planner.PARALLEL_ABOVE
    return Survey(
        memory=memory,
        gpus=gpu_memory(),
        cpus=available_cpus(),
        strategy=strategy,
        chosen=config.strategy is not None,
        reserve_bytes=reserve,
        budget_bytes=budget,
        batch_size=preset.batch_size,
        max_parallel=config.max_parallel or (MANY_AT_ONCE if plenty else preset.max_parallel),
        threads=config.threads or available_cpus(),
    )


def prepare(
    config: EvaluationConfig,
    store: Store,
    *,
    batches: Sequence[str] = (),
    seen: Survey | None = None,
    fetch: bool = True,
    resumed: bool = False,
) -> Prepared:
    """Look up all models and data, estimate, and plan; only the named `batches`, if any.

    Without `fetch`, models that would have to be fetched are refused as unreachable instead. Where a run is
    `resumed`, a model that has vanished since it began is refused alone.

    Raises:
        RecipeError: a model does not exist, or does not go with its data, or there is no such batch; all
            mistakes are listed. DataError: a data set is missing or malformed. RegistryError: `models.json`
            is not valid.
    """
    check_batches(config, batches)
    seen = seen or survey(config)
    data = _load(config)
    names = {run: (model.id, name) for model in config.models for name, run in model.run_ids().items()}
    jobs, estimates, refused, problems = {}, {}, dict[str, RunOutcome](), list[str]()
    for model in config.models:
        missing = list[str]()
        found = _find(model, store, fetch, missing)
        if resumed and missing:
            found = RunOutcome(model=model.id, verdict="damaged", detail=missing[0])
        else:
            problems += missing
        for name, run in model.run_ids().items():
            if isinstance(found, RunOutcome):
                refused[run] = found.model_copy(update={"model": run, "task": config.data[name].task})
            elif found is not None:
                job = _job(run, model, name, config, data[name], found, seen.batch_size, problems)
                if isinstance(job, RunOutcome):
                    refused[run] = job
                elif job is not None:
                    jobs[run] = job
    if problems:
        raise RecipeError(
            "\n".join([f"{len(problems)} models cannot be evaluated:", *map("  {}".format, problems)])
        )
    memory_gb = {run: model.memory_gb for model in config.models for run in model.run_ids().values()}
    for run, job in jobs.items():
        estimates[run] = estimate.for_run(
            job, data[names[run][1]], memory_gb=memory_gb[run], probe=config.probe and fetch, home=store.home
        )
    plan = planner.plan(
        list(estimates.values()),
        {run: job.batch_size for run, job in jobs.items()},
        seen.budget_bytes,
        seen.max_parallel,
        {
            batch: [run for member in members for run, (id, _) in names.items() if id == member]
            for batch, members in config.batches.items()
        },
    )
    prepared = Prepared(config, seen, names, data, jobs, estimates, plan, refused)
    return only(prepared, batches) if batches else prepared


def check_batches(config: EvaluationConfig, batches: Sequence[str]) -> None:
    """Refuse names that no plan of a configuration can have.

    Raises:
        RecipeError: there is no such batch.
    """
    for name in batches:
        base = re.sub(r"-\d+$", "", name)  # a batch that does not fit is split
        if base != "batch" and not {name, base} & set(config.batches):
            known = ", ".join(config.batches) or "batch-1, batch-2, … (`--list-batches` shows them)"
            raise RecipeError(f"no batch {name!r}; the configuration has: {known}")


def only(prepared: Prepared, batches: Sequence[str]) -> Prepared:
    """The part of a run that is in the named batches; of a batch that was split, all its parts.

    Of a batch of the configuration, its models that are skipped or refused, too.

    Raises:
        RecipeError: there is no such batch.
    """
    known = {batch.name: batch for batch in prepared.plan.batches}
    chosen, asked = dict[str, planner.Batch](), set[str]()
    for name in batches:
        matching = {n: b for n, b in known.items() if n == name or re.fullmatch(f"{re.escape(name)}-\\d+", n)}
        if not matching and name not in prepared.config.batches:
            raise RecipeError(f"no batch {name!r}; the plan has: {', '.join(known) or 'none'}")
        chosen |= matching
        asked.update(prepared.config.batches.get(name, ()))
    idle = {run for run, (model, _) in prepared.names.items() if model in asked}
    skipped = tuple(skipped_run for skipped_run in prepared.plan.skipped if skipped_run.model in idle)
    plan = prepared.plan.model_copy(
        update={"batches": tuple(b for n, b in known.items() if n in chosen), "skipped": skipped}
    )
    members = {placement.model for batch in plan.batches for placement in batch.placements}
    members |= {skipped_run.model for skipped_run in skipped} | (idle & prepared.refused.keys())
    return replace(
        prepared,
        plan=plan,
        names={run: name for run, name in prepared.names.items() if run in members},
        jobs={run: job for run, job in prepared.jobs.items() if run in members},
        estimates={run: run_estimate for run, run_estimate in prepared.estimates.items() if run in members},
        refused={run: outcome for run, outcome in prepared.refused.items() if run in members},
    )


def begin(prepared: Prepared, results: Path) -> tuple[Path, Prepared]:
    """Make the run's folder, `<results>/<name>-<UTC time>`; its jobs then write into it.

    Raises:
        StoreError: the folder cannot be written.
    """
    stem = f"{prepared.config.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    with disk_errors(results):
        make_folder(results)
        for attempt in range(1, 1000):
            folder = results / (stem if attempt == 1 else f"{stem}-{attempt}")
            try:
                folder.mkdir()
                break
            except FileExistsError:
                continue
        _write(folder, prepared)
    return folder, _into(prepared, folder)


def resume(prepared: Prepared, folder: Path) -> Prepared:
    """Go on in a run's folder: by its own plan, where configuration and models are still the same.

    Raises:
        StoreError: the folder cannot be written.
    """
    stored = _stored_plan(folder)
    if (
        stored is not None
        and {placement.model for batch in stored.batches for placement in batch.placements}
        <= prepared.jobs.keys()
        and _stored_config(folder) == prepared.config
    ):
        members = {placement.model for batch in stored.batches for placement in batch.placements}
        skipped = {skipped_run.model for skipped_run in stored.skipped}
        prepared = replace(
            prepared,
            plan=stored,
            names={
                run: name
                for run, name in prepared.names.items()
                if run in members | skipped | prepared.refused.keys()
            },
            jobs={run: job for run, job in prepared.jobs.items() if run in members | skipped},
            estimates={
                run: run_estimate
                for run, run_estimate in prepared.estimates.items()
                if run in members | skipped
            },
        )
    else:
        with disk_errors(folder):
            _write(folder, prepared)
    return _into(prepared, folder)


def find(name: str, results: Path) -> Path:
    """The folder of an earlier run, by its name or its path.

    Raises:
        RecipeError: there is none.
    """
    for folder in (Path(name), results / name):
        if (folder / CONFIG).is_file():
            return folder
    known = sorted(path.parent.name for path in results.glob(f"*/{CONFIG}"))
    raise RecipeError(
        f"no run {name!r} to resume: neither {Path(name)} nor {results / name} has a {CONFIG}; available: "
        + (", ".join(known[-10:]) or "none")
    )


def read_config(folder: Path) -> EvaluationConfig:
    """The configuration of an earlier run.

    Raises:
        RecipeError: it cannot be read.
    """
    return validate(EvaluationConfig, read_yaml(folder / CONFIG), str(folder / CONFIG))


def evaluate(
    prepared: Prepared,
    batch: str | None = None,
    on_event: Callable[[supervisor.Event], None] | None = None,
) -> Iterator[RunOutcome]:
    """Run the plan, or one batch of it; give each model's outcome as it ends, without metrics.

    What has ended well before is not run again. What can never fit is concluded with the first batch.
    """
    plan = prepared.plan
    if batch is not None:
        first = not plan.batches or plan.batches[0].name == batch
        plan = plan.model_copy(
            update={
                "batches": tuple(planned for planned in plan.batches if planned.name == batch),
                "skipped": plan.skipped if first else (),
            }
        )
    seen, config = prepared.survey, prepared.config
    yield from supervisor.run_plan(
        plan,
        prepared.jobs,
        prepared.estimates,
        supervisor.SupervisorLimits(
            reserve_bytes=seen.reserve_bytes,
            max_parallel=seen.max_parallel,
            threads=seen.threads,
            timeout_s=config.timeout_s,
        ),
        on_event=on_event,
    )


def predictions(job: Job, data: DataSet) -> list[Prediction]:
    """What a run has predicted of what it was asked, in the data's order."""
    if not job.journal.exists():
        return []
    journal = Journal(job.journal)
    try:
        if not task(job.task).windows:
            return list(journal.predictions(job.key, [sample.id for sample in data.samples]))
        order = {sample.id: index for index, sample in enumerate(data.samples)}
        found = sorted(journal.predictions(job.key), key=lambda prediction: _window(prediction.sample, order))
        return found[: job.samples]
    finally:
        journal.close()


def _window(sample: str, order: Mapping[str, int]) -> tuple[int, int]:
    """Position of a window (`<text>:<index>`): its text's, and its own."""
    text, _, index = sample.rpartition(":")
    return order.get(text, len(order)), int(index)


def _load(config: EvaluationConfig) -> dict[str, DataSet]:
    used = dict.fromkeys(name for model in config.models for name in model.data)
    loaded, problems = {}, []
    for name in used:
        try:
            loaded[name] = datasets.load(config.data[name], config.samples, config.seed)
        except (DataError, SourceError) as error:
            problems.append(f"data set {name}: {error}")
    if problems:
        raise DataError("\n".join(problems))
    return loaded


@dataclass(frozen=True)
class _Found:
    """Where a model is, and what distinguishes it from others."""

    folder: Path
    digest: str
    remote: Remote | None = None


def _find(model: ModelConfig, store: Store, fetch: bool, problems: list[str]) -> _Found | RunOutcome | None:
    """A model, or how it ended before it began; None, and one of the `problems`, where it does not exist."""
    if model.url is not None:
        remote = Remote(
            url=model.url,
            model=model.remote_model or model.id,
            protocol=model.protocol,
            api_key_env=model.api_key_env,
            timeout_s=model.request_timeout_s,
        )
        return _Found(Path(), f"{remote.url} {remote.model} {remote.protocol}", remote)
    reference = str(model.model)
    try:
        resolve.locate(reference, store, fetch=fetch)
    except UnreachableError as error:
        return RunOutcome(model=model.id, verdict="unreachable", detail=str(error))
    except RegistryError:
        raise
    except SourceError as error:
        problems.append(f"{model.id}: {error}")
        return None
    try:
        source = resolve.resolve(reference, store)
    except SourceError as error:
        return RunOutcome(model=model.id, verdict="damaged", detail=str(error))
    return _Found(source.folder.absolute(), source.digest)


def _job(
    run: str,
    model: ModelConfig,
    name: str,
    config: EvaluationConfig,
    data: DataSet,
    found: _Found,
    preset: int,
    problems: list[str],
) -> Job | RunOutcome | None:
    """The job of a model on a data set, or how it ended before it began; None: one of the `problems`."""
    asked = config.data[name]
    if found.remote is None:
        if (reason := unsupported(found.folder, asked.task)) is not None:
            return RunOutcome(model=run, task=asked.task, verdict="unsupported", detail=reason)
        own = tasks_of(found.folder)
        if asked.task not in own:
            problems.append(
                f"{model.id} is a model for {' and '.join(own)}, but the data set {name} is for {asked.task}"
            )
            return None
    settings = (
        {"task": asked.task, "generation": model.generation.model_dump(mode="json"), "data": asked.task}
        if found.remote
        else prediction_settings(
            asked, model.generation, runtime_of(found.folder, model.runtime), config.device
        )
    )
    return Job(
        model=run,
        folder=found.folder,
        remote=found.remote,
        task=asked.task,
        runtime=model.runtime,
        data=asked,
        samples=config.samples,
        generation=model.generation,
        key=prediction_key(found.digest, data.fingerprint, settings),
        device=config.device,
        seed=config.seed,
        journal=Path(JOURNAL),
        # What a server has answered is kept one by one, and asked one by one.
        batch_size=wanted_batch_size(asked.task, model.batch_size, 1 if found.remote else preset),
    )


def _into(prepared: Prepared, folder: Path) -> Prepared:
    """Jobs as they are run: they write into the run's journal, at batch sizes that follow the plan's."""
    sizes = {
        placement.model: placement.batch_size
        for batch in prepared.plan.batches
        for placement in batch.placements
    }
    fixed = {
        run
        for model in prepared.config.models
        if model.batch_size or model.url
        for run in model.run_ids().values()
    }
    journal = folder.absolute() / JOURNAL
    jobs = {
        run: job.model_copy(
            update={
                "journal": journal,
                "batch_size": sizes.get(run, 1),
                "max_batch_size": None if run in fixed else sizes.get(run, 1) * SHORTER_TOGETHER,
            }
        )
        for run, job in prepared.jobs.items()
    }
    return replace(prepared, jobs=jobs)


def _write(folder: Path, prepared: Prepared) -> None:
    values = prepared.config.model_dump(mode="json")
    write_text_atomic(folder / CONFIG, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    write_text_atomic(folder / PLAN, prepared.plan.model_dump_json(indent=2) + "\n")


def _stored_plan(folder: Path) -> EvaluationPlan | None:
    try:
        return EvaluationPlan.model_validate(read_json(folder / PLAN, StoreError, "plan it again"))
    except (StoreError, ValueError):
        return None


def _stored_config(folder: Path) -> EvaluationConfig | None:
    try:
        return read_config(folder)
    except (RecipeError, StoreError):
        return None


def scored(prepared: Prepared, name: str, outcome: RunOutcome) -> EvaluationOutcome:
    """What a run predicted, and how good that is; `name` is its id."""
    model, data = prepared.names[name]
    job, asked = prepared.jobs.get(name), prepared.dataset(name)
    found = predictions(job, asked) if job is not None else []
    score = scoring.score(asked, {prediction.sample: prediction.value for prediction in found})
    greedy = decoding_note(job.folder) if job is not None and job.remote is None else None
    notes = (*outcome.notes, *score.notes, *filter(None, [greedy]))
    scored = outcome.model_copy(update={"metrics": score.metrics, "notes": notes, "samples": len(found)})
    return EvaluationOutcome(name, model, data, asked, scored, found, score)


def conditions(prepared: Prepared) -> dict[str, Any]:
    """The conditions under which the results were produced."""
    seen, dask = prepared.survey, prepared.config.dask
    return {
        "name": prepared.config.name,
        "strategy": seen.strategy,
        "reserve_bytes": seen.reserve_bytes,
        "budget_bytes": prepared.plan.budget_bytes,
        "total_bytes": seen.memory.total_bytes,
        "available_bytes": seen.memory.available_bytes,
        "limit_bytes": seen.memory.limit_bytes,
        "limit_source": seen.memory.limit_source,
        "max_parallel": seen.max_parallel,
        "cpus": seen.cpus,
        "threads": seen.threads,
        "samples": prepared.config.samples,
        "device": prepared.config.device,
        **({"dask": dask.model_dump(mode="json")} if dask is not None else {}),
    }
