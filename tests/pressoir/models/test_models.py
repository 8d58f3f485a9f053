"""Models: what is saved loads back the same, and nothing untrained passes for trained."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config
from transformers.utils import logging as transformers_logging

from pressoir.errors import SourceError
from pressoir.inference.tokenizers.tokenizers import FastTokenizer, LanguageModelTokenizer
from pressoir.models import loading
from pressoir.models.layouts import architecture_of, count_parameters, encoder_layers, resize_ffn

LABELS = ["negative", "positive"]
TEXTS = ["the film was good", "the soup was cold and bland and the hotel was awful", "book"]


@pytest.fixture
def copy(tiny_classifier, tmp_path):
    """A copy of the tiny classifier that may be damaged."""
    return shutil.copytree(tiny_classifier, tmp_path / "copy")


def logits(model, tokenizer, texts=TEXTS):
    with torch.inference_mode():
        return model(**tokenizer(texts, padding=True, return_tensors="pt")).logits


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")


def saved(model, folder, tokenizer_from):
    folder.mkdir()
    loading.save_model(model, folder)
    loading.save_tokenizer(loading.load_tokenizer(tokenizer_from), folder)
    return folder


def assert_reloads_the_same(model, folder, tokenizer):
    again = loading.load_classifier(folder)
    assert torch.equal(logits(again, tokenizer), logits(model, tokenizer))
    assert count_parameters(again) == count_parameters(model)
    return again


# --- round trips ---


def test_a_saved_classifier_loads_back_the_same_in_evaluation_mode(tiny_classifier, tmp_path):
    model, tokenizer = loading.load_classifier(tiny_classifier), loading.load_tokenizer(tiny_classifier)
    assert not model.training
    assert model.dtype == torch.float32
    folder = saved(model, tmp_path / "again", tiny_classifier)
    assert_reloads_the_same(model, folder, tokenizer)
    assert sorted(path.suffix for path in folder.iterdir() if path.suffix != ".json") == [".safetensors"]


def test_half_precision_weights_are_loaded_in_float32(copy):
    state = load_file(copy / "model.safetensors")
    save_file(
        {name: tensor.half() for name, tensor in state.items()}, copy / "model.safetensors", {"format": "pt"}
    )
    edit_config(copy, dtype="float16")
    assert {tensor.dtype for tensor in loading.load_classifier(copy).state_dict().values()} <= {
        torch.float32,
        torch.int64,
    }


def test_eager_and_scaled_dot_product_attention_give_the_same_logits(tiny_classifier):
    tokenizer = loading.load_tokenizer(tiny_classifier)
    eager, sdpa = (loading.load_classifier(tiny_classifier, eager=eager) for eager in (True, False))
    assert (eager.config._attn_implementation, sdpa.config._attn_implementation) == ("eager", "sdpa")
    torch.testing.assert_close(logits(eager, tokenizer), logits(sdpa, tokenizer), rtol=0, atol=1e-5)


def test_a_model_without_a_head_gets_one_for_the_labels(tiny_bert):
    model = loading.load_classifier(tiny_bert, labels=["bad", "so-so", "good"])
    assert model.config.num_labels == 3
    assert model.config.id2label == {0: "bad", 1: "so-so", 2: "good"}
    assert model.config.label2id == {"bad": 0, "so-so": 1, "good": 2}
    assert logits(model, loading.load_tokenizer(tiny_bert)).shape == (3, 3)
    encoder = load_file(tiny_bert / "model.safetensors")
    weight = model.bert.encoder.layer[3].output.dense.weight
    assert torch.equal(weight, encoder["encoder.layer.3.output.dense.weight"])


def test_a_head_of_another_number_of_classes_is_replaced_and_the_encoder_kept(tiny_classifier):
    two = loading.load_classifier(tiny_classifier)
    three = loading.load_classifier(tiny_classifier, labels=["a", "b", "c"])
    assert three.classifier.out_features == 3
    ours, theirs = three.bert.state_dict(), two.bert.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_labels_survive_saving(tiny_bert, tmp_path):
    model = loading.load_classifier(tiny_bert, labels=LABELS)
    assert loading.load_config(saved(model, tmp_path / "m", tiny_bert)).id2label == dict(enumerate(LABELS))


def test_the_volume_of_transformers_is_left_as_it_was(tiny_bert, tmp_path):
    before = transformers_logging.get_verbosity()
    loading.load_classifier(tiny_bert, labels=LABELS)
    with pytest.raises(SourceError):
        loading.load_classifier(tmp_path)
    assert transformers_logging.get_verbosity() == before


# --- pruned models ---


def cut_ffn(model, widths):
    for layer, width in zip(encoder_layers(model), widths, strict=True):
        resize_ffn(layer, architecture_of(model), torch.arange(64)[-width:])
    model.config.intermediate_sizes = list(widths)


def test_pruned_heads_reload(tiny_classifier, tmp_path):
    model, tokenizer = loading.load_classifier(tiny_classifier), loading.load_tokenizer(tiny_classifier)
    model.prune_heads({0: [0, 2], 3: [1]})
    folder = saved(model, tmp_path / "pruned", tiny_classifier)
    again = assert_reloads_the_same(model, folder, tokenizer)
    assert again.bert.encoder.layer[0].attention.self.query.out_features == 16
    assert (
        loading.load_classifier(folder, eager=True).bert.encoder.layer[3].attention.self.num_attention_heads
        == 3
    )


def test_feed_forward_layers_of_different_widths_reload(tiny_classifier, tmp_path):
    model, tokenizer = loading.load_classifier(tiny_classifier), loading.load_tokenizer(tiny_classifier)
    cut_ffn(model, (64, 10, 1, 33))
    folder = saved(model, tmp_path / "pruned", tiny_classifier)
    again = assert_reloads_the_same(model, folder, tokenizer)
    assert [layer.intermediate.dense.out_features for layer in again.bert.encoder.layer] == [64, 10, 1, 33]


def test_pruned_heads_and_widths_reload_together(tiny_classifier, tmp_path):
    model, tokenizer = loading.load_classifier(tiny_classifier), loading.load_tokenizer(tiny_classifier)
    model.prune_heads({1: [0], 2: [0, 1, 3]})
    cut_ffn(model, (8, 16, 24, 32))
    assert_reloads_the_same(model, saved(model, tmp_path / "pruned", tiny_classifier), tokenizer)


def test_cutting_neurons_computes_what_silencing_them_does(tiny_classifier):
    cut, silenced = loading.load_classifier(tiny_classifier), loading.load_classifier(tiny_classifier)
    keep = torch.tensor([5, 1, 40, 63])
    layer = silenced.bert.encoder.layer[1]
    silent = torch.ones(64, dtype=torch.bool)
    silent[keep] = False
    with torch.no_grad():
        layer.output.dense.weight[:, silent] = 0
    resize_ffn(cut.bert.encoder.layer[1], architecture_of(cut), keep)
    tokenizer = loading.load_tokenizer(tiny_classifier)
    torch.testing.assert_close(logits(cut, tokenizer), logits(silenced, tokenizer), rtol=0, atol=1e-6)
    assert count_parameters(cut) == count_parameters(silenced) - 60 * (32 + 1 + 32)


@pytest.mark.parametrize("widths", [[64, 64, 64], [64, 64, 64, 32]], ids=["too few", "another width"])
def test_widths_that_do_not_fit_the_weights_are_refused(copy, widths):
    edit_config(copy, intermediate_sizes=widths)
    with pytest.raises(SourceError, match="copy"):
        loading.load_classifier(copy)


# --- what is refused ---


def test_a_folder_without_a_model_is_refused_by_name(tmp_path):
    with pytest.raises(SourceError, match=f"{tmp_path} cannot be loaded as a text classifier"):
        loading.load_classifier(tmp_path)


@pytest.mark.parametrize("load", [loading.load_classifier, loading.load_config])
def test_an_unknown_model_type_is_refused(copy, load):
    edit_config(copy, model_type="crystal-ball", architectures=["CrystalBall"])
    with pytest.raises(SourceError, match="crystal-ball"):
        load(copy)
    (copy / "config.json").unlink()
    with pytest.raises(SourceError, match="config"):
        load(copy)


@pytest.mark.parametrize("load", [loading.load_classifier, loading.load_config, loading.load_tokenizer])
@pytest.mark.parametrize("changes", [{"num_hidden_layers": 10**12}, {"num_labels": 10**9}, {"n_layer": 1e12}])
def test_counts_that_would_fill_the_memory_are_refused_before_anything_is_made(copy, load, changes):
    """transformers makes every layer, and a name of every label, before it looks at the weights."""
    edit_config(copy, **changes)
    with pytest.raises(SourceError, match=rf"config\.json: {next(iter(changes))} is 10+.*supported at most"):
        load(copy)


def test_a_config_that_asks_for_its_own_code_is_refused(copy):
    edit_config(copy, model_type="own", auto_map={"AutoConfig": "own.Config"})
    (copy / "own.py").write_text("raise AssertionError('foreign code was run')", encoding="utf-8")
    with pytest.raises(SourceError, match="trust_remote_code"):
        loading.load_classifier(copy)


def test_pickled_weights_are_not_loaded(copy):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="cannot be loaded"):
        loading.load_classifier(copy)


@pytest.mark.parametrize("special", [False, True])
def test_broken_weights_are_refused(copy, special):
    if special:
        edit_config(copy, intermediate_sizes=[64] * 4)
    (copy / "model.safetensors").write_bytes(b"\x01" * 100)
    with pytest.raises(SourceError, match="cannot be loaded"):
        loading.load_classifier(copy)


def test_a_model_without_a_head_is_no_classifier_unless_labels_are_given(tiny_bert):
    with pytest.raises(
        SourceError, match=r"is missing weights.*classifier\.bias, classifier\.weight.*fine-tune it first"
    ):
        loading.load_classifier(tiny_bert)


@pytest.mark.parametrize("labels", [None, LABELS, ["a", "b", "c"]])
def test_an_encoder_whose_weights_do_not_fit_is_refused_and_never_filled_with_random_ones(copy, labels):
    edit_config(copy, intermediate_size=48)
    with pytest.raises(SourceError, match="copy"):
        loading.load_classifier(copy, labels=labels)


@pytest.mark.parametrize("labels", [None, LABELS])
def test_an_encoder_that_lacks_a_layer_is_refused(copy, labels):
    edit_config(copy, num_hidden_layers=5)
    with pytest.raises(SourceError, match=r"is missing weights.*bert\.encoder\.layer\.4"):
        loading.load_classifier(copy, labels=labels)


def test_an_encoder_without_a_pooler_gets_a_new_one_with_its_head(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "masked-language-model")
    state = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("pooler.")}
    assert len(kept) == len(state) - 2
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    assert loading.load_classifier(folder, labels=LABELS).config.num_labels == 2


# --- tokenizers ---


@pytest.mark.parametrize(
    ("change", "longest"),
    [
        ({}, 64),
        ({"max_position_embeddings": 514}, 512),
        ({"max_position_embeddings": 66, "pad_token_id": 1}, 64),  # RoBERTa's positions begin at 2
        ({"max_position_embeddings": None}, 512),
    ],
)
def test_a_tokenizer_without_a_longest_length_gets_what_the_model_has_positions_for(
    tiny_bert, tmp_path, change, longest
):
    settings = json.loads((tiny_bert / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["model_max_length"] > 512
    folder = shutil.copytree(tiny_bert, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **change}), encoding="utf-8")
    for tokenizer in (loading.load_tokenizer(folder), FastTokenizer(folder)):
        assert tokenizer.model_max_length == longest
        ids = tokenizer(["good " * 600], truncation=True)["input_ids"]
        assert len(ids[0]) == longest


def test_a_shorter_longest_length_is_kept_and_survives_saving(tiny_classifier, tmp_path):
    tokenizer = loading.load_tokenizer(tiny_classifier)
    tokenizer.model_max_length = 24
    loading.save_tokenizer(tokenizer, tmp_path)
    assert loading.load_tokenizer(tmp_path).model_max_length == 24


def test_a_saved_tokenizer_has_its_vocabulary_once_and_gives_the_same_ids(tiny_bert, tmp_path):
    tokenizer = loading.load_tokenizer(tiny_bert)
    (tmp_path / "vocab.txt").write_text("old", encoding="utf-8")
    loading.save_tokenizer(tokenizer, tmp_path)
    assert not (tmp_path / "vocab.txt").exists()
    assert loading.load_tokenizer(tmp_path)(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]


@pytest.mark.parametrize("damage", ["none", "broken"])
def test_a_missing_or_broken_tokenizer_is_refused(copy, damage):
    for path in copy.glob("*token*"):
        path.unlink()
    if damage == "broken":
        (copy / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(SourceError, match="has no tokenizer that transformers can load"):
        loading.load_tokenizer(copy)


@pytest.mark.parametrize("tokenizer", [FastTokenizer, LanguageModelTokenizer.open])
def test_a_tokenizer_that_lacks_the_tokens_it_adds_is_refused(copy, tokenizer, capfd):
    """The `tokenizers` library panics at the first text, with an exception that is not an `Exception`."""
    path = copy / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["post_processor"]["special_tokens"].popitem()
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(SourceError, match="has no tokenizer that can be loaded"):
        tokenizer(copy)
    capfd.readouterr()  # the panic's own lines


# --- architectures ---


def test_an_architecture_whose_parts_are_unknown_is_refused_with_those_that_are_known():
    config = GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=2, n_positions=8)
    with pytest.raises(
        SourceError,
        match=r"models of type 'gpt2' are not supported here; supported are albert, bert, .*distilbert",
    ):
        architecture_of(loading.new_classifier(config))
