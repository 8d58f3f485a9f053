"""A training split extended by altered copies, spans and unlabelled sentences that the teacher labels.

Why and at what cost: `pressoir.stages.augment`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from pressoir.data import sentences
from pressoir.errors import RecipeError, SourceError
from pressoir.formats.folder import read_json
from pressoir.formats.labels import labels_of
from pressoir.models import loading
from pressoir.recipe.sections import AugmentConfig
from pressoir.reporting import track
from pressoir.stage import StageContext
from pressoir.training import augmentation, loop
from pressoir.training.augmentation import Proposer, Sentence

BLOCK = 256
EXAMPLES = 3
SHORTEST_SPAN = 3  # words


def extend(inputs: Mapping[str, Path], config: AugmentConfig, context: StageContext) -> dict[str, float]:
    """Write a data folder whose train has the altered copies and the unlabelled sentences too.

    Returns the counts; the fraction of all words that copies had replaced; and the fraction of the copies
    that the teacher gives the label of their original (of the originals: `teacher_agreement_before`).

    Inputs: `model` (the base model), `teacher`, `data`.

    Raises:
        RecipeError: there is nothing to add.
        SourceError: `masked_lm` is asked for, and the base model has no such head or no mask token; or its
            tokenizer does not tell words.
    """
    facts = sentences.info(inputs["data"])
    rows = list(sentences.load_split(inputs["data"], "train"))
    unlabelled = sentences.load_unlabelled(inputs["data"])
    if not config.copies and not config.spans and not unlabelled:
        raise RecipeError(
            "augment: nothing to add: augment.copies and augment.spans are 0 and data.unlabelled has no "
            "new sentences; increase one of the former, set the latter, or omit `augment`"
        )
    texts = [row["text"] for row in rows]
    copies: list[tuple[int, str]] = []
    metrics = dict[str, float]()
    taken = sentences.forms(unlabelled)
    for split in sentences.SPLITS:
        taken |= sentences.forms(sentences.load_split(inputs["data"], split)["text"])
    if config.copies:
        tokenizer = loading.load_tokenizer(inputs["model"])
        tokenizer.model_max_length = min(tokenizer.model_max_length, facts["max_tokens"])
        originals = augmentation.sentences(texts, tokenizer)
        propose = _proposer(inputs["model"], config, tokenizer, context)
        copies, metrics = _copies(originals, propose, config, taken, context)
    spans = _spans(texts, config.spans, taken, context.seed)
    new = [text for _, text in copies] + spans + unlabelled
    asked = [*texts, *new] if copies else new
    logits = loop.logits_of(inputs["teacher"], asked, "augment: labels", context.reporter)
    own = labels_of(read_json(inputs["teacher"] / "config.json"))
    labels = logits[:, sentences.label_places(inputs["data"], own)].argmax(axis=1)
    if copies:
        given = np.array([row["label"] for row in rows])
        metrics["teacher_agreement_before"] = float((labels[: len(rows)] == given).mean())
        labels = labels[len(rows) :]
        expected = given[[source for source, _ in copies]]
        metrics["teacher_agreement"] = float((labels[: len(copies)] == expected).mean())
    added = [{"text": text, "label": int(label)} for text, label in zip(new, labels, strict=True)]
    sentences.save_extended(inputs["data"], [*rows, *added], context.out_dir)
    for index in np.linspace(0, len(copies) - 1, min(EXAMPLES, len(copies)), dtype=int).tolist():
        source, text = copies[index]
        context.reporter.message(f"augment: {texts[source]!r} → {text!r} ({facts['labels'][labels[index]]})")
    counts = {"rows_before": len(rows), "train_rows": len(rows) + len(added)}
    counts |= {"altered_rows": len(copies), "span_rows": len(spans), "unlabelled_rows": len(unlabelled)}
    return {name: float(count) for name, count in counts.items()} | metrics


def _proposer(
    folder: Path,
    config: AugmentConfig,
    tokenizer: PreTrainedTokenizerBase,
    context: StageContext,
) -> Proposer:
    """What the recipe asks for; with `auto` a masked-LM head where the weights have one."""
    if config.method != "neighbours":
        try:
            model = loading.load_masked_lm(folder)
            return augmentation.MaskedLM(model, tokenizer, config.candidates)
        except SourceError as error:
            if config.method == "masked_lm":
                raise SourceError(f"{error}; set augment.method: neighbours") from error
            context.reporter.message(
                "augment: the base model has no masked-LM head; using nearest words in its embedding "
                "space instead"
            )
    embedding: Any = loading.load_encoder(folder).get_input_embeddings()
    return augmentation.Neighbours(embedding.weight, tokenizer, config.candidates)


def _copies(
    originals: Sequence[Sentence],
    propose: Proposer,
    config: AugmentConfig,
    taken: set[str],
    context: StageContext,
) -> tuple[list[tuple[int, str]], dict[str, float]]:
    """Altered copies, each with its original's number, none of a form in `taken`; and metrics of them.

    The draws of a sentence depend on the seed and its number alone.
    """
    found, replaced, words, tried = list[tuple[int, str]](), 0, 0, 0
    blocks = [range(start, min(start + BLOCK, len(originals))) for start in range(0, len(originals), BLOCK)]
    for block in track(blocks, len(blocks), "augment: blocks of sentences", context.reporter):
        draws = {number: random.Random(f"{context.seed} {number}") for number in block}
        chosen = []  # a copy: its original's number, and the words to replace
        for number in block:
            able = originals[number].replaceable
            count = max(1, round(config.replace * len(able)))
            for _ in range(config.copies if able else 0):
                chosen.append((number, draws[number].sample(able, count)))
        asked = list(dict.fromkeys((number, word) for number, some in chosen for word in some))
        answers = propose([(originals[number], word) for number, word in asked])
        proposals = dict(zip(asked, answers, strict=True))
        for number, some in chosen:
            new = {w: draws[number].choice(answer) for w in some if (answer := proposals[number, w])}
            text = augmentation.alter(originals[number].text, new)
            form = sentences.normal_form(text)
            if form not in taken:
                taken.add(form)
                found.append((number, text))
                replaced, words = replaced + len(new), words + originals[number].words
        tried += len(block) * config.copies
    share = replaced / max(words, 1)
    return found, {"copies_dropped": float(tried - len(found)), "words_replaced_fraction": share}


def _spans(texts: Sequence[str], count: int, taken: set[str], seed: int) -> list[str]:
    """`count` runs of words of each text, none of a form in `taken`; draws depend on seed and place alone."""
    found = []
    for number, text in enumerate(texts):
        draw, words = random.Random(f"{seed} {number} spans"), text.split()
        for _ in range(count if len(words) > SHORTEST_SPAN else 0):
            length = draw.randint(SHORTEST_SPAN, len(words) - 1)
            start = draw.randint(0, len(words) - length)
            span = " ".join(words[start : start + length])
            if (form := sentences.normal_form(span)) not in taken:
                taken.add(form)
                found.append(span)
    return found
