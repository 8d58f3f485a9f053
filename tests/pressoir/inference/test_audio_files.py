"""Sound files: whatever their kind, channels and rate, a model hears mono samples at its own rate."""

import subprocess
import sys
import wave

import numpy as np
import pytest
import soundfile

from pressoir.errors import DataError
from pressoir.inference.audio import read_audio

RATE = 16_000


def strongest_frequency(samples):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return np.fft.rfftfreq(len(samples), 1 / RATE)[spectrum.argmax()]


def sine(rate, seconds=1.0, pitch=1000.0):
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


# Formats


def test_16_bit_mono_at_the_models_rate_is_read_bit_for_bit(tmp_path, tone, write_wav):
    path = write_wav(tmp_path / "a.wav", tone(0.5))
    with wave.open(str(path), "rb") as file:
        expected = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 2**15
    found = read_audio(path, RATE)
    assert found.dtype == np.float32
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_integers_of_any_width_become_fractions_of_their_range(tmp_path, tone, write_wav, width):
    samples = tone(0.1)
    found = read_audio(write_wav(tmp_path / "a.wav", samples, width=width), RATE)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, samples, atol=1.5 / 2 ** (8 * width - 1) + 1e-7)


@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE"])
def test_floats_are_read_as_they_are(tmp_path, tone, kind):
    soundfile.write(tmp_path / "a.wav", tone(0.1), RATE, subtype=kind)
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", RATE), tone(0.1))


@pytest.mark.parametrize("kind", ["flac", "aiff", "au", "caf", "w64"])
def test_a_lossless_file_is_equal_to_the_wav(tmp_path, tone, write_wav, kind):
    expected = read_audio(write_wav(tmp_path / "a.wav", tone(0.5)), RATE)
    soundfile.write(tmp_path / f"a.{kind}", expected, RATE, subtype="PCM_16")
    np.testing.assert_array_equal(read_audio(tmp_path / f"a.{kind}", RATE), expected)


@pytest.mark.parametrize("kind", ["ogg", "mp3"])
def test_a_lossy_file_sounds_alike(tmp_path, kind):
    soundfile.write(tmp_path / f"a.{kind}", sine(RATE), RATE)
    found = read_audio(tmp_path / f"a.{kind}", RATE)
    assert len(found) == RATE
    assert strongest_frequency(found) == 1000
    assert np.abs(found - sine(RATE))[800:-800].max() < 0.05


def test_channels_are_averaged(tmp_path, tone, write_wav):
    left, right = tone(0.1), tone(0.1, pitch=300)
    found = read_audio(write_wav(tmp_path / "a.wav", np.stack([left, right], axis=1)), RATE)
    np.testing.assert_allclose(found, (left + right) / 2, atol=1e-4)


@pytest.mark.parametrize("share", [-0.99, -0.97, -0.8])
def test_channels_that_cancel_each_other_out_are_not_silence(tmp_path, tone, write_wav, share):
    samples = tone(0.1)
    stereo = write_wav(tmp_path / "a.wav", np.stack([share * samples, samples], axis=1))
    np.testing.assert_allclose(read_audio(stereo, RATE), samples, atol=1e-4)


def test_a_silent_channel_and_independent_ones_are_averaged(tmp_path, tone, write_wav):
    samples = tone(0.1)
    half = write_wav(tmp_path / "a.wav", np.stack([samples, 0 * samples], axis=1))
    np.testing.assert_allclose(read_audio(half, RATE), samples / 2, atol=1e-4)
    noise = 0.2 * np.random.default_rng(0).standard_normal((RATE, 6)).clip(-4, 4)
    many = write_wav(tmp_path / "b.wav", noise)
    np.testing.assert_allclose(read_audio(many, RATE), noise.mean(axis=1), atol=1e-4)


def test_a_wav_that_was_written_to_a_pipe_does_not_know_its_size(tmp_path, tone, write_wav):
    path = write_wav(tmp_path / "a.wav", tone(0.1))
    content = path.read_bytes()
    place = content.index(b"data") + 4
    for unknown in (0xFFFFFFFF, 0x7FFFFFFF - 36):
        path.write_bytes(content[:place] + unknown.to_bytes(4, "little") + content[place + 4 :])
        assert len(read_audio(path, RATE)) == 1600


# Rates


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_another_rate_is_resampled_to_the_models(tmp_path, write_wav, rate, channels):
    path = write_wav(tmp_path / "a.wav", np.stack([sine(rate)] * channels, axis=1), rate=rate)
    found = read_audio(path, RATE)
    assert found.dtype == np.float32
    assert found.shape == (RATE,)
    assert strongest_frequency(found) == 1000
    np.testing.assert_allclose(found[800:-800], sine(RATE)[800:-800], atol=1e-3)


def test_what_the_models_rate_cannot_hold_is_filtered_and_not_mirrored(tmp_path, write_wav):
    path = write_wav(tmp_path / "a.wav", sine(44_100, pitch=10_000), rate=44_100)
    assert np.abs(read_audio(path, RATE)[800:-800]).max() < 1e-3


@pytest.mark.parametrize(("frames", "expected"), [(44_101, 16_000), (12_345, 4479), (2, 1)])
def test_the_length_is_kept_to_half_a_sample(tmp_path, write_wav, frames, expected):
    path = write_wav(tmp_path / "a.wav", np.full(frames, 0.1), rate=44_100)
    assert len(read_audio(path, RATE)) == expected


# Faults


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "a.wav", tmp_path):
        with pytest.raises(DataError, match=rf"file not found: {path}; specify the path"):
            read_audio(path, RATE)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.wav", b""),
        ("a.wav", b"RIFFnope"),
        ("a.mp3", b"a text, not sound. " * 100),
        ("a.raw", bytes(100)),
        ("a.wav", b"\x80\x04\x95" + bytes(100)),
    ],
)
def test_what_is_not_sound_is_refused_with_the_way_to_convert_it(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} cannot be read as audio \(.*\): .*ffmpeg .*-ar 16000"):
        read_audio(tmp_path / name, RATE)


@pytest.mark.parametrize("share", [0.4, 0.99])
@pytest.mark.parametrize(
    ("kind", "coding"),
    [(kind, None) for kind in ["wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64", "rf64"]]
    + [("ogg", "OPUS")],
)
def test_a_file_that_is_cut_off_is_refused(tmp_path, kind, coding, share):
    path = tmp_path / f"a.{kind}"
    noise = 0.1 * np.random.default_rng(0).standard_normal(10 * RATE)
    soundfile.write(path, noise, RATE, format=kind.upper(), subtype=coding)
    assert len(read_audio(path, RATE)) == 10 * RATE
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        DataError, match=rf"a\.{kind} (is truncated: it contains|cannot be read|has no samples)"
    ):
        read_audio(path, RATE)


def test_a_wav_that_lacks_only_what_follows_its_sound_is_read(tmp_path, tone, write_wav):
    path = write_wav(tmp_path / "a.wav", tone(0.1))
    content = path.read_bytes()
    path.write_bytes(content[:4] + (len(content) + 100).to_bytes(4, "little") + content[8:] + b"LIST")
    assert len(read_audio(path, RATE)) == 1600


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e300])
def test_samples_that_are_not_finite_are_refused(tmp_path, tone, wrong):
    samples = tone(0.1).astype(np.float64)
    samples[7] = wrong
    soundfile.write(tmp_path / "a.wav", samples, 44_100, subtype="DOUBLE")
    with pytest.raises(DataError, match=r"a\.wav has samples that are not finite"):
        read_audio(tmp_path / "a.wav", RATE)


@pytest.mark.parametrize("frames", [0, 1])
def test_a_file_without_sound_is_refused(tmp_path, write_wav, frames):
    path = write_wav(tmp_path / "a.wav", np.zeros((frames, 1)), rate=44_100)
    with pytest.raises(DataError, match=r"a\.wav has no samples"):
        read_audio(path, RATE)


def test_no_memory_is_not_taken_for_a_damaged_file(tmp_path, tone, write_wav, monkeypatch):
    def fail(_):
        raise soundfile.LibsndfileError(17)

    monkeypatch.setattr("pressoir.inference.audio.soundfile.SoundFile", fail)
    assert "malloc" in str(soundfile.LibsndfileError(17))
    with pytest.raises(MemoryError, match=r"a\.wav"):
        read_audio(write_wav(tmp_path / "a.wav", tone(0.1)), RATE)


@pytest.mark.process
def test_reading_sound_loads_neither_torch_nor_transformers():
    program = "import sys, pressoir.inference.audio; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "onnx", "scipy", "numba", "librosa"} & set(loaded.stdout.split())
