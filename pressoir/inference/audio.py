"""Sound as speech models take it: files of any usual kind, log-mel spectrograms.

Files are libsndfile's to read and libsoxr's to resample. transformers' feature extractors import torch; the
features here are the same numbers without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from pressoir.errors import DataError
from pressoir.formats.folder import read_json

SAMPLING_RATE = 16_000
Waveform = NDArray[np.float32]
"""Mono samples in −1…1, (samples,)."""

_MALLOC_FAILED = 17  # SFE_MALLOC_FAILED: libsndfile found no memory
# Lines of libsndfile's log, which alone reports these. First: a header announces another size than the file
# has. WAV and its like say it of their samples; Wave64 and RF64 (lower case) of the whole file alone. "RIFF"
# is left out: what a WAV lacks behind its samples is no sound. Second: an Ogg stream does not end as it must
# (RFC 3533, 6: the last page says that it is the last).
_SIZES = re.compile(r"^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_NO_END = re.compile(r"^Ogg ?: .*(?:lacks an end-of-stream|without an End-Of-Stream)", re.MULTILINE)
_CANCELLED = 0.1  # part of the power that independent channels would leave
_UNKNOWN_SIZE = 0x7FFF_0000  # who writes to a pipe announces a size near the field's, or its sign's, limit


def read_audio(path: Path, sampling_rate: int) -> Waveform:
    """Sound of a WAV, FLAC, OGG, MP3, AIFF or other file that libsndfile reads, as a model hears it.

    Integers become fractions of their format's range; channels are averaged, or, where they nearly cancel
    each other out, the loudest is taken; where the file has another rate it is resampled to `sampling_rate`
    Hz by libsoxr at its high quality, which keeps the length to half a sample and what lies below 0.91 of the
    lower rate's Nyquist frequency.

    Raises:
        DataError: the file is missing, is not sound, is cut off (not noticed in an MP3 without a count of its
            frames), is empty, or has samples that are not finite.
    """
    if not path.is_file():
        raise DataError(f"file not found: {path}; specify the path of an audio file")
    try:
        with soundfile.SoundFile(path) as file:
            samples = file.read(dtype="float32", always_2d=True)  # (frames, channels)
            rate, announced, log = file.samplerate, file.frames, file.extra_info
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a name that says it has no header
        if getattr(error, "code", None) == _MALLOC_FAILED:
            raise MemoryError(f"not enough memory to read {path}") from error
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        raise DataError(
            f"{path} cannot be read as audio ({reason}): it is damaged, truncated or of an unsupported "
            f"format; download it again or convert it: {_convert(sampling_rate)}"
        ) from error
    sizes = [(int(said), int(there)) for said, there in _SIZES.findall(log)]
    short = len(samples) < announced or any(there < said < _UNKNOWN_SIZE for said, there in sizes)
    if short or _NO_END.search(log):
        raise DataError(
            f"{path} is truncated: it contains {len(samples) / rate:.2f} s but declares more; download it "
            f"again, or keep the existing part: {_convert(sampling_rate)}"
        )
    if not np.isfinite(samples).all():
        raise DataError(
            f"{path} has samples that are not finite (NaN or infinite); record or convert it again"
        )
    mono = _mono(samples)
    if rate != sampling_rate:
        mono = soxr.resample(mono, rate, sampling_rate)
    if not mono.size:
        raise DataError(f"{path} has no samples; download it again, or remove it from the list")
    return mono


def _mono(samples: NDArray[np.float32]) -> Waveform:
    """The mean of the channels of `samples` (frames, channels); the loudest where that is nearly silent."""
    mono: Waveform = samples.mean(axis=1, dtype=np.float32)
    if samples.shape[1] > 1 and samples.size:
        powers = np.square(samples, dtype=np.float64).mean(axis=0)
        # Channels that have nothing in common leave a mean of powers.mean() / channels.
        if np.square(mono, dtype=np.float64).mean() < _CANCELLED * powers.mean() / samples.shape[1]:
            return np.ascontiguousarray(samples[:, powers.argmax()])
    return mono


def _convert(sampling_rate: int) -> str:
    return f"ffmpeg -i IN -ar {sampling_rate} -ac 1 OUT.flac"


def check_waveforms(audio: Sequence[Waveform]) -> None:
    """Refuse what is not mono float32 sound.

    Raises:
        DataError: the position of the first wrong array is named.
    """
    for index, samples in enumerate(audio):
        if samples.ndim != 1 or samples.dtype != np.float32 or samples.size == 0:
            raise DataError(
                f"audio {index} is {samples.dtype} of shape {samples.shape}; expected mono float32 samples "
                "in −1…1, shape (samples,)"
            )
        if not np.isfinite(samples).all():
            raise DataError(f"audio {index} has samples that are not finite")


@dataclass(frozen=True)
class LogMel:
    """Whisper's features: a log-mel spectrogram of one window (Radford et al., arXiv:2212.04356, 2.2)."""

    filters: NDArray[np.float64]
    """Mel filter bank, (bins, frequencies)."""
    window: int
    """Samples of one input of the model."""
    hop: int
    fft: int
    sampling_rate: int

    @classmethod
    def read(cls, folder: Path) -> LogMel:
        """Settings of a model folder's `preprocessor_config.json`.

        Raises:
            SourceError: the file is missing or broken.
        """
        settings = read_json(folder / "preprocessor_config.json")
        rate = int(settings.get("sampling_rate", SAMPLING_RATE))
        fft, hop = int(settings.get("n_fft", 400)), int(settings.get("hop_length", 160))
        window = int(settings.get("n_samples") or settings.get("chunk_length", 30) * rate)
        filters = mel_filters(int(settings.get("feature_size", 80)), fft, rate)
        return cls(filters, window, hop, fft, rate)

    def __call__(self, samples: Waveform) -> NDArray[np.float32]:
        """Features (bins, window / hop) of at most one window; shorter sound is padded with silence."""
        padded = np.zeros(self.window, dtype=np.float32)
        padded[: len(samples)] = samples[: self.window]
        return self.spectrum(padded)

    def spectrum(self, samples: Waveform) -> NDArray[np.float32]:
        """Features (bins, samples / hop) of a sound of any length from half of `fft` samples on."""
        half, block = self.fft // 2, self.window // self.hop  # frames at a time: an hour has gigabytes
        padded = np.pad(samples.astype(np.float64), half, mode="reflect")
        framed = np.lib.stride_tricks.sliding_window_view(padded, self.fft)[:: self.hop][:-1]
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.fft) / self.fft)
        blocks = [
            self.filters @ (np.abs(np.fft.rfft(framed[start : start + block] * hann)) ** 2).T
            for start in range(0, len(framed), block)
        ]
        logarithm = np.log10(np.maximum(np.concatenate(blocks, axis=1), 1e-10))
        floored = np.maximum(logarithm, logarithm.max() - 8)
        features: NDArray[np.float32] = ((floored + 4) / 4).astype(np.float32)
        return features


def mel_filters(bins: int, fft: int, sampling_rate: int) -> NDArray[np.float64]:
    """Triangular filters (bins, fft / 2 + 1) of equal area, evenly spaced on Slaney's mel scale.

    Slaney, Auditory Toolbox, Interval Research TR 1998-010: linear below 1 kHz, logarithmic above.
    """
    step, corner = 200 / 3, 1000.0
    ratio = np.log(6.4) / 27  # 27 logarithmic steps from 1 to 6.4 kHz
    nyquist = sampling_rate / 2
    top = corner / step + np.log(nyquist / corner) / ratio if nyquist > corner else nyquist / step
    mel = np.linspace(0, top, bins + 2)
    edges = np.where(mel < corner / step, mel * step, corner * np.exp(ratio * (mel - corner / step)))
    frequencies = np.linspace(0, nyquist, fft // 2 + 1)
    slopes = edges[:, None] - frequencies  # (bins + 2, frequencies)
    widths = np.diff(edges)[:, None]
    triangles = np.maximum(0, np.minimum(-slopes[:-2] / widths[:-1], slopes[2:] / widths[1:]))
    filters: NDArray[np.float64] = triangles * (2 / (edges[2:] - edges[:-2]))[:, None]
    return filters


def join_windows(transcripts: Iterable[str]) -> str:
    """One transcript of those of consecutive windows."""
    return " ".join(filter(None, transcripts))
