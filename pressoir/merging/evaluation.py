"""Parents and child on the same data: a merge that is worse than all its parents must say so.

A smoke test, not a benchmark: of a long text the first windows are taken. Causal LMs are measured by their
perplexity on each evaluation text, text classifiers by their accuracy on the validation split.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from pydantic import Field

from pressoir.config import Config
from pressoir.data import running_text
from pressoir.data import sentences as data
from pressoir.data.texts import PAIR, texts_of
from pressoir.errors import DataError, PressoirError
from pressoir.extensions.task import task
from pressoir.formats.folder import task_of
from pressoir.inference.text_classification import TextClassifier
from pressoir.inference.text_generation import TextGenerator
from pressoir.merging.preflight import MergePlan
from pressoir.metrics import accuracy
from pressoir.recipe.sections import TextConfig
from pressoir.reporting import Reporter

WINDOWS = 256
"""Windows of each text, where the text folder sets no limit of its own."""
Scorer = Callable[[Path], dict[str, tuple[float, int]]]
"""From a model folder to its score on each text or split, and how many tokens or sentences were scored."""


class MergeRow(Config):
    """One model of the comparison."""

    name: str
    """`parent_0`, …, `base`, `result`."""
    reference: str
    role: Literal["parent", "base", "result"]
    scores: dict[str, float] = Field(default={})
    """By data: perplexities by name of the text, or an accuracy (fraction) on `validation`."""
    reason: str | None = None
    """Why it has no score."""


class MergeReport(Config):
    """The content of `merge_report.json`."""

    format_version: Literal[1] = 1
    method: str
    measure: Literal["perplexity", "accuracy"] | None = None
    """None: nothing was measured; `reason` says why."""
    reason: str | None = None
    samples: dict[str, int] = Field(default={})
    """Tokens (perplexity) or sentences (accuracy) scored, by data."""
    remarks: tuple[str, ...] = ()
    """What limits the comparison."""
    rows: tuple[MergeRow, ...] = ()
    """Base (where it is no parent), parents, result."""

    @property
    def result(self) -> MergeRow:
        """The merged model."""
        return self.rows[-1]

    def best_parent(self, name: str) -> float | None:
        """Best score of a parent on one text or split; None where no parent has one."""
        scores = [row.scores[name] for row in self.rows if row.role == "parent" and name in row.scores]
        choose = max if self.measure == "accuracy" else min
        return choose(scores) if scores else None

    @property
    def worse(self) -> tuple[str, ...]:
        """Texts or splits on which the result is worse than every one of its parents."""
        sign = 1 if self.measure == "accuracy" else -1
        parents = [row for row in self.rows if row.role == "parent"]
        return tuple(
            name
            for name, score in (self.result.scores if self.rows else {}).items()
            if all(name in row.scores and sign * score < sign * row.scores[name] for row in parents)
        )

    @property
    def worse_than_base(self) -> tuple[str, ...]:
        """Texts or splits on which the result is worse than a base that is none of its parents."""
        sign = 1 if self.measure == "accuracy" else -1
        base = next((row.scores for row in self.rows if row.role == "base"), {})
        scores = self.result.scores if self.rows else {}
        return tuple(
            name for name, score in scores.items() if name in base and sign * score < sign * base[name]
        )

    def metrics(self) -> dict[str, float]:
        """The figures of the stage."""
        found: dict[str, float] = {}
        for name, score in (self.result.scores if self.rows else {}).items():
            suffix = f"_{name}" if self.measure == "perplexity" else ""
            found[f"{self.measure}{suffix}"] = score
            if (best := self.best_parent(name)) is not None:
                found[f"parents_best_{self.measure}{suffix}"] = best
        return {**found, "worse_than_both_parents": float(bool(self.worse))} if found else {}

    def headline(self) -> str:
        """Where the merge beat its parents, and where it lost to all of them."""
        if self.measure is None:
            return f"Not evaluated: {self.reason}."
        sides: dict[str, list[str]] = {"WORSE than all its parents on": list(self.worse)}
        for name, score in self.result.scores.items():
            best = self.best_parent(name)
            ahead = best is not None and (score > best if self.measure == "accuracy" else score < best)
            side = "Better than all its parents on" if ahead else "Not better than the best parent on"
            if name not in self.worse:
                sides.setdefault(side, []).append(name)
        sides["Worse than the base on"] = list(self.worse_than_base)
        return " ".join(f"{side} {', '.join(names)}." for side, names in sides.items() if names)

    def markdown(self) -> str:
        """The report as text: a table of all models, and what it means."""
        if self.measure is None:
            return f"{self.headline()}\n"
        form = "{:.1%}" if self.measure == "accuracy" else "{:.2f}"
        lines = [f"| model | {' | '.join(self.samples)} |", "|---" * (len(self.samples) + 1) + "|"]
        for row in self.rows:
            cells = [form.format(row.scores[n]) if n in row.scores else "–" for n in self.samples]
            title = f"{row.name}: {row.reference}" if row.role != "result" else f"**result** ({self.method})"
            lines.append(f"| {title} | {' | '.join(cells)} |")
        unit = "sentences" if self.measure == "accuracy" else "tokens"
        counts = ", ".join(f"{name}: {count:,} {unit}" for name, count in self.samples.items())
        better = "more" if self.measure == "accuracy" else "less"
        remarks = [*self.remarks, *(f"{row.name}: {row.reason}" for row in self.rows if row.reason)]
        return (
            "\n".join(
                [*lines, "", f"{self.measure.capitalize()}, {better} is better; {counts}.", self.headline()]
                + [f"{remark}." for remark in remarks]
            )
            + "\n"
        )


def evaluate(
    plan: MergePlan, result: Path, folder: Path | None, *, threads: int, reporter: Reporter
) -> MergeReport:
    """Score the parents, a base that is no parent, and the result, on the data in `folder`.

    `folder` is a text folder or a classification data folder; without one, causal LMs are measured on the
    embedded reviews. A parent that cannot be measured has no score but a reason; a result that cannot be
    opened is an error.

    Raises:
        SourceError: the result is no model that can be opened. PressoirError: its outputs are not finite.
    """
    unmeasured = MergeReport(method=plan.config.method)
    declared = task(task_of(result))
    remarks = []
    score: Scorer
    if declared.kind == "language model" and (folder is None or (folder / running_text.INFO).exists()):
        measure, score = "perplexity", _perplexities(folder, threads)
        if len({str(m.tokenizer and sorted(m.tokenizer.ids.items())) for m in plan.models}) > 1:
            remarks.append("Tokenizers differ, so these perplexities are not per the same token")
    elif declared.kind == "classifier" and folder is not None and (folder / data.INFO).exists():
        measure, score = "accuracy", _accuracy(folder, threads)
    else:
        needed = {"language model": "running text", "classifier": "labelled sentences"}
        name, wanted = declared.name, needed.get(declared.kind or "")
        reason = f"{wanted} needed for a {name} model" if wanted else f"a {name} model has no head to measure"
        return unmeasured.model_copy(update={"reason": reason})

    models: list[MergeRow] = [
        MergeRow(name=model.name, reference=model.public_reference, role="parent") for model in plan.parents
    ]
    folders = {model.name: model.folder for model in plan.parents} | {"result": result}
    given = plan.given_base
    if given is not None and not any(given.folder.samefile(model.folder) for model in plan.parents):
        models.insert(0, MergeRow(name="base", reference=given.public_reference, role="base"))
        folders["base"] = given.folder
    models.append(MergeRow(name="result", reference=plan.config.method, role="result"))
    rows: list[MergeRow] = []
    samples: dict[str, int] = {}
    for row in reversed(models):  # the result first: if it does not open, nothing else matters
        try:
            found = score(folders[row.name])
        except PressoirError as error:
            if row.role == "result" and not isinstance(error, DataError):
                raise
            if row.role == "result":
                return unmeasured.model_copy(update={"reason": str(error)})
            rows.insert(0, row.model_copy(update={"reason": str(error)}))
        else:
            samples = samples or {name: count for name, (_, count) in found.items()}
            rows.insert(
                0, row.model_copy(update={"scores": {name: value for name, (value, _) in found.items()}})
            )
        reporter.progress(len(rows), len(models), "evaluate")
    return unmeasured.model_copy(
        update={"measure": measure, "samples": samples, "remarks": tuple(remarks), "rows": tuple(rows)}
    )


def _perplexities(folder: Path | None, threads: int) -> Scorer:
    texts = running_text.embedded_evaluation() if folder is None else running_text.load_evaluation(folder)
    config = TextConfig() if folder is None else running_text.info(folder)

    def score(model: Path) -> dict[str, tuple[float, int]]:
        generator = TextGenerator.open(model, threads, "pytorch")
        window = min(config.window, generator.decoder.context)
        limit = config.evaluation_windows or WINDOWS
        found = {name: generator.perplexity(content, window, limit) for name, content in texts.items()}
        return {name: (perplexity.value, perplexity.tokens) for name, perplexity in found.items()}

    return score


def _accuracy(folder: Path, threads: int) -> Scorer:
    def score(model: Path) -> dict[str, tuple[float, int]]:
        classifier = TextClassifier.open(model, threads, "pytorch")
        split = data.load_split(folder, "validation", classifier.labels)
        if classifier.pairs and not data.info(folder).get(PAIR):
            raise DataError(f"{model} was trained on pairs of texts, but the data have single ones")
        predicted = classifier.logits(texts_of(split)).argmax(axis=1)
        return {"validation": (accuracy(predicted, split["label"][:]), len(split))}

    return score
