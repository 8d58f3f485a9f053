"""What a task is: the data that describe it, and where the code is that does it.

A task is declared in one file (`pressoir/declarations/` has Pressoir's) and found through the entry points of
`pressoir.tasks`. What is heavy is named by a dotted path and imported when it is first needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from pressoir.errors import ExtensionError
from pressoir.extensions import loader

GROUP: Literal["pressoir.tasks"] = "pressoir.tasks"
Kind = Literal["classifier", "language model", "sentence encoder"]
# fmt: off
Part = Literal[
    "adapter", "try_out", "table", "compare", "export",
    "read_data", "predictor", "remote", "estimate", "score", "worker", "kserve",
]
# fmt: on
"""Fields of `Task` that are dotted paths."""


@dataclass(frozen=True)
class Metric:
    """One figure of an evaluation."""

    name: str
    """Key in the results; `<name>/<text>` is that of one text."""
    title: str = ""
    """As a person writes it, where that is not the name."""
    lower_is_better: bool = False
    form: Literal["number", "percent", "correlation"] = "number"
    """How a value is shown: a fraction in percent, or with three decimals."""


@dataclass(frozen=True)
class Tensor:
    """An output over KServe v2."""

    name: str
    datatype: str
    shape: tuple[int | Literal["rows", "labels"], ...]
    """Sizes: `rows` is one a text, `labels` the number of the model's labels."""


TRUNCATED = Tensor("truncated", "BOOL", ("rows",))
"""Whether a text has more tokens than the model was given."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a model does. Dotted paths are `module:attribute`; without one, the task cannot do that."""

    name: str
    """The same as its entry point's."""
    hub_name: str | None = None
    """Hugging Face's name for it, where that is another."""
    position: int = 1000
    """Where lists show it, before those of a higher one; ties by name."""
    heads: tuple[str, ...]
    """Ends of the class names in `architectures` of `config.json` that mean this task; the longest wins among
    all tasks'."""
    model_types: tuple[str, ...] = ()
    """Of the models with such a head, the types (`model_type` of `config.json`) that it runs; empty: all."""
    pytorch_only: tuple[str, ...] = ()
    """Of these types, those that are run from a checkpoint by transformers, and not exported."""
    evaluated_only: tuple[str, ...] = ()
    """Of these types, those that are not served for this task."""
    kind: Kind | None = None
    """What recipes, benchmarks and merges treat its models as; None: they do not take them."""
    problem: str | None = None
    """`data.problem` of its recipes and data, where it has one kind alone; None: those of texts."""
    sound: bool = False
    """A sample is a sound, not text: a file in an evaluation, a waveform in a request."""

    adapter: str | None = None
    """Class with `open(folder, threads, runtime)`."""
    try_out: str | None = None
    """`(adapter, text) -> object`: one short use of an opened adapter, whose memory and time are measured."""
    table: str | None = None
    """`(folder, threads) -> Predictor` of `pressoir.inference.predictor`: texts to named columns."""
    compare: str | None = None
    """`(folders, data, config, context) -> figures`: the benchmark."""
    export: str | None = None
    """`(inputs, config, context) -> figures`: from a checkpoint to an ONNX graph."""

    read_data: str | None = None
    """`(DataSetConfig, seed) -> (labels, samples)`: the data of an evaluation."""
    required_data: tuple[str, ...] = ()
    """Fields of an evaluation's data set that must be given."""
    languages: tuple[str, ...] = ()
    """Fields of the data set that name languages, and so decide a prediction."""
    generation: tuple[str, ...] = ()
    """Fields of the `generation` section that decide a prediction."""
    windows: bool = False
    """The data are whole texts, which the model's own tokenizer cuts into samples `<text>:<index>`."""
    unit: str = "samples"
    """What a sample is, in the plural."""
    most_together: int | None = None
    """Largest default batch, where the strategies' are too large."""
    predictor: str | None = None
    """`(Job, DataSet) -> (Predictor, engine)`: a loaded model in an evaluation's child."""
    remote: str | None = None
    """`(RemoteModel, input) -> raw prediction`: the same, of a model on a server."""
    protocols: tuple[Literal["kserve-v2", "openai"], ...] = ("kserve-v2", "openai")
    """By which it can be evaluated on a server, in the order in which a server is asked."""
    estimate: str | None = None
    """A `TaskMemory` of `pressoir.evaluation.estimates.formula`: what its samples take."""
    score: str | None = None
    """`(DataSet, raw predictions by sample) -> Score`."""
    metrics: tuple[Metric, ...] = ()
    """What `score` gives, the main one first."""

    worker: str | None = None
    """`(LoadJob) -> ServedModel`: a loaded model in a server's worker."""
    operations: tuple[str, ...] = ()
    """What a server offers to do with it: methods of its service."""
    tier_settings: tuple[str, ...] = ()
    """Settings of a tier that mean something to it; `max_batch`, where a request may have several texts."""
    kserve: str | None = None
    """Answers a KServe v2 request, see `pressoir.serving.http.kserve`."""
    pairs: bool = False
    """Whether some of its models take pairs of texts: a KServe v2 request may then have an input `text_pair`,
    which `kserve` is given among its options, as `text_pair`."""
    parameters: tuple[str, ...] = ()
    """Parameters of a KServe v2 request."""
    outputs: tuple[Tensor, ...] = (Tensor("text", "BYTES", ("rows",)),)
    """Tensors of a KServe v2 answer."""

    @property
    def pipeline_tag(self) -> str:
        """What Hugging Face calls it."""
        return self.hub_name or self.name

    @property
    def main_metric(self) -> Metric:
        """By which models are compared."""
        return self.metrics[0]

    def main_metric_of(self, found: Iterable[str]) -> Metric:
        """The first of the metrics that is among those found, else the first: what a model decides of a text
        has its own."""
        known = set(found)
        return next((metric for metric in self.metrics if metric.name in known), self.main_metric)

    def part(self, field: Part) -> Any:
        """What the dotted path of a field names, imported now.

        Raises:
            ExtensionError: the task has no such part, or it cannot be imported.
        """
        path: str | None = getattr(self, field)
        if path is None:
            raise ExtensionError(f"the task {self.name} declares no `{field}`")
        module, _, attribute = path.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ExtensionError(
                f"the task {self.name} declares {path!r} as its `{field}`, which cannot be imported: {error}"
            ) from error


def task(name: str) -> Task:
    """A task by its name.

    Raises:
        ExtensionError: nobody declares it, or what is declared is no task of that name.
    """
    declared = loader.load(GROUP, name)
    if not isinstance(declared, Task) or declared.name != name:
        raise ExtensionError(f"the entry {name!r} of {GROUP} is no Task of that name, but {declared!r:.100}")
    return declared


def tasks() -> list[Task]:
    """Every task, in the order in which lists show them; raises as `task`."""
    return sorted(map(task, loader.names(GROUP)), key=lambda declared: (declared.position, declared.name))


def names_of(kind: Kind) -> list[str]:
    """Names of the tasks of a kind, in the order in which lists show them."""
    return [declared.name for declared in tasks() if declared.kind == kind]


def tasks_of_architecture(name: str) -> list[Task]:
    """The tasks of a model class, such as `LlamaForCausalLM`: of all declared heads, the longest that fits.

    Raises:
        ExtensionError: none does.
    """
    fitting = [
        (len(head), declared) for declared in tasks() for head in declared.heads if name.endswith(head)
    ]
    if not fitting:
        raise ExtensionError(f"no task in {GROUP} is for {name}")
    longest = max(length for length, _ in fitting)
    return [declared for length, declared in fitting if length == longest]


def task_of_architecture(name: str) -> Task:
    """The first of `tasks_of_architecture`."""
    return tasks_of_architecture(name)[0]


def task_offering(operation: str) -> Task:
    """The first task with which a server offers an operation.

    Raises:
        ExtensionError: there is none.
    """
    for declared in tasks():
        if operation in declared.operations:
            return declared
    raise ExtensionError(f"no task in {GROUP} offers the operation {operation!r}")
