"""Codes of 2, 3, 4 or 8 bits as bytes: one contiguous bit stream a row, the lowest bit first.

Eight codes of b bits always fill b bytes, so one rule packs every width. For 2, 4 and 8 bits the stream is
what ONNX Runtime's `MatMulNBits` reads (its two 4-bit codes a byte, the first in the low half); for 3 bits
it is a true 3-bit stream, in which a code may straddle two bytes.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#commicrosoftmatmulnbits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pressoir.errors import QuantizationError

BITS = (2, 3, 4, 8)


def packed_size(count: int, bits: int) -> int:
    """Bytes of a stream of `count` codes."""
    return (count * bits + 7) // 8


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack the last axis: (…, count) codes below 2^bits become (…, ceil(count · bits / 8)) bytes.

    Unused high bits of the last byte are zero.

    Raises:
        QuantizationError: `bits` is not 2, 3, 4 or 8, or a code does not fit into them.
    """
    _check(bits)
    if codes.size and int(codes.max()) >> bits:
        raise QuantizationError(f"code {int(codes.max())} does not fit in {bits} bits")
    count = codes.shape[-1]
    if bits == 8:
        return np.ascontiguousarray(codes, dtype=np.uint8)
    padding = [(0, 0)] * (codes.ndim - 1) + [(0, -count % 8)]
    whole = np.pad(codes, padding) if count % 8 else codes
    words = np.zeros((*codes.shape[:-1], whole.shape[-1] // 8), dtype="<u8")  # eight codes a word
    for index in range(8):
        words |= whole[..., index::8].astype("<u8") << np.uint64(bits * index)
    stream = words.view(np.uint8).reshape(*words.shape, 8)[..., :bits]
    return np.ascontiguousarray(stream.reshape(*codes.shape[:-1], -1)[..., : packed_size(count, bits)])


def unpack(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """The `count` codes (…, count) that `pack` made into (…, ceil(count · bits / 8)) bytes.

    Raises:
        QuantizationError: `bits` is not 2, 3, 4 or 8, or the last axis has another length.
    """
    _check(bits)
    if packed.shape[-1] != packed_size(count, bits):
        raise QuantizationError(
            f"{count} codes of {bits} bits need {packed_size(count, bits)} bytes, not {packed.shape[-1]}"
        )
    if bits == 8:
        return packed
    groups = (count + 7) // 8
    short = groups * bits - packed.shape[-1]
    whole = np.pad(packed, [(0, 0)] * (packed.ndim - 1) + [(0, short)]) if short else packed
    bytes_of_words = np.zeros((*packed.shape[:-1], groups, 8), dtype=np.uint8)
    bytes_of_words[..., :bits] = whole.reshape(*packed.shape[:-1], groups, bits)
    words = bytes_of_words.view("<u8")[..., 0]  # (…, groups)
    codes = np.empty((*packed.shape[:-1], groups, 8), dtype=np.uint8)
    for index in range(8):
        codes[..., index] = (words >> np.uint64(bits * index)) & np.uint64((1 << bits) - 1)
    return np.ascontiguousarray(codes.reshape(*packed.shape[:-1], -1)[..., :count])


def _check(bits: int) -> None:
    if bits not in BITS:
        raise QuantizationError(f"{bits} bits are not supported; use one of {', '.join(map(str, BITS))}")
