"""The batch-evaluation flow on tiny models: real children, MLflow, Prefect, files, resume."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner


@pytest.fixture
def values(tiny_classifier, tiny_llama, tiny_data, tiny_text, tmp_path):
    files = {split: str(tiny_data / f"{split}.tsv") for split in ("train", "validation", "test")}
    return {
        "name": "tiny",
        "models": [
            {"id": "classifier", "model": str(tiny_classifier), "data": "reviews"},
            {"id": "lm", "model": str(tiny_llama), "data": ["good", "bad"], "generation": {"window": 32}},
        ],
        "data": {
            "reviews": {"task": "text-classification", "classification": {"source": "files", **files}},
            "good": {"task": "causal-lm", "text": str(tiny_text / "evaluation" / "good.txt")},
            "bad": {"task": "causal-lm", "text": str(tiny_text / "evaluation" / "bad.txt")},
        },
        "samples": 6,
        "results": str(tmp_path / "results"),
    }


@pytest.fixture
def written(values, tmp_path):
    """The configuration as a file, and how to write it again."""
    path = tmp_path / "tiny.yaml"

    def write(**changes):
        path.write_text(yaml.safe_dump({**values, **changes}, sort_keys=False))
        return path

    write()
    return write


def run(*words):
    from pressoir.flows.cli import main

    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.flow
@pytest.mark.slow
@pytest.mark.usefixtures("prefect_harness", "tracked")
class TestFlow:
    def test_every_model_is_evaluated_and_told_of_everywhere(self, values, tmp_path, artifacts_of, tasks_of):
        from mlflow import MlflowClient
        from prefect.client.orchestration import get_client

        from pressoir.flows.batch_evaluation import batch_evaluation

        broken = shutil.copytree(values["models"][0]["model"], tmp_path / "broken")
        weights = broken / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        values["models"].append({"id": "broken", "model": str(broken), "data": "reviews"})
        result = batch_evaluation(values)
        found = {row.result.id: row.result for row in result.rows}
        assert list(found) == ["classifier", "lm.good", "lm.bad", "broken"]
        assert {name: one.verdict for name, one in found.items()} == {
            **dict.fromkeys(("classifier", "lm.good", "lm.bad"), "ok"),
            "broken": "damaged",
        }
        assert {one.samples for name, one in found.items() if name != "broken"} == {6}
        assert 0 <= found["classifier"].metrics["accuracy"] <= 1
        assert found["lm.good"].metrics["perplexity"] > 1

        files = {path.name for path in result.folder.iterdir()}
        assert files >= {
            *("config.yaml", "plan.json", "journal.sqlite", "report.md", "memory_stats.json"),
            *("batch_1_results.json", "consolidated_results.json", "consolidated_detailed.jsonl"),
            *("metrics.png", "speed.png", "peaks.png"),
        }
        lines = (result.folder / "consolidated_detailed.jsonl").read_text().splitlines()
        assert len(lines) == 24
        told = json.loads((result.folder / "consolidated_results.json").read_text())
        assert [one["id"] for one in told["models"]] == list(found)
        assert told["measured"]["classifier"]["measured_peak_bytes"] > 0

        client = MlflowClient(result.tracking_uri, result.tracking_uri)
        parent = client.get_run(result.mlflow_run_id)
        query = f"tags.`mlflow.parentRunId` = '{result.mlflow_run_id}'"
        nested = {r.info.run_name: r for r in client.search_runs([parent.info.experiment_id], query)}
        assert nested.keys() == found.keys()
        assert nested["broken"].info.status == "FAILED"
        assert nested["lm.bad"].info.status == "FINISHED"
        assert nested["lm.bad"].data.metrics["perplexity"] == pytest.approx(
            found["lm.bad"].metrics["perplexity"]
        )
        logged = {file.path for file in client.list_artifacts(result.mlflow_run_id)}
        assert {"report.md", "report.html"} <= logged
        with get_client(sync_client=True) as prefect:
            run_ = prefect.read_flow_run(result.prefect_run_id)
        names = tasks_of(result.prefect_run_id, 3)
        assert {"prepare-0", "report-0"} <= {name.rsplit("-", 1)[0] + "-0" for name in names}
        assert any(name.startswith("evaluate-") for name in names)
        assert f"mlflow:{result.mlflow_run_id}" in run_.tags
        assert {"evaluation-report", "evaluation"} <= artifacts_of(result.prefect_run_id).keys()

    def test_a_resumed_run_does_only_what_is_left(self, values):
        from pressoir.flows.batch_evaluation import batch_evaluation

        values["models"][0]["generation"] = {"window": 16}
        whole = values["models"]
        first = batch_evaluation({**values, "models": whole[:1]})
        again = batch_evaluation(values, resume=first.folder.name)
        assert again.folder == first.folder
        assert [row.result.verdict for row in again.rows] == ["ok"] * 3
        jobs = sorted(path.stem for path in (first.folder / "jobs").glob("*.json"))
        assert sorted(job.rsplit("-", 1)[0] for job in jobs) == ["classifier", "lm.bad", "lm.good"]
        third = batch_evaluation(values, resume=str(first.folder))
        assert sorted(path.stem for path in (first.folder / "jobs").glob("*.json")) == jobs
        assert [row.result for row in third.rows] == [row.result for row in again.rows]

    def test_the_command_prints_the_table_and_exits_with_1_if_a_model_failed(self, written, values, tmp_path):
        models = [values["models"][0], {"id": "far", "model": "hub:no/model", "data": "reviews"}]
        result = run("evaluate", written(models=models), "--samples", "3")
        assert result.exit_code == 1, result.output
        assert "classifier" in result.output
        assert "unreachable far" in result.output
        folder = next((tmp_path / "results").iterdir())
        assert f"--resume {folder}" in result.output.replace("\n", "")
        again = run("evaluate", "--resume", folder, "--set", f"models={json.dumps(values['models'][:1])}")
        assert again.exit_code == 0, again.output


class TestLooking:
    def test_analyze_only_tells_what_it_sees_and_runs_nothing(self, written, home, tmp_path):
        result = run("evaluate", written(memory={"budget_gb": 3}), "--analyze-only")
        assert result.exit_code == 0, result.output
        for word in ("RAM", "limit", "available", "swap", "GPU", "CPUs", "strategy", "budget     3.00 GB"):
            assert word in result.output, word
        assert "lm.good" in result.output
        assert max(len(line.rstrip()) for line in result.output.splitlines()) <= 80
        assert {"text-classification", "causal-lm"} <= {line.strip() for line in result.output.splitlines()}
        assert "nothing was run" in result.output
        assert not (tmp_path / "results").exists()

    @pytest.mark.process
    def test_no_model_library_and_no_prefect_is_loaded_to_look(self, written, home):
        program = (
            "import sys; from pressoir.flows.cli import main\n"
            "try: main(['evaluate', sys.argv[1], '--analyze-only'])\n"
            "except SystemExit as end: assert not end.code, end.code\n"
            "names = {'torch', 'transformers', 'onnxruntime', 'prefect', 'mlflow', 'dask', 'pandas'}\n"
            "heavy = names & sys.modules.keys()\n"
            "assert not heavy, heavy"
        )
        done = subprocess.run([sys.executable, "-c", program, written()], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def test_batches_are_listed_and_chosen_by_name(self, written, home):
        path = written(batches={"texts": ["lm"], "rest": ["classifier"]}, max_parallel=2)
        texts, rest = run("evaluate", path, "--list-batches").output.splitlines()
        assert texts in ("texts: lm.bad, lm.good", "texts: lm.good, lm.bad")  # the larger one first
        assert rest == "rest: classifier"
        assert run("evaluate", path, "--list-batches", "--batches", "rest").output == "rest: classifier\n"
        auto = run("evaluate", path, "--list-batches", "--auto", "--max-parallel", "3").output
        assert auto.startswith("batch-1: ")
        assert "lm.good" in auto.splitlines()[0]

    def test_a_model_of_an_unsupported_type_is_told_before_anything_runs(
        self, written, values, tmp_path, home
    ):
        other = shutil.copytree(values["models"][1]["model"], tmp_path / "other")
        config = json.loads((other / "config.json").read_text())
        config |= {"architectures": ["MusicgenForConditionalGeneration"], "model_type": "musicgen"}
        (other / "config.json").write_text(json.dumps(config))
        path = written(models=[*values["models"], {"id": "music", "model": str(other), "data": "good"}])
        result = run("evaluate", path, "--analyze-only")
        assert result.exit_code == 0
        assert "unsupported music: MusicgenForConditionalGeneration (model type 'musicgen')" in result.output
        assert "batch-1" in result.output

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (
                ["--batches", "none", "--list-batches"],
                "no batch 'none'; the configuration has: batch-1, batch-2",
            ),
            (["--resume", "gone"], "no run 'gone' to resume"),
            (["--set", "modles=1"], "modles: unknown field; did you mean `models`?"),
        ],
    )
    def test_mistakes_are_one_message_and_exit_code_2(self, written, home, words, told):
        result = run("evaluate", written(), *words)
        assert result.exit_code == 2
        assert told in result.stderr.replace("\n", " ")

    def test_nothing_given_says_what_to_give(self, home):
        result = run("evaluate")
        assert result.exit_code == 2
        assert "the example evaluation-demo" in result.stderr

    def test_interactive_asks_and_can_be_declined(self, written, home, tmp_path):
        from pressoir.flows.cli import main

        told = CliRunner().invoke(
            main, ["evaluate", str(written()), "--interactive"], input="conservative\nall\nn\n"
        )
        assert told.exit_code == 1
        assert "strategy (aggressive, moderate, conservative)" in told.output
        assert "conservative (specified)" in told.output
        assert not (tmp_path / "results").exists()
