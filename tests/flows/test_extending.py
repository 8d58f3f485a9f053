"""The package of docs/extending.md: its listings make a wheel that adds one of each, and recipes use them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.flow, pytest.mark.process, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
LISTINGS = dict(re.findall(r'^```(?:python|toml) title="([\w.]+)"\n(.*?)^```$', PAGE, flags=re.M | re.S))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder into which pip installed the wheel of the package, and nothing else."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(LISTINGS["pyproject.toml"], encoding="utf-8")
    package = source / "pressoir_extras"
    package.mkdir()
    (package / "__init__.py").touch()
    for name, text in LISTINGS.items():
        if name.endswith(".py"):
            (package / name).write_text(text, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(source), str(source)]
    subprocess.run([*pip, *build], check=True)
    [wheel] = source.glob("*.whl")
    subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel], check=True
    )
    return site


@pytest.fixture
def press(site, tmp_path):
    """Run `pressoir compress` on a recipe in a process that has the package; return what it printed."""

    def run(recipe, *words):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
            "PRESSOIR_HOME": str(tmp_path / "home"),
            "PREFECT_HOME": str(tmp_path / "prefect"),
        }
        done = subprocess.run(
            [sys.executable, "-m", "pressoir.flows", "compress", str(path), *words],
            env=environment,
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        return done.returncode, done.stdout + done.stderr

    return run


def artifact(home, stage):
    [path] = (home / "store" / stage).glob("*/artifact.json")
    return path.parent, json.loads(path.read_text(encoding="utf-8"))


def test_each_listing_is_short():
    assert set(LISTINGS) == {"pyproject.toml", "clip.py", "power_of_two.py", "data2vec.py", "poems.py"}
    for name, text in LISTINGS.items():
        if name.endswith(".py"):
            assert len(text.splitlines()) < 30, name


def test_a_recipe_uses_the_outside_stage_and_the_outside_architecture(press, tiny_bert, tiny_data, tmp_path):
    import torch
    from transformers import Data2VecTextConfig, Data2VecTextModel

    from pressoir.models import loading

    tokenizer = loading.load_tokenizer(tiny_bert)
    torch.manual_seed(0)
    config = Data2VecTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        type_vocab_size=1,
        pad_token_id=0,
    )
    model = tmp_path / "data2vec"
    Data2VecTextModel(config).save_pretrained(model)
    loading.save_tokenizer(tokenizer, model)
    files = {split: str(tiny_data / f"{split}.tsv") for split in ("train", "validation", "test")}
    recipe = {
        "name": "outside",
        "model": str(model),
        "data": {"source": "files", **files},
        "teacher": {"epochs": 1, "learning_rate": 1e-3},
        "distill": {"epochs": 1, "student": {"layers": 2}},
        "prune": {"epochs": 0, "calibration_samples": 32},
        "clip": {"deviations": 2.0},
        "quantize": {"max_accuracy_drop": None},
        "export": {"min_label_agreement": 0.5},
        "benchmark": {"warmup": 1, "latency_samples": 10, "throughput_batches": 1},
        "registry": None,
        "threads": 1,
    }
    code, text = press(recipe)
    assert code == 0, text
    folder, made = artifact(tmp_path / "home", "clip")
    assert made["metrics"]["clipped_weights"] > 0
    pruned = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (pruned["model_type"], pruned["num_hidden_layers"]) == ("data2vec-text", 2)
    assert pruned["intermediate_size"] < 64
    _, quantized = artifact(tmp_path / "home", "quantize")
    assert made["digest"] in quantized["parents"].values()

    code, text = press(recipe, "--set", "clip.deviatoins=1")
    assert (code, "clip.deviatoins" in text, "deviations" in text) == (2, True, True)


def test_a_recipe_uses_the_outside_algorithm_and_the_outside_task(press, tiny_llama, tmp_path):
    import shutil

    model = tmp_path / "poet"
    shutil.copytree(tiny_llama, model)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForPoems"]}))
    recipe = {
        "name": "poems",
        "task": "poems",
        "model": str(model),
        "text": {"window": 32},
        "quantize": {"scheme": "q4", "algorithm": "power_of_two", "block_size": 32},
        "benchmark": {"warmup": 1, "prompts": 2, "prompt_tokens": 8, "new_tokens": 4},
        "registry": None,
        "threads": 1,
    }
    code, text = press(recipe)
    assert code == 0, text
    folder, _ = artifact(tmp_path / "home", "quantize")
    description = json.loads((folder / "quantization.json").read_text(encoding="utf-8"))
    assert description["algorithm"] == "power_of_two"
    assert "pressoir-extras 1.0" in json.dumps(description)

    code, text = press(recipe, "--set", "quantize.algorithm=power_of_too")
    assert (code, "did you mean 'power_of_two'" in text) == (2, True)


def test_a_package_that_cannot_be_imported_is_one_line(tmp_path):
    metadata = tmp_path / "broken-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[pressoir.stages]\nclip = broken:STAGE\n")
    (tmp_path / "broken.py").write_text("raise RuntimeError('half installed')\n")
    done = subprocess.run(
        [sys.executable, "-m", "pressoir.flows", "compress", "demo"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    for words in ("broken declares 'clip' in pressoir.stages", "half installed", "uninstall that package"):
        assert words in done.stderr
