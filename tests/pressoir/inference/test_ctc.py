"""CTC models hear a sound of any length as transformers' pipeline does, and write what its tokenizers do."""

import itertools
import json
import logging
import shutil

import numpy as np
import pytest
from speech_models import CTC_TYPES, LETTERS, make_ctc

from pressoir.errors import RecipeError
from pressoir.inference.automatic_speech_recognition import SpeechRecognizer
from pressoir.inference.ctc import PAUSE_S, SEGMENT_S, CtcVocabulary, chunks, samples_per_frame

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(params=CTC_TYPES)
def checkpoint(request, built_once):
    """Folder of a random CTC model with wide weights, over the letters of French."""
    return built_once(f"ctc-{request.param}", lambda folder: make_ctc(folder, request.param))


@pytest.fixture(scope="module")
def long_sound():
    """71 s of a pitch that wanders, in noise."""
    generator = np.random.default_rng(0)
    time = np.arange(71 * 16_000) / 16_000
    pitch = np.interp(time, np.arange(0, 72, 0.2), generator.uniform(80, 4000, 360))
    loud = np.interp(time, np.arange(0, 72, 0.1), generator.uniform(0, 0.5, 720))
    sound = loud * np.sin(2 * np.pi * np.cumsum(pitch) / 16_000)
    return (sound + 0.02 * generator.standard_normal(len(time))).astype(np.float32)


def by_pipeline(folder, samples):
    return heard_by_pipeline(folder, samples)["text"]


def heard_by_pipeline(folder, samples, **options):
    from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer, pipeline

    recognizer = pipeline(
        "automatic-speech-recognition",
        model=AutoModelForCTC.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        feature_extractor=AutoFeatureExtractor.from_pretrained(folder),
        chunk_length_s=30,
        device="cpu",
    )
    return recognizer({"raw": samples, "sampling_rate": 16_000}, **options)


@pytest.mark.filterwarnings("ignore:Support for mismatched:UserWarning")  # WavLM's masks in transformers
def test_a_long_sound_is_heard_in_the_chunks_of_transformers_pipeline(checkpoint, long_sound):
    recognizer = SpeechRecognizer.open(checkpoint, 1)
    for samples, steps in ((long_sound[: 2 * 16_000], 1), (long_sound, 4)):
        expected = by_pipeline(checkpoint, samples)
        assert list(recognizer.iter_transcript(samples)) == [*[""] * (steps - 1), expected]
    assert len(set(expected)) >= 8


@pytest.fixture
def wav2vec2(built_once):
    return built_once("ctc-Wav2Vec2", lambda folder: make_ctc(folder, "Wav2Vec2"))


@pytest.fixture
def wordy(built_once):
    return built_once("ctc-words", lambda folder: make_ctc(folder, "Wav2Vec2", likes="x"))


def test_words_have_the_times_of_transformers_pipeline(wordy, long_sound):
    recognizer = SpeechRecognizer.open(wordy, 1)
    expected = heard_by_pipeline(wordy, long_sound[: 40 * 16_000], return_timestamps="word")
    heard = list(recognizer.iter_segments(long_sound[: 40 * 16_000]))
    assert [one.text for one in heard] == ["", expected["text"]]
    words = [{"text": word.word, "timestamp": (word.start, word.end)} for word in heard[-1].words]
    assert len(words) > 100
    assert words == [
        {**one, "timestamp": tuple(round(time, 3) for time in one["timestamp"])} for one in expected["chunks"]
    ]


def test_segments_are_of_whole_words_and_end_before_they_get_long(wordy, long_sound):
    [heard] = SpeechRecognizer.open(wordy, 1).iter_segments(long_sound[: 25 * 16_000])
    words, segments = list(heard.words), heard.segments
    assert len(segments) > 3
    for segment in segments:
        inside = [words.pop(0) for _ in segment.text.split()]
        assert segment.text == " ".join(word.word for word in inside)
        assert (segment.start, segment.end) == (inside[0].start, inside[-1].end)
        assert segment.end - segment.start <= SEGMENT_S
        assert all(b.start - a.end < PAUSE_S for a, b in itertools.pairwise(inside))
    assert not words
    for one, other in itertools.pairwise(segments):
        first = next(word for word in heard.words if word.start == other.start)
        assert other.start - one.end >= PAUSE_S or first.end - one.start > SEGMENT_S


def test_a_pause_parts_segments(wav2vec2, monkeypatch):
    recognizer, pad, space, a, b = SpeechRecognizer.open(wav2vec2, 1), 0, LETTERS.index("|"), 5, 6
    assert LETTERS[pad] == "<pad>"
    frames = [a, space, *[pad] * 23, b, pad, b, *[pad] * 24, space, a, *[pad] * 9]  # of 20 ms each
    monkeypatch.setattr(recognizer.model, "logits", lambda samples: 9 * np.eye(len(LETTERS))[frames])
    [heard] = recognizer.iter_segments(np.ones(320 * len(frames), dtype=np.float32))
    assert [(one.text, one.start, one.end) for one in heard.segments] == [
        ("a bb", 0, 0.56),
        ("a", 1.06, 1.08),
    ]
    assert [(one.word, one.start) for one in heard.words] == [("a", 0), ("bb", 0.5), ("a", 1.06)]
    assert [one.tokens for one in heard.segments] == [[a, space, b, b], [a]]


def test_what_a_ctc_model_thinks_of_a_segment_is_of_its_frames(wav2vec2, long_sound):
    import torch
    from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

    samples = long_sound[: 3 * 16_000]
    model, tokenizer = AutoModelForCTC.from_pretrained(wav2vec2), AutoTokenizer.from_pretrained(wav2vec2)
    inputs = AutoFeatureExtractor.from_pretrained(wav2vec2)(
        samples, sampling_rate=16_000, return_tensors="pt"
    )
    with torch.inference_mode():
        logprobs = model.eval()(**inputs).logits[0].log_softmax(-1)
    [heard] = SpeechRecognizer.open(wav2vec2, 1).iter_segments(samples)
    for segment in heard.segments:
        start, end = (round(time * 16_000 / 320) for time in (segment.start, segment.end))
        part = logprobs[start:end]
        assert segment.avg_logprob == pytest.approx(float(part.max(-1).values.mean()), abs=1e-4)
        silent = float(part[:, tokenizer.pad_token_id].double().sum().exp())
        assert segment.no_speech_prob == pytest.approx(silent, rel=1e-3)
        assert tokenizer.decode(segment.tokens, group_tokens=False) == segment.text


def test_what_no_ctc_model_does_is_refused(wav2vec2, long_sound):
    recognizer, samples = SpeechRecognizer.open(wav2vec2, 1), long_sound[:16_000]
    for iterate in (recognizer.iter_transcript, recognizer.iter_segments):
        with pytest.raises(RecipeError, match="a CTC model cannot translate speech"):
            list(iterate(samples, translate=True))
        with pytest.raises(RecipeError, match="prompt is not supported by CTC models"):
            list(iterate(samples, prompt="Ada"))
        with pytest.raises(RecipeError, match="a CTC model supports one language only"):
            list(iterate(samples, "fr"))


def test_chunks_cover_every_sample_once():
    for samples in (1, 99, 100, 101, 160, 161, 1000):
        heard = [(one.start + one.left, one.end - one.right) for one in chunks(samples, 100, 20)]
        assert heard[0][0] == 0
        assert heard[-1][1] == samples
        assert all(end == start for (_, end), (start, _) in itertools.pairwise(heard))
        assert all(one.end - one.start <= 100 for one in chunks(samples, 100, 20))


def test_frames_are_as_far_apart_as_transformers_says(checkpoint):
    from transformers import AutoConfig

    config = json.loads((checkpoint / "config.json").read_text())
    assert samples_per_frame(config) == AutoConfig.from_pretrained(checkpoint).inputs_to_logits_ratio
    assert samples_per_frame({}) == 320


def test_a_folder_with_a_language_model_is_run_greedily_and_says_so_once(built_once, tmp_path, caplog):
    folder = shutil.copytree(
        built_once("ctc-Wav2Vec2", lambda folder: make_ctc(folder, "Wav2Vec2")), tmp_path / "model"
    )
    (folder / "language_model").mkdir()
    with caplog.at_level(logging.WARNING, logger="pressoir"):
        recognizer = SpeechRecognizer.open(folder, 1)
        recognizer.transcribe([np.ones(16_000, dtype=np.float32)] * 2)
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}: decoded greedily, without its n-gram language model (language_model/, which needs kenlm)"
    ]


# Tokenizers as French models have them: names of special tokens, delimiters, case, added tokens.
TOKENIZERS = {
    "usual": ({}, LETTERS),
    "other names": (
        {"pad_token": "[PAD]", "unk_token": "[UNK]", "word_delimiter_token": " "},
        [*"abc", " ", "é", "[UNK]", "[PAD]"],
    ),
    "lower case": ({"do_lower_case": True}, ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDÉ'"]),
    "another delimiter": ({"replace_word_delimiter_char": "_"}, LETTERS),
    "special tokens without ids": (
        {"bos_token": "<begin>", "eos_token": "<end>"},
        [*"ab|", "<unk>", "<pad>"],
    ),
    "tokens of two letters": ({}, ["<pad>", "<unk>", "|", "ch", "on", "a"]),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_frames_become_the_text_that_transformers_makes_of_them(tmp_path, name):
    from transformers import AutoTokenizer, Wav2Vec2CTCTokenizer

    settings, letters = TOKENIZERS[name]
    vocabulary = tmp_path / "vocab.json"
    vocabulary.write_text(json.dumps({letter: index for index, letter in enumerate(letters)}))
    Wav2Vec2CTCTokenizer(str(vocabulary), **settings).save_pretrained(tmp_path)
    tokenizer, own = AutoTokenizer.from_pretrained(tmp_path), CtcVocabulary(tmp_path, blank=0)
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, len(tokenizer), 40).repeat(generator.integers(1, 3, 40)) for _ in range(50)]
    expected = tokenizer.batch_decode(rows)
    assert len(set(expected)) == 50
    assert [own.decode(row) for row in rows] == expected
    assert own.decode(np.asarray([], dtype=np.int64)) == ""
    for row in rows:
        offsets = tokenizer.decode(row, output_word_offsets=True).word_offsets
        words = [(one["word"], one["start_offset"], one["end_offset"]) for one in offsets]
        if settings.get("do_lower_case"):  # transformers lowers the text alone
            words = [(word.lower(), start, end) for word, start, end in words]
        assert own.words(row) == words
