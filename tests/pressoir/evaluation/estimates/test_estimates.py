"""What a child will take: exact for weights, never less for more work, kept by all that decides it."""

import json
import logging
import math
import shutil
import subprocess
import sys

import fake_models
import pytest

from pressoir.errors import SourceError
from pressoir.evaluation import datasets
from pressoir.evaluation.config import DataSetConfig
from pressoir.evaluation.estimates import estimate, footprint, formula, sample_memory, speech_footprint
from pressoir.evaluation.estimates.footprint import Weights, Work
from pressoir.evaluation.jobs import Job, Remote
from pressoir.extensions.task import task
from pressoir.recipe.sections import DataConfig

MB = 10**6
_ITEM = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1, "I64": 8}
BERT = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}
WHISPER = {
    "architectures": ["WhisperForConditionalGeneration"],
    "d_model": 8,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "max_source_positions": 50,
    "num_mel_bins": 4,
    "vocab_size": 20,
    "max_length": 9,
}
CTC = {
    "architectures": ["Wav2Vec2ForCTC"],
    "hidden_size": 8,
    "conv_dim": [4, 4],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "num_conv_pos_embeddings": 2,
    "num_conv_pos_embedding_groups": 2,
}


def write_tensors(path, tensors, cut=None):
    """A safetensors file of zeros by name: (type, shape); only its first `cut` bytes if that is given."""
    header, end = {}, 0
    for name, (kind, shape) in tensors.items():
        start, end = end, end + _ITEM[kind] * math.prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(end)
    path.write_bytes(content[:cut])
    return len(text) + 8


def describe(folder, layers, **fields):
    (folder / "quantization.json").write_text(json.dumps({"layers": layers, **fields}))


@pytest.fixture
def make(tmp_path):
    """`make(task, config, lengths)`: a job and its data, over a model of 1 MB of weights."""

    def build(task="feature-extraction", config=BERT, lengths=(10, 40), **fields):
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        if not any(folder.glob("model*")):
            write_tensors(folder / "model.safetensors", {"w": ("F32", (250, 1000))})
        data = {"task": task}
        if task == "feature-extraction":
            data["pairs"] = tmp_path / "pairs.tsv"
            data["pairs"].write_text("".join(f"{'x' * length}\ty\t0\n" for length in lengths))
        elif task == "translation":
            for name in ("source", "reference"):
                data[name] = tmp_path / f"{name}.txt"
                data[name].write_text("".join(f"{'x' * length}\n" for length in lengths))
        elif task == "causal-lm":
            data["text"] = tmp_path / "text.txt"
            data["text"].write_text("x" * max(lengths))
        elif task == "text-classification":
            for split, letter in {"train": "y", "test": "x"}.items():
                rows = "".join(f"{letter * n}\t{n % 2}\n" for n in (3, 4, *lengths))
                (tmp_path / f"{split}.tsv").write_text(f"text\tlabel\n{rows}")
            data["classification"] = DataConfig(
                source="files", train=tmp_path / "train.tsv", test=tmp_path / "test.tsv"
            )
        else:
            import numpy as np
            import soundfile

            for index, length in enumerate(lengths):
                soundfile.write(tmp_path / f"{index}.wav", np.zeros(length, dtype="float32"), 16_000)
            data["manifest"] = tmp_path / "manifest.json"
            entries = [{"audio": f"{index}.wav", "text": "one"} for index in range(len(lengths))]
            data["manifest"].write_text(json.dumps(entries))
        given = {"model": "m", "folder": folder, "key": "k", "journal": tmp_path / "j", "batch_size": 4}
        job = Job.model_validate({**given, "task": task, "data": DataSetConfig(**data), **fields})
        return job, datasets.load(job.data, job.samples)

    return build


class TestWeightsInPyTorch:
    def test_float32_is_mapped_and_takes_what_the_file_holds(self, tmp_path):
        write_tensors(tmp_path / "model.safetensors", {"a": ("F32", (10, 4)), "b": ("F32", (4,))})
        assert footprint.weights(tmp_path, "pytorch", {}) == Weights(176, 0)

    def test_half_precision_becomes_float32_while_its_file_is_still_there(self, tmp_path):
        write_tensors(tmp_path / "model.safetensors", {"a": ("F16", (10, 4)), "b": ("BF16", (4,))})
        assert footprint.weights(tmp_path, "pytorch", {}) == Weights(176, 88)

    def test_whole_numbers_stay_what_they_are(self, tmp_path):
        write_tensors(tmp_path / "model.safetensors", {"ids": ("I64", (1, 7)), "a": ("F32", (2,))})
        assert footprint.weights(tmp_path, "pytorch", {}) == Weights(64, 0)

    def test_packed_layers_are_dequantised_one_at_a_time(self, tmp_path):
        packed = {
            "big.weight": ("U8", (8, 32)),
            "big.weight_scale": ("F32", (8, 1)),
            "big.weight_zero_point": ("U8", (8, 1)),
            "small.weight": ("U8", (2, 32)),
            "norm.weight": ("F32", (64,)),
        }
        write_tensors(tmp_path / "model.safetensors", packed)
        layers = {"big": {"bits": 4, "shape": [8, 64]}, "small": {"bits": 4, "shape": [2, 64]}}
        describe(tmp_path, {**layers, "head": {"bits": 4, "shape": [8, 64], "tied_to": "big"}})
        weights = footprint.weights(tmp_path, "pytorch", {})
        assert weights == Weights(4 * (8 * 64 + 2 * 64 + 64), 4 * 8 * 64 * 3 // 2)

    def test_an_int8_encoder_is_dequantised_at_once(self, tmp_path):
        write_tensors(tmp_path / "model.safetensors", {"a.weight": ("I8", (8, 64))})
        describe(tmp_path, {"a": {"bits": 8, "shape": [8, 64]}}, activations="dynamic")
        assert footprint.weights(tmp_path, "pytorch", {}) == Weights(2048, 2048)

    def test_several_files_add_up(self, tmp_path):
        names = ["part-1.safetensors", "part-2.safetensors"]
        for name in names:
            write_tensors(tmp_path / name, {name: ("F32", (5,))})
        places = {"a": names[0], "b": names[1], "c": "../other.safetensors", "d": "missing.safetensors"}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        assert footprint.weights(tmp_path, "pytorch", {}) == Weights(40, 0)

    def test_a_file_cut_off_counts_as_the_whole_that_its_header_announces(self, tmp_path):
        path = tmp_path / "model.safetensors"
        end = write_tensors(path, {"a": ("F32", (100, 10))})
        path.write_bytes(path.read_bytes()[: end + 8])
        assert footprint.weights(tmp_path, "pytorch", {}) == Weights(4000, 0)

    @pytest.mark.parametrize(
        "content", [b"", b"\0" * 7, b"\xff" * 40, b"\x02" + b"\0" * 7 + b"[]", b"x" * 99]
    )
    def test_a_file_without_a_header_counts_as_what_it_holds(self, tmp_path, content):
        (tmp_path / "model.safetensors").write_bytes(content)
        assert footprint.weights(tmp_path, "pytorch", {}) == Weights(len(content), 0)

    def test_without_weights_there_is_nothing_to_tell(self, tmp_path):
        (tmp_path / "model.onnx").write_bytes(b"x")
        with pytest.raises(SourceError, match=r"no \*\.safetensors"):
            footprint.weights(tmp_path, "pytorch", {})


class TestWeightsInOnnxRuntime:
    def test_graphs_and_their_data_count_and_the_largest_matrix_is_copied(self, tmp_path):
        sizes = {"encoder_model.onnx": 10, "decoder_model.onnx": 20, "model.onnx.data": 50_000}
        for name, size in sizes.items():
            (tmp_path / name).write_bytes(bytes(size))
        write_tensors(tmp_path / "shard_00.safetensors", {"a": ("F32", (2500,))})
        shard = (tmp_path / "shard_00.safetensors").stat().st_size
        weights = footprint.weights(tmp_path, "onnxruntime", {"d_model": 8, "d_ff": 16, "vocab_size": 100})
        assert weights == Weights(50_030 + shard, 4 * 800)

    def test_a_copy_is_no_larger_than_the_file(self, tmp_path):
        (tmp_path / "model.onnx").write_bytes(bytes(100))
        config = {"hidden_size": 8, "vocab_size": 100}
        assert footprint.weights(tmp_path, "onnxruntime", config) == Weights(100, 100)

    def test_three_bits_become_four(self, tmp_path):
        (tmp_path / "model.onnx").write_bytes(bytes(10))
        (tmp_path / "model.onnx.data").write_bytes(bytes(5000))
        layers = {"a": {"bits": 3, "shape": [8, 64]}, "e": {"bits": 8, "shape": [100, 8]}}
        describe(tmp_path, layers)
        config = {"hidden_size": 8, "intermediate_size": 16, "vocab_size": 100}
        assert footprint.weights(tmp_path, "onnxruntime", config) == Weights(5010 + 256, 800)

    def test_a_table_that_stayed_float_is_copied_as_such(self, tmp_path):
        (tmp_path / "model.onnx").write_bytes(bytes(9000))
        describe(tmp_path, {"a": {"bits": 4, "shape": [8, 16]}})
        config = {"hidden_size": 8, "intermediate_size": 16, "vocab_size": 100}
        assert footprint.weights(tmp_path, "onnxruntime", config) == Weights(9000, 3200)

    def test_without_a_graph_there_is_nothing_to_tell(self, tmp_path):
        write_tensors(tmp_path / "model.safetensors", {"a": ("F32", (1,))})
        with pytest.raises(SourceError, match="no ONNX graph"):
            footprint.weights(tmp_path, "onnxruntime", {})


class TestWork:
    def test_a_window_of_a_language_model(self):
        config = {**BERT, "num_key_value_heads": 1}
        logits, cache, forward = 32 * 100, 2 * 3 * 4 * 32, 32 * (4 * 8 + 3 * 16)
        expected = 4 * (2 * logits + cache + forward) + 8 * 32**2
        assert footprint.causal_lm(config, 32, "pytorch") == Work(0, expected)
        attention = 6 * 32 * 8 + 2 * 2 * 32**2
        expected = 4 * (3 * logits + cache + 2 * attention)
        assert footprint.causal_lm(config, 32, "onnxruntime") == Work(0, expected)

    def test_gpt2_names_its_sizes_differently(self):
        named = {"n_embd": 8, "n_inner": None, "n_head": 2, "n_layer": 3, "vocab_size": 100}
        config = {**BERT, "intermediate_size": 32}
        assert footprint.causal_lm(named, 32, "pytorch") == footprint.causal_lm(config, 32, "pytorch")

    def test_an_encoder(self):
        forward, states = 10 * (4 * 8 + 3 * 16), 2 * 10 * 8
        assert footprint.encoder(BERT, 10, "pytorch", True) == Work(0, 4 * (forward + states) + 8 * 100)
        expected = Work(0, 4 * (2 * forward + states))
        assert footprint.encoder(BERT, 10, "onnxruntime", True) == expected
        states = 2 * 100 * 8
        expected = Work(0, 4 * (2 * (6 * 100 * 8 + 2 * 100**2) + states))
        assert footprint.encoder(BERT, 100, "onnxruntime", True) == expected
        expected = Work(0, 4 * (2 * (6 * 100 * 8 + 2 * 2 * 100**2) + states))
        assert footprint.encoder(BERT, 100, "onnxruntime", False) == expected

    def test_a_window_of_whisper(self):
        layer = {**WHISPER, "decoder_attention_heads": 2}
        features, convolved = 2 * 50 * 4, 2 * 50 * 8 * 3
        reading = max(convolved, 50 * (4 * 8 + 3 * 16))
        decoder = 2 * 2 * 8 * 50 + 2 * 2 * 2 * 8 * 9 + 50 * 8 + 4 * 20
        found = footprint.whisper(layer, 9, "pytorch")
        assert found == Work(100 * footprint.MEL_FRAME, 4 * (2 * features + reading + decoder))

    def test_a_sound_is_run_alone_and_its_first_convolution_is_the_widest(self):
        frames = (16_000 - 10) // 5 + 1
        positions = 8 * 8 // 2 * 2
        assert footprint.ctc(CTC, 16_000, "pytorch") == Work(
            max(
                3 * 4 * 4 * frames,
                4 * ((frames - 3) // 2 + 1) * (4 * 8 + 3 * 32),
            )
            + 3 * 4 * positions,
            0,
        )

    def test_beams_multiply_the_decoder_in_pytorch_and_go_one_text_at_a_time_in_onnx_runtime(self):
        one, four = (footprint.translation(BERT, 20, 30, beams, "pytorch") for beams in (1, 4))
        assert one.alone == four.alone == 0
        assert 2 * one.each < four.each
        one, four = (footprint.translation(BERT, 20, 30, beams, "onnxruntime") for beams in (1, 4))
        assert one.alone == 0
        assert four.alone > one.each > four.each


class TestEstimate:
    def test_its_parts_are_named_and_add_up(self, make):
        found = estimate.estimate(*make())
        assert found.origin == "formula"
        assert sum(found.details.values()) == found.fixed_bytes
        assert found.details["weights"] == MB
        assert found.details["process"] == formula.TORCH
        assert found.per_sample_bytes > 0

    def test_without_pytorch_the_process_is_far_smaller(self, make):
        job, data = make()
        (job.folder / "model.onnx").write_bytes(bytes(MB))
        (job.folder / "tokenizer.json").write_text("{}")
        assert estimate.estimate(job, data).details["process"] == formula.ONNX
        (job.folder / "tokenizer.json").unlink()  # then transformers makes the tokenizer
        assert estimate.estimate(job, data).details["process"] == formula.TORCH

    @pytest.mark.parametrize("runtime", ["pytorch", "onnxruntime"])
    @pytest.mark.parametrize(
        ("task", "config", "lengths", "longer"),
        [
            ("feature-extraction", BERT, (10, 40), (10, 400)),
            ("text-classification", BERT, (10, 40), (10, 400)),
            ("translation", BERT, (10, 40), (10, 400)),
            ("automatic-speech-recognition", WHISPER, (8000, 16_000), (8000, 80_000)),
            ("automatic-speech-recognition", CTC, (8000, 16_000), (8000, 80_000)),
            ("causal-lm", BERT, (10, 1000), (10, 10_000_000)),
        ],
    )
    def test_longer_samples_and_larger_batches_take_no_less(
        self, make, task, config, lengths, longer, runtime
    ):
        def found(lengths):
            job, data = make(task, config, lengths, runtime=runtime)
            (job.folder / "model.onnx").write_bytes(bytes(1000))
            return estimate.estimate(job, data)

        short, long = found(lengths), found(longer)
        peaks = [short.peak_bytes(size) for size in (1, 2, 4, 16)]
        assert peaks == sorted(peaks)
        assert long.peak_bytes(4) > short.peak_bytes(4)

    @pytest.mark.parametrize(
        ("task", "field", "values"),
        [
            ("causal-lm", "window", (16, 64, 256)),
            ("translation", "max_new_tokens", (8, 64, 256)),
            ("translation", "num_beams", (1, 2, 5)),
        ],
    )
    def test_more_to_write_takes_more(self, make, task, field, values):
        peaks = [estimate.estimate(*make(task, generation={field: value})).peak_bytes(8) for value in values]
        assert peaks[0] < peaks[1] < peaks[2]

    def test_what_cannot_be_batched_does_not_grow_with_the_batch(self, make):
        job, data = make("text-classification", lengths=(10, 2000))
        grows = estimate.estimate(job, data)
        describe(job.folder, {}, activations="dynamic")
        alone = estimate.estimate(job, data)
        assert alone.per_sample_bytes < grows.per_sample_bytes / 10
        assert alone.peak_bytes(1) >= grows.peak_bytes(1)

    def test_a_long_text_is_cut_into_tokens_before_the_model_is_there(self, make):
        found = estimate.estimate(*make("causal-lm", lengths=(20 * MB,)))
        assert found.peak_bytes(1) > sample_memory.CHARACTER * 20 * MB

    def test_tokens_are_counted_by_the_tokenizer(self, make, tiny_bert):
        job, data = make(lengths=(10,))
        object.__setattr__(data.samples[0], "input", ["the film was good and great", "x"])
        (job.folder / "tokenizer.json").write_bytes((tiny_bert / "tokenizer.json").read_bytes())
        tokens = sample_memory.tokens(job.folder, data, 512)
        assert tokens == 6 + 2 + sample_memory.SPECIAL_TOKENS

    def test_where_counting_would_take_long_half_a_token_a_character_is_assumed(self, make):
        job, data = make(lengths=(101,))
        assert sample_memory.tokens(job.folder, data, 512) == 51 + sample_memory.SPECIAL_TOKENS
        assert sample_memory.tokens(job.folder, data, 20) == 20
        assert sample_memory.bound("ab日本") == 3

    def test_texts_to_translate_count_as_far_as_the_translator_takes_them(self, tiny_t5, tmp_path):
        from pressoir.inference.translation import Translator

        folder = shutil.copytree(tiny_t5, tmp_path / "t5")
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 1024}))
        files = {name: tmp_path / name for name in ("source", "reference")}
        files["source"].write_text("the film was good " * 400 + "\n")
        files["reference"].write_text("good\n")
        given = DataSetConfig(task="translation", source_language="en", target_language="fr", **files)
        job = Job(
            model="m",
            folder=folder,
            key="k",
            journal=tmp_path / "j",
            batch_size=1,
            task=given.task,
            data=given,
        )
        data = datasets.load(given)
        [ids], _ = Translator.open(folder, 1).encode([data.samples[0].input], "en", "fr")
        assert len(ids) == 1024
        config = json.loads((folder / "config.json").read_text())
        assert sample_memory.TranslationMemory(job, data).longest(config) == len(ids)

    @pytest.mark.parametrize("content", ["", "[]", "{", '{"hidden_size": "x", "num_attention_heads": -1}'])
    def test_a_damaged_configuration_still_gives_an_estimate(self, make, content):
        job, data = make()
        (job.folder / "config.json").write_text(content)
        assert estimate.estimate(job, data).fixed_bytes > formula.TORCH + MB
        (job.folder / "config.json").unlink()
        assert estimate.estimate(job, data).fixed_bytes > formula.TORCH + MB

    @pytest.mark.parametrize("name", ["tokenizer.json", "quantization.json", "generation_config.json"])
    def test_other_damaged_files_do_no_harm(self, make, name):
        job, data = make()
        (job.folder / name).write_bytes(b"\xff{")
        assert estimate.estimate(job, data).details["weights"] == MB

    def test_a_long_sound_takes_a_chunk_of_a_ctc_model_and_its_own_samples(self, make):
        config = {**CTC, "hidden_size": 1024, "conv_dim": [512] * 2, "num_attention_heads": 16}
        short, long = (
            estimate.estimate(*make("automatic-speech-recognition", config, (seconds * 16_000,)))
            for seconds in (30, 600)
        )
        samples = 4 * 4 * 570 * 16_000
        grown = long.peak_bytes(1) - short.peak_bytes(1)
        assert samples <= grown <= 3 * samples

    @pytest.mark.parametrize("kind", task("automatic-speech-recognition").pytorch_only)
    def test_what_transformers_runs_takes_more_for_more_sound_and_is_run_alone(self, make, kind):
        head = "Wav2Vec2BertForCTC" if kind == "wav2vec2-bert" else "MoonshineForConditionalGeneration"
        config = {"architectures": [head], "model_type": kind, "hidden_size": 64, "d_model": 64}
        config |= {"vocab_size": 100, "text_config": {"hidden_size": 64, "num_hidden_layers": 2}}
        found = []
        for seconds in (5, 30, 300):
            job, data = make("automatic-speech-recognition", config, (seconds * 16_000,))
            memory = sample_memory.SpeechMemory(job, data)
            assert not memory.together("pytorch")
            found.append(memory.work("pytorch", footprint.settings(job.folder)).alone - memory.held())
        assert found[0] < found[1] == found[2]

    def test_weights_that_a_task_does_not_load_are_not_counted(self, tmp_path):
        tensors = {"shared.weight": ("F32", (1000, 100)), "vocoder.weight": ("F32", (500, 100))}
        write_tensors(tmp_path / "model.safetensors", tensors)
        assert footprint.weights(tmp_path, "pytorch", {}).resident == 600_000
        unused = speech_footprint.NOT_FOR_SOUND
        assert footprint.weights(tmp_path, "pytorch", {}, unused).resident == 400_000

    def test_a_damaged_sound_counts_by_its_size(self, make, tmp_path):
        job, _ = make("automatic-speech-recognition", CTC, (16_000,))
        (tmp_path / "0.wav").write_bytes(b"RIFF" + bytes(32_000))
        assert sample_memory.longest_s(datasets.load(job.data)) == pytest.approx(32_004 / 16_000)

    def test_a_model_on_a_server_takes_little_here(self, make):
        job, data = make(remote=Remote(url="http://127.0.0.1:1", model="m"), folder="/nowhere")
        found = estimate.estimate(job, data)
        assert found.peak_bytes(16) < 200 * MB
        assert sum(found.details.values()) == found.fixed_bytes


class TestForRun:
    @pytest.fixture
    def find(self, make, tmp_path):
        job, data = make()

        def call(probe=False, memory_gb=None, **fields):
            given = job.model_copy(update=fields)
            return estimate.for_run(given, data, memory_gb=memory_gb, probe=probe, home=tmp_path / "home")

        call.kept = lambda: sorted((tmp_path / "home" / "estimates").glob("*"))
        return call

    def test_the_configuration_comes_first(self, find):
        found = find(memory_gb=1.5, folder="/nowhere", probe=True)
        assert (found.origin, found.peak_bytes(1), found.peak_bytes(64)) == ("config", 1500 * MB, 1500 * MB)
        assert not find.kept()

    def test_what_was_found_is_kept_and_taken_under_any_name(self, find, monkeypatch):
        first = find()
        monkeypatch.setattr(estimate, "estimate", None)
        assert find() == first
        assert find(model="other") == first.model_copy(update={"model": "other"})
        assert len(find.kept()) == 1

    @pytest.mark.parametrize("fields", [{"key": "other"}, {"samples": 1}])
    def test_what_decides_it_makes_another(self, find, fields):
        find()
        find(**fields)
        assert len(find.kept()) == 2

    def test_another_version_of_a_library_makes_another(self, find, monkeypatch):
        find()
        monkeypatch.setattr(estimate, "version", lambda name: "0.0")
        find()
        assert len(find.kept()) == 2

    @pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"model": "m", "fixed_bytes": "x"}'])
    def test_a_damaged_file_is_written_again(self, find, content):
        first = find()
        (path,) = find.kept()
        path.write_bytes(content)
        assert find() == first
        assert find.kept() == [path]
        assert json.loads(path.read_text())["fixed_bytes"] == first.fixed_bytes

    def test_where_nothing_can_be_kept_the_estimate_still_comes(self, find, tmp_path, caplog):
        (tmp_path / "home").write_text("a file")
        with caplog.at_level(logging.WARNING, "pressoir"):
            assert find().origin == "formula"
        assert "could not be written" in caplog.text


class TestProbe:
    @pytest.fixture
    def run(self, tmp_path):
        """`run(**behaviour)`: a fake model's run, whose folder has weights, too."""

        def build(**behaviour):
            made = fake_models.make_run(tmp_path, {"a": behaviour}, samples=20, batch_size=4)
            write_tensors(tmp_path / "a" / "model.safetensors", {"w": ("F32", (10,))})
            job = made.jobs["a"]
            return made, job, datasets.load(job.data)

        return build

    @pytest.mark.process
    def test_two_batch_sizes_are_measured_on_the_longest_samples_and_fitted(self, run):
        made, job, data = run(bytes=30 * MB)
        found = estimate.probe(job, data, fake_models.COMMAND)
        assert found.origin == "probe"
        assert 0.9 < found.per_sample_bytes / (1 + formula.MARGIN) / (30 * MB) < 1.1
        assert 30 * MB < found.fixed_bytes < 300 * MB
        assert sum(found.details.values()) == found.fixed_bytes
        assert made.calls("a") == [*"01", *"01234567"]
        assert not made.journal.exists()

    @pytest.mark.process
    def test_a_model_that_takes_one_at_a_time_does_not_grow(self, run):
        _, job, data = run(together=False)
        assert estimate.probe(job, data, fake_models.COMMAND).per_sample_bytes == 0

    @pytest.mark.process
    def test_where_a_child_fails_the_formula_is_taken_and_the_log_says_why(
        self, run, tmp_path, caplog, monkeypatch
    ):
        _, job, data = run(source_error="no such weights")
        monkeypatch.setattr(estimate, "COMMAND", fake_models.COMMAND)
        with caplog.at_level(logging.WARNING, "pressoir"):
            found = estimate.for_run(job, data, memory_gb=None, probe=True, home=tmp_path / "home")
        assert found == estimate.estimate(job, data)
        assert "no such weights" in caplog.text
        assert not (tmp_path / "home").exists(), "it is tried again the next time"

    def test_a_model_on_a_server_is_not_probed(self, run):
        _, job, data = run()
        job = job.model_copy(update={"remote": Remote(url="http://127.0.0.1:1", model="m")})
        assert estimate.probe(job, data, ("false",)).origin == "formula"


@pytest.mark.process
def test_estimating_loads_no_heavy_library(tiny_classifier, tiny_data, tmp_path):
    program = """
import sys
from pathlib import Path
from pressoir.evaluation import datasets
from pressoir.evaluation.estimates import estimate
from pressoir.evaluation.config import DataSetConfig
from pressoir.evaluation.jobs import Job
from pressoir.recipe.sections import DataConfig
folder, data, home = map(Path, sys.argv[1:])
source = DataConfig(source="files", train=data / "train.tsv", test=data / "test.tsv")
data = DataSetConfig(task="text-classification", classification=source)
job = Job(model="m", folder=folder, task=data.task, data=data, key="k", journal=home / "j", batch_size=4)
found = estimate.for_run(job, datasets.load(data), memory_gb=None, probe=False, home=home)
heavy = {"torch", "transformers", "onnxruntime", "onnx", "datasets", "pandas"} & sys.modules.keys()
print(found.origin, sorted(heavy))
"""
    command = [sys.executable, "-c", program, str(tiny_classifier), str(tiny_data), str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "formula []"
