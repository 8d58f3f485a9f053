"""What one sound takes of memory in models that transformers runs itself, and in conformers with a CTC head.

All are run in PyTorch, one window or chunk at a time (`pressoir.inference`). L frames, a heads of width d:
attention of conformers (SeamlessM4T, w2v-BERT) is not fused. It holds its scores, a L², several times, and,
where positions are learned by distance (`relative_key`), vectors of them, d L², twice; the factors are
measured, see docs/memory.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pressoir.evaluation.estimates.footprint import FLOAT, Layer, Settings, Work, decoder_row, number

NOT_FOR_SOUND = ("model.vision_tower.", "vision_tower.", "t2u_model.", "vocoder.", "text_encoder.")
NOT_FOR_TEXT = ("t2u_model.", "vocoder.", "speech_encoder.")
"""Beginnings of the names of weights that Gemma 3n and SeamlessM4T have, and that are not loaded."""
# Bytes of a sample while Gemma 3n's features are made: frames of 512 in float64, one in 160, and spectra.
_SPECTROGRAM = 190
PROMPT = 250  # tokens of Gemma 3n's instruction and sound
_SCORES, _SHIFTED = 4, 8  # copies of scores: by distance, and by Transformer-XL's shift
_DISTANCES = 2 * FLOAT + 24  # bytes of a pair of frames beside them: indices and masks


class _Hearing(NamedTuple):
    """The encoder's part."""

    front: int
    """Bytes of what turns samples or features into frames."""
    layer: Layer
    frames: int
    pairs: int
    """Bytes of a pair of frames in attention."""


def work(config: Settings, samples: int, target: int) -> Work:
    """A window of so many samples to at most `target` tokens; nothing is written by a CTC head."""
    kind = str(config.get("model_type"))
    heard = _HEARING[kind](config, samples)
    attention = heard.pairs * heard.frames**2
    reading = max(heard.front, heard.layer.work(heard.frames, 0) + attention)
    features = samples * (_SPECTROGRAM if kind == "gemma3n" else 4 * FLOAT)
    if kind == "wav2vec2-bert":
        return Work(features + reading, 0)
    if kind == "gemma3n":
        text = {**config, **dict(config.get("text_config") or {})}
        layer = Layer(
            number(text, "num_hidden_layers"),
            number(text, "hidden_size"),
            _widest(text.get("intermediate_size")),
            number(text, "num_attention_heads"),
            number(text, "num_key_value_heads", default=1) * number(text, "head_dim", default=256),
        )
        streams = (
            FLOAT
            * PROMPT
            * (8 * layer.hidden + 3 * layer.layers * number(text, "hidden_size_per_layer_input"))
        )
        logits = FLOAT * 4 * number(text, "vocab_size")
        written = layer.work(PROMPT, 2) + streams + logits + layer.cache(PROMPT + target)
        return Work(features + max(reading, written), 0)
    return Work(features + reading + decoder_row(config, heard.frames, target, searching=False), 0)


def _conformer(config: Settings, samples: int) -> _Hearing:
    hidden = number(config, "hidden_size")
    heads = number(config, "speech_encoder_attention_heads", "num_attention_heads", default=16)
    inner = number(config, "speech_encoder_intermediate_size", "intermediate_size", default=4 * hidden)
    relative = config.get("position_embeddings_type", "relative_key") == "relative"
    scores = FLOAT * heads * (_SHIFTED if relative else _SCORES)
    vectors = 0 if relative else 2 * FLOAT * hidden // heads
    frames = max(1, samples // 320)
    layer = Layer(1, hidden, inner, heads, hidden)
    return _Hearing(0, layer, frames, scores + vectors + _DISTANCES)


def _moonshine(config: Settings, samples: int) -> _Hearing:
    hidden = number(config, "hidden_size", default=288)
    front = FLOAT * 3 * hidden * max(1, samples // 64)
    inner = number(config, "intermediate_size", default=4 * hidden)
    heads = number(config, "encoder_num_attention_heads", default=8)
    return _Hearing(front, Layer(1, hidden, inner, heads, hidden), max(1, samples // 384), 2 * FLOAT)


def _speech_to_text(config: Settings, samples: int) -> _Hearing:
    hidden, channels = number(config, "d_model", default=256), number(config, "conv_channels", default=1024)
    front = FLOAT * 3 * channels * max(1, samples // 320)
    heads = number(config, "encoder_attention_heads", default=4)
    inner = number(config, "encoder_ffn_dim", default=2048)
    return _Hearing(front, Layer(1, hidden, inner, heads, hidden), max(1, samples // 640), 2 * FLOAT * heads)


def _gemma3n(config: Settings, samples: int) -> _Hearing:
    sound: dict[str, Any] = dict(config.get("audio_config") or {})
    hidden = number(sound, "hidden_size", default=1536)
    channels = _widest(sound.get("sscp_conv_channel_size"), 128)
    bins = number(sound, "input_feat_size", default=128)
    front = FLOAT * 4 * channels * (samples // 320) * (bins // 2)
    layer = Layer(1, hidden, 4 * hidden, number(sound, "conf_num_attention_heads", default=8), hidden)
    return _Hearing(front, layer, max(1, samples // 640), 0)


_HEARING = {
    "wav2vec2-bert": _conformer,
    "seamless_m4t": _conformer,
    "seamless_m4t_v2": _conformer,
    "moonshine": _moonshine,
    "speech_to_text": _speech_to_text,
    "gemma3n": _gemma3n,
}


def _widest(sizes: Any, default: int = 0) -> int:
    """The largest of a size a layer, or of one for all."""
    found = sizes if isinstance(sizes, list | tuple) else [sizes]
    return max((size for size in found if isinstance(size, int)), default=default)
