"""The registry: typed, overlaid, never overwritten when broken, never losing an entry."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from pressoir.errors import RegistryError, StoreError
from pressoir.extensions import loader
from pressoir.recipe.sections import Criterion
from pressoir.registry import catalogue
from pressoir.registry.catalogue import Catalogue, Entry, Urls
from pressoir.registry.promotion import promotion
from pressoir.registry.registry import Registry

ROOT = Path(__file__).parents[3]


def entry(id="pressed", **changes):
    values = {
        "id": id,
        "name": "A pressed model",
        "type": "text-classification",
        "size_mb": 1.5,
        "urls": Urls(base="store:shard/" + "0" * 64),
        "license": "Apache-2.0",
    }
    return Entry(**{**values, **changes})


def test_the_committed_schema_is_the_one_the_types_generate():
    assert (ROOT / "models.schema.json").read_text(encoding="utf-8") == catalogue.schema()


def test_a_file_of_version_0_1_0_is_read_and_written_with_the_new_spelling(tmp_path):
    new = catalogue.dump(Catalogue(models={"pressed": entry()}))
    old = new.replace('"license"', '"licence"')
    assert old != new
    read = catalogue.parse(old, tmp_path / "models.json")
    assert read.models["pressed"].license == "Apache-2.0"
    assert catalogue.dump(read) == new


def test_every_field_tells_an_editor_what_it_is():
    schema = json.loads(catalogue.schema())
    fields = {"": schema, **schema["$defs"]}
    unsaid = [
        f"{name}.{field}"
        for name, section in fields.items()
        for field, said in section["properties"].items()
        if not said.get("description")
    ]
    assert not unsaid
    assert set(loader.names("pressoir.tasks")) == set(fields["Entry"]["properties"]["type"]["enum"])


def test_an_editor_marks_a_key_that_is_no_id():
    jsonschema = pytest.importorskip("jsonschema")
    wrong = {"models": {"No Id": json.loads(entry().model_dump_json())}}
    with pytest.raises(jsonschema.ValidationError, match="No Id"):
        jsonschema.Draft202012Validator(json.loads(catalogue.schema())).validate(wrong)


def test_the_shipped_catalogue_is_valid_and_in_canonical_form():
    text = (ROOT / "models.json").read_text(encoding="utf-8")
    assert catalogue.dump(catalogue.read(ROOT / "models.json")) == text
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
    for model in catalogue.read(ROOT / "models.json").models.values():
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
    before = catalogue.shipped_file().read_bytes()
    Registry(tmp_path).add(entry("bert-base-uncased"))
    assert catalogue.shipped_file().read_bytes() == before
    assert (tmp_path / "models.schema.json").read_text(encoding="utf-8") == catalogue.schema()


def test_an_unknown_id_names_the_nearest(tmp_path):
    with pytest.raises(RegistryError, match="did you mean 'bert-base-uncased'"):
        Registry(tmp_path).get("BERT-BASE-UNCASE")
    with pytest.raises(RegistryError, match="registered: all-minilm-l6-v2"):
        Registry(tmp_path).get("zzz")


@pytest.mark.parametrize("id", ["", "Pressed", "a b", "../up", "-x", "a" * 64, "x\n"])
def test_what_cannot_be_an_id_is_refused_with_what_can(id):
    with pytest.raises(RegistryError, match="use up to 63 lower-case letters"):
        catalogue.check_id(id)


def test_an_entry_is_made_from_the_one_it_replaces(tmp_path):
    seen = []

    def make(old):
        seen.append(old)
        return entry(metrics={"speedup": len(seen)})

    assert Registry(tmp_path).put("pressed", make) == entry(metrics={"speedup": 1})
    Registry(tmp_path).put("pressed", make)
    assert seen == [None, entry(metrics={"speedup": 1})]
    assert Registry(tmp_path).get("pressed").metrics == {"speedup": 2}


def test_a_refusal_while_an_entry_is_made_changes_nothing(tmp_path):
    Registry(tmp_path).add(entry())
    before = (tmp_path / "models.json").read_bytes()

    def make(old):
        raise RegistryError("no")

    with pytest.raises(RegistryError, match="no"):
        Registry(tmp_path).put("pressed", make)
    assert (tmp_path / "models.json").read_bytes() == before


def test_removing_brings_a_hidden_shipped_model_back_and_leaves_the_others(tmp_path):
    for id in ("pressed", "bert-base-uncased"):
        Registry(tmp_path).add(entry(id))
    assert Registry(tmp_path).remove("bert-base-uncased") == entry("bert-base-uncased")
    assert Registry(tmp_path).get("bert-base-uncased").name.startswith("BERT base")
    assert set(Registry(tmp_path).own()) == {"pressed"}


def test_a_shipped_model_is_not_removed_nor_one_that_nobody_registered(tmp_path):
    with pytest.raises(RegistryError, match="'bert-base-uncased' ships with Pressoir"):
        Registry(tmp_path).remove("bert-base-uncased")
    with pytest.raises(RegistryError, match="no entry 'x' to remove; no models are registered yet"):
        Registry(tmp_path).remove("x")
    Registry(tmp_path).add(entry())
    with pytest.raises(RegistryError, match="no entry 'presed' to remove; did you mean 'pressed'"):
        Registry(tmp_path).remove("presed")
    assert set(Registry(tmp_path).own()) == {"pressed"}


def test_what_is_gone_is_forgotten_and_a_dry_run_only_says_what(tmp_path):
    for id in ("one", "two"):
        Registry(tmp_path).add(entry(id))
    gone = Registry(tmp_path).forget(lambda entry: entry.id == "one", dry_run=True)
    assert [entry.id for entry in gone] == ["one"]
    assert set(Registry(tmp_path).own()) == {"one", "two"}
    assert Registry(tmp_path).forget(lambda entry: entry.id == "one") == gone
    assert set(Registry(tmp_path).own()) == {"two"}


def test_a_file_with_a_syntax_error_is_named_with_its_line_and_left_alone(tmp_path):
    broken = '{\n  "version": 1,\n  "models": {,}\n}\n'
    (tmp_path / "models.json").write_text(broken)
    for use in (
        Registry(tmp_path).models,
        lambda: Registry(tmp_path).add(entry()),
        lambda: Registry(tmp_path).remove("pressed"),
        lambda: Registry(tmp_path).forget(lambda entry: True),
    ):
        with pytest.raises(RegistryError, match=r"models\.json, line 3: not valid JSON"):
            use()
    assert (tmp_path / "models.json").read_text() == broken


def test_a_key_that_is_given_twice_is_named_and_neither_is_lost(tmp_path):
    twice = catalogue.dump(catalogue.Catalogue(models={"pressed": entry()})).replace(
        '"version": 1', '"version": 1, "models": {}'
    )
    (tmp_path / "models.json").write_text(twice)
    with pytest.raises(RegistryError, match=r"models\.json: the key 'models' is specified twice"):
        Registry(tmp_path).add(entry("other"))
    assert (tmp_path / "models.json").read_text() == twice


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_a_figure_that_is_no_number_is_refused_since_json_has_none(value, tmp_path):
    text = catalogue.dump(catalogue.Catalogue(models={"pressed": entry(metrics={"speedup": 2})}))
    (tmp_path / "models.json").write_text(text.replace('"speedup": 2.0', f'"speedup": {value}'))
    with pytest.raises(RegistryError, match=r"models\.pressed\.metrics\.speedup"):
        Registry(tmp_path).models()


def test_a_wrong_field_is_named(tmp_path):
    raw = json.loads(catalogue.dump(catalogue.Catalogue(models={"pressed": entry()})))
    raw["models"]["pressed"]["size_mb"] = -1
    raw["models"]["pressed"]["sise"] = 1
    (tmp_path / "models.json").write_text(json.dumps(raw))
    with pytest.raises(RegistryError) as error:
        Registry(tmp_path).models()
    assert "models.pressed.size_mb" in str(error.value)
    assert "models.pressed.sise" in str(error.value)


def test_a_key_that_differs_from_the_id_is_refused():
    with pytest.raises(ValidationError, match="they must be the same"):
        catalogue.Catalogue(models={"other": entry()})


def test_references_are_the_digests_of_registered_models_and_their_lineage(tmp_path):
    Registry(tmp_path).add(entry(digest="a" * 64, lineage={"teacher": "b" * 64, "shard": "a" * 64}))
    Registry(tmp_path).add(entry("other", digest="c" * 64, lineage={"teacher": "b" * 64}))
    assert Registry(tmp_path).references() == {"a" * 64, "b" * 64, "c" * 64}
    assert Registry(tmp_path).references(without={"pressed"}) == {"b" * 64, "c" * 64}


@pytest.mark.process
def test_concurrent_adds_from_many_processes_lose_nothing(tmp_path):
    program = (
        "import sys; from pathlib import Path\n"
        "from pressoir.registry.catalogue import *; from pressoir.registry.registry import *\n"
        "home, worker = Path(sys.argv[1]), sys.argv[2]\n"
        "for i in range(5):\n"
        "    Registry(home).add(Entry(id=f'm-{worker}-{i}', name='m', type='causal-lm', size_mb=1,\n"
        "                             urls=Urls(base='store:x'), license='MIT'))\n"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(n)], cwd=ROOT) for n in range(10)
    ]
    assert [worker.wait() for worker in workers] == [0] * 10
    own = set(Registry(tmp_path).models()) - set(catalogue.read(catalogue.shipped_file()).models)
    assert own == {f"m-{worker}-{i}" for worker in range(10) for i in range(5)}
    assert not list(tmp_path.glob(".models.*"))


@pytest.mark.process
def test_a_writer_that_is_killed_leaves_the_old_file_and_the_next_one_clears_up(tmp_path):
    Registry(tmp_path).add(entry())
    before = (tmp_path / "models.json").read_bytes()
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from pressoir.registry.catalogue import *; from pressoir.registry.registry import *\n"
        "replace = Path.replace\n"
        "def killed(self, target):\n"
        "    return os.kill(os.getpid(), signal.SIGKILL) if target.name == FILE else replace(self, target)\n"
        "Path.replace = killed\n"
        "Registry(Path(sys.argv[1])).add(Entry(id='late', name='m', type='causal-lm', size_mb=1,\n"
        "                                      urls=Urls(base='store:x'), license='MIT'))\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "models.json").read_bytes() == before
    assert list(tmp_path.glob(".models.json.*"))
    Registry(tmp_path).add(entry("next"))
    assert set(Registry(tmp_path).own()) == {"pressed", "next"}
    assert not list(tmp_path.glob(".models.*"))


def test_a_home_that_cannot_be_written_is_told_and_can_still_be_read(tmp_path):
    Registry(tmp_path / "home").add(entry())
    mounted = subprocess.run(
        ["mount", "--bind", str(tmp_path / "home"), str(tmp_path / "home")], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("cannot mount here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(tmp_path / "home")], check=True)
        with pytest.raises(StoreError, match="is not writable; set PRESSOIR_HOME to a writable folder"):
            Registry(tmp_path / "home").add(entry("other"))
        assert Registry(tmp_path / "home").get("pressed") == entry()
    finally:
        subprocess.run(["umount", str(tmp_path / "home")], check=True)


def test_a_home_that_is_a_file_is_told(tmp_path):
    (tmp_path / "home").write_text("")
    with pytest.raises(StoreError, match="is not writable"):
        Registry(tmp_path / "home").add(entry())


@pytest.mark.parametrize(
    ("candidate", "holder", "promoted", "why"),
    [
        ({"speedup": 2.0, "accuracy_delta": -0.01}, None, True, "no version holds it"),
        ({"speedup": 9.0, "accuracy_delta": -0.04}, None, False, "below the minimum"),
        ({"speedup": 3.0, "accuracy_delta": -0.01}, {"speedup": 2.0}, True, "speedup 3 is higher than 2"),
        ({"speedup": 2.0, "accuracy_delta": 0.0}, {"speedup": 2.0}, False, "speedup 2 is not higher than 2"),
        (
            {"speedup": 1.0, "accuracy_delta": 0.0},
            {"accuracy": 0.9},
            True,
            "the current holder has no speedup",
        ),
    ],
)
def test_promotion_needs_a_better_figure_and_enough_accuracy(candidate, holder, promoted, why):
    assert promotion(candidate, holder, Criterion())[0] is promoted
    assert why in promotion(candidate, holder, Criterion())[1]


@pytest.mark.parametrize(
    ("candidate", "holder", "promoted", "why"),
    [
        ({"speedup": 2.0}, None, True, "no version holds it, and perplexity changed by +2.0 %"),
        ({"speedup": 9.0, "perplexity_increase": 0.2}, None, False, "above the maximum of +10.0 %"),
        ({"speedup": 3.0}, {"speedup": 2.0}, True, "speedup 3 is higher than 2"),
        ({"speedup": 1.0}, {"speedup": 2.0}, False, "speedup 1 is not higher than 2"),
        ({"speedup": 3.0, "perplexity_increase": -0.1}, {"speedup": 2.0}, True, "speedup 3 is higher than 2"),
        ({"speedup": 3.0, "perplexity_increase": float("nan")}, None, False, "above the maximum"),
    ],
)
def test_a_language_model_is_promoted_by_a_better_figure_at_little_more_perplexity(
    candidate, holder, promoted, why
):
    measured = {"perplexity_increase": 0.02, **candidate}
    assert promotion(measured, holder, Criterion())[0] is promoted
    assert why in promotion(measured, holder, Criterion())[1]


@pytest.mark.parametrize(
    ("value", "promoted", "why"),
    [
        (20.0, True, "perplexity 20 is lower than 21"),
        (21.0, False, "perplexity 21 is not lower than 21"),
        (22.0, False, "perplexity 22 is not lower than 21"),
    ],
)
def test_of_perplexity_less_is_better(value, promoted, why):
    criterion = Criterion(metric="perplexity")
    candidate = {"perplexity": value, "perplexity_increase": 0.05}
    assert promotion(candidate, {"perplexity": 21.0}, criterion) == (promoted, why)


@pytest.mark.parametrize(
    ("candidate", "metric", "told"),
    [
        (
            {"perplexity": 20.0, "perplexity_increase": 0.0},
            "accuracy",
            "metric is 'accuracy', but this model",
        ),
        ({"accuracy": 0.9, "accuracy_delta": 0.0}, "perplexity", "only has accuracy, accuracy_delta"),
        ({"speedup": 2.0}, "speedup", "by its accuracy_delta or its perplexity_increase"),
    ],
)
def test_a_criterion_that_the_model_was_not_measured_by_is_refused(candidate, metric, told):
    with pytest.raises(RegistryError, match=told):
        promotion(candidate, None, Criterion(metric=metric))
