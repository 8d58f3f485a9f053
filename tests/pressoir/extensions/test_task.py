"""Tasks: one declaration each, read without heavy imports, open to other packages."""

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from pressoir.errors import ExtensionError
from pressoir.evaluation import datasets
from pressoir.evaluation.child import predictors
from pressoir.evaluation.config import DataSetConfig
from pressoir.evaluation.jobs import Job
from pressoir.evaluation.report import scoring
from pressoir.extensions import task as extension
from pressoir.extensions.task import Part, task, task_of_architecture, tasks
from pressoir.formats.folder import task_of
from pressoir.inference.predictor import open_predictor
from pressoir.recipe.recipe import Recipe
from pressoir.registry import catalogue

OWN = [
    "text-classification",
    "causal-lm",
    "token-classification",
    "translation",
    "automatic-speech-recognition",
    "feature-extraction",
]
OUTSIDE = """
from pressoir.evaluation.records import EvaluationSample
from pressoir.evaluation.report.scoring import Score
from pressoir.extensions.task import Metric, Task

TASK = Task(
    name="masked-lm", heads=("ForMaskedLM",), read_data="masked:read", predictor="masked:open_model",
    score="masked:score", metrics=(Metric("recall", "Recall", form="percent"),), table="masked:table",
)
OTHER = Task(name="other", heads=())

def read(config, seed):
    return (), [EvaluationSample(id=word, input=word, reference=word, length=1) for word in ("a", "b")]

class Echo:
    together = True

    def length(self, sample):
        return 1

    def predict(self, samples):
        return [{"word": sample.input} for sample in samples]

def open_model(job, data):
    return Echo(), None

def score(data, found):
    right = [found[sample.id]["word"] == sample.reference for sample in data.samples if sample.id in found]
    return Score({"recall": sum(right) / len(right)}, ())

def table(folder, threads):
    return Echo()
"""
# Where a literal is not the declaration's name for a task, or has to be written out.
ALLOWED = {
    "pressoir/recipe/recipe.py": "the default of a field",
    "pressoir/benchmark/language_model_report.py": "marks the format of a stored file",
    "pressoir/export/classifier.py": "optimum's name for what it exports",
    "pressoir/export/embedder.py": "optimum's name for what it exports",
    "pressoir/export/encoder_decoder_graph.py": "optimum's name for what it exports",
}
ROOT = Path(__file__).parents[3]


@pytest.fixture
def outside(site, tmp_path, monkeypatch):
    """A task of another package."""
    (tmp_path / "masked.py").write_text(OUTSIDE)
    site("masked-tasks", {"pressoir.tasks": {"masked-lm": "masked:TASK"}})
    yield
    monkeypatch.delitem(sys.modules, "masked", raising=False)


def enumerated():
    return json.loads(catalogue.schema())["$defs"]["Entry"]["properties"]["type"]["enum"]


def test_declarations_stand_in_their_order_and_every_part_they_name_exists():
    assert [one.name for one in tasks()] == enumerated() == OWN
    named = [one.part(part) for one in tasks() for part in get_args(Part) if getattr(one, part)]
    assert len(named) > 40


@pytest.mark.process
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


def test_a_task_of_another_package_is_evaluated_and_served_by_its_own_code(outside, tmp_path):
    data = datasets.load(DataSetConfig(task="masked-lm"))
    job = Job(
        model="m",
        folder=tmp_path,
        task="masked-lm",
        runtime="onnxruntime",
        data=DataSetConfig(task="masked-lm"),
        key="k",
        journal=tmp_path / "journal",
        batch_size=1,
    )
    predicted = predictors.open_predictor(job, data).predict(predictors.samples_of(job, data))
    found = scoring.score(data, dict(zip("ab", predicted, strict=True)))
    assert found.metrics == {"recall": 1.0}
    assert (scoring.name_of("recall"), scoring.figure_of("recall", 0.5)) == ("Recall", "50.0 %")
    (tmp_path / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')
    assert type(open_predictor(tmp_path, 1)).__name__ == "Echo"


def test_names_of_tasks_stand_in_their_declarations_alone():
    """Whole string constants, docstrings not counted."""
    found = {}
    for folder in ("pressoir", "tasks", "flows"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            if path.parent.name == "declarations" or any(parent.is_symlink() for parent in path.parents):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and node.value in OWN:
                    found.setdefault(name, set()).add(node.lineno)
    assert found.keys() == ALLOWED.keys(), found
    assert max(map(len, found.values())) == 1, found


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(
        ValidationError, match=r"pressoir\.tasks has no 'masked-lm'; .*: text-classification, "
    ):
        DataSetConfig(task="masked-lm")
    with pytest.raises(ValidationError, match=r"there are: text-classification, .*token-classification \["):
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
