"""Each task's adapter: raw predictions, the same ones whatever they are batched with."""

import json
from pathlib import Path

import numpy as np
import pytest

from pressoir.errors import DataError, PressoirError, RecipeError
from pressoir.evaluation import datasets, records
from pressoir.evaluation.child import __main__ as child
from pressoir.evaluation.child.predictors import Windows, open_predictor, samples_of
from pressoir.evaluation.config import DataSetConfig, GenerationConfig
from pressoir.evaluation.jobs import Job
from pressoir.evaluation.journal import Journal
from pressoir.inference.text_classification import TextClassifier
from pressoir.inference.text_generation import TextGenerator
from pressoir.inference.translation import Translator
from pressoir.recipe.sections import DataConfig


@pytest.fixture
def make_job(tmp_path):
    def make(folder, data, **fields):
        given = {"model": "m", "folder": folder, "task": data.task, "data": data, "key": "k"}
        return Job(**{**given, "journal": tmp_path / "j.sqlite", "batch_size": 4, **fields})

    return make


@pytest.fixture
def predict(make_job):
    """Predictions by sample id, over the whole attempt, at a batch size."""

    def run(folder, data, batch_size=4, **fields):
        job = make_job(folder, data, batch_size=batch_size, key=f"{folder} {batch_size}", **fields)
        end = child.run(job, lambda _: None)
        assert end.verdict == "ok", end.detail
        journal = Journal(job.journal)
        found = {one.sample: one.value for one in journal.predictions(job.key)}
        sizes = {one.batch_size for one in journal.predictions(job.key)}
        journal.close()
        run.end, run.sizes = end, sizes
        return found

    return run


@pytest.fixture
def reviews(tiny_data):
    files = {split: tiny_data / f"{split}.tsv" for split in ("train", "validation", "test")}
    return DataSetConfig(task="text-classification", classification=DataConfig(source="files", **files))


@pytest.fixture
def captions(tmp_path):
    """Sentences of quite different lengths."""
    nouns = "film book meal hotel phone chair song tour game soup".split()
    turned = [nouns[i % 10 :] + nouns[: i % 10] for i in range(20)]
    lines = [" and ".join(f"the {noun} was good" for noun in turned[i][: 1 + i % 5]) for i in range(20)]
    for name in ("source", "reference"):
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return DataSetConfig(
        task="translation", source=tmp_path / "source.txt", reference=tmp_path / "reference.txt"
    )


@pytest.fixture
def speech(tmp_path, tone, write_wav):
    """Sounds of 0.3 to 2.5 seconds; Whisper's window here is one second."""
    entries = []
    for index, seconds in enumerate((0.3, 1.0, 2.5, 0.6, 1.7)):
        write_wav(tmp_path / f"{index}.wav", tone(seconds, 200 + 40 * index, index))
        entries.append({"audio": f"{index}.wav", "text": "one"})
    (tmp_path / "manifest.json").write_text(json.dumps(entries))
    return DataSetConfig(task="automatic-speech-recognition", manifest=tmp_path / "manifest.json")


@pytest.fixture
def running_text(tiny_text):
    return DataSetConfig(task="causal-lm", text=tiny_text / "evaluation" / "good.txt")


@pytest.fixture
def pairs(tmp_path):
    rows = [f"the film was {word}\tthe {word} meal and the hotel was bad\t0.5" for word in GOOD]
    (tmp_path / "pairs.tsv").write_text("\n".join(rows) + "\n")
    return DataSetConfig(task="feature-extraction", pairs=tmp_path / "pairs.tsv")


GOOD = "good great lovely fine superb charming warm bright".split()


class TestClassification:
    def test_labels_are_the_largest_logits_and_do_not_depend_on_the_batch(
        self, predict, tiny_classifier, reviews
    ):
        together = predict(tiny_classifier, reviews, batch_size=16)
        assert predict.end.batch_size == 16
        alone = predict(tiny_classifier, reviews, batch_size=1)
        assert predict.sizes == {1}
        assert together.keys() == alone.keys()
        assert len(together) == 80
        for one, other in ((together[sample], alone[sample]) for sample in alone):
            assert one["label"] == other["label"] == int(np.argmax(one["logits"]))
            np.testing.assert_allclose(one["logits"], other["logits"], atol=1e-5)

    def test_they_are_the_classifiers_own(self, predict, tiny_classifier, reviews):
        found = predict(tiny_classifier, reviews)
        samples = datasets.load(reviews).samples
        logits = TextClassifier.open(tiny_classifier, 1).logits([sample.input for sample in samples])
        np.testing.assert_allclose([found[one.id]["logits"] for one in samples], logits, atol=1e-5)

    def test_pairs_are_answered_as_transformers_does(self, predict, pair_classifier, pair_data):
        from transformers import pipeline

        folder = pair_classifier("roberta")
        files = {split: pair_data / f"{split}.tsv" for split in ("train", "validation", "test")}
        columns = {"text_column": "first", "text_pair_column": "second"}
        source = DataConfig(source="files", **files, **columns)
        data = DataSetConfig(task="text-classification", classification=source)
        found = predict(folder, data)
        classify = pipeline("text-classification", model=str(folder), device="cpu", truncation=True)
        for sample in datasets.load(data).samples:
            text, second = sample.input
            [answer] = classify([{"text": text, "text_pair": second}])
            assert answer["label"] == ("other", "same")[found[sample.id]["label"]]

    def test_a_model_of_pairs_refuses_data_of_single_texts(self, make_job, pair_classifier, reviews):
        job = make_job(pair_classifier("bert"), reviews)
        with pytest.raises(RecipeError, match="trained on pairs of texts; set text_pair_column"):
            open_predictor(job, datasets.load(reviews))

    def test_labels_are_told_in_the_order_of_the_data(self, predict, tiny_classifier, reviews, tmp_path):
        folder = tmp_path / "swapped"
        folder.mkdir()
        for path in tiny_classifier.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        config = json.loads((folder / "config.json").read_text())
        config["id2label"] = {"0": "POSITIVE", "1": "NEGATIVE"}
        config["label2id"] = {"POSITIVE": 0, "NEGATIVE": 1}
        (folder / "config.json").write_text(json.dumps(config))
        own, swapped = predict(tiny_classifier, reviews), predict(folder, reviews)
        assert all(own[one]["logits"] == swapped[one]["logits"][::-1] for one in own)
        assert all(own[one]["label"] == 1 - swapped[one]["label"] for one in own)

    def test_a_model_of_other_classes_is_refused(self, make_job, tiny_bert, reviews, tmp_path):
        from pressoir.models import loading

        folder = tmp_path / "three"
        loading.save_model(loading.load_classifier(tiny_bert, labels=["a", "b", "c"]), folder)
        loading.save_tokenizer(loading.load_tokenizer(tiny_bert), folder)
        with pytest.raises(DataError, match="the model has 3 labels"):
            open_predictor(make_job(folder, reviews), datasets.load(reviews))


class TestTranslation:
    @pytest.mark.parametrize("beams", [1, 2])
    @pytest.mark.parametrize("model", ["tiny_nllb", "tiny_marian", "tiny_t5"])
    def test_texts_do_not_depend_on_the_batch(self, predict, request, captions, model, beams):
        folder = request.getfixturevalue(model)
        options = {"generation": GenerationConfig(max_new_tokens=12, num_beams=beams)}
        together = predict(folder, captions, batch_size=16, **options)
        alone = predict(folder, captions, batch_size=1, **options)
        assert together == alone
        assert len(together) == 20
        assert len({one["text"] for one in together.values()}) > 1

    def test_length_and_languages_are_those_asked_for(self, predict, tiny_nllb, captions):
        long = predict(tiny_nllb, captions, generation=GenerationConfig(max_new_tokens=12))
        short = Translator.open(tiny_nllb, 1).translate(
            [datasets.load(captions).samples[0].input], "en", "fr", max_new_tokens=12
        )
        assert long["0"] == {"text": short[0]}

    def test_dynamic_int8_is_run_one_at_a_time(self, predict, exported, captions):
        folder, _ = exported("tiny_nllb", int8=True)
        options = {"generation": GenerationConfig(max_new_tokens=8)}
        together = predict(folder, captions, batch_size=16, **options)
        assert (predict.sizes, predict.end.batch_size) == ({1}, 1)
        assert together == predict(folder, captions, batch_size=1, **options)


class TestRecognition:
    def test_whispers_windows_go_together_and_texts_do_not_depend_on_it(self, predict, tiny_whisper, speech):
        together = predict(tiny_whisper, speech, batch_size=16)
        assert predict.end.batch_size == 5
        alone = predict(tiny_whisper, speech, batch_size=1)
        assert together == alone
        assert [together[f"{i}.wav"]["audio_s"] for i in range(5)] == [0.3, 1.0, 2.5, 0.6, 1.7]
        assert together["2.wav"]["text"].count(" ") > together["0.wav"]["text"].count(" ")

    def test_it_is_what_the_recognizer_says(self, predict, tiny_whisper, speech):
        from pressoir.inference.audio import read_audio
        from pressoir.inference.automatic_speech_recognition import SpeechRecognizer

        told = speech.model_copy(update={"source_language": "fr"})  # of no use to a model of one language
        found = predict(tiny_whisper, told)
        samples = datasets.load(speech).samples
        sounds = [read_audio(Path(one.input), 16_000) for one in samples]
        said = SpeechRecognizer.open(tiny_whisper, 1).transcribe(sounds)
        assert [found[one.id]["text"] for one in samples] == said

    def test_ctc_models_hear_one_sound_at_a_time_and_are_not_told_a_language(
        self, predict, tiny_wav2vec2, speech
    ):
        told = speech.model_copy(update={"source_language": "en"})
        found = predict(tiny_wav2vec2, told, batch_size=16)
        assert predict.sizes == {1}
        assert found == predict(tiny_wav2vec2, speech, batch_size=1)


class TestWindows:
    def test_a_text_is_cut_into_windows_whose_sums_give_the_perplexity(self, predict, tiny_lm, running_text):
        generation = GenerationConfig(window=32)
        together = predict(tiny_lm, running_text, batch_size=16, generation=generation)
        alone = predict(tiny_lm, running_text, batch_size=1, generation=generation)
        assert list(together)[:2] == ["good:0", "good:1"]
        assert together.keys() == alone.keys()
        for sample, value in together.items():
            assert value["tokens"] == alone[sample]["tokens"] == 31
            assert value["nll"] == pytest.approx(alone[sample]["nll"], rel=1e-5)
        whole = TextGenerator.open(tiny_lm, 1).perplexity(running_text.text.read_text(), window=32)
        total = sum(value["nll"] for value in together.values())
        assert whole.tokens == 31 * len(together)
        assert total / whole.tokens == pytest.approx(whole.nll, rel=1e-5)

    def test_samples_limit_the_windows_over_all_texts(self, make_job, tiny_llama, running_text):
        job = make_job(tiny_llama, running_text, samples=3, generation=GenerationConfig(window=32))
        data = datasets.load(running_text)
        twice = datasets.DataSet(
            data.task, (*data.samples, data.samples[0].model_copy(update={"id": "more"})), ""
        )
        assert [one.id for one in samples_of(job, twice)] == ["good:0", "good:1", "good:2"]
        every = samples_of(job.model_copy(update={"samples": None}), twice)
        assert len(every) % 2 == 0
        assert every[-1].id == f"more:{len(every) // 2 - 1}"
        assert all(one.length == len(one.input) == 32 for one in every)

    def test_a_window_beyond_the_models_context_is_refused(self, make_job, tiny_llama, running_text):
        job = make_job(tiny_llama, running_text, generation=GenerationConfig(window=512))
        with pytest.raises(RecipeError, match="context of 256"):
            open_predictor(job, datasets.load(running_text))

    def test_logits_that_are_not_finite_are_no_prediction(self):
        class Broken:
            def forward(self, ids):
                return np.full((*ids.shape, 8), np.nan, dtype=np.float32), None

        sample = records.EvaluationSample(id="t:0", input=np.arange(4), reference=None, length=4)
        with pytest.raises(PressoirError, match="not finite"):
            Windows(Broken()).predict([sample])


class TestSimilarity:
    def test_similarities_do_not_depend_on_the_batch(self, predict, tiny_bert, pairs):
        together = predict(tiny_bert, pairs, batch_size=16)
        alone = predict(tiny_bert, pairs, batch_size=1)
        assert len(together) == len(GOOD)
        for sample, value in together.items():
            assert -1 <= value["similarity"] <= 1
            assert value["similarity"] == pytest.approx(alone[sample]["similarity"], abs=1e-6)
        assert len({round(value["similarity"], 6) for value in together.values()}) > 4


def test_a_gpu_that_is_not_there_cannot_be_asked_for(make_job, tiny_bert, pairs, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="finds no GPU"):
        open_predictor(make_job(tiny_bert, pairs, device="cuda"), datasets.load(pairs))


@pytest.mark.parametrize("name", ["tiny_whisper", "tiny_wav2vec2"])
def test_a_recording_that_is_empty_or_damaged_costs_itself_alone(
    make_job, request, tmp_path, tone, write_wav, name
):
    for number in range(5):
        write_wav(tmp_path / f"{number}.wav", tone(0.5, pitch=200 + 50 * number))
    write_wav(tmp_path / "1.wav", [])
    damaged = (tmp_path / "3.wav").read_bytes()
    (tmp_path / "3.wav").write_bytes(damaged[: len(damaged) // 2])
    entries = [{"audio": f"{number}.wav", "text": "one"} for number in range(5)]
    (tmp_path / "m.json").write_text(json.dumps(entries))
    data = DataSetConfig(task="automatic-speech-recognition", manifest=tmp_path / "m.json")
    job = make_job(request.getfixturevalue(name), data)
    end = child.run(job, lambda _: None)
    assert end.verdict == "ok"
    assert end.detail.startswith("2 samples failed on their own and are not scored: ")
    assert "1.wav" in end.detail
    assert "3.wav is truncated" in end.detail
    journal = Journal(job.journal)
    assert journal.done(job.key) == {"0.wav", "2.wav", "4.wav"}
    journal.close()
