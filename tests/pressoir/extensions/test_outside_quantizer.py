"""A quantisation algorithm of another package: one file and one entry point, and everything accepts it."""

import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from pressoir.errors import ExtensionError, QuantizationError, RecipeError
from pressoir.extensions import quantizer
from pressoir.formats import packed_checkpoint
from pressoir.models import loading
from pressoir.quantization import weight_only
from pressoir.quantization.provenance import key_extras
from pressoir.recipe.recipe import Recipe
from pressoir.recipe.sections import QuantizeConfig
from pressoir.reference import reference

POWER_OF_TWO = '''
"""Round to nearest with scales that are powers of two, so that dequantising is a shift."""

import torch

from pressoir.extensions.quantizer import QuantizedMatrix, Quantizer
from pressoir.quantization import grid


def quantize(weight, bits, block_size, name):
    grid.check(weight, bits, block_size, name)
    blocks = weight.reshape(len(weight), -1, block_size)
    low, high = torch.aminmax(blocks, dim=2, keepdim=True)
    scales, _ = grid.range_grid(low, high, bits)
    scales = torch.exp2(scales.log2().ceil())
    zeros = (-low.clamp(max=0) / scales).round().clamp(0, 2**bits - 1)
    codes = grid.round_to(blocks, scales, zeros, bits).to(torch.uint8).reshape(weight.shape)
    return QuantizedMatrix(bits, codes, scales.squeeze(2), zeros.squeeze(2).to(torch.uint8))


def too_wide(weight, bits, block_size, name):
    matrix = quantize(weight, bits, block_size, name)
    return QuantizedMatrix(bits, matrix.codes + 1, matrix.scales[:, :-1], matrix.zero_points)


def weighed(weight, hessian, bits, block_size, *, name, damping):
    """Rounds to nearest what the text used, and tells that it was asked, and how."""
    asked.append((name, tuple(hessian.shape), damping))
    return quantize(weight, bits, block_size, name)


asked = []
QUANTIZER = Quantizer("power_of_two", quantize)
WRONG = Quantizer("wrong", too_wide)
CALIBRATED = Quantizer("calibrated", quantize, calibrated=weighed, options=("damping",))
'''


@pytest.fixture
def outside(site, tmp_path, monkeypatch):
    """Install the package `shifts` 1.2 with its three algorithms, and give its module's name."""
    (tmp_path / "shifts_algorithm.py").write_text(POWER_OF_TWO, encoding="utf-8")
    entries = {"power_of_two": "QUANTIZER", "wrong": "WRONG", "calibrated": "CALIBRATED"}
    site("shifts", {quantizer.GROUP: {name: f"shifts_algorithm:{value}" for name, value in entries.items()}})
    yield "shifts_algorithm"
    sys.modules.pop("shifts_algorithm", None)


def run(model, text, context, **settings):
    weight_only.run({"model": model, "data": text}, QuantizeConfig(**settings), context)
    return packed_checkpoint.open_packed(context.out_dir)


def test_it_quantises_a_model_that_loads_and_differs_from_round_to_nearest(
    outside, tiny_llama, tiny_text, context
):
    name = "model.layers.0.mlp.up_proj"
    nearest = run(tiny_llama, tiny_text, context, scheme="q8", algorithm="rtn").layer(name).dequantize()
    packed = run(tiny_llama, tiny_text, context, scheme="q8", algorithm="power_of_two")
    layer = packed.layer(name)
    scales = torch.from_numpy(layer.scales)
    assert torch.equal(scales, torch.exp2(scales.log2().round()))
    assert abs(layer.dequantize() - nearest).max() > 0
    assert packed.description["algorithm"] == "power_of_two"
    ids = torch.arange(3, 35)[None]
    with torch.inference_mode():
        expected, found = (loading.load_causal_lm(f)(ids).logits for f in (tiny_llama, context.out_dir))
    assert 0 < (found - expected).norm() < 0.1 * expected.norm()


def test_its_package_and_version_are_recorded_and_enter_the_key(outside, tiny_llama, tiny_text, context):
    config = QuantizeConfig(scheme="q4", algorithm="power_of_two")
    assert key_extras(config) == {"algorithm_package": "shifts 1.2"}
    assert all(key_extras(QuantizeConfig(scheme="q4", algorithm=own)) == {} for own in ("gptq", "hqq", "rtn"))
    packed = run(tiny_llama, tiny_text, context, scheme="q4", algorithm="power_of_two")
    assert packed.description["algorithm_package"] == "shifts 1.2"


def test_it_is_offered_wherever_an_algorithm_is_named(outside):
    from pressoir.flows.commands.quantize import quantize

    assert (
        Recipe.from_dict({"task": "causal-lm", "quantize": {"algorithm": "power_of_two"}}).quantize.algorithm
        == "power_of_two"
    )
    field = Recipe.model_json_schema()["$defs"]["QuantizeConfig"]["properties"]["algorithm"]
    assert field["enum"] == ["calibrated", "gptq", "hqq", "power_of_two", "rtn", "wrong"]
    assert "`hqq`, `power_of_two`, `rtn`" in reference("recipe")
    assert "hqq|power_of_two|rtn" in CliRunner().invoke(quantize, ["--help"], terminal_width=200).output


def test_its_hessians_and_options_reach_it(outside, tiny_llama, tiny_text, context):
    packed = run(tiny_llama, tiny_text, context, scheme="q4", algorithm="calibrated", damping=0.2)
    asked = sys.modules[outside].asked
    products = {name for name, layer in packed.layers.items() if layer.role == "matmul"}
    assert {name for name, *_ in asked} == products
    assert all(shape == (packed.layers[name].shape[1],) * 2 for name, shape, _ in asked)
    assert {damping for *_, damping in asked} == {packed.description["damping"]} == {0.2}
    assert "act_order" not in packed.description


def test_an_option_of_another_algorithm_is_refused(outside):
    for algorithm, option in (("calibrated", {"act_order": True}), ("power_of_two", {"damping": 0.2})):
        (name,) = option
        with pytest.raises(
            RecipeError, match=rf"{name} specified, but algorithm '{algorithm}' does not use it"
        ):
            Recipe.from_dict({"task": "causal-lm", "quantize": {"algorithm": algorithm, **option}})


def test_a_result_that_no_grid_holds_is_refused_before_it_is_packed(outside, tiny_llama, tiny_text, context):
    with pytest.raises(
        QuantizationError, match=r"wrong, on .*codes go up to 16, but 4 bits only to 15.*scales are"
    ):
        run(tiny_llama, tiny_text, context, scheme="q4", algorithm="wrong", embeddings="q4")


@pytest.mark.parametrize("value", ["json", "shifts_algorithm:QUANTIZER"])
def test_what_is_declared_must_be_an_algorithm_of_that_name(outside, site, value):
    site("other", {quantizer.GROUP: {"other_name": value}})
    quantizer.loader._entries.cache_clear()
    with pytest.raises(ExtensionError, match="expected a Quantizer whose name is 'other_name'"):
        quantizer.find("other_name")


def test_pressoirs_own_algorithms_are_declared_under_their_names():
    needs = {name: quantizer.find(name).calibrated is not None for name in ("gptq", "hqq", "rtn")}
    assert needs == {"gptq": True, "hqq": False, "rtn": False}


@pytest.mark.process
def test_a_name_is_checked_without_importing_what_it_stands_for():
    program = (
        "import sys; from pressoir.recipe.recipe import Recipe;"
        "recipe = Recipe.from_dict({'task': 'causal-lm', 'quantize': {'algorithm': 'gptq'}});"
        "Recipe.model_json_schema(); print(recipe.quantize.algorithm, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["gptq", "False"]
