"""A run before and around its children: what is looked up, planned, written down, gone on with."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from pressoir.errors import DataError, RecipeError
from pressoir.evaluation import run as evaluation
from pressoir.evaluation.config import EvaluationConfig, load
from pressoir.evaluation.journal import Journal, Prediction
from pressoir.evaluation.planner import GB
from pressoir.store.store import Store
from pressoir.system.memory import effective_memory


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


@pytest.fixture
def values(tiny_classifier, tiny_llama, tiny_data, tiny_text, tmp_path):
    """A classifier, and a language model on two texts."""
    files = {split: str(tiny_data / f"{split}.tsv") for split in ("train", "validation", "test")}
    text = tiny_text / "evaluation"
    return {
        "models": [
            {"id": "classifier", "model": str(tiny_classifier), "data": "reviews"},
            {"id": "lm", "model": str(tiny_llama), "data": ["good", "bad"], "generation": {"window": 32}},
        ],
        "data": {
            "reviews": {"task": "text-classification", "classification": {"source": "files", **files}},
            "good": {"task": "causal-lm", "text": str(text / "good.txt")},
            "bad": {"task": "causal-lm", "text": str(text / "bad.txt")},
        },
        "samples": 4,
        "results": str(tmp_path / "results"),
    }


def prepare(values, store, **options):
    return evaluation.prepare(load(values), store, **options)


class TestPrepare:
    def test_every_model_on_each_of_its_data_sets_is_a_run(self, values, store):
        prepared = prepare(values, store)
        assert list(prepared.names) == ["classifier", "lm.good", "lm.bad"]
        assert prepared.names["lm.bad"] == ("lm", "bad")
        assert prepared.jobs.keys() == prepared.estimates.keys() == prepared.names.keys()
        placed = [one.model for batch in prepared.plan.batches for one in batch.placements]
        assert sorted(placed) == sorted(prepared.names)
        assert len({job.key for job in prepared.jobs.values()}) == 3

    def test_all_that_does_not_exist_or_go_together_is_told_at_once(self, values, store, tiny_llama):
        values["models"] += [
            {"id": "gone", "model": "./nowhere", "data": "good"},
            {"id": "mistaken", "model": str(tiny_llama), "data": "reviews"},
        ]
        with pytest.raises(RecipeError) as caught:
            prepare(values, store)
        told = str(caught.value)
        assert "gone: model './nowhere': no such folder" in told
        assert (
            "mistaken is a model for causal-lm, but the data set reviews is for text-classification" in told
        )

    def test_missing_data_of_several_sets_are_told_at_once(self, values, store):
        values["data"]["good"]["text"] = "gone.txt"
        values["data"]["bad"]["text"] = "lost.txt"
        with pytest.raises(DataError, match=r"(?s)data set good.*gone\.txt.*data set bad.*lost\.txt"):
            prepare(values, store)

    def test_a_damaged_model_is_an_outcome_and_the_others_are_planned(
        self, values, store, tiny_classifier, tmp_path
    ):
        broken = shutil.copytree(tiny_classifier, tmp_path / "broken")
        weights = broken / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        values["models"].insert(0, {"id": "broken", "model": str(broken), "data": "reviews"})
        prepared = prepare(values, store)
        assert prepared.refused["broken"].verdict == "damaged"
        assert "model.safetensors" in prepared.refused["broken"].detail
        assert next(iter(prepared.names)) == "broken"
        assert prepared.jobs.keys() == {"classifier", "lm.good", "lm.bad"}

    def test_a_model_that_is_not_run_costs_itself_alone(self, values, store, tiny_llama, tmp_path):
        for name, change in (("image", ["LlavaForConditionalGeneration"]), ("bare", None)):
            other = shutil.copytree(tiny_llama, tmp_path / name)
            config = json.loads((other / "config.json").read_text())
            config |= {"architectures": change, "model_type": "llava", "vision_config": {}}
            (other / "config.json").write_text(json.dumps(config))
            values["models"].insert(0, {"id": name, "model": str(other), "data": ["good", "bad"]})
        values["batches"] = {"pictures": ["image"], "texts": ["lm", "bare"]}
        prepared = prepare(values, store, fetch=False)
        assert prepared.jobs.keys() == {"classifier", "lm.good", "lm.bad"}
        refused = prepared.refused
        assert refused.keys() == {"image.good", "image.bad", "bare.good", "bare.bad"}
        assert {one.verdict for one in refused.values()} == {"unsupported"}
        assert "'llava'), which works with images, is not supported" in refused["image.good"].detail
        assert "specifies no architecture" in refused["bare.bad"].detail

        texts = prepare(values, store, batches=["texts"])
        assert texts.names.keys() == {"lm.good", "lm.bad", "bare.good", "bare.bad"}
        assert texts.refused.keys() == {"bare.good", "bare.bad"}
        pictures = prepare(values, store, batches=["pictures"])
        assert not pictures.jobs
        assert pictures.refused.keys() == {"image.good", "image.bad"}

    def test_a_folder_that_vanished_is_its_models_outcome_when_a_run_is_resumed(
        self, values, store, tiny_classifier, tmp_path
    ):
        gone = shutil.copytree(tiny_classifier, tmp_path / "gone")
        values["models"].insert(0, {"id": "gone", "model": str(gone), "data": "reviews"})
        assert "gone" in prepare(values, store).jobs
        shutil.rmtree(gone)
        prepared = prepare(values, store, resumed=True)
        assert prepared.refused["gone"].verdict == "damaged"
        assert "no such folder" in prepared.refused["gone"].detail
        assert prepared.jobs.keys() == {"classifier", "lm.good", "lm.bad"}

    def test_what_is_not_on_this_machine_is_not_fetched_to_look_at_the_plan(self, values, store):
        values["models"] += [{"id": "far", "model": "hub:some/model", "data": "reviews"}]
        prepared = prepare(values, store, fetch=False)
        assert prepared.refused["far"].verdict == "unreachable"

    def test_batches_by_hand_hold_every_run_of_their_models(self, values, store):
        values |= {"batches": {"texts": ["lm"]}, "max_parallel": 2}
        prepared = prepare(values, store)
        members = {batch.name: [one.model for one in batch.placements] for batch in prepared.plan.batches}
        assert sorted(members.pop("texts")) == ["lm.bad", "lm.good"]
        assert list(members.values()) == [["classifier"]]

    def test_only_the_batches_that_were_asked_for(self, values, store):
        values |= {"batches": {"texts": ["lm"], "first": ["classifier"]}, "max_parallel": 1}
        whole = prepare(values, store)
        assert [batch.name for batch in whole.plan.batches] == ["texts-1", "texts-2", "first"]
        part = prepare(values, store, batches=["texts"])
        assert [batch.name for batch in part.plan.batches] == ["texts-1", "texts-2"]
        assert part.names.keys() == part.jobs.keys() == {"lm.good", "lm.bad"}
        with pytest.raises(RecipeError, match=r"no batch 'text'; the configuration has: texts, first"):
            prepare(values, store, batches=["text"])

    def test_memory_that_was_given_is_planned_with(self, values, store):
        values["models"][0]["memory_gb"] = 0.25
        assert prepare(values, store).estimates["classifier"].peak_bytes(4) == GB // 4

    def test_a_model_that_can_never_fit_is_in_the_plan_as_skipped(self, values, store):
        values |= {"memory": {"budget_gb": 0.001}}
        plan = prepare(values, store).plan
        assert not plan.batches
        assert {one.model for one in plan.skipped} == {"classifier", "lm.good", "lm.bad"}
        assert all(one.peak_bytes > one.budget_bytes == 1_000_000 for one in plan.skipped)

    def test_a_key_changes_with_all_that_decides_a_prediction(self, values, store, tiny_llama, tmp_path):
        def key():
            return prepare(values, store).jobs["lm.good"].key

        keys = [key()]
        values["models"][1]["generation"] = {"window": 16}
        keys.append(key())
        values["data"]["good"]["text"] = values["data"]["bad"]["text"]
        keys.append(key())
        other = shutil.copytree(tiny_llama, tmp_path / "other")
        (other / "config.json").write_text((other / "config.json").read_text() + " ")
        values["models"][1]["model"] = str(other)
        keys.append(key())
        assert len(set(keys)) == 4
        values["samples"] = 2
        values["timeout_s"] = 7
        assert key() == keys[-1]


class TestSurvey:
    @pytest.mark.parametrize(
        ("available_gb", "strategy", "parallel"),
        [(40, "aggressive", 8), (16, "aggressive", 4), (12, "moderate", 2), (6, "conservative", 1)],
    )
    def test_strategies_go_by_what_is_really_available(
        self, values, monkeypatch, available_gb, strategy, parallel
    ):
        real = effective_memory()
        monkeypatch.setattr(
            evaluation,
            "effective_memory",
            lambda: dataclasses.replace(real, available_bytes=available_gb * GB),
        )
        seen = evaluation.survey(load(values))
        assert (seen.strategy, seen.max_parallel) == (strategy, parallel)
        assert seen.budget_bytes == available_gb * GB - seen.reserve_bytes

    def test_what_the_configuration_says_wins(self, values):
        values |= {"strategy": "conservative", "max_parallel": 3}
        values["memory"] = {"reserve_gb": 0.25, "budget_gb": 0.5}
        seen = evaluation.survey(load(values))
        assert (seen.strategy, seen.chosen, seen.max_parallel) == ("conservative", True, 3)
        assert (seen.reserve_bytes, seen.budget_bytes) == (GB // 4, GB // 2)

    def test_thresholds_of_the_strategies_can_be_moved(self, values, monkeypatch):
        values["memory"] = {"conservative_below_gb": 1e6, "aggressive_above_gb": 1e7}
        assert evaluation.survey(load(values)).strategy == "conservative"


class TestFolder:
    def test_two_runs_never_share_a_folder(self, values, store):
        config = load(values)
        folders = [evaluation.begin(prepare(values, store), config.results)[0] for _ in range(3)]
        assert len(set(folders)) == 3
        assert evaluation.read_config(folders[0]) == config

    def test_a_run_is_found_by_name_and_by_path(self, values, store, tmp_path):
        folder, _ = evaluation.begin(prepare(values, store), tmp_path / "results")
        assert evaluation.find(folder.name, tmp_path / "results") == folder
        assert evaluation.find(str(folder), Path("elsewhere")) == folder
        with pytest.raises(RecipeError, match=f"no run 'none' to resume: .* available: {folder.name}"):
            evaluation.find("none", tmp_path / "results")

    def test_a_resumed_run_keeps_its_plan(self, values, store, monkeypatch):
        folder, first = evaluation.begin(prepare(values, store), Path(values["results"]))
        real = evaluation.effective_memory()
        monkeypatch.setattr(
            evaluation, "effective_memory", lambda: dataclasses.replace(real, available_bytes=1 * GB)
        )
        fresh = prepare(values, store)
        assert fresh.plan != first.plan
        again = evaluation.resume(fresh, folder)
        assert again.plan == first.plan
        assert again.jobs == first.jobs

    def test_another_configuration_is_planned_anew_in_the_same_folder(self, values, store):
        folder, _ = evaluation.begin(prepare(values, store), Path(values["results"]))
        values["samples"] = 2
        again = evaluation.resume(prepare(values, store), folder)
        assert all(job.samples == 2 for job in again.jobs.values())
        assert evaluation.read_config(folder).samples == 2

    @pytest.mark.parametrize("content", ["", "{", '{"batches": 3}'])
    def test_a_broken_plan_is_made_again(self, values, store, content):
        folder, first = evaluation.begin(prepare(values, store), Path(values["results"]))
        (folder / "plan.json").write_text(content)
        again = evaluation.resume(prepare(values, store), folder)
        assert again.jobs == first.jobs
        assert json.loads((folder / "plan.json").read_text())["batches"]

    def test_batches_of_shorter_samples_follow_the_plans_size(self, values, store):
        values["models"][0]["batch_size"] = 2
        _, begun = evaluation.begin(prepare(values, store), Path(values["results"]))
        sizes = {one.model: one.batch_size for batch in begun.plan.batches for one in batch.placements}
        assert begun.jobs["lm.good"].max_batch_size == 4 * sizes["lm.good"]
        assert begun.jobs["classifier"].max_batch_size is None


def test_windows_are_given_in_the_order_of_the_text(values, store):
    values["samples"] = 11
    _, begun = evaluation.begin(prepare(values, store), Path(values["results"]))
    job, data = begun.jobs["lm.good"], begun.dataset("lm.good")
    assert evaluation.predictions(job, data) == []
    journal = Journal(job.journal)
    journal.add(job.key, 1, [Prediction(f"good:{i}", {"nll": i}, 0.0, 1) for i in reversed(range(12))])
    journal.close()
    assert [one.sample for one in evaluation.predictions(job, data)] == [f"good:{i}" for i in range(11)]


def test_a_configuration_tells_all_mistakes_at_once(values):
    values["models"] += [
        {"id": "lm", "model": "x", "data": "good"},
        {"id": "lm.good", "model": "x", "data": "nothing"},
        {"id": "both", "model": "x", "url": "http://x", "data": ["good", "good"]},
    ]
    values["batches"] = {"a": ["lm", "who"], "b": ["lm"]}
    with pytest.raises(RecipeError) as caught:
        load(values)
    assert "specify either `model` or `url`" in str(caught.value)
    values["models"][-1] = {"id": "both", "model": "x", "data": ["good", "good"]}
    with pytest.raises(RecipeError) as caught:
        load(values)
    told = str(caught.value)
    for part in (
        "two models have the same id 'lm'",
        "no data set 'nothing'; available: bad, good, reviews",
        "data set 'good' is listed twice",
        "'lm.good' is the id of two runs",
        "batch a: no model 'who'",
        "lm is in two batches",
    ):
        assert part in told, part


def test_paths_of_data_are_looked_up_beside_the_file_and_kept_whole(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "own.txt").write_text("words")
    (tmp_path / "conf" / "e.yaml").write_text(
        "models: [{id: a, model: x, data: t}]\ndata: {t: {task: causal-lm, text: own.txt}}\n"
    )
    monkeypatch.chdir(tmp_path)
    config = EvaluationConfig.from_yaml("conf/e.yaml")
    assert config.data["t"].text == tmp_path / "conf" / "own.txt"
