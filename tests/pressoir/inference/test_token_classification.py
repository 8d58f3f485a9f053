"""Words, their tokens and the spans that are found, beside transformers' tokenizers and pipeline."""

import numpy as np
import pytest
import torch
import transformers

from pressoir.data.texts import Words, given_words, words_of
from pressoir.errors import DataError
from pressoir.inference.token_alignment import flat, padded, windows
from pressoir.inference.token_classification import TokenClassifier
from pressoir.inference.tokenizers.tokenizers import FastTokenizer
from pressoir.models import loading

WORDS = "good great bad awful film book meal hotel soup song".split()
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
SENTENCES = [
    Words(["the", "film", "was", "good"]),
    Words(["the", "superb", "soup", ","]),
    Words(["chair"]),
]


@pytest.fixture
def token_classifier(pair_classifier, tmp_path):
    """`token_classifier(kind)`: folder of a token classifier with random weights."""

    def make(kind):
        folder = tmp_path / kind
        torch.manual_seed(1)
        model = loading.load_classifier(pair_classifier(kind), labels=LABELS, tokens=True)
        torch.nn.init.normal_(model.classifier.weight, std=3.0)
        loading.save_model(model, folder)
        loading.save_tokenizer(loading.load_tokenizer(pair_classifier(kind), words=True), folder)
        return folder

    return make


@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet"])
def test_first_tokens_are_those_that_transformers_says(kind, token_classifier):
    folder = token_classifier(kind)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = theirs([list(words) for words in SENTENCES], is_split_into_words=True, padding=True)
    for tokenizer in (FastTokenizer(folder), theirs):
        found = windows(tokenizer, SENTENCES)
        assert found.inputs["input_ids"].tolist() == encoded["input_ids"]
        for row, words in enumerate(SENTENCES):
            ids = encoded.word_ids(row)
            assert found.words[row] == list(range(len(words)))
            assert found.places[row] == [ids.index(word) for word in found.words[row]]


def test_byte_level_tokens_begin_words_with_a_space(pair_classifier, token_classifier):
    """A word by itself has the tokens that it has within the text; without the space it would have others."""
    folder = token_classifier("roberta")
    theirs = transformers.AutoTokenizer.from_pretrained(pair_classifier("roberta"))
    whole = theirs(" the film was good")["input_ids"]
    assert windows(FastTokenizer(folder), SENTENCES[:1]).inputs["input_ids"][0].tolist() == whole
    bare = [i for word in SENTENCES[0] for i in theirs(word, add_special_tokens=False)["input_ids"]]
    assert whole[1:-1] != bare


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_long_sentence_goes_through_in_windows(kind, token_classifier):
    folder = token_classifier(kind)
    random = np.random.default_rng(0)
    words = Words(random.choice(WORDS, size=90).tolist())
    tokenizer = FastTokenizer(folder)
    found = windows(tokenizer, [SENTENCES[0], words])
    assert found.inputs["input_ids"].shape[1] <= tokenizer.model_max_length
    assert found.rows[0] == 0
    assert set(found.rows[1:]) == {1}
    assert len(found.rows) > 2
    assert [word for own in found.words[1:] for word in own] == list(range(90))
    for own, ids, places in zip(
        found.words[1:], found.inputs["input_ids"][1:], found.places[1:], strict=True
    ):
        alone = windows(tokenizer, [Words(words[own[0] : own[-1] + 1])])
        assert alone.inputs["input_ids"][0].tolist() == ids[: alone.inputs["input_ids"].shape[1]].tolist()
        assert alone.places[0] == places
    logits = TokenClassifier.open(folder, 1).logits([words])
    assert logits.shape == (1, 90, len(LABELS))
    assert logits.any(axis=2).all()


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_entities_are_those_of_the_pipeline(kind, token_classifier):
    folder = token_classifier(kind)
    ask = transformers.pipeline(
        "token-classification", model=str(folder), aggregation_strategy="first", device="cpu"
    )
    random, found = np.random.default_rng(1), 0
    for _ in range(30):
        words = random.choice([*WORDS, "unbelievable", "and"], size=4).tolist()
        text = " ".join(words)
        [expected] = ask([words], is_split_into_words=True)
        [answer] = TokenClassifier.open(folder, 1).tag([words])
        assert [entity.type for entity in answer.entities] == [each["entity_group"] for each in expected]
        assert [e.text for e in answer.entities] == [text[each["start"] : each["end"]] for each in expected]
        scores = [float(each["score"]) for each in expected]
        assert [entity.score for entity in answer.entities] == pytest.approx(scores, abs=1e-5)
        found += len(expected)
    assert found > 20


def test_steps_of_a_server_give_the_same(token_classifier):
    classifier = TokenClassifier.open(token_classifier("bert"), 1)
    sentences = [*SENTENCES, Words(["good", "soup"] * 30)]
    expected = classifier.tag(sentences)
    for most in (0, 40, 1000):
        steps = [found for found in classifier.iter_tagged(sentences, None, most) if found is not None]
        assert sorted(row for row, _ in steps) == [0, 1, 2, 3]
        for row, tagged in steps:
            assert tagged.tags == expected[row].tags
            assert tagged.scores == pytest.approx(expected[row].scores, abs=1e-5)


def test_words_of_a_text():
    assert words_of("Peter's 2-week visit.") == ("Peter", "'", "s", "2", "-", "week", "visit", ".")
    assert given_words('["U.S.", "visit"]') == ("U.S.", "visit")
    assert given_words("[a") == ("[", "a")


def test_an_empty_word_is_refused(token_classifier):
    with pytest.raises(DataError, match="word 2 of 3 is empty"):
        TokenClassifier.open(token_classifier("bert"), 1).tag([["a", " ", "b"]])


def test_padding_and_its_reverse():
    values = np.arange(18).reshape(9, 2)
    assert (flat(padded(values, SENTENCES), SENTENCES) == values).all()
