"""The typed recipe: which stages run, and how.

One schema has four faces: the YAML file, the form in Prefect's UI, the command line
(`--set distill.epochs=3`) and the reference in the docs. Every field has a default that works; units are in
the names.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Hashable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pressoir.errors import RecipeError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]
PositiveReal = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Config(BaseModel):
    """A frozen value in which an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Section = TypeVar("Section", bound=Config)


def _checked(section: Section, problems: list[str]) -> Section:
    if problems:
        raise ValueError("; ".join(problems))
    return section


class DataConfig(Config):
    """Where sentences and labels come from. Exactly one of: the demo corpus, local files, a hub data set."""

    source: Literal["demo", "files", "hub"] = "demo"
    """`demo`: the embedded reviews; `files`: TSV, CSV, JSONL or Parquet paths below; `hub`: a data-set id."""
    train: Path | None = None
    """Training file (source `files`)."""
    validation: Path | None = None
    """Validation file; without one, `validation_samples` of train are held out."""
    test: Path | None = None
    """Test file, read once, by the benchmark."""
    header: bool = True
    """Whether TSV and CSV files start with a line of column names."""
    text_column: str | int = "text"
    """Column of the sentence: a name, or a position from 0 where there is no header."""
    label_column: str | int = "label"
    """Column of the label: a name, or a position from 0 where there is no header."""
    labels: tuple[str, ...] | None = None
    """Label names in class order; by default the values found, sorted."""
    hub_id: str | None = None
    """Data-set id or local folder of the same form (source `hub`), such as `stanfordnlp/sst2`."""
    hub_config: str | None = None
    """Data-set configuration, such as `sst2` of `nyu-mll/glue`."""
    hub_revision: str | None = None
    """Branch, tag or commit of the data set."""
    hub_splits: tuple[str, str | None, str] = ("train", None, "validation")
    """Names of the training, validation (null: hold out) and test splits. GLUE's test labels are hidden."""
    train_samples: Positive | None = None
    """Sub-sample of train, drawn by the recipe's seed after the hold-out; null takes all."""
    validation_samples: Positive = 500
    """Size of the held-out validation split, or sub-sample of a given one."""
    test_samples: Positive | None = None
    """Sub-sample of test; null takes all."""
    max_tokens: Annotated[int, Field(ge=8, le=512)] = 128
    """Sentences are cut after this many tokens."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        problems = []
        if self.source == "files" and (self.train is None or self.test is None):
            problems.append("source 'files' needs both `train` and `test` paths")
        if self.source == "hub" and self.hub_id is None:
            problems.append("source 'hub' needs `hub_id`")
        if self.source != "files" and (self.train or self.validation or self.test):
            problems.append(f"paths are given, but source is {self.source!r}; write `source: files`")
        hub = [name for name in ("hub_id", "hub_config", "hub_revision") if getattr(self, name) is not None]
        if self.source != "hub" and hub:
            problems.append(f"{', '.join(hub)} given, but source is {self.source!r}; write `source: hub`")
        if self.labels is not None and (len(self.labels) < 2 or len(set(self.labels)) < len(self.labels)):
            problems.append("`labels` must name at least two labels, each once")
        return _checked(self, problems)


class TrainingConfig(Config):
    """What every training loop has in common (AdamW, linear warm-up and decay)."""

    epochs: Annotated[int, Field(ge=0)] = 3
    """Passes over the training split."""
    batch_size: Positive = 32
    """Sentences a step, grouped by length."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 5e-5
    """Peak learning rate of AdamW."""
    weight_decay: NotNegative = 0.01
    """Decoupled weight decay (not on biases and norms)."""
    warmup_fraction: Fraction = 0.1
    """Part of the steps over which the learning rate rises."""
    early_stopping_patience: Positive | None = None
    """Stop after this many epochs without a better validation accuracy; null never stops early."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` trains under autocast: faster where the CPU or GPU has bf16 instructions."""
    checkpoint_every_steps: Positive | None = None
    """Save a resumable checkpoint every so many steps; null saves one an epoch."""


class TeacherConfig(TrainingConfig):
    """Fine-tune the base model into the teacher, or take a finished checkpoint."""

    checkpoint: str | None = None
    """A fine-tuned model (folder, hub id or package) to take as it is; nothing is trained."""


class StudentConfig(Config):
    """The student's architecture. Exactly one of the three; by default every second layer of the teacher."""

    layers: Positive | tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Teacher layers to keep: a count (spread evenly) or indices from 0, such as `[1, 3, 5]`."""
    model: str | None = None
    """A smaller checkpoint (folder, hub id or package), such as `distilbert-base-uncased`."""
    config: dict[str, int] | None = None
    """Fields of the teacher's config to shrink, such as `{hidden_size: 192, num_attention_heads: 6}`."""

    @model_validator(mode="after")
    def _one_form(self) -> StudentConfig:
        problems = []
        given = [name for name in ("layers", "model", "config") if getattr(self, name) is not None]
        if len(given) > 1:
            problems.append(f"a student has one origin, but {' and '.join(given)} are given; keep one")
        if isinstance(self.layers, tuple) and (not self.layers or len(set(self.layers)) != len(self.layers)):
            problems.append("`layers` must name at least one layer, each once")
        return _checked(self, problems)


class DistillConfig(TrainingConfig):
    """Train a smaller student on the teacher's outputs."""

    epochs: Annotated[int, Field(ge=0)] = 6
    """Passes over the training split."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """Peak learning rate of AdamW."""
    student: StudentConfig = StudentConfig()
    """What the student looks like."""
    temperature: PositiveReal = 2.0
    """Softens both distributions before they are compared."""
    alpha: Fraction = 0.9
    """Weight of the soft-label loss; the hard labels get 1 − alpha."""
    hidden_weight: NotNegative = 1.0
    """Weight (β) of the hidden-state loss; 0 turns it off."""


class PruneConfig(TrainingConfig):
    """Remove weights, then recover under the teacher."""

    epochs: Annotated[int, Field(ge=0)] = 2
    """Recovery epochs; 0 prunes only."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 5e-5
    """Peak learning rate of the recovery."""
    granularity: Literal["unstructured", "structured"] = "structured"
    """`unstructured` zeroes single weights (dense runtimes gain no speed); `structured` removes units."""
    sparsity: Fraction | None = None
    """Unstructured only: part of each weight matrix set to zero; null means 0.3."""
    head_sparsity: Fraction | None = None
    """Structured only: part of the attention heads to remove; null means 0.25."""
    ffn_sparsity: Fraction | None = None
    """Structured only: part of the feed-forward neurons to remove; null means 0.5."""
    importance: Literal["taylor", "activation"] = "taylor"
    """Structured only: first-order Taylor expansion of the loss, or mean absolute activation."""
    allocation: Literal["uniform", "global"] = "uniform"
    """Structured only: `uniform` takes the same part in every layer, `global` wherever it costs least."""
    calibration_samples: Positive = 512
    """Training sentences on which importance is measured."""
    temperature: PositiveReal = 2.0
    """As in distill, for the recovery."""
    alpha: Fraction = 0.9
    """As in distill, for the recovery."""
    hidden_weight: NotNegative = 1.0
    """As in distill, for the recovery."""

    @model_validator(mode="after")
    def _one_granularity(self) -> PruneConfig:
        problems = []
        structured = [name for name in ("head_sparsity", "ffn_sparsity") if getattr(self, name) is not None]
        if self.granularity == "unstructured" and structured:
            problems.append(
                f"{' and '.join(structured)} given, but granularity is 'unstructured'; use `sparsity`"
            )
        if self.granularity == "structured" and self.sparsity is not None:
            problems.append(
                "`sparsity` given, but granularity is 'structured'; use head_sparsity and ffn_sparsity"
            )
        for name in ("sparsity", "head_sparsity", "ffn_sparsity"):
            if getattr(self, name) == 1.0:
                problems.append(f"{name}: 1.0 would remove everything; give less")
        return _checked(self, problems)


class QuantizeConfig(Config):
    """Store the weights in fewer bits."""

    scheme: Literal["int8"] = "int8"
    """`int8`: weights symmetric per output channel, embeddings per row, activations dynamic per tensor."""
    exclude: tuple[str, ...] = ("classifier",)
    """Module names (or their beginnings, by dotted parts) that stay in float32."""
    max_accuracy_drop: Fraction | None = 0.01
    """Validation accuracy int8 may lose; above it the most sensitive layers go back to float32. Null: any."""


class ExportConfig(Config):
    """Write the model as an ONNX graph, fused for the CPU."""

    opset: Annotated[int, Field(ge=14, le=20)] = 17
    """ONNX operator-set version."""
    fuse: bool = True
    """Fuse attention, bias-GELU and skip-layer-norm into ONNX Runtime's own operators."""
    parity_samples: Annotated[int, Field(ge=256)] = 256
    """Real sentences on which the graph must agree with PyTorch."""
    max_logit_difference: PositiveReal = 1e-3
    """Gate for float32 graphs: max |Δlogit| over those sentences."""
    min_label_agreement: Fraction = 0.97
    """Gate for int8 graphs: part of those sentences that get the same label."""


class ShardConfig(Config):
    """Split the weights into safetensors shards that are the graph's own external data."""

    shards: Positive | None = None
    """Number of shards; null follows max_shard_size_mb."""
    max_shard_size_mb: PositiveReal | None = None
    """Largest shard, MB = 10^6 bytes; when neither is given: 2 shards."""

    @model_validator(mode="after")
    def _one_rule(self) -> ShardConfig:
        if self.shards is not None and self.max_shard_size_mb is not None:
            raise ValueError("give `shards` or `max_shard_size_mb`, not both")
        return self


class BenchmarkConfig(Config):
    """Measure every artifact of the run side by side."""

    warmup: Annotated[int, Field(ge=0)] = 20
    """Calls of each model that are not counted."""
    latency_samples: Annotated[int, Field(ge=10)] = 300
    """Test sentences timed at batch 1, each model in turn."""
    throughput_batch_size: Positive = 32
    """Batch size of the throughput measurement."""
    throughput_batches: Positive = 8
    """Batches timed for each model, in turn."""


class Criterion(Config):
    """When a new model version takes over the `champion` alias."""

    metric: Literal["speedup", "compression", "accuracy"] = "speedup"
    """Figure of the final row in which more is better."""
    min_accuracy_delta: Annotated[float, Field(ge=-1, le=1)] = -0.03
    """A candidate that loses more accuracy than this against the first row is never promoted (fraction)."""


class RegistryConfig(Config):
    """Under which name the result is registered."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] | None = None
    """Id in the registry and in MLflow; by default the recipe's name."""
    alias: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")] = "champion"
    """MLflow alias that the best version carries."""
    criterion: Criterion = Criterion()
    """What best means."""


class Recipe(Config):
    """A whole run of the compress flow. A stage set to null is left out; the order is fixed."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] = "demo"
    """Name of the run: MLflow experiment, registry id, output folder."""
    description: str = ""
    """One line for people."""
    task: Literal["text-classification"] = "text-classification"
    """What the model does."""
    model: str = "all-minilm-l6-v2"
    """The base model: a local folder, a catalogue id, `hub:org/name@revision`, or `package:module`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of every random choice."""
    threads: Positive | None = None
    """CPU threads; null takes the CPUs really available."""
    refresh: bool = False
    """Rebuild every stage even when the store has it."""
    data: DataConfig = DataConfig()
    """Sentences and labels."""
    teacher: TeacherConfig = TeacherConfig()
    """The model that everything is compared with."""
    distill: DistillConfig | None = DistillConfig()
    """Train a smaller student."""
    prune: PruneConfig | None = PruneConfig()
    """Remove heads and neurons, or zero weights."""
    quantize: QuantizeConfig | None = QuantizeConfig()
    """Store weights in int8."""
    export: ExportConfig = ExportConfig()
    """ONNX graph."""
    shard: ShardConfig | None = ShardConfig()
    """Safetensors shards."""
    benchmark: BenchmarkConfig = BenchmarkConfig()
    """Side-by-side measurement."""
    registry: RegistryConfig | None = RegistryConfig()
    """Registration of the result; null registers nothing."""

    @property
    def registry_id(self) -> str:
        """The id the result is registered under."""
        return (self.registry and self.registry.id) or self.name

    @classmethod
    def from_yaml(cls, path: Path | str, overrides: tuple[str, ...] = ()) -> Recipe:
        """Read a recipe file and apply `key.path=value` overrides (values are YAML).

        Relative paths of data files are looked up in the current directory, then in the recipe's folder.

        Raises:
            RecipeError: the file is missing or not YAML, or has wrong fields; all are listed at once.
        """
        path = Path(path)
        try:
            raw = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
        except OSError as error:
            raise RecipeError(
                f"recipe {path}: {error.strerror or error}; give the path of a YAML file"
            ) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {path} is not valid YAML: {error}") from error
        return cls.from_dict(raw if raw is not None else {}, overrides, source=str(path), folder=path.parent)

    @classmethod
    def from_dict(
        cls, raw: Any, overrides: tuple[str, ...] = (), *, source: str = "recipe", folder: Path | None = None
    ) -> Recipe:
        """Validate a plain mapping; see `from_yaml`."""
        if not isinstance(raw, dict):
            raise RecipeError(f"{source}: a recipe is a mapping of fields, not a {type(raw).__name__}")
        raw = _plain(raw, source)
        for override in overrides:
            _apply_override(raw, override)
        if folder is not None and isinstance(raw.get("data"), dict):
            for field in ("train", "validation", "test"):
                value = raw["data"].get(field)
                if isinstance(value, str) and not Path(value).exists() and (folder / value).exists():
                    raw["data"][field] = str(folder / value)
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            raise RecipeError(_all_errors(cls, error, source)) from None

    def to_yaml(self) -> str:
        """The whole recipe, defaults included, as YAML that `from_yaml` reads back to an equal value."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def load(value: Any) -> Any:
    """Take a recipe, a path to one, or a mapping; leave anything else to the validator."""
    if isinstance(value, Recipe):
        return value
    if isinstance(value, (str, Path)):
        return Recipe.from_yaml(value)
    if isinstance(value, dict):
        return Recipe.from_dict(value)
    return value


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a section or field that is written twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set[str]()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _plain(value: Any, source: str) -> Any:
    """A copy of `value` as JSON has it: YAML's dates become strings again."""
    try:
        return json.loads(json.dumps(value, default=str))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{source}: {error}") from error


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"--set {override!r}: write it as field=value, such as distill.epochs=3")
    node: dict[str, Any] = raw
    *parents, last = key.split(".")
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise RecipeError(f"--set {override!r}: {parent!r} is a value, not a section")
        node = child
    try:
        node[last] = _plain(yaml.load(text, _UniqueKeys), f"--set {override!r}")
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override!r}: the value is not valid YAML") from error


def _all_errors(model: type[BaseModel], error: ValidationError, source: str) -> str:
    found: dict[str, list[str]] = {}
    for problem in error.errors(include_url=False):
        path, siblings = _locate(model, problem["loc"])
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(problem["loc"][-1]), siblings, n=1)
            text = "unknown field" + (f"; did you mean `{near[0]}`?" if near else "")
        else:
            given = problem["input"]
            value = "" if isinstance(given, dict) else f" (got {given!r})"
            text = problem["msg"].removeprefix("Value error, ") + value
        found.setdefault(path, []).append(text)
    title = f"{source} has {len(found)} error{'s' if len(found) > 1 else ''}:"
    return "\n".join([title, *(f"  {path}: {'; or: '.join(texts)}" for path, texts in found.items())])


def _locate(model: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """The path of a field as the recipe's author would write it, and the names of the fields beside it.

    Where a field takes one of several types, pydantic reports an error for each and puts the type's name into
    the path; the path given here ends at the field.
    """
    path: list[str] = []
    section: type[BaseModel] | None = model
    for part in loc:
        path.append(str(part))
        field = section.model_fields.get(str(part)) if section else None
        if field is None:
            continue
        types = (
            get_args(field.annotation)
            if get_origin(field.annotation) in (Union, UnionType)
            else [field.annotation]
        )
        types = [type_ for type_ in types if type_ is not NoneType]
        if len(types) > 1:
            break
        section = types[0] if isinstance(types[0], type) and issubclass(types[0], BaseModel) else None
    return ".".join(path) or "(recipe)", list(section.model_fields) if section else []
