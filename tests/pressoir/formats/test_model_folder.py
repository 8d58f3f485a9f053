"""What a folder's model is for, from its configuration alone."""

import json
import subprocess
import sys

import pytest

from pressoir.errors import SourceError
from pressoir.formats.folder import task_of


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertForSequenceClassification", "text-classification"),
        ("LlamaForCausalLM", "causal-lm"),
        ("GPT2LMHeadModel", "causal-lm"),
        ("M2M100ForConditionalGeneration", "translation"),
        ("MarianMTModel", "translation"),
        ("T5ForConditionalGeneration", "translation"),
        ("WhisperForConditionalGeneration", "automatic-speech-recognition"),
        ("Wav2Vec2ForCTC", "automatic-speech-recognition"),
        ("BertModel", "feature-extraction"),
    ],
)
def test_the_class_tells_the_task(architecture, task, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}), encoding="utf-8")
    assert task_of(tmp_path) == task


@pytest.mark.parametrize("content", ["{}", '{"architectures": []}', '{"architectures": "x"}', "[]", "{"])
def test_a_configuration_that_names_none_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(SourceError, match=r"config\.json"):
        task_of(tmp_path)


@pytest.mark.process
def test_no_library_is_loaded():
    heavy = "{'torch', 'transformers', 'onnx'}"
    code = f"import sys, pressoir.formats.folder; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
