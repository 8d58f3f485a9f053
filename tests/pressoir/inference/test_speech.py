"""Speech recognition: features and transcripts are those of transformers, whatever the runtime."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from pressoir.errors import DataError, RecipeError, ShardError, SourceError
from pressoir.inference.audio import LogMel, mel_filters
from pressoir.inference.automatic_speech_recognition import SpeechRecognizer, WhisperModel
from pressoir.inference.ctc import CtcModel, CtcVocabulary
from pressoir.inference.engines.encoder_decoder import Generation
from pressoir.inference.generation.beam_search import Rules

pytestmark = pytest.mark.usefixtures("one_torch_thread")

MODELS = ["tiny_whisper", "tiny_wav2vec2"]


@pytest.fixture
def sounds(tone):
    return [tone(seconds, pitch, seed=seed) for seed, (seconds, pitch) in enumerate([(0.4, 220), (0.9, 500)])]


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros(100),
        np.zeros((2, 100), dtype=np.float32),
        np.zeros(0, dtype=np.float32),
        np.full(100, np.nan, dtype=np.float32),
    ],
    ids=["float64", "two channels", "empty", "not finite"],
)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_not_mono_sound_is_refused_before_any_work(exported, sounds, name, wrong):
    recognizer = SpeechRecognizer.open(exported(name)[0], 1)
    with pytest.raises(DataError, match="audio 1 "):
        recognizer.transcribe([sounds[0], wrong])


# Features


@pytest.mark.parametrize("bins", [16, 80, 128])
def test_log_mel_features_are_those_of_transformers(tmp_path, tone, bins):
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=bins, chunk_length=2)
    extractor.save_pretrained(tmp_path)
    extract = LogMel.read(tmp_path)
    np.testing.assert_allclose(mel_filters(bins, 400, 16_000).T, extractor.mel_filters, atol=1e-12)
    for samples in (tone(0.5), tone(2.0, pitch=3000), tone(3.0), np.zeros(800, dtype=np.float32)):
        expected = extractor(samples, sampling_rate=16_000, return_tensors="np").input_features[0]
        np.testing.assert_allclose(extract(samples), expected, atol=1e-4)


# Transcripts


def by_transformers(folder, samples):
    import torch
    from transformers import (
        AutoFeatureExtractor,
        AutoModelForCTC,
        AutoModelForSpeechSeq2Seq,
        AutoTokenizer,
    )

    extractor, tokenizer = AutoFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = extractor(samples, sampling_rate=16_000, return_tensors="pt")
    ctc = "ForCTC" in (folder / "config.json").read_text()
    model = (AutoModelForCTC if ctc else AutoModelForSpeechSeq2Seq).from_pretrained(folder).eval()
    with torch.inference_mode():
        if ctc:
            return tokenizer.batch_decode(model(**inputs).logits.argmax(dim=-1))[0]
        return tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)[0]


@pytest.mark.parametrize("runtime", ["pytorch", "onnxruntime"])
@pytest.mark.parametrize("name", MODELS)
def test_transcripts_are_those_of_transformers(exported, request, sounds, name, runtime):
    checkpoint = request.getfixturevalue(name)
    recognizer = SpeechRecognizer.open(checkpoint if runtime == "pytorch" else exported(name)[0], 1)
    assert recognizer.model.engine.runtime == runtime
    expected = [by_transformers(checkpoint, samples) for samples in sounds]
    assert all(expected)
    assert expected[0] != expected[1]
    assert recognizer.transcribe(sounds) == expected
    assert recognizer.transcribe([]) == []


@pytest.mark.parametrize("name", MODELS)
def test_int8_models_run(exported, sounds, name):
    recognizer = SpeechRecognizer.open(exported(name, int8=True)[0], 1)
    assert not recognizer.model.engine.batch_invariant
    assert all(recognizer.transcribe(sounds))


def test_longer_sound_is_transcribed_window_by_window(exported, tone):
    recognizer = SpeechRecognizer.open(exported("tiny_whisper")[0], 1)
    samples = tone(2.3)
    parts = recognizer.transcribe([samples[:16_000], samples[16_000:32_000], samples[32_000:]])
    assert recognizer.transcribe([samples]) == [" ".join(parts)]


def test_sound_shorter_than_one_ctc_frame_is_padded(exported):
    recognizer = SpeechRecognizer.open(exported("tiny_wav2vec2")[0], 1)
    assert recognizer.model.least_samples == 7 * 40 + 64
    assert recognizer.model.logits(np.ones(5, dtype=np.float32)).shape == (1, 10)


@pytest.mark.parametrize("normalise", [True, False])
def test_ctc_samples_are_those_of_transformers(tone, normalise):
    from transformers import Wav2Vec2FeatureExtractor

    given = []
    engine = SimpleNamespace(run=lambda inputs: given.append(inputs["input_values"]) or np.zeros((1, 1, 1)))
    samples = tone(0.5) * 0.5 + np.float32(0.1)
    CtcModel(engine, None, normalise).logits(samples)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=normalise)
    expected = extractor(samples, sampling_rate=16_000, return_tensors="np").input_values
    np.testing.assert_allclose(given[0], expected, atol=1e-5)


# CTC decoding


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        ([0, 5, 5, 0, 5, 6, 6], "AAB"),
        ([4, 4, 5, 4, 0, 4, 6, 4], "A  B"),
        ([1, 5, 3, 2, 6], "<s>A<unk></s>B"),
        ([0, 0], ""),
    ],
)
def test_ctc_merges_repeats_then_drops_blanks(tiny_wav2vec2, frames, text):
    assert CtcVocabulary(tiny_wav2vec2, blank=0).decode(np.asarray(frames)) == text


def test_the_blank_is_whatever_token_the_model_says(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "_": 1}))
    assert CtcVocabulary(tmp_path, blank=1).decode(np.asarray([0, 0, 1, 0])) == "aa"


def test_ctc_tokens_may_be_lowered_and_words_parted_by_another_token(tiny_wav2vec2, tmp_path):
    shutil.copyfile(tiny_wav2vec2 / "vocab.json", tmp_path / "vocab.json")
    settings = {"do_lower_case": True, "word_delimiter_token": {"content": "E"}, "pad_token": "<pad>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert CtcVocabulary(tmp_path, blank=0).decode(np.asarray([5, 9, 6])) == "a b"


def test_a_vocabulary_of_several_languages_is_read_for_the_one_that_the_tokenizer_names(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"eng": {"a": 1}, "fra": {"b": 1}}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"target_lang": "fra"}))
    assert CtcVocabulary(tmp_path, blank=0).decode(np.asarray([1])) == "b"


# Whisper's prompt


def whisper(best=None, **settings):
    """A Whisper of which only the prompt matters; `best` is the token it finds most probable."""
    logits = np.zeros((1, 1, 60), dtype=np.float32)
    logits[0, 0, best or 0] = 1
    engine = SimpleNamespace(
        generation=Generation(50, 8, None, Rules(frozenset([49])), settings),
        forced_logits=lambda inputs, tokens: logits,
    )
    return WhisperModel(engine, None, None)


MULTILINGUAL = {
    "lang_to_id": {"<|en|>": 51, "<|fr|>": 52},
    "task_to_id": {"translate": 53, "transcribe": 54},
    "no_timestamps_token_id": 55,
}


def test_a_model_without_languages_is_only_started():
    assert whisper().prompt({}) == (50,)
    assert whisper(no_timestamps_token_id=55).prompt({}, "en") == (50, 55)
    with pytest.raises(RecipeError, match="language 'fr' is specified, but this model supports one language"):
        whisper().prompt({}, "fr")


def test_a_multilingual_model_is_told_the_language_or_detects_it():
    assert whisper(best=51, **MULTILINGUAL).prompt({}, "fr") == (50, 52, 54, 55)
    assert whisper(best=52, **MULTILINGUAL).prompt({}) == (50, 52, 54, 55)
    assert whisper(best=53, **MULTILINGUAL).prompt({}) == (50, 51, 54, 55), "only a language is a language"
    with pytest.raises(
        RecipeError, match=r"language 'frr' is not supported .* did you mean fr.* supported: en, fr"
    ):
        whisper(**MULTILINGUAL).prompt({}, "frr")


def test_the_prompt_goes_before_the_text_in_both_runtimes(exported, tiny_whisper, sounds):
    models = [
        SpeechRecognizer.open(folder, 1).model for folder in (tiny_whisper, exported("tiny_whisper")[0])
    ]
    inputs = {"input_features": models[0].features(sounds[0])[0][None]}
    expected, actual = (model.engine.generate(inputs, prompt=(1, 7, 8)) for model in models)
    assert expected == actual
    assert actual != models[0].engine.generate(inputs)
    assert len(actual[0]) <= 13, "max_length 16 counts the prompt"


def test_a_ctc_model_takes_no_language(exported, sounds):
    with pytest.raises(RecipeError, match="a CTC model supports one language"):
        SpeechRecognizer.open(exported("tiny_wav2vec2")[0], 1).transcribe(sounds, language="fr")


# Folders


@pytest.mark.parametrize("name", MODELS)
def test_a_runtime_is_insisted_on(request, exported, name):
    with pytest.raises(SourceError, match=r"\.onnx; export the model first"):
        SpeechRecognizer.open(request.getfixturevalue(name), 1, "onnxruntime")
    with pytest.raises(SourceError, match="cannot be loaded as"):
        SpeechRecognizer.open(exported(name)[0], 1, "pytorch")


@pytest.mark.parametrize("name", MODELS)
def test_shards_are_verified_before_they_are_opened(exported, tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(exported(name)[0], folder)
    (folder / "shard_manifest.json").write_text("{}")
    with pytest.raises(ShardError, match="shard_manifest"):
        SpeechRecognizer.open(folder, 1)


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_without_feature_settings_says_so(exported, tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(exported(name)[0], folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(SourceError, match=r"preprocessor_config\.json"):
        SpeechRecognizer.open(folder, 1)
