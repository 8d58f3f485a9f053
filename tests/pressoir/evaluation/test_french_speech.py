"""The shipped evaluation of French speech: for each of its fifteen models, a tiny one of its type."""

import json
from pathlib import Path

import numpy as np
import pytest
from speech_models import MAKERS, make_ctc, make_whisper

from pressoir.config import read_yaml
from pressoir.evaluation import run as evaluation
from pressoir.evaluation.child import __main__ as child
from pressoir.evaluation.config import EvaluationConfig, load
from pressoir.store.store import Store

CONFIGS = Path(__file__).parents[3] / "configs"
FRENCH = CONFIGS / "evaluation-french-asr.yaml"
BATCHES = {
    "batch_1_light": ["whisper"] * 3,
    "batch_2_medium": ["whisper", "wav2vec2", "wav2vec2"],
    "batch_3_heavy": ["whisper", "whisper 128"],
    "batch_4_wav2vec": ["wav2vec2"] * 3,
    "batch_5_seamless": ["seamless_m4t", "seamless_m4t_v2"],
    "batch_6_gemma": ["gemma3n"] * 2,
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("evaluation-*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_evaluation_is_valid(path):
    assert EvaluationConfig.from_yaml(path).name == path.stem


def test_fifteen_models_stand_in_six_batches():
    config = EvaluationConfig.from_yaml(FRENCH)
    assert len(config.models) == 15
    assert {name: len(members) for name, members in config.batches.items()} == {
        name: len(types) for name, types in BATCHES.items()
    }
    assert sorted(one for members in config.batches.values() for one in members) == sorted(
        model.id for model in config.models
    )


@pytest.fixture(scope="module")
def folders(built_once, sentencepiece_model):
    """A tiny folder of each type."""
    made = {kind: lambda folder, kind=kind: MAKERS[kind](folder, sentencepiece_model) for kind in MAKERS}
    return {
        "whisper": built_once("whisper-multilingual", lambda folder: make_whisper(folder, "multilingual")),
        "whisper 128": built_once(
            "whisper-128-bins-rules", lambda folder: make_whisper(folder, "128 bins, rules")
        ),
        "wav2vec2": built_once("ctc-Wav2Vec2", lambda folder: make_ctc(folder, "Wav2Vec2")),
        **{
            kind: built_once(f"speech-{kind}", made[kind])
            for kind in ("seamless_m4t", "seamless_m4t_v2", "gemma3n")
        },
    }


@pytest.fixture
def values(folders, tmp_path, tone, write_wav):
    """The shipped configuration, with tiny models and two recordings."""
    rows = []
    for index, pitch in enumerate((200.0, 900.0)):
        write_wav(tmp_path / f"{index}.wav", tone(1.2, pitch))
        rows.append({"audio": f"{index}.wav", "text": "un deux trois"})
    (tmp_path / "manifest.json").write_text(json.dumps(rows))
    values = read_yaml(FRENCH)
    values["data"]["french"]["manifest"] = str(tmp_path / "manifest.json")
    values["results"] = str(tmp_path / "results")
    kinds = {
        id: kind
        for name, members in values["batches"].items()
        for id, kind in zip(members, BATCHES[name], strict=True)
    }
    for model in values["models"]:
        model["model"] = str(folders[kinds[model["id"]]])
    return values


@pytest.mark.parametrize("name", BATCHES)
def test_each_batch_runs_by_its_name(values, tmp_path, name):
    prepared = evaluation.prepare(load(values), Store(tmp_path / "home"), batches=[name])
    assert list(prepared.jobs) == values["batches"][name]
    assert not prepared.refused
    folder, prepared = evaluation.begin(prepared, Path(values["results"]))
    for run, job in prepared.jobs.items():
        end = child.run(job, lambda message: None)
        assert end.verdict == "ok", (run, end.detail)
        found = evaluation.predictions(job, prepared.dataset(run))
        assert [one.value["audio_s"] for one in found] == [1.2, 1.2]
        assert all(one.value["text"] for one in found)
        outcome = evaluation.RunOutcome(model=run, task=job.task, verdict="ok", total=2)
        scored = evaluation.scored(prepared, run, outcome)
        assert np.isfinite(scored.outcome.metrics["wer"])
    assert folder.name.startswith("evaluation-french-asr-")
