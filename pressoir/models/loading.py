"""Load and save transformers models and tokenizers safely.

Nobody else calls `from_pretrained` or `save_pretrained`.

Three kinds of folder come back as one kind of module: a plain checkpoint; one whose layers have different
feed-forward widths (`intermediate_sizes` in its config, which plain `from_pretrained` cannot build); and a
quantised one (`quantization.json`), whose codes are expanded to float32 on the way.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForCTC,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_utils import no_init_weights
from transformers.utils import logging as transformers_logging

from pressoir.errors import PressoirError, SourceError
from pressoir.extensions import architecture
from pressoir.formats.folder import QUANTIZATION, has_token_head, is_token_classifier, read_json
from pressoir.formats.prefix_space import lacks_prefix_space, with_prefix_space
from pressoir.formats.problems import THRESHOLDS
from pressoir.formats.tokenizer_limit import most_tokens
from pressoir.models.gemma3n import without_vision
from pressoir.models.layouts import architecture_of, encoder_layers, resize_ffn
from pressoir.system.reader import shown

MOST_LAYERS, MOST_LABELS = 1_000, 1_000_000
_COUNT = re.compile(r".*(layers?|blocks|depth)|num_labels")


def load_classifier(
    folder: Path, labels: Sequence[str] | None = None, eager: bool = False, tokens: bool = False
) -> PreTrainedModel:
    """Load a classifier of texts, or of tokens, in float32, in evaluation mode.

    With `labels` the model gets a new classification head for them, whatever head it has; with `tokens` one
    that classifies each token.
    Attention is scaled-dot-product (`sdpa`) where the architecture has it; `eager` asks for matrix products.

    Raises:
        SourceError: the folder does not hold a model that transformers knows, or lacks some of its weights.
    """
    _register(folder)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with _loading(folder, "a text classifier"):
        config = AutoConfig.from_pretrained(folder, **options)
        if eager:
            config._attn_implementation = "eager"
        if labels is not None:
            rename(config, labels)
            config.problem_type = None  # of the head that goes
            vars(config).pop(THRESHOLDS, None)
        if (folder / QUANTIZATION).exists() or getattr(config, "intermediate_sizes", None):
            model: PreTrainedModel = _load_special(folder, config)
        else:
            token_head = tokens if labels is not None else has_token_head(config.to_dict())
            model, info = _classifier_class(token_head).from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=labels is not None,
                output_loading_info=True,
                **options,
            )
            _check_initialised(model, info, folder, new_head=labels is not None)
            if labels is not None:
                _forget_head(model, info)
                model.config.architectures = [type(model).__name__]
    model.eval()
    return model


def load_causal_lm(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a causal language model in evaluation mode, without ever holding its weights twice.

    The architecture is built on the meta device; weights are read one by one. Packed weights are dequantised
    one layer at a time.

    Raises:
        SourceError: the folder does not hold a causal LM that transformers knows, or lacks some weights.
        QuantizationError: its packed weights are damaged.
    """
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with _loading(folder, "a causal language model"):
        model: PreTrainedModel
        if (folder / QUANTIZATION).exists():
            model = _load_packed(folder, AutoConfig.from_pretrained(folder, **options), dtype)
        else:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                use_safetensors=True,
                dtype=dtype,
                low_cpu_mem_usage=True,
                output_loading_info=True,
                **options,
            )
            model, info = loaded
            mismatched = (key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])
            if random := {*info["missing_keys"], *mismatched}:
                raise SourceError(
                    f"{folder} is missing weights of a causal LM ({', '.join(sorted(random)[:5])}); "
                    "config.json does not match the weights"
                )
    model.eval()
    return model


def load_encoder_decoder(folder: Path) -> PreTrainedModel:
    """Load a translation model or an encoder-decoder for speech (Whisper) in float32, in evaluation mode.

    Raises:
        SourceError: the folder does not hold one that transformers knows, or lacks some of its weights.
    """
    speech = load_config(folder).model_type in _SPEECH_ENCODER_DECODERS
    auto = AutoModelForSpeechSeq2Seq if speech else AutoModelForSeq2SeqLM
    return _load_whole(auto, folder, "an encoder-decoder")


def load_feature_extractor(folder: Path) -> Callable[[Any], dict[str, Any]]:
    """What transformers makes of mono samples at the model's rate: arrays (1, …) by the model's input names.

    Raises:
        SourceError: the folder has none.
    """
    with _loading(folder, "a feature extractor"):
        extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)

    def extract(samples: Any) -> dict[str, Any]:
        found = extractor(
            [samples],  # a batch: some do not take an array for one
            sampling_rate=extractor.sampling_rate,
            return_tensors="np",
            return_attention_mask=True,
        )
        return dict(found)

    return extract


def load_text_to_text(folder: Path) -> PreTrainedModel:
    """Load the text half of a SeamlessM4T; raises as `load_encoder_decoder`."""
    return _load_whole(AutoModelForSeq2SeqLM, folder, "an encoder-decoder for text")


def load_gemma3n(folder: Path) -> PreTrainedModel:
    """Load Gemma 3n for text and sound in float32, without the tower that sees, which needs timm.

    Raises:
        SourceError: the folder does not hold one, or lacks some of its weights.
    """
    from transformers import Gemma3nForConditionalGeneration  # a large module

    with _loading(folder, "a Gemma 3n"):
        config = without_vision(load_config(folder))
    return _load_whole(Gemma3nForConditionalGeneration, folder, "a Gemma 3n", config=config)


def load_masked_lm(folder: Path) -> PreTrainedModel:
    """Load a masked language model in float32, in evaluation mode.

    Raises:
        SourceError: the folder does not hold one that transformers knows, or lacks some of its weights.
    """
    return _load_whole(AutoModelForMaskedLM, folder, "a masked language model")


def load_ctc(folder: Path) -> PreTrainedModel:
    """Load a speech model with a CTC head (wav2vec2, HuBERT, …) in float32, in evaluation mode.

    Raises:
        SourceError: the folder does not hold one that transformers knows, or lacks some of its weights.
    """
    return _load_whole(AutoModelForCTC, folder, "a CTC speech model")


def load_encoder(folder: Path) -> PreTrainedModel:
    """Load an encoder without a head in float32, in evaluation mode; for its last hidden states.

    Weights of a head are left out, and a pooler that the checkpoint lacks is random: nothing here reads it.

    Raises:
        SourceError: the folder does not hold one that transformers knows, or lacks some of its weights.
    """
    return _load_whole(AutoModel, folder, "an encoder", optional="pooler.")


_SPEECH_ENCODER_DECODERS = ("whisper", "speech_to_text", "moonshine", "seamless_m4t", "seamless_m4t_v2")


@contextmanager
def _loading(folder: Path, what: str) -> Iterator[None]:
    """Load without transformers' warnings; what it raises is a SourceError.

    It checks no type in `config.json`: whatever it, or torch, does with a value fails in its own way.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    except (PressoirError, MemoryError):
        raise
    except Exception as error:
        raise SourceError(f"{folder} cannot be loaded as {what}: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _load_whole(
    auto: Any, folder: Path, what: str, optional: str | None = None, **options: Any
) -> PreTrainedModel:
    """Load by one of transformers' auto classes; weights whose names begin with `optional` may be missing."""
    _register(folder)
    with _loading(folder, what):
        model, info = auto.from_pretrained(
            folder,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
            **options,
        )
    mismatched = (key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])
    random = {*info["missing_keys"], *mismatched}
    if random := {name for name in random if not (optional and name.startswith(optional))}:
        raise SourceError(
            f"{folder} is missing weights of {what} ({', '.join(sorted(random)[:5])}); config.json does "
            "not match the weights"
        )
    loaded: PreTrainedModel = model.eval()
    return loaded


def empty_causal_lm(config: Any) -> PreTrainedModel:
    """The architecture of a causal LM without memory for its weights (on the meta device)."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.eval()
    return model


def _load_packed(folder: Path, config: Any, dtype: torch.dtype) -> PreTrainedModel:
    from pressoir.formats.packed_checkpoint import dequantized_tensors

    with no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    state = model.state_dict()
    missing = {name for name in state if name not in _tied(model)}
    for name, tensor in dequantized_tensors(folder):
        if name not in state or state[name].shape != tensor.shape:
            raise SourceError(f"{folder}: weights do not match the config: {name} {tuple(tensor.shape)}")
        state[name].copy_(tensor)
        missing.discard(name)
    model.tie_weights()
    if missing:
        raise SourceError(f"{folder} is missing weights of a causal LM ({', '.join(sorted(missing)[:5])})")
    return model


def _register(folder: Path) -> None:
    """Make transformers know the folder's model type, where another package brings its classes.

    Raises:
        SourceError: `config.json` is broken, or declares more layers or labels than transformers can make
            without filling the memory: it makes them before it looks at the weights.
    """
    path = folder / "config.json"
    if not path.exists():  # a tokenizer needs none, and what does says so
        return
    config = read_json(path)
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key, value in section.items():
            most = MOST_LABELS if key == "num_labels" else MOST_LAYERS
            if _COUNT.fullmatch(key) and isinstance(value, int | float) and value > most:
                raise SourceError(
                    f"{path}: {key} is {shown(value)}, and {most} are supported at most; "
                    "download or create the model again"
                )
    architecture.register(config.get("model_type"))


def _tied(model: PreTrainedModel) -> set[str]:
    """Names of weights that are another's: they are not in the file."""
    return set(model._tied_weights_keys or ()) if model.config.tie_word_embeddings else set()


def _check_initialised(model: PreTrainedModel, info: dict[str, Any], folder: Path, new_head: bool) -> None:
    """Refuse random weights where trained ones are expected; transformers would only warn."""
    mismatched = (key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])
    random = {*info["missing_keys"], *mismatched}
    if new_head:  # a pooler belongs to the head: masked-language models come without one
        encoder = f"{model.base_model_prefix}."
        random = {name for name in random if name.startswith(encoder) and ".pooler." not in name}
    if random:
        hint = "config.json does not match the weights" if new_head else "fine-tune it first"
        raise SourceError(
            f"{folder} is missing weights of a text classifier ({', '.join(sorted(random)[:5])}); {hint}"
        )


def _forget_head(model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Make the head random, where it has weights of the checkpoint; what was missing is random already."""
    mismatched = (key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])
    encoder = f"{model.base_model_prefix}."
    head = {name for name in model.state_dict() if not name.startswith(encoder)}
    if head <= {*info["missing_keys"], *mismatched}:
        return
    for name, module in model.named_children():
        if name != model.base_model_prefix:
            module.apply(model._init_weights)


def rename(config: Any, labels: Sequence[str]) -> None:
    """Make `labels` the names of the classes, in this order, in a transformers configuration."""
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}


def check_classifier_type(model_type: str) -> None:
    """Refuse a type of model that no classifier can be made of.

    Raises:
        SourceError: transformers has no classifier of this type.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    if model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise SourceError(
            f"transformers has no text classifier of type {model_type!r}; use an encoder that it has one of"
        )


def _classifier_class(tokens: bool) -> Any:
    return AutoModelForTokenClassification if tokens else AutoModelForSequenceClassification


def new_classifier(config: Any) -> PreTrainedModel:
    """A randomly initialised classifier of `config`'s architecture, of tokens where that has such a head."""
    model: PreTrainedModel = _classifier_class(has_token_head(config.to_dict())).from_config(config)
    model.eval()
    return model


def new_encoder(config: Any) -> PreTrainedModel:
    """A randomly initialised encoder without a head, of `config`'s architecture, its layers as wide as
    `intermediate_sizes` says, where that is there.

    Raises:
        SourceError: there are not as many widths as layers.
    """
    model: PreTrainedModel = AutoModel.from_config(config)
    if widths := getattr(config, "intermediate_sizes", None):
        layers = encoder_layers(model)
        if len(widths) != len(layers):
            raise SourceError(f"config.json has {len(widths)} intermediate_sizes for {len(layers)} layers")
        for layer, width in zip(layers, widths, strict=True):
            resize_ffn(layer, architecture_of(model), torch.arange(width))
    model.eval()
    return model


def load_config(folder: Path) -> Any:
    """The transformers configuration of a folder.

    Raises:
        SourceError: there is none, or it is not of a model that transformers knows.
    """
    _register(folder)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # see `_loading`
        raise SourceError(f"{error} (configuration of {folder})") from error


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write `config.json` and `model.safetensors`."""
    model.save_pretrained(folder, safe_serialization=True)


def load_tokenizer(folder: Path, words: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder; it cuts at its `model_max_length`, or earlier: see `most_tokens`.

    With `words`, and of a token classifier, it is for texts that are split into words: a byte-level one then
    begins each word as one that follows a space.

    Raises:
        SourceError: there is none, or it is broken.
    """
    _register(folder)
    try:
        with warnings.catch_warnings():
            # Marian's would normalise punctuation with it, which its models do without.
            warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # see `_loading`
        raise SourceError(f"{folder} has no tokenizer that transformers can load: {error}") from error
    if (words or is_token_classifier(folder)) and tokenizer.is_fast:
        if lacks_prefix_space(tokenizer.backend_tokenizer):
            options = {"local_files_only": True, "trust_remote_code": False, "add_prefix_space": True}
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        tokenizer._tokenizer = with_prefix_space(
            tokenizer.backend_tokenizer
        )  # where it is one of several steps
    tokenizer.model_max_length = min(tokenizer.model_max_length, most_tokens(folder))
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the tokenizer's files: one fast-tokenizer JSON without white space, the vocabulary only once, and
    its settings."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    if path.exists():
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
        for copy in ("vocab.txt", "vocab.json", "merges.txt"):
            (folder / copy).unlink(missing_ok=True)


def _load_special(folder: Path, config: Any) -> PreTrainedModel:
    """Build the architecture, cut it to the widths its config names, and fill it."""
    if (folder / QUANTIZATION).exists():
        from pressoir.formats.int8_checkpoint import dequantized_state

        state = dequantized_state(folder)
    else:
        state = load_file(folder / "model.safetensors")
    model = new_classifier(config)
    if widths := getattr(config, "intermediate_sizes", None):
        layers = encoder_layers(model)
        if len(widths) != len(layers):
            raise SourceError(
                f"{folder}: config.json has {len(widths)} intermediate_sizes for {len(layers)} layers"
            )
        for layer, width in zip(layers, widths, strict=True):
            resize_ffn(layer, architecture_of(model), torch.arange(width))
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("position_ids")]
    if missing or unexpected:
        raise SourceError(f"{folder}: weights do not match the config: {[*missing, *unexpected][:5]}")
    return model
