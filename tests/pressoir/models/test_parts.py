"""Parameters by part, against transformers' own modules, onnx's own reader and the files' own lengths."""

import json
import math
import shutil
from itertools import chain

import onnx
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pressoir.errors import ShardError, SourceError
from pressoir.extensions.architecture import EncoderArchitecture
from pressoir.models.parts import Place, StoredTensor, parts, place_of


def built(folder):
    """A model of the folder's configuration, and the folder of what transformers saves of it."""
    config = transformers.AutoConfig.from_pretrained(folder)
    return getattr(transformers, config.architectures[0])(config)


def numel(*modules):
    """Of distinct parameters."""
    parameters = {id(p): p for module in modules for p in module.parameters()}
    return sum(p.numel() for p in parameters.values())


def norms(layers):
    return numel(*(m for m in layers.modules() if "Norm" in type(m).__name__))


def counted(folder):
    return {size.place: size.parameters for size in parts(folder)}


def bert(model, base, layers, attention, forward, head):
    embeddings = base.embeddings
    return {
        Place("", "word_embeddings"): numel(embeddings.word_embeddings),
        Place("", "position_embeddings"): numel(embeddings.position_embeddings),
        Place("encoder", "attention"): numel(*chain(*map(attention, layers))),
        Place("encoder", "feed_forward"): numel(*chain(*map(forward, layers))),
        Place("encoder", "norms"): norms(layers),
        Place("", "head"): numel(*head),
        Place("", "other"): numel(embeddings)
        - numel(embeddings.word_embeddings, embeddings.position_embeddings),
    }


def bert_like(base, head):
    def expected(model):
        own = getattr(model, base)
        return bert(
            model,
            own,
            own.encoder.layer,
            lambda layer: [layer.attention.self, layer.attention.output.dense],
            lambda layer: [layer.intermediate, layer.output.dense],
            [module for module in (own.pooler, *(getattr(model, name) for name in head)) if module],
        )

    return expected


def distilbert(model):
    own = model.distilbert
    found = bert(
        model,
        own,
        own.transformer.layer,
        lambda layer: [layer.attention],
        lambda layer: [layer.ffn],
        [model.pre_classifier, model.classifier],
    )
    return {Place("", place.part): count for place, count in found.items()}


def llama(model):
    layers = model.model.layers
    return {
        Place("", "word_embeddings"): numel(model.model.embed_tokens),
        Place("", "attention"): numel(*(layer.self_attn for layer in layers)),
        Place("", "feed_forward"): numel(*(layer.mlp for layer in layers)),
        Place("", "norms"): norms(layers),
        Place("", "head"): numel(model.lm_head),
        Place("", "other"): numel(model.model.norm),
    }


def t5(model):
    found = {
        Place("", "word_embeddings"): numel(model.shared),
        Place("", "head"): numel(model.lm_head) if model.lm_head.weight is not model.shared.weight else None,
        Place("", "other"): numel(model.encoder.final_layer_norm, model.decoder.final_layer_norm),
        Place("", "position_embeddings"): 0,
    }
    for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        bias = numel(*(m for n, m in stack.named_modules() if n.endswith("relative_attention_bias")))
        attention = [m for n, m in stack.named_modules() if n.endswith("Attention")]
        found[Place(name, "attention")] = numel(*attention) - bias
        found[Place("", "position_embeddings")] += bias
        found[Place(name, "feed_forward")] = numel(*(block.layer[-1].DenseReluDense for block in stack.block))
        found[Place(name, "norms")] = norms(stack.block)
    return {place: count for place, count in found.items() if count is not None}


def whisper(model):
    encoder, decoder = model.model.encoder, model.model.decoder
    found = {
        Place("", "word_embeddings"): numel(decoder.embed_tokens),
        Place("", "position_embeddings"): numel(encoder.embed_positions, decoder.embed_positions),
        Place("", "other"): numel(encoder.conv1, encoder.conv2, encoder.layer_norm, decoder.layer_norm),
    }
    for name, stack in (("encoder", encoder), ("decoder", decoder)):
        attention = [m for n, m in stack.named_modules() if n.endswith("_attn")]
        found[Place(name, "attention")] = numel(*attention)
        found[Place(name, "feed_forward")] = numel(*chain(*((la.fc1, la.fc2) for la in stack.layers)))
        found[Place(name, "norms")] = norms(stack.layers)
    return found


@pytest.fixture
def saved(request, tmp_path):
    """A model by name, and the folder it is saved in: a fixture's, or one made here."""

    def save(name):
        made = {"num_labels": 3, "vocab_size": 50, "max_position_embeddings": 20}
        if name == "distilbert":
            config = transformers.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=40, **made)
            model = transformers.DistilBertForSequenceClassification(config)
        elif name == "roberta":
            config = transformers.RobertaConfig(
                hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40, **made
            )
            model = transformers.RobertaForSequenceClassification(config)
        else:
            folder = request.getfixturevalue(name)
            return built(folder), folder
        model.save_pretrained(tmp_path)
        return model, tmp_path

    return save


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tiny_classifier", bert_like("bert", ["classifier"])),
        ("roberta", bert_like("roberta", ["classifier"])),
        ("distilbert", distilbert),
        ("tiny_llama", llama),
        ("tiny_t5", t5),
        ("tiny_first_t5", t5),
        ("tiny_whisper", whisper),
    ],
)
def test_each_part_has_the_parameters_of_transformers_modules(name, expected, saved):
    model, folder = saved(name)
    assert counted(folder) == expected(model)
    assert sum(counted(folder).values()) == numel(model)


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_qwen2", "tiny_gemma3", "tiny_umt5", "tiny_wav2vec2"])
def test_all_parts_together_are_the_model(name, saved):
    model, folder = saved(name)
    assert sum(counted(folder).values()) == numel(model)


def test_tied_weights_that_are_stored_twice_count_once(tiny_gpt2, tiny_first_t5, tmp_path):
    for source, copies in (
        (tiny_gpt2, {"lm_head.weight": "transformer.wte.weight"}),
        (tiny_first_t5, {f"{side}.embed_tokens.weight": "shared.weight" for side in ("encoder", "decoder")}),
    ):
        folder = tmp_path / source.name
        shutil.copytree(source, folder)
        state = load_file(folder / "model.safetensors")
        state |= {copy: state[name].clone() for copy, name in copies.items()}
        save_file(state, folder / "model.safetensors")
        plain, twice = parts(source), parts(folder)
        assert sum(size.parameters for size in twice) == sum(size.parameters for size in plain)
        extra = sum(state[copy].nbytes for copy in copies)
        assert sum(size.bytes for size in twice) == sum(size.bytes for size in plain) + extra


def test_buffers_of_older_versions_are_no_parameters(tiny_gpt2, tmp_path):
    shutil.copytree(tiny_gpt2, tmp_path, dirs_exist_ok=True)
    state = load_file(tmp_path / "model.safetensors")
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 256, 256)
    state["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    state["transformer.h.0.attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(state, tmp_path / "model.safetensors")
    assert parts(tmp_path) == parts(tiny_gpt2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bytes_follow_the_type(dtype, tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path, dirs_exist_ok=True)
    state = load_file(tmp_path / "model.safetensors")
    save_file({name: tensor.to(dtype) for name, tensor in state.items()}, tmp_path / "model.safetensors")
    assert [(s.place, s.parameters, 2 * s.bytes) for s in parts(tmp_path)] == [
        (s.place, s.parameters, s.bytes) for s in parts(tiny_llama)
    ]


def test_a_quantised_checkpoint_has_the_parameters_of_its_source(tiny_llama, tiny_text, context):
    from pressoir.recipe.sections import QuantizeConfig
    from pressoir.stages import quantize

    config = QuantizeConfig(scheme="q3", algorithm="rtn")
    quantize.run({"model": tiny_llama, "data": tiny_text}, config, context)
    assert counted(context.out_dir) == counted(tiny_llama)
    stored = sum(tensor.nbytes for tensor in load_file(context.out_dir / "model.safetensors").values())
    sizes = {size.place.part: size for size in parts(context.out_dir)}
    assert sum(size.bytes for size in sizes.values()) == stored
    codes, scale, zero = 3 / 8, 4 / 64, 1 / 64  # a weight, of which 64 share a float32 and a padded code
    forward = sizes["feed_forward"]
    assert forward.bytes / forward.parameters == pytest.approx(codes + scale + zero, abs=0.01)


def graph_elements(folder, *graphs):
    """Elements of float and 8-bit initializers by onnx's own reader, without scales and lone numbers."""
    total, seen = 0, set()
    for name in graphs:
        for tensor in onnx.load(folder / name).graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            scale = tensor.name.endswith(("_scale", "_zero_point"))
            if array.dtype.name in ("float32", "int8") and array.size > 1 and not scale:
                own = (array.shape, array.tobytes())
                total += array.size if array.size < 1000 or own not in seen else 0
                seen.add(own)
    return total


def test_graphs_of_an_encoder_decoder_have_the_elements_of_their_initializers(exported, tiny_t5):
    folder, _ = exported("tiny_t5", int8=True)
    found, source = counted(folder), counted(tiny_t5)
    assert sum(found.values()) == graph_elements(folder, "encoder_model.onnx", "decoder_model.onnx")
    matrices = [place for place in source if place.part not in ("norms", "other")]
    assert {place: found[place] for place in matrices} == {place: source[place] for place in matrices}


def test_packed_graphs_count_as_their_matrices(tmp_path, tiny_llama):
    shutil.copy(tiny_llama / "config.json", tmp_path)
    (rows, columns, block), names = (6, 64, 32), ("codes", "scales", "zeros")
    helper, kinds = onnx.helper, onnx.TensorProto
    codes = helper.make_tensor(
        "lm_head.codes",
        kinds.UINT8,
        [rows, columns // block, block // 2],
        bytes(rows * columns // 2),
        raw=True,
    )
    scales = helper.make_tensor("lm_head.scales", kinds.FLOAT, [rows * 2], [1.0] * rows * 2)
    zeros = helper.make_tensor("lm_head.zeros", kinds.UINT8, [rows], bytes(rows), raw=True)
    node = helper.make_node(
        "MatMulNBits",
        ["x", *(f"lm_head.{name}" for name in names)],
        ["y"],
        name="/lm_head/MatMul",
        domain="com.microsoft",
        K=columns,
        N=rows,
        bits=4,
        block_size=block,
    )
    graph = helper.make_graph([node], "g", [], [], [codes, scales, zeros])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    (found,) = parts(tmp_path)
    assert found.place == Place("", "head")
    assert found.bytes == rows * columns // 2 + 4 * 2 * rows + rows
    assert found.parameters == math.prod((rows, columns))


def test_fused_and_renamed_weights_are_known_by_the_node_that_reads_them(tmp_path, tiny_bert):
    shutil.copy(tiny_bert / "config.json", tmp_path)
    helper, hidden = onnx.helper, 8
    layer = "/bert/encoder/layer.0"
    nodes = [
        helper.make_node("Gather", ["bert.embeddings.word_embeddings.weight", "ids"], ["x"]),
        helper.make_node(
            "Attention", ["x", "Attention_0_qkv_weight"], ["a"], name="Attention_0", domain="com.microsoft"
        ),
        helper.make_node(
            "MatMul", ["a", "onnx::MatMul_3"], ["o"], name=f"{layer}/attention/output/dense/MatMul"
        ),
        helper.make_node("MatMul", ["o", "onnx::MatMul_4"], ["y"], name=f"{layer}/intermediate/dense/MatMul"),
        helper.make_node("Reshape", ["y", "shape"], ["z"]),
    ]
    dims = {
        "bert.embeddings.word_embeddings.weight": (5, hidden),
        "Attention_0_qkv_weight": (hidden, 3 * hidden),
        "onnx::MatMul_3": (hidden, hidden),
        "onnx::MatMul_4": (hidden, 4 * hidden),
    }
    tensors = [
        helper.make_tensor(name, onnx.TensorProto.FLOAT, shape, [0.5] * math.prod(shape))
        for name, shape in dims.items()
    ]
    tensors.append(helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [-1, hidden]))
    graph = helper.make_graph(nodes, "g", [], [], tensors)
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    assert {size.place: (size.parameters, size.bytes) for size in parts(tmp_path)} == {
        Place("", "word_embeddings"): (5 * hidden, 4 * 5 * hidden),
        Place("encoder", "attention"): (4 * hidden**2, 4 * 4 * hidden**2),
        Place("encoder", "feed_forward"): (4 * hidden**2, 4 * 4 * hidden**2),
    }


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("net.stack.layers.3.mix.first.weight", Place("", "attention")),
        ("net.stack.layers.3.mix.last.weight", Place("", "attention")),
        ("net.stack.layers.3.widen.bias", Place("", "feed_forward")),
        ("net.stack.layers.3.narrow.weight", Place("", "feed_forward")),
        ("net.stack.layers.3.gate", Place("", "norms")),
        ("net.places.weight", Place("", "position_embeddings")),
    ],
)
def test_an_architecture_of_another_package_is_read_by_the_names_it_declares(name, place):
    names = EncoderArchitecture(
        layers="stack.layers",
        query="mix.first",
        key="mix.second",
        value="mix.third",
        attention_output="mix.last",
        ffn_in="widen",
        ffn_out="narrow",
        position_embeddings="places",
    )
    assert place_of(StoredTensor(name, 4, 16, (2, 2)), {}, names) == place


def test_what_is_missing_or_broken_is_named(tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(SourceError, match="is not a complete safetensors file"):
        parts(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"has neither model\.safetensors nor"):
        parts(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"x" * 100)
    with pytest.raises(ShardError, match=r"is an empty ONNX graph|is not an ONNX graph"):
        parts(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([]))
    with pytest.raises(SourceError, match=r"config\.json"):
        parts(tmp_path)
