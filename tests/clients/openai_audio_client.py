"""OpenAI's own client asks a server for transcripts: `python tests/clients/openai_audio_client.py URL SOUND`.

The tiers are `whisper` (multilingual), `english` (Whisper), `letters` (CTC) and `seamless`; the sound is
longer than a window of `whisper`. Environment: `pip install openai pytest srt webvtt-py`, or the dev set.
Every answer is checked; the first that is wrong ends it with a status other than 0.
"""

import io
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import srt
import webvtt
from openai import OpenAI, UnprocessableEntityError
from openai.types.audio import TranscriptionVerbose, TranslationVerbose


def valid(answer):
    """An answer whose fields are all there, and of their types, which the client itself does not check."""
    return type(answer).model_validate(answer.model_dump(exclude_unset=True))


def cues(subtitles, format):
    """(start, end, text) of each, as a library reads them."""
    if format == "srt":
        found = list(srt.parse(subtitles))
        assert [one.index for one in found] == list(range(1, len(found) + 1))
        return [
            (one.start / timedelta(seconds=1), one.end / timedelta(seconds=1), one.content) for one in found
        ]
    found = webvtt.from_buffer(io.StringIO(subtitles))
    times = [
        [time.in_seconds() + time.milliseconds / 1000 for time in (one.start_time, one.end_time)]
        for one in found
    ]
    return [(*pair, one.text) for pair, one in zip(times, found, strict=True)]


def formats(ask, sound, model, **options):
    """JSON, text, and three formats with times, which agree."""
    asked = {"model": model, "file": sound, **options}
    plain = ask(**asked)
    assert plain.text
    assert ask(**asked, response_format="text") == plain.text
    verbose = valid(ask(**asked, response_format="verbose_json"))
    assert verbose.duration == 2.5
    assert verbose.segments
    assert "".join(one.text for one in verbose.segments).split() == verbose.text.split() or model == "letters"
    assert [one.id for one in verbose.segments] == list(range(len(verbose.segments)))
    for one in verbose.segments:
        assert 0 <= one.start < one.end
        assert one.avg_logprob < 0 <= one.no_speech_prob <= 1
        assert one.tokens
    expected = [(one.start, one.end, " ".join(one.text.split())) for one in verbose.segments]
    for format in ("srt", "vtt"):
        found = cues(ask(**asked, response_format=format), format)
        assert [text for *_, text in found] == [text for *_, text in expected], format
        for (*times, _), (*right, _) in zip(found, expected, strict=True):
            assert all(abs(a - b) < 1e-6 for a, b in zip(times, right, strict=True)), (times, right)
    return verbose


def transcriptions(client, sound):
    """By both kinds of models that write times; whole and streamed."""
    ask = client.audio.transcriptions.create
    verbose = formats(ask, sound, "whisper", language="fr")
    assert isinstance(verbose, TranscriptionVerbose)
    assert verbose.language == "french"
    assert verbose.words is None
    assert len({one.seek for one in verbose.segments}) > 1, "several windows"
    letters = formats(ask, sound, "letters")
    assert letters.language == "unknown"
    timed = {"response_format": "verbose_json", "timestamp_granularities": ["word"]}
    words = valid(ask(model="letters", file=sound, **timed))
    assert words.segments is None
    assert " ".join(one.word for one in words.words) == words.text
    assert all(one.start < one.end for one in words.words)
    both = {"response_format": "verbose_json", "timestamp_granularities": ["word", "segment"]}
    assert valid(ask(model="letters", file=sound, **both)).segments == letters.segments
    prompted = ask(model="whisper", file=sound, language="fr", prompt="abc d ef").text
    assert prompted != ask(model="whisper", file=sound, language="fr", prompt="").text
    print(f"transcriptions: {len(verbose.segments)} segments, {len(words.words)} words")


def streams(client, sound):
    """A delta a window, and the text at the end."""
    ask = client.audio.transcriptions.create
    for model in ("whisper", "letters"):
        whole = ask(model=model, file=sound).text
        *parts, done = ask(model=model, file=sound, stream=True)
        assert {part.type for part in parts} == {"transcript.text.delta"}
        assert "".join(part.delta for part in parts) == whole
        assert (done.type, done.text) == ("transcript.text.done", whole)
        print(f"stream: {len(parts)} parts")


def translations(client, sound):
    """By the models that can."""
    verbose = formats(client.audio.translations.create, sound, "whisper")
    assert isinstance(verbose, TranslationVerbose)
    assert verbose.language == "english"
    found = client.audio.translations.create(model="seamless", file=sound)
    assert found.text == client.audio.transcriptions.create(model="seamless", file=sound, language="en").text
    assert found.text != client.audio.transcriptions.create(model="seamless", file=sound, language="fr").text
    print("translations: whisper, seamless")


def refusals(client, sound):
    """What a model cannot do is refused with the reason."""
    words = {"response_format": "verbose_json", "timestamp_granularities": ["word"]}
    hear, translate = client.audio.transcriptions.create, client.audio.translations.create
    for ask, model, options, reason in (
        (hear, "whisper", words, "times of words are not supported for Whisper"),
        (hear, "whisper", {"temperature": 0.5}, "temperature: only 0 is supported"),
        (
            hear,
            "whisper",
            {"chunking_strategy": {"type": "server_vad"}},
            "chunking_strategy is not supported",
        ),
        (hear, "whisper", {"include": ["logprobs"]}, "include is not supported"),
        (hear, "whisper", {"prompt": "a " * 100}, "prompt has 100 tokens, and this model takes 31"),
        (hear, "letters", {"prompt": "a"}, "prompt is not supported by CTC models"),
        (hear, "seamless", {"prompt": "a", "language": "fr"}, "prompt is not supported by models of type"),
        (hear, "seamless", {"response_format": "srt"}, "times are not supported for models of type"),
        (hear, "whisper", {"stream": True, "response_format": "srt"}, "stream is not supported for"),
        (translate, "letters", {}, "a CTC model cannot translate speech"),
        (translate, "english", {}, "this model cannot translate speech"),
        (translate, "whisper", {"extra_body": {"stream": True}}, "stream is not supported"),
        (translate, "whisper", {"extra_body": {"language": "fr"}}, "language is not supported"),
    ):
        with pytest.raises(UnprocessableEntityError) as refused:
            ask(model=model, file=sound, **options)
        message = refused.value.body["message"]
        assert reason in message, message
    print("refusals: all")


def main(url, sound):
    """Run all."""
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        for check in (transcriptions, streams, translations, refusals):
            check(client, Path(sound))


if __name__ == "__main__":
    main(*sys.argv[1:])
