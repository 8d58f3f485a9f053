"""The packed folder: streamed writing, reading a layer at a time, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pressoir.errors import QuantizationError, SourceError
from pressoir.formats import packed_checkpoint, tensor_files
from pressoir.quantization import weight_only
from pressoir.recipe.sections import QuantizeConfig
from pressoir.reporting import LogReporter
from pressoir.stage import StageContext


@pytest.fixture(scope="session")
def packed_gpt2(tiny_gpt2, tmp_path_factory):
    """The tiny GPT-2 (transposed matrices, tied head) in 3 bits."""
    folder = tmp_path_factory.mktemp("packed-gpt2")
    context = StageContext(folder, folder, LogReporter(), seed=0, threads=1)
    weight_only.run({"model": tiny_gpt2}, QuantizeConfig(scheme="q3", algorithm="rtn"), context)
    return folder


@pytest.fixture
def damaged(packed_gpt2, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(packed_gpt2, tmp_path / "damaged")


def edit(folder, change):
    path = folder / "quantization.json"
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


def test_a_layer_is_read_as_the_format_says(packed_gpt2):
    name = "transformer.h.1.mlp.c_fc"
    layer = packed_checkpoint.open_packed(packed_gpt2).layer(name)
    state = load_file(packed_gpt2 / "model.safetensors")
    assert layer.packed.shape == state[f"{name}.weight"].shape == (128, 64 * 3 // 8)
    bits = np.unpackbits(layer.packed, axis=1, bitorder="little").reshape(128, 64, 3)
    codes = (bits * [1, 2, 4]).sum(axis=2)
    zeros = np.unpackbits(state[f"{name}.weight_zero_point"].numpy(), axis=1, bitorder="little")[:, :3]
    zeros = (zeros * [1, 2, 4]).sum(axis=1, keepdims=True)
    assert np.array_equal(layer.codes(), codes)
    assert np.array_equal(layer.zero_points, zeros)
    expected = ((codes - zeros) * state[f"{name}.weight_scale"].numpy()).astype(np.float32)
    assert np.array_equal(layer.dequantize(), expected)


def test_weights_come_in_the_model_s_own_orientation_and_a_tied_head_once(packed_gpt2, tiny_gpt2):
    original = load_file(tiny_gpt2 / "model.safetensors")
    tensors = dict(packed_checkpoint.dequantized_tensors(packed_gpt2))
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        name: tuple(t.shape) for name, t in original.items()
    }
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    for name in ("transformer.wpe.weight", "transformer.ln_f.bias", "transformer.h.0.attn.c_attn.bias"):
        assert torch.equal(tensors[name], original[name])
    weight = original["transformer.h.0.attn.c_attn.weight"]
    assert (tensors["transformer.h.0.attn.c_attn.weight"] - weight).norm() < 0.3 * weight.norm()


def test_a_tied_head_has_the_embedding_s_arrays(packed_gpt2):
    packed = packed_checkpoint.open_packed(packed_gpt2)
    head, table = packed.layer("lm_head"), packed.layer("transformer.wte")
    assert head.tied_to == "transformer.wte"
    assert (head.kind, head.role, table.role) == ("linear", "head", "embedding")
    assert np.array_equal(head.packed, table.packed)
    assert not any(name.startswith("lm_head") for name in packed.tensors)


def test_an_unknown_layer_is_refused(packed_gpt2):
    with pytest.raises(QuantizationError, match="no quantised layer 'nonsense'"):
        packed_checkpoint.open_packed(packed_gpt2).layer("nonsense")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format_version=9), "format_version is 9"),
        (lambda d: d.update(layers=[]), "`layers` is not"),
        (lambda d: d["layers"]["transformer.wte"].pop("bits"), "`layers` is not"),
        (lambda d: d["layers"]["transformer.wte"].update(bits=5), "of 5 bits is not supported"),
        (lambda d: d["layers"]["transformer.wte"].update(block_size=48), "blocks of 48 do not divide"),
        (lambda d: d["layers"]["lm_head"].update(tied_to="nonsense"), "shares the weights of nonsense"),
        (
            lambda d: d["layers"].pop("transformer.h.0.mlp.c_fc"),
            r"does not describe .*mlp\.c_fc",
        ),
        (lambda d: d["layers"]["transformer.h.0.mlp.c_fc"].update(bits=4), r"c_fc\.weight is U8 \[128, 24\]"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(damaged, change, message):
    edit(damaged, change)
    with pytest.raises(QuantizationError, match=message):
        packed_checkpoint.open_packed(damaged)


def test_a_missing_tensor_is_named(damaged):
    state = load_file(damaged / "model.safetensors")
    del state["transformer.h.0.mlp.c_fc.weight_scale"]
    save_file(state, damaged / "model.safetensors")
    with pytest.raises(QuantizationError, match=r"no tensor transformer\.h\.0\.mlp\.c_fc\.weight_scale"):
        packed_checkpoint.open_packed(damaged)


def test_a_file_cut_off_is_refused(damaged):
    path = damaged / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SourceError, match="not a complete safetensors file"):
        packed_checkpoint.open_packed(damaged)


def test_a_description_that_is_not_json_is_refused(damaged):
    (damaged / "quantization.json").write_text("{")
    with pytest.raises(SourceError, match=r"quantization\.json, line 1: not valid JSON"):
        packed_checkpoint.open_packed(damaged)


def test_packed_folders_are_told_from_others(packed_gpt2, tiny_gpt2, damaged):
    edit(damaged, lambda d: d.update(format_version=1))
    assert packed_checkpoint.is_packed(packed_gpt2)
    assert not packed_checkpoint.is_packed(tiny_gpt2)
    assert not packed_checkpoint.is_packed(damaged)


def test_tensors_written_in_pieces_and_out_of_order_are_a_safetensors_file(tmp_path):
    layout = {"a": ("U8", (3, 5)), "b": ("F32", (4, 2)), "c": ("I64", ())}
    writer = tensor_files.Writer(tmp_path / "model.safetensors", layout)
    a, b = np.arange(15, dtype=np.uint8).reshape(3, 5), np.arange(8, dtype=np.float32).reshape(4, 2)
    writer.write("b", b[2:], start=16)
    writer.write("c", np.array(7))
    writer.write("a", a)
    writer.write("b", b[:2])
    writer.close()
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert np.array_equal(file.get_tensor("a"), a)
        assert np.array_equal(file.get_tensor("b"), b)
        assert file.get_tensor("c") == 7
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_rows_are_read_without_the_rest(tmp_path, dtype):
    tensor = torch.arange(24).reshape(6, 4).to(dtype)
    save_file({"x": tensor, "empty": torch.empty(0, 4)}, tmp_path / "model.safetensors")
    tensors = tensor_files.tensors_of(tmp_path)
    assert torch.equal(tensor_files.read(tensors["x"]), tensor)
    assert torch.equal(tensor_files.read(tensors["x"], slice(2, 5)), tensor[2:5])
    assert torch.equal(tensor_files.read(tensors["x"], slice(4, 99)), tensor[4:])
    assert tensor_files.read(tensors["empty"]).shape == (0, 4)


def test_a_file_that_shrank_meanwhile_is_told(tmp_path):
    save_file({"x": torch.ones(64)}, tmp_path / "model.safetensors")
    tensors = tensor_files.tensors_of(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(SourceError, match="ends before its tensor 'x'"):
        tensor_files.read(tensors["x"])


def test_a_dtype_that_is_not_known_is_named(tmp_path):
    save_file({"x": torch.ones(4).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(SourceError, match="x is of dtype F8_E4M3"):
        tensor_files.tensors_of(tmp_path)
