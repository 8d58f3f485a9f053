"""The card as others read it: its metadata by huggingface_hub, its lines by running them."""

import contextlib
import io
import re
import shutil
import warnings

import pytest
from fake_runs import FINAL, classifier_benchmark, generation_benchmark
from huggingface_hub import ModelCard

from pressoir.extensions.task import task
from pressoir.publishing import model_card, origins
from pressoir.publishing.loading import loading
from pressoir.recipe.recipe import Recipe
from pressoir.reporting import LogReporter
from pressoir.stage import StageContext, load_stage
from pressoir.store.store import Store


@pytest.fixture(name="generation_benchmark")
def _generation_benchmark():
    return generation_benchmark()


def recipe(**fields):
    return Recipe.from_dict({"name": "tiny", "model": "all-minilm-l6-v2", **fields})


@pytest.fixture
def card(tiny_classifier, tmp_path):
    """`card(recipe, benchmark, folder)`: the written card, as `huggingface_hub` loads it."""

    def write(recipe, benchmark, folder=tiny_classifier):
        copy = shutil.copytree(folder, tmp_path / "model", dirs_exist_ok=True)
        model_card.write(copy, recipe, benchmark, Store(tmp_path / "home"))
        return ModelCard.load(copy / "README.md")

    return write


def test_the_hub_reads_what_a_classifier_is_made_from_and_what_was_measured(card):
    sst2 = {"source": "hub", "hub_id": "nyu-mll/glue", "hub_config": "sst2", "hub_revision": "abc"}
    data = card(recipe(data=sst2), classifier_benchmark()).data
    assert (data.license, data.base_model) == ("apache-2.0", "sentence-transformers/all-MiniLM-L6-v2")
    assert (data.pipeline_tag, data.library_name) == ("text-classification", "transformers")
    assert data.datasets == ["nyu-mll/glue"]
    assert data.tags == ["pressoir", "distillation", "pruning", "quantization"]
    found = {result.metric_name: result for result in data.eval_results}
    values = {name: result.metric_value for name, result in found.items()}
    assert values == {"Accuracy": FINAL["accuracy"], "F1 of positive": 0.871, "Macro-averaged F1": 0.865}
    for result in found.values():
        assert (result.dataset_type, result.dataset_config) == ("nyu-mll/glue", "sst2")
        assert (result.dataset_split, result.dataset_revision) == ("validation", "abc")
        assert result.dataset_args == {"num_samples": 872}
    assert found["Accuracy"].metric_args == {"confidence_interval_95": [0.846, 0.891]}
    assert found["F1 of positive"].metric_type == "f1"


def test_the_hub_reads_the_perplexity_of_each_text(card, generation_benchmark, tiny_llama):
    lm = recipe(task="causal-lm", model="HuggingFaceTB/SmolLM2-135M@abc")
    written = card(lm, generation_benchmark, tiny_llama)
    data = written.data
    assert (data.license, data.base_model, data.datasets) == (None, "HuggingFaceTB/SmolLM2-135M", None)
    assert (data.pipeline_tag, data.library_name) == ("text-generation", "transformers")
    found = {result.dataset_name: (result.metric_value, result.dataset_args) for result in data.eval_results}
    assert found == {"good": (21.0, {"num_tokens": 1270}), "bad": (42.0, {"num_tokens": 2540})}
    for line in (
        "| source (reference) | pytorch | 20.00 | ±0.0 % | 32.00 | 10.0 | 1.0× | 5.0 | 26.70 | 1.0× |",
        "| shard (this model) | onnxruntime | 21.00 | +5.0 % | 4.50 | 10.0 | 6.4× | 5.0 | 26.70 | 7.9× |",
        "- **quantize**: Quantise the weights to fewer bits. `scheme q4`",
        "Texts longer than 128 tokens were not measured.",
    ):
        assert line in written.text


def test_a_person_reads_how_it_compares_how_it_was_made_and_its_limits(card):
    made = recipe(description="Reviews", distill={"student": {"layers": 3}, "epochs": 7}, prune=None)
    text = card(made, classifier_benchmark()).text
    for line in (
        "A text classifier with the labels `negative`, `positive`, made from `all-minilm-l6-v2` (Apache-2.0)",
        "| teacher (reference) | pytorch | 88.0 % (85.0–90.0) | ±0.0 | 91.6 | 1.0× | 15.81 | 1.0× |",
        "| shard (this model) | onnxruntime | 87.0 % (84.6–89.1) | −1.0 | 15.9 | 5.8× | 0.86 | 18.5× |",
        "Accuracy is measured on 872 test sentences",
        "- **distill**: Train a smaller student on the outputs of the teacher. `epochs 7, student.layers 3`",
        "Measured on Abacus 9000",
        "(Pressoir's embedded reviews, split test)",
        "Texts are cut at 64 tokens; 3 of 872 test sentences are longer.",
    ):
        assert line in text
    assert "**prune**" not in text


def test_the_recipe_in_the_card_is_the_recipe_without_folders_and_passwords(card, tmp_path):
    files = {name: tmp_path / "secret client" / f"{name}.tsv" for name in ("train", "test")}
    made = recipe(
        description="from https://me:s3cr3t@host/x?key=s3cr3t ```",
        data={"source": "files", **{name: str(path) for name, path in files.items()}},
        model=str(tmp_path),
    )
    written = card(made, classifier_benchmark())
    fence, block = re.search(r"(````+)yaml\n(.*?)\n\1", written.content, re.DOTALL).groups()
    assert fence == "````"
    fields = made.model_dump(mode="json")
    fields["data"] |= {name: path.name for name, path in files.items()}
    fields |= {"model": tmp_path.name, "description": "from https://***@host/x?*** ```"}
    assert Recipe.from_yaml(_file(tmp_path, block)).model_dump(mode="json") == fields
    assert "secret client" not in written.content
    assert "s3cr3t" not in written.content
    assert str(tmp_path) not in written.content
    assert written.data.base_model is None
    assert {result.dataset_name for result in written.data.eval_results} == {"test.tsv"}


def _file(folder, text):
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("names", "fields"),
    [
        (["Apache-2.0"], {"license": "apache-2.0"}),
        (["MIT", "MIT"], {"license": "mit"}),
        (["llama3.2"], {"license": "llama3.2"}),
        (["Tiny-Research-1.0"], {"license": "other", "license_name": "Tiny-Research-1.0"}),
        (["MIT", "Apache-2.0"], {}),
        (["MIT", None], {}),
        (["MIT AND Apache-2.0"], {}),
        ([None], {}),
    ],
)
def test_a_license_stands_in_the_card_where_all_origins_have_it(names, fields):
    assert origins.card_license(names) == fields


def test_the_origins_of_a_merge_and_of_a_student_are_all_named(tmp_path, tiny_bert):
    store = Store(tmp_path)
    merge = {"method": "linear", "models": ["hub:a/b@1", "c/d"], "base": "e/f"}
    merged = recipe(task="causal-lm", merge=merge)
    assert [origins.hub_id(one, store) for one in origins.references(merged)] == ["e/f", "a/b", "c/d"]
    taught = recipe(model=str(tiny_bert), distill={"student": {"model": "distilbert-base-uncased"}})
    assert origins.references(taught) == [str(tiny_bert), "distilbert-base-uncased"]
    assert origins.hub_id("distilbert-base-uncased", store) == "distilbert/distilbert-base-uncased"
    assert [origins.hub_id(one, store) for one in (str(tiny_bert), "demo:teacher", "https://x/y")] == [
        None
    ] * 3
    folder = shutil.copytree(tiny_bert, tmp_path / "bert")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    assert (origins.license_name(str(folder), store), origins.shown(str(folder))) == ("MIT", "bert")


KINDS = {
    "a checkpoint": ("transformers", []),
    "a graph": ("onnx", [("export", {})]),
    "an int8 checkpoint": ("pressoir", [("quantize", {"max_accuracy_drop": None})]),
    "int8 shards": (
        "onnx",
        [
            ("quantize", {"max_accuracy_drop": None}),
            ("export", {"min_label_agreement": 0.5}),
            ("shard", {"shards": 2}),
        ],
    ),
}
ONLY_PRESSOIR = "Neither transformers nor optimum can open this folder"
PACKED = ("quantize", {"scheme": "q4", "algorithm": "rtn"})
GENERATING_KINDS = {
    "a checkpoint": ("transformers", []),
    "a graph": ("onnx", [("export", {})]),
    "packed": ("pressoir", [PACKED]),
    "4-bit shards": ("onnx", [PACKED, ("export", {}), ("shard", {"shards": 2})]),
    "a 3-bit graph": ("pressoir", [("quantize", {"scheme": "q3", "algorithm": "rtn"}), ("export", {})]),
}


@pytest.fixture
def made(tmp_path):
    """`made(model, data, stages)`: the folder that the stages make of a model, one after the other."""

    def make(model, data, stages):
        for name, settings in stages:
            out, work = tmp_path / name, tmp_path / f"{name}-work"
            out.mkdir()
            work.mkdir()
            stage = load_stage(name)
            inputs = {"model": model} | ({} if name == "shard" else {"data": data})
            context = StageContext(out, work, LogReporter(), seed=0, threads=1)
            stage.run(inputs, stage.config(**settings), context)
            model = out
        return model

    return make


def run_lines(written, folder, monkeypatch):
    """Run the card's Python in the model's folder; what it defines, and what it prints."""
    code = re.search(r"```python\n(.*?)\n```", written.content, re.DOTALL)[1]
    monkeypatch.chdir(folder)
    names, printed = {}, io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.simplefilter("ignore")  # those of optimum and transformers
        exec(code, names)
    return names, printed.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_the_lines_of_a_classifiers_card_give_what_pressoir_gives(
    kind, made, card, tiny_classifier, tiny_data, tmp_path, monkeypatch
):
    from pressoir.inference.text_classification import TextClassifier

    library, stages = KINDS[kind]
    folder = made(tiny_classifier, tiny_data, stages)
    written = card(recipe(), classifier_benchmark(), folder)
    names, printed = run_lines(written, tmp_path / "model", monkeypatch)
    assert written.data.library_name == library
    assert (ONLY_PRESSOIR in written.text) == (library == "pressoir")
    texts = ["the film was good", "the soup was awful and bland", "good " * 500]
    expected = TextClassifier.open(folder, 1).predict(texts)
    if library == "pressoir":
        found = names["model"].predict(texts)
    else:
        found = [{one["label"]: one["score"] for one in row} for row in names["answer"](texts, top_k=None)]
    assert found == [pytest.approx(row, abs=1e-5) for row in expected]
    (best,) = TextClassifier.open(folder, 1).predict("A sentence to classify.")
    assert max(best, key=best.get) in printed


@pytest.mark.parametrize("kind", GENERATING_KINDS)
def test_the_lines_of_a_language_models_card_give_what_pressoir_gives(
    kind, made, card, generation_benchmark, tiny_llama, tiny_text, tmp_path, monkeypatch
):
    from pressoir.inference.text_generation import TextGenerator

    library, stages = GENERATING_KINDS[kind]
    folder = made(tiny_llama, tiny_text, stages)
    written = card(recipe(task="causal-lm", model=str(tiny_llama)), generation_benchmark, folder)
    _, printed = run_lines(written, tmp_path / "model", monkeypatch)
    assert written.data.library_name == library
    assert (ONLY_PRESSOIR in written.text) == (library == "pressoir")
    expected = "".join(TextGenerator.open(folder, 1).generate("Once upon a time", max_new_tokens=64))
    assert printed == (expected if library == "pressoir" else f"Once upon a time{expected}") + "\n"


def test_a_model_of_a_type_that_no_pipeline_takes_is_opened_by_its_own_class(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    opened = loading(tmp_path, task("feature-extraction"))
    assert "from pressoir import SentenceEncoder" in opened.code
    assert ONLY_PRESSOIR not in opened.note
