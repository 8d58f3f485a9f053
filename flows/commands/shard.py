"""`pressoir shard`, `unshard`, `verify`: cut weights, put them together, see that a model is whole."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.markup import escape

from pressoir.config import validate
from pressoir.flows.commands.standalone import stage_output
from pressoir.flows.commands.terminal import console, progress
from pressoir.recipe.sections import ShardConfig

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("--model", required=True, metavar="MODEL", help="Folder, registry id or hub id of the model.")
@click.option("--output", required=True, type=FOLDER, help="Output folder; existing shards are replaced.")
@click.option("--shards", type=int, help="Number of shards.")
@click.option("--max-shard-size", type=float, metavar="MB", help="Maximum size of a shard, MB = 10^6 bytes.")
def shard(model: str, output: Path, shards: int | None, max_shard_size: float | None) -> None:
    """Split the weights of a model into safetensors shards, in order of execution.

    The model is a checkpoint (safetensors, also quantised) or an exported ONNX folder. Without --shards and
    --max-shard-size, the number of shards depends on the size: 2-4 below 1 GB, 4-8 up to 5 GB, 8-16 above.
    """
    from pressoir.formats.sharding import MANIFEST

    given = {"shards": shards, "max_shard_size_mb": max_shard_size}
    config = validate(
        ShardConfig, {name: value for name, value in given.items() if value is not None}, "pressoir shard"
    )
    from pressoir.sources import resolve
    from pressoir.stages import shard as stage

    folder = resolve.folder_of(model) or resolve.resolve(model).folder
    with progress() as reporter, stage_output(output, MANIFEST, reporter) as context:
        metrics = stage.run({"model": folder}, config, context)
    console.print(
        f"{metrics['shards']:.0f} shards, {metrics['total_mb']:.2f} MB, largest "
        f"{metrics['largest_shard_mb']:.2f} MB: {escape(str(output))}",
        soft_wrap=True,
    )


@click.command()
@click.option("--model", required=True, type=FOLDER, help="Sharded folder.")
@click.option("--output", required=True, type=FOLDER, help="Output folder; replaced if created by unshard.")
def unshard(model: Path, output: Path) -> None:
    """Merge the shards of a model into one model.safetensors, or one ONNX graph with its weights."""
    from pressoir.formats import unsharding

    with progress() as reporter, stage_output(output, unsharding.MARK, reporter) as context:
        metrics = unsharding.unshard(model, context.out_dir, reporter)
    console.print(
        f"{metrics['shards']:.0f} shards, {metrics['total_mb']:.2f} MB, merged: {escape(str(output))}",
        soft_wrap=True,
    )


@click.command()
@click.argument("folder", type=FOLDER)
def verify(folder: Path) -> None:
    """Verify the model in FOLDER; report damaged files with exit code 1."""
    from pressoir.formats.folder_check import check

    findings = check(folder)
    for finding in findings:
        for fault in finding.faults:
            console.print(f"[red]damaged[/]  {escape(fault)}", soft_wrap=True)
        if not finding.faults:
            console.print(f"ok  {escape(str(finding.folder))}: {finding.checked}", soft_wrap=True)
    sys.exit(1 if any(finding.faults for finding in findings) else 0)
