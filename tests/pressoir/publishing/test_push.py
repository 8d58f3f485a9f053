"""What arrives at a hub, sent by `huggingface_hub` itself; and the one line where nothing can."""

import shutil

import pytest
from hub_server import TOKEN

from pressoir.errors import PressoirError, SourceError, UnreachableError
from pressoir.publishing.push import push

CARD = "---\nlicense: mit\n---\n\n# Tiny\n"


@pytest.fixture
def output(tiny_classifier, tmp_path):
    """What `compress --output` writes, with things that are nobody else's business."""
    folder = tmp_path / "out"
    shutil.copytree(tiny_classifier, folder / "model")
    (folder / "model" / "README.md").write_text(CARD, encoding="utf-8")
    for name in (".env", ".secret.json", "notes.md", "model.bin", "artifact.json", "store/data/train.json"):
        path = folder / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}", encoding="utf-8")
    (folder / "recipe.yaml").write_text("name: tiny\n", encoding="utf-8")
    return folder


SENT = {
    *("README.md", "config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json"),
    "tokenizer_config.json",
}


@pytest.mark.parametrize("inside", ["", "model"])
def test_the_models_files_arrive_and_no_others(inside, output, hub):
    pushed = push(output / inside, "me/tiny", token=TOKEN)
    assert pushed.url == f"{hub.url}/me/tiny/commit/abc"
    assert {path for _, path in hub.files} == SENT
    assert {revision for revision, _ in hub.files} == {"main"}
    for (_, path), content in hub.files.items():
        assert content == (output / "model" / path).read_bytes(), path
    assert (pushed.files, pushed.size_bytes) == (len(SENT), sum(map(len, hub.files.values())))
    assert "private" not in hub.repositories["me/tiny"]


def test_a_repository_that_is_there_gets_another_commit_and_a_branch_is_made(output, hub):
    push(output, "tiny", token=TOKEN, private=True)
    assert hub.repositories["me/tiny"]["private"] is True
    for _ in range(2):
        push(output, "me/tiny", token=TOKEN, revision="8 bits")
    assert hub.branches == {"8 bits"}
    assert {path for revision, path in hub.files if revision == "8 bits"} == SENT


def refused(*arguments, kind=SourceError, **options):
    with pytest.raises(kind) as caught:
        push(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_pushed_is_one_line_before_anything_is_sent(output, hub):
    assert "no token for the hub; set HF_TOKEN" in refused(output, "me/tiny")
    assert "special characters" in refused(output, "me/tiny", token=f"{TOKEN}\n{TOKEN}")
    assert "'me/ti ny' is not the id of a repository" in refused(output, "me/ti ny", token=TOKEN)
    (output / "model" / "README.md").unlink()
    assert "has no model card (README.md)" in refused(output, "me/tiny", token=TOKEN)
    (output / "model" / "config.json").unlink()
    assert "has no config.json" in refused(output, "me/tiny", token=TOKEN)
    assert (hub.repositories, hub.files) == ({}, {})


@pytest.mark.parametrize(
    ("status", "kind", "told"),
    [
        (403, SourceError, "the token may not write to me/tiny"),
        (404, SourceError, "refuses to change me/tiny: "),
        (503, UnreachableError, "failed with status 503; push again later"),
    ],
)
def test_the_hubs_refusal_is_one_line(status, kind, told, output, hub):
    hub.status = status
    assert told in refused(output, "me/tiny", token=TOKEN, kind=kind)


def test_a_wrong_token_and_a_card_that_the_hub_does_not_take(output, hub):
    assert "does not accept the token" in refused(output, "me/tiny", token="hf_wrong")
    hub.card_errors = [{"message": '"license" must be one of [...]'}]
    assert 'refuses the model: Invalid metadata in README.md. - "license"' in refused(
        output, "me/tiny", token=TOKEN
    )
    assert hub.files == {}


def test_no_network_is_one_line(output, hub, monkeypatch):
    import huggingface_hub

    hub.close()
    assert f"me/tiny was not pushed: {hub.url} cannot be reached" in refused(
        output, "me/tiny", token=TOKEN, kind=UnreachableError
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.utils.reset_sessions()
    assert "HF_HUB_OFFLINE is set" in refused(output, "me/tiny", token=TOKEN, kind=PressoirError)
