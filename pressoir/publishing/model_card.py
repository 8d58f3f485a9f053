"""The model card of a compressed model: `README.md` in the hub's form, from what its run wrote.

Metadata that `huggingface_hub` itself writes, then text: what the model is, beside what it was made from, how
it is opened, how it was made, where it was measured, and what it is not good for. Nothing is measured here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import pressoir
from pressoir.benchmark import reports
from pressoir.benchmark.classifier_report import (
    TITLES,
    Benchmark,
    accuracy_text,
    busy_lines,
    delta_text,
    measured_on,
)
from pressoir.benchmark.language_model_report import GenerationBenchmark, figure, percent
from pressoir.benchmark.reports import AnyBenchmark
from pressoir.data.texts import takes_pairs
from pressoir.extensions.task import Task, task
from pressoir.formats.folder import CARD, GRAPH, QUANTIZATION, read_json
from pressoir.formats.labels import labels_of
from pressoir.formats.problems import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    THRESHOLDS,
    TOKENS,
    problem_of,
)
from pressoir.formats.tokenizer_limit import most_tokens
from pressoir.publishing import origins
from pressoir.publishing.evaluation_results import evaluation_results, test_data
from pressoir.publishing.loading import Loading, loading
from pressoir.recipe.recipe import Recipe
from pressoir.stage import load_stage
from pressoir.store.store import Store
from pressoir.system.addresses import without_password
from pressoir.system.files import write_text_atomic

if TYPE_CHECKING:
    from pydantic import BaseModel

_STAGES = ("merge", "teacher", "augment", "vocabulary", "distill", "prune", "quantize", "export", "shard")
_TAGS = {"merge": "merge", "distill": "distillation", "prune": "pruning", "quantize": "quantization"}


def write(folder: Path, recipe: Recipe, benchmark: AnyBenchmark, store: Store) -> None:
    """Write the card of the model in `folder`, which `recipe` made and `benchmark` measured.

    Raises:
        SourceError: a file of the folder is missing or damaged. StoreError: the card cannot be written.
    """
    write_text_atomic(folder / CARD, model_card(folder, recipe, benchmark, store))


def model_card(folder: Path, recipe: Recipe, benchmark: AnyBenchmark, store: Store) -> str:
    """The text of the card: without passwords of addresses, and without paths of this machine."""
    declared = task(recipe.task)
    opened = loading(folder, declared)
    sections = [
        f"# {recipe.name}",
        *([recipe.description] if recipe.description else []),
        _what(folder, recipe, benchmark, store),
        "## Compared with what it was made from",
        *_comparison(benchmark),
        "## Usage",
        f"Needs {opened.needs}.",
        _block(opened.code, "python"),
        opened.note,
        "## How it was made",
        "\n".join(_steps(recipe, benchmark)),
        "The whole recipe, with defaults; of local paths the last part is shown:",
        _block(_recipe_text(recipe), "yaml"),
        "## Environment",
        benchmark.describe(),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(folder, recipe, benchmark)),
    ]
    front = _metadata(folder, recipe, benchmark, store, declared, opened)
    return without_password(f"---\n{front}\n---\n\n" + "\n\n".join(sections)) + "\n"


def _metadata(
    folder: Path, recipe: Recipe, benchmark: AnyBenchmark, store: Store, declared: Task, opened: Loading
) -> str:
    from huggingface_hub import ModelCardData

    references = origins.references(recipe)
    bases = [id for id in (origins.hub_id(reference, store) for reference in references) if id]
    scheme = _scheme(folder)
    tags = ["pressoir", *(tag for stage, tag in _TAGS.items() if getattr(recipe, stage) is not None)]
    tags += ["onnx"] if (folder / GRAPH).is_file() else []
    tags += [scheme] if scheme else []
    fields: dict[str, Any] = origins.card_license([origins.license_name(r, store) for r in references])
    if bases:
        fields["base_model"] = bases[0] if len(bases) == 1 else bases
    if isinstance(benchmark, Benchmark) and (data := test_data(recipe.data)).on_the_hub:
        fields["datasets"] = [data.id]
    card = ModelCardData(
        **fields,
        pipeline_tag=declared.pipeline_tag,
        library_name=opened.library,
        tags=tags,
        model_name=recipe.name,
        eval_results=evaluation_results(recipe, benchmark, declared.pipeline_tag),
    )
    return str(card.to_yaml())


def _what(folder: Path, recipe: Recipe, benchmark: AnyBenchmark, store: Store) -> str:
    made = [
        f"`{origins.shown(reference)}` ({origins.license_name(reference, store) or 'license unknown'})"
        for reference in origins.references(recipe)
    ]
    if isinstance(benchmark, Benchmark):
        config = read_json(folder / "config.json")
        names = ", ".join(f"`{label}`" for label in labels_of(config))
        pairs = takes_pairs(config)
        what, one = "of pairs of texts " * pairs, "pair of texts" if pairs else "text"
        kind = {
            SINGLE_LABEL: f"A text classifier {what}with the labels {names}",
            MULTI_LABEL: f"A text classifier that gives a {one} any number of the labels {names}",
            REGRESSION: f"A model that gives a {one} a score",
            TOKENS: f"A token classifier, which gives each word of a text one of the tags {names}",
        }[benchmark.rows[-1].problem]
    else:
        kind = "A causal language model"
    return (
        f"{kind}, made from {', '.join(made)} by Pressoir {pressoir.__version__}. "
        f"{_sentence(reports.headline(benchmark))}"
    )


def _comparison(benchmark: AnyBenchmark) -> Iterator[str]:
    """The table of the first row and the last, and what it counts."""
    columns, rows = _table(benchmark)
    lines = [f"| {' | '.join(columns)} |", f"|---|---|{'---:|' * (len(columns) - 2)}"]
    if reason := busy_lines(benchmark):
        yield reason[0]
    yield "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)])
    if isinstance(benchmark, GenerationBenchmark):
        texts = ", ".join(f"{name} ({tokens:,} tokens)" for name, tokens in benchmark.scored_tokens.items())
        yield (
            f"Perplexity is measured over windows of {benchmark.window} tokens: {texts}. TTFT is the median "
            f"time to the first token after {benchmark.prompt_tokens} tokens. MB = 10⁶ bytes."
        )
    else:
        yield (
            f"{measured_on(benchmark).removesuffix('.')}; p50 is the median latency of one sentence, without "
            "the tokenizer. MB = 10⁶ bytes."
        )


def _table(benchmark: AnyBenchmark) -> tuple[list[str], list[list[str]]]:
    if isinstance(benchmark, GenerationBenchmark):
        columns = ["model", "runtime", "perplexity", "Δ", "bits per weight", "size MB", "smaller"]
        ends = [("reference", benchmark.rows[0]), ("this model", benchmark.rows[-1])]
        return [*columns, "TTFT ms", "tokens/s", "faster"], [
            [
                f"{row.stage} ({name})",
                row.runtime,
                figure(row.perplexity),
                percent(row.perplexity_increase),
                f"{row.bits_per_weight:.2f}",
                f"{row.size_mb:.1f}",
                f"{row.compression:.1f}×",
                f"{row.ttft_ms_p50:.1f}",
                figure(row.decode_tokens_per_s),
                f"{row.speedup:.1f}×",
            ]
            for name, row in ends
        ]
    problem = benchmark.rows[0].problem
    metric, change = f"{TITLES[problem.metric]} (95 % interval)", "Δ" if problem is REGRESSION else "points"
    columns = ["model", "runtime", metric, change, "size MB", "smaller", "p50 ms"]
    return [*columns, "faster"], [
        [
            f"{row.stage} ({name})",
            row.runtime,
            accuracy_text(row),
            delta_text(row),
            f"{row.size_mb:.1f}",
            f"{row.compression:.1f}×",
            f"{row.latency_ms_p50:.2f}",
            f"{row.speedup:.1f}×",
        ]
        for name, row in (("reference", benchmark.rows[0]), ("this model", benchmark.rows[-1]))
    ]


def _steps(recipe: Recipe, benchmark: AnyBenchmark) -> Iterator[str]:
    """A line a stage, with the settings that are not the defaults."""
    if isinstance(benchmark, Benchmark) and benchmark.linear_baseline is not None:
        sentences = benchmark.linear_baseline.training_sentences
        yield f"- **data**: {sentences} training sentences of {test_data(recipe.data).name}."
    for name in _stage_order(recipe):
        config: BaseModel = getattr(recipe, name)
        summary = " ".join((type(config).__doc__ or "").split("\n\n")[0].split())
        given = _flat(_public(config.model_dump(mode="json", exclude_defaults=True)))
        settings = ", ".join(f"{field} {value}" for field, value in given.items())
        yield f"- **{name}**: {_sentence(summary)} {f'`{settings}`' if settings else 'Default settings.'}"


def _stage_order(recipe: Recipe) -> list[str]:
    order = [name for name in _STAGES if getattr(recipe, name) is not None]
    for name in recipe.outside_sections():
        if getattr(recipe, name) is not None:
            after = load_stage(name).after
            order.insert(order.index(after) + 1 if after in order else len(order), name)
    return order


def _limits(folder: Path, recipe: Recipe, benchmark: AnyBenchmark) -> Iterator[str]:
    if isinstance(benchmark, GenerationBenchmark):
        texts = ", ".join(benchmark.scored_tokens)
        yield (
            "Its languages and its knowledge are those of what it was made from. Its perplexity was measured "
            f"on {texts} alone; what it answers was not judged."
        )
        yield f"Texts longer than {benchmark.window} tokens were not measured."
        return
    data = test_data(recipe.data)
    yield (
        "Its language and its domain are those of the data that it was trained and measured on "
        f"({data.name}, split {data.split}); of other text its accuracy is not known."
    )
    cut, sentences = benchmark.texts_truncated, benchmark.test_sentences
    some = "" if cut is None else f"; {cut or 'none'} of {sentences} test sentences are longer"
    config = read_json(folder / "config.json")
    both = " both texts of a pair together, the longer one first," if takes_pairs(config) else ""
    if problem_of(config).name == TOKENS.name:
        yield (
            f"Texts of more than {_most_tokens(folder)} tokens go through it in several parts; the first "
            "token of a word decides its tag."
        )
        return
    yield f"Texts are cut{both} at {_most_tokens(folder)} tokens{some}."
    if problem_of(config) is MULTI_LABEL:
        yield (
            f"A text has the labels whose probability (sigmoid) is at least their threshold, `{THRESHOLDS}` "
            "in `config.json`, which was chosen on validation data; transformers' pipeline does not apply it."
        )
    else:
        what = "a score" if problem_of(config) is REGRESSION else "one of its labels"
        yield f"It answers {what}, whatever the text is."


def _most_tokens(folder: Path) -> int:
    path = folder / "tokenizer_config.json"
    own = read_json(path).get("model_max_length") if path.is_file() else None
    return min(most_tokens(folder), own) if isinstance(own, int) else most_tokens(folder)


def _scheme(folder: Path) -> str | None:
    path = folder / QUANTIZATION
    return str(read_json(path).get("scheme") or "") or None if path.is_file() else None


def _recipe_text(recipe: Recipe) -> str:
    return yaml.safe_dump(
        _public(recipe.model_dump(mode="json")), sort_keys=False, allow_unicode=True, width=110
    )


def _public(value: Any) -> Any:
    """A value of JSON in which local paths are their last part: the rest says who made it, and where."""
    if isinstance(value, Mapping):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    if isinstance(value, str) and value.startswith(("/", "~", ".")):
        return Path(value).name or value
    return value


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        found |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def _block(text: str, language: str) -> str:
    """A fenced block whose fence is longer than any within it."""
    longest = max((len(ticks) for ticks in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
