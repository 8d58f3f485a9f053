"""What Pressoir does not run is refused in one sentence, from `config.json` alone."""

import json
from importlib import import_module

import pytest

from pressoir.errors import SourceError
from pressoir.extensions.task import task, tasks
from pressoir.formats.folder import tasks_of
from pressoir.formats.supported import check_exportable, check_supported, served_tasks, unsupported


@pytest.fixture
def folder(tmp_path):
    def make(architecture, kind, **config):
        values = {"architectures": [architecture], "model_type": kind, **config}
        (tmp_path / "config.json").write_text(json.dumps(values))
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("architecture", "kind", "name"),
    [
        ("WhisperForConditionalGeneration", "whisper", "automatic-speech-recognition"),
        ("HubertForCTC", "hubert", "automatic-speech-recognition"),
        ("MT5ForConditionalGeneration", "mt5", "translation"),
        ("MarianMTModel", "marian", "translation"),
        ("LlamaForCausalLM", "llama", "causal-lm"),
        ("BertForSequenceClassification", "a type that nobody knows", "text-classification"),
    ],
)
def test_what_runs_is_not_refused(folder, architecture, kind, name):
    assert unsupported(folder(architecture, kind)) is None
    assert unsupported(folder(architecture, kind), name) is None
    check_supported(folder(architecture, kind))


@pytest.mark.parametrize(
    ("architecture", "kind", "config", "told"),
    [
        (
            "MusicgenForConditionalGeneration",
            "musicgen",
            {"audio_encoder": {}},
            r"MusicgenForConditionalGeneration \(model type 'musicgen'\), which works with sound, is not "
            r"supported; for translation, use a model of type m2m_100, .* or seamless_m4t_v2",
        ),
        (
            "LlavaForConditionalGeneration",
            "llava",
            {"vision_config": {}},
            "'llava'.*works with images, is not",
        ),
        (
            "VoxtralForConditionalGeneration",
            "voxtral",
            {"audio_config": {}},
            "for automatic-speech-recognition, use a model of type whisper, wav2vec2",
        ),
        ("ParakeetForCTC", "parakeet_ctc", {}, "'parakeet_ctc'.* is not supported; for automatic-speech"),
    ],
)
def test_what_does_not_run_is_said_to_be_what_it_is(folder, architecture, kind, config, told):
    with pytest.raises(SourceError, match=told):
        check_supported(folder(architecture, kind, **config))
    with pytest.raises(SourceError, match=told):
        check_exportable(folder(architecture, kind, **config))


def test_a_configuration_without_a_class_is_refused_likewise(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "specifies no architecture" in unsupported(tmp_path)


def test_a_model_of_two_tasks_can_do_both(folder):
    both = ("translation", "automatic-speech-recognition")
    assert tasks_of(folder("SeamlessM4Tv2Model", "seamless_m4t_v2")) == both
    assert tasks_of(folder("SeamlessM4TForSpeechToText", "seamless_m4t")) == both[1:]
    assert tasks_of(folder("SeamlessM4TForTextToText", "seamless_m4t")) == both[:1]


def test_the_types_of_a_task_are_types_of_transformers():
    known = import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING_NAMES
    listed = {kind for one in tasks() for kind in one.model_types}
    assert len(listed) > 20
    assert listed <= known.keys()
    assert all(set(one.pytorch_only) <= set(one.model_types) for one in tasks())
    assert not task("text-classification").model_types


def test_seamless_is_served_for_what_is_served_of_it(folder):
    assert served_tasks(folder("SeamlessM4TModel", "seamless_m4t")) == ["automatic-speech-recognition"]
    with pytest.raises(
        SourceError, match="'seamless_m4t' is not served for translation; it can be evaluated"
    ):
        served_tasks(folder("SeamlessM4TForTextToText", "seamless_m4t"))
    assert served_tasks(folder("MarianMTModel", "marian")) == ["translation"]
