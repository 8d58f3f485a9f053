"""Make the result known by name: an entry in the registry, and a model version in MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from prefect.logging import get_run_logger

from pressoir.benchmark.reports import AnyRow
from pressoir.recipe.recipe import Recipe
from pressoir.recipe.sections import RegistryConfig
from pressoir.registry.catalogue import Entry, Urls
from pressoir.registry.registry import Registry
from pressoir.sources.resolve import Source
from pressoir.store.artifact import Artifact
from pressoir.tasks.stage import RunContext, stage_task
from pressoir.tasks.tracking.model_version import version_request


@stage_task(name="register", task_run_name="register")
def register(
    recipe: Recipe,
    config: RegistryConfig,
    artifacts: Mapping[str, Artifact | Source | None],
    final: Artifact,
    report: Artifact,
    row: AnyRow,
    run: RunContext,
) -> tuple[bool | None, str]:
    """Register `final`, measured as `row`; return whether it received the alias, and why.

    While MLflow does not answer, the version waits: None.
    """
    registry = Registry(run.store.home)
    base, folder = registry.models().get(recipe.model), run.store.path(final)
    registry.add(
        Entry(
            id=recipe.registry_id,
            name=recipe.description or recipe.name,
            type=recipe.task,
            size_mb=final.size_bytes / 1e6,
            urls=Urls(
                base=f"store:{final.stage}/{final.key}",
                shards=tuple(path.name for path in sorted(folder.glob("shard_*.safetensors"))),
            ),
            digest=final.digest,
            license="NOASSERTION" if base is None else base.license,
            metrics=row.model_dump(exclude={"stage", "runtime", "perplexities"}),
            quantization=recipe.quantize.scheme if recipe.quantize else None,
            lineage={
                name: made.digest
                for name, made in {**artifacts, "benchmark": report}.items()
                if made is not None
            },
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
    )
    made = run.parent.log_version(version_request(recipe.registry_id, config, final, report, row, run.store))
    if made is None:
        return (
            None,
            "MLflow does not answer; version and decision wait (`pressoir tracking flush`)",
        )
    get_run_logger().info("registered as %s; %s", recipe.registry_id, made.why)
    return made.promoted, made.why
