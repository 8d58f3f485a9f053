"""Keys: contents decide, places and thread counts do not."""

import shutil

import pytest

from pressoir.errors import DataError, RegistryError, StoreError
from pressoir.pipeline.checks import check_inputs
from pressoir.pipeline.keys import stage_key
from pressoir.pipeline.sources import Sources
from pressoir.recipe.recipe import Recipe
from pressoir.recipe.sections import DataConfig, DistillConfig, StudentConfig, TeacherConfig
from pressoir.store.store import Store

SPLITS = ("train", "validation", "test")


def data_key(folder, seed=0, suffix=".tsv", **changes):
    files = {split: folder / f"{split}{suffix}" for split in SPLITS}
    return stage_key("data", DataConfig(source="files", **files, **changes), {}, seed).hash()


@pytest.fixture
def files(tiny_data, tmp_path):
    for split in SPLITS:
        shutil.copy(tiny_data / f"{split}.tsv", tmp_path / f"{split}.tsv")
    return tmp_path


def test_data_that_was_moved_keeps_its_key(files, tiny_data):
    assert data_key(files) == data_key(tiny_data)


def test_other_contents_formats_settings_and_seeds_get_other_keys(files):
    keys = [data_key(files), data_key(files, seed=1), data_key(files, max_tokens=64)]
    for split in SPLITS:
        shutil.copy(files / f"{split}.tsv", files / f"{split}.csv")
    keys.append(data_key(files, suffix=".csv"))
    (files / "train.tsv").write_text((files / "train.tsv").read_text() + "one more\tpositive\n")
    keys.append(data_key(files))
    assert len(set(keys)) == len(keys)


def test_of_a_named_model_only_the_digest_counts():
    def teacher(checkpoint):
        return stage_key("teacher", TeacherConfig(checkpoint=checkpoint), {}, 0)

    def student(model):
        return stage_key("distill", DistillConfig(student=StudentConfig(model=model)), {}, 0)

    assert teacher("./a") == teacher("./b") != teacher(None)
    assert student("./a") == student("./b") != student(None)


def test_a_checkpoint_with_other_labels_than_the_data_is_refused_before_any_work(
    tmp_path, tiny_bert, tiny_data
):
    from pressoir.models import loading

    model = loading.load_classifier(tiny_bert, labels=["spam", "ham"])
    loading.save_model(model, tmp_path / "mail")
    loading.save_tokenizer(loading.load_tokenizer(tiny_bert), tmp_path / "mail")
    files = {split: str(tiny_data / f"{split}.tsv") for split in SPLITS}
    raw = {"data": {"source": "files", **files}, "teacher": {"checkpoint": str(tmp_path / "mail")}}
    with pytest.raises(DataError, match=r"teacher\.checkpoint .*mail.*'spam', 'ham'.*'negative', 'positive'"):
        check_inputs(Recipe.from_dict(raw), Sources(Store(tmp_path / "home")))


def test_store_registry_and_data_are_checked_before_any_work(tmp_path, tiny_data):
    store = Store(tmp_path / "home")
    files = {split: str(tiny_data / f"{split}.tsv") for split in SPLITS}
    good = Recipe.from_dict({"data": {"source": "files", **files}})
    assert check_inputs(good, Sources(store)) == 400
    assert not store.home.exists()
    missing = {"source": "files", "train": "none.tsv", "test": "none.tsv"}
    with pytest.raises(DataError, match="is not a file"):
        check_inputs(Recipe.from_dict({"data": missing}), Sources(store))
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is not writable"):
        check_inputs(good, Sources(Store(tmp_path / "file")))
    store.home.mkdir()
    (store.home / "models.json").write_text("{")
    with pytest.raises(RegistryError, match="line 1"):
        check_inputs(good, Sources(store))
