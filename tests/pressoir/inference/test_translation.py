"""Translation: both runtimes give what transformers' `generate` gives; languages go by their common codes."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from pressoir.errors import RecipeError, ShardError, SourceError
from pressoir.inference.engines.encoder_decoder import Generation
from pressoir.inference.generation.rules import Rules
from pressoir.inference.translation import LANGUAGES, T5_TYPES, Translator

TEXTS = ["the film was good", "the phone was awful and the soup was not", "meal", "the song was lovely"]
MODELS = {
    "tiny_nllb": ("eng_Latn", "fra_Latn"),
    "tiny_m2m100": ("en", "fr"),
    "tiny_mbart": ("en", "ro"),
    "tiny_mbart50": ("en", "fr"),
    "tiny_marian": (None, None),
    "tiny_bart": (None, None),
    "tiny_pegasus": (None, None),
    "tiny_t5": ("en", "fr"),
    "tiny_mt5": ("en", "fr"),
    "tiny_umt5": ("en", "fr"),
}
TARGETS = {"tiny_nllb": "fra_Latn", "tiny_m2m100": "__fr__", "tiny_mbart50": "fr_XX"}


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def checkpoint(request, name):
    return request.getfixturevalue(name)


def by_transformers(folder, texts, num_beams=1, **options):
    """What transformers alone makes of it, text by text."""
    import warnings

    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
        tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    prefix = "french: " if model.config.model_type in T5_TYPES else ""
    if target := TARGETS.get(folder.name.replace("-", "_")):
        options["forced_bos_token_id"] = tokenizer.convert_tokens_to_ids(target)
    results = []
    for text in texts:
        inputs = tokenizer(prefix + text, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            ids = model.generate(**inputs, num_beams=num_beams, do_sample=False, **options)
        results.append(tokenizer.decode(ids[0], skip_special_tokens=True).strip())
    return results


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("runtime", ["pytorch", "onnxruntime"])
def test_translations_are_those_of_transformers(exported, checkpoint, name, runtime, num_beams):
    folder = checkpoint if runtime == "pytorch" else exported(name)[0]
    translator = Translator.open(folder, 1)
    assert translator.engine.runtime == runtime
    expected = by_transformers(checkpoint, TEXTS, num_beams)
    assert len(set(expected)) > 1
    assert translator.translate(TEXTS, *MODELS[name], num_beams=num_beams) == expected


@pytest.mark.parametrize(
    "changed", [{"length_penalty": 0.2}, {"length_penalty": -2.0, "early_stopping": True}]
)
def test_beams_follow_the_models_own_configuration(tiny_t5, exported, tmp_path, changed):
    folders = []
    for number, source in enumerate((tiny_t5, exported("tiny_t5")[0])):
        folder = tmp_path / str(number)
        shutil.copytree(source, folder)
        settings = json.loads((folder / "generation_config.json").read_text())
        (folder / "generation_config.json").write_text(json.dumps({**settings, "max_length": 12, **changed}))
        folders.append(folder)
    expected = by_transformers(folders[0], TEXTS, num_beams=4)
    assert expected != by_transformers(tiny_t5, TEXTS, num_beams=4, max_length=12)
    for folder in folders:
        assert Translator.open(folder, 1).translate(TEXTS, "en", "fr", num_beams=4) == expected


END = {"sequence_bias": [[[2], 2.0]]}  # what a random model would not write
RULES = [
    {"repetition_penalty": 3.0},
    {"no_repeat_ngram_size": 2, "num_beams": 3, "do_sample": True},
    {"encoder_no_repeat_ngram_size": 1},
    {"min_length": 16, **END},
    {"exponential_decay_length_penalty": [4, 1.5]},
    {"bad_words_ids": [[18, 18, 18], [6, 6]], "suppress_tokens": [28]},
]


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("rules", RULES, ids=lambda rules: next(iter(rules)))
def test_rules_of_the_generation_settings_are_obeyed(tiny_mbart50, exported, tmp_path, rules, num_beams):
    languages, name = MODELS["tiny_mbart50"], "tiny-mbart50"
    tested, *other = rules
    without, checkpoint, graphs = (tmp_path / part / name for part in ("without", "checkpoint", "graphs"))
    for source, folder in (
        (tiny_mbart50, without),
        (tiny_mbart50, checkpoint),
        (exported("tiny_mbart50")[0], graphs),
    ):
        shutil.copytree(source, folder)
        settings = json.loads((folder / "generation_config.json").read_text())
        changed = {key: rules[key] for key in (other if folder == without else rules)}
        (folder / "generation_config.json").write_text(json.dumps({**settings, **changed}))
    expected = by_transformers(checkpoint, TEXTS, num_beams)
    assert expected != by_transformers(without, TEXTS, num_beams), tested
    for folder in (checkpoint, graphs):
        assert Translator.open(folder, 1).translate(TEXTS, *languages, num_beams=num_beams) == expected


@pytest.mark.parametrize("runtime", ["pytorch", "onnxruntime"])
def test_a_setting_that_would_change_the_text_is_refused_by_name(tiny_t5, exported, tmp_path, runtime):
    folder = tmp_path / "model"
    shutil.copytree(tiny_t5 if runtime == "pytorch" else exported("tiny_t5")[0], folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "penalty_alpha": 0.6, "top_k": 4}))
    with pytest.raises(SourceError, match=r"generation_config.json: penalty_alpha: 0.6 is not supported"):
        Translator.open(folder, 1)


@pytest.mark.parametrize("length", [19, 20, 21])
def test_the_length_in_the_settings_is_that_of_transformers(tiny_bart, exported, tmp_path, length):
    # 20, the library's default, is a number of new tokens to it; any other counts the start as well.
    folders = tmp_path / "checkpoint", tmp_path / "graphs"
    for source, folder in zip((tiny_bart, exported("tiny_bart")[0]), folders, strict=True):
        shutil.copytree(source, folder)
        settings = json.loads((folder / "generation_config.json").read_text())
        changed = {**settings, "max_length": length}
        (folder / "generation_config.json").write_text(json.dumps(changed))
    expected = by_transformers(folders[0], TEXTS)
    for folder in folders:
        translator = Translator.open(folder, 1)
        assert translator.translate(TEXTS) == expected
        assert translator.translate(TEXTS, max_new_tokens=19) == by_transformers(
            folders[0], TEXTS, max_new_tokens=19
        )


def test_max_new_tokens_limits_the_translation(exported, checkpoint, name):
    short = Translator.open(exported(name)[0], 1).translate(TEXTS, *MODELS[name], max_new_tokens=9)
    assert short == by_transformers(checkpoint, TEXTS, max_new_tokens=9)


def test_results_come_in_the_order_of_the_texts_whatever_the_batches(exported, name):
    translator = Translator.open(exported(name)[0], 1)
    alone = [translator.translate([text], *MODELS[name])[0] for text in TEXTS]
    assert translator.translate(TEXTS, *MODELS[name], batch_size=3) == alone
    assert translator.translate([], *MODELS[name]) == []


def test_int8_translations_do_not_depend_on_the_batch(exported, name):
    translator = Translator.open(exported(name, int8=True)[0], 1)
    alone = [translator.translate([text], *MODELS[name])[0] for text in TEXTS]
    assert translator.translate(TEXTS, *MODELS[name], batch_size=4) == alone


def test_source_tokens_are_those_of_transformers(checkpoint, name):
    import warnings

    from transformers import AutoTokenizer

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    translator = Translator.open(checkpoint, 1)
    prefix = "french: " if translator.model_type in T5_TYPES else ""
    encoded, _ = translator.encode(TEXTS, *MODELS[name])
    assert encoded == tokenizer([prefix + text for text in TEXTS])["input_ids"]


def test_a_long_text_is_cut_and_still_ends_with_the_end_token(exported):
    translator = Translator.open(exported("tiny_nllb")[0], 1)
    (ids,), _ = translator.encode(["the film was good " * 100])
    assert len(ids) == translator.max_source_tokens == 64
    assert ids[-1] == 2
    assert translator.translate(["the film was good " * 100])


@pytest.mark.parametrize("runtime", ["pytorch", "onnxruntime"])
def test_a_long_text_is_cut_on_the_tokenizers_side(exported, checkpoint, name, runtime, tmp_path):
    from pressoir.models import loading

    folder = tmp_path / "model"
    shutil.copytree(checkpoint if runtime == "pytorch" else exported(name)[0], folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    changed = {**settings, "truncation_side": "left", "model_max_length": 7}
    (folder / "tokenizer_config.json").write_text(json.dumps(changed))
    translator = Translator.open(folder, 1)
    prefix = "french: " if translator.model_type in T5_TYPES else ""
    texts = [prefix + text for text in TEXTS]
    expected = loading.load_tokenizer(folder)(texts, truncation=True)["input_ids"]
    assert translator.encode(TEXTS, *MODELS[name])[0] == expected


# Languages


def translator(tokens, model_type="m2m_100", defaults=(None, None), **settings):
    """A translator of which only the vocabulary's special tokens matter."""
    language = [3] if any("_" in token for token in tokens) else []
    vocabulary = SimpleNamespace(
        special=tokens,
        truncation_side="right",
        frame=lambda: (language, [1]),
        encode=lambda text: [ord(c) for c in text],
        id=tokens.index,
    )
    generation = Generation(0, 8, None, Rules(frozenset([1])), settings)
    return Translator(SimpleNamespace(generation=generation), vocabulary, model_type, defaults)


NLLB = ["<s>", "</s>", "deu_Latn", "eng_Latn", "fra_Latn", "zho_Hans"]
M2M100 = ["<s>", "</s>", "__de__", "__en__", "__fr__", "__zh__"]


@pytest.mark.parametrize("tokens", [NLLB, M2M100], ids=["NLLB", "M2M100"])
@pytest.mark.parametrize(("source", "target"), [("en", "fr"), ("eng_Latn", "fra_Latn"), ("eng_Latn", "fr")])
def test_languages_go_by_the_models_codes_or_by_common_ones(tokens, source, target):
    assert translator(tokens).encode(["a"], source, target) == ([[3, ord("a"), 1]], (4, ()))


def test_an_unknown_language_is_refused_with_the_known_ones():
    with pytest.raises(RecipeError) as error:
        translator(NLLB).encode(["a"], "en", "fr_Latn")
    assert "target_language 'fr_Latn' is not supported by this model" in str(error.value)
    assert "did you mean fra_Latn" in str(error.value)
    assert "supported: deu_Latn, eng_Latn, fra_Latn, zho_Hans" in str(error.value)


@pytest.mark.parametrize(
    ("languages", "field"), [((None, "fr"), "source_language"), (("en", None), "target_language")]
)
def test_a_missing_language_is_asked_for(languages, field):
    with pytest.raises(RecipeError, match=f"{field} is required; this model supports de, en, fr, zh"):
        translator(M2M100).encode(["a"], *languages)


def test_the_tokenizers_own_languages_are_the_defaults():
    both = translator(NLLB, defaults=("eng_Latn", "fra_Latn"))
    assert both.encode(["a"]) == ([[3, ord("a"), 1]], (4, ()))
    assert both.encode(["a"], "de", "en") == ([[2, ord("a"), 1]], (3, ()))


def test_the_configurations_first_token_stands_where_no_target_is_named():
    model = translator(NLLB, defaults=("eng_Latn", None))
    model.engine.generation = Generation(0, 8, None, Rules(frozenset([1]), forced_first=5), {})
    assert model.encode(["a"]) == ([[3, ord("a"), 1]], (5, ()))
    assert model.encode(["a"], None, "de")[1] == (2, ())


def test_a_model_of_one_pair_takes_that_pair_or_none():
    marian = translator(["</s>", "<unk>"], "marian", ("en", "fr"))
    assert marian.languages == []
    for pair in ((None, None), ("en", "fr"), ("eng_Latn", None)):
        assert marian.encode(["a"], *pair) == ([[ord("a"), 1]], (None, ()))
    with pytest.raises(
        RecipeError, match=r"target_language is 'de', but .* fixed language pair, en to fr; omit"
    ):
        marian.encode(["a"], "en", "de")
    with pytest.raises(
        RecipeError, match="source_language is 'en', but this model has fixed languages; omit it"
    ):
        translator(["</s>"], "marian").encode(["a"], "en")


@pytest.mark.parametrize("code", ["fr", "fra", "fra_Latn"])
def test_a_marian_model_of_several_targets_is_told_by_a_token_before_the_text(code):
    marian = translator([">>fra<<", "</s>", ">>spa<<"], "marian")
    assert marian.languages == ["fra", "spa"]
    ids, begin = marian.encode(["a"], None, code)
    assert "".join(map(chr, ids[0][:-1])) == ">>fra<< a"
    assert begin == (None, ())


def test_t5_is_told_by_a_sentence():
    def text(languages, **settings):
        return "".join(map(chr, translator(["</s>"], "t5", **settings).encode(["a"], *languages)[0][0][:-1]))

    assert text(("en", "de")) == "translate English to German: a"
    assert text(("eng_Latn", "deu_Latn")) == "translate English to German: a"
    assert text((None, None)) == "a", "the text may hold its own"
    stated = {"translation_en_to_de": {"prefix": "to German: "}}
    assert text(("en", "de"), task_specific_params=stated) == "to German: a"
    with pytest.raises(RecipeError, match="source_language None is not supported; T5 models support"):
        text((None, "de"))


def test_the_table_of_languages_is_one_to_one():
    assert len({flores for flores, _ in LANGUAGES.values()}) == len(LANGUAGES)
    assert len({english for _, english in LANGUAGES.values()}) == len(LANGUAGES)
    assert all(len(code) == 2 for code in LANGUAGES)


# Folders


def test_a_folder_without_start_and_end_tokens_is_no_encoder_decoder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "encoder_model.onnx").write_bytes(b"")
    with pytest.raises(SourceError, match=r"config\.json specifies no decoder_start_token_id and"):
        Translator.open(tmp_path, 1)


@pytest.mark.parametrize("runtime", ["pytorch", "onnxruntime"])
def test_a_translation_starts_as_the_generation_settings_say_or_is_refused(
    tiny_nllb, exported, tmp_path, runtime
):
    """Where `generation_config.json` exists, transformers does not look for these in `config.json`."""
    source = tmp_path / "tiny-nllb"
    shutil.copytree(tiny_nllb, source)
    folder = source
    if runtime == "onnxruntime":
        folder = tmp_path / "graphs"
        shutil.copytree(exported("tiny_nllb")[0], folder)
    settings = json.loads((source / "generation_config.json").read_text())
    expected = {}
    for start in (settings.pop("decoder_start_token_id"), None):  # then `bos_token_id`
        if start is None:
            for place in (source, folder):
                (place / "generation_config.json").write_text(json.dumps(settings))
        expected[start] = by_transformers(source, TEXTS)
        assert Translator.open(folder, 1).translate(TEXTS) == expected[start]
    assert expected[None] != expected[2]
    (folder / "generation_config.json").write_text(json.dumps({"max_length": 12}))
    with pytest.raises(SourceError, match=r"generation_config\.json specifies no decoder_start_token_id"):
        Translator.open(folder, 1)


def test_a_broken_tokenizer_is_named(exported, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported("tiny_nllb")[0], folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(SourceError, match=r"tokenizer\.json cannot be loaded"):
        Translator.open(folder, 1)


def test_a_runtime_is_insisted_on(exported, tiny_nllb):
    with pytest.raises(SourceError, match=r"has no encoder_model\.onnx; export the model first"):
        Translator.open(tiny_nllb, 1, "onnxruntime")
    with pytest.raises(SourceError, match="cannot be loaded as an encoder-decoder"):
        Translator.open(exported("tiny_nllb")[0], 1, "pytorch")


def test_shards_are_verified_before_they_are_opened(exported, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported("tiny_nllb")[0], folder)
    (folder / "shard_manifest.json").write_text("{}")
    with pytest.raises(ShardError, match="shard_manifest"):
        Translator.open(folder, 1)


def test_limits_never_pass_the_models_positions(exported):
    generation = Translator.open(exported("tiny_nllb")[0], 1).engine.generation
    assert generation.context == 64
    assert generation.limit(None, prompt=1) == 23, "max_length 24 counts the start token"
    assert generation.limit(1000, prompt=1) == 63
    assert generation.limit(1000, prompt=4) == 60


def test_forced_logits_are_those_of_pytorch(exported, checkpoint, name):
    models = [Translator.open(folder, 1) for folder in (checkpoint, exported(name)[0])]
    rows, _ = models[0].encode(TEXTS, *MODELS[name])
    tokens = np.random.default_rng(0).integers(4, 20, (len(TEXTS), 9))
    expected, actual = (model.engine.forced_logits(model.batch(rows), tokens) for model in models)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    assert np.ptp(expected) > 1
