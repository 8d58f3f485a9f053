"""Moonshine, Speech2Text, SeamlessM4T and Gemma 3n write what transformers' own `generate` writes."""

import json

import numpy as np
import pytest
from speech_models import MAKERS

from pressoir.errors import RecipeError, SourceError
from pressoir.export import encoder_decoder
from pressoir.extensions.task import task
from pressoir.inference.automatic_speech_recognition import SpeechRecognizer
from pressoir.inference.transformers_speech import SeamlessTranslator, find_language

pytestmark = pytest.mark.usefixtures("one_torch_thread")

# w2v-BERT has a CTC head: see test_ctc.py.
TYPES = set(task("automatic-speech-recognition").pytorch_only) - {"wav2vec2-bert"}


@pytest.fixture(params=sorted(TYPES))
def kind(request):
    """Each type in turn."""
    return request.param


def test_every_type_is_tested():
    assert MAKERS.keys() == TYPES


@pytest.fixture
def checkpoint(kind, built_once, sentencepiece_model):
    """Folder of a random model of a type, as transformers saves it."""
    return built_once(f"speech-{kind}", lambda folder: MAKERS[kind](folder, sentencepiece_model))


@pytest.fixture(scope="module")
def sounds():
    generator, made = np.random.default_rng(0), []
    for pitch in (100, 700, 3000, 5000):
        time = np.arange(24_000) / 16_000
        sound = np.sin(2 * np.pi * pitch * time * (1 + time)) * generator.uniform(0.2, 0.9)
        made.append((sound + 0.1 * generator.standard_normal(24_000)).astype(np.float32))
    return made


def by_transformers(folder, kind, sounds, language, num_beams):
    """As transformers' documentation of each type does it."""
    import torch
    from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq, AutoTokenizer

    extractor, tokenizer = AutoFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    options = {"do_sample": False, "num_beams": num_beams}
    texts = []
    if kind == "gemma3n":
        from transformers import AutoConfig, Gemma3nForConditionalGeneration

        from pressoir.models.gemma3n import without_vision

        config = without_vision(AutoConfig.from_pretrained(folder))
        model = Gemma3nForConditionalGeneration.from_pretrained(folder, config=config)
    elif kind.startswith("seamless"):
        import transformers

        model = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
        model = model.from_pretrained(folder)
        options |= {"tgt_lang": language, "generate_speech": False}
    else:
        model = AutoModelForSpeechSeq2Seq.from_pretrained(folder)
        if kind == "speech_to_text":
            options["forced_bos_token_id"] = tokenizer.lang_code_to_id[language]
    for samples in sounds:
        inputs = extractor([samples], sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
        start = 0
        if kind == "gemma3n":
            prompt = "<s><turn>\n\n<begin>" + "<sound>" * 188 + "<end>\n\n Transcribe this audio in French. "
            tokens = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
            inputs, start = {**inputs, **tokens}, tokens["input_ids"].shape[1]
            inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            output = model.eval().generate(**inputs, **options)
        output = output[0] if kind.startswith("seamless") else output
        texts.append(tokenizer.decode(output[0][start:], skip_special_tokens=True).strip())
    return texts


LANGUAGE = {"moonshine": None, "speech_to_text": "fr", "gemma3n": "fr"}


@pytest.mark.parametrize("num_beams", [1, 3])
def test_transcripts_are_those_of_transformers_own_generate(kind, checkpoint, sounds, num_beams):
    own = {"seamless_m4t": "fra", "seamless_m4t_v2": "fra", **LANGUAGE}[kind]
    expected = by_transformers(checkpoint, kind, sounds, own, num_beams)
    assert len(set(expected)) > 1
    assert len({word for text in expected for word in text.split()}) >= 8
    recognizer = SpeechRecognizer.open(checkpoint, 1)
    assert recognizer.model.takes_language == (kind != "moonshine")
    language = None if kind == "moonshine" else "fr"
    written = [
        "".join(recognizer.iter_transcript(samples, language, num_beams=num_beams)) for samples in sounds
    ]
    assert written == expected


def test_seamless_alone_translates_speech_into_english(kind, checkpoint, sounds):
    recognizer = SpeechRecognizer.open(checkpoint, 1)
    if not kind.startswith("seamless"):
        with pytest.raises(RecipeError, match=f"type '{kind}' cannot translate speech; use a multilingual"):
            list(recognizer.iter_transcript(sounds[0], translate=True))
        return
    expected = by_transformers(checkpoint, kind, sounds, "eng", 1)
    assert expected != by_transformers(checkpoint, kind, sounds, "fra", 1)
    assert ["".join(recognizer.iter_transcript(one, "fr", translate=True)) for one in sounds] == expected


def test_none_of_them_writes_times_or_takes_a_prompt(kind, checkpoint, sounds):
    recognizer = SpeechRecognizer.open(checkpoint, 1)
    with pytest.raises(RecipeError, match=f"times are not supported for models of type '{kind}'"):
        list(recognizer.iter_segments(sounds[0]))
    with pytest.raises(RecipeError, match=f"prompt is not supported by models of type '{kind}'"):
        list(recognizer.iter_transcript(sounds[0], prompt="Ada"))


@pytest.mark.parametrize("kind", ["seamless_m4t", "seamless_m4t_v2"], indirect=True)
def test_seamless_translates_text_as_transformers_does(kind, checkpoint):
    import torch
    import transformers

    texts = ["the film was good and the book was not", "the hotel was awful", "the soup was fine"]
    name = json.loads((checkpoint / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, name).from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    expected = []
    for text in texts:
        inputs = tokenizer(text, src_lang="eng", return_tensors="pt")
        with torch.inference_mode():
            rows = model.generate(
                **inputs, tgt_lang="fra", generate_speech=False, do_sample=False, num_beams=2
            )
        expected.append(tokenizer.decode(rows[0][0], skip_special_tokens=True).strip())
    assert len(set(expected)) > 1
    assert SeamlessTranslator.open(checkpoint, 1).translate(texts, "en", "fr", num_beams=2) == expected


def test_a_longer_sound_is_cut_into_windows(kind, checkpoint, sounds, monkeypatch):
    monkeypatch.setattr("pressoir.inference.transformers_speech.WINDOW_S", 1.5)
    recognizer = SpeechRecognizer.open(checkpoint, 1)
    language = None if kind == "moonshine" else "fr"
    parts = recognizer.transcribe(sounds[:2], language)
    assert recognizer.transcribe([np.concatenate(sounds[:2])], language) == [" ".join(parts)]


def test_what_is_not_exported_says_so_before_any_work(kind, checkpoint, context):
    with pytest.raises(SourceError, match=f"'{kind}' is not exported: it runs in PyTorch only"):
        encoder_decoder.run({"model": checkpoint}, None, context)
    with pytest.raises(SourceError, match=f"'{kind}' runs in PyTorch only"):
        SpeechRecognizer.open(checkpoint, 1, "onnxruntime")


@pytest.mark.parametrize("kind", ["moonshine"], indirect=True)
def test_a_model_of_one_language_takes_none(kind, checkpoint, sounds):
    with pytest.raises(RecipeError, match="language 'fr' is specified, but this model supports one"):
        SpeechRecognizer.open(checkpoint, 1).transcribe(sounds[:1], "fr")


def test_languages_are_found_by_any_of_their_codes():
    known = ["eng", "fra", "cmn"]
    assert {find_language(code, known) for code in ("fr", "fra", "fra_Latn")} == {"fra"}
    with pytest.raises(
        RecipeError, match=r"'fry' is not supported by this model; did you mean fra\? supported"
    ):
        find_language("fry", known)
    with pytest.raises(RecipeError, match="a language is required; this model supports cmn, eng, fra"):
        find_language(None, known)
