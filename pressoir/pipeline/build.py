"""Carry out one stage, or find its result in the store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from pressoir.pipeline.sources import Sources
from pressoir.reporting import Reporter
from pressoir.sources.resolve import Source
from pressoir.stage import StageContext, load_stage
from pressoir.store.artifact import Artifact
from pressoir.store.store import Store
from pressoir.system.runtime import machine_of, use_threads


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
    sources: Sources | None = None,
) -> tuple[Artifact, bool]:
    """Build one stage here, or find it in the store; return the artifact, and whether it was there.

    `sources` are those of the whole run, where it has looked something up before.

    Raises:
        PressoirError: whatever the stage raises; nothing is published then.
    """
    given = {name: value for name, value in inputs.items() if value is not None}
    folders = {n: v.folder if isinstance(v, Source) else store.path(v) for n, v in given.items()}
    digests = {name: value.digest for name, value in given.items()}
    sources = sources or Sources(store)
    key = sources.key(stage, config, digests, seed, folders.values(), threads)

    def make(out_dir: Path, work_dir: Path) -> Mapping[str, float]:
        use_threads(threads)
        context = StageContext(
            *(out_dir, work_dir, reporter, seed, threads),
            digests=digests,
            prepared=sources.take(stage, config, seed),
        )
        return load_stage(stage).run(folders, config, context)

    machine = machine_of(threads)
    artifact, cached = store.build(key, make, refresh=refresh, tell=reporter.message, machine=machine)
    made_on = {name: artifact.environment.get(name, value) for name, value in machine.items()}
    if cached and made_on != machine:
        reporter.message(
            f"{stage}: made with {made_on['threads']} threads on {made_on['cpu']} "
            f"({made_on['cpu_features']}); here it may differ in the last digits"
        )
    return artifact, cached
