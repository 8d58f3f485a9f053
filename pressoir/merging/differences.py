"""Where two checkpoints differ, and whether that hinders merging one into the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pressoir.merging.checkpoint import Checkpoint, is_embedding

# Fields of config.json that decide shapes, or how a matrix is cut into heads.
_SHAPE_FIELDS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("intermediate_size", "intermediate_sizes", "type_vocab_size"),
    *("n_embd", "n_layer", "n_head", "n_inner", "dim", "n_layers", "n_heads", "hidden_dim"),
)
# Fields that leave shapes alone, but change what the weights mean.
_MEANING_FIELDS = (
    *("hidden_act", "activation_function", "rope_theta", "rope_scaling", "rms_norm_eps", "layer_norm_eps"),
    *("layer_norm_epsilon", "sliding_window", "position_embedding_type", "scale_attn_weights"),
    *("max_position_embeddings", "n_positions"),
)


@dataclass(frozen=True)
class Mismatch:
    """One thing that speaks against a merge."""

    text: str
    crime: bool = False
    """Whether `allow_crimes` makes a warning of it."""
    harmless: bool = False
    """Whether it is only a warning."""


def compare(base: Checkpoint, model: Checkpoint, aligned: bool) -> tuple[dict[str, str], list[Mismatch]]:
    """What `model` calls each of the base's tensors that it fits, and everything that does not fit.

    With `aligned`, mergekit aligns the rows of embeddings by token, so vocabularies may differ.
    """
    names, findings = _match(base, model, aligned)
    every = [*_configurations(base, model), *_vocabularies(base, model, aligned), *findings]
    if not names:
        every.append(
            Mismatch(f"{model.label} has no tensor that fits one of {base.label}; nothing would be merged")
        )
    return names, every


def listed(names: Sequence[str], limit: int = 3) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _configurations(base: Checkpoint, model: Checkpoint) -> Iterator[Mismatch]:
    pair = f"{model.label} against {base.label}"
    if model.architecture != base.architecture:
        yield Mismatch(
            f"architecture: {model.label} is a {model.architecture}, {base.label} a {base.architecture}",
            crime=True,
        )
    both = [key for key in _SHAPE_FIELDS if key in model.config and key in base.config]
    if shapes := _differing_fields(base, model, (*both, "tie_word_embeddings")):
        yield Mismatch(f"config.json of {pair}: {shapes}", crime=True)
    if meanings := _differing_fields(base, model, _MEANING_FIELDS):
        yield Mismatch(f"config.json of {pair}: {meanings}; the result has the latter", harmless=True)
    labels, own = _labels(base.config), _labels(model.config)
    if labels and own and labels != own:
        description = f"labels of {pair}: {own} against {labels}"
        if sorted(labels) == sorted(own):
            yield Mismatch(
                f"{description}: the same in another order, so that the heads contradict each other",
                crime=True,
            )
        else:
            yield Mismatch(f"{description}; the result has the latter", harmless=True)


def _differing_fields(base: Checkpoint, model: Checkpoint, keys: Sequence[str]) -> str:
    differing = [key for key in keys if model.config.get(key) != base.config.get(key)]
    return ", ".join(f"{key} {model.config.get(key)} against {base.config.get(key)}" for key in differing)


def _labels(config: Mapping[str, Any]) -> list[str]:
    names = config.get("id2label") or {}
    return [str(names[index]) for index in sorted(names, key=int)]


def _vocabularies(base: Checkpoint, model: Checkpoint, aligned: bool) -> Iterator[Mismatch]:
    ours, theirs = base.tokenizer, model.tokenizer
    if ours is None or theirs is None:
        without = " and ".join(m.label for m in (base, model) if m.tokenizer is None)
        yield Mismatch(
            f"vocabulary: {without} has no tokenizer that can be read as text to compare", harmless=True
        )
        return
    if ours.ids != theirs.ids:
        groups = {
            "with another id": [t for t, index in ours.ids.items() if theirs.ids.get(t, index) != index],
            "missing": sorted(ours.ids.keys() - theirs.ids.keys()),
            "new": sorted(theirs.ids.keys() - ours.ids.keys()),
        }
        description = ", ".join(
            f"{len(tokens)} tokens {what} ({tokens[0]!r})" for what, tokens in groups.items() if tokens
        )
        text = f"vocabulary of {model.label} against {base.label}: {description}"
        if aligned:
            yield Mismatch(f"{text}; mergekit aligns the embeddings by token", harmless=True)
        else:
            yield Mismatch(f"{text}; tokenizer_source: union aligns embeddings by token", crime=True)
    if rules := [
        key for key in ours.rules.keys() & theirs.rules.keys() if ours.rules[key] != theirs.rules[key]
    ]:
        rule_names = ", ".join(sorted(rules))
        text = (
            f"tokenizer.json of {model.label} against {base.label}: other {rule_names}; "
            "the result has the latter"
        )
        yield Mismatch(text, harmless=True)


def _match(base: Checkpoint, model: Checkpoint, aligned: bool) -> tuple[dict[str, str], list[Mismatch]]:
    names: dict[str, str] = {}
    missing, shapes = [], []
    for name, entry in base.tensors.items():
        own = model.find(name)
        if own is None:
            missing.append(name)
            continue
        theirs = model.tensors[own]
        rows = is_embedding(name, entry, base.vocabulary) and is_embedding(own, theirs, model.vocabulary)
        if theirs.shape == entry.shape or (aligned and rows and theirs.shape[1:] == entry.shape[1:]):
            names[name] = own
        else:
            shapes.append(f"{name} {list(theirs.shape)} against {list(entry.shape)}")
    # A tied head that is saved beside its embedding is a copy.
    ignored = {"lm_head.weight"} if model.config.get("tie_word_embeddings", True) else set()
    taken = {model.find(name) for name in base.tensors}
    extra = [name for name in model.tensors if name not in taken and name not in ignored]
    groups = {"tensors of another shape": shapes, "tensors missing": missing, "tensors too many": extra}
    pair = f"{model.label} against {base.label}"
    return names, [
        Mismatch(f"{pair}: {len(v)} {what}: {listed(v)}", crime=True) for what, v in groups.items() if v
    ]
