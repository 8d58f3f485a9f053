"""The typed recipe: which stages run, and how.

One schema has four faces: the YAML file, the form in Prefect's UI, the command line (`--set distill.epochs=3`) and the
reference in the docs. Every field has a default that works; units are in the names.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pressoir.errors import RecipeError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]


class Config(BaseModel):
    """A frozen value in which an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataConfig(Config):
    """Where the sentences and their labels come from. Exactly one of: the demo corpus, local files, a hub data set."""

    source: Literal["demo", "files", "hub"] = "demo"
    """`demo`: the embedded corpus of reviews; `files`: TSV, CSV, JSONL or Parquet paths below; `hub`: a data-set id."""
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
    """The hub's names of the training, validation (null: hold out) and test splits. GLUE's test labels are hidden."""
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
        if self.source == "files" and (self.train is None or self.test is None):
            raise ValueError("source 'files' needs both `train` and `test` paths")
        if self.source == "hub" and self.hub_id is None:
            raise ValueError("source 'hub' needs `hub_id`")
        if self.source != "files" and (self.train or self.validation or self.test):
            raise ValueError(f"paths are given, but source is {self.source!r}; write `source: files`")
        if self.source != "hub" and self.hub_id is not None:
            raise ValueError(f"hub_id is given, but source is {self.source!r}; write `source: hub`")
        return self


class TrainingConfig(Config):
    """What every training loop has in common (AdamW, linear warm-up and decay)."""

    epochs: Annotated[int, Field(ge=0)] = 3
    """Passes over the training split."""
    batch_size: Positive = 32
    """Sentences a step, grouped by length."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 5e-5
    """Peak learning rate of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
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
    """Fields of the teacher's configuration to shrink, such as `{hidden_size: 192, num_attention_heads: 6}`."""

    @model_validator(mode="after")
    def _one_form(self) -> StudentConfig:
        given = [name for name in ("layers", "model", "config") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"a student has one origin, but {' and '.join(given)} are all given; keep one")
        if isinstance(self.layers, tuple) and (not self.layers or len(set(self.layers)) != len(self.layers)):
            raise ValueError("layers must name at least one layer, each once")
        return self


class DistillConfig(TrainingConfig):
    """Train a smaller student on the teacher's outputs."""

    epochs: Annotated[int, Field(ge=0)] = 6
    """Passes over the training split."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """Peak learning rate of AdamW."""
    student: StudentConfig = StudentConfig()
    """What the student looks like."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Softens both distributions before they are compared."""
    alpha: Fraction = 0.9
    """Weight of the soft-label loss; the hard labels get 1 − alpha."""
    hidden_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight (β) of the hidden-state loss; 0 turns it off."""


class PruneConfig(TrainingConfig):
    """Remove weights, then recover under the teacher."""

    epochs: Annotated[int, Field(ge=0)] = 2
    """Recovery epochs; 0 prunes only."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 5e-5
    """Peak learning rate of the recovery."""
    granularity: Literal["unstructured", "structured"] = "structured"
    """`unstructured` zeroes single weights (no gain of speed on dense runtimes); `structured` removes whole units."""
    sparsity: Fraction | None = None
    """Unstructured only: part of each weight matrix set to zero; null means 0.3."""
    head_sparsity: Fraction | None = None
    """Structured only: part of the attention heads to remove; null means 0.25."""
    ffn_sparsity: Fraction | None = None
    """Structured only: part of the feed-forward neurons to remove; null means 0.5."""
    importance: Literal["taylor", "activation"] = "taylor"
    """Structured only: first-order Taylor expansion of the loss, or mean absolute activation."""
    allocation: Literal["uniform", "global"] = "uniform"
    """Structured only: the same part in every layer (plain `from_pretrained` reloads it), or wherever it costs least."""
    calibration_samples: Positive = 512
    """Training sentences on which importance is measured."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """As in distill, for the recovery."""
    alpha: Fraction = 0.9
    """As in distill, for the recovery."""
    hidden_weight: Annotated[float, Field(ge=0)] = 1.0
    """As in distill, for the recovery."""

    @model_validator(mode="after")
    def _one_granularity(self) -> PruneConfig:
        structured = [name for name in ("head_sparsity", "ffn_sparsity") if getattr(self, name) is not None]
        if self.granularity == "unstructured" and structured:
            raise ValueError(f"{' and '.join(structured)} belong to granularity 'structured'; use `sparsity`")
        if self.granularity == "structured" and self.sparsity is not None:
            raise ValueError("`sparsity` belongs to granularity 'unstructured'; use head_sparsity and ffn_sparsity")
        for name in ("sparsity", "head_sparsity", "ffn_sparsity"):
            if getattr(self, name) == 1.0:
                raise ValueError(f"{name}: 1.0 would remove everything; give less")
        return self


class QuantizeConfig(Config):
    """Store the weights in fewer bits."""

    scheme: Literal["int8"] = "int8"
    """`int8`: weights symmetric per output channel, embeddings per row, activations dynamic per tensor."""
    exclude: tuple[str, ...] = ("classifier",)
    """Module names (or their beginnings, by dotted parts) that stay in float32."""
    max_accuracy_drop: Fraction | None = 0.01
    """Validation accuracy that int8 may lose; above it the most sensitive layers go back to float32. Null: no limit."""


class ExportConfig(Config):
    """Write the model as an ONNX graph, fused for the CPU."""

    opset: Annotated[int, Field(ge=14, le=20)] = 17
    """ONNX operator-set version."""
    fuse: bool = True
    """Fuse attention, bias-GELU and skip-layer-norm into ONNX Runtime's own operators."""
    parity_samples: Annotated[int, Field(ge=256)] = 256
    """Real sentences on which the graph must agree with PyTorch."""
    max_logit_difference: Annotated[float, Field(gt=0)] = 1e-3
    """Gate for float32 graphs: max |Δlogit| over those sentences."""
    min_label_agreement: Fraction = 0.97
    """Gate for int8 graphs: part of those sentences that get the same label."""


class ShardConfig(Config):
    """Split the weights into safetensors shards that are the graph's own external data."""

    shards: Positive | None = None
    """Number of shards; null follows max_shard_size_mb."""
    max_shard_size_mb: Annotated[float, Field(gt=0)] | None = None
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
    """The base model: a local folder, an id of the catalogue, `hub:org/name@revision`, or `package:module`."""
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

        Relative paths of data files are taken from the current directory first, then from the recipe's folder.

        Raises:
            RecipeError: the file is missing or not YAML, or holds any wrong field; all of them are listed at once.
        """
        path = Path(path)
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RecipeError(f"recipe {path}: {error.strerror or error}; give the path of a YAML file") from error
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
        raw = json.loads(json.dumps(raw, default=str))
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
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override!r}: the value is not valid YAML") from error


def _all_errors(model: type[BaseModel], error: ValidationError, source: str) -> str:
    problems = error.errors(include_url=False)
    lines = [f"{source} has {len(problems)} error{'s' if len(problems) > 1 else ''}:"]
    for problem in problems:
        path = ".".join(str(part) for part in problem["loc"]) or "(recipe)"
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(problem["loc"][-1]), _field_names(model, problem["loc"][:-1]), n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            lines.append(f"  {path}: unknown field{hint}")
        else:
            given = problem["input"]
            value = "" if isinstance(given, dict) else f" (got {given!r})"
            lines.append(f"  {path}: {problem['msg'].removeprefix('Value error, ')}{value}")
    return "\n".join(lines)


def _field_names(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Names of the fields at `path`, for suggestions; empty where the path leaves the types."""
    for part in path:
        field = model.model_fields.get(str(part))
        candidates = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)
