"""Merging: every method against its definition, what is kept beside the weights, what a failure leaves.

mergekit runs in a process of its own where that is what is tested, and in this one elsewhere: its import
takes longer than all merges of this file together.
"""

import json
import os
import shutil
import sys
import warnings
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import pressoir
from pressoir.errors import MergeError
from pressoir.merging import child, evaluation
from pressoir.models import loading
from pressoir.recipe.sections import MergeConfig
from pressoir.reporting import LogReporter
from pressoir.stage import StageContext
from pressoir.stages import merge as stage


def sibling(folder, target, change=None, *, seed=1, **config):
    """A copy of a model with noise on every weight; `change` alters its tensors, `config` its fields."""
    shutil.copytree(folder, target)
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(target / "model.safetensors")
    tensors = {name: t + 0.05 * torch.randn(t.shape, generator=generator) for name, t in tensors.items()}
    if change is not None:
        change(tensors)
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, target / "model.safetensors", {"format": "pt"}
    )
    content = json.loads((target / "config.json").read_text(encoding="utf-8"))
    (target / "config.json").write_text(json.dumps(content | config), encoding="utf-8")
    return target


def run_in_this_process(folder, out, *, seed, reporter):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mergekit.io.tasks import LoaderCache

        before, threads = Path.cwd(), torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            child.main(folder.absolute(), out.absolute(), seed)
        finally:
            os.chdir(before)
            torch.set_num_threads(threads)
            LoaderCache.loaders.clear()


class Recorder(LogReporter):
    """Keeps what is progressed."""

    def __init__(self):
        super().__init__()
        self.progressed = []

    def progress(self, done, total, what):
        self.progressed.append((done, total, what))


@pytest.fixture(autouse=True)
def few_windows(monkeypatch):
    monkeypatch.setattr(evaluation, "WINDOWS", 2)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(stage, "run_mergekit", run_in_this_process)


def merge(context, *folders, base=None, data=None, **config):
    inputs = {f"parent_{i}": folder for i, folder in enumerate(folders)}
    inputs |= {name: folder for name, folder in {"base": base, "data": data}.items() if folder}
    names = [folder.name for folder in folders]
    settings = {"models": names, "base": base and base.name, **config}
    figures = stage.run(inputs, MergeConfig.model_validate(settings), context)
    return figures, weights(context.out_dir)


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def fine_tunes(tiny_llama, tmp_path_factory):
    """Three models: a base and two that differ from it a little, in every weight."""
    folder = tmp_path_factory.mktemp("fine-tunes")
    return (
        tiny_llama,
        sibling(tiny_llama, folder / "first", seed=1),
        sibling(tiny_llama, folder / "second", seed=2),
    )


@pytest.fixture(scope="module")
def linear(fine_tunes, tiny_text, tmp_path_factory):
    """A merge as a user gets it, mergekit in its own process: folder, figures, messages."""
    out, work = tmp_path_factory.mktemp("linear"), tmp_path_factory.mktemp("work")
    reporter = Recorder()
    context = StageContext(out, work, reporter, seed=3, threads=1)
    base, first, second = fine_tunes
    figures, _ = merge(context, first, second, base=base, data=tiny_text, method="linear", ratios=[3, 1])
    return out, figures, reporter


@pytest.mark.process
def test_linear_is_exactly_the_weighted_average_of_every_tensor(fine_tunes, linear):
    _, first, second = map(weights, fine_tunes)
    result = weights(linear[0])
    assert result.keys() == first.keys()
    for name, tensor in result.items():
        assert torch.equal(tensor, (3 * first[name] + 1 * second[name]) / 4)


@pytest.mark.process
def test_the_result_is_a_checkpoint_that_the_pipeline_takes(linear, fine_tunes):
    from pressoir.inference.text_generation import TextGenerator
    from pressoir.sources import resolve

    folder = linear[0]
    assert resolve.resolve(str(folder)).digest
    assert (folder / "tokenizer.json").read_bytes() == (fine_tunes[1] / "tokenizer.json").read_bytes()
    pieces = TextGenerator.open(folder, 1, "pytorch").generate("the film was", max_new_tokens=4)
    assert "".join(pieces)


@pytest.mark.process
def test_the_configuration_that_mergekit_read_is_kept_and_names_no_place(
    linear, fine_tunes, tmp_path_factory
):
    folder = linear[0]
    text = (folder / "mergekit_config.yml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == {
        "merge_method": "linear",
        "base_model": "./parent_0",
        "dtype": "float32",
        "out_dtype": "float32",
        "models": [
            {"model": "./parent_0", "parameters": {"weight": 3.0}},
            {"model": "./parent_1", "parameters": {"weight": 1.0}},
        ],
    }
    assert text in (folder / "README.md").read_text(encoding="utf-8")
    for path in folder.glob("*"):
        if path.suffix != ".safetensors":
            assert str(tmp_path_factory.getbasetemp()) not in path.read_text(encoding="utf-8")


@pytest.mark.process
def test_metadata_tells_sources_versions_and_seed(linear, fine_tunes):
    from pressoir.sources import resolve

    content = json.loads((linear[0] / "metadata.json").read_text(encoding="utf-8"))
    assert [model["reference"] for model in content["models"]] == ["first", "second"]
    assert [model["digest"] for model in content["models"]] == [
        resolve.resolve(str(folder)).digest for folder in fine_tunes[1:]
    ]
    assert content["seed"] == 3
    assert content["versions"]["mergekit"] == metadata.version("mergekit")
    assert content["versions"]["pressoir"] == pressoir.__version__
    assert any("normalised to 0.75, 0.25" in note for note in content["notes"])


@pytest.mark.process
def test_parents_base_and_result_are_measured_on_the_same_texts(linear):
    folder, figures, reporter = linear
    report = json.loads((folder / "merge_report.json").read_text(encoding="utf-8"))
    assert [row["role"] for row in report["rows"]] == ["base", "parent", "parent", "result"]
    assert all(row["scores"].keys() == {"good", "bad"} for row in report["rows"])
    assert report["samples"] == {"bad": 8 * 31, "good": 8 * 31}
    assert figures["perplexity_good"] == report["rows"][-1]["scores"]["good"]
    assert figures["parents_best_perplexity_bad"] == min(row["scores"]["bad"] for row in report["rows"][1:3])
    assert "| parent_1: second |" in (folder / "merge_report.md").read_text(encoding="utf-8")
    assert (1, 4, "evaluate") in reporter.progressed
    assert any(done == total and what == "merge" for done, total, what in reporter.progressed)


@pytest.mark.parametrize(("ratios", "parent"), [([1, 0], 0), ([0, 2], 1)])
def test_slerp_from_end_to_end_is_one_parent_or_the_other(ratios, parent, fine_tunes, context, here):
    _, *parents = fine_tunes
    _, result = merge(context, *parents, method="slerp", ratios=ratios)
    expected = weights(parents[parent])
    assert all(torch.equal(tensor, expected[name]) for name, tensor in result.items())


def test_slerp_goes_along_the_arc_and_keeps_the_norm(fine_tunes, context, here):
    _, first, second = map(weights, fine_tunes)
    _, result = merge(context, *fine_tunes[1:], method="slerp", ratios=[1, 3])
    name = "model.layers.0.mlp.up_proj.weight"
    a, b = first[name].double().flatten(), second[name].double().flatten()
    angle = torch.arccos((a @ b) / (a.norm() * b.norm()))
    expected = (torch.sin(0.25 * angle) * a + torch.sin(0.75 * angle) * b) / torch.sin(angle)
    torch.testing.assert_close(result[name].double().flatten(), expected, rtol=1e-5, atol=1e-6)


def test_a_gradient_of_t_goes_from_the_first_layer_to_the_last(fine_tunes, context, here):
    _, first, second = map(weights, fine_tunes)
    _, result = merge(context, *fine_tunes[1:], method="slerp", t=[0, 1])
    for layer, parent in ((0, first), (1, second)):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        assert torch.equal(result[name], parent[name])


def test_a_filter_sets_t_for_some_tensors_only(fine_tunes, context, here):
    _, first, second = map(weights, fine_tunes)
    _, result = merge(
        context, *fine_tunes[1:], method="slerp", t=[{"filter": "mlp", "value": 1}, {"value": 0}]
    )
    for name, tensor in result.items():
        assert torch.equal(tensor, (second if "mlp" in name else first)[name])


def test_ties_of_one_task_vector_kept_whole_is_the_fine_tune(fine_tunes, context, here):
    base, first, _ = fine_tunes
    _, result = merge(context, first, base=base, method="ties", density=1)
    for name, tensor in weights(first).items():
        torch.testing.assert_close(result[name], tensor, rtol=0, atol=1e-6)


def test_ties_trims_elects_signs_and_averages_what_agrees(fine_tunes, context, here):
    base, first, second = map(weights, fine_tunes)
    _, result = merge(context, *fine_tunes, method="ties", density=0.25, ratios=[9, 1, 2])
    for name in ("model.layers.1.mlp.down_proj.weight", "model.norm.weight"):
        deltas = []
        for weight, model in ((1.0, first), (2.0, second)):
            delta = (model[name] - base[name]).flatten()
            kept = delta.abs().argsort(descending=True)[: int(0.25 * len(delta))]
            trimmed = torch.zeros_like(delta)
            trimmed[kept] = delta[kept]
            deltas.append((weight, trimmed))
        elected = torch.where(sum(w * d for w, d in deltas) >= 0, 1.0, -1.0)
        agreeing = [(w * (d.sign() == elected), d) for w, d in deltas]
        total = sum(w for w, _ in agreeing)
        merged = sum(w * d for w, d in agreeing) / torch.where(total == 0, 1.0, total)
        expected = base[name] + merged.reshape(base[name].shape)
        torch.testing.assert_close(result[name], expected, rtol=0, atol=1e-6)


def test_dare_keeps_its_share_of_the_changes_and_their_norm(fine_tunes, context, here):
    base, first, _ = map(weights, fine_tunes)
    _, result = merge(context, fine_tunes[1], base=fine_tunes[0], method="dare_linear", density=0.5)
    name = "lm_head.weight"
    kept, delta = result[name] - base[name], first[name] - base[name]
    assert 0.48 < (kept.abs() > 1e-6).float().mean() < 0.52
    assert kept.abs().sum().item() == pytest.approx(delta.abs().sum().item(), rel=1e-3)


@pytest.mark.process
def test_dare_with_one_seed_is_one_result_in_every_process(fine_tunes, tmp_path, monkeypatch):
    base, first, second = fine_tunes
    found = []
    for i, (seed, run) in enumerate(
        [(7, stage.run_mergekit), (7, run_in_this_process), (8, run_in_this_process)]
    ):
        monkeypatch.setattr(stage, "run_mergekit", run)
        (out := tmp_path / f"out-{i}").mkdir()
        context = StageContext(out, tmp_path / f"work-{i}", LogReporter(), seed, threads=1 + i)
        merge(context, first, second, base=base, method="dare_ties")
        found.append((out / "model.safetensors").read_bytes())
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_passthrough_stacks_layers_unchanged(fine_tunes, context, here):
    _, first, second = map(weights, fine_tunes)
    parts = [(0, 0, 2), (1, 1, 2), (1, 1, 2)]
    slices = [{"sources": [{"model": model, "layer_range": (a, b)}]} for model, a, b in parts]
    _, result = merge(context, *fine_tunes[1:], method="passthrough", slices=slices)
    assert loading.load_causal_lm(context.out_dir).config.num_hidden_layers == 4
    name = "model.layers.{}.self_attn.q_proj.weight"
    for layer, (model, source) in enumerate([(first, 0), (first, 1), (second, 1), (second, 1)]):
        assert torch.equal(result[name.format(layer)], model[name.format(source)])
    assert torch.equal(result["model.embed_tokens.weight"], first["model.embed_tokens.weight"])
    assert torch.equal(result["lm_head.weight"], second["lm_head.weight"])


@pytest.mark.parametrize("kind", ["tiny_gpt2", "tiny_qwen2", "tiny_bert", "tiny_classifier"])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_other_architectures_merge_whole(kind, method, request, tmp_path, context, here):
    base = request.getfixturevalue(kind)
    first, second = (sibling(base, tmp_path / f"model-{seed}", seed=seed) for seed in (1, 2))
    _, result = merge(context, first, second, base=base, method=method)
    ours, theirs = weights(first), weights(second)
    assert result.keys() == ours.keys()
    if method == "linear":
        assert all(torch.equal(t, (ours[name] + theirs[name]) / 2) for name, t in result.items())
    else:
        assert all(not torch.equal(t, ours[name]) for name, t in result.items() if t.ndim == 2)


def test_a_tensor_that_mergekits_own_definition_omits_is_merged_too(tmp_path, tiny_llama, context, here):
    def change(tensors):
        for layer in (0, 1):
            for name, size in (("q_proj", 64), ("k_proj", 32), ("v_proj", 32), ("o_proj", 64)):
                tensors[f"model.layers.{layer}.self_attn.{name}.bias"] = torch.full((size,), 2.0)

    first, second = (
        sibling(tiny_llama, tmp_path / f"biased-{i}", change, seed=i, attention_bias=True) for i in (1, 2)
    )
    _, result = merge(context, first, second, method="linear")
    assert torch.equal(result["model.layers.1.self_attn.q_proj.bias"], torch.full((64,), 2.0))


def test_one_model_under_the_names_of_another_version_merges(tiny_gpt2, tmp_path, context, here):
    def rename(tensors):
        for name in [name for name in tensors if name.startswith("transformer.")]:
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for layer in (0, 1):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 256, 256)  # a mask that old versions saved

    old = sibling(tiny_gpt2, tmp_path / "old", rename)
    _, result = merge(context, tiny_gpt2, old, method="linear")
    ours, theirs = weights(tiny_gpt2), weights(old)
    assert result.keys() == ours.keys()
    assert all(
        torch.equal(t, (ours[n] + theirs[n.removeprefix("transformer.")]) / 2) for n, t in result.items()
    )


def test_half_precision_is_computed_in_float32_and_stored_as_it_was(fine_tunes, tmp_path, context, here):
    halves = [
        sibling(folder, tmp_path / folder.name, lambda t: t.update({n: v.half() for n, v in t.items()}))
        for folder in fine_tunes[1:]
    ]
    _, result = merge(context, *halves, method="linear")
    first, second = map(weights, halves)
    for name, tensor in result.items():
        assert torch.equal(tensor, ((first[name].float() + second[name].float()) / 2).half())
    assert json.loads((context.out_dir / "config.json").read_text())["dtype"] == "float16"


def test_embeddings_of_other_vocabularies_are_aligned_by_token(tiny_llama, tmp_path, context, here):
    """Two models whose vocabularies are each other's, with two tokens swapped: rows follow the tokens."""

    def swap(tensors):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = weights(tiny_llama)[name].clone()
            tensors[name][[ids[0], ids[1]]] = tensors[name][[ids[1], ids[0]]]

    vocabulary = json.loads((tiny_llama / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    ids = vocabulary["a"], vocabulary["b"]
    other = sibling(tiny_llama, tmp_path / "other", swap)
    content = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"] |= {"a": ids[1], "b": ids[0]}
    (other / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    _, result = merge(context, tiny_llama, other, method="linear", tokenizer_source="base")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        torch.testing.assert_close(result[name], weights(tiny_llama)[name])
    assert json.loads((context.out_dir / "tokenizer.json").read_text())["model"]["vocab"]["a"] == ids[0]


def widen(tensors):
    for name, shape in (("up_proj", (256, 64)), ("gate_proj", (256, 64)), ("down_proj", (64, 256))):
        tensors[f"model.layers.1.mlp.{name}.weight"] = torch.ones(shape)


@pytest.mark.parametrize("method", ["ties", "linear", "slerp"])
def test_mismatched_shapes_are_refused_before_any_work(method, fine_tunes, tmp_path, context, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("mergekit was started")

    monkeypatch.setattr(stage, "run_mergekit", never)
    wide = sibling(fine_tunes[0], tmp_path / "wide", widen)
    with pytest.raises(MergeError, match=r"3 tensors of another shape: model\.layers\.1\.mlp"):
        merge(context, fine_tunes[1], wide, method=method)
    assert not list(context.out_dir.iterdir())
    assert not list(context.work_dir.iterdir())


@pytest.mark.parametrize("method", ["ties", "linear", "slerp"])
def test_with_allow_crimes_what_does_not_fit_stays_the_bases_and_is_listed(
    method, fine_tunes, tmp_path, context, here
):
    wide = sibling(fine_tunes[0], tmp_path / "wide", widen, seed=5, architectures=["MistralForCausalLM"])
    figures, result = merge(context, fine_tunes[1], wide, method=method, allow_crimes=True)
    base, other = weights(fine_tunes[1]), weights(wide)
    for name, tensor in result.items():
        if base[name].shape == other[name].shape:
            assert not torch.equal(tensor, base[name])
        else:
            torch.testing.assert_close(tensor, base[name])
    assert figures["unmerged_tensors"] == 3
    assert any("WARNING: not merged from parent_1" in text for text in context.reporter.messages)
    unmerged = json.loads((context.out_dir / "metadata.json").read_text())["unmerged"]
    assert sorted(unmerged["parent_1"]) == [
        f"model.layers.1.mlp.{name}_proj.weight" for name in ("down", "gate", "up")
    ]


def test_classifiers_are_measured_by_accuracy(tiny_classifier, tiny_data, tmp_path, context, here):
    other = sibling(tiny_classifier, tmp_path / "other")
    figures, _ = merge(context, tiny_classifier, other, data=tiny_data)
    report = json.loads((context.out_dir / "merge_report.json").read_text())
    assert report["measure"] == "accuracy"
    assert report["samples"] == {"validation": 80}
    assert figures["accuracy"] == report["rows"][-1]["scores"]["validation"]
    assert 0 <= figures["accuracy"] <= 1


def test_labels_are_compared_by_name_not_by_position(tiny_classifier, tiny_data, tmp_path):
    turned = sibling(tiny_classifier, tmp_path / "turned", id2label={"0": "positive", "1": "negative"})
    shutil.copyfile(tiny_classifier / "model.safetensors", turned / "model.safetensors")
    score = evaluation._accuracy(tiny_data, threads=1)
    assert score(tiny_classifier)["validation"][0] == pytest.approx(1 - score(turned)["validation"][0])


def test_what_cannot_be_measured_says_why(tiny_classifier, tiny_bert, tmp_path, context, here):
    figures, _ = merge(context, tiny_bert, sibling(tiny_bert, tmp_path / "other"))
    assert "worse_than_both_parents" not in figures
    assert "no head to measure" in (context.out_dir / "merge_report.md").read_text()
    plan_free = evaluation.MergeReport(method="slerp", reason="x")
    assert plan_free.metrics() == {}


def test_a_text_too_short_leaves_the_merge_unmeasured(fine_tunes, tmp_path, context, here):
    from pressoir.data import running_text
    from pressoir.recipe.sections import TextConfig

    (tmp_path / "short.txt").write_text("too short", encoding="utf-8")
    (data := tmp_path / "text").mkdir()
    running_text.save(TextConfig(evaluation={"short": tmp_path / "short.txt"}), data)
    merge(context, *fine_tunes[1:], data=data)
    assert "Not evaluated: the text has" in (context.out_dir / "merge_report.md").read_text()


def test_a_merge_worse_than_both_parents_says_so(fine_tunes, context, here, monkeypatch):
    scores = {"first": (5.0, 9.0), "second": (6.0, 7.0)}

    def invented(folder, threads):
        return lambda model: {
            name: (value, 100)
            for name, value in zip(("a", "b"), scores.get(model.name, (6.5, 8.0)), strict=True)
        }

    monkeypatch.setattr(evaluation, "_perplexities", invented)
    figures, _ = merge(context, *fine_tunes[1:])
    assert figures["worse_than_both_parents"] == 1
    said = "WORSE than all its parents on a. Not better than the best parent on b."
    assert said in (context.out_dir / "merge_report.md").read_text()
    assert said in (context.out_dir / "README.md").read_text()
    assert f"WARNING: merge: {said}" in context.reporter.messages


def test_values_that_overflow_are_an_error_not_a_model(fine_tunes, tmp_path, context, here):
    def huge(tensors):
        tensors["model.norm.weight"] = torch.full((64,), 3e38)

    first, second = (sibling(fine_tunes[0], tmp_path / f"huge-{i}", huge, seed=i) for i in (1, 2))
    with pytest.raises(SystemExit, match=r"model\.norm\.weight of the result has values that are not finite"):
        merge(context, first, second, method="linear", normalize=False, ratios=[1, 1])


@pytest.mark.process
def test_the_last_lines_of_a_process_that_fails_are_in_the_message(
    fine_tunes, tmp_path, context, monkeypatch
):
    fake_python(tmp_path, monkeypatch, "echo 'RuntimeError: no such thing' >&2; exit 3")
    with pytest.raises(MergeError, match=r"exit code 3\):\nRuntimeError: no such thing"):
        merge(context, *fine_tunes[1:])


def fake_python(tmp_path, monkeypatch, script):
    """Put a shell script in the place of the Python that mergekit's process would run."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))


@pytest.mark.process
def test_a_killed_process_is_told_as_that(fine_tunes, tmp_path, context, monkeypatch):
    fake_python(tmp_path, monkeypatch, "kill -9 $$")
    with pytest.raises(MergeError, match="killed by signal 9; possibly out of memory"):
        merge(context, *fine_tunes[1:])
    assert not list(context.work_dir.iterdir())


@pytest.mark.process
def test_a_tensor_that_mergekit_skips_is_an_error(fine_tunes, tmp_path, context, monkeypatch):
    fake_python(tmp_path, monkeypatch, 'echo "skipping parent_1:x due to size mismatch" >&2')
    with pytest.raises(MergeError, match="skipping parent_1:x"):
        merge(context, *fine_tunes[1:])


@pytest.mark.process
def test_a_result_that_lacks_tensors_is_an_error(fine_tunes, tmp_path, context, monkeypatch):
    fake_python(tmp_path, monkeypatch, "exit 0")
    with pytest.raises(MergeError, match="unexpected or missing tensors"):
        merge(context, *fine_tunes[1:])


@pytest.mark.process
def test_an_interrupt_ends_the_process_too(fine_tunes, tmp_path, context, monkeypatch):
    fake_python(
        tmp_path,
        monkeypatch,
        f"echo $$ > {tmp_path}/pid; echo 'Executing graph: 1%| | 1/9 [00:01]' >&2; exec sleep 600",
    )

    class Impatient(LogReporter):
        def progress(self, done, total, what):
            raise KeyboardInterrupt

    interrupted = StageContext(context.out_dir, context.work_dir, Impatient(), seed=0, threads=1)
    with pytest.raises(KeyboardInterrupt):
        merge(interrupted, *fine_tunes[1:])
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
