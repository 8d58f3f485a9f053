"""Sound as speech models take it, in numpy: WAV files, log-mel spectrograms, normalised waveforms.

transformers' feature extractors import torch; these give the same numbers without it.
"""

from __future__ import annotations

import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pressoir.errors import DataError
from pressoir.inference.engines import read_json

SAMPLING_RATE = 16_000
Waveform = NDArray[np.float32]
"""Mono samples in −1…1, (samples,)."""


def read_wav(path: Path, sampling_rate: int = SAMPLING_RATE) -> Waveform:
    """Samples of a PCM WAV file of 8, 16, 24 or 32 bits; several channels are averaged.

    Raises:
        DataError: the file is no such WAV, is empty, or has another sampling rate.
    """
    try:
        with wave.open(str(path), "rb") as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            content = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise DataError(
            f"{path} is not a PCM WAV file ({error}); convert it: {_convert(sampling_rate)}"
        ) from error
    if rate != sampling_rate:
        raise DataError(
            f"{path} is sampled at {rate} Hz, but the model hears {sampling_rate} Hz; convert it: "
            f"{_convert(sampling_rate)}"
        )
    content = content[: len(content) // (width * channels) * width * channels]
    if not content:
        raise DataError(f"{path} has no samples")
    if width == 3:  # numpy has no such integer: put each into the upper bytes of a longer one
        wide = np.zeros((len(content) // 3, 4), dtype=np.uint8)
        wide[:, 1:] = np.frombuffer(content, dtype=np.uint8).reshape(-1, 3)
        samples = wide.reshape(-1).view("<i4").astype(np.float32) / 2**31
    elif width == 1:  # alone unsigned
        samples = (np.frombuffer(content, dtype=np.uint8).astype(np.float32) - 128) / 128
    else:
        samples = np.frombuffer(content, dtype=f"<i{width}").astype(np.float32) / 2 ** (8 * width - 1)
    mono: Waveform = samples.reshape(-1, channels).mean(axis=1, dtype=np.float32)
    return mono


def _convert(sampling_rate: int) -> str:
    return f"ffmpeg -i IN -ar {sampling_rate} -ac 1 -c:a pcm_s16le OUT.wav"


def check_waveforms(audio: Sequence[Waveform]) -> None:
    """Refuse what is not mono float32 sound.

    Raises:
        DataError: the position of the first wrong array is named.
    """
    for index, samples in enumerate(audio):
        if samples.ndim != 1 or samples.dtype != np.float32 or samples.size == 0:
            raise DataError(
                f"audio {index} is {samples.dtype} of shape {samples.shape}; give mono float32 samples in "
                "−1…1, shape (samples,)"
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
        padded = np.zeros(self.window, dtype=np.float64)
        padded[: len(samples)] = samples[: self.window]
        half = self.fft // 2
        framed = np.lib.stride_tricks.sliding_window_view(np.pad(padded, half, mode="reflect"), self.fft)
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.fft) / self.fft)
        power = np.abs(np.fft.rfft(framed[:: self.hop][:-1] * hann)) ** 2  # (frames, frequencies)
        logarithm = np.log10(np.maximum(self.filters @ power.T, 1e-10))
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
