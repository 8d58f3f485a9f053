"""Tasks: one declaration each, read without heavy imports, open to other packages."""

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from pressoir.errors import ExtensionError
from pressoir.evaluation.config import DataSetConfig
from pressoir.extensions import task as extension
from pressoir.extensions.task import task, task_of_architecture, tasks
from pressoir.formats.folder import task_of
from pressoir.recipe.recipe import Recipe
from pressoir.registry import catalogue

OWN = [
    "text-classification",
    "causal-lm",
    "translation",
    "automatic-speech-recognition",
    "feature-extraction",
]
OUTSIDE = """
from pressoir.extensions.task import Metric, Task

TASK = Task(name="masked-lm", heads=("ForMaskedLM",))
OTHER = Task(name="other", heads=())
"""


@pytest.fixture
def outside(site, tmp_path, monkeypatch):
    """A task of another package."""
    (tmp_path / "masked.py").write_text(OUTSIDE)
    site("masked-tasks", {"pressoir.tasks": {"masked-lm": "masked:TASK"}})
    yield
    monkeypatch.delitem(sys.modules, "masked", raising=False)


def enumerated():
    return json.loads(catalogue.schema())["$defs"]["Entry"]["properties"]["type"]["enum"]


def test_declarations_stand_in_their_order():
    assert [one.name for one in tasks()] == enumerated() == OWN


def test_reading_all_declarations_imports_no_heavy_library():
    program = (
        "import sys; from pressoir.extensions.task import tasks; assert tasks();"
        "print({'torch', 'prefect', 'mlflow', 'transformers', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("BertForSequenceClassification", "text-classification"),
        ("LlamaForCausalLM", "causal-lm"),
        ("GPT2LMHeadModel", "causal-lm"),
        ("Wav2Vec2ForCTC", "automatic-speech-recognition"),
        ("WhisperForConditionalGeneration", "automatic-speech-recognition"),
        ("T5ForConditionalGeneration", "translation"),
        ("MarianMTModel", "translation"),
        ("BertForMaskedLM", "feature-extraction"),
        ("BertModel", "feature-extraction"),
    ],
)
def test_the_longest_head_that_fits_a_class_name_tells_the_task(architecture, name):
    assert task_of_architecture(architecture).name == name


def test_a_task_of_another_package_joins_the_schema_and_is_told_from_a_models_folder(outside, tmp_path):
    assert enumerated() == [*OWN, "masked-lm"]
    assert DataSetConfig(task="masked-lm").task == "masked-lm"
    (tmp_path / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')
    assert task_of(tmp_path) == "masked-lm"


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(ValidationError, match=r"pressoir\.tasks has no 'masked-lm'; .*: text-classification, "):
        DataSetConfig(task="masked-lm")
    with pytest.raises(ValidationError, match=r"there are: text-classification, causal-lm$|causal-lm \["):
        Recipe(task="translation")


def test_a_part_that_is_not_declared_or_not_there_is_named(outside):
    with pytest.raises(ExtensionError, match="the task masked-lm declares no `export`"):
        task("masked-lm").part("export")
    broken = extension.Task(name="broken", heads=(), export="json:no_such_name")
    with pytest.raises(ExtensionError, match="declares 'json:no_such_name' as its `export`"):
        broken.part("export")


def test_an_entry_that_is_no_task_of_its_name_is_refused(outside, site):
    site("wrong", {"pressoir.tasks": {"wrong": "masked:OTHER"}})
    with pytest.raises(ExtensionError, match=r"the entry 'wrong' of pressoir\.tasks is no Task of that name"):
        task("wrong")
