"""Four-bit blocks without zero points: what they can hold, how near they come, and what is refused."""

import pytest
import torch

from pressoir.errors import QuantizationError
from pressoir.formats import symmetric_blocks
from pressoir.quantization import rtn, symmetric


def plain(weight, size):
    """The grid whose lowest code is the block's largest weight: nothing is searched."""
    blocks = weight.reshape(-1, size)
    largest = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
    scales = (largest / -8).half().float()
    codes = (blocks / torch.where(scales == 0, 1.0, scales)).round().clamp(-8, 7)
    return (codes * scales).reshape(weight.shape)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_no_block_is_farther_off_than_on_the_grid_that_is_not_searched_and_many_are_nearer(size):
    weight = torch.randn(40, 128, generator=torch.Generator().manual_seed(size))
    weight *= torch.logspace(-3, 3, 40)[:, None]
    codes, scales = symmetric.quantize(weight, size)
    assert (codes.dtype, scales.dtype) == (torch.int8, torch.float16)
    assert scales.shape == (40, 128 // size)
    assert (codes.min(), codes.max()) == (-8, 7)
    ours, other = (
        (weight - result).square().reshape(-1, size).sum(dim=1)
        for result in (symmetric_blocks.dequantize(codes, scales), plain(weight, size))
    )
    assert (ours <= other * (1 + 1e-6)).all()
    assert (ours < 0.99 * other).float().mean() > 0.5


def test_the_largest_weight_of_either_sign_is_on_the_long_side_of_the_grid():
    for sign in (1, -1):
        weight = torch.linspace(0, 1, 32).mul(sign)[None]
        codes, scales = symmetric.quantize(weight, 32)
        assert codes[0, -1] < 0
        assert torch.sign(scales[0, 0]) == -sign
        assert (symmetric_blocks.dequantize(codes, scales) - weight).abs().max() < 0.1


def test_it_comes_as_near_as_min_max_blocks_that_spend_bits_on_zero_points():
    weight = torch.randn(200, 128, generator=torch.Generator().manual_seed(0))
    ours = symmetric_blocks.dequantize(*symmetric.quantize(weight, 32))
    theirs = rtn.quantize(weight, 4, 32).dequantize()
    assert (weight - ours).norm() < 1.05 * (weight - theirs).norm()


def test_rows_are_quantised_each_on_its_own():
    weight = torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
    codes, scales = symmetric.quantize(weight, 32)
    for row in range(7):
        alone = symmetric.quantize(weight[row : row + 1], 32)
        assert torch.equal(alone[0][0], codes[row])
        assert torch.equal(alone[1][0], scales[row])


@pytest.mark.parametrize("value", [0.0, 1e-9, 1e-30])
def test_blocks_of_nothing_stay_finite(value):
    codes, scales = symmetric.quantize(torch.full((2, 32), value), 32)
    assert (scales != 0).all()
    assert symmetric_blocks.dequantize(codes, scales).abs().max() <= 1e-8


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "NaN or infinite"), (float("inf"), "NaN"), (5e5, "450,000")]
)
def test_what_no_grid_holds_is_refused_with_the_layers_name(value, message):
    weight = torch.ones(2, 32)
    weight[1, 1] = value
    with pytest.raises(QuantizationError, match=f"words.weight has.*{message}"):
        symmetric.quantize(weight, 32, "words")


def test_the_default_block_gives_way_and_one_that_is_asked_for_does_not():
    assert [symmetric.block_size(columns, None, "t") for columns in (384, 48)] == [32, 16]
    assert symmetric.block_size(384, 128, "t") == 128
    for wanted in (32, None):
        with pytest.raises(QuantizationError, match="t has 40 inputs, which 32 does not divide"):
            symmetric.block_size(40, wanted, "t")
    with pytest.raises(QuantizationError, match="use block_size 16"):
        symmetric.block_size(48, 32, "t")
