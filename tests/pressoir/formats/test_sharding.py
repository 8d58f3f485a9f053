"""Sharded checkpoints: cut evenly, in order, nothing changed, nothing loaded; and put together again."""

import itertools
import json
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pressoir.errors import ShardError, SourceError
from pressoir.formats.sharding import read_manifest, verify
from pressoir.formats.tensor_bytes import TensorBytes, checkpoint_tensors, write_safetensors
from pressoir.formats.unsharding import unshard
from pressoir.models import loading
from pressoir.recipe.sections import ShardConfig
from pressoir.stage import StageContext
from pressoir.stages import shard
from pressoir.stages.shard import partition, recommended_shards


@pytest.fixture
def cut(tmp_path, reporter):
    """Shard a folder; return the result."""

    def cut(source, name="cut", **config):
        (tmp_path / name).mkdir()
        context = StageContext(tmp_path / name, tmp_path, reporter, seed=0, threads=1)
        shard.run({"model": source}, ShardConfig(**config), context)
        return context.out_dir

    return cut


@pytest.fixture
def whole(tmp_path, reporter):
    """Unshard a folder; return the result."""

    def whole(source, name="whole"):
        (tmp_path / name).mkdir()
        unshard(source, tmp_path / name, reporter)
        return tmp_path / name

    return whole


def tensor_names(folder):
    return [[tensor.name for tensor in record.tensors] for record in read_manifest(folder).shards]


def same(first, second):
    """Whether two safetensors files hold the same names, types, shapes and bits."""
    a, b = load_file(first), load_file(second)
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


# Where to cut.


def fake(*sizes):
    return [[TensorBytes(f"t{i}", "I8", (size,), size)] for i, size in enumerate(sizes)]


def cost(group):
    return sum(tensor.cost for tensor in group)


def joined(units):
    return [tensor for unit in units for tensor in unit]


@pytest.mark.parametrize("seed", range(20))
def test_any_count_gives_that_many_runs_that_keep_the_order_and_are_even(seed):
    rng = np.random.default_rng(seed)
    units = fake(*rng.integers(1, 10 ** rng.integers(2, 6), size=rng.integers(1, 40)).tolist())
    count = int(rng.integers(1, len(units) + 1))
    groups = partition(units, ShardConfig(shards=count))
    assert len(groups) == count
    assert all(groups)
    assert joined(groups) == joined(units)
    assert max(map(cost, groups)) <= sum(map(cost, units)) / count + max(map(cost, units))


def test_one_huge_tensor_leaves_the_others_evenly_cut():
    groups = partition(fake(90_000, *[1000] * 30), ShardConfig(shards=4))
    assert [len(group) for group in groups] == [1, 10, 10, 10]


@pytest.mark.parametrize("seed", range(20))
def test_a_limit_is_kept_by_every_shard_that_holds_more_than_one_tensor(seed):
    rng = np.random.default_rng(seed)
    units = fake(*rng.integers(1, 50_000, size=30).tolist())
    limit_mb = float(rng.uniform(0.005, 0.2))
    groups = partition(units, ShardConfig(max_shard_size_mb=limit_mb))
    assert joined(groups) == joined(units)
    for group in groups:
        assert len(group) == 1 or cost(group) <= limit_mb * 1e6
    for group, following in itertools.pairwise(groups):
        assert cost([*group, following[0]]) > limit_mb * 1e6 - 1000  # no needless cut


def test_what_belongs_together_is_never_cut():
    units = [[*a, *b, *c] for a, b, c in zip(*[iter(fake(*[100] * 18))] * 3, strict=True)]
    for config in (ShardConfig(shards=4), ShardConfig(max_shard_size_mb=0.0001)):
        for group in partition(units, config):
            assert len(group) % 3 == 0
    with pytest.raises(
        ShardError, match=r"shards is 7, but the model has 6 tensors \(a weight with its scale"
    ):
        partition(units, ShardConfig(shards=7))


def test_no_weights_at_all_are_an_error():
    with pytest.raises(ShardError, match="no weights"):
        partition([], ShardConfig())


def test_the_recommended_count_follows_the_size_and_never_falls():
    gigabyte = 1_000_000_000
    ranges = [(0, 1, 2, 4), (1, 5, 4, 8), (5.001, 400, 8, 16)]
    for low, high, fewest, most in ranges:
        counts = [recommended_shards(int(size * gigabyte)) for size in np.linspace(low, high - 1e-6, 200)]
        assert (counts[0], counts[-1]) == (fewest, most if high != 5 else 7)
        assert counts == sorted(counts)
        assert all(fewest <= count <= most for count in counts)
    assert recommended_shards(16_000_000) == 2
    assert recommended_shards(5 * gigabyte) == 8


def test_a_count_above_the_tensors_is_refused_and_says_how_many_there_are(tiny_llama, cut):
    count = len(checkpoint_tensors(tiny_llama))
    with pytest.raises(
        ShardError, match=f"{count + 1}, but the model has {count} tensors; specify at most {count}"
    ):
        cut(tiny_llama, "more", shards=count + 1)
    assert len(tensor_names(cut(tiny_llama, "most", shards=count))) == count


# What comes out.


def test_transformers_opens_the_sharded_folder_and_computes_the_same(tiny_lm, cut):
    folder = cut(tiny_lm, shards=3)
    ids = torch.arange(30).reshape(2, 15)
    with torch.inference_mode():
        expected = loading.load_causal_lm(tiny_lm)(ids).logits
        assert torch.equal(loading.load_causal_lm(folder)(ids).logits, expected)


def test_embeddings_come_first_and_the_head_last(tiny_lm, cut):
    folder = cut(tiny_lm, shards=3)
    names, shards = tensor_names(folder), read_manifest(folder).shards
    assert "embed" in names[0][0] or "wte" in names[0][0]
    assert "norm" in names[-1][-2] + names[-1][-1] or "ln_f" in names[-1][-1]
    assert shards[0].role.startswith("embeddings")
    assert shards[-1].role.endswith("head")
    for record in shards:
        with safe_open(folder / record.file, "np") as file:
            assert set(file.keys()) == {tensor.name for tensor in record.tensors}


def test_the_manifest_and_the_index_agree_and_everything_else_is_copied(tiny_llama, cut):
    folder = cut(tiny_llama, shards=2)
    manifest = verify(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {t.name: r.file for r in manifest.shards for t in r.tensors}
    assert (manifest.kind, manifest.tied) == ("checkpoint", {})
    copied = {path.name for path in tiny_llama.iterdir()} - {"model.safetensors"}
    assert copied <= {record.file for record in manifest.files}
    assert all((folder / name).read_bytes() == (tiny_llama / name).read_bytes() for name in copied)
    assert not (folder / "model.safetensors").exists()


def test_unsharding_gives_back_every_bit(tiny_lm, cut, whole):
    result = whole(cut(tiny_lm, shards=4))
    assert same(result / "model.safetensors", tiny_lm / "model.safetensors")
    expected = {path.name for path in tiny_lm.iterdir()} | {"unsharded.json"}
    assert {path.name for path in result.iterdir()} == expected


def test_half_precision_and_whole_numbers_keep_type_and_alignment(tmp_path, tiny_llama, cut, whole):
    source = shutil.copytree(tiny_llama, tmp_path / "mixed")
    state = load_file(source / "model.safetensors")
    state = {
        name: tensor.to(torch.bfloat16 if "mlp" in name else torch.float16) for name, tensor in state.items()
    }
    state["model.layers.0.odd"] = torch.arange(7, dtype=torch.uint8)
    state["model.layers.0.none"] = torch.empty(0, 4)
    state["model.layers.0.count"] = torch.tensor(3)
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    folder = cut(source, shards=2)
    for tensor in (tensor for record in verify(folder).shards for tensor in record.tensors):
        assert tensor.offset % {"F16": 2, "BF16": 2, "F32": 4, "I64": 8, "U8": 1}[tensor.dtype] == 0
        assert tensor.offset % 64 == 0 or tensor.bytes % 64
    assert same(whole(folder) / "model.safetensors", source / "model.safetensors")


def test_a_checkpoint_in_several_files_is_taken_by_its_index(tiny_llama, cut, whole, tmp_path):
    first = cut(tiny_llama, "first", shards=4)
    for path in (first / "shard_manifest.json", first / "SHARDING_INFO.md"):
        path.unlink()  # as transformers' own shards come
    second = cut(first, "second", shards=2)
    assert len(read_manifest(second).shards) == 2
    assert same(whole(second) / "model.safetensors", tiny_llama / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "shard_01.safetensors").unlink(), r"shard_01\.safetensors"),
        (lambda f: (f / "shard_01.safetensors").write_bytes(b"\x08"), "not a complete safetensors file"),
        (lambda f: change_index(f, "lm_head.weight", "shard_00.safetensors"), "which does not contain it"),
        (lambda f: change_index(f, "lm_head.weight", "../x.safetensors"), "outside its folder"),
        (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "is not a weight index"),
    ],
)
def test_a_broken_source_is_told_before_anything_is_written(tiny_llama, cut, damage, message):
    source = cut(tiny_llama, "source", shards=2)
    damage(source)
    with pytest.raises(SourceError, match=message):
        cut(source, "result")


def change_index(folder, name, file):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][name] = file
    path.write_text(json.dumps(index))


# Ties.


def twice(tiny_qwen2, folder, change=lambda tensor: tensor.clone()):
    """The tied head, written a second time under its own name."""
    shutil.copytree(tiny_qwen2, folder)
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = change(state["model.embed_tokens.weight"])
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_tied_head_is_stored_once_and_comes_back_on_unsharding(tiny_qwen2, cut, whole, tmp_path):
    source = twice(tiny_qwen2, tmp_path / "twice")
    folder = cut(source, shards=2)
    assert "lm_head.weight" not in itertools.chain(*tensor_names(folder))
    assert verify(folder).tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "`lm_head.weight` is `model.embed_tokens.weight`" in (folder / "SHARDING_INFO.md").read_text()
    assert same(whole(folder) / "model.safetensors", source / "model.safetensors")
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        expected = loading.load_causal_lm(tiny_qwen2)(ids).logits
        assert torch.equal(loading.load_causal_lm(folder)(ids).logits, expected)


def test_a_head_of_other_values_is_not_taken_for_tied(tiny_qwen2, cut, tmp_path):
    source = twice(tiny_qwen2, tmp_path / "twice", change=lambda tensor: tensor + 1)
    folder = cut(source, shards=2)
    assert "lm_head.weight" in itertools.chain(*tensor_names(folder))
    assert verify(folder).tied == {}


def test_equal_tensors_that_the_model_does_not_tie_are_both_kept(tiny_llama, cut):
    names = list(itertools.chain(*tensor_names(cut(tiny_llama))))
    norms = [name for name in names if name.endswith("layernorm.weight")]
    assert len(norms) == 4  # all ones, every one of them


# Cost, and what nobody knows.


def test_no_tensor_is_held_in_memory(tmp_path):
    save_file({f"t{i}": torch.zeros(8_000_000) for i in range(2)}, tmp_path / "model.safetensors")
    tensors = checkpoint_tensors(tmp_path)
    tracemalloc.start()
    write_safetensors(tmp_path / "copy.safetensors", tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000
    assert same(tmp_path / "copy.safetensors", tmp_path / "model.safetensors")


def test_a_model_that_transformers_does_not_know_is_ordered_by_names(tmp_path, cut, reporter):
    source = tmp_path / "unknown"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "unheard-of"}')
    names = ["head.weight", "layers.10.w", "layers.9.w", "emb.weight"]
    save_file({name: torch.randn(40, 40) for name in names}, source / "model.safetensors")
    folder = cut(source, shards=4)
    assert tensor_names(folder) == [["emb.weight"], ["layers.9.w"], ["layers.10.w"], ["head.weight"]]
    assert any("by name only" in text for text in reporter.messages)


def test_a_model_of_several_graphs_is_told_apart_from_none_at_all(tmp_path, cut):
    (tmp_path / "two").mkdir()
    for name in ("encoder_model.onnx", "decoder_model.onnx"):
        (tmp_path / "two" / name).touch()
    with pytest.raises(ShardError, match="sharding models with several graphs"):
        cut(tmp_path / "two")


def test_what_is_not_sharded_cannot_be_unsharded(tiny_llama, whole):
    with pytest.raises(ShardError, match="is not a sharded model"):
        whole(tiny_llama)


def test_a_damaged_folder_is_not_unsharded(tiny_llama, cut, whole):
    folder = cut(tiny_llama, shards=2)
    raw = bytearray((folder / "shard_01.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "shard_01.safetensors").write_bytes(raw)
    with pytest.raises(ShardError, match=r"shard_01\.safetensors was modified"):
        whole(folder)


def test_a_hubs_cache_of_links_is_intact(tiny_llama, cut, tmp_path):
    folder, cache = cut(tiny_llama, shards=2), tmp_path / "cache"
    cache.mkdir()
    for path in folder.iterdir():
        (cache / path.name).symlink_to(path)
    assert verify(cache) == verify(folder)


@pytest.mark.parametrize("field", ["offset", "shape", "dtype", "name"])
def test_a_manifest_that_says_otherwise_than_the_shards_headers_is_refused(field, tiny_bert, cut, whole):
    """Two tensors of one length change places in the manifest: every hash is right, every weight wrong."""
    folder = cut(tiny_bert, shards=2)
    manifest = json.loads((folder / "shard_manifest.json").read_text(encoding="utf-8"))
    tensors = manifest["shards"][0]["tensors"]
    pairs = itertools.combinations(tensors, 2)
    one, other = next(p for p in pairs if p[0]["bytes"] == p[1]["bytes"] and len(p[0]["shape"]) == 2)
    if field == "shape":
        one["shape"] = one["shape"][::-1] if one["shape"][0] != one["shape"][1] else [1, *one["shape"]]
    elif field == "dtype":
        one["dtype"] = "I32"
    else:
        one[field], other[field] = other[field], one[field]
    (folder / "shard_manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    read_manifest(folder)  # it does not contradict itself
    for use in (verify, whole):
        with pytest.raises(ShardError, match=r"the header of shard_00.safetensors differ in [12] tensors"):
            use(folder)
