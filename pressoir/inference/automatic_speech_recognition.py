"""Speech recognition over three kinds of model: Whisper, CTC encoders, and what transformers runs itself.

Waveforms in, transcripts out. `pressoir.inference.whisper` has the first kind, `pressoir.inference.ctc` the
second (wav2vec2, …), `pressoir.inference.transformers_speech` the third (Moonshine, SeamlessM4T, …). In ONNX
Runtime no torch is imported: features and CTC decoding are numpy, and tokens become text by the `tokenizers`
library, or by a CTC model's `vocab.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pressoir.formats.folder import Runtime, is_ctc, model_type_of, read_json
from pressoir.inference.arguments import opened
from pressoir.inference.audio import SAMPLING_RATE, Waveform, check_waveforms, join_windows
from pressoir.inference.ctc import CtcModel
from pressoir.inference.transcript import Heard, SpeechOptions
from pressoir.inference.transformers_speech import TransformersSpeechModel
from pressoir.inference.whisper import WhisperModel


class SpeechRecognizer:
    """A model of one of the kinds; `sampling_rate` is what it hears."""

    def __init__(self, model: SpeechModel, sampling_rate: int = SAMPLING_RATE) -> None:
        self.model, self.sampling_rate = model, sampling_rate

    @classmethod
    def open(
        cls, folder: Path | str, threads: int | None = None, runtime: Runtime | None = None
    ) -> SpeechRecognizer:
        """Open a model folder: ONNX Runtime where it has the graphs, else PyTorch; `runtime` insists.

        Raises:
            SourceError: the folder has no such model, no features' settings or no vocabulary.
        """
        folder, threads = opened(folder, threads)
        rate = int(read_json(folder / "preprocessor_config.json").get("sampling_rate", SAMPLING_RATE))
        if is_ctc(folder):
            return cls(CtcModel.open(folder, threads, runtime), rate)
        if model_type_of(folder) == "whisper":
            return cls(WhisperModel.open(folder, threads, runtime), rate)
        return cls(TransformersSpeechModel.open(folder, runtime), rate)

    @property
    def needed_languages(self) -> list[str]:
        """Codes of which one must be given; none where it may be left out."""
        return self.model.needed_languages if isinstance(self.model, TransformersSpeechModel) else []

    def transcribe(self, audio: Sequence[Waveform], language: str | None = None) -> list[str]:
        """Transcripts of mono float32 waveforms at `sampling_rate` Hz, in their order.

        Sound longer than Whisper's window (30 s; see `WhisperModel.features`) is cut there, and a word on
        the cut may be lost. `language` is a code such as `en`, for a multilingual Whisper alone; without it
        the language is the one that the model's files force, else detected in the first window of each sound.

        Raises:
            DataError: a waveform is not mono float32, empty, or not finite.
            RecipeError: the language is unknown to the model, or the model has one language.
        """
        check_waveforms(audio)
        options = SpeechOptions(language)
        return [join_windows(self.model.iter_transcript(samples, options)) for samples in audio]

    def iter_transcript(
        self,
        samples: Waveform,
        language: str | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        *,
        translate: bool = False,
        prompt: str | None = None,
    ) -> Iterator[str]:
        """The transcript of one waveform, window by window; see `transcribe`, and `join_windows`.

        A CTC model writes nothing until all chunks are heard (an empty text for each of the others), and
        takes neither `max_new_tokens` nor `num_beams`. `translate` asks a multilingual Whisper or SeamlessM4T
        for English, whatever is spoken. `prompt` is what was said before, for Whisper alone: names, say.

        Raises:
            RecipeError: the model does not take the language or the prompt, or does not translate.
        """
        check_waveforms([samples])
        options = SpeechOptions(language, max_new_tokens, num_beams, translate, prompt)
        yield from self.model.iter_transcript(samples, options)

    def iter_segments(
        self,
        samples: Waveform,
        language: str | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        *,
        translate: bool = False,
        prompt: str | None = None,
        words: bool = False,
        scored: bool = True,
    ) -> Iterator[Heard]:
        """The transcript of one waveform with the times of its segments, window by window.

        `words` asks for the times of words, too, which CTC models have. They hear all chunks first, and part
        segments where there is a pause (`pressoir.inference.ctc.PAUSE_S`), or before they get long. For the
        probabilities of a segment Whisper hears each window once more; unless `scored`, they are NaN.

        Raises:
            RecipeError: as in `iter_transcript`, or the model has no such times.
        """
        check_waveforms([samples])
        options = SpeechOptions(language, max_new_tokens, num_beams, translate, prompt)
        yield from self.model.iter_segments(samples, options, words=words, scored=scored)


SpeechModel = WhisperModel | CtcModel | TransformersSpeechModel
