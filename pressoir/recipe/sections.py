"""The sections of a recipe: one type a stage, each field with a default that works, units in the names."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from pressoir.config import Config, Fraction, NotNegative, Positive, PositiveReal, checked
from pressoir.errors import ExtensionError
from pressoir.extensions import quantizer
from pressoir.extensions.declared_name import DeclaredName


def _is_encoding(name: str) -> bool:
    """Whether Python reads text files by that name."""
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=name)
    except LookupError:  # also of codecs that are not for text, such as base64
        return False
    return True


class DataConfig(Config):
    """Labelled sentences, from exactly one of: the demo corpus, local files, a Hugging Face data set."""

    source: Literal["demo", "files", "hub"] = "demo"
    """`demo`: the embedded reviews; `files`: the TSV, CSV, JSONL or Parquet files named below; `hub`: the
    data set `hub_id`."""
    train: Path | None = None
    """Training file (source `files`)."""
    validation: Path | None = None
    """Validation file; null holds out `validation_samples` sentences of the training file."""
    test: Path | None = None
    """Test file; used only by the benchmark."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Hold this fraction of the training split out as the test split, if there is no other."""
    unlabelled: Path | None = None
    """Text file with one sentence per line, for `vocabulary` and `augment`; sentences that also occur
    in the validation or test split are dropped."""
    header: bool = True
    """Whether TSV and CSV files start with a header line."""
    delimiter: Annotated[str, Field(pattern=r'^[^"\r\n]$')] | None = None
    """Character between the columns of TSV and CSV files; null means a tab, or a comma in `.csv` files."""
    quoting: Literal["none", "csv"] | None = None
    """Quotes in TSV and CSV files: `none` takes them as part of the text, one row per line; `csv` removes
    those around a field, which may then contain line breaks. Null means `csv` for `.csv` files, otherwise
    `none`."""
    encoding: str | None = None
    """Encoding of text files, such as `cp1252`; null means UTF-8, or UTF-16 or UTF-32 if a file begins like
    it."""
    on_bad_row: Literal["error", "drop"] = "error"
    """What to do with malformed rows, such as those without text or label: `error` lists all of them by line
    and stops, `drop` leaves them out."""
    text_column: str | int = "text"
    """Column of the sentence: a name, or a zero-based index if there is no header."""
    text_pair_column: str | int | None = None
    """Column of a second sentence, for a classifier of pairs (paraphrase, inference, reranking); null: there
    is one sentence per row."""
    label_column: str | int = "label"
    """Column of the label: a name, or a zero-based index if there is no header."""
    problem: Literal["single-label", "multi-label", "regression", "tags"] = "single-label"
    """What a text has: one of several labels, any number of labels, a score (a number), or words with a tag
    each (`tags`), which a task for them sets."""
    label_separator: Annotated[str, Field(min_length=1)] | None = None
    """Multi-label only: what separates the labels of a text in TSV and CSV files; null means a comma. JSONL
    and Parquet files and hub data sets have lists."""
    thresholds: Literal["global", "per-label"] = "global"
    """Multi-label only: choose one probability threshold for all labels on the validation split, or one per
    label, which needs some dozen validation sentences of every label."""
    labels: tuple[str, ...] | None = None
    """Label names in class order; null uses the order of the data set's own class names, otherwise the labels
    found, in numeric or alphabetic order."""
    hub_id: str | None = None
    """Data-set id, or a local folder with the same layout (source `hub`), such as `stanfordnlp/sst2`."""
    hub_config: str | None = None
    """Data-set configuration, such as `sst2` of `nyu-mll/glue`."""
    hub_revision: str | None = None
    """Branch, tag or commit of the data set."""
    hub_splits: tuple[str, str | None, str | None] = ("train", None, "validation")
    """Names of the training, validation and test splits; a null validation split is held out from training,
    and a null test split according to `test_fraction`. GLUE does not publish its test labels."""
    train_samples: Positive | None = None
    """Number of training sentences to sample, after the hold-out; null uses all."""
    validation_samples: Positive = 500
    """Size of the held-out validation split, or number of sentences to sample from a given one."""
    test_samples: Positive | None = None
    """Number of test sentences to sample; null uses all."""
    max_tokens: Annotated[int, Field(ge=8, le=512)] = 128
    """Maximum number of tokens per sentence, or per pair; longer ones are truncated, of a pair the longer
    sentence first. Words with tags are cut into several inputs instead."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        problems = []
        if self.source == "files" and self.train is None:
            problems.append("source 'files' needs a `train` path")
        test = {"files": self.test, "hub": self.hub_splits[2]}.get(self.source, self.source)
        if test is None and self.test_fraction is None:
            setting = "`test` path" if self.source == "files" else "test split in `hub_splits`"
            problems.append(f"source {self.source!r} needs a {setting}, or `test_fraction` to hold one out")
        if test is not None and self.test_fraction is not None:
            problems.append(
                f"specify either `test_fraction` or a test split, not both (there is {str(test)!r})"
            )
        if self.source == "hub" and self.hub_id is None:
            problems.append("source 'hub' needs `hub_id`")
        if self.source != "files" and (self.train or self.validation or self.test):
            problems.append(f"paths are specified, but source is {self.source!r}; set `source: files`")
        hub = [name for name in ("hub_id", "hub_config", "hub_revision") if getattr(self, name) is not None]
        if self.source != "hub" and hub:
            problems.append(f"{', '.join(hub)} specified, but source is {self.source!r}; set `source: hub`")
        if self.encoding is not None and not _is_encoding(self.encoding):
            problems.append(f"`encoding` {self.encoding!r} is unknown; use a name such as utf-8 or cp1252")
        if self.text_pair_column is not None:
            if self.source == "demo":
                problems.append("`text_pair_column` is specified, but the demo reviews are single sentences")
            if self.unlabelled is not None:
                problems.append("`unlabelled` holds single sentences; omit it, or `text_pair_column`")
            if self.text_pair_column in (self.text_column, self.label_column):
                problems.append("`text_pair_column` must be another column than the text and the label")
        if self.problem != "multi-label":
            several = {"label_separator": self.label_separator is not None}
            several["thresholds"] = self.thresholds != "global"
            problems += [
                f"`{name}` is for `problem: multi-label` only" for name, given in several.items() if given
            ]
        if self.problem == "regression" and self.labels is not None:
            problems.append("`labels` specified, but a regression has none; omit it")
        if self.problem == "tags":
            absent = {"unlabelled": self.unlabelled, "text_pair_column": self.text_pair_column}
            problems += [
                f"`{name}` is not supported for `problem: tags`; omit it"
                for name, value in absent.items()
                if value is not None
            ]
        if self.source == "demo" and self.problem != "single-label":
            problems.append("the embedded reviews have one label each; set `source: files` or `source: hub`")
        if self.labels is not None and (len(self.labels) < 2 or len(set(self.labels)) < len(self.labels)):
            problems.append("`labels` must contain at least two different labels")
        return checked(self, problems)


class AugmentConfig(Config):
    """Add training text labelled by the teacher: altered sentences, and the sentences of
    `data.unlabelled`."""

    copies: Annotated[int, Field(ge=0)] = 4
    """Number of altered copies of each training sentence."""
    spans: Annotated[int, Field(ge=0)] = 0
    """Number of random spans of each training sentence; a span has at least 3 words and is shorter than the
    sentence."""
    replace: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Fraction of a sentence's words to replace; negations and function words are kept and not counted."""
    method: Literal["auto", "masked_lm", "neighbours"] = "auto"
    """`masked_lm` replaces a word by a prediction of the base model, `neighbours` by a word nearby in
    embedding space; `auto` uses `masked_lm` if the base model has a masked-LM head, otherwise
    `neighbours`."""
    candidates: Positive = 15
    """Number of most likely (or nearest) words from which the replacement is sampled."""


class VocabularyConfig(Config):
    """Keep the tokens that the training text uses, and those needed to spell any other text."""

    min_count: Positive = 1
    """Remove tokens that occur less often than this in the training text. Values above 1 change how that text
    is tokenised."""
    positions: bool = True
    """Also truncate the position embeddings to `data.max_tokens`."""


class TextConfig(Config):
    """Running text for language models, for calibration and for measuring perplexity."""

    calibration: Path | None = None
    """UTF-8 text file for GPTQ and for choosing bit widths; null uses the training split of the embedded
    reviews."""
    evaluation: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")], Path] = Field(default={})
    """Evaluation text files by name, used only by the benchmark; if empty, the test split of the embedded
    reviews."""
    window: Annotated[int, Field(ge=16, le=4096)] = 128
    """Tokens per window; perplexity is computed over non-overlapping windows."""
    calibration_windows: Positive = 64
    """Number of windows taken from the calibration text, evenly spaced."""
    evaluation_windows: Positive | None = None
    """Number of windows from the start of each evaluation text; null uses all."""


Finite = Annotated[float, Field(allow_inf_nan=False)]
Gradient = Finite | Annotated[tuple[Finite, ...], Field(min_length=1)]


class FilteredValue(Config):
    """A value for tensors whose name contains `filter`; the first matching entry of a list applies."""

    filter: str | None = None
    """Substring of the tensor name, such as `mlp` or `self_attn`; null matches every tensor."""
    value: Gradient
    """A number, or a list that is interpolated across the layers from first to last."""


Setting = Gradient | Annotated[tuple[FilteredValue, ...], Field(min_length=1)]


class ModelParameters(Config):
    """Parameters of one of the merged models."""

    weight: Setting | None = None
    """Weight of the model (linear, ties, dare); replaces its entry in `ratios`."""
    density: Setting | None = None
    """Fraction of the model's changes to keep (ties, dare); overrides the common `density`."""
    scale: Setting | None = None
    """Factor by which the model's tensors are multiplied (passthrough)."""


class SliceSource(Config):
    """A range of layers of one model."""

    model: Annotated[int, Field(ge=0)]
    """Index of the model in `models`, from 0."""
    layer_range: tuple[Annotated[int, Field(ge=0)], Positive]
    """First layer (from 0) and end of the range; the end is exclusive."""


class MergeSlice(Config):
    """Consecutive layers of the result. All sources must have the same number of layers."""

    sources: Annotated[tuple[SliceSource, ...], Field(min_length=1)]
    """Source layers: one source for passthrough, two for slerp, two or more for linear."""


class MergeConfig(Config):
    """Merge fine-tuned models of one architecture with mergekit. Compatibility is checked before merging."""

    method: Literal["linear", "slerp", "ties", "dare_ties", "dare_linear", "passthrough"] = "slerp"
    """Merge method. The command line accepts `dare` as an alias of `dare_ties`."""
    models: Annotated[tuple[str, ...], Field(min_length=1)]
    """Models to merge: local folders, hub ids or catalogue ids."""
    base: str | None = None
    """Model that the others were fine-tuned from (ties, dare); null uses the first model."""
    ratios: tuple[Finite, ...] | None = None
    """One weight per model; null gives all models the same weight. For slerp, t = second ratio / sum."""
    t: Setting | None = None
    """slerp only, instead of `ratios`: 0 is the first model, 1 the second; a list is interpolated across the
    layers."""
    density: Setting | None = None
    """ties and dare: fraction of each model's changes to keep; null means 0.5."""
    parameters: tuple[ModelParameters, ...] | None = None
    """One entry per model, with its own weight, density or scale: a number, a list to interpolate, or a list
    of filters."""
    slices: Annotated[tuple[MergeSlice, ...], Field(min_length=1)] | None = None
    """Build the result from these slices instead of all layers; required for passthrough of several
    models."""
    normalize: bool | None = None
    """Divide by the sum of the weights; null means true for linear and ties, false for dare."""
    rescale: bool | None = None
    """ties and dare: rescale the remaining changes to their previous norm; null means true for dare, false
    for ties."""
    scaling: PositiveReal | None = None
    """ties and dare: factor applied to the merged changes (λ in the papers, `lambda` in mergekit); null means
    1."""
    int8_mask: bool = False
    """ties and dare: store masks as int8 to save memory."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Data type used for the computation."""
    out_dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Data type of the result; null uses that of the base model."""
    tokenizer_source: Literal["union", "base"] | Annotated[int, Field(ge=0)] | None = None
    """Tokenizer of the result if vocabularies differ: all tokens (`union`), the base's, or that of the model
    with this index. Embeddings are aligned by token."""
    allow_crimes: bool = False
    """Merge even if architectures, shapes or vocabularies differ; incompatible tensors are taken from the
    base."""


class TrainingConfig(Config):
    """Options shared by all training loops (AdamW, linear warm-up and decay)."""

    epochs: Annotated[int, Field(ge=0)] = 3
    """Passes over the training split."""
    batch_size: Positive = 32
    """Sentences per step, grouped by length."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 5e-5
    """Peak learning rate of AdamW."""
    weight_decay: NotNegative = 0.01
    """Decoupled weight decay; not applied to biases and normalisation layers."""
    warmup_fraction: Fraction = 0.1
    """Fraction of the steps used for learning-rate warm-up."""
    best_metric: Literal["auto", "accuracy", "macro_f1", "micro_f1", "pearson", "spearman", "span_f1"] = (
        "auto"
    )
    """Validation metric that selects the best epoch; `auto` means macro-averaged F1 if the most frequent
    label of the training split has more than twice as many sentences as the rarest, otherwise accuracy.
    Multi-label data use `micro_f1` (`auto`) or `macro_f1`, regression `pearson` (`auto`) or `spearman`,
    token classification `span_f1` (`auto`) or `macro_f1`, averaged over the types of spans."""
    class_weights: Literal["balanced"] | dict[str, PositiveReal] | None = None
    """Weights of the labels in the cross-entropy: by label, such as `{spam: 5}` (others have 1), or inversely
    proportional to their frequency (`balanced`); null weights all sentences equally."""
    early_stopping_patience: Positive | None = None
    """Stop after this many epochs without improvement in `best_metric`; null disables early stopping."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`bfloat16` trains with autocast, which is faster on CPUs and GPUs with bf16 instructions and several
    times slower on others; `auto` uses it if the CPU has them."""
    checkpoint_every_steps: Positive | None = None
    """Save a resumable checkpoint every this many steps; null saves one per epoch."""


class TeacherConfig(TrainingConfig):
    """Fine-tune the base model to be the teacher, or use an existing checkpoint."""

    checkpoint: str | None = None
    """A fine-tuned model (folder, hub id or package) to use as the teacher without training; its labels are
    matched with those of the data by name."""


class StudentConfig(Config):
    """Architecture of the student. Specify at most one of `layers`, `model` and `config`; by default every
    second layer of the teacher is kept."""

    layers: Positive | tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Teacher layers to keep: a count (evenly spaced) or zero-based indices, such as `[1, 3, 5]`."""
    model: str | None = None
    """A smaller pretrained model (folder, hub id or package), such as `distilbert-base-uncased`."""
    config: dict[str, int] | None = None
    """Fields of the teacher's config to override, such as `{hidden_size: 192, num_attention_heads: 6}`."""
    embedding_size: Positive | None = None
    """Width of the embeddings of a student made of a BERT's layers, which becomes an ELECTRA: narrower tables
    and a projection to the hidden size. Null keeps the teacher's embeddings."""

    @model_validator(mode="after")
    def _one_form(self) -> StudentConfig:
        problems = []
        given = [name for name in ("layers", "model", "config") if getattr(self, name) is not None]
        if len(given) > 1:
            problems.append(f"specify only one of layers, model and config, not {' and '.join(given)}")
        if self.embedding_size is not None and (self.model is not None or self.config is not None):
            problems.append("`embedding_size` can be combined with `layers` only")
        if isinstance(self.layers, tuple) and (not self.layers or len(set(self.layers)) != len(self.layers)):
            problems.append("`layers` must contain at least one layer and no duplicates")
        return checked(self, problems)


def _level(value: Any) -> Any:
    """`true` is int8, `false` is null."""
    return ("int8" if value else None) if isinstance(value, bool) else value


class LearnerConfig(TrainingConfig):
    """Options shared by distillation and by the recovery training of pruning."""

    temperature: PositiveReal = 2.0
    """Temperature of softmax (multi-label: sigmoid) for the logits of teacher and student; regression has
    none."""
    alpha: Fraction = 0.9
    """Weight of the soft-label loss; the hard-label loss has weight 1 − alpha."""
    hidden_weight: NotNegative = 1.0
    """Weight (β) of the hidden-state loss; 0 disables it."""
    relation_weight: NotNegative = 0.0
    """Weight (γ) of the attention-relation loss on the last layer (MiniLMv2); 0 disables it."""
    relation_heads: Positive | None = None
    """Number of relation heads; must divide the attention width of both models. Null uses the largest number
    with at least 16 units per head in the teacher."""
    quantization_aware: Annotated[Literal["int8", "int8_q4"] | None, BeforeValidator(_level)] = None
    """Quantisation-aware training: simulate int8 weights and activations; `int8_q4` also simulates 4-bit
    embeddings."""


class DistillConfig(LearnerConfig):
    """Train a smaller student on the outputs of the teacher."""

    epochs: Annotated[int, Field(ge=0)] = 6
    """Passes over the training split."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """Peak learning rate of AdamW."""
    student: StudentConfig = StudentConfig()
    """Architecture of the student."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Number of students to train, with consecutive seeds from the recipe's `seed`; the one with the best
    `best_metric` is kept."""


class OutputsConfig(Config):
    """Which of the teacher's outputs are learnt from; follows from the sections of those that learn."""

    hidden: bool
    """Also the hidden states of the layers that the student's layers are matched with."""
    relations: bool = False
    """Also the queries, keys and values of the last layer, from which attention relations are computed."""
    student: StudentConfig | None
    """The student that will learn from them; None matches every layer of the teacher with itself."""


class PruneTarget(Config):
    """Upper limit that the pruned model must meet. Specify exactly one field."""

    parameters: Positive | None = None
    """Number of parameters, such as `15000000`."""
    size_mb: PositiveReal | None = None
    """Size of the int8 ONNX model including configuration and tokenizer, MB = 10^6 bytes."""
    latency_ms: PositiveReal | None = None
    """Median latency of the int8 ONNX model for one validation sentence, measured on this machine."""

    @model_validator(mode="after")
    def _one_figure(self) -> PruneTarget:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) + " are given" if given else "none is specified"
            raise ValueError(f"specify exactly one of parameters, size_mb and latency_ms, but {found}")
        return self


class PruneConfig(LearnerConfig):
    """Remove weights, then recover accuracy by distillation from the teacher."""

    epochs: Annotated[int, Field(ge=0)] = 2
    """Total number of recovery epochs over all rounds; 0 prunes without recovery."""
    learning_rate: Annotated[float, Field(gt=0, lt=1)] = 5e-5
    """Peak learning rate of the recovery training."""
    granularity: Literal["unstructured", "structured"] = "structured"
    """`structured` removes attention heads and neurons; `unstructured` sets individual weights to zero, which
    does not speed up dense runtimes."""
    sparsity: Fraction | None = None
    """Unstructured only: fraction of each weight matrix to set to zero; null means 0.3."""
    head_sparsity: Fraction | None = None
    """Structured only: fraction of the attention heads to remove; null means 0.25."""
    ffn_sparsity: Fraction | None = None
    """Structured only: fraction of the feed-forward neurons to remove; null means 0.5."""
    importance: Literal["taylor", "activation"] = "taylor"
    """Structured only: importance score, either a first-order Taylor expansion of the loss or the mean
    absolute activation."""
    allocation: Literal["uniform", "global"] = "uniform"
    """Structured only: `uniform` removes the same fraction in every layer, `global` the least important units
    of all layers."""
    calibration_samples: Positive = 512
    """Number of training sentences used to compute importance scores."""
    rounds: Annotated[int, Field(ge=1, le=20)] = 1
    """Number of rounds of scoring, pruning and recovery; the first rounds remove the most."""
    target: PruneTarget | None = None
    """Structured only, instead of `head_sparsity` and `ffn_sparsity`: removes only as much as is needed to
    reach the target."""

    @model_validator(mode="after")
    def _one_granularity(self) -> PruneConfig:
        problems = []
        structured = [name for name in ("head_sparsity", "ffn_sparsity") if getattr(self, name) is not None]
        if self.granularity == "unstructured" and structured:
            problems.append(
                f"{' and '.join(structured)} specified, but granularity is 'unstructured'; use `sparsity`"
            )
        if self.granularity == "structured" and self.sparsity is not None:
            problems.append(
                "`sparsity` specified, but granularity is 'structured'; use head_sparsity and ffn_sparsity"
            )
        if self.granularity == "unstructured" and self.target is not None:
            problems.append(
                "`target` specified, but granularity is 'unstructured', which does not reduce the size"
            )
        if structured and self.target is not None:
            problems.append(f"`target` determines how much to remove; omit {' and '.join(structured)}")
        for name in ("sparsity", "head_sparsity", "ffn_sparsity"):
            if getattr(self, name) == 1.0:
                problems.append(f"{name}: 1.0 would remove everything; specify less")
        if self.rounds > self.epochs > 0:
            problems.append(
                f"{self.rounds} rounds need at least as many recovery epochs, but `epochs` is "
                f"{self.epochs}; use more epochs, fewer rounds, or 0 epochs (no recovery)"
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


_ALGORITHM_OPTIONS = frozenset({"act_order", "damping"})
"""Fields of `QuantizeConfig` that only the algorithms whose declaration lists them have."""


class QuantizeConfig(Config):
    """Quantise the weights to fewer bits."""

    scheme: Literal["int8", "q8", "q4", "q3", "q2"] = "int8"
    """`int8` quantises weights and (dynamically) activations of encoders; `q8` to `q2` quantise only the
    weights of causal LMs."""
    exclude: tuple[str, ...] = ("classifier",)
    """Names of modules to keep in float32; a name also matches its submodules."""
    max_accuracy_drop: Fraction | None = 0.01
    """int8 only: maximum drop in validation accuracy (multi-label: micro-averaged F1; regression: Pearson
    correlation); the most sensitive layers are kept in float32 until it is met. Null disables the check."""
    algorithm: Annotated[str, DeclaredName("pressoir.quantizers")] = "hqq"
    """q8 to q2 only: round to nearest (`rtn`), half-quadratic quantisation (`hqq`, needs no data), GPTQ
    (needs calibration text), or an algorithm that an installed package adds."""
    block_size: Literal[16, 32, 64, 128, 256] | None = None
    """Number of weights that share a scale, for q8 to q2 and for 4-bit embeddings. Null means 64, 128 for q2,
    or 32 for the 4-bit embeddings of int8 models."""
    embeddings: Literal["int8", "q4", "float"] = "int8"
    """Format of the token embeddings and, for q8 to q2, of the output head."""
    act_order: bool = False
    """GPTQ only: quantise columns in order of decreasing activation size."""
    damping: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """GPTQ only: damping added to the diagonal of the Hessian, as a fraction of its mean."""
    target_bits: Annotated[float, Field(ge=2, le=8)] | None = None
    """q8 to q2 only: average bits per weight, scales not counted; the bit width of each layer is chosen by
    its measured sensitivity."""
    max_perplexity_increase: Annotated[
        Annotated[float, Field(gt=0, le=10)] | None, BeforeValidator(_percent)
    ] = None
    """q8 to q2 only: use the lowest bit widths that increase calibration perplexity by at most this fraction
    (0.05 or `5%`)."""

    @model_validator(mode="after")
    def _one_family(self) -> QuantizeConfig:
        problems = []
        changed = {
            name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default
        }
        known = {"scheme", "exclude", "max_accuracy_drop", "embeddings", "block_size"}
        if self.scheme == "int8" and self.block_size is not None and self.embeddings != "q4":
            problems.append("block_size specified, but int8 uses blocks only if embeddings is 'q4'")
        if self.scheme == "int8" and (given := changed - known):
            problems.append(
                f"{', '.join(sorted(given))} specified, but scheme is 'int8'; choose q8, q4, q3 or q2"
            )
        if self.scheme != "int8" and "max_accuracy_drop" in changed:
            problems.append(
                f"max_accuracy_drop specified, but scheme is {self.scheme!r}; it is for int8 only"
            )
        if self.target_bits is not None and self.max_perplexity_increase is not None:
            problems.append("specify either `target_bits` or `max_perplexity_increase`, not both")
        if self.scheme != "int8" and (given := changed & _ALGORITHM_OPTIONS):
            problems += self._not_of_the_algorithm(given)
        return checked(self, problems)

    def _not_of_the_algorithm(self, given: set[str]) -> list[str]:
        try:
            foreign = given.difference(quantizer.find(self.algorithm).options)
        except ExtensionError as error:
            return [str(error)]
        names = ", ".join(sorted(foreign))
        advice = "remove it or choose an algorithm that does"
        return (
            [f"{names} specified, but algorithm {self.algorithm!r} does not use it; {advice}"]
            if names
            else []
        )


class ExportConfig(Config):
    """Export the model to ONNX, optimised for CPUs."""

    opset: Annotated[int, Field(ge=14, le=20)] = 17
    """ONNX opset version."""
    fuse: bool = True
    """Fuse attention, bias + GELU and skip + layer normalisation into ONNX Runtime operators."""
    parity_samples: Annotated[int, Field(ge=256)] = 256
    """Number of sentences on which the graph is compared with PyTorch; language models always use 8
    windows."""
    max_logit_difference: PositiveReal = 1e-3
    """float32 graphs and language models: maximum absolute difference of logits; the export fails above
    it."""
    min_label_agreement: Fraction = 0.97
    """int8 graphs: minimum fraction of sentences with the same predicted label or set of labels (regression:
    R² of the scores); the export fails below it."""
    accuracy_level: Literal[0, 4] = 4
    """Language models: precision of activations in MatMulNBits; 0 is float32, 4 is int8 (faster)."""
    low_memory: bool = False
    """Language models: dequantise one layer at a time in the parity check, which saves memory."""


class ShardConfig(Config):
    """Split the weights into safetensors shards, in order of execution.

    If neither field is specified, the number depends on the size: 2–4 shards below 1 GB, 4–8 up to 5 GB, 8–16
    above.
    """

    shards: Positive | None = None
    """Number of shards; their sizes are as even as the tensors allow."""
    max_shard_size_mb: PositiveReal | None = None
    """Maximum size of a shard, MB = 10^6 bytes; a larger tensor gets its own shard."""

    @model_validator(mode="after")
    def _one_rule(self) -> ShardConfig:
        if self.shards is not None and self.max_shard_size_mb is not None:
            raise ValueError("specify either `shards` or `max_shard_size_mb`, not both")
        return self


class BenchmarkConfig(Config):
    """Measure all models of the run side by side."""

    warmup: Annotated[int, Field(ge=0)] = 20
    """Number of warm-up calls of each model, not timed."""
    latency_samples: Annotated[int, Field(ge=10)] = 300
    """Number of test sentences timed at batch size 1; the models take turns."""
    throughput_batch_size: Positive = 32
    """Batch size of the throughput measurement."""
    throughput_batches: Positive = 8
    """Number of batches timed per model; the models take turns."""
    prompt_tokens: Positive = 64
    """Language models: number of tokens in a timed prompt (prefill)."""
    new_tokens: Annotated[int, Field(ge=4)] = 64
    """Language models: number of tokens generated after each timed prompt."""
    prompts: Annotated[int, Field(ge=2)] = 8
    """Language models: number of prompts timed per model; the models take turns."""


class Criterion(Config):
    """When a new model version receives the alias."""

    metric: Literal["speedup", "compression", "accuracy", "micro_f1", "pearson", "span_f1", "perplexity"] = (
        "speedup"
    )
    """Metric to improve; higher is better, except for perplexity. Use accuracy for single-label classifiers
    only, micro_f1 for multi-label ones, pearson for regression, span_f1 for token classification, and
    perplexity for language models."""
    min_accuracy_delta: Annotated[float, Field(ge=-1, le=1)] = -0.03
    """Classifiers: minimum change of accuracy (multi-label: micro-averaged F1; regression: Pearson
    correlation; token classification: F1 of spans) relative to the reference; candidates below it are
    never promoted."""
    max_perplexity_increase: PositiveReal = 0.1
    """Language models: maximum relative increase of perplexity over the reference; candidates above it are
    never promoted."""


class RegistryConfig(Config):
    """How the result is registered."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")] | None = None
    """Id in the registry and in MLflow; null uses the name of the recipe."""
    alias: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")] = "champion"
    """MLflow alias of the best version."""
    criterion: Criterion = Criterion()
    """When a new version is better."""
