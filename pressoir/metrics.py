"""Scores, and how far to trust them."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pressoir.errors import DataError

Ints = NDArray[np.int64] | Sequence[int]
Tags = Sequence[Sequence[str]]
"""Tags of words, of each sentence."""


def accuracy(predicted: Ints, expected: Ints) -> float:
    """Part of the predictions that are right, 0–1."""
    return float(np.mean(np.asarray(predicted) == np.asarray(expected)))


def f1(predicted: Ints, expected: Ints, classes: int) -> float:
    """F1 of class 1, the second, where there are two `classes`, else the macro average, 0–1.

    A negative prediction, which is no class, is wrong.
    """
    return _f1(predicted, expected, [1]) if classes == 2 else macro_f1(predicted, expected)


def macro_f1(predicted: Ints, expected: Ints) -> float:
    """Mean of the F1 of all classes that are expected or predicted, 0–1; each class counts the same.

    A negative prediction, which is no class, is wrong.
    """
    seen = {*np.asarray(expected).tolist(), *np.asarray(predicted).tolist()}
    return _f1(predicted, expected, sorted(one for one in seen if one >= 0))


def _f1(predicted: Ints, expected: Ints, labels: list[int]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(expected, predicted, labels=labels, average="macro", zero_division=0))


def label_set_scores(predicted: NDArray[Any], expected: NDArray[Any]) -> dict[str, float]:
    """Micro- and macro-averaged F1 of sets of labels, each (texts, labels) of yes and no; 0–1.

    Every label counts in the macro average, also one that neither side has, whose F1 is 0.
    """
    from sklearn.metrics import f1_score

    right, given = np.asarray(expected) > 0, np.asarray(predicted) > 0
    return {
        f"{average}_f1": float(f1_score(right, given, average=average, zero_division=0))
        for average in ("micro", "macro")
    }


def regression_scores(predicted: NDArray[Any], expected: NDArray[Any]) -> dict[str, float]:
    """Pearson's and Spearman's correlation, −1 to 1, and the mean absolute error.

    Where one side is constant there is no correlation, which counts as 0.
    """
    from scipy.stats import rankdata

    given, right = np.asarray(predicted, np.float64), np.asarray(expected, np.float64)
    return {
        "pearson": _correlation(given, right),
        "spearman": _correlation(rankdata(given), rankdata(right)),
        "mae": float(np.abs(given - right).mean()),
    }


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    a, b = first - first.mean(), second - second.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float(np.clip((a * b).sum() / scale, -1, 1)) if scale > 0 else 0.0


def span_scores(predicted: Tags, expected: Tags) -> dict[str, float]:
    """F1, precision and recall of the spans that tags mark, F1 averaged over the types, and the part of the
    tags that are right; 0–1.

    Computed by seqeval in its default mode, whose prefixes the tags have: a span is right if its words and
    its type are.
    """
    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

    right, given = [list(tags) for tags in expected], [list(tags) for tags in predicted]
    some = any(tag != "O" for tags in right for tag in tags)
    return {
        "span_f1": float(f1_score(right, given, zero_division=0)),
        "span_precision": float(precision_score(right, given, zero_division=0)),
        "span_recall": float(recall_score(right, given, zero_division=0)),
        "macro_f1": float(f1_score(right, given, average="macro", zero_division=0)) if some else 0.0,
        "tag_accuracy": float(accuracy_score(right, given)),
    }


def span_statistic(predicted: Sequence[Sequence[Any]], expected: Sequence[Sequence[Any]]) -> Statistic:
    """F1 of `span_scores`, of the spans of each sentence: twice the right ones over all of both."""
    pairs = list(zip(predicted, expected, strict=True))
    hits = [2.0 * len({*given} & {*right}) for given, right in pairs]
    return Statistic.of_ratio(hits, [float(len(given) + len(right)) for given, right in pairs])


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % confidence interval of a proportion (E. B. Wilson 1927, JASA 22:209), 0–1."""
    if total == 0:
        return 0.0, 1.0
    p, n = correct / total, total
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - spread) / (1 + z * z / n), (centre + spread) / (1 + z * z / n)
    return max(0.0, min(low, p)), min(1.0, max(high, p))  # rounding must not leave p outside


@dataclass(frozen=True)
class Statistic:
    """A metric of a corpus as sums over its samples, from which that of any resample can be computed."""

    rows: NDArray[np.float64]
    """Of each sample, shape (samples, figures): errors and words, matched and possible n-grams, …"""
    value: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    """The metric of each row of sums: (corpora, figures) to (corpora,)."""

    @classmethod
    def of_ratio(cls, numerators: Sequence[float], denominators: Sequence[float]) -> Statistic:
        """A sum over a sum, such as errors over words."""
        return cls(np.column_stack([numerators, denominators]).astype(np.float64), _ratio)


def _ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    # Nothing expected: every insertion counts as one error, as jiwer has it.
    quotients: NDArray[np.float64] = sums[:, 0] / np.maximum(sums[:, 1], 1)
    return quotients


def label_set_statistics(predicted: NDArray[Any], expected: NDArray[Any]) -> dict[str, Statistic]:
    """Those of `label_set_scores`: micro-averaged F1 is twice the right labels over all that are given or
    expected, macro-averaged F1 the mean of that of each label.
    """
    given, right = np.asarray(predicted) > 0, np.asarray(expected) > 0
    hits, all_of_them = 2.0 * (given & right), given.astype(np.float64) + right
    return {
        "micro_f1": Statistic.of_ratio(hits.sum(axis=1).tolist(), all_of_them.sum(axis=1).tolist()),
        "macro_f1": Statistic(np.hstack([hits, all_of_them]), _mean_ratio),
    }


def _mean_ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    numerators, denominators = np.hsplit(sums, 2)
    means: NDArray[np.float64] = (numerators / np.maximum(denominators, 1)).mean(axis=1)
    return means


def regression_statistics(predicted: NDArray[Any], expected: NDArray[Any]) -> dict[str, Statistic]:
    """Those of `regression_scores` that are made of sums: all but Spearman's."""
    given, right = np.asarray(predicted, np.float64), np.asarray(expected, np.float64)
    a, b = given - given.mean(), right - right.mean()  # sums of large numbers would lose digits
    rows = np.column_stack([np.ones_like(a), a, b, a * a, b * b, a * b])
    errors = np.abs(given - right)
    return {
        "pearson": Statistic(rows, _pearson),
        "mae": Statistic.of_ratio(errors.tolist(), [1.0] * len(errors)),
    }


def _pearson(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    count, a, b, aa, bb, ab = sums.T
    scale = np.sqrt(np.maximum(count * aa - a * a, 0) * np.maximum(count * bb - b * b, 0))
    quotients = np.divide(count * ab - a * b, scale, out=np.zeros_like(scale), where=scale > 0)
    clipped: NDArray[np.float64] = np.clip(quotients, -1, 1)
    return clipped


DRAWS = 1000
"""Draws of a bootstrap."""
_SEED = 20041
_WEIGHTS = 1_000_000  # that are held at once
Weights = Callable[[np.random.Generator, int, int], NDArray[np.float64]]


def bootstrap(*statistics: Statistic) -> list[NDArray[np.float64]]:
    """The metric of each bootstrap draw, (draws,), of statistics of the same samples on the same draws."""
    sums = resampled([statistic.rows for statistic in statistics], _draw)
    return [statistic.value(own) for statistic, own in zip(statistics, sums, strict=True)]


def percentile_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """What the middle 95 % lie between."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def resampled(rows: Sequence[NDArray[np.float64]], weights: Weights) -> list[NDArray[np.float64]]:
    """Of each rows, (samples, figures), the sums of each draw of weights, (draws, figures)."""
    joined = np.hstack(rows)
    random = np.random.default_rng(_SEED)
    step = max(1, _WEIGHTS // len(joined))
    sums = np.concatenate(
        [weights(random, min(step, DRAWS - i), len(joined)) @ joined for i in range(0, DRAWS, step)]
    )
    return np.split(sums, np.cumsum([each.shape[1] for each in rows])[:-1], axis=1)


def _draw(random: np.random.Generator, draws: int, samples: int) -> NDArray[np.float64]:
    """How often each sample is drawn, (draws, samples)."""
    drawn = random.integers(samples, size=(draws, samples), dtype=np.int32)
    return np.stack([np.bincount(indices, minlength=samples) for indices in drawn]).astype(np.float64)


@dataclass(frozen=True)
class TextScore:
    """A score of texts, and how it was computed: without that no two scores can be compared."""

    value: float
    signature: str
    statistic: Statistic = field(compare=False, repr=False)
    """The same score by sample."""


BleuTokenizer = Literal["13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "flores101", "flores200", "none"]
"""Tokenizers of sacrebleu; those of FLORES are downloaded by it when they are first used."""
Normaliser = Literal["basic", "french"]
"""How transcripts are made comparable, see `normalise_transcript`."""

_EXTRAS: dict[BleuTokenizer, str] = {"ja-mecab": "ja", "ko-mecab": "ko"}
_FETCHED = (*_EXTRAS, "flores101", "flores200")
# Languages that 13a does not split into words: ISO 639-1 and 639-3 codes.
_BLEU_TOKENIZERS: dict[str, BleuTokenizer] = {
    **dict.fromkeys(("ja", "jpn"), "ja-mecab"),
    **dict.fromkeys(("ko", "kor"), "ko-mecab"),
    **dict.fromkeys(("zh", "zho", "cmn", "yue", "lzh"), "zh"),
}
_SCRIPTS = (("ja", ("HIRAGANA", "KATAKANA")), ("ko", ("HANGUL",)), ("zh", ("CJK",)))


def bleu_tokenizer(language: str | None, texts: Sequence[str] = ()) -> BleuTokenizer:
    """sacrebleu's tokenizer for a language (`ja`, `jpn_Jpan`, `ja_XX`, …), else for the script of `texts`."""
    code = _code(language) if language else _script(texts)
    return _BLEU_TOKENIZERS.get(code, "13a")


def check_bleu_tokenizer(tokenizer: BleuTokenizer) -> None:
    """Load a tokenizer that does not come with sacrebleu.

    Raises:
        DataError: its package is not installed, or it cannot be downloaded.
    """
    if tokenizer not in _FETCHED:
        return
    from sacrebleu import BLEU

    try:
        BLEU(tokenize=tokenizer)
    except Exception as error:  # sacrebleu raises whatever a download or an import does
        if extra := _EXTRAS.get(tokenizer):
            advice = f"run: pip install 'pressoir-ml[{extra}]'"
        else:
            advice = "sacrebleu downloads it: connect this machine once, or choose another `bleu_tokenizer`"
        raise DataError(f"BLEU's tokenizer {tokenizer!r} is not available here: {advice}") from error


def bleu(predicted: Sequence[str], expected: Sequence[str], tokenizer: BleuTokenizer = "13a") -> TextScore:
    """Corpus BLEU with one reference, 0–100 (Papineni et al., ACL 2002; sacrebleu, Post, WMT 2018).

    Raises:
        DataError: there is nothing to score, not one reference a prediction, or the tokenizer is not there.
    """
    from sacrebleu import BLEU

    _check_pairs(predicted, expected)
    check_bleu_tokenizer(tokenizer)
    return _sacrebleu_score("BLEU", BLEU(tokenize=tokenizer), predicted, expected)


def chrf(predicted: Sequence[str], expected: Sequence[str]) -> TextScore:
    """Corpus chrF2 with one reference, 0–100: F-score of character n-grams (Popović, WMT 2015).

    Raises:
        DataError: as in `bleu`.
    """
    from sacrebleu import CHRF

    _check_pairs(predicted, expected)
    return _sacrebleu_score("chrF2", CHRF(), predicted, expected)


def _sacrebleu_score(name: str, metric: Any, predicted: Sequence[str], expected: Sequence[str]) -> TextScore:
    # What `corpus_score` does in one, and what `sacrebleu.significance` calls for its tests.
    rows = np.asarray(metric._extract_corpus_statistics(list(predicted), [list(expected)]), np.float64)

    def value(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        scores = [metric._compute_score_from_stats(row).score for row in sums.astype(np.int64).tolist()]
        return np.minimum(scores, 100.0)  # rounding

    score = float(value(rows.sum(axis=0, keepdims=True))[0])
    return TextScore(score, f"{name}|{metric.get_signature()}", Statistic(rows, value))


def wer(predicted: Sequence[str], expected: Sequence[str], normaliser: Normaliser = "basic") -> TextScore:
    """Word error rate of a corpus: substitutions, deletions and insertions over the words expected.

    Both sides go through `normalise_transcript`. 0 is perfect; insertions may take it above 1.

    Raises:
        DataError: there is nothing to score, or not one reference a prediction.
    """
    from jiwer import process_words

    found = process_words(*_transcripts(predicted, expected, normaliser))
    return TextScore(float(found.wer), _transcript_signature("WER", normaliser), _errors(found))


def cer(predicted: Sequence[str], expected: Sequence[str], normaliser: Normaliser = "basic") -> TextScore:
    """Character error rate of a corpus; see `wer`. Spaces between words count as characters.

    Raises:
        DataError: as in `wer`.
    """
    from jiwer import process_characters

    found = process_characters(*_transcripts(predicted, expected, normaliser))
    return TextScore(float(found.cer), _transcript_signature("CER", normaliser), _errors(found))


def _errors(found: Any) -> Statistic:
    """Errors and expected words, or characters, of each text in what jiwer found."""
    errors = [
        sum(
            max(part.ref_end_idx - part.ref_start_idx, part.hyp_end_idx - part.hyp_start_idx)
            for part in alignment
            if part.type != "equal"
        )
        for alignment in found.alignments
    ]
    return Statistic.of_ratio(errors, [len(reference) for reference in found.references])


def aligned_words(predicted: str, expected: str) -> list[tuple[str, str]]:
    """Expected and predicted word, side by side as jiwer aligns them; empty where there is none."""
    from jiwer import process_words

    found = process_words([expected], [predicted])
    pairs: list[tuple[str, str]] = []
    for part in found.alignments[0]:
        words = found.references[0][part.ref_start_idx : part.ref_end_idx]
        heard = found.hypotheses[0][part.hyp_start_idx : part.hyp_end_idx]
        pairs += zip_longest(words, heard, fillvalue="")
    return pairs


NORMALISERS: dict[Normaliser, str] = {
    "basic": "NFKC, lower case, punctuation becomes spaces except in words and numbers, single spaces",
    "french": "basic, œ to oe, æ to ae, elided words apart",
}
_ABBREVIATION = re.compile(r"\b(?:[^\W\d_]\.){2,}")
_ELISION = re.compile(r"\b(c|d|j|l|m|n|s|t|qu|jusqu|lorsqu|puisqu|quoiqu|presqu|quelqu)'(?=\w)")


def normaliser_of(language: str | None) -> Normaliser:
    """The normaliser of transcripts in a language, such as `fr` or `fra_Latn`."""
    return "french" if language and _code(language) in ("fr", "fra", "french") else "basic"


def normalise_transcript(text: str, normaliser: Normaliser = "basic") -> str:
    """What recognisers leave out or write either way is not an error; `NORMALISERS` says what is changed.

    Apostrophes and hyphens within words, and points, commas and colons within numbers stay; other punctuation
    keeps words apart (`et/ou` becomes `et ou`), but points of abbreviations (`U.S.A.`) go. Numbers are not
    spelt out. In French, `l'homme`, `l’homme` and `l' homme` are the same two words.
    """
    lowered = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    plain = _ABBREVIATION.sub(lambda found: found[0].replace(".", ""), lowered)
    kept = []
    for index, character in enumerate(plain):
        before, after = plain[index - 1 : index], plain[index + 1 : index + 2]
        inside = (character in "'-" and _is_letter(before) and _is_letter(after)) or (
            character in ".,:" and before.isdigit() and after.isdigit()
        )
        punctuation = unicodedata.category(character).startswith("P")
        kept.append(" " if punctuation and not inside else character)
    result = "".join(kept)
    if normaliser == "french":
        result = _ELISION.sub(r"\1 ", result.replace("œ", "oe").replace("æ", "ae"))
    return " ".join(result.split())


def _is_letter(character: str) -> bool:
    return bool(character) and unicodedata.category(character)[0] in "LMN"


def _code(language: str) -> str:
    """The first part of a language code: of `fra_Latn`, `fr_XX`, `fr-FR` or `__fr__`."""
    return re.split(r"[_-]", language.strip("_<>|"), maxsplit=1)[0].lower()


def _script(texts: Sequence[str]) -> str:
    """The language whose script most letters of the texts have; empty where that is another one."""
    counts: Counter[str] = Counter()
    letters = [character for text in texts[:1000] for character in text[:200] if character.isalpha()]
    for character in letters:
        name = unicodedata.name(character, "")
        counts.update(code for code, scripts in _SCRIPTS if name.startswith(scripts))
    if counts["ja"] > 0.1 * len(letters) > 0:  # Japanese mixes its syllables with Chinese characters
        return "ja"
    code, most = (counts.most_common(1) or [("", 0)])[0]
    return code if most > 0.5 * len(letters) else ""


def _transcripts(
    predicted: Sequence[str], expected: Sequence[str], normaliser: Normaliser
) -> tuple[list[str], list[str]]:
    """References first, as jiwer takes them."""
    _check_pairs(predicted, expected)
    return (
        [normalise_transcript(text, normaliser) for text in expected],
        [normalise_transcript(text, normaliser) for text in predicted],
    )


def _transcript_signature(name: str, normaliser: Normaliser) -> str:
    from importlib.metadata import version

    return f"{name}|norm:{normaliser} ({NORMALISERS[normaliser]})|jiwer:{version('jiwer')}"


def _check_pairs(predicted: Sequence[str], expected: Sequence[str]) -> None:
    if len(predicted) != len(expected) or not expected:
        raise DataError(
            f"{len(predicted)} predicted texts cannot be scored against {len(expected)} expected ones; the "
            "numbers must be equal and at least one"
        )


def ranks(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank of each value, from 0; the mean rank where several are the same."""
    _, inverse, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts + 1) / 2)[inverse]
    return ranks


def spearman(found: Sequence[float] | NDArray[np.float64], expected: Sequence[float]) -> float:
    """Spearman's rank correlation (1904): Pearson's of the ranks, ties at their mean rank.

    0 where one side is constant.
    """
    first, second = ranks(found), ranks(expected)
    if len(first) < 2 or not first.std() or not second.std():
        return 0.0
    return float(np.clip(np.corrcoef(first, second)[0, 1], -1, 1))


def cosines(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of each row (texts, dimensions) with its counterpart.

    0 where one has no length, or a number that is not finite.
    """
    a, b = first.astype(np.float64), second.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found: NDArray[np.float64] = np.nan_to_num((a * b).sum(axis=1) / np.maximum(norms, 1e-12))
    return found
