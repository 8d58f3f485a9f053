"""What a run will do, before it does it: the key of every step, and whether the store has it already.

The order of the stages is written once, as a function over a `Runner`. The flow hands it one that builds; the
`Planner` here only computes keys and looks them up, so a plan can never disagree with the run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel

from pressoir.benchmark.reports import AnyRow
from pressoir.config import Config
from pressoir.recipe.recipe import Recipe
from pressoir.recipe.sections import DataConfig, MergeConfig, TextConfig
from pressoir.reporting import Reporter
from pressoir.sources import resolve
from pressoir.sources.resolve import Source
from pressoir.stage import StageContext
from pressoir.store.artifact import Artifact, StageKey
from pressoir.store.store import Store
from pressoir.system.runtime import use_threads

STAGES = (
    *("text", "merge"),
    *("data", "teacher", "augment", "vocabulary", "teacher_outputs", "distill", "prune"),
    *("quantize", "export", "shard", "benchmark"),
)
Made = TypeVar("Made")


class Runner(Protocol[Made]):
    """What carries out the steps of a pipeline. `Made` is what a step gives and later ones take."""

    def fetch(self, reference: str) -> Source:
        """Find a model and check that it is whole and safe."""

    def __call__(self, stage: str, config: BaseModel, **inputs: Made | Source | None) -> Made:
        """Carry out one stage; inputs that are None are left out."""


@dataclass(frozen=True)
class Pressed(Generic[Made]):
    """What a pipeline made."""

    artifacts: dict[str, Made | Source | None]
    """Every compared model, in the order of the pipeline: `teacher` (or `source`), `teacher_onnx`, …"""
    data: Made
    final: Made
    """The last model: what is registered and served."""
    report: Made
    """The benchmark of all of them."""


class Unbuilt(Config):
    """Stands for the output of a stage that the store does not have."""

    stage: str


class PlanRow(Config):
    """One step of a plan."""

    stage: str
    """The stage."""
    of: str | None
    """The stage whose model it takes; tells the exports of teacher and final model apart."""
    state: Literal["cached", "build"]
    """Whether the store has the result."""
    key: str | None
    """Its place in the store; unknown while an input is not built."""


class CompressResult(Config):
    """What a run of the compress flow leaves behind."""

    artifact: Artifact
    """The final model."""
    folder: Path
    """Where its files are."""
    report: Path
    """Folder of `benchmark.json`, `comparison.md` and the plots."""
    rows: tuple[AnyRow, ...]
    """The benchmark: first the teacher (or source), last the final model."""
    registry_id: str | None
    """Where `sources.resolve` and the server find it; None when nothing was registered."""
    decision: str | None
    """Why that version took over the alias or did not; None when nothing was registered."""
    promoted: bool | None
    """Whether it took over the alias in MLflow; None when nothing was registered."""
    prefect_run_id: str
    mlflow_run_id: str
    tracking_uri: str
    """Where MLflow keeps the run."""


class Planner:
    """A runner that builds nothing: it looks every step up and notes the result in `rows`."""

    def __init__(self, recipe: Recipe, store: Store) -> None:
        self.recipe, self.store = recipe, store
        self.rows: list[PlanRow] = []

    def fetch(self, reference: str) -> Source:
        """See `Runner.fetch`."""
        return resolve.resolve(reference, self.store)

    def __call__(
        self, stage: str, config: BaseModel, **inputs: Artifact | Unbuilt | Source | None
    ) -> Artifact | Unbuilt:
        """See `Runner.__call__`."""
        known = {name: given.digest for name, given in inputs.items() if isinstance(given, Artifact | Source)}
        key, found = None, None
        if not any(isinstance(given, Unbuilt) for given in inputs.values()):
            key = stage_key(stage, config, known, self.recipe.seed)
            found = None if self.recipe.refresh else self.store.find(key)
        model = inputs.get("model")
        self.rows.append(
            PlanRow(
                stage=stage,
                of=None if model is None or isinstance(model, Source) else model.stage,
                state="cached" if found else "build",
                key=key.hash() if key else None,
            )
        )
        return found or Unbuilt(stage=stage)


def plan(
    pipeline: Callable[[Recipe, Runner[Artifact | Unbuilt]], Any], recipe: Recipe, store: Store | None = None
) -> list[PlanRow]:
    """Every step that `pipeline` would take for `recipe`, in order, and whether the store has its result.

    Raises:
        SourceError: a model cannot be found; DataError: a data file does not exist.
    """
    planner = Planner(recipe, store or Store())
    pipeline(recipe, planner)
    return planner.rows


def build_stage(
    stage: str,
    config: BaseModel,
    inputs: Mapping[str, Artifact | Source | None],
    store: Store,
    reporter: Reporter,
    *,
    seed: int,
    threads: int,
    refresh: bool = False,
) -> tuple[Artifact, bool]:
    """Build one stage here, or find it in the store; return the artifact, and whether it was there.

    Raises:
        PressoirError: whatever the stage raises; nothing is published then.
    """
    given = {name: value for name, value in inputs.items() if value is not None}
    folders = {n: v.folder if isinstance(v, Source) else store.path(v) for n, v in given.items()}
    key = stage_key(stage, config, {n: v.digest for n, v in given.items()}, seed)

    def make(out_dir: Path, work_dir: Path) -> Mapping[str, float]:
        use_threads(threads)
        metrics: Mapping[str, float] = load_stage(stage).run(
            folders, config, StageContext(out_dir, work_dir, reporter, seed, threads)
        )
        return metrics

    return store.build(key, make, refresh=refresh, tell=reporter.message)


def base_reference(recipe: Recipe) -> str:
    """The model that a run begins with; of a merge the first parent."""
    if recipe.merge:
        return recipe.merge.models[0]
    return (recipe.teacher and recipe.teacher.checkpoint) or recipe.model


def check_inputs(recipe: Recipe, store: Store) -> int:
    """Check the store, the registry and the data; return the number of training sentences (LMs: 0).

    Raises:
        StoreError: nothing could be stored. RegistryError: `models.json` is not valid. DataError: a file is
        missing or has a malformed row. SourceError: a hub data set or a parent cannot be loaded.
        MergeError: the models cannot be merged; every finding is listed.
    """
    from pressoir.data import sentences as data
    from pressoir.registry.registry import Registry

    store.check_writable()
    Registry(store.home).models()
    if recipe.merge is not None:
        from pressoir.merging.preflight import preflight

        models = {f"parent_{i}": model for i, model in enumerate(recipe.merge.models)}
        if recipe.merge.base is not None:
            models["base"] = recipe.merge.base
        folders = {name: resolve.resolve(model, store).folder for name, model in models.items()}
        preflight(recipe.merge, folders, store.root)
    if recipe.teacher is None:
        from pressoir.data import running_text

        running_text.source_digest(recipe.text)
        return 0
    prepared = store.find(stage_key("data", recipe.data, {}, recipe.seed))
    if prepared is not None:
        return int(prepared.metrics["train_rows"])
    return len(data.load(recipe.data, recipe.seed)[0]["train"])


def check_space(recipe: Recipe, store: Store, base: Source, sentences: int) -> None:
    """Check that the store has room for a run that starts from nothing.

    Raises:
        StoreError: it has not; the message says how much is needed.
    """
    from pressoir.memory import estimate_disk_bytes

    store.check_writable(estimate_disk_bytes(recipe, base.folder, sentences))


def load_stage(name: str) -> ModuleType:
    """The module of a stage: `NAME`, `VERSION`, `KIND` and `run` (see `pressoir.stages`)."""
    if name not in STAGES:
        raise ValueError(f"no stage {name!r}; there are {', '.join(STAGES)}")
    return importlib.import_module(f"pressoir.stages.{name}")


def stage_key(stage: str, config: BaseModel, inputs: Mapping[str, str], seed: int) -> StageKey:
    """The store's key of a stage, from its configuration and the digests of its inputs.

    Contents decide, places do not: paths and model references are left out of the configuration, since the
    digest of what they name is among the inputs. Threads are left out too: they change how fast, not what.

    Raises:
        DataError: a data file does not exist.
    """
    module = load_stage(stage)
    if isinstance(config, DataConfig):
        from pressoir.data import sentences as data

        inputs = {"source": data.source_digest(config), **inputs}
    if isinstance(config, TextConfig):
        from pressoir.data import running_text

        inputs = {"source": running_text.source_digest(config), **inputs}
    return StageKey(
        stage=module.NAME,
        version=module.VERSION,
        kind=module.KIND,
        config=key_config(config),
        inputs=dict(inputs),
        seed=seed,
    )


def key_config(config: BaseModel) -> dict[str, Any]:
    """The configuration as it goes into the key: of a path only its format, of a model if one is named."""
    values = config.model_dump(mode="json")
    if isinstance(config, DataConfig):
        for split in ("train", "validation", "test", "unlabelled"):
            path = getattr(config, split)
            values[split] = None if path is None else path.suffix.lower()
        values["hub_id"] = config.hub_id is not None
    if isinstance(config, TextConfig):
        values["calibration"] = config.calibration is not None
        values["evaluation"] = sorted(config.evaluation)
    if isinstance(config, MergeConfig):
        values["models"], values["base"] = len(config.models), config.base is not None
    if "checkpoint" in values:
        values["checkpoint"] = values["checkpoint"] is not None
    if isinstance(values.get("student"), dict):
        values["student"]["model"] = values["student"]["model"] is not None
    return values
