"""The serving configuration: read with all errors at once, resolved to digests and places."""

import shutil

import pytest
import yaml

from pressoir.errors import RecipeError
from pressoir.serving.config import ServingConfig, TierSettings, load, resolve
from pressoir.serving.errors import RequestError
from pressoir.serving.pool.sharing import analyse
from pressoir.serving.settings import merge_settings
from pressoir.store.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


def config(**tiers):
    return ServingConfig.model_validate({"tiers": tiers})


class TestReading:
    def test_a_file_is_read_and_folders_are_looked_up_beside_it(self, tmp_path):
        (tmp_path / "model").mkdir()
        path = tmp_path / "serving.yaml"
        path.write_text("tiers: {basic: {model: model}}\nmemory_budget_gb: 0.5\n")
        read = ServingConfig.from_yaml(path, ("isolation=thread",))
        assert read.tiers["basic"].model == str(tmp_path / "model")
        assert read.memory_budget_bytes == 500_000_000
        assert read.isolation == "thread"
        assert load(str(path)).tiers == read.tiers
        assert load({"tiers": {"basic": {"model": "x"}}}).tiers["basic"].model == "x"

    def test_all_mistakes_are_told_at_once_each_with_its_field(self, tmp_path):
        path = tmp_path / "serving.yaml"
        raw = {
            "tiers": {
                "basic": {"model": "m", "task": "text-classification", "settings": {"num_beams": 2}},
                "medium": {"settings": {"max_length": 0}},
                "Größe": {"model": "m"},
            },
            "isolaton": "thread",
            "memory_budget_gb": -1,
        }
        path.write_text(yaml.safe_dump(raw, allow_unicode=True))
        with pytest.raises(RecipeError) as failed:
            ServingConfig.from_yaml(path)
        text = str(failed.value)
        for part in (
            "tiers.basic: settings.num_beams is not supported for text-classification; omit it",
            "tiers.medium.model: Field required",
            "tiers.medium.settings.max_length",
            "Größe",
            "isolaton: unknown field; did you mean `isolation`?",
            "memory_budget_gb",
        ):
            assert part in text

    def test_a_server_without_tiers_is_refused(self):
        with pytest.raises(RecipeError, match="tiers"):
            load({"tiers": {}})


class TestResolving:
    def test_task_runtime_place_digest_and_size_are_filled_in(self, tiny_classifier, store):
        resolved = resolve(config(basic={"model": str(tiny_classifier)}), store)
        tier = resolved.tiers["basic"]
        assert (tier.task, tier.runtime) == ("text-classification", "pytorch")
        assert tier.source == str(tiny_classifier.resolve())
        assert len(tier.digest) == 64
        assert tier.size_bytes > (tiny_classifier / "model.safetensors").stat().st_size
        assert resolved.resolved

    def test_a_resolved_configuration_survives_being_written(self, tiny_classifier, store):
        resolved = resolve(config(basic={"model": str(tiny_classifier), "pinned": True}), store)
        assert load(yaml.safe_load(resolved.to_yaml())) == resolved

    def test_the_same_bytes_in_another_folder_have_the_same_digest(self, tiny_classifier, store, tmp_path):
        copy = shutil.copytree(tiny_classifier, tmp_path / "copy")
        resolved = resolve(config(a={"model": str(tiny_classifier)}, b={"model": str(copy)}), store)
        assert resolved.tiers["a"].digest == resolved.tiers["b"].digest
        assert [model.tiers for model in analyse(resolved).models] == [("a", "b")]

    def test_an_outer_registrys_model_is_left_to_the_resolver(self, tiny_classifier, store):
        given = config(basic={"model": "models:/reviews@champion"})
        asked = []
        resolved = resolve(given, store, lambda name: asked.append(name) or str(tiny_classifier))
        assert asked == ["models:/reviews@champion"]
        assert resolved.tiers["basic"].model == "models:/reviews@champion"
        assert resolved.tiers["basic"].source == str(tiny_classifier.resolve())
        with pytest.raises(
            RecipeError, match=r"tiers\.basic\.model: models:/reviews@champion can only be resolved by"
        ):
            resolve(given, store)

    def test_everything_that_cannot_be_resolved_is_told_at_once(self, tiny_classifier, tiny_llama, store):
        given = config(
            missing={"model": "./nowhere"},
            wrong={"model": str(tiny_classifier), "task": "translation"},
            other={"model": str(tiny_classifier), "digest": "0" * 64},
            beams={"model": str(tiny_llama), "settings": {"num_beams": 4, "source_language": "en"}},
        )
        with pytest.raises(RecipeError) as failed:
            resolve(given, store)
        text = str(failed.value)
        assert "has 4 errors" in text
        assert "tiers.missing.model: model './nowhere': no such folder" in text
        assert "tiers.wrong.task: " in text
        assert "is for text-classification, not for translation" in text
        assert f"tiers.other.digest: {'0' * 64} is specified" in text
        assert "tiers.beams.settings.num_beams is not supported for causal-lm" in text
        assert "settings.source_language is not supported for causal-lm" in text

    def test_what_is_not_resolved_is_not_served(self):
        with pytest.raises(RecipeError, match=r"tiers\.basic is not resolved"):
            analyse(config(basic={"model": "m"}))


class TestOverlay:
    def test_a_request_gets_the_tiers_limits_unless_it_asks_for_less(self):
        tier = TierSettings(max_length=128, num_beams=4)
        assert merge_settings(tier, {"max_length": None}, "basic") is tier
        assert merge_settings(tier, {"max_length": 64, "num_beams": 2}, "basic") == TierSettings(
            max_length=64, num_beams=2
        )

    def test_asking_for_more_is_refused_and_names_every_limit(self):
        tier = TierSettings(max_length=128)
        with pytest.raises(RequestError) as refused:
            merge_settings(tier, {"max_length": 129, "num_beams": 2}, "basic")
        text = str(refused.value)
        assert "max_length is 129, but tier 'basic' allows 128" in text
        assert "num_beams is 2, but tier 'basic' allows 1" in text

    def test_an_open_limit_is_the_requests_own_choice_within_reason(self):
        assert merge_settings(TierSettings(), {"max_new_tokens": 4096}, "basic").max_new_tokens == 4096
        with pytest.raises(RequestError, match="max_length is 4097, but tier 'basic' allows 4096"):
            merge_settings(TierSettings(), {"max_length": 4097}, "basic")

    def test_a_requests_own_language_and_sampling_win(self):
        tier = TierSettings(target_language="fr", temperature=0.0)
        found = merge_settings(tier, {"target_language": "de", "temperature": 0.7}, "basic")
        assert (found.target_language, found.temperature) == ("de", 0.7)

    def test_a_value_out_of_range_is_refused(self):
        with pytest.raises(RequestError, match=r"top_p: .*less than or equal to 1.*got 2"):
            merge_settings(TierSettings(), {"top_p": 2}, "basic")
