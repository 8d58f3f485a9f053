"""A trial on a tiny model: what is predicted, what is trained, where it is kept."""

import json

import pytest
import yaml

from pressoir.benchmark.cost import CostConditions
from pressoir.data import sentences
from pressoir.recipe.recipe import Recipe
from pressoir.recipe_search import trial
from pressoir.recipe_search.budget import SearchLimits
from pressoir.recipe_search.config import ProxyConfig, with_values
from pressoir.recipe_search.trial import Assignment
from pressoir.reporting import Silent
from pressoir.stage import load_stage, stage_names
from pressoir.store.store import Store

CONDITIONS = CostConditions(threads=1, batch_size=1, samples=10)
FREE = SearchLimits(max_size_mb=None, max_latency_ms=None, min_accuracy=None)


def pipeline(recipe, run):
    """The order of the stages as the flow has it; flows are not imported here."""
    data = run("data", recipe.data)
    teacher = current = run("teacher", recipe.teacher, model=run.fetch(recipe.model), data=data)
    exported = run("export", recipe.export, model=teacher, data=data)
    if recipe.distill:
        from pressoir.recipe.sections import OutputsConfig

        hidden = any(one.hidden_weight > 0 for one in (recipe.distill, recipe.prune) if one)
        config = OutputsConfig(hidden=hidden, student=recipe.distill.student)
        outputs = run("teacher_outputs", config, teacher=current, data=data)
        current = run("distill", recipe.distill, teacher=current, outputs=outputs, data=data)
    if recipe.prune:
        current = run("prune", recipe.prune, model=current, outputs=None, data=data)
    if recipe.quantize:
        current = run("quantize", recipe.quantize, model=current, data=data)
    if current is not teacher:
        exported = run("export", recipe.export, model=current, data=data)
    if recipe.shard:
        exported = run("shard", recipe.shard, model=exported)
    report = run("benchmark", recipe.benchmark, data=data, teacher=teacher, shard=exported)
    from pressoir.pipeline.runner import PipelineOutput

    return PipelineOutput(artifacts={"shard": exported}, data=data, final=exported, report=report)


@pytest.fixture
def recipe(tiny_bert, tiny_data):
    files = {split: str(tiny_data / f"{split}.tsv") for split in ("train", "validation", "test")}
    return Recipe.from_dict(
        {
            "name": "tiny",
            "model": str(tiny_bert),
            "threads": 1,
            "data": {"source": "files", **files, "train_samples": 64},
            "teacher": {"epochs": 1, "learning_rate": 1e-3},
            "distill": {"epochs": 2, "learning_rate": 1e-3, "student": {"layers": 2}},
            "prune": {"epochs": 0, "calibration_samples": 16},
            "quantize": {"max_accuracy_drop": None},
            "export": {"min_label_agreement": 0.5},
        }
    )


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """One store for all tests here: the teacher is trained once."""
    return Store(tmp_path_factory.mktemp("home"))


@pytest.fixture
def built(replace_run, home):
    """Stages that were run and kept, and those that were run elsewhere."""
    ran = {"kept": [], "thrown away": []}
    for name in stage_names():
        really = load_stage(name).run

        def run(inputs, config, context, name=name, really=really):
            place = "kept" if context.out_dir.is_relative_to(home.root) else "thrown away"
            ran[place].append((name, config))
            return really(inputs, config, context)

        replace_run(name, run)
    return ran


def assigned(recipe, values=None, limits=FREE, **proxy):
    return Assignment(
        number=0,
        values=values or {},
        recipe=recipe,
        limits=limits,
        proxy=ProxyConfig(**proxy),
        conditions=CONDITIONS,
    )


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"distill.student.layers": 1, "prune.ffn_sparsity": 0.75},
        {"distill.student.layers": [0, 2, 3], "prune": None},
        {"quantize": None},
        {"quantize.exclude": ["bert.embeddings"], "shard": None},
    ],
    ids=str,
)
def test_the_predicted_size_is_that_of_the_trained_model(recipe, home, values):
    given = with_values(recipe, {"distill.epochs": 1, **values})
    predicted = trial.predict(given, pipeline, home, Silent(), CONDITIONS)
    outcome = trial.run(assigned(given, shape=False, epochs=None), pipeline, home, Silent())
    assert outcome.figures is not None, outcome.reason
    assert predicted.size_mb == pytest.approx(outcome.figures.size_mb, rel=0.01)
    assert predicted.latency_ms > 0


def test_a_prediction_trains_nothing_keeps_nothing_and_is_made_once_a_shape(recipe, home, built):
    trial.reference(recipe, pipeline, home, Silent(), CONDITIONS)
    for ran in built.values():
        ran.clear()
    kept = sorted(path for path in home.root.glob("*/*") if not path.parent.name.startswith("search-"))
    first = trial.predict(with_values(recipe, {"seed": 5}), pipeline, home, Silent(), CONDITIONS)
    assert [name for name, _ in built["kept"] if name not in ("data", "teacher", "export")] == []
    made = dict(built["thrown away"])
    assert set(made) == {"teacher_outputs", "distill", "prune", "quantize", "export", "shard"}
    assert (made["distill"].epochs, made["prune"].epochs) == (0, 0)
    assert not list((home.home / "work").glob("*")), "what was made for it is gone"
    assert set(kept) <= set(home.root.glob("*/*"))

    built["thrown away"].clear()
    again = with_values(recipe, {"seed": 5, "distill.learning_rate": 0.01, "distill.epochs": 9})
    assert trial.predict(again, pipeline, home, Silent(), CONDITIONS) == first
    assert built["thrown away"] == []
    wider = with_values(again, {"prune.ffn_sparsity": 0.0})
    assert trial.predict(wider, pipeline, home, Silent(), CONDITIONS).size_mb > first.size_mb
    assert built["thrown away"] != []


def test_over_budget_before_training_is_cut_and_nothing_of_it_is_trained(recipe, home, built):
    limits = FREE.model_copy(update={"max_size_mb": 0.01})
    outcome = trial.run(assigned(recipe, {"distill.student.layers": 3}, limits), pipeline, home, Silent())
    assert outcome.state == "cut"
    assert "above max_size_mb 0.01" in outcome.reason
    assert outcome.figures is None
    assert outcome.predicted.size_mb > 0.01
    assert {name for name, _ in built["kept"]} <= {"data", "teacher", "export"}


def test_the_short_distillation_stops_before_quantisation_and_is_shorter(recipe, home, built):
    limits = FREE.model_copy(update={"min_accuracy": 1.0})
    values = {"distill.learning_rate": 1e-9, "distill.epochs": 5}
    outcome = trial.run(assigned(recipe, values, limits, slack=0.0), pipeline, home, Silent())
    assert outcome.state == "cut"
    assert "after the short distillation" in outcome.reason
    trained = [(name, config) for name, config in built["kept"] if name in ("distill", "quantize", "shard")]
    assert [(name, config.epochs) for name, config in trained] == [("distill", 1)]


def test_a_finished_trial_has_the_figures_of_its_files_and_is_found_again(recipe, home, built):
    outcome = trial.run(assigned(recipe), pipeline, home, Silent())
    assert outcome.state == "finished", outcome.reason
    assert "benchmark" not in {name for name, _ in built["kept"]}, "it would read the test split"
    [made] = [one for one in home.artifacts() if one.digest == outcome.digest]
    assert made.stage == "shard"
    again = trial.run(assigned(recipe), pipeline, home, Silent())
    assert again.figures == outcome.figures, "the same timings too: they are in the store"


def test_values_that_exclude_each_other_fail_the_trial_alone(recipe, home):
    values = {"distill.student.layers": 1, "distill.student.config": {"hidden_size": 16}}
    outcome = trial.run(assigned(recipe, values), pipeline, home, Silent())
    assert outcome.state == "failed"
    assert "specify only one of layers, model and config" in outcome.reason


def test_the_shape_of_a_recipe_is_what_is_left_without_training_and_judging(recipe):
    bare = trial.untrained(recipe)
    assert bare.prune.ffn_sparsity == recipe.prune.ffn_sparsity
    assert bare.distill.student == recipe.distill.student
    assert bare.quantize.max_accuracy_drop is None
    assert bare.export.min_label_agreement == 0
    other = with_values(recipe, {"distill.temperature": 9.0, "prune.epochs": 3})
    assert trial.untrained(other) == bare


def test_an_excerpt_has_no_test_split(tiny_data, tmp_path):
    sentences.excerpt(tiny_data, tmp_path / "excerpt")
    assert sorted(path.name for path in (tmp_path / "excerpt").iterdir()) == [
        *("data.json", "train.jsonl", "validation.jsonl")
    ]
    assert len((tmp_path / "excerpt" / "train.jsonl").read_text().splitlines()) == 32
    assert json.loads((tmp_path / "excerpt" / "data.json").read_text())["train_rows"] == 32


def test_an_assignment_goes_over_a_wire(recipe):
    given = assigned(recipe, {"distill.student.layers": [0, 1]})
    back = Assignment.model_validate_json(given.model_dump_json())
    assert yaml.safe_load(back.recipe.to_yaml()) == yaml.safe_load(recipe.to_yaml())
    assert back.values == given.values
