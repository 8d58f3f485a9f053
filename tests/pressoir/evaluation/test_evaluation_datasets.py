"""Data sets of every task: ids that stay, a fingerprint of the content, errors that name the line."""

import json

import pytest

from pressoir.errors import DataError, RecipeError
from pressoir.evaluation import datasets
from pressoir.evaluation.config import DataSetConfig, EvaluationConfig, load


def write(path, content):
    path.write_text(content, encoding="utf-8")
    return path


@pytest.fixture
def speech(tmp_path):
    for name, size in {"a.wav": 10, "b.wav": 30}.items():
        (tmp_path / name).write_bytes(b"\1" * size)
    entries = [{"audio": "a.wav", "text": "one"}, {"audio": "b.wav", "text": "two three"}]
    return write(tmp_path / "manifest.json", json.dumps(entries))


def test_the_embedded_reviews_serve_without_files():
    found = datasets.load(DataSetConfig(task="text-classification"), limit=5)
    assert [one.id for one in found.samples] == ["0", "1", "2", "3", "4"]
    assert found.labels == ("negative", "positive")
    assert {one.reference for one in datasets.load(DataSetConfig(task="text-classification")).samples} == {
        0,
        1,
    }
    (reviews,) = datasets.load(DataSetConfig(task="causal-lm"), limit=1).samples
    assert reviews.reference is None
    assert reviews.length == len(reviews.input) > 1000


def test_speech_is_known_by_its_file_and_its_content(speech, tmp_path):
    config = DataSetConfig(task="automatic-speech-recognition", manifest=speech)
    found = datasets.load(config)
    assert [(one.id, one.reference, one.length) for one in found.samples] == [
        ("a.wav", "one", 10),
        ("b.wav", "two three", 30),
    ]
    (tmp_path / "a.wav").write_bytes(b"\2" * 10)
    assert datasets.load(config).fingerprint != found.fingerprint


def test_translations_are_aligned_lines(tmp_path):
    source, reference = write(tmp_path / "s", "a\nb\n"), write(tmp_path / "r", "x\ny\n")
    config = DataSetConfig(task="translation", source=source, reference=reference)
    assert [(one.input, one.reference) for one in datasets.load(config).samples] == [("a", "x"), ("b", "y")]
    write(reference, "x\n")
    with pytest.raises(DataError, match=r"has 2 lines, but .* has 1"):
        datasets.load(config)


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\f", "\v", "\x1c", "\r"])
def test_only_a_line_feed_ends_a_line(tmp_path, inside):
    source, reference = write(tmp_path / "s", f"a{inside}b\nc\n"), write(tmp_path / "r", "x\r\ny\r\n")
    source.write_bytes(b"\xef\xbb\xbf" + f"a{inside}b\nc\n".encode())
    config = DataSetConfig(task="translation", source=source, reference=reference)
    assert [(one.input, one.reference) for one in datasets.load(config).samples] == [
        (f"a{inside}b", "x"),
        ("c", "y"),
    ]


def test_a_bleu_tokenizer_that_is_not_there_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("sacrebleu.tokenizers.tokenizer_ja_mecab.MeCab", None)
    source, reference = write(tmp_path / "s", "a dog\n"), write(tmp_path / "r", "犬がいる\n")
    for language in ("ja", None):
        config = DataSetConfig(
            task="translation", source=source, reference=reference, target_language=language
        )
        with pytest.raises(
            DataError, match=r"'ja-mecab' is not available here: run: pip install 'pressoir-ml\[ja"
        ):
            datasets.load(config)
    chosen = DataSetConfig(task="translation", source=source, reference=reference, bleu_tokenizer="char")
    assert datasets.load(chosen).bleu_tokenizer == "char"


def test_a_file_that_is_listed_twice_counts_once(speech):
    entries = json.loads(speech.read_text())
    write(speech, json.dumps([*entries, entries[0]]))
    config = DataSetConfig(task="automatic-speech-recognition", manifest=speech, source_language="fr")
    found = datasets.load(config)
    assert [one.id for one in found.samples] == ["a.wav", "b.wav"]
    assert found.notes == ("1 samples are listed more than once and count once",)
    assert found.language == "fr"
    write(speech, json.dumps([*entries, {"audio": "a.wav", "text": "other"}]))
    with pytest.raises(DataError, match=r"a\.wav is listed twice with different references"):
        datasets.load(config)


def test_pairs_have_a_similarity(tmp_path):
    path = write(tmp_path / "p.tsv", 'a "b\tc\t0.5\nd\te\t1\n')
    found = datasets.load(DataSetConfig(task="feature-extraction", pairs=path))
    assert [(one.input, one.reference) for one in found.samples] == [(['a "b', "c"], 0.5), (["d", "e"], 1.0)]
    write(path, "a\tb\t1\nc\td\n")
    with pytest.raises(DataError, match="line 2"):
        datasets.load(DataSetConfig(task="feature-extraction", pairs=path))


def test_the_fingerprint_is_of_the_content_not_the_place(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "s", "a\n")
        write(tmp_path / name / "r", "b\n")
    prints = {
        datasets.load(
            DataSetConfig(task="translation", source=tmp_path / name / "s", reference=tmp_path / name / "r")
        ).fingerprint
        for name in ("one", "two")
    }
    assert len(prints) == 1


@pytest.mark.parametrize(
    "content",
    [
        *("{", "{}", '[{"audio": "x.wav"}]', '[{"audio": "x.wav", "text": "a"}]', "[1]"),
        *('[{"audio": "x.wav", "text": null}]', '[{"audio": 1, "text": "a"}]'),
    ],
)
def test_a_broken_manifest_is_refused(content, tmp_path):
    path = write(tmp_path / "m.json", content)
    with pytest.raises(DataError, match=r"m\.json|no samples"):
        datasets.load(DataSetConfig(task="automatic-speech-recognition", manifest=path))


def test_a_configuration_tells_all_its_mistakes_at_once():
    raw = {
        "models": [
            {"id": "a", "model": "x", "data": "nowhere"},
            {"id": "a", "model": "x", "url": "http://x", "data": "d"},
            {"id": "b", "data": "d", "bacth_size": 3},
        ],
        "data": {"d": {"task": "translation"}},
    }
    with pytest.raises(RecipeError) as caught:
        load(raw)
    message = str(caught.value)
    for part in (
        "needs `source`",
        "needs `reference`",
        "either `model` or `url`",
        "did you mean `batch_size`",
    ):
        assert part in message


def test_names_must_agree():
    model = {"id": "a", "model": "x", "data": "d"}
    raw = {"models": [model, model], "data": {"d": {"task": "causal-lm"}}, "batches": {"x": ["a", "c"]}}
    with pytest.raises(ValueError, match=r"two models have the same id 'a'; batch x: no model 'c'"):
        EvaluationConfig.model_validate(raw)


def test_paths_are_looked_up_beside_the_file(tmp_path):
    write(tmp_path / "t.txt", "hello")
    path = write(
        tmp_path / "e.yaml",
        "models: [{id: a, model: x, data: d}]\ndata: {d: {task: causal-lm, text: t.txt}}\n",
    )
    assert EvaluationConfig.from_yaml(path).data["d"].text == tmp_path / "t.txt"
