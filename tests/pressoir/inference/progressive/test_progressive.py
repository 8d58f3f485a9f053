"""A model that runs while it loads computes what the loaded model computes, or says why it cannot."""

import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from pressoir.errors import PressoirError, QuantizationError, RegistryError, ShardError, SourceError
from pressoir.formats import packing
from pressoir.formats.sharding import LoadingCancelledError, read_manifest, verify
from pressoir.inference.progressive.loader import ProgressiveLoader, load_from_registry
from pressoir.inference.text_generation import TextGenerator
from pressoir.models import loading
from pressoir.recipe.sections import ShardConfig
from pressoir.registry.catalogue import Entry, Urls
from pressoir.registry.registry import Registry
from pressoir.reporting import LogReporter
from pressoir.sources.shards import FolderSource
from pressoir.stage import StageContext
from pressoir.stages import shard

IDS = torch.arange(40).reshape(2, 20)
PATIENCE_S = 60  # of a test that waits for another thread; never reached unless it fails


def logits(model):
    with torch.inference_mode():
        return model(IDS).logits


def loaded(source, **options):
    """The model as transformers loads it, with its weights where PyTorch puts tensors.

    Products differ in the last bit with the alignment of their operands, which in a mapped file is anything.
    """
    classifies = "SequenceClassification" in (source / "config.json").read_text()
    model = (loading.load_classifier if classifies else loading.load_causal_lm)(source, **options)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def cut(source, folder, shards=4):
    folder.mkdir()
    context = StageContext(folder, folder, LogReporter(), seed=0, threads=1)
    shard.run({"model": source}, ShardConfig(shards=shards), context)
    return folder


@pytest.fixture(scope="module")
def sharded(tiny_llama, tmp_path_factory):
    return cut(tiny_llama, tmp_path_factory.mktemp("progressive") / "sharded")


@pytest.fixture
def copy(sharded, tmp_path):
    return shutil.copytree(sharded, tmp_path / "copy")


class Gated(FolderSource):
    """A folder whose shards come only when they are let through."""

    def __init__(self, folder):
        super().__init__(folder)
        self.gates = [threading.Event() for _ in self.manifest.shards]
        self.asked = [threading.Event() for _ in self.manifest.shards]

    def shard(self, record, tell):
        self.asked[record.order].set()
        self.gates[record.order].wait(PATIENCE_S)
        return super().shard(record, tell)

    def let(self, *numbers):
        for number in numbers:
            self.gates[number].set()

    def cancel(self):
        super().cancel()
        self.let(*range(len(self.gates)))


class Forward(threading.Thread):
    """A forward pass in another thread."""

    def __init__(self, model):
        super().__init__(daemon=True)
        self.model, self.result, self.error = model, None, None
        self.start()

    def run(self):
        try:
            self.result = logits(self.model)
        except PressoirError as error:
            self.error = error

    def end(self):
        self.join(PATIENCE_S)
        assert not self.is_alive()
        return self


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


# It computes the same.


@pytest.mark.parametrize("initial", [0, 1, 99])
def test_the_first_forward_pass_gives_the_loaded_models_logits_bit_for_bit(tiny_lm, tmp_path, initial):
    folder = cut(tiny_lm, tmp_path / "cut")
    with ProgressiveLoader.from_folder(folder, initial_shards=initial) as loader:
        assert torch.equal(logits(loader.model), logits(loaded(tiny_lm)))
        loader.wait()
        assert loader.done
        assert not any(module._forward_pre_hooks for module in loader.model.modules())
        assert not any(value.is_meta for value in loader.model.state_dict().values())


def test_first_layers_run_while_the_last_shard_is_still_on_its_way(sharded, tiny_llama):
    source = Gated(sharded)
    source.let(0, 1, 2)
    ran = threading.Event()
    with ProgressiveLoader(source) as loader:
        loader.model.model.layers[0].register_forward_hook(lambda *_: ran.set())
        forward = Forward(loader.model)
        assert ran.wait(PATIENCE_S)
        assert source.asked[3].wait(PATIENCE_S)
        assert forward.is_alive()
        assert loader.model.lm_head.weight.is_meta
        source.let(3)
        assert torch.equal(forward.end().result, logits(loaded(tiny_llama)))


def test_it_returns_as_soon_as_the_initial_shards_are_there(sharded):
    source = Gated(sharded)
    source.let(0, 1)
    with ProgressiveLoader(source, initial_shards=2) as loader:
        assert not loader.done
        assert not loader.model.model.embed_tokens.weight.is_meta
        assert loader.model.lm_head.weight.is_meta


def test_half_precision_is_computed_in_float32_unless_asked_otherwise(tiny_qwen2, tmp_path):
    source = shutil.copytree(tiny_qwen2, tmp_path / "half")
    state = {name: tensor.half() for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    folder = cut(source, tmp_path / "cut")
    for options in ({}, {"dtype": torch.bfloat16}):
        with ProgressiveLoader.from_folder(folder, **options) as loader:
            expected = loaded(source, **options)
            assert torch.equal(logits(loader.model), logits(expected))
            assert loader.model.dtype == expected.dtype


def test_a_checkpoint_of_the_base_model_with_old_buffers_fits(tiny_gpt2, tmp_path):
    source = shutil.copytree(tiny_gpt2, tmp_path / "old")
    state = load_file(source / "model.safetensors")
    state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    state["h.0.attn.bias"] = torch.ones(1, 1, 256, 256)
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    with ProgressiveLoader.from_folder(cut(source, tmp_path / "cut")) as loader:
        assert torch.equal(logits(loader.model), logits(loaded(tiny_gpt2)))


def test_a_head_that_the_model_ties_is_the_embedding_whatever_the_file_says(tiny_qwen2, tmp_path):
    source = shutil.copytree(tiny_qwen2, tmp_path / "twice")
    state = load_file(source / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"] + 1
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    with ProgressiveLoader.from_folder(cut(source, tmp_path / "cut")) as loader:
        assert torch.equal(logits(loader.model), logits(loaded(source)))
        assert torch.equal(logits(loader.model), logits(loaded(tiny_qwen2)))


def test_generated_text_is_the_loaded_models(sharded, tiny_llama):
    expected = "".join(TextGenerator.open(tiny_llama, threads=1).generate("the film", max_new_tokens=12))
    with ProgressiveLoader.from_folder(sharded) as loader:
        assert "".join(loader.generator().generate("the film", max_new_tokens=12)) == expected


def test_changing_the_model_does_not_change_the_files(copy):
    with ProgressiveLoader.from_folder(copy) as loader:
        loader.wait()
        loader.model.lm_head.weight.data.zero_()
    verify(copy)


def test_a_classifier_loads_too(tiny_classifier, tmp_path):
    inputs = {"input_ids": torch.arange(5, 15)[None]}
    with (
        torch.inference_mode(),
        ProgressiveLoader.from_folder(cut(tiny_classifier, tmp_path / "cut")) as loader,
    ):
        expected = loaded(tiny_classifier)(**inputs).logits
        assert torch.equal(loader.model(**inputs).logits, expected)


# Quantised.


def pack(source, folder, bits):
    """Round to the nearest, by hand: what the packed format is, not how well it is chosen."""
    shutil.copytree(source, folder)
    model, state = loading.load_causal_lm(source), load_file(folder / "model.safetensors")
    layers, block = {}, 16
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear | Conv1D | torch.nn.Embedding) or "wpe" in name:
            continue
        kind = {"Conv1D": "conv1d", "Embedding": "embedding"}.get(type(module).__name__, "linear")
        weight = module.weight.detach().numpy()
        weight = weight.T if kind == "conv1d" else weight
        rows, columns = weight.shape
        tied = name == "lm_head" and model.config.tie_word_embeddings
        layers[name] = {
            "kind": kind,
            "role": {"lm_head": "head"}.get(name, "embedding" if kind == "embedding" else "matmul"),
            **{"bits": bits, "block_size": block, "shape": [rows, columns], "relative_error": 0.1},
            "tied_to": next(iter(layers)) if tied else None,
        }
        if tied:
            continue
        blocks = weight.reshape(rows, -1, block)
        low, high = blocks.min(-1, initial=0.0), blocks.max(-1, initial=0.0)
        scales = (high - low) / (2**bits - 1)
        zero = np.round(-low / scales).astype(np.uint8)
        codes = np.clip(np.round(blocks / scales[..., None]) + zero[..., None], 0, 2**bits - 1)
        parts = {
            "weight": packing.pack(codes.astype(np.uint8).reshape(rows, columns), bits),
            "weight_scale": scales.astype(np.float32),
            "weight_zero_point": packing.pack(zero, bits),
        }
        state |= {f"{name}.{part}": torch.from_numpy(np.ascontiguousarray(v)) for part, v in parts.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    description = {"format_version": 2, "scheme": f"q{bits}", "block_size": block, "layers": layers}
    (folder / "quantization.json").write_text(json.dumps(description))
    return folder


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_packed_weights_are_expanded_as_they_come(tiny_lm, tmp_path, bits):
    packed = pack(tiny_lm, tmp_path / "packed", bits)
    expected = logits(loaded(packed))
    folder = cut(packed, tmp_path / "cut")
    with ProgressiveLoader.from_folder(folder, initial_shards=0) as loader:
        assert torch.equal(logits(loader.model), expected)
    assert not torch.equal(expected, logits(loaded(tiny_lm)))
    assert torch.equal(logits(loaded(folder)), expected)  # by its index, all at once


def test_codes_scales_and_zero_points_lie_in_one_shard(tiny_llama, tmp_path):
    packed = pack(tiny_llama, tmp_path / "packed", 3)
    manifest = read_manifest(cut(packed, tmp_path / "cut", shards=10))
    text = (tmp_path / "cut" / "SHARDING_INFO.md").read_text()
    assert "ProgressiveLoader" in text
    assert "from_pretrained" not in text
    place = {tensor.name: record.order for record in manifest.shards for tensor in record.tensors}
    layers = json.loads((packed / "quantization.json").read_text())["layers"]
    assert len(layers) == 16
    for layer in layers:
        parts = [f"{layer}.weight", f"{layer}.weight_scale", f"{layer}.weight_zero_point"]
        assert len({place[part] for part in parts}) == 1
        assert sorted(place, key=list(place).index).index(parts[1]) == list(place).index(parts[0]) + 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: d.update(format_version=1), SourceError, "run it in ONNX Runtime"),
        (lambda d: d.pop("layers"), QuantizationError, "`layers` is not valid"),
        (
            lambda d: d["layers"]["lm_head"].update(bits=2),
            QuantizationError,
            r"lm_head\.weight U8 \[320, 16\]",
        ),
        (lambda d: d["layers"].update(x=d["layers"]["lm_head"]), QuantizationError, r"makes x\.weight"),
    ],
)
def test_a_description_that_does_not_fit_is_refused_before_loading(
    tiny_llama, tmp_path, change, error, message
):
    packed = pack(tiny_llama, tmp_path / "packed", 4)
    description = json.loads((packed / "quantization.json").read_text())
    change(description)
    (packed / "quantization.json").write_text(json.dumps(description))
    source = Gated(cut(packed, tmp_path / "cut"))
    with pytest.raises(error, match=message):
        ProgressiveLoader(source)
    assert not source.asked[0].is_set()


# It stops.


def test_a_corrupt_shard_stops_forward_and_wait_with_its_name(copy):
    flip(copy / "shard_02.safetensors")
    with ProgressiveLoader.from_folder(copy) as loader:
        for work in (partial(logits, loader.model), loader.wait, loader.wait):
            with pytest.raises(ShardError, match=r"shard_02\.safetensors was modified"):
                work()
        assert not loader.done
        assert loader.model.lm_head.weight.is_meta


def test_what_came_before_the_corrupt_shard_is_still_there(copy):
    flip(copy / "shard_03.safetensors")
    with ProgressiveLoader.from_folder(copy) as loader, torch.inference_mode():
        assert loader.model.model.embed_tokens(IDS).shape == (2, 20, 64)


@pytest.mark.parametrize("damage", [flip, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_corrupt_first_shard_is_told_at_once(copy, damage):
    damage(copy / "shard_00.safetensors")
    with pytest.raises(ShardError, match=r"shard_00\.safetensors"):
        ProgressiveLoader.from_folder(copy)


def test_cancelling_wakes_a_forward_pass_that_waits(sharded):
    source = Gated(sharded)
    source.let(0)
    loader = ProgressiveLoader(source)
    forward = Forward(loader.model)
    assert source.asked[1].wait(PATIENCE_S)
    loader.cancel()
    assert isinstance(forward.end().error, LoadingCancelledError)
    with pytest.raises(LoadingCancelledError, match="was cancelled"):
        loader.wait()
    loader.cancel()
    assert not loader._fetching.is_alive()
    assert not loader._filling.is_alive()


def test_leaving_the_block_cancels(sharded):
    source = Gated(sharded)
    source.let(0)
    with ProgressiveLoader(source) as loader:
        pass
    with pytest.raises(LoadingCancelledError):
        loader.wait()


def test_cancelling_a_loaded_model_changes_nothing(sharded):
    with ProgressiveLoader.from_folder(sharded) as loader:
        loader.wait()
    loader.cancel()
    assert loader.done
    assert logits(loader.model).isfinite().all()


def test_progress_may_cancel(sharded):
    loaders = []

    def stop(progress):
        if progress.shard == 2:
            loaders[0].cancel()

    source = Gated(sharded)
    source.let(0)
    loaders.append(ProgressiveLoader(source, on_progress=stop))
    source.let(1, 2, 3)
    with pytest.raises(LoadingCancelledError):
        loaders[0].wait()


def test_an_error_of_the_callback_stops_and_is_told(sharded):
    def fail(progress):
        raise KeyError("mine")

    with pytest.raises(ShardError, match=r"stopped: KeyError\('mine'\)") as told:
        ProgressiveLoader.from_folder(sharded, on_progress=fail)
    assert isinstance(told.value.__cause__, KeyError)


def test_progress_tells_bytes_shard_and_rate(sharded):
    told, manifest = [], read_manifest(sharded)
    with ProgressiveLoader.from_folder(sharded, on_progress=told.append) as loader:
        loader.wait()
    assert [p.done_bytes for p in told] == sorted(p.done_bytes for p in told)
    assert told[-1].done_bytes == told[-1].total_bytes == manifest.total_bytes
    assert [p.name for p in told] == [f"shard_{p.shard:02d}.safetensors" for p in told]
    assert {p.shard for p in told} == {0, 1, 2, 3}
    assert {p.shards for p in told} == {4}
    assert all(p.bytes_per_s > 0 for p in told)


# It refuses.


def test_a_negative_count_is_refused(sharded):
    with pytest.raises(ShardError, match="initial_shards is -1"):
        ProgressiveLoader.from_folder(sharded, initial_shards=-1)


def test_a_model_that_is_not_sharded_says_what_to_do(tiny_llama):
    with pytest.raises(ShardError, match="`pressoir shard` creates a sharded folder"):
        ProgressiveLoader.from_folder(tiny_llama)


def test_a_graphs_shards_are_not_a_checkpoints(copy):
    rewrite(copy, kind="onnx", files=[{"file": "model.onnx", "sha256": "0" * 64, "bytes": 0}])
    (copy / "model.onnx").touch()
    rewrite(copy, files=[{"file": "model.onnx", "sha256": sha256_of(b""), "bytes": 0}])
    with pytest.raises(ShardError, match="contains an ONNX graph, which cannot be loaded progressively"):
        ProgressiveLoader.from_folder(copy)


def sha256_of(content):
    import hashlib

    return hashlib.sha256(content).hexdigest()


def rewrite(folder, **fields):
    """Change the manifest."""
    path = folder / "shard_manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def reconfigure(folder, **fields):
    """Change the configuration, and what the manifest says of it."""
    config = {**json.loads((folder / "config.json").read_text()), **fields}
    (folder / "config.json").write_text(json.dumps(config))
    content = (folder / "config.json").read_bytes()
    files = json.loads((folder / "shard_manifest.json").read_text())["files"]
    for record in files:
        if record["file"] == "config.json":
            record.update(sha256=sha256_of(content), bytes=len(content))
    rewrite(folder, files=files)


def test_weights_that_are_missing_are_told_before_loading(copy):
    reconfigure(copy, num_hidden_layers=3)
    with pytest.raises(SourceError, match=r"is missing weights of a LlamaForCausalLM \(model\.layers\.2\."):
        ProgressiveLoader.from_folder(copy)


def test_weights_of_another_shape_are_told_with_their_names(copy):
    reconfigure(copy, intermediate_size=100)
    with (
        ProgressiveLoader.from_folder(copy, initial_shards=0) as loader,
        pytest.raises(ShardError, match=r"gate_proj\.weight is \[128, 64\], but .* \[100, 64\]"),
    ):
        loader.wait()


def test_a_manifest_that_contradicts_a_shards_header_is_refused(copy):
    shards = json.loads((copy / "shard_manifest.json").read_text())["shards"]
    shards[0]["tensors"][0]["offset"] += 4
    rewrite(copy, shards=shards)
    with pytest.raises(ShardError, match=r"shard_00\.safetensors: header and manifest differ"):
        ProgressiveLoader.from_folder(copy)


def test_an_altered_configuration_is_refused(copy):
    flip(copy / "config.json")
    with pytest.raises(ShardError, match=r"config\.json was modified"):
        ProgressiveLoader.from_folder(copy)


# From a server, and by name.


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def url(sharded):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(sharded))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_url_loads_and_stays_for_the_next_time(url, tiny_llama, tmp_path):
    expected = logits(loaded(tiny_llama))
    with ProgressiveLoader.from_folder(url, home=tmp_path) as loader:
        assert torch.equal(logits(loader.model), expected)
        loader.wait()
        verify(loader.folder)
        assert "".join(loader.generator().generate("the", max_new_tokens=4))
    with ProgressiveLoader.from_folder(url, home=tmp_path) as again:
        assert isinstance(again._source, FolderSource)
        assert torch.equal(logits(again.model), expected)


def test_a_cancelled_download_goes_on_the_next_time(url, tmp_path):
    loaders, names = [], []

    def stop(progress):
        if progress.shard == 2 and loaders:
            loaders[0].cancel()

    gate = threading.Event()
    loaders.append(
        ProgressiveLoader.from_folder(
            url, home=tmp_path, on_progress=lambda p: (p.shard and gate.wait(PATIENCE_S), stop(p))
        )
    )
    gate.set()
    with pytest.raises(LoadingCancelledError):
        loaders[0].wait()
    (partly,) = (tmp_path / "downloads").iterdir()
    assert (partly / "shard_00.safetensors").exists()
    with ProgressiveLoader.from_folder(
        url, home=tmp_path, on_progress=lambda p: names.append(p.name)
    ) as again:
        again.wait()
        verify(again.folder)


def register(home, base, shards=(), id="tiny", mirrors=()):
    Registry(home).add(
        Entry(
            id=id,
            name="Tiny",
            type="causal-lm",
            size_mb=1,
            urls=Urls(base=str(base), shards=shards, mirrors=mirrors),
            license="MIT",
        )
    )


NAMES = tuple(f"shard_{i:02d}.safetensors" for i in range(4))


def test_a_registered_model_loads_by_its_id_from_a_folder_or_a_url(sharded, url, tiny_llama, tmp_path):
    expected = logits(loaded(tiny_llama))
    for base in (sharded, url):
        register(tmp_path, base, NAMES)
        with load_from_registry("tiny", initial_shards=1, home=tmp_path) as loader:
            assert torch.equal(logits(loader.model), expected)
            loader.wait()


def test_a_mirror_is_taken_where_the_server_does_not_answer(sharded, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr("pressoir.sources.http_ranges.BACKOFF_S", 0.001)
    register(tmp_path, "http://127.0.0.1:9", NAMES)
    with pytest.raises(SourceError, match="refused"):
        load_from_registry("tiny", home=tmp_path)
    register(tmp_path, "http://127.0.0.1:9", NAMES, mirrors=(str(sharded),))
    with load_from_registry("tiny", home=tmp_path) as loader:
        assert torch.equal(logits(loader.model), logits(loaded(tiny_llama)))


def test_an_unknown_id_suggests_the_nearest(sharded, tmp_path):
    register(tmp_path, sharded, NAMES)
    with pytest.raises(RegistryError, match="did you mean 'tiny'"):
        load_from_registry("tinny", home=tmp_path)


def test_other_shards_than_were_registered_are_refused(sharded, tmp_path):
    register(tmp_path, sharded, NAMES[:3])
    with pytest.raises(ShardError, match="names 3 shards of 'tiny'"):
        load_from_registry("tiny", home=tmp_path)
