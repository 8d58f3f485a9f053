"""What `inspect_model` says, against the files, the stages' own loading, and the formula of evaluations."""

import json
import shutil
from pathlib import Path

import pytest
import transformers

from pressoir.errors import PressoirError, ShardError, SourceError
from pressoir.formats.tensor_bytes import INDEX
from pressoir.pipeline.inspection import inspect_model
from pressoir.pipeline.stage_support import stage_support

TRAINED = ("train", "distill", "vocabulary", "prune")


def reasons(folder):
    return {stage.stage: stage.reason for stage in stage_support(folder)}


def changed(source, folder, **config):
    """A copy of a model with other fields in its configuration."""
    shutil.copytree(source, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


@pytest.mark.parametrize(
    ("name", "task", "stacks", "labels"),
    [
        ("tiny_classifier", "text-classification", [("", 4, 4, 64)], ("negative", "positive")),
        ("tiny_bert", "feature-extraction", [("", 4, 4, 64)], ()),
        ("tiny_llama", "causal-lm", [("", 2, 4, 128)], ()),
        ("tiny_gpt2", "causal-lm", [("", 2, 4, 128)], ()),
        ("tiny_t5", "translation", [("encoder", 2, 4, 64), ("decoder", 2, 4, 64)], ()),
        (
            "tiny_whisper",
            "automatic-speech-recognition",
            [("encoder", 2, 4, 64), ("decoder", 2, 4, 64)],
            (),
        ),
    ],
)
def test_architecture_and_sizes_are_those_of_the_configuration(name, task, stacks, labels, request):
    folder = request.getfixturevalue(name)
    found, config = inspect_model(str(folder)), transformers.AutoConfig.from_pretrained(folder)
    assert found.model_type == config.model_type
    assert found.architecture == config.architectures[0]
    assert (found.tasks[0], found.unsupported, found.runtime) == (task, None, "pytorch")
    assert [(s.stack, s.layers, s.heads, s.feed_forward) for s in found.stacks] == stacks
    assert (found.width, found.vocabulary) == (config.hidden_size, config.vocab_size)
    assert found.labels == labels
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    assert found.tokenizer.startswith(tokenizer["model"]["type"])
    assert found.parameters == sum(part.parameters for part in found.parts)


def test_what_pruning_left_of_each_layer_is_read(tiny_classifier, tmp_path):
    fields = {"pruned_heads": {"0": [1], "2": [0, 3]}, "intermediate_sizes": [64, 32, 16, 64]}
    (stack,) = inspect_model(str(changed(tiny_classifier, tmp_path / "pruned", **fields))).stacks
    assert stack.heads == (3, 4, 2, 4)
    assert stack.feed_forward == (64, 32, 16, 64)


def test_sizes_on_disk_are_the_files(tiny_classifier, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_classifier, folder)
    for name in ("README.md", "model.onnx.data", "merges.txt"):
        (folder / name).write_bytes(b"x" * 1000)
    kinds = {
        "weights": ("model.safetensors", "model.onnx.data"),
        "tokenizer": (*("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "merges.txt"),),
        "configuration": ("config.json",),
        "other": ("README.md",),
    }
    found = inspect_model(str(folder)).files
    assert found == {kind: sum((folder / name).stat().st_size for name in kinds[kind]) for kind in kinds}
    assert sum(found.values()) == sum(path.stat().st_size for path in folder.iterdir())


def test_most_tokens_are_those_that_the_tokenizer_is_cut_at(tiny_classifier, tiny_marian, tiny_llama):
    from pressoir.models.loading import load_tokenizer

    for folder in (tiny_classifier, tiny_marian):
        assert inspect_model(str(folder)).max_tokens == load_tokenizer(folder).model_max_length
    assert inspect_model(str(tiny_llama)).max_tokens == 256


def test_a_classifier_and_an_encoder_go_through_all_stages(tiny_classifier, tiny_bert):
    assert set(reasons(tiny_classifier).values()) == {None}
    assert set(reasons(tiny_bert).values()) == {None}


def test_a_sentence_encoder_with_an_unknown_module_is_not_exported(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    module = {"type": "sentence_transformers.models.CLIPModel", "path": ""}
    (folder / "modules.json").write_text(json.dumps([module]))
    found = reasons(folder)
    assert "module 0 is CLIPModel" in found["export"] == found["quantize"]


def test_a_type_whose_parts_are_unknown_is_refused_as_the_stages_refuse_it(tmp_path, tiny_classifier):
    from pressoir.models.layouts import architecture_of

    config = transformers.FNetConfig(
        hidden_size=16, num_hidden_layers=1, intermediate_size=32, vocab_size=34, num_labels=2
    )
    model = transformers.FNetForSequenceClassification(config)
    model.save_pretrained(tmp_path)
    shutil.copy(tiny_classifier / "tokenizer.json", tmp_path)
    with pytest.raises(SourceError) as refused:
        architecture_of(model)
    found = reasons(tmp_path)
    assert found["distill"] == found["prune"] == str(refused.value)
    assert "exporter makes no graph" in found["export"]
    assert {name for name, reason in found.items() if reason is None} == {
        *("train", "vocabulary", "shard", "serve")
    }


def test_a_recipe_says_which_tasks_it_trains(tiny_llama, tiny_t5):
    from pressoir.recipe.recipe import Recipe

    for stage, section in zip(TRAINED, ("teacher", "distill", "vocabulary", "prune"), strict=True):
        with pytest.raises(PressoirError) as refused:
            Recipe.from_dict({"task": "causal-lm", section: {}})
        assert reasons(tiny_llama)[stage] in str(refused.value)
        assert reasons(tiny_t5)[stage] == (
            "recipes are for text-classification, token-classification and causal-lm, not for translation"
        )
    for folder in (tiny_llama, tiny_t5):
        assert {name for name, reason in reasons(folder).items() if reason is None} == {
            *("quantize", "export", "shard", "serve"),
        }


def test_a_tokenizer_that_cannot_be_cut_and_a_head_that_is_not_served(tiny_classifier, tmp_path):
    folder = changed(tiny_classifier, tmp_path / "words", problem_type="regression")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["type"] = "WordLevel"
    (folder / "tokenizer.json").write_text(json.dumps(content))
    found = reasons(folder)
    assert "a WordLevel tokenizer cannot be pruned" in found["vocabulary"]
    assert "a regression model" in found["serve"]
    assert {name for name, reason in found.items() if reason} == {"vocabulary", "serve"}


def test_codes_are_not_quantised_again(tiny_llama, tmp_path):
    folder = tmp_path / "packed"
    shutil.copytree(tiny_llama, folder)
    (folder / "quantization.json").write_text('{"format_version": 2, "scheme": "q4", "layers": {}}')
    found = reasons(folder)
    assert found["quantize"] == "the folder is already quantised; specify the original model"
    assert found["export"] is found["serve"] is None
    assert inspect_model(str(folder)).quantization == "q4"


def test_a_model_that_pressoir_does_not_run_is_described_all_the_same(tiny_t5, tmp_path):
    folder = changed(
        tiny_t5, tmp_path / "model", model_type="musicgen", architectures=["MusicgenForConditionalGeneration"]
    )
    found = inspect_model(str(folder))
    assert "MusicgenForConditionalGeneration (model type 'musicgen')" in found.unsupported
    assert found.memory is None
    assert found.parameters
    assert {stage.stage for stage in found.stages if stage.possible} == {"shard"}
    assert {stage.reason for stage in found.stages} == {None, found.unsupported}


def test_shards_count_as_the_model_that_was_cut(tiny_llama, tmp_path, reporter):
    from pressoir.recipe.sections import ShardConfig
    from pressoir.stage import StageContext
    from pressoir.stages import shard

    for name in ("out", "work"):
        (tmp_path / name).mkdir()
    context = StageContext(tmp_path / "out", tmp_path / "work", reporter, seed=0, threads=1)
    shard.run({"model": tiny_llama}, ShardConfig(shards=3), context)
    assert (tmp_path / "out" / INDEX).exists()
    whole, cut = inspect_model(str(tiny_llama)), inspect_model(str(tmp_path / "out"))
    assert cut.parts == whole.parts
    assert cut.stages == whole.stages


@pytest.mark.parametrize("name", ["tiny_classifier", "tiny_bert", "tiny_llama", "tiny_t5", "tiny_whisper"])
def test_memory_is_what_an_evaluation_of_one_sample_is_planned_with(name, request, tmp_path):
    from pressoir.evaluation.datasets import DataSet
    from pressoir.evaluation.estimates.formula import estimate
    from pressoir.evaluation.jobs import Job
    from pressoir.evaluation.records import EvaluationSample
    from pressoir.extensions.task import task

    folder = request.getfixturevalue(name)
    found = inspect_model(str(folder))
    given = {"task": found.tasks[0], **dict.fromkeys(task(found.tasks[0]).required_data, tmp_path)}
    sound = tmp_path / "sound.wav"  # that long, though its header cannot be read
    text = str(sound) if name == "tiny_whisper" else "the film was good and " * 200
    if name == "tiny_llama":
        text = ""
    length = 30 * 16_000 if name == "tiny_whisper" else len(text)
    job = Job(
        model="m", folder=folder, task=found.tasks[0], data=given, key="", journal=tmp_path, batch_size=1
    )
    sample = EvaluationSample(id="0", input=text, reference=None, length=length)
    planned = estimate(job, DataSet(found.tasks[0], (sample,), "")).peak_bytes(1)
    assert found.memory.run == pytest.approx(planned, rel=0.001)
    weights = (folder / "model.safetensors").stat().st_size
    assert weights < found.memory.load <= found.memory.run


def test_an_id_of_the_registry_leads_to_its_folder(tiny_llama, tmp_path):
    from pressoir.registry.registry import Registry
    from pressoir.sources.describe import Details, register
    from pressoir.store.store import Store

    store = Store(tmp_path / "home")
    register(Registry(store.home), "my-llama", str(tiny_llama), Details())
    found = inspect_model("my-llama", store)
    assert found.reference == "my-llama"
    assert found.folder.resolve() == Path(tiny_llama).resolve()
    with pytest.raises(SourceError, match="Did you mean 'my-llama'"):
        inspect_model("my-lama", store)


def test_what_is_no_model_is_refused(tiny_llama, tmp_path):
    with pytest.raises(SourceError, match="no such folder"):
        inspect_model(str(tmp_path / "nowhere"))
    with pytest.raises(SourceError, match=r"has no config\.json; is it a transformers model folder"):
        inspect_model(str(tmp_path))
    folder = tmp_path / "broken"
    shutil.copytree(tiny_llama, folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(SourceError, match="not a complete safetensors file"):
        inspect_model(str(folder))
    (folder / "model.safetensors").write_bytes(content)
    (folder / "model.onnx").write_bytes(b"x" * 100)
    with pytest.raises((SourceError, ShardError), match="ONNX graph"):
        inspect_model(str(folder))
