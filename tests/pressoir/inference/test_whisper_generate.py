"""Whisper writes what transformers' own `WhisperForConditionalGeneration.generate` does, times included."""

import json
import shutil
import zlib

import numpy as np
import pytest
from speech_models import (
    FIRST_TIME,
    KINDS,
    LANGUAGES,
    NO_SPEECH,
    SETTINGS,
    START,
    TASKS,
    TIMES,
    make_whisper,
)

from pressoir.errors import RecipeError, SourceError
from pressoir.inference.automatic_speech_recognition import SpeechRecognizer
from pressoir.inference.transcript import SpeechOptions
from pressoir.inference.whisper import Span, spans_of

pytestmark = pytest.mark.usefixtures("one_torch_thread")

# How each is asked of transformers, by the language that we are given.
ASKED = {
    "multilingual": {"fr": {"language": "fr"}, None: {"task": "transcribe"}},
    "128 bins, rules": {"de": {"language": "de"}, None: {"task": "transcribe"}},
    "English only": {None: {}},
    "French forced": {None: {}, "de": {"language": "de"}},
    "language left open": {None: {}},
}
RUNTIMES = ["pytorch", "onnxruntime"]


@pytest.fixture(scope="module")
def sounds():
    """Five sounds of up to a second: sweeps in noise."""
    return [sound(seconds, seed) for seed, seconds in enumerate(np.linspace(0.2, 1, 8))][3:]


def sound(seconds, seed):
    generator, time = np.random.default_rng(seed), np.arange(int(16_000 * seconds)) / 16_000
    sweep = np.sin(2 * np.pi * generator.uniform(100, 3000) * time * (1 + time))
    noise = generator.uniform(0.001, 0.3) * generator.standard_normal(len(time))
    return (generator.uniform(0.05, 0.5) * sweep + noise).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, built_once):
    """`folder(kind, runtime, **settings)`: a checkpoint, or its graphs, with these settings.

    An export copies generation_config.json as it is, so one serves all kinds of as many bins.
    """
    from pressoir.export import encoder_decoder
    from pressoir.recipe.sections import ExportConfig
    from pressoir.reporting import LogReporter
    from pressoir.stage import StageContext

    def checkpoint(bins):
        kind = "128 bins, rules" if bins else "multilingual"
        return built_once(f"whisper-{kind[:3]}", lambda folder: make_whisper(folder, kind))

    def graphs(bins):
        def export(out):
            work = tmp_path_factory.mktemp("work")
            context = StageContext(out, work, LogReporter(), seed=0, threads=1)
            encoder_decoder.run({"model": checkpoint(bins)}, ExportConfig(), context)

        return built_once(f"whisper-{bins}-onnx", export)

    def make(kind, runtime, **settings):
        made = tmp_path_factory.mktemp("whisper") / "model"
        shutil.copytree((checkpoint if runtime == "pytorch" else graphs)("128" in kind), made)
        (made / "generation_config.json").write_text(json.dumps(SETTINGS | KINDS[kind] | settings))
        return made

    return make


@pytest.fixture(scope="module")
def timed(folder):
    """Folders of a multilingual model that writes times, by runtime."""
    return {runtime: folder("multilingual", runtime, **TIMES) for runtime in RUNTIMES}


class Reference:
    """transformers' model, features and tokenizer."""

    def __init__(self, folder):
        from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

        self.extract = WhisperFeatureExtractor.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = WhisperForConditionalGeneration.from_pretrained(folder).eval()

    def features(self, samples, **options):
        return self.extract(samples, sampling_rate=16_000, return_tensors="pt", **options)

    def texts(self, sounds, **asked):
        """Of one window each."""
        rows = [self.model.generate(**self.features(samples), **asked)[0] for samples in sounds]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    def segments(self, samples, **asked):
        """(start, end, tokens, text) of each that has a text; of a sound of any length."""
        inputs = self.features(samples, truncation=False, padding="longest")
        found = self.model.generate(**inputs, return_timestamps=True, return_segments=True, **asked)
        rows = []
        for one in found["segments"][0]:
            tokens = [token for token in one["tokens"].tolist() if token < FIRST_TIME]
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            if text.strip():
                rows.append((round(float(one["start"]), 3), round(float(one["end"]), 3), tokens, text))
        return rows


def by_transformers(folder, sounds, **asked):
    return Reference(folder).texts(sounds, **asked)


@pytest.mark.parametrize("kind", KINDS)
def test_both_runtimes_write_what_its_own_generate_writes(kind, folder, sounds):
    folders = {runtime: folder(kind, runtime) for runtime in RUNTIMES}
    for language, asked in ASKED[kind].items():
        for beams in (1, 3) if "rules" in kind or kind == "multilingual" else (1,):
            expected = by_transformers(folders["pytorch"], sounds, num_beams=beams, **asked)
            assert len({word for text in expected for word in text.split()}) >= 8
            assert len(set(expected)) > len(sounds) // 2
            for runtime, path in folders.items():
                recognizer = SpeechRecognizer.open(path, 1, runtime)
                written = [
                    " ".join(recognizer.iter_transcript(samples, language, num_beams=beams))
                    for samples in sounds
                ]
                assert written == expected, (runtime, language, beams)


def test_one_sound_has_one_language_which_its_first_window_tells(folder, sounds):
    model = SpeechRecognizer.open(folder("multilingual", "pytorch"), 1).model
    heard = {}
    for samples in sounds:
        features = model.features(samples)[0][None]
        heard.setdefault(model.prompt({"input_features": features}), samples)
    assert len(heard) > 1, "sounds of several languages"
    (prompt, first), (other, second) = list(heard.items())[:2]
    assert prompt != other
    whole = np.concatenate([np.pad(first, (0, 16_000 - len(first))), second])
    language = next(code for code, token in LANGUAGES.items() if token == prompt[1]).strip("<|>")
    heard_alone, heard_told = (model.iter_transcript(whole, SpeechOptions(code)) for code in (None, language))
    assert list(heard_alone) == list(heard_told)


@pytest.mark.parametrize("beams", [1, 3])
def test_segments_and_their_times_are_those_of_its_own_generate(timed, beams):
    """Of sounds of up to four windows, each of which begins where the last segment ended."""
    given = [sound(seconds, seed) for seed, seconds in enumerate((0.3, 0.9, 1.2, 3.4))]
    reference, windows = Reference(timed["pytorch"]), 0
    expected = [reference.segments(samples, language="fr", num_beams=beams) for samples in given]
    assert sum(map(len, expected)) > len(given)
    for runtime, path in timed.items():
        recognizer = SpeechRecognizer.open(path, 1, runtime)
        for samples, rows in zip(given, expected, strict=True):
            heard = list(recognizer.iter_segments(samples, "fr", num_beams=beams))
            windows += len(heard)
            found = [segment for one in heard for segment in one.segments]
            own = [(s.start, s.end, [t for t in s.tokens if t < FIRST_TIME], s.text) for s in found]
            assert own == rows, runtime
            assert [segment.id for segment in found] == list(range(len(found)))
            assert {one.language for one in heard} == {"fr"}
            assert "".join(one.text for one in heard) == "".join(row[3] for row in rows)
    assert windows > 2 * sum(np.ceil(len(samples) / 16_000) for samples in given), "some overlap"


def test_one_windows_segments_are_those_that_transformers_tokenizer_reads(timed):
    """`decode(output_offsets=True)` of what a single call writes."""
    reference, samples = Reference(timed["pytorch"]), sound(1, 3)
    row = reference.model.generate(
        **reference.features(samples), return_timestamps=True, force_unique_generate_call=True, language="fr"
    )[0]
    offsets = reference.tokenizer.decode(row.tolist(), output_offsets=True)["offsets"]
    assert len(offsets) > 1
    [heard, *_] = SpeechRecognizer.open(timed["pytorch"], 1).iter_segments(samples, "fr")
    own = [(segment.text, (segment.start, segment.end)) for segment in heard.segments]
    expected = [(one["text"], tuple(round(time, 3) for time in one["timestamp"])) for one in offsets]
    assert own == expected[: len(own)]
    assert len(own) > 1


def test_what_a_model_thinks_of_a_segment_is_what_transformers_computes(timed):
    import torch

    reference, samples = Reference(timed["pytorch"]), sound(0.9, 4)
    features = reference.features(samples, truncation=False, padding="max_length")
    given = np.pad(samples, (0, 16_000 - len(samples)))  # as they are padded
    output = reference.model.generate(
        **features,
        language="fr",
        return_timestamps=True,
        force_unique_generate_call=True,
        return_dict_in_generate=True,
        output_scores=True,
    )
    tokens = output.sequences[0][3:]
    scores = [step[0] for step in output.scores]
    logprob = reference.model._retrieve_avg_logprobs(scores, tokens, 0.0)
    with torch.inference_mode():
        logits = reference.model(**features, decoder_input_ids=torch.tensor([[START]])).logits[0, -1]
    for runtime, path in timed.items():
        [heard, *_] = SpeechRecognizer.open(path, 1, runtime).iter_segments(given, "fr")
        assert heard.segments
        text = "".join(segment.text for segment in heard.segments).strip().encode()
        for segment in heard.segments:
            assert segment.avg_logprob == pytest.approx(float(logprob), abs=1e-4)
            assert segment.no_speech_prob == pytest.approx(float(logits.softmax(-1)[NO_SPEECH]), rel=1e-3)
            assert segment.compression_ratio == len(text) / len(zlib.compress(text))
            assert (segment.temperature, segment.seek) == (0, 0)
        [plain, *_] = SpeechRecognizer.open(path, 1, runtime).iter_segments(given, "fr", scored=False)
        assert plain.text == heard.text
        assert all(np.isnan([one.avg_logprob, one.no_speech_prob]).all() for one in plain.segments)


def test_a_window_begins_at_the_last_time_stamp_unless_nothing_follows():
    def stamp(index):
        return FIRST_TIME + index

    cut = [stamp(0), 5, stamp(10), stamp(10), 6, stamp(20), stamp(25), 7]
    spans = [Span(0, 10, cut[:3]), Span(10, 20, cut[3:6])]
    assert spans_of(cut, FIRST_TIME, 100) == (spans, 40)
    ended = [stamp(0), 5, stamp(10), stamp(12), 6, stamp(20)]
    assert spans_of(ended, FIRST_TIME, 100) == ([Span(0, 10, ended[:3]), Span(12, 20, ended[3:])], 100)
    assert spans_of([stamp(3), 5, stamp(9)], FIRST_TIME, 100)[0][0][:2] == (0, 9)
    assert spans_of([stamp(0), 5], FIRST_TIME, 30) == ([Span(0, 15, [stamp(0), 5])], 30)
    assert spans_of([], FIRST_TIME, 30) == ([Span(0, 15, [])], 30)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_prompt_is_what_was_said_before(folder, timed, sounds, runtime):
    settings = {**TIMES, "suppress_tokens": SETTINGS["suppress_tokens"]}
    plain = folder("multilingual", runtime, **settings)
    reference = Reference(folder("multilingual", "pytorch", **settings))
    recognizer = SpeechRecognizer.open(plain, 1, runtime)
    prompt = " a b abc fgh "
    asked = {"prompt_ids": reference.tokenizer.get_prompt_ids(prompt, return_tensors="pt"), "language": "de"}
    expected = reference.texts(sounds[:4], **asked)
    assert expected != reference.texts(sounds[:4], language="de")
    for samples, text in zip(sounds, expected, strict=False):
        assert list(recognizer.iter_transcript(samples, "de", prompt=prompt)) == [text]
        assert list(recognizer.iter_transcript(samples, "de", prompt=" ")) != [text]
    rows = Reference(timed["pytorch"]).segments(sound(2.1, 3), **asked)
    heard = SpeechRecognizer.open(timed[runtime], 1, runtime).iter_segments(
        sound(2.1, 3), "de", prompt=prompt
    )
    own = [(segment.start, segment.end, segment.text) for one in heard for segment in one.segments]
    assert own == [(start, end, text) for start, end, _, text in rows]


def test_a_prompt_that_is_too_long_or_has_special_tokens_is_refused(timed, sounds):
    recognizer = SpeechRecognizer.open(timed["onnxruntime"], 1)
    assert list(recognizer.iter_transcript(sounds[0], "de", prompt="a " * 31))
    with pytest.raises(RecipeError, match="prompt has 32 tokens, and this model takes 31; shorten it"):
        list(recognizer.iter_transcript(sounds[0], "de", prompt="a " * 32))
    for token in ("<|startoftranscript|>", "<|0.02|>"):
        reference = Reference(timed["pytorch"]).tokenizer
        with pytest.raises(ValueError, match="disallowed special token"):
            reference.get_prompt_ids(f"a {token}")
        with pytest.raises(RecipeError, match="prompt has the special token"):
            list(recognizer.iter_transcript(sounds[0], "de", prompt=f"a {token}"))


def test_a_multilingual_model_translates_and_no_other(folder, timed, sounds):
    for kind in ("multilingual", "French forced"):  # which is not obeyed where a task is given
        folders = {runtime: folder(kind, runtime) for runtime in RUNTIMES}
        reference = Reference(folders["pytorch"])
        expected = reference.texts(sounds, task="translate")
        assert expected != reference.texts(sounds, task="transcribe")
        for runtime, path in folders.items():
            recognizer = SpeechRecognizer.open(path, 1, runtime)
            found = [" ".join(recognizer.iter_transcript(samples, translate=True)) for samples in sounds]
            assert found == expected
    rows = Reference(timed["pytorch"]).segments(sounds[-1], task="translate")
    heard = list(SpeechRecognizer.open(timed["onnxruntime"], 1).iter_segments(sounds[-1], translate=True))
    assert [segment.text for one in heard for segment in one.segments] == [row[3] for row in rows]
    english = SpeechRecognizer.open(folder("English only", "onnxruntime"), 1)
    with pytest.raises(RecipeError, match="this model cannot translate speech; use a multilingual Whisper"):
        list(english.iter_transcript(sounds[0], translate=True))


def test_times_that_a_model_does_not_write_are_refused(folder, timed, sounds):
    with pytest.raises(RecipeError, match="times of words are not supported for Whisper"):
        list(SpeechRecognizer.open(timed["onnxruntime"], 1).iter_segments(sounds[0], words=True))
    without = folder("multilingual", "onnxruntime", no_timestamps_token_id=None)
    with pytest.raises(RecipeError, match="this model has no time stamps"):
        list(SpeechRecognizer.open(without, 1).iter_segments(sounds[0]))


def test_the_table_of_tasks_decides_who_translates(folder, sounds):
    plain = folder("multilingual", "onnxruntime", task_to_id={"transcribe": TASKS["transcribe"]})
    with pytest.raises(RecipeError, match="cannot translate"):
        list(SpeechRecognizer.open(plain, 1).iter_transcript(sounds[0], translate=True))


@pytest.mark.parametrize("name", ["no_speech_threshold", "logprob_threshold", "compression_ratio_threshold"])
def test_windows_that_would_be_heard_again_or_left_out_are_refused_by_name(folder, name):
    with pytest.raises(SourceError, match=f"{name}: 0.6 is not supported"):
        SpeechRecognizer.open(folder("multilingual", "pytorch", **{name: 0.6}), 1)
