"""The sections of a recipe: one type a stage, each field with a default that works, units in the names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pressoir.config import Config, Fraction, NotNegative, Positive, PositiveReal, checked


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
    unlabelled: Path | None = None
    """UTF-8 text, a sentence a line, for `vocabulary` and `augment`; those of validation and test are left
    out."""
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
        return checked(self, problems)


class AugmentConfig(Config):
    """More text to learn from, labelled by the teacher: altered sentences, and those of `data.unlabelled`."""

    copies: Annotated[int, Field(ge=0)] = 4
    """Altered copies of every training sentence; 0 makes none."""
    spans: Annotated[int, Field(ge=0)] = 0
    """Parts of every training sentence, from 3 words to all but one, drawn at random; 0 takes none."""
    replace: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Part of a sentence's replaceable words (negations and function words stay) that is replaced."""
    method: Literal["auto", "masked_lm", "neighbours"] = "auto"
    """`masked_lm`: words the base model expects there; `neighbours`: near ones in embedding space; `auto`:
    the first where the base model has a masked-LM head."""
    candidates: Positive = 15
    """Most likely, or nearest, words among which one is drawn."""


class VocabularyConfig(Config):
    """Keep the word pieces that the training text uses, and those that any other text can be spelt with."""

    min_count: Positive = 1
    """Word pieces that occur less often in the training text go; above 1 that text is split differently."""
    positions: bool = True
    """Also cut the table of positions to `data.max_tokens`."""


class TextConfig(Config):
    """Running text for language models: what calibrates, and what perplexity is measured on."""

    calibration: Path | None = None
    """UTF-8 text for GPTQ and for choosing bits; null takes the embedded reviews' training split."""
    evaluation: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")], Path] = Field(default={})
    """Texts by name, read once, by the benchmark; empty takes the embedded reviews' test split."""
    window: Annotated[int, Field(ge=16, le=4096)] = 128
    """Tokens a window; perplexity is over windows that do not overlap."""
    calibration_windows: Positive = 64
    """Windows taken from the calibration text, evenly spread."""
    evaluation_windows: Positive | None = None
    """Windows taken from each evaluation text, from its start; null takes all."""


Finite = Annotated[float, Field(allow_inf_nan=False)]
Gradient = Finite | Annotated[tuple[Finite, ...], Field(min_length=1)]


class FilteredValue(Config):
    """A value for the tensors whose name has `filter` in it; the first of a list that fits is taken."""

    filter: str | None = None
    """Part of a tensor's name, such as `mlp` or `self_attn`; null fits every tensor."""
    value: Gradient
    """A number, or a list that is interpolated over the layers, from the first to the last."""


Setting = Gradient | Annotated[tuple[FilteredValue, ...], Field(min_length=1)]


class ModelParameters(Config):
    """What holds for one of the merged models."""

    weight: Setting | None = None
    """Its weight (linear, ties, dare), instead of its ratio."""
    density: Setting | None = None
    """Part of its changes that is kept (ties, dare), instead of the common `density`."""
    scale: Setting | None = None
    """Factor of its tensors (passthrough)."""


class SliceSource(Config):
    """Layers of one model."""

    model: Annotated[int, Field(ge=0)]
    """Position in `models`, from 0."""
    layer_range: tuple[Annotated[int, Field(ge=0)], Positive]
    """First layer, and the one after the last, from 0."""


class MergeSlice(Config):
    """Layers of the result, made of equally many layers of each source."""

    sources: Annotated[tuple[SliceSource, ...], Field(min_length=1)]
    """Where they come from: one source for passthrough, two for slerp, two or more for linear."""


class MergeConfig(Config):
    """Merge fine-tunes of one architecture by mergekit; what does not fit is found before any work."""

    method: Literal["linear", "slerp", "ties", "dare_ties", "dare_linear", "passthrough"] = "slerp"
    """How; `dare` on the command line is `dare_ties`."""
    models: Annotated[tuple[str, ...], Field(min_length=1)]
    """Models to merge: local folders, hub ids or catalogue ids."""
    base: str | None = None
    """The model that they were fine-tuned from (ties, dare); null takes the first model."""
    ratios: tuple[Finite, ...] | None = None
    """One weight a model; null weighs all alike. slerp's t is the second ratio over the sum."""
    t: Setting | None = None
    """slerp only, instead of ratios: 0 is the first model, 1 the second; a list is a gradient over layers."""
    density: Setting | None = None
    """ties and dare: part of each model's changes that is kept; null means 0.5."""
    parameters: tuple[ModelParameters, ...] | None = None
    """One entry a model: a weight or density of its own, as a number, a gradient or a list of filters."""
    slices: Annotated[tuple[MergeSlice, ...], Field(min_length=1)] | None = None
    """Layers of the result, in order, instead of all layers of all models; passthrough of many needs it."""
    normalize: bool | None = None
    """Divide by the sum of the weights; null: linear and ties do, dare does not."""
    rescale: bool | None = None
    """ties and dare: scale what is kept to the norm of what was; null: dare does, ties does not."""
    scaling: PositiveReal | None = None
    """ties and dare: factor of the merged changes (λ of the papers, `lambda` of mergekit); null means 1."""
    int8_mask: bool = False
    """ties and dare: hold masks in 8 bits, which saves memory."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """What the arithmetic is done in."""
    out_dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """What the result is stored in; null takes what the base is stored in."""
    tokenizer_source: Literal["union", "base"] | Annotated[int, Field(ge=0)] | None = None
    """Align embeddings by token where vocabularies differ: all tokens, the base's, or those of a model."""
    allow_crimes: bool = False
    """Go on where architectures, shapes or vocabularies differ; what does not fit stays the base's."""


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
        return checked(self, problems)


def _level(value: Any) -> Any:
    """`true` is int8, `false` is null."""
    return ("int8" if value else None) if isinstance(value, bool) else value


class LearnerConfig(TrainingConfig):
    """What learning from a teacher has in common."""

    temperature: PositiveReal = 2.0
    """Softens both distributions before they are compared."""
    alpha: Fraction = 0.9
    """Weight of the soft-label loss; the hard labels get 1 − alpha."""
    hidden_weight: NotNegative = 1.0
    """Weight (β) of the hidden-state loss; 0 turns it off."""
    relation_weight: NotNegative = 0.0
    """Weight (γ) of the attention-relation loss of the last layer (MiniLM v2); 0 turns it off."""
    relation_heads: Positive | None = None
    """Its relation heads; must divide both models' attention width. Null: the most of 16 units or more."""
    quantization_aware: Annotated[Literal["int8", "int8_q4"] | None, BeforeValidator(_level)] = None
    """Compute with int8 weights and activations while it trains; `int8_q4`: with 4-bit embeddings."""


class DistillConfig(LearnerConfig):
    """Train a smaller student on the teacher's outputs."""

    epochs: Annotated[int, Field(ge=0)] = 6
    """Passes over the training split."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """Peak learning rate of AdamW."""
    student: StudentConfig = StudentConfig()
    """What the student looks like."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Students that are trained, from the recipe's seed on; the best on validation is kept."""


class OutputsConfig(Config):
    """Which of the teacher's outputs are learnt from; follows from the sections of those that learn."""

    hidden: bool
    """Also the hidden states of the layers that the student's layers are matched with."""
    relations: bool = False
    """Also the queries, keys and values of the last layer, from which attention relations are computed."""
    student: StudentConfig | None
    """The student that will learn from them; None matches every layer of the teacher with itself."""


class PruneTarget(Config):
    """What pruning is to reach, as its figure at most. Exactly one of the three."""

    parameters: Positive | None = None
    """Weights of the model, such as `15000000`."""
    size_mb: PositiveReal | None = None
    """Size of the int8 ONNX graph with configuration and tokenizer, MB = 10^6 bytes."""
    latency_ms: PositiveReal | None = None
    """Measured on this machine: median time of one validation sentence in the int8 ONNX graph."""

    @model_validator(mode="after")
    def _one_figure(self) -> PruneTarget:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) + " are given" if given else "none is given"
            raise ValueError(f"a target is one of parameters, size_mb and latency_ms, but {found}")
        return self


class PruneConfig(LearnerConfig):
    """Remove weights, then recover under the teacher."""

    epochs: Annotated[int, Field(ge=0)] = 2
    """Recovery epochs, of all rounds together; 0 prunes only."""
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
    rounds: Annotated[int, Field(ge=1, le=20)] = 1
    """Times that importance is measured, a part removed and the rest recovered; most goes in the first."""
    target: PruneTarget | None = None
    """Structured only, instead of head_sparsity and ffn_sparsity: the least is removed that reaches it."""

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
        if self.granularity == "unstructured" and self.target is not None:
            problems.append("`target` given, but granularity is 'unstructured', which makes nothing smaller")
        if structured and self.target is not None:
            problems.append(f"`target` finds how much to remove; leave out {' and '.join(structured)}")
        for name in ("sparsity", "head_sparsity", "ffn_sparsity"):
            if getattr(self, name) == 1.0:
                problems.append(f"{name}: 1.0 would remove everything; give less")
        if self.rounds > self.epochs > 0:
            problems.append(
                f"{self.rounds} rounds of recovery need as many epochs, but `epochs` is {self.epochs}; give "
                "more epochs, fewer rounds, or 0 epochs (no recovery)"
            )
        return checked(self, problems)


def _percent(value: Any) -> Any:
    """`5%` is 0.05."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            return value
    return value


class QuantizeConfig(Config):
    """Store the weights in fewer bits."""

    scheme: Literal["int8", "q8", "q4", "q3", "q2"] = "int8"
    """`int8`: weights and dynamic activations, for encoders; `q8` to `q2`: weights only, for causal LMs."""
    exclude: tuple[str, ...] = ("classifier",)
    """Module names (or their beginnings, by dotted parts) that stay in float32."""
    max_accuracy_drop: Fraction | None = 0.01
    """int8: validation accuracy it may lose; above it the most sensitive layers stay float; null: any."""
    algorithm: Literal["rtn", "hqq", "gptq"] = "hqq"
    """Weights only: round to nearest, half-quadratic (no data), or GPTQ (calibration text)."""
    block_size: Literal[16, 32, 64, 128, 256] | None = None
    """Weights that share a scale (weights only, and 4-bit embeddings); null: 64, 128 for q2, 32 of int8's."""
    embeddings: Literal["int8", "q4", "float"] = "int8"
    """How the table of word pieces is stored, and, weights only, an output head."""
    act_order: bool = False
    """GPTQ only: quantise columns in the order of falling activation, most important first."""
    damping: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """GPTQ only: part of the Hessian's mean diagonal that is added to it."""
    target_bits: Annotated[float, Field(ge=2, le=8)] | None = None
    """Weights only: mean bits of a code; each layer's level is chosen by its measured sensitivity."""
    max_perplexity_increase: Annotated[
        Annotated[float, Field(gt=0, le=10)] | None, BeforeValidator(_percent)
    ] = None
    """Weights only: fewest bits that raise calibration perplexity by at most this (0.05, or `5%`)."""

    @model_validator(mode="after")
    def _one_family(self) -> QuantizeConfig:
        problems = []
        changed = {
            name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default
        }
        known = {"scheme", "exclude", "max_accuracy_drop", "embeddings", "block_size"}
        if self.scheme == "int8" and self.block_size is not None and self.embeddings != "q4":
            problems.append("block_size given, but int8 has blocks only where embeddings is 'q4'")
        if self.scheme == "int8" and (given := changed - known):
            problems.append(
                f"{', '.join(sorted(given))} given, but scheme is 'int8'; choose q8, q4, q3 or q2"
            )
        if self.scheme != "int8" and "max_accuracy_drop" in changed:
            problems.append(f"max_accuracy_drop given, but scheme is {self.scheme!r}; it belongs to int8")
        if self.target_bits is not None and self.max_perplexity_increase is not None:
            problems.append("give `target_bits` or `max_perplexity_increase`, not both")
        return checked(self, problems)


class ExportConfig(Config):
    """Write the model as an ONNX graph, fused for the CPU."""

    opset: Annotated[int, Field(ge=14, le=20)] = 17
    """ONNX operator-set version."""
    fuse: bool = True
    """Fuse attention, bias-GELU and skip-layer-norm into ONNX Runtime's own operators."""
    parity_samples: Annotated[int, Field(ge=256)] = 256
    """Real sentences on which the graph must agree with PyTorch; of language models always 8 windows."""
    max_logit_difference: PositiveReal = 1e-3
    """Gate for float32 graphs and language models: max |Δlogit| over those sentences or windows."""
    min_label_agreement: Fraction = 0.97
    """Gate for int8 graphs: part of those sentences that get the same label."""
    accuracy_level: Literal[0, 4] = 4
    """Language models: what MatMulNBits may round activations to: 0 nothing (float32), 4 int8 (fast)."""
    low_memory: bool = False
    """Language models: PyTorch dequantises a layer only while it computes it during the parity check."""


class ShardConfig(Config):
    """Split the weights into safetensors shards, in the order of execution.

    With neither field the number follows the size: 2–4 below 1 GB, 4–8 up to 5 GB, 8–16 above.
    """

    shards: Positive | None = None
    """Number of shards, as even as the tensors allow."""
    max_shard_size_mb: PositiveReal | None = None
    """Largest shard, MB = 10^6 bytes; a tensor above it gets a shard of its own."""

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
    prompt_tokens: Positive = 64
    """Language models: tokens of a timed prompt (prefill)."""
    new_tokens: Annotated[int, Field(ge=4)] = 64
    """Language models: tokens decoded after each timed prompt."""
    prompts: Annotated[int, Field(ge=2)] = 8
    """Language models: prompts timed for each model, in turn."""


class Criterion(Config):
    """When a new model version takes over the `champion` alias."""

    metric: Literal["speedup", "compression", "accuracy", "perplexity"] = "speedup"
    """What must be more, or, of perplexity (language models, as accuracy is for classifiers), less."""
    min_accuracy_delta: Annotated[float, Field(ge=-1, le=1)] = -0.03
    """A candidate that loses more accuracy than this against the first row is never promoted (fraction)."""
    max_perplexity_increase: PositiveReal = 0.1
    """Language models: a candidate whose perplexity rises by a larger part of the first row's is not."""


class RegistryConfig(Config):
    """Under which name the result is registered."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] | None = None
    """Id in the registry and in MLflow; by default the recipe's name."""
    alias: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")] = "champion"
    """MLflow alias that the best version carries."""
    criterion: Criterion = Criterion()
    """What best means."""
