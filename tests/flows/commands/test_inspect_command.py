"""`pressoir inspect`: what it prints in 80 columns and as JSON, what it refuses and does not import."""

import json
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from pressoir.pipeline.inspection import Inspection, inspect_model


def run(*words):
    from pressoir.flows.cli import main

    return CliRunner().invoke(main, ["inspect", *(str(word) for word in words)])


@pytest.fixture
def wide(tiny_classifier, tmp_path):
    """A classifier with more labels, and longer names, than a line holds."""
    folder = tmp_path / "wide"
    shutil.copytree(tiny_classifier, folder)
    config = json.loads((folder / "config.json").read_text())
    labels = {str(index): f"a label with a long name {index}" for index in range(12)}
    config |= {"id2label": labels, "label2id": {name: int(index) for index, name in labels.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_page_fits_80_columns_and_says_what_the_json_says(wide):
    result = run(wide)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= 80
    found, text = inspect_model(str(wide)), " ".join(result.output.split())
    assert "bert (BertForSequenceClassification)" in text
    assert "task text-classification supported yes, run by PyTorch" in text
    assert "layers 4, heads 4, feed-forward width 64" in text
    assert "labels 12: a label with a long name 0, " in text
    assert "… 4 more" in text
    assert "stages train, distill, vocabulary, prune, quantize, export, shard, serve" in text
    layers = sum(part.parameters for part in found.parts if part.stack == "encoder")
    assert f"encoder layers {layers:,} {layers / found.parameters:.1%} 32.00" in text
    assert f"all {found.parameters:,} 100.0% 32.00" in text


def test_json_is_everything(tiny_llama):
    result = run(tiny_llama, "--json")
    assert result.exit_code == 0, result.output
    assert Inspection.model_validate_json(result.output) == inspect_model(str(tiny_llama))


def test_stages_that_give_the_same_reason_stand_together(tiny_bert, tmp_path):
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=1200, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(tmp_path)
    text = " ".join(run(tmp_path).output.split())
    assert (
        "stages quantize, export, shard, serve not train, distill, vocabulary, prune: recipes are for "
        "text-classification, token-classification and causal-lm, not for translation" in text
    )


def test_markup_in_a_name_is_text(wide):
    config = json.loads((wide / "config.json").read_text())
    config["id2label"]["0"] = "[red]hot[/]"
    (wide / "config.json").write_text(json.dumps(config))
    assert "[red]hot[/]" in run(wide).output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{folder}/nowhere"], "no such folder; specify a model folder, a catalogue id or a hub id"),
        (["{folder}"], "has no config.json; is it a transformers model folder?"),
        (["all-minilm-l6-v3"], "Did you mean 'all-minilm-l6-v2', which is registered?"),
        (["package:nothing-like-it"], "is not installed"),
    ],
)
def test_what_is_no_model_is_one_message(words, message, tmp_path, monkeypatch):
    monkeypatch.setenv("PRESSOIR_HOME", str(tmp_path / "home"))
    result = run(*(word.format(folder=tmp_path) for word in words))
    assert result.exit_code == 2
    assert message in " ".join((result.stderr or result.output).split())


@pytest.mark.process
@pytest.mark.parametrize("name", ["tiny_classifier", "tiny_bert", "tiny_llama"])
def test_nothing_that_runs_models_is_imported(name, request):
    program = (
        "import sys; from pressoir.flows.cli import main\n"
        "main(['inspect', sys.argv[1], '--json'], standalone_mode=False)\n"
        "print(*{'torch', 'transformers', 'onnxruntime', 'optimum', 'prefect', 'mlflow', 'sklearn'}"
        " & sys.modules.keys(), file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, str(request.getfixturevalue(name))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""
