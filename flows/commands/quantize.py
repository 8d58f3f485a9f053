"""`pressoir quantize`: a model in fewer bits, as a packed checkpoint and as an ONNX graph."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from pressoir.config import validate
from pressoir.data import similarity
from pressoir.errors import QuantizationError
from pressoir.extensions import loader
from pressoir.extensions.task import task
from pressoir.flows.commands.standalone import stage_output
from pressoir.flows.commands.terminal import console, progress
from pressoir.recipe.sections import ExportConfig, QuantizeConfig, TextConfig
from pressoir.stages import quantize as stage
from pressoir.system.memory import peak_rss_mb

if TYPE_CHECKING:
    from pressoir.extensions.task import Task
    from pressoir.inference.side_by_side import Side

    pass
    from pressoir.sources.resolve import Source
    from pressoir.stage import StageContext

LEVELS = ("q8", "q4", "q3", "q2", "int8")
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


class _Declared(click.Choice):  # type: ignore[type-arg]
    """The names of a list that packages add to, looked up when an option is read and not on import."""

    def __init__(self, group: loader.Group) -> None:
        self._group, self.case_sensitive = group, True

    @property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]
        return loader.names(self._group)


@click.command()
@click.option("--model", required=True, metavar="MODEL", help="Folder, catalogue id or hub id.")
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Output folder; replaced if created by this command.",
)
@click.option(
    "--level",
    required=True,
    type=click.Choice(LEVELS),
    help="q8 to q2: weights of causal LMs; int8: weights and activations of other models.",
)
@click.option(
    "--algorithm", type=_Declared("pressoir.quantizers"), help="Quantisation algorithm [default: hqq]."
)
@click.option("--block-size", type=int, metavar="N", help="Weights per scale [default: 64, q2: 128].")
@click.option(
    "--embeddings",
    type=click.Choice(("int8", "q4", "float")),
    help="Format of token embeddings and output head [default: int8].",
)
@click.option(
    "--calibration",
    type=FILE,
    help="Text file for gptq and mixed precision; for int8 classifiers, a table with text and label, for "
    "sentence encoders one with sentence1, sentence2 and score [default: embedded reviews, or pairs].",
)
@click.option(
    "--target-bits", type=float, metavar="X", help="Average bits per weight; bit widths are chosen per layer."
)
@click.option(
    "--max-perplexity-increase",
    metavar="X%",
    help="Choose the lowest bit widths within this increase of perplexity.",
)
@click.option("--act-order", is_flag=True, help="gptq: quantise the most important columns first.")
@click.option(
    "--damping",
    type=float,
    metavar="X",
    help="gptq: damping, a fraction of the Hessian's mean diagonal [default: 0.01].",
)
@click.option("--test", is_flag=True, help="Generate text with source and result; print both perplexities.")
@click.option("--evaluation", type=FILE, help="Text file for --test [default: the embedded reviews].")
@click.option("--low-cpu-mem", is_flag=True, help="Never load the whole float model, not even for checks.")
@click.option("--seed", default=42, show_default=True, help="Random seed.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads [default: all].")
def quantize(
    model: str,
    output: Path,
    level: str,
    calibration: Path | None,
    test: bool,
    evaluation: Path | None,
    low_cpu_mem: bool,
    seed: int,
    threads: int | None,
    **options: Any,
) -> None:
    """Quantise MODEL, export it to ONNX and verify the exported graph.

    Writes quantized/ (packed safetensors; not for translation and speech), onnx/ and metadata.json to
    --output. Quantisation reads one layer at a time; the parity check of a causal LM then loads the
    dequantised model into memory. With --low-cpu-mem it dequantises one layer at a time instead (the same
    check, but slower), and --test runs the result only.

    \b
      pressoir quantize --model MODEL --output out/q4 --level q4
      pressoir quantize --model MODEL --output out/q3 --level q3 --algorithm gptq --calibration FILE --test
    """
    given = {name: value for name, value in options.items() if value not in (None, False)}
    config = validate(QuantizeConfig, {"scheme": level, **given}, "pressoir quantize")
    export_config = ExportConfig(low_memory=low_cpu_mem)

    from pressoir.formats.folder import task_of
    from pressoir.formats.supported import check_supported
    from pressoir.quantization.metadata import FILE, ONNX
    from pressoir.sources import resolve

    source = resolve.resolve(model)
    check_supported(source.folder)
    declared = task(task_of(source.folder))
    _check(level, declared, source.folder, test, low_cpu_mem)
    judged = _evaluation(evaluation) if test else ""
    with progress() as reporter, stage_output(output, FILE, reporter, seed=seed, threads=threads) as context:
        if declared.kind == "language model":
            _weights_only(source, config, export_config, calibration, context)
        elif declared.kind == "classifier":
            _classifier(source, config, export_config, calibration, context)
        elif declared.kind == "sentence encoder":
            _sentence_encoder(source, config, export_config, calibration, context)
        else:
            _encoder_decoder(source, config, export_config, context)
        threads = context.threads
    _print_result(output)
    if test:
        _print_test(source.folder, output / ONNX, judged, threads, low_cpu_mem)


def _check(level: str, declared: Task, folder: Path, test: bool, low_cpu_mem: bool) -> None:
    from pressoir.formats.supported import check_exportable

    language_model = declared.kind == "language model"
    if language_model and level == "int8":
        raise QuantizationError(
            "--level int8 also quantises activations, which is not supported for causal LMs; choose q8, q4, "
            "q3 or q2"
        )
    if not language_model and level != "int8":
        raise QuantizationError(f"--level {level} is for causal LMs; choose int8 for {declared.name}")
    check_exportable(folder)
    if not language_model and (test or low_cpu_mem):
        option = "--test" if test else "--low-cpu-mem"
        raise QuantizationError(
            f"{option} is for causal LMs, but this is a model for {declared.name}; omit it"
        )


def _weights_only(
    source: Source,
    config: QuantizeConfig,
    export_config: ExportConfig,
    calibration: Path | None,
    context: StageContext,
) -> None:
    from pressoir.data import running_text
    from pressoir.stages import export

    data = _folder(context, "data", context.work_dir)
    running_text.save(TextConfig(calibration=calibration), data)
    _two_stages(source, data, {"quantize": (stage, config), "export": (export, export_config)}, context)


def _classifier(
    source: Source,
    config: QuantizeConfig,
    export_config: ExportConfig,
    table: Path | None,
    context: StageContext,
) -> None:
    from pressoir.data.labelled_table import save_demo, save_table
    from pressoir.stages import export

    data = _folder(context, "data", context.work_dir)
    if table is None:
        save_demo(source.folder, data)
        config = config.model_copy(update={"max_accuracy_drop": None})
        context.reporter.message(
            "no labelled data given (--calibration TABLE): no layers are kept in float32 to preserve "
            "accuracy, and validation accuracy is measured on the embedded reviews, which is meaningful for "
            "sentiment models only"
        )
    else:
        save_table(table, source.folder, data)
    _two_stages(source, data, {"quantize": (stage, config), "export": (export, export_config)}, context)


def _sentence_encoder(
    source: Source,
    config: QuantizeConfig,
    export_config: ExportConfig,
    table: Path | None,
    context: StageContext,
) -> None:
    from pressoir.stages import export

    data = _folder(context, "data", context.work_dir)
    if table is None:
        similarity.save_demo(data)
        config = config.model_copy(update={"max_accuracy_drop": None})
        context.reporter.message(
            "no scored pairs given (--calibration TABLE): no layers are kept in float32 to preserve the "
            "correlation, which is measured on the embedded pairs of English sentences"
        )
    else:
        similarity.save_table(table, data)
    _two_stages(source, data, {"quantize": (stage, config), "export": (export, export_config)}, context)


def _two_stages(
    source: Source, data: Path, stages: Mapping[str, tuple[Any, Any]], context: StageContext
) -> None:
    """Quantise, export what came out of it, and describe both."""
    from pressoir.quantization.metadata import ONNX, QUANTIZED

    folders = {"quantize": QUANTIZED, "export": ONNX}
    model, metrics, peaks = source.folder, {}, {}
    for name, (module, config) in stages.items():
        out = _folder(context, folders[name], context.out_dir)
        own = replace(context, out_dir=out, work_dir=_folder(context, f"{name}-work", context.work_dir))
        metrics[name] = module.run({"model": model, "data": data}, config, own)
        model, peaks[name] = out, peak_rss_mb()
    _describe(source, {name: config for name, (_, config) in stages.items()}, metrics, peaks, context)


def _encoder_decoder(
    source: Source, config: QuantizeConfig, export_config: ExportConfig, context: StageContext
) -> None:
    from pressoir.export import encoder_decoder
    from pressoir.quantization.metadata import ONNX

    out = _folder(context, ONNX, context.out_dir)
    metrics = encoder_decoder.run(
        {"model": source.folder}, export_config, replace(context, out_dir=out), int8=True
    )
    configs = {"quantize": config, "export": export_config}
    _describe(source, configs, {"export": metrics}, {"export": peak_rss_mb()}, context)


def _describe(
    source: Source,
    configs: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, float]],
    peaks: Mapping[str, float],
    context: StageContext,
) -> None:
    from pressoir.quantization.metadata import FILE, describe

    content = describe(context.out_dir, source, configs, metrics, peaks, context.seed)
    (context.out_dir / FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _folder(context: StageContext, name: str, parent: Path) -> Path:
    (parent / name).mkdir()
    return parent / name


def _print_result(output: Path) -> None:
    from pressoir.quantization.metadata import FILE

    content = json.loads((output / FILE).read_text(encoding="utf-8"))
    lines = []
    if content["bits_per_weight"] is not None:
        lines.append(f"{content['bits_per_weight']:.2f} bits per weight, including scales and zero points")
    errors = {name: layer["relative_error"] for name, layer in content["layers"].items()}
    if errors:
        worst = max(errors, key=lambda name: errors[name])
        mean = sum(errors.values()) / len(errors)
        lines.append(f"relative error {mean:.3f} on average, {errors[worst]:.3f} in {worst}")
    sizes = ", ".join(f"{name} {size:.2f} MB" for name, size in content["sizes_mb"].items())
    lines.append(f"{sizes}; peak memory {max(content['peak_rss_mb'].values()):.0f} MB")
    lines.append(f"wrote {output}: {', '.join(sorted(path.name for path in output.iterdir()))}")
    console.print(escape("\n".join(lines)), soft_wrap=True)


def _evaluation(file: Path | None) -> str:
    """The text of `file`, or the embedded reviews."""
    from pressoir.data import running_text

    with tempfile.TemporaryDirectory() as folder:
        running_text.save(TextConfig(evaluation={"text": file} if file else {}), Path(folder))
        return next(iter(running_text.load_evaluation(Path(folder)).values()))


def _print_test(source: Path, result: Path, content: str, threads: int, low_cpu_mem: bool) -> None:
    """Both models' continuations side by side, and their perplexities."""
    from pressoir.inference.side_by_side import prompts_of, side

    prompts = prompts_of(content)
    sides: dict[str, Side] = {}
    if low_cpu_mem:
        console.print("the source is not tested, because it would be loaded in float32", soft_wrap=True)
    else:
        sides["source"] = side(source, prompts, content, threads)
    sides["result"] = side(result, prompts, content, threads)
    table = Table("prompt", *sides, show_lines=True)
    for index, prompt in enumerate(prompts):
        table.add_row(escape(prompt), *(escape(tested.texts[index]) for tested in sides.values()))
    scores = (
        f"{tested.perplexity.value:.2f} ({tested.perplexity.tokens} tokens)" for tested in sides.values()
    )
    table.add_row("perplexity", *scores)
    console.print(table)
