"""Export of translation and speech models: the graphs compute what PyTorch computes, hold every weight once,
and are refused where they do not."""

import hashlib
import itertools
import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pressoir.errors import ParityError, QuantizationError, SourceError
from pressoir.export import encoder_decoder, encoder_decoder_graph
from pressoir.export.encoder_decoder_graph import DATA
from pressoir.formats.folder import DECODER, ENCODER, GRAPH, read_json
from pressoir.inference.engines.encoder_decoder import OnnxSequenceToSequence, open_sequence_to_sequence
from pressoir.inference.translation import Translator
from pressoir.models import loading
from pressoir.recipe.sections import ExportConfig

ENCODER_DECODERS = [
    *("tiny_nllb", "tiny_m2m100", "tiny_mbart", "tiny_mbart50", "tiny_marian", "tiny_bart", "tiny_pegasus"),
    *("tiny_t5", "tiny_first_t5", "tiny_mt5", "tiny_umt5", "tiny_whisper"),
]
ALL = [*ENCODER_DECODERS, "tiny_wav2vec2"]


def graphs(folder):
    return {path.name: onnx.load(path) for path in sorted(folder.glob("*.onnx"))}


def places(folder):
    """Offset and length of each external tensor, by graph and name."""
    found = {}
    for path in folder.glob("*.onnx"):
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            if tensor.data_location == tensor.EXTERNAL:
                entry = {item.key: item.value for item in tensor.external_data}
                assert entry["location"] == DATA
                found[path.name, tensor.name] = int(entry["offset"]), int(entry["length"])
    return found


@pytest.mark.parametrize("name", ALL)
def test_float_graphs_compute_what_pytorch_computes(exported, name):
    _, figures = exported(name)
    assert figures["max_logit_difference"] <= 1e-3
    assert figures["token_agreement"] == figures["greedy_agreement"] == 1.0
    assert figures["parity_positions"] >= 100


@pytest.mark.parametrize("name", ALL)
def test_an_exported_folder_is_whole(exported, request, name):
    folder, _ = exported(name)
    source = request.getfixturevalue(name)
    graph_names = {GRAPH} if name == "tiny_wav2vec2" else {ENCODER, DECODER}
    assert {path.name for path in folder.glob("*.onnx")} == graph_names
    beside = {path.name for path in source.iterdir()} - {"model.safetensors"}
    assert beside | {DATA, "export.json"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "quantization.json").exists()
    report = read_json(folder / "export.json")
    assert report["graph_bytes"] == sum((folder / graph).stat().st_size for graph in (*graph_names, DATA))


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_one_decoder_graph_serves_the_first_token_and_the_later_ones(exported, name):
    decoder = graphs(exported(name)[0])[DECODER]
    assert "If" not in {node.op_type for node in decoder.graph.node}
    cache = [value.name for value in decoder.graph.input if ".decoder." in value.name]
    assert [name.replace("past_key_values", "present") for name in cache] == [
        value.name for value in decoder.graph.output if value.name != "logits"
    ]


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("name", ALL)
def test_no_bytes_are_stored_twice(exported, name, int8):
    folder, _ = exported(name, int8)
    data = (folder / DATA).read_bytes()
    ranges = sorted(set(places(folder).values()))
    contents = [hashlib.sha256(data[start : start + length]).digest() for start, length in ranges]
    assert len(set(contents)) == len(contents)
    assert all(start + length <= after for (start, length), (after, _) in itertools.pairwise(ranges))
    assert ranges[-1][0] + ranges[-1][1] == len(data)


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_a_tied_embedding_is_stored_once_for_encoder_decoder_and_head(exported, tiny_nllb, int8):
    folder, _ = exported("tiny_nllb", int8)
    vocabulary = read_json(tiny_nllb / "config.json")["vocab_size"]
    shapes = {
        (graph, tensor.name): tuple(tensor.dims)
        for graph, model in graphs(folder).items()
        for tensor in model.graph.initializer
    }
    tables = {key: place for key, place in places(folder).items() if vocabulary in shapes[key]}
    matrices = {key: place for key, place in tables.items() if len(shapes[key]) == 2 and 1 not in shapes[key]}
    assert {graph for graph, _ in matrices} == {ENCODER, DECODER}
    assert len(set(matrices.values())) == 1


@pytest.mark.parametrize("name", ALL)
def test_int8_graphs_hold_the_codes_and_scales_of_every_layer(exported, request, name):
    folder, figures = exported(name, int8=True)
    source = request.getfixturevalue(name)
    load = loading.load_ctc if name == "tiny_wav2vec2" else loading.load_encoder_decoder
    parts = encoder_decoder_graph.layers(load(source))
    description = read_json(folder / "quantization.json")
    wanted = {layer for part in parts.values() for layer in (*part.linear, *part.embedding)}
    assert set(description["layers"]) == wanted
    for graph, part in parts.items():
        tensors = [numpy_helper.to_array(t) for t in graphs(folder)[graph].graph.initializer]
        codes = {t.tobytes() for t in tensors if t.dtype == np.int8}
        codes |= {np.ascontiguousarray(t.T).tobytes() for t in tensors if t.dtype == np.int8}
        floats = {t.tobytes() for t in tensors if t.dtype == np.float32}
        for layer, module in part.linear.items():
            weight = module.weight.detach().numpy()
            scale = np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)
            layer_codes = np.round(weight / scale).astype(np.int8)
            assert layer_codes.tobytes() in codes, layer
            expanded = layer_codes * scale
            assert not {expanded.tobytes(), np.ascontiguousarray(expanded.T).tobytes()} & floats, layer
    assert description["scheme"] == "int8"
    assert description["activations"] == "dynamic"
    assert all(0 < layer["relative_error"] < 0.02 for layer in description["layers"].values())
    assert description["new_bytes"] == round(figures["graph_mb"] * 1e6)


@pytest.mark.parametrize("name", ALL)
def test_int8_codes_take_a_quarter_of_the_space(exported, name):
    def weights(folder):
        return sum(
            numpy_helper.to_array(tensor).nbytes
            for graph in graphs(folder).values()
            for tensor in graph.graph.initializer
            if len(tensor.dims) == 2 and min(tensor.dims) > 1
        )

    assert weights(exported(name, int8=True)[0]) < 0.35 * weights(exported(name)[0])


def test_int8_is_known_to_depend_on_the_batch(exported):
    assert open_sequence_to_sequence(exported("tiny_nllb")[0], 1).batch_invariant
    assert not open_sequence_to_sequence(exported("tiny_nllb", int8=True)[0], 1).batch_invariant


@pytest.fixture
def damaged(exported, tmp_path):
    """`damaged(name, int8)`: a copy of an export in which the largest tensor's bytes are turned round."""

    def make(name, int8=False):
        folder = tmp_path / "damaged"
        shutil.copytree(exported(name, int8)[0], folder)
        content = bytearray((folder / DATA).read_bytes())
        start, length = max(places(folder).values(), key=lambda place: place[1])
        whole = np.frombuffer(content[start : start + length], dtype=np.int8 if int8 else np.float32)
        content[start : start + length] = whole[::-1].tobytes()
        (folder / DATA).write_bytes(content)
        return folder

    return make


@pytest.mark.parametrize("name", ["tiny_t5", "tiny_whisper", "tiny_wav2vec2"])
@pytest.mark.parametrize(
    ("int8", "message"),
    [(False, "above export.max_logit_difference 0.001"), (True, "below export.min_label_agreement 0.97")],
)
def test_graphs_that_depart_from_pytorch_are_refused(damaged, request, context, name, int8, message):
    source, folder = request.getfixturevalue(name), damaged(name, int8)
    with pytest.raises(ParityError, match=message):
        encoder_decoder.check_parity(source, folder, ExportConfig(), context, int8)


def test_other_tokens_with_equal_logits_are_a_fault_of_the_search(exported, tiny_nllb, context, monkeypatch):
    real = OnnxSequenceToSequence.generate

    def generate(self, inputs, **options):
        return [tokens[::-1] for tokens in real(self, inputs, **options)]

    monkeypatch.setattr(OnnxSequenceToSequence, "generate", generate)
    with pytest.raises(ParityError, match=r"input \d decodes to different tokens"):
        encoder_decoder.check_parity(tiny_nllb, exported("tiny_nllb")[0], ExportConfig(), context, int8=False)


def changed(folder, copy, name, **values):
    """A copy of a folder in one of whose JSON files some values are other ones."""
    shutil.copytree(folder, copy)
    content = json.loads((copy / name).read_text())
    (copy / name).write_text(json.dumps({**content, **values}))
    return copy


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("name", ["tiny_bart", "tiny_mbart", "tiny_mbart50", "tiny_pegasus", "tiny_t5"])
def test_texts_must_have_the_tokens_that_transformers_gives(exported, request, context, tmp_path, name, int8):
    folder = changed(exported(name, int8)[0], tmp_path / "copy", "tokenizer.json", post_processor=None)
    config = ExportConfig(min_label_agreement=0.5)
    with pytest.raises(ParityError, match="texts have other tokens than transformers gives"):
        encoder_decoder.check_parity(request.getfixturevalue(name), folder, config, context, int8)


def test_tokens_must_become_the_text_that_transformers_makes(exported, tiny_bart, context, tmp_path):
    other = {"type": "ByteFallback"}
    folder = changed(exported("tiny_bart")[0], tmp_path / "copy", "tokenizer.json", decoder=other)
    with pytest.raises(ParityError, match="tokens become another text than transformers makes of them"):
        encoder_decoder.check_parity(tiny_bart, folder, ExportConfig(), context, int8=False)


@pytest.mark.parametrize("rule", [{"min_length": 0}, {"no_repeat_ngram_size": 0}])
def test_graphs_that_do_not_obey_a_rule_of_the_generation_settings_are_refused(
    exported, tiny_bart, context, tmp_path, rule
):
    ends = {"sequence_bias": [[[2], 3.0]]}
    source = changed(tiny_bart, tmp_path / "source", "generation_config.json", **ends)
    obedient = changed(exported("tiny_bart")[0], tmp_path / "good", "generation_config.json", **ends)
    encoder_decoder.check_parity(source, obedient, ExportConfig(), context, int8=False)
    folder = changed(obedient, tmp_path / "bad", "generation_config.json", **rule)
    with pytest.raises(ParityError, match=r"input \d decodes to different tokens|beams find another text"):
        encoder_decoder.check_parity(source, folder, ExportConfig(), context, int8=False)


def test_beams_that_find_another_text_are_a_fault_of_the_search(exported, tiny_bart, context, monkeypatch):
    real = OnnxSequenceToSequence.generate

    def generate(self, inputs, num_beams=1, **options):
        return [tokens[:: -1 if num_beams > 1 else 1] for tokens in real(self, inputs, **options)]

    monkeypatch.setattr(OnnxSequenceToSequence, "generate", generate)
    with pytest.raises(ParityError, match="4 beams find another text of input 0, whose scores are"):
        encoder_decoder.check_parity(tiny_bart, exported("tiny_bart")[0], ExportConfig(), context, int8=False)


def test_a_tokenizer_file_that_frames_texts_otherwise_than_transformers_is_replaced(
    exported, tiny_nllb, tmp_path, context
):
    source = changed(tiny_nllb, tmp_path / "source", "tokenizer.json", post_processor=None)
    encoder_decoder.run({"model": source}, ExportConfig(), context)
    texts = ["the film was good"]
    expected = Translator.open(tiny_nllb, 1).encode(texts)
    assert Translator.open(context.out_dir, 1, "onnxruntime").encode(texts) == expected


def test_what_a_class_adds_to_the_generation_settings_is_exported(exported, tiny_bart, context, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny_bart, source)
    (source / "generation_config.json").unlink()
    config = json.loads((source / "config.json").read_text())
    for name in ("forced_eos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id"):
        config.pop(name, None)
    (source / "config.json").write_text(json.dumps(config))
    encoder_decoder.run({"model": source}, ExportConfig(), context)
    generation = Translator.open(context.out_dir, 1, "onnxruntime").engine.generation
    assert (generation.decoder_start, generation.rules.forced_last, generation.rules.pad_id) == (2, 2, 1)


def test_a_model_for_another_task_is_refused(tiny_classifier, context):
    with pytest.raises(SourceError, match="a model for text-classification, not for translation"):
        encoder_decoder.run({"model": tiny_classifier}, ExportConfig(), context)
    assert not list(context.out_dir.iterdir())


def test_a_quantised_model_is_not_quantised_again(tiny_nllb, context, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny_nllb, source)
    (source / "quantization.json").write_text("{}")
    with pytest.raises(QuantizationError, match="already quantised"):
        encoder_decoder.run({"model": source}, ExportConfig(), context, int8=True)


def test_a_checkpoint_without_all_its_weights_is_refused(tiny_nllb, context, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny_nllb, source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "decoder_layers": 3}))
    with pytest.raises(SourceError, match=r"is missing weights of an encoder-decoder.*layers\.2"):
        encoder_decoder.run({"model": source}, ExportConfig(), context)


def test_an_architecture_that_optimum_does_not_know_is_refused(tiny_nllb, context):
    model = loading.load_encoder_decoder(tiny_nllb)
    model.config.model_type = "unheard-of"
    with pytest.raises(ParityError, match="optimum cannot export a unheard-of model"):
        encoder_decoder_graph.trace(model, 17, context.work_dir)


@pytest.mark.parametrize("lost", [ENCODER, DATA])
def test_a_folder_that_lost_a_file_says_so(exported, tmp_path, lost):
    folder = tmp_path / "model"
    shutil.copytree(exported("tiny_nllb")[0], folder)
    (folder / lost).unlink()
    with pytest.raises(SourceError, match=f"{lost}|{ENCODER} cannot be opened"):
        Translator.open(folder, 1, "onnxruntime")


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "program"),
    [
        (
            "tiny_nllb",
            "from pressoir.inference.translation import Translator as M; use = lambda m: m.translate(['a'])",
        ),
        (
            "tiny_whisper",
            "from pressoir.inference.automatic_speech_recognition import SpeechRecognizer as M; import numpy;"
            "use = lambda m: m.transcribe([numpy.ones(99, 'f')])",
        ),
        (
            "tiny_wav2vec2",
            "from pressoir.inference.automatic_speech_recognition import SpeechRecognizer as M; import numpy;"
            "use = lambda m: m.transcribe([numpy.ones(99, 'f')])",
        ),
    ],
)
def test_graphs_run_without_pytorch_and_transformers(exported, name, program):
    folder, _ = exported(name)
    code = f"import sys, pathlib; {program}; use(M.open(pathlib.Path(sys.argv[1]), 1)); print(*sys.modules)"
    child = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert "onnxruntime" in child.stdout.split()
    assert not {"torch", "transformers"} & set(child.stdout.split())
