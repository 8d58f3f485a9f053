"""`pressoir quantize`: what it writes, what it says, and that a mistake leaves nothing behind."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from pressoir.export import causal_lm
from pressoir.flows.cli import main
from pressoir.inference.engines.decoder import OnnxDecoder
from pressoir.inference.feature_extraction import SentenceEncoder
from pressoir.inference.parity import Parity
from pressoir.metrics import cosines
from pressoir.models import loading

pytestmark = pytest.mark.usefixtures("home")


def run(*words):
    return CliRunner().invoke(main, ["quantize", *(str(word) for word in words)])


def quantize(model, output, *words):
    result = run("--model", model, "--output", output, "--threads", 1, *words)
    assert result.exit_code == 0, result.output
    return result.output


def metadata(output):
    return json.loads((output / "metadata.json").read_text())


@pytest.fixture(scope="module")
def text_file(tiny_text):
    return tiny_text / "calibration.txt"


def test_a_model_is_quantised_exported_and_described(tiny_llama, tmp_path):
    output = tmp_path / "q4"
    said = quantize(tiny_llama, output, "--level", "q4", "--algorithm", "rtn", "--seed", 7)
    assert {path.name for path in output.iterdir()} == {"quantized", "onnx", "metadata.json"}
    description = json.loads((output / "quantized" / "quantization.json").read_text())
    facts = metadata(output)
    assert facts["level"] == "q4"
    assert facts["bits_per_weight"] == description["bits_per_weight"] < 4.7
    assert facts["sizes_mb"]["quantized"] < facts["sizes_mb"]["source"] / 4
    weights = sum((output / "onnx" / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert facts["sizes_mb"]["onnx"] == weights / 1e6
    assert facts["layers"].keys() == description["layers"].keys()
    head = facts["layers"]["lm_head"]
    assert (head["bits"], head["block_size"]) == (8, 64)
    assert 0 < head["relative_error"] < 0.02 < facts["layers"]["model.layers.0.mlp.up_proj"]["relative_error"]
    assert len(facts["source"]["digest"]) == 64
    assert facts["seed"] == 7
    assert 0 < facts["peak_rss_mb"]["quantize"] <= facts["peak_rss_mb"]["export"]
    assert {"pressoir", "torch", "onnxruntime"} <= facts["versions"].keys()
    assert facts["figures"]["export"]["max_logit_difference"] <= 1e-3
    assert f"{facts['bits_per_weight']:.2f} bits per weight" in said
    assert OnnxDecoder(output / "onnx", 1).vocabulary == 320


@pytest.mark.slow
def test_the_test_shows_both_texts_and_both_perplexities(tiny_llama, tmp_path, text_file):
    said = quantize(tiny_llama, tmp_path / "q8", "--level", "q8", "--test", "--evaluation", text_file)
    assert "source" in said
    assert "result" in said
    assert said.count("tokens)") == 2
    assert "the" in said


def test_low_memory_never_loads_the_float_model(tiny_llama, tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("the float model was loaded")

    monkeypatch.setattr(loading, "load_causal_lm", refuse)
    said = quantize(tiny_llama, tmp_path / "q3", "--level", "q3", "--low-cpu-mem", "--test")
    assert "the source is not tested" in said
    assert said.count("tokens)") == 1
    assert metadata(tmp_path / "q3")["figures"]["export"]["max_logit_difference"] <= 1e-3


def test_options_reach_the_quantiser(tiny_llama, tmp_path, text_file):
    words = ("--algorithm", "gptq", "--act-order", "--damping", 0.05, "--calibration", text_file)
    words += ("--block-size", 32, "--embeddings", "q4")
    quantize(tiny_llama, tmp_path / "q3", "--level", "q3", *words)
    description = json.loads((tmp_path / "q3" / "quantized" / "quantization.json").read_text())
    assert description["algorithm"] == "gptq"
    assert description["act_order"] is True
    assert description["damping"] == 0.05
    assert description["block_size"] == 32
    assert description["layers"]["model.embed_tokens"]["bits"] == 4
    assert description["calibration"]["window"] == 128


@pytest.mark.slow
def test_bits_are_chosen_where_a_mean_is_asked_for(tiny_llama, tmp_path):
    quantize(tiny_llama, tmp_path / "mixed", "--level", "q4", "--algorithm", "rtn", "--target-bits", 4)
    facts = metadata(tmp_path / "mixed")
    assert facts["level"] == "mixed"
    assert facts["figures"]["quantize"]["mean_bits"] <= 4


def test_an_unknown_level_is_refused_with_the_known_ones(tiny_llama, tmp_path):
    result = run("--model", tiny_llama, "--output", tmp_path / "out", "--level", "q5")
    assert result.exit_code == 2
    for level in ("q5", "q8", "q4", "q3", "q2", "int8"):
        assert f"'{level}'" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--level", "q4", "--block-size", 48),
            "block_size: Input should be 16, 32, 64, 128 or 256 (got 48)",
        ),
        (("--level", "q4", "--block-size", 128), "q_proj has 64 inputs, which 128 does not divide"),
        (("--level", "int8"), "choose q8, q4, q3 or q2"),
        (("--level", "q4", "--target-bits", 3, "--max-perplexity-increase", "5%"), "not both"),
        (("--level", "q4", "--max-perplexity-increase", "much"), "max_perplexity_increase"),
        (("--level", "q4", "--algorithm", "gptq", "--damping", 2), "damping"),
        (("--level", "q4", "--algorithm", "hqqq"), "'hqqq' is not one of 'gptq', 'hqq', 'rtn'"),
        (("--level", "q4", "--algorithm", "rtn", "--act-order"), "algorithm 'rtn' does not use it"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(tiny_llama, tmp_path, words, message):
    output = tmp_path / "outputs" / "out"
    output.parent.mkdir()
    result = run("--model", tiny_llama, "--output", output, *words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert list(output.parent.iterdir()) == []


def test_a_graph_that_fails_its_check_leaves_the_older_result(tiny_llama, tmp_path, monkeypatch):
    output = tmp_path / "outputs" / "out"
    output.mkdir(parents=True)
    (output / "metadata.json").write_text("old")
    wrong = Parity(8, 128, 8, 64, max_logit_difference=0.5)
    monkeypatch.setattr(causal_lm, "compare", lambda candidates, *_: dict.fromkeys(candidates, wrong))
    result = run("--model", tiny_llama, "--output", output, "--level", "q4", "--algorithm", "rtn")
    assert result.exit_code == 2
    assert "differs from PyTorch" in result.output
    assert [path.name for path in output.iterdir()] == ["metadata.json"]
    assert list(output.parent.iterdir()) == [output]


def test_a_folder_of_somebody_else_is_not_replaced(tiny_llama, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    result = run("--model", tiny_llama, "--output", tmp_path / "out", "--level", "q4")
    assert result.exit_code == 2
    assert "was not created by this command" in " ".join(result.output.split())
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_a_classifier_becomes_int8_without_labels_of_its_own(tiny_classifier, tmp_path):
    said = quantize(tiny_classifier, tmp_path / "int8", "--level", "int8")
    assert {path.name for path in (tmp_path / "int8").iterdir()} == {"quantized", "onnx", "metadata.json"}
    facts = metadata(tmp_path / "int8")
    assert facts["level"] == "int8"
    assert facts["bits_per_weight"] is None
    assert facts["config"]["quantize"]["max_accuracy_drop"] is None
    assert facts["excluded"] == {"classifier": "named in quantize.exclude"}
    assert facts["figures"]["export"]["label_agreement"] >= 0.97
    assert "relative error" in said


@pytest.mark.parametrize("labels", [("negative", "positive"), ("0", "1")])
def test_a_table_of_labels_guards_a_classifiers_accuracy(tiny_classifier, tmp_path, labels):
    table = tmp_path / "table.tsv"
    rows = [f"the film was good and the book was bad {n}\t{labels[n % 2]}" for n in range(40)]
    table.write_text("text\tlabel\n" + "\n".join(rows) + "\n", encoding="utf-8")
    quantize(tiny_classifier, tmp_path / "int8", "--level", "int8", "--calibration", table)
    facts = metadata(tmp_path / "int8")
    assert facts["config"]["quantize"]["max_accuracy_drop"] == 0.01
    assert facts["figures"]["quantize"]["validation_accuracy"] == pytest.approx(0.5)
    assert facts["figures"]["export"]["parity_samples"] == 40


def test_a_label_that_the_classifier_lacks_is_refused(tiny_classifier, tmp_path):
    table = tmp_path / "table.tsv"
    table.write_text("text\tlabel\ngood film\tneutral\n", encoding="utf-8")
    words = ("--level", "int8", "--calibration", table)
    result = run("--model", tiny_classifier, "--output", tmp_path / "out", *words)
    assert result.exit_code == 2
    assert "label 'neutral' is not one of the model's classes ['negative', 'positive']" in " ".join(
        result.output.split()
    )
    assert not (tmp_path / "out").exists()


def other_model(folder, architecture):
    folder.mkdir()
    kinds = {"MarianMTModel": "marian", "BertForSequenceClassification": "bert", "BertModel": "bert"}
    config = {"architectures": [architecture], "model_type": kinds[architecture]}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"w": np.zeros(1000, np.float32)}, folder / "model.safetensors")
    return folder


def test_a_translation_model_becomes_an_int8_graph(tmp_path, monkeypatch):
    from pressoir.export import encoder_decoder

    model = other_model(tmp_path / "model", "MarianMTModel")

    def fake(inputs, config, context, int8=False):
        assert (inputs["model"], int8) == (model, True)
        description = {"scheme": "int8", "layers": {"shared": {"bits": 8, "relative_error": 0.01}}}
        (context.out_dir / "quantization.json").write_text(json.dumps(description))
        (context.out_dir / "encoder_model.onnx").write_bytes(b"graph")
        return {"graph_mb": 5e-6}

    monkeypatch.setattr(encoder_decoder, "run", fake)
    said = quantize(model, tmp_path / "out", "--level", "int8")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"onnx", "metadata.json"}
    facts = metadata(tmp_path / "out")
    assert facts["sizes_mb"].keys() == {"source", "onnx"}
    assert facts["layers"] == {"shared": {"bits": 8, "relative_error": 0.01}}
    assert "relative error 0.010" in said


def test_a_sentence_encoder_is_quantised_on_pairs_and_exported_with_its_modules(tiny_bert, tmp_path):
    rows = [
        f"the film was {word}\tthe book was {word}\t{score}" for score, word in enumerate(("good", "bad"))
    ]
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("\n".join(["sentence1\tsentence2\tscore", *rows, "soup\tthe song\t0.5"]) + "\n")
    output = tmp_path / "int8"
    quantize(tiny_bert, output, "--level", "int8", "--calibration", pairs)
    facts = json.loads((output / "quantized" / "quantization.json").read_text())
    assert facts["validation"]["pairs"] == 3
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        assert (output / "onnx" / name).exists()
    texts = ["the film was good", "soup"]
    found = SentenceEncoder.open(output / "onnx", 1).embed(texts)
    assert cosines(found, SentenceEncoder.open(tiny_bert, 1).embed(texts)).min() > 0.98
    result = run("--model", output / "quantized", "--output", tmp_path / "again", "--level", "int8")
    assert result.exit_code == 2
    assert "is already quantised" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("architecture", "words", "message"),
    [
        (
            "MarianMTModel",
            ("--level", "q4"),
            "--level q4 is for causal LMs; choose int8 for translation",
        ),
        ("MarianMTModel", ("--level", "int8", "--test"), "--test is for causal LMs"),
        (
            "BertForSequenceClassification",
            ("--level", "int8", "--low-cpu-mem"),
            "--low-cpu-mem is for causal",
        ),
        ("BertModel", ("--level", "q4"), "--level q4 is for causal LMs; choose int8 for feature-extraction"),
    ],
)
def test_levels_and_options_fit_the_models_task(tmp_path, architecture, words, message):
    model = other_model(tmp_path / "model", architecture)
    result = run("--model", model, "--output", tmp_path / "out", *words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()
