"""A folder of made-up packages, each with entry points."""

import pytest

from pressoir.extensions import loader


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Install made-up distributions: `site(name, {group: {entry: value}})`."""

    def install(name, groups, version="1.2"):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        sections = [
            f"[{group}]\n" + "".join(f"{entry} = {value}\n" for entry, value in entries.items())
            for group, entries in groups.items()
        ]
        (folder / "entry_points.txt").write_text("\n".join(sections))

    monkeypatch.syspath_prepend(str(tmp_path))
    loader._entries.cache_clear()
    yield install
    loader._entries.cache_clear()
