"""The registry: typed, overlaid, never overwritten when broken, never losing an entry."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from pressoir import registry
from pressoir.errors import RegistryError
from pressoir.registry import Entry, Registry, Urls, promotion
from pressoir.sections import Criterion

ROOT = Path(__file__).parents[2]


def entry(id="pressed", **changes):
    values = {
        "id": id,
        "name": "A pressed model",
        "type": "text-classification",
        "size_mb": 1.5,
        "urls": Urls(base="store:shard/" + "0" * 64),
        "licence": "Apache-2.0",
    }
    return Entry(**{**values, **changes})


def test_the_committed_schema_is_the_one_the_types_generate():
    assert (ROOT / "models.schema.json").read_text(encoding="utf-8") == registry.schema()


def test_the_shipped_catalogue_is_valid_and_in_canonical_form():
    text = (ROOT / "models.json").read_text(encoding="utf-8")
    assert registry.dump(registry.read(ROOT / "models.json")) == text
    assert {"all-minilm-l6-v2", "bert-base-uncased", "distilbert-base-uncased"} <= set(
        json.loads(text)["models"]
    )


def test_the_shipped_catalogue_obeys_the_committed_schema():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((ROOT / "models.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(
        json.loads((ROOT / "models.json").read_text(encoding="utf-8"))
    )


def test_every_shipped_hub_reference_is_pinned_to_a_commit():
    for model in registry.read(ROOT / "models.json").models.values():
        for url in (model.urls.base, *model.urls.mirrors):
            if url.startswith("hub:"):
                assert url.endswith(f"@{model.revision}")
                assert len(model.revision) == 40


def test_a_registered_model_is_found_and_wins_over_the_catalogue(tmp_path):
    Registry(tmp_path).add(entry())
    Registry(tmp_path).add(entry("all-minilm-l6-v2", name="My own"))
    models = Registry(tmp_path).models()
    assert models["pressed"] == entry()
    assert models["all-minilm-l6-v2"].name == "My own"
    assert "bert-base-uncased" in models


def test_registering_never_touches_the_shipped_catalogue(tmp_path):
    before = registry.shipped_file().read_bytes()
    Registry(tmp_path).add(entry("bert-base-uncased"))
    assert registry.shipped_file().read_bytes() == before
    assert (tmp_path / "models.schema.json").read_text(encoding="utf-8") == registry.schema()


def test_an_unknown_id_names_the_nearest(tmp_path):
    with pytest.raises(RegistryError, match="did you mean 'bert-base-uncased'"):
        Registry(tmp_path).get("bert-base-uncase")
    with pytest.raises(RegistryError, match="known are: all-minilm-l6-v2"):
        Registry(tmp_path).get("zzz")


def test_a_file_with_a_syntax_error_is_named_with_its_line_and_left_alone(tmp_path):
    broken = '{\n  "version": 1,\n  "models": {,}\n}\n'
    (tmp_path / "models.json").write_text(broken)
    for use in (Registry(tmp_path).models, lambda: Registry(tmp_path).add(entry())):
        with pytest.raises(RegistryError, match=r"models\.json, line 3: not valid JSON"):
            use()
    assert (tmp_path / "models.json").read_text() == broken


def test_a_wrong_field_is_named(tmp_path):
    raw = json.loads(registry.dump(registry.Catalogue(models={"pressed": entry()})))
    raw["models"]["pressed"]["size_mb"] = -1
    raw["models"]["pressed"]["sise"] = 1
    (tmp_path / "models.json").write_text(json.dumps(raw))
    with pytest.raises(RegistryError) as error:
        Registry(tmp_path).models()
    assert "models.pressed.size_mb" in str(error.value)
    assert "models.pressed.sise" in str(error.value)


def test_a_key_that_differs_from_the_id_is_refused():
    with pytest.raises(ValidationError, match="make them the same"):
        registry.Catalogue(models={"other": entry()})


def test_references_are_the_digests_of_registered_models_and_their_lineage(tmp_path):
    Registry(tmp_path).add(entry(digest="a" * 64, lineage={"teacher": "b" * 64, "shard": "a" * 64}))
    assert Registry(tmp_path).references() == {"a" * 64, "b" * 64}


def test_concurrent_adds_from_many_processes_lose_nothing(tmp_path):
    program = (
        "import sys; from pathlib import Path; from pressoir.registry import *\n"
        "home, worker = Path(sys.argv[1]), sys.argv[2]\n"
        "for i in range(7):\n"
        "    Registry(home).add(Entry(id=f'm-{worker}-{i}', name='m', type='causal-lm', size_mb=1,\n"
        "                             urls=Urls(base='store:x'), licence='MIT'))\n"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(n)], cwd=ROOT) for n in range(8)
    ]
    assert [worker.wait() for worker in workers] == [0] * 8
    own = set(Registry(tmp_path).models()) - set(registry.read(registry.shipped_file()).models)
    assert own == {f"m-{worker}-{i}" for worker in range(8) for i in range(7)}
    assert not list(tmp_path.glob(".models.json.*"))


@pytest.mark.parametrize(
    ("candidate", "holder", "promoted", "why"),
    [
        ({"speedup": 2.0, "accuracy_delta": -0.01}, None, True, "nobody holds it"),
        ({"speedup": 9.0, "accuracy_delta": -0.04}, None, False, "never promoted"),
        ({"speedup": 3.0, "accuracy_delta": -0.01}, {"speedup": 2.0}, True, "speedup 3 is more than 2"),
        ({"speedup": 2.0, "accuracy_delta": 0.0}, {"speedup": 2.0}, False, "speedup 2 is not more than 2"),
        ({"speedup": 1.0, "accuracy_delta": 0.0}, {"accuracy": 0.9}, True, "the holder has no speedup"),
    ],
)
def test_promotion_needs_a_better_figure_and_enough_accuracy(candidate, holder, promoted, why):
    assert promotion(candidate, holder, Criterion())[0] is promoted
    assert why in promotion(candidate, holder, Criterion())[1]
