"""BLEU, chrF, WER and CER: known values, and a signature that says how each was computed."""

from importlib.metadata import version

import pytest

from pressoir.errors import DataError
from pressoir.metrics import (
    NORMALISERS,
    bleu,
    bleu_tokenizer,
    cer,
    check_bleu_tokenizer,
    chrf,
    normalise_transcript,
    normaliser_of,
    wer,
)

SCORES = [bleu, chrf, wer, cer]


@pytest.mark.parametrize(("score", "best"), [(bleu, 100), (chrf, 100), (wer, 0), (cer, 0)])
def test_equal_texts_have_the_best_score(score, best):
    texts = ["a dog runs over the green grass", "two men are talking"]
    assert score(texts, texts).value == best


def test_bleu_is_that_of_the_paper():
    # Papineni et al., example 1 shortened: 5/6 words, 3/5 pairs, 1/4 triples; the one quadruple is none.
    found = bleu(["the cat sat on the mat"], ["the cat is on the mat"])
    smoothed = (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25  # exp smoothing: half of 1/3
    assert found.value == pytest.approx(100 * smoothed)
    assert bleu(["the cat"], ["the cat is on the mat"]).value < found.value, "brevity is penalised"


def test_bleu_counts_the_corpus_not_the_sentences():
    predicted, expected = ["a b c d e", "x"], ["a b c d e", "a b c d e"]
    sentences = [bleu([p], [e]).value for p, e in zip(predicted, expected, strict=True)]
    assert bleu(predicted, expected).value != pytest.approx(sum(sentences) / 2)


def test_error_rates_count_the_corpus_not_the_sentences():
    assert wer(["one two three", "x"], ["one two three", "y"]).value == pytest.approx(1 / 4)
    assert cer(["abc", "xy"], ["abc", "xz"]).value == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("predicted", "value"),
    [("one two", 1 / 3), ("one two tree", 1 / 3), ("one two big three", 1 / 3), ("", 1), ("a b c d e f", 2)],
)
def test_word_errors_are_deletions_substitutions_and_insertions(predicted, value):
    assert wer([predicted], ["one two three"]).value == pytest.approx(value)


def test_case_and_punctuation_are_no_errors_of_a_recogniser():
    assert wer(["Hello, World!"], ["hello world"]).value == 0
    assert bleu(["Hello, World!"], ["hello world"]).value < 100


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  Zero,\tone  TWO. ", "zero one two"),
        ("It’s well-known – isn't it?", "it's well-known isn't it"),
        ("«\u00a0Café\u00a0»", "café"),
        ("'quoted' - 3.5%", "quoted 3.5"),
        ("ﬁve", "five"),
        ("…", ""),
        ("et/ou", "et ou"),
        ("x—y, x–y … x…y", "x y x y x y"),
        ("one,two;three", "one two three"),
        ("1,000.5 at 12:30", "1,000.5 at 12:30"),
        ("the U.S.A. and e.g. me.", "the usa and eg me"),
        ("rock'n'roll", "rock'n'roll"),
    ],
)
def test_transcripts_are_normalised(text, normal):
    assert normalise_transcript(text) == normal
    assert normalise_transcript(normal) == normal


@pytest.mark.parametrize("text", ["L'œuvre qu’il a", "l' oeuvre qu' il a", "l’Oeuvre, qu'il a !"])
def test_french_transcripts_write_elisions_and_ligatures_one_way(text):
    assert normalise_transcript(text, "french") == "l oeuvre qu il a"
    assert normalise_transcript("aujourd'hui c'est-à-dire", "french") == "aujourd'hui c est-à-dire"
    assert wer([text], ["L'œuvre qu'il a"], "french").value == 0


@pytest.mark.parametrize(
    ("language", "normaliser"), [("fr", "french"), ("fra_Latn", "french"), ("en", "basic"), (None, "basic")]
)
def test_the_language_of_the_speech_chooses_the_normaliser(language, normaliser):
    assert normaliser_of(language) == normaliser


PERFECT = {
    "ja": "犬が緑の草の上を走っています。二人の男が話している。",
    "zh": "一只狗在绿色的草地上奔跑。两个男人在说话。",
    "ko": "개가 푸른 잔디 위를 달리고 있다. 두 남자가 이야기하고 있다.",
    "de": "Ein Hund läuft über das grüne Gras.",
}


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [
        *(("ja", "ja-mecab"), ("jpn_Jpan", "ja-mecab"), ("ja_XX", "ja-mecab")),
        *(("zh", "zh"), ("zho_Hans", "zh"), ("zh-CN", "zh"), ("ko", "ko-mecab"), ("kor_Hang", "ko-mecab")),
        *(("de", "13a"), ("fra_Latn", "13a"), ("jv", "13a")),
    ],
)
def test_bleus_tokenizer_follows_the_target_language(language, tokenizer):
    assert bleu_tokenizer(language) == tokenizer


@pytest.mark.parametrize("language", PERFECT)
def test_a_perfect_answer_has_the_best_bleu_in_every_script(language):
    text = PERFECT[language]
    assert bleu_tokenizer(None, [text]) == bleu_tokenizer(language), "the script says it too"
    found = bleu([text], [text], bleu_tokenizer(language))
    assert found.value == 100
    assert f"tok:{bleu_tokenizer(language)}" in found.signature
    assert 0 < bleu([text[:-3]], [text], bleu_tokenizer(language)).value < 100


@pytest.mark.parametrize(
    ("tokenizer", "advice"),
    [("ja-mecab", r"pip install 'pressoir-ml\[ja\]'"), ("flores200", "connect this machine once")],
)
def test_a_tokenizer_that_is_not_there_says_how_to_get_it(tokenizer, advice, monkeypatch, tmp_path):
    from sacrebleu.tokenizers import tokenizer_spm

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(tokenizer_spm, "SACREBLEU_DIR", str(tmp_path))
    monkeypatch.setattr(tokenizer_spm, "download_file", offline)
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_ja_mecab.MeCab", None)
    with pytest.raises(DataError, match=f"BLEU's tokenizer '{tokenizer}' is not available here: .*{advice}"):
        check_bleu_tokenizer(tokenizer)


def test_signatures_say_how():
    for score in (bleu, chrf):
        assert f"version:{version('sacrebleu')}" in score(["a"], ["a"]).signature
    assert "tok:13a" in bleu(["a"], ["a"]).signature
    for score in (wer, cer):
        signature = score(["a"], ["a"]).signature
        assert f"norm:basic ({NORMALISERS['basic']})" in signature
        assert "norm:french" in score(["a"], ["a"], "french").signature
        assert signature.endswith(f"jiwer:{version('jiwer')}")
    assert len({score(["a"], ["a"]).signature.partition("|")[0] for score in SCORES}) == 4


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("predicted", "expected"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_texts_must_come_in_pairs(score, predicted, expected):
    with pytest.raises(DataError, match=f"{len(predicted)} predicted texts cannot be scored against"):
        score(predicted, expected)
