"""Tokenising costs what is kept of a text, and the tokens are transformers' own of the whole text."""

import random

import numpy as np
import pytest

from pressoir.inference.tokenizers.shortening import finished, shortened
from pressoir.inference.tokenizers.steps import iter_encoded
from pressoir.inference.tokenizers.tokenizers import FastTokenizer

KINDS = ("wordpiece", "byte-level", "unigram")
WORDS = "the film was good and the soup was cold but nobody minded don't we'll".split()
LIMIT = 24
SEEDS = 4


def cjk(rng, count):
    return "".join(chr(rng.randint(0x4E00, 0x4E80)) for _ in range(count))


TEXTS = {
    "words": lambda rng: " ".join(rng.choice(WORDS) for _ in range(1200)),
    "runs of blanks": lambda rng: "".join(
        rng.choice(WORDS) + rng.choice(" \t\n\u3000") * rng.randint(1, 900) for _ in range(40)
    ),
    "blanks alone, then a word": lambda rng: " " * 6_000 + "film",
    "control characters": lambda rng: "".join(
        rng.choice(WORDS) + rng.choice("\x01\x7f\u200b\u200d\ufeff\u00ad") * rng.randint(1, 30)
        for _ in range(500)
    ),
    "CJK without blanks": lambda rng: cjk(rng, 6_000),
    "combining marks": lambda rng: "".join(
        rng.choice("aeio") + rng.choice("\u0301\u0308\u0323") * rng.randint(1, 9) for _ in range(1500)
    ),
    "emoji": lambda rng: "".join(rng.choice("😀👩‍👩‍👧🇫🇷👍🏽") for _ in range(3000)),
    "special tokens": lambda rng: "".join(
        rng.choice(["[MASK]", "[PAD]", "[UNK]", " film", "[MA"]) for _ in range(1500)
    ),
    "one huge word": lambda rng: rng.choice("abc=") * 6_000,
    "a pattern without blanks": lambda rng: "".join(rng.sample("abcdef", 3)) * 2000,
    "words of 90 to 110 letters": lambda rng: " ".join(
        "".join(rng.choice("abcde") for _ in range(rng.randint(90, 110))) for _ in range(200)
    ),
    "a word that a cut would make known": lambda rng: "film " * 4 + "the" * 2000,
    "digits": lambda rng: "".join(rng.choice("0123456789") for _ in range(6_000)),
    "characters that normalisation changes": lambda rng: "ﬁ①½㎏ｱﾞİ" * 900,
    "punctuation": lambda rng: "".join(rng.choice(".,;:!?'\"-()\n") for _ in range(6_000)),
}
BOUNDED = {"words", "CJK without blanks", "special tokens", "words of 90 to 110 letters"}


def mixed(rng):
    """Of everything something."""
    parts = []
    while sum(map(len, parts)) < 6_000:
        text = TEXTS[rng.choice(list(TEXTS))](rng)
        start = rng.randrange(len(text))
        parts.append(text[start : start + rng.choice([3, 40, 400, 4000])])
    return "".join(parts)


def trained(kind):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    rng, special = random.Random(0), ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    corpus = [make(rng)[:300] for make in TEXTS.values()]
    alphabet = pre_tokenizers.ByteLevel.alphabet() if kind == "byte-level" else []
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer
    elif kind == "byte-level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer
    options = {"unk_token": "[UNK]"} if kind == "unigram" else {"initial_alphabet": alphabet}
    tokenizer.train_from_iterator(
        corpus, trainer(vocab_size=600, special_tokens=special, show_progress=False, **options)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


@pytest.fixture(scope="session")
def tokenizers(built_once):
    """`tokenizers(kind, side)`: Pressoir's and transformers', of the same folder."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    found = {}

    def make(folder, kind, side):
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        PreTrainedTokenizerFast(
            tokenizer_object=trained(kind),
            mask_token="[MASK]",
            truncation_side=side,
            model_max_length=64,
            **names,
        ).save_pretrained(folder)

    def get(kind, side):
        if (kind, side) not in found:
            folder = built_once(f"{kind}-{side}", lambda folder: make(folder, kind, side))
            found[kind, side] = FastTokenizer(folder), AutoTokenizer.from_pretrained(folder)
        return found[kind, side]

    return get


def encoded(tokenizer, text):
    """Token ids of a text, and whether it is said to be truncated."""
    [found] = [one for one in iter_encoded(tokenizer, [text], LIMIT) if one is not None]
    return found.inputs["input_ids"][0].tolist(), found.truncated[0]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEXTS)
def test_the_tokens_are_those_of_the_whole_text(tokenizers, name, kind, side):
    ours, theirs = tokenizers(kind, side)
    text = TEXTS[name](random.Random(7))
    expected = theirs(text, truncation=True, max_length=LIMIT)["input_ids"]
    more = len(theirs(text, verbose=False)["input_ids"]) > LIMIT
    assert encoded(ours, text) == (expected, more)
    assert encoded(theirs, text) == (expected, more)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_tokens_of_mixed_texts_are_those_of_the_whole_text(tokenizers, seed, kind, side):
    ours, theirs = tokenizers(kind, side)
    text = mixed(random.Random(seed))
    expected = theirs(text, truncation=True, max_length=LIMIT)["input_ids"]
    assert encoded(ours, text)[0] == expected


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(BOUNDED))
def test_the_work_depends_on_what_is_kept_and_not_on_the_text(tokenizers, name, kind, left):
    tokenizer, _ = tokenizers(kind, "right")
    text, read = TEXTS[name](random.Random(7)), []

    def encode(part):
        read.append(len(part))
        return tokenizer.whole(part)

    work = []
    for long in (text, text * 8):
        read.clear()
        part = finished(shortened(encode, long, LIMIT, left=left))
        assert len(part) < len(text) / 2
        work.append(sum(read))
    assert work[1] <= work[0] < 40_000


def test_a_short_text_is_taken_as_it_is():
    steps = shortened(lambda text: pytest.fail("it was tokenised"), "the film was good", 4)
    assert finished(steps) == "the film was good"


def test_cuts_that_disagree_are_not_believed():
    """Tokens that depend on how long a text is: a best path whose remainder comes first."""
    text = "a" * 10_000
    assert finished(shortened(lambda part: [len(part) % 3] + [3] * (len(part) // 3), text, 8)) == text


def test_what_must_not_be_cut_is_not_called_truncated(tokenizers):
    ours, _ = tokenizers("wordpiece", "right")
    exactly, more = " ".join(["the"] * (LIMIT - 2)), " ".join(["the"] * (LIMIT - 1))
    [found] = [one for one in iter_encoded(ours, [more, exactly, "the"], LIMIT) if one is not None]
    assert found.rows == [0, 1, 2]
    assert found.truncated == [True, False, False]


def test_long_texts_are_encoded_step_by_step_and_none_is_lost(tokenizers):
    ours, theirs = tokenizers("wordpiece", "right")
    rng = random.Random(3)
    texts = [cjk(rng, size) for size in (9000, 3, 9000, 400, 9000)] + ["the film"] * 4
    rows = {}
    steps = list(iter_encoded(ours, texts, 64))
    for one in filter(None, steps):
        for row, ids, mask in zip(
            one.rows, one.inputs["input_ids"], one.inputs["attention_mask"], strict=True
        ):
            rows[row] = ids[mask == 1].tolist()
    expected = theirs(texts, truncation=True, max_length=64)["input_ids"]
    assert [rows[row] for row in range(len(texts))] == expected
    assert steps.count(None) >= 3 * 2  # each long text is at least a step of its own
    np.testing.assert_array_equal(sorted(rows), range(len(texts)))
