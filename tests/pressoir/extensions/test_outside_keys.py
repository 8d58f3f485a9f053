"""What other packages declare of a model decides the keys of what is made of it."""

import importlib
import json
import shutil

import pytest

from pressoir.extensions import loader
from pressoir.pipeline.sources import Sources
from pressoir.recipe.sections import ExportConfig
from pressoir.store.store import Store

ODD = """
from pressoir.extensions.architecture import find
from pressoir.extensions.task import Task

TASK = Task(name="oddity", heads=("ForOddities",))
ARCHITECTURE = find("bert")
"""


def key(model, tmp_path):
    sources = Sources(Store(tmp_path / "home"))
    made_of = sources.model(str(model))
    return sources.key("export", ExportConfig(), {"model": made_of.digest}, 0, [made_of.folder]).hash()


@pytest.mark.parametrize(
    ("field", "value", "group", "declared"),
    [
        ("model_type", "odd", "pressoir.architectures", {"odd": "oddities:ARCHITECTURE"}),
        ("architectures", ["BertForOddities"], "pressoir.tasks", {"oddity": "oddities:TASK"}),
    ],
)
def test_the_version_of_the_package_that_declares_a_models_architecture_or_task_enters(
    field, value, group, declared, site, tiny_bert, tmp_path
):
    outside = tmp_path / "outside"
    shutil.copytree(tiny_bert, outside)
    config = json.loads((outside / "config.json").read_text())
    (outside / "config.json").write_text(json.dumps(config | {field: value}))
    (tmp_path / "oddities.py").write_text(ODD)
    plain, found = key(tiny_bert, tmp_path), [key(outside, tmp_path)]
    for version in ("1.2", "1.3"):
        shutil.rmtree(tmp_path / "odd-1.2.dist-info", ignore_errors=True)
        site("odd", {group: declared}, version)
        importlib.invalidate_caches()
        loader._entries.cache_clear()
        found.append(key(outside, tmp_path))
        assert key(tiny_bert, tmp_path) == plain
    assert len(set(found)) == 3
