"""RTN, HQQ and GPTQ on matrices: error bounds, objectives, and what they do with odd input."""

import pytest
import torch

from pressoir.errors import QuantizationError
from pressoir.quantization import gptq, grid, hqq, rtn

BITS = (2, 3, 4, 8)


def weights(rows=24, columns=128, seed=0):
    """Heavy-tailed, as trained weights are, and with a mean that differs by row."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, columns, generator=generator)
    return 0.02 * normal * (1 + normal.abs()) + 0.01 * torch.randn(rows, 1, generator=generator)


def correlated_inputs(columns=128, tokens=512, seed=1):
    """(tokens, columns): a few directions carry most of the variance."""
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(tokens, columns // 8, generator=generator)
    mixing = torch.randn(columns // 8, columns, generator=generator)
    return few @ mixing + 0.2 * torch.randn(tokens, columns, generator=generator)


def output_error(weight, quantized, inputs):
    return float(torch.linalg.vector_norm((weight - quantized.dequantize()) @ inputs.T))


ALGORITHMS = {
    "rtn": rtn.quantize,
    "hqq": hqq.quantize,
    "gptq": lambda w, bits, block, name="weight": gptq.quantize(
        w, torch.eye(w.shape[1]), bits, block, name=name
    ),
}


@pytest.fixture(params=ALGORITHMS)
def algorithm(request):
    return ALGORITHMS[request.param]


@pytest.mark.parametrize("bits", BITS)
def test_codes_and_zero_points_fit_the_bits(algorithm, bits):
    quantized = algorithm(weights(), bits, 32)
    assert quantized.codes.dtype == quantized.zero_points.dtype == torch.uint8
    assert int(quantized.codes.max()) < 2**bits
    assert int(quantized.zero_points.max()) < 2**bits
    assert quantized.codes.shape == (24, 128)
    assert quantized.scales.shape == quantized.zero_points.shape == (24, 4)


def test_more_bits_are_closer(algorithm):
    weight = weights()
    errors = [float((weight - algorithm(weight, bits, 32).dequantize()).norm()) for bits in BITS]
    assert errors == sorted(errors, reverse=True)


def test_the_same_matrix_gives_the_same_codes(algorithm):
    first, second = algorithm(weights(), 3, 32), algorithm(weights(), 3, 32)
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.scales, second.scales)


def test_zeros_stay_zeros(algorithm):
    weight = weights()
    weight[3] = 0
    weight[5, 32:64] = 0
    result = algorithm(weight, 2, 32).dequantize()
    assert torch.count_nonzero(result[3]) == 0
    assert torch.isfinite(result).all()
    if algorithm is not ALGORITHMS["gptq"]:  # which uses them to make up for their neighbours' errors
        assert torch.count_nonzero(result[5, 32:64]) == 0


def test_weights_of_any_magnitude_are_scaled(algorithm):
    """From float32's smallest normal numbers to its largest, what comes back is finite and close."""
    for magnitude in (1e-30, 1e-3, 1e30):
        weight = weights() * magnitude
        result = algorithm(weight, 4, 32).dequantize()
        error = (weight - result).double().norm() / weight.double().norm()
        assert error < 0.2, magnitude


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(algorithm, value):
    weight = weights()
    weight[1, 7] = value
    with pytest.raises(QuantizationError, match=r"layer\.q_proj\.weight has NaN or infinite values"):
        algorithm(weight, 4, 32, name="layer.q_proj")


def test_blocks_that_do_not_divide_are_refused_with_those_that_do(algorithm):
    with pytest.raises(QuantizationError, match=r"down_proj has 96 inputs.* 64 .*block_size 16 or 32$"):
        algorithm(weights(columns=96), 4, 64, name="down_proj")


@pytest.mark.parametrize("bits", BITS)
def test_rtn_is_off_by_half_a_step_where_it_does_not_clip(bits):
    weight = weights()
    quantized = rtn.quantize(weight, bits, 32)
    step = quantized.scales.repeat_interleave(32, dim=1)
    error = (weight - quantized.dequantize()).abs()
    clipped = (quantized.codes == 0) | (quantized.codes == 2**bits - 1)
    assert (error[~clipped] <= 0.5001 * step[~clipped]).all()
    assert (error <= 1.0001 * step).all()


def test_rtn_keeps_what_lies_on_its_grid():
    weight = torch.tensor([[-2.0, -1, 0, 1] * 8]) * 0.25
    assert torch.equal(rtn.quantize(weight, 2, 16).dequantize(), weight)


@pytest.mark.parametrize("bits", BITS)
def test_hqq_s_objective_is_never_above_rtn_s(bits):
    weight = weights(rows=64)
    blocks = weight.reshape(64, -1, 32)
    low, high = torch.aminmax(blocks, dim=2, keepdim=True)
    start = grid.range_grid(low, high, bits)
    span = start[0] * (2**bits - 1)

    def objective(scales, zeros):
        steps = grid.round_to(blocks, scales, zeros, bits) - zeros
        return hqq.objective(blocks - steps * scales, span)

    found, rtns = objective(*hqq.best_grid(blocks, bits)), objective(*start)
    assert (found <= rtns * (1 + 1e-6)).all()
    assert found.sum() < 0.99 * rtns.sum() or bits == 8

    def by_row(quantized):
        error = (weight - quantized.dequantize()).reshape(blocks.shape)
        return hqq.objective(error, span).sum(dim=(1, 2))

    assert (
        by_row(hqq.quantize(weight, bits, 32)) <= by_row(rtn.quantize(weight, bits, 32)) * (1 + 1e-5)
    ).all()


@pytest.mark.parametrize("bits", [2, 3])
def test_hqq_does_not_shrink_a_row(bits):
    """⟨w, ŵ⟩ = ‖w‖², where a least-squares scale alone would give less."""
    weight = weights(rows=64)
    result = hqq.quantize(weight, bits, 64).dequantize()
    gain = (weight * result).sum(dim=1) / (weight * weight).sum(dim=1)
    assert ((gain - 1).abs() < 1e-4).float().mean() > 0.9


def test_hqq_in_pieces_is_hqq_at_once(monkeypatch):
    weight = weights()
    whole = hqq.quantize(weight, 3, 32)
    monkeypatch.setattr(hqq, "_CHUNK", 256)
    pieces = hqq.quantize(weight, 3, 32)
    assert torch.equal(whole.codes, pieces.codes)
    assert torch.equal(whole.scales, pieces.scales)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_s_output_is_closer_than_rtn_s_and_hqq_s(bits, act_order):
    weight, inputs = weights(), correlated_inputs()
    quantized = gptq.quantize(weight, inputs.T @ inputs, bits, 32, act_order=act_order)
    others = [output_error(weight, a(weight, bits, 32), inputs) for a in (rtn.quantize, hqq.quantize)]
    assert output_error(weight, quantized, inputs) < 0.8 * min(others)


def test_gptq_without_correlation_is_rtn():
    """A diagonal Hessian leaves nothing that a later column could make up for."""
    weight = weights()
    diagonal = torch.diag(torch.rand(128, generator=torch.Generator().manual_seed(3)) + 0.5)
    quantized, expected = gptq.quantize(weight, diagonal, 3, 32), rtn.quantize(weight, 3, 32)
    assert torch.equal(quantized.codes, expected.codes)
    assert torch.equal(quantized.scales, expected.scales)


@pytest.mark.parametrize("act_order", [False, True])
def test_slices_only_save_time(monkeypatch, act_order):
    weight, inputs = weights(), correlated_inputs()
    whole = gptq.quantize(weight, inputs.T @ inputs, 4, 32, act_order=act_order)
    monkeypatch.setattr(gptq, "_SLICE", 32)
    sliced = gptq.quantize(weight, inputs.T @ inputs, 4, 32, act_order=act_order)
    assert (whole.codes == sliced.codes).float().mean() > 0.99  # but for ties that rounding decides
    assert torch.allclose(whole.scales, sliced.scales, rtol=1e-3)


def test_gptq_rounds_a_column_as_the_closed_form_says():
    """Two columns: the second minimises the quadratic error given the first."""
    weight = torch.tensor([[0.3, 0.9] + [0.0] * 14])
    hessian = torch.eye(16)
    hessian[0, 1] = hessian[1, 0] = 0.9
    quantized = gptq.quantize(weight, hessian, 2, 16, damping=1e-9)
    scale = quantized.scales[0, 0]
    first = torch.round(weight[0, 0] / scale) * scale
    moved = weight[0, 1] + (weight[0, 0] - first) * 0.9  # −H₁₁⁻¹ H₁₀ (ŵ₀ − w₀)
    assert quantized.dequantize()[0, 1] == pytest.approx(
        float(torch.round(moved / scale).clamp(max=3) * scale)
    )


def test_act_order_keeps_blocks_contiguous_and_their_grids_min_max():
    weight, inputs = weights(), correlated_inputs() * torch.linspace(0.1, 3, 128)
    quantized = gptq.quantize(weight, inputs.T @ inputs, 4, 32, act_order=True)
    assert torch.equal(quantized.scales, rtn.quantize(weight, 4, 32).scales)


def test_act_order_spares_the_columns_that_matter_most():
    """The column of the largest inputs is rounded first, so it gets its nearest codes."""
    weight = weights()
    inputs = correlated_inputs() * torch.where(torch.arange(128) == 127, 100.0, 1.0)
    hessian = inputs.T @ inputs
    nearest = rtn.quantize(weight, 3, 32).codes[:, 127]
    assert torch.equal(gptq.quantize(weight, hessian, 3, 32, act_order=True).codes[:, 127], nearest)
    assert not torch.equal(gptq.quantize(weight, hessian, 3, 32).codes[:, 127], nearest)


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_a_singular_hessian_is_damped(tokens):
    """Fewer tokens than columns, or none at all."""
    inputs = correlated_inputs()[:tokens]
    result = gptq.quantize(weights(), inputs.T @ inputs, 4, 32, damping=1e-12).dequantize()
    assert torch.isfinite(result).all()
    assert (result - weights()).norm() < 0.5 * weights().norm()


def test_a_column_that_was_never_used_is_rounded_to_nearest():
    weight, inputs = weights(), correlated_inputs()
    inputs[:, 64] = 0
    quantized = gptq.quantize(weight, inputs.T @ inputs, 8, 64)
    step = quantized.scales[:, 1]
    assert ((quantized.dequantize()[:, 64] - weight[:, 64]).abs() <= 0.51 * step).all()


def test_the_hessian_s_scale_does_not_matter():
    weight, inputs = weights(), correlated_inputs()
    hessian = inputs.T @ inputs
    small = gptq.quantize(weight, hessian / 2**20, 3, 32)
    assert torch.equal(small.codes, gptq.quantize(weight, hessian, 3, 32).codes)


def test_more_damping_trusts_the_text_less():
    weight, inputs = weights(), correlated_inputs()
    hessian = inputs.T @ inputs
    nearest = rtn.quantize(weight, 3, 32).codes
    shares = [
        float((gptq.quantize(weight, hessian, 3, 32, damping=damping).codes == nearest).float().mean())
        for damping in (0.001, 0.99)
    ]
    assert shares[0] < shares[1]


def test_a_hessian_that_is_not_finite_is_refused():
    with pytest.raises(QuantizationError, match="inputs of o_proj are not finite"):
        gptq.quantize(weights(), torch.full((128, 128), torch.inf), 4, 32, name="o_proj")
