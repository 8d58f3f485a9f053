"""Subtitles that libraries of others read, whatever a text holds."""

import datetime
import html
import io

import pytest
import srt
import webvtt

from pressoir.inference.transcript import Segment
from pressoir.serving.http.openai.transcripts import answer
from pressoir.serving.transcription import Transcript

TEXTS = ["Tom & Jerry <b>", " a --> b\n\n2\n00:00:01,000 --> 00:00:02,000", "«é 🙂»", "NOTE", "1"]
TIMES = [(0.0, 0.02), (0.5, 59.999), (61.02, 3599.9996), (3600.0, 3661.5), (360_000.25, 360_001.0)]


@pytest.fixture
def transcript():
    segments = [
        Segment(index, 0, start, end, text, [1], 0.0, -1.0, 1.0, 0.0)
        for index, ((start, end), text) in enumerate(zip(TIMES, TEXTS, strict=True))
    ]
    return Transcript("", 360_001.0, "fr", segments, [])


def test_subrip(transcript):
    found = answer(transcript, "srt", ("segment",), translate=False)
    assert found.media_type == "application/x-subrip"
    cues = list(srt.parse(found.body.decode()))
    assert [one.content.replace("->", "-->") for one in cues] == [" ".join(text.split()) for text in TEXTS]
    second = datetime.timedelta(seconds=1)
    times = [(one.start / second, one.end / second) for one in cues]
    assert times == [tuple(round(time, 3) for time in pair) for pair in TIMES]


def test_webvtt(transcript):
    found = answer(transcript, "vtt", ("segment",), translate=False)
    assert found.headers["content-type"] == "text/vtt; charset=utf-8"
    cues = list(webvtt.from_buffer(io.StringIO(found.body.decode())))
    assert [html.unescape(one.raw_text) for one in cues] == [" ".join(text.split()) for text in TEXTS]
    times = [
        tuple(time.in_seconds() + time.milliseconds / 1000 for time in (one.start_time, one.end_time))
        for one in cues
    ]
    assert times == [pytest.approx(pair, abs=5e-4) for pair in TIMES]


def test_a_sound_without_words_has_no_subtitles(transcript):
    silent = Transcript("", 1.0, None, [], [])
    assert list(srt.parse(answer(silent, "srt", ("segment",), translate=False).body.decode())) == []
    assert (
        list(webvtt.from_buffer(io.StringIO(answer(silent, "vtt", ("segment",), False).body.decode()))) == []
    )


def test_languages_have_the_names_that_whisper_gives_them():
    from transformers.models.whisper.tokenization_whisper import LANGUAGES as NAMES

    from pressoir.inference.translation import LANGUAGES

    ours = {code: name.lower() for code, (_, name) in LANGUAGES.items() if code in NAMES}
    assert len(ours) > 30
    assert {code: name for code, name in ours.items() if name != NAMES[code]} == {}
