"""Token embeddings and positions that are kept, and the tokenizer that belongs to them.

Why and at what cost: `pressoir.stages.vocabulary`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn, tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pressoir.benchmark.size import size_mb
from pressoir.data import sentences
from pressoir.data.texts import texts_of
from pressoir.errors import SourceError
from pressoir.formats.tokenizer_limit import first_position
from pressoir.models import loading
from pressoir.models.layouts import count_parameters, position_table
from pressoir.pruning import vocabulary
from pressoir.recipe.sections import VocabularyConfig
from pressoir.stage import StageContext
from pressoir.training import loop

REPORT = "vocabulary.json"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def trim(inputs: Mapping[str, Path], config: VocabularyConfig, context: StageContext) -> dict[str, float]:
    """Write the model and its tokenizer with fewer pieces, and `vocabulary.json`; return what that holds.

    Inputs: `model` (a classifier), `data` (train and unlabelled text decide, validation measures; test is not
    read).

    Raises:
        SourceError: the tokenizer has no fast form, or is not WordPiece, BPE or Unigram, or the model has
            fewer embeddings than it has pieces.
    """
    folder, out = inputs["data"], context.out_dir
    model, tokenizer = loading.load_classifier(inputs["model"]), loading.load_tokenizer(inputs["model"])
    if not tokenizer.is_fast:
        raise SourceError(f"vocabulary: {inputs['model']} has no fast tokenizer; save it as tokenizer.json")
    metrics: dict[str, float] = {
        "accuracy_before": loop.evaluate(model, tokenizer, folder)["validation_accuracy"],
        "parameters_before": count_parameters(model),
        "size_mb_before": size_mb(inputs["model"]),
        "positions_before": _positions(model),
    }
    texts = [*texts_of(sentences.load_split(folder, "train")), *sentences.load_unlabelled(folder)]
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    known = vocabulary.pieces(content)
    counts = vocabulary.count(tokenizer.backend_tokenizer, texts)
    used = {piece for piece, times in counts.items() if times >= config.min_count}
    ids = vocabulary.needed(content, used | _named(model, tokenizer, set(known.values())))
    embeddings: Any = model.get_input_embeddings()
    if ids[-1] >= embeddings.num_embeddings:
        raise SourceError(
            f"vocabulary: {inputs['model']} has {embeddings.num_embeddings} embeddings, but its tokenizer "
            f"has a token with id {ids[-1]}; model and tokenizer do not match"
        )
    keep_rows(model, ids)
    longest = tokenizer.model_max_length
    if config.positions:
        longest = min(longest, sentences.info(folder)["max_tokens"])
        if not keep_positions(model, longest):
            context.reporter.message(
                f"vocabulary: position embeddings are not truncated; no table of absolute positions is known "
                f"of a {model.config.model_type} model"
            )
    loading.save_model(model, out)
    cut = _save_tokenizer(tokenizer, vocabulary.cut(content, ids), ids, longest, context)

    trained = vocabulary.coverage(tokenizer.backend_tokenizer, cut.backend_tokenizer, texts)
    if config.min_count == 1 and trained.sentences < 1:
        raise SourceError(
            f"vocabulary: the tokenizer of {inputs['model']} cannot be pruned: without the unused tokens "
            "it splits the training text differently"
        )
    validation = texts_of(sentences.load_split(folder, "validation"))
    held_out = vocabulary.coverage(tokenizer.backend_tokenizer, cut.backend_tokenizer, validation)
    metrics |= {
        "pieces_before": len(known),
        "pieces": len(ids),
        "pieces_dropped": len(known) - len(ids),
        "pieces_kept": len(ids) / len(known),
        "positions": _positions(model),
        "parameters": count_parameters(model),
        "parameters_kept": count_parameters(model) / metrics["parameters_before"],
        "size_mb": size_mb(out),
        "train_token_coverage": trained.tokens,
        "train_sentence_coverage": trained.sentences,
        "train_length_ratio": trained.length,
        "validation_token_coverage": held_out.tokens,
        "validation_sentence_coverage": held_out.sentences,
        "validation_length_ratio": held_out.length,
        **loop.evaluate(model, cut, folder),
    }
    (out / REPORT).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    context.reporter.message(
        f"vocabulary: {len(ids)} of {len(known)} tokens kept, {metrics['size_mb_before']:.1f} → "
        f"{metrics['size_mb']:.1f} MB; in the validation text, {held_out.tokens:.2%} of the tokens and "
        f"{held_out.sentences:.2%} of the sentences are tokenised as before; accuracy "
        f"{metrics['accuracy_before']:.4f} → {metrics['validation_accuracy']:.4f}"
    )
    return metrics


def keep_rows(model: PreTrainedModel, ids: list[int]) -> None:
    """Keep the token embeddings `ids` (ascending), in place; the ids that the configuration names follow."""
    index = {old: new for new, old in enumerate(ids)}
    old: Any = model.get_input_embeddings()
    pad = None if old.padding_idx is None else index.get(old.padding_idx)
    model.set_input_embeddings(_rows(old, tensor(ids), pad))
    model.config.vocab_size = len(ids)
    for field, value in model.config.to_dict().items():
        if field.endswith("_token_id") and isinstance(value, int):
            setattr(model.config, field, index.get(value))


def keep_positions(model: PreTrainedModel, tokens: int) -> bool:
    """Cut the table of positions, in place, to what `tokens` tokens need; return whether it is known how.

    RoBERTa's positions begin after its padding token's id.
    """
    table = position_table(model)
    if table is None:
        return False
    parent, name = table
    old = getattr(parent, name)
    first = first_position(model.config.pad_token_id)
    if old.padding_idx is not None:
        first = max(first, old.padding_idx + 1)
    size = min(tokens + first, old.num_embeddings)
    setattr(parent, name, _rows(old, slice(size), old.padding_idx))
    for buffer in ("position_ids", "token_type_ids"):
        if hasattr(parent, buffer):
            setattr(parent, buffer, getattr(parent, buffer)[:, :size].clone())
    model.config.max_position_embeddings = size
    return True


def _positions(model: PreTrainedModel) -> int:
    return int(getattr(model.config, "max_position_embeddings", 0))


def _rows(old: nn.Embedding, rows: Tensor | slice, padding_idx: int | None) -> nn.Embedding:
    weight = old.weight.detach()[rows].clone()  # (rows, hidden)
    return nn.Embedding(weight.shape[0], weight.shape[1], padding_idx, _weight=weight)


def _named(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, known: set[int]) -> set[int]:
    """Ids that stay because model or tokenizer name them, whatever the text."""
    named = {*tokenizer.all_special_ids, *tokenizer("", "")["input_ids"]}
    embeddings: Any = model.get_input_embeddings()
    if embeddings.padding_idx is not None:
        named.add(embeddings.padding_idx)
    for field, value in model.config.to_dict().items():
        if field.endswith("_token_id") and isinstance(value, int):
            named.add(value)
    table = position_table(model)
    if table is not None and (padding := getattr(*table).padding_idx) is not None:
        named.update(range(padding + 1))  # its id is where positions begin
    return named & known


def _save_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    content: dict[str, Any],
    ids: list[int],
    longest: int,
    context: StageContext,
) -> PreTrainedTokenizerBase:
    """Write the tokenizer with `content` in place of its own; return it as transformers loads it.

    Raises:
        SourceError: transformers gives its pieces other ids.
    """
    if content["truncation"] is not None:
        content["truncation"]["max_length"] = min(content["truncation"]["max_length"], longest)
    with tempfile.TemporaryDirectory(dir=context.work_dir) as scratch:
        folder = Path(scratch)
        loading.save_tokenizer(tokenizer, folder)
        for path in folder.iterdir():  # such as a SentencePiece model with all the pieces
            if path.name not in _TOKENIZER:
                path.unlink()
        (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        index = {str(old): str(new) for new, old in enumerate(ids)}
        added = settings.get("added_tokens_decoder", {})
        settings["added_tokens_decoder"] = {index[old]: token for old, token in added.items()}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        cut = loading.load_tokenizer(folder)
        cut.model_max_length = longest
        loading.save_tokenizer(cut, context.out_dir)
    if cut.get_vocab() != vocabulary.pieces(content):
        raise SourceError(
            f"vocabulary: transformers assigns the tokens of a {type(tokenizer).__name__} different ids "
            "than its tokenizer.json; pruning it is not supported"
        )
    return loading.load_tokenizer(context.out_dir)
