"""A tiny random BERT and a few sentences, made once: most tests run on them in milliseconds."""

import dataclasses
import gc
import importlib
import os
import random
import shutil
import sys
from pathlib import Path

os.environ.setdefault("PRESSOIR_SIDE_BY_SIDE", "1")  # tests of several workers run side by side
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")

import pytest

from pressoir.extensions import loader
from pressoir.stage import StageContext, load_stage

GOOD = "good great lovely fine superb charming warm bright".split()
BAD = "bad awful dull poor weak bland cold grim".split()
NOUNS = "film book meal hotel phone chair song tour game soup".split()


class RecordingReporter:
    """Keeps everything a stage reports."""

    def __init__(self):
        self.progressed, self.metrics, self.messages = [], [], []

    def progress(self, done, total, what):
        self.progressed.append((done, total, what))

    def metric(self, name, value, step=None):
        self.metrics.append((name, value, step))

    def message(self, text):
        self.messages.append(text)


def sentences(count, seed=0):
    """Random (text, label) pairs that a tiny model can learn: the words decide."""
    rng, rows, seen = random.Random(seed), [], set()
    while len(rows) < count:
        label = len(rows) % 2
        words = rng.choices(GOOD if label else BAD, k=rng.randint(1, 4))
        first, second = rng.sample(NOUNS, 2)
        text = f"the {first} was {' and '.join(words)} and the {second} was {rng.choice(words)}"
        if text not in seen:
            seen.add(text)
            rows.append((text, label))
    return rows


@pytest.fixture(scope="session")
def built_once(tmp_path_factory):
    """`built_once(name, make)`: the folder that `make(folder)` fills, once a run for all its workers.

    What is made is only read; a test that changes it copies it first.
    """
    from pressoir.store.artifact import StageKey
    from pressoir.store.store import Store

    base = tmp_path_factory.getbasetemp()
    store = Store((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "built-once")

    made = {}

    def build(name, make):
        def inside(out_dir, work_dir):  # a folder below: nothing takes the manifest for the model's own
            (out_dir / name).mkdir()
            make(out_dir / name)
            return {}

        if name not in made:
            key = StageKey(stage=name, version=1, kind="fixture", config={}, inputs={}, seed=0)
            made[name] = store.path(store.build(key, inside)[0]) / name
        return made[name]

    return build


@pytest.fixture(scope="session")
def tiny_bert(built_once):
    """Folder of a random 4-layer BERT without a head (hidden 32, 4 heads, FFN 64) and its tokenizer."""
    return built_once("tiny-bert", _tiny_bert)


def _tiny_bert(folder):
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "was", "and", *GOOD, *BAD, *NOUNS]
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_data(built_once):
    """A saved data folder of 400/80/80 learnable sentences, beside the TSV files it came from."""
    return built_once("tiny-data", _tiny_data)


def _tiny_data(folder):
    from pressoir.data import sentences as data
    from pressoir.recipe.sections import DataConfig

    rows = sentences(560)
    for split, part in {"train": rows[:400], "validation": rows[400:480], "test": rows[480:]}.items():
        lines = ["text\tlabel", *(f"{text}\t{['negative', 'positive'][label]}" for text, label in part)]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = DataConfig(source="files", **{s: folder / f"{s}.tsv" for s in ("train", "validation", "test")})
    data.save(data.load(config, seed=0), folder, max_tokens=32)


@pytest.fixture(scope="session")
def pair_data(built_once):
    """A saved data folder of 96/32/32 pairs of sentences, labelled by whether both are about the same thing,
    beside the TSV files it came from (columns `first`, `second`, `label`)."""
    return built_once("pair-data", _pair_data)


def _pair_data(folder):
    from pressoir.data import sentences as data
    from pressoir.recipe.sections import DataConfig

    rows = [text for text, _ in sentences(320, seed=3)]
    couples = zip(rows[::2], rows[1::2], strict=True)
    pairs = [(a, b, ["other", "same"][a.split()[1] == b.split()[1]]) for a, b in couples]
    pairs += [(a, f"{a} and {b}", "same") for a, b, _ in pairs[:40]]
    random.Random(0).shuffle(pairs)
    for split, part in {"train": pairs[:96], "validation": pairs[96:128], "test": pairs[128:160]}.items():
        lines = ["first\tsecond\tlabel", *map("\t".join, part)]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = {"text_column": "first", "text_pair_column": "second"}
    files = {split: folder / f"{split}.tsv" for split in ("train", "validation", "test")}
    data.save(data.load(DataConfig(source="files", **columns, **files), seed=0), folder, max_tokens=24)


def tagged_sentences(count, seed=5):
    """Random sentences as lists of words and IOB2 tags: runs of good and of bad words, and things."""
    rng, rows, seen = random.Random(seed), [], set()
    while len(rows) < count:
        words, tags = ["the"], ["O"]
        for _ in range(rng.randint(1, 3)):
            kind = rng.choice(["GOOD", "BAD"])
            run = rng.choices(GOOD if kind == "GOOD" else BAD, k=rng.randint(1, 3))
            words += [rng.choice(NOUNS), "was", *run, "and"]
            tags += ["B-THING", "O", f"B-{kind}", *[f"I-{kind}"] * (len(run) - 1), "O"]
        if tuple(words) not in seen:
            seen.add(tuple(words))
            rows.append((words, tags))
    return rows


@pytest.fixture(scope="session")
def tag_data(built_once):
    """A saved data folder of 160/40/40 sentences with tags, beside the JSONL files it came from."""
    return built_once("tag-data", _tag_data)


def _tag_data(folder):
    import json

    from pressoir.data import sentences as data
    from pressoir.recipe.sections import DataConfig

    rows = [json.dumps({"tokens": words, "tags": tags}) for words, tags in tagged_sentences(240)]
    files = {split: folder / f"raw-{split}.jsonl" for split in ("train", "validation", "test")}
    for path, part in zip(files.values(), (rows[:160], rows[160:200], rows[200:]), strict=True):
        path.write_text("\n".join(part) + "\n", encoding="utf-8")
    columns = {"text_column": "tokens", "label_column": "tags", "problem": "tags"}
    data.save(data.load(DataConfig(source="files", **columns, **files), seed=0), folder, max_tokens=32)


@pytest.fixture(scope="session")
def pair_classifier(built_once):
    """`pair_classifier(model_type)`: folder of a random classifier of pairs, of four layers, with the
    tokenizer of its type: `bert` (token types), `roberta` (two separators, no types) or `mpnet`."""
    return lambda kind: built_once(f"pair-{kind}", lambda folder: _pair_classifier(folder, kind))


def _pair_classifier(folder, kind):
    import torch
    from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import AutoConfig, BertTokenizerFast, MPNetTokenizerFast, RobertaTokenizerFast

    from pressoir.models import loading

    texts = [text for text, _ in sentences(200)]
    if kind == "roberta":
        trained = ByteLevelBPETokenizer()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        trained.train_from_iterator(texts, vocab_size=300, special_tokens=special, show_progress=False)
        trained._tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
        tokenizer = RobertaTokenizerFast(tokenizer_object=trained._tokenizer, model_max_length=24)
    else:
        cls, sep, pad, unk = (
            ("[CLS]", "[SEP]", "[PAD]", "[UNK]") if kind == "bert" else ("<s>", "</s>", "<pad>", "[UNK]")
        )
        mask = "[MASK]" if kind == "bert" else "<mask>"
        words = [cls, pad, sep, unk, mask, "the", "was", "and", *GOOD, *BAD, *NOUNS]
        backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token=unk))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        between = sep if kind == "bert" else f"{sep} {sep}"
        backend.post_processor = processors.TemplateProcessing(
            single=f"{cls} $A {sep}",
            pair=f"{cls}:0 $A:0 {between.replace(sep, sep + ':0')} $B:1 {sep}:1",
            special_tokens=[(cls, 0), (sep, 2)],
        )
        of_kind = {"bert": BertTokenizerFast, "mpnet": MPNetTokenizerFast}[kind]
        names = {"pad_token": pad, "unk_token": unk, "cls_token": cls, "sep_token": sep, "mask_token": mask}
        tokenizer = of_kind(tokenizer_object=backend, model_max_length=24, **names)
    special_ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    types = {"type_vocab_size": 2} if kind == "bert" else {}
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        initializer_range=0.2,
        max_position_embeddings=64,
        text_pair=True,
        **_SIZES,
        **special_ids,
        **types,
    )
    loading.rename(config, ["other", "same"])
    torch.manual_seed(0)
    loading.save_model(loading.new_classifier(config), folder)
    loading.save_tokenizer(tokenizer, folder)


@pytest.fixture(scope="session")
def tiny_classifier(tiny_bert, built_once):
    """Folder of a classifier (random encoder, random head, BERT type) with its tokenizer."""
    import torch

    from pressoir.models import loading

    def make(folder):
        torch.manual_seed(0)
        loading.save_model(loading.load_classifier(tiny_bert, labels=["negative", "positive"]), folder)
        loading.save_tokenizer(loading.load_tokenizer(tiny_bert), folder)

    return built_once("tiny-classifier", make)


_SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_OF_TYPE = {
    "albert": {"embedding_size": 16},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 16,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "esm": {"mask_token_id": 4},
    "fnet": {"num_attention_heads": None},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 16, "num_feedforward_networks": 2},
    "modernbert": {
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "reference_compile": False,
    },
    "mpnet": {"pad_token_id": 1, "max_position_embeddings": 66},
}


@pytest.fixture(scope="session")
def tiny_encoder(tiny_bert, built_once):
    """`tiny_encoder(model_type)`: folder of a random classifier of that type, of four layers, with the
    tokenizer of the tiny BERT."""

    def make(model_type, folder):
        import torch
        from transformers import AutoConfig

        from pressoir.models import loading

        tokenizer = loading.load_tokenizer(tiny_bert)
        values = {**_SIZES, **_SPECIAL, "max_position_embeddings": 64, **_OF_TYPE.get(model_type, {})}
        given = {name: value for name, value in values.items() if value is not None}
        config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), initializer_range=0.2, **given)
        loading.rename(config, ["negative", "positive"])
        torch.manual_seed(0)
        loading.save_model(loading.new_classifier(config), folder)
        loading.save_tokenizer(tokenizer, folder)

    return lambda model_type: built_once(f"tiny-{model_type}", lambda folder: make(model_type, folder))


def _byte_tokenizer(folder):
    """A byte-level BPE tokenizer of 320 tokens, trained on the sentences of this file."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    special = ["<s>", "</s>", "<pad>"]
    trained.train_from_iterator(
        [text for text, _ in sentences(200)],
        vocab_size=320,
        min_frequency=1,
        special_tokens=special,
        show_progress=False,
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    inputs = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, model_input_names=inputs, **names
    ).save_pretrained(folder)


def _tiny_causal_lm(folder, config):
    import torch
    from transformers import AutoModelForCausalLM

    _byte_tokenizer(folder)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():  # so that logits differ enough to be compared
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
        elif "bias" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)


_TINY = {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


@pytest.fixture(scope="session")
def tiny_llama(built_once):
    """Folder of a random 2-layer Llama: hidden 64, FFN 128, 4 heads of 2 keys and values, untied head."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        **_TINY,
    )
    return built_once("tiny-llama", lambda folder: _tiny_causal_lm(folder, config))


@pytest.fixture(scope="session")
def tiny_gpt2(built_once):
    """Folder of a random 2-layer GPT-2 (Conv1D layers, tied head): hidden 64, 4 heads."""
    from transformers import GPT2Config

    config = GPT2Config(n_embd=64, n_layer=2, n_head=4, n_inner=128, n_positions=256, **_TINY)
    return built_once("tiny-gpt2", lambda folder: _tiny_causal_lm(folder, config))


@pytest.fixture(scope="session")
def tiny_qwen2(built_once):
    """Folder of a random 2-layer Qwen2 (biases on q, k and v, tied head): hidden 64, 4 heads."""
    from transformers import Qwen2Config

    config = Qwen2Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        **_TINY,
    )
    return built_once("tiny-qwen2", lambda folder: _tiny_causal_lm(folder, config))


@pytest.fixture(scope="session")
def tiny_gemma3(built_once):
    """Folder of a random 2-layer Gemma 3 (scaled embedding, tied head, sliding window): hidden 64."""
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=64,
        **_TINY,
    )
    return built_once("tiny-gemma3", lambda folder: _tiny_causal_lm(folder, config))


@pytest.fixture(params=["tiny_llama", "tiny_gpt2", "tiny_qwen2"])
def tiny_lm(request):
    """Each of the tiny causal LMs in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def tiny_text(built_once, tmp_path_factory):
    """A text folder: calibration, and two evaluation texts `good` and `bad`, 32 tokens a window."""
    return built_once("tiny-text", lambda folder: _tiny_text(tmp_path_factory.mktemp("texts"), folder))


def _tiny_text(files, folder):
    from pressoir.data import running_text
    from pressoir.recipe.sections import TextConfig

    rows = sentences(400, seed=7)
    parts = {
        "calibration": [line for line, _ in rows[:200]],
        "good": [line for line, label in rows[200:] if label],
        "bad": [line for line, label in rows[200:] if not label],
    }
    for name, lines in parts.items():
        (files / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = TextConfig(
        calibration=files / "calibration.txt",
        evaluation={name: files / f"{name}.txt" for name in ("good", "bad")},
        window=32,
        calibration_windows=8,
        evaluation_windows=8,
    )
    running_text.save(config, folder)


@pytest.fixture(scope="session")
def database(built_once):
    """MLflow's database, empty: making one takes seconds."""
    from pressoir.tasks.tracking.database import prepare_database

    return (
        built_once("mlflow", lambda folder: prepare_database(f"sqlite:///{folder}/mlflow.db")) / "mlflow.db"
    )


@pytest.fixture
def reporter():
    return RecordingReporter()


@pytest.fixture
def context(tmp_path, reporter):
    """A stage context in a temporary folder: `out/` and `work/`."""
    for name in ("out", "work"):
        (tmp_path / name).mkdir()
    return StageContext(Path(tmp_path / "out"), Path(tmp_path / "work"), reporter, seed=0, threads=2)


@pytest.fixture(scope="session")
def cold_start():
    """What `no_cold_starts` tells of each model."""
    from pressoir.benchmark.probe import Probe

    return Probe(import_s=3.0, load_s=0.5, baseline_rss_mb=400.0, peak_rss_mb=500.0)


@pytest.fixture
def no_cold_starts(monkeypatch, cold_start):
    """Stand in for the fresh processes in which the benchmark opens each model, which take seconds each.

    tests/pressoir/stages/test_benchmark.py has a real one; a run of the command line, and one with language
    models, have all.
    """
    for module in ("classifiers", "language_models"):
        monkeypatch.setattr(f"pressoir.benchmark.{module}.probe", lambda *call: cold_start)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine, that `huggingface_hub` takes for the real one; see `hub_server`."""
    import huggingface_hub
    from hub_server import Hub
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars, reset_sessions

    served = Hub()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", served.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    reset_sessions()  # those made before cannot reach anything
    disable_progress_bars()
    yield served
    enable_progress_bars()
    served.close()
    monkeypatch.undo()
    reset_sessions()


# Slowest first. A test with none of these marks is fast: `make check` runs those.
SLOW_MARKS = ("slow", "browser", "flow", "process")


def _slowness(item):
    return min(
        place for place, name in enumerate((*SLOW_MARKS, None)) if not name or item.get_closest_marker(name)
    )


def pytest_collection_modifyitems(items):
    """Files with the slowest tests first: what is left at the end is short, and all workers end together."""
    first = {}
    for item in items:
        first[item.path] = min(_slowness(item), first.get(item.path, len(SLOW_MARKS)))
    items.sort(key=lambda item: first[item.path])


def pytest_collection_finish():
    """Exempt what is imported by now from collection: `release_memory` would walk it for every layer."""
    gc.collect()
    gc.freeze()


_started = []


def _note_processes(event, arguments):
    if event == "os.fork" or (event == "subprocess.Popen" and arguments[0] == sys.executable):
        _started.append(arguments)


sys.addaudithook(_note_processes)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    _started.clear()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A test that starts an interpreter, itself or in its fixtures, is not fast, and must be marked."""
    result = yield
    if _started and _slowness(item) == len(SLOW_MARKS):
        pytest.fail(f"starts {len(_started)} processes: mark it as `process`", pytrace=False)
    return result


# A skipped test proves nothing: in CI every skip must stand here, by a part of its reason.
ALLOWED_SKIPS = {
    "cannot mount": "tests of a full or read-only disk mount a tmpfs, which needs root",
    "cannot make a cgroup": "limits that the kernel itself sets; needs root outside of a container",
}
if not os.environ.get("CI"):
    ALLOWED_SKIPS["no chromium"] = "tests of the page; .ci/run installs it"


def _unlisted_skips(config):
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    return [report for report in skipped if not any(part in str(report.longrepr) for part in ALLOWED_SKIPS)]


def pytest_terminal_summary(terminalreporter, config):
    for report in _unlisted_skips(config):
        terminalreporter.write_line(f"skipped for no listed reason: {report.nodeid}", red=True)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session, exitstatus):
    if os.environ.get("CI") and exitstatus == 0 and _unlisted_skips(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def replace_run(monkeypatch):
    """`replace_run(stage, run)`: for this test, one of Pressoir's own stages does something else."""

    def replace(name, run):
        declared = dataclasses.replace(load_stage(name), run=run)
        monkeypatch.setattr(sys.modules[f"pressoir.stages.{name}"], "STAGE", declared)

    return replace


SMOOTH = '''
"""A stage as another package declares it: it copies the model and notes its strength."""

import shutil

from pressoir.config import Config, Fraction
from pressoir.stage import Stage


class SmoothConfig(Config):
    """Smooth the weights."""

    strength: Fraction = 0.5
    """How much."""


def run(inputs, config, context):
    kept = shutil.ignore_patterns("artifact.json")
    shutil.copytree(inputs["model"], context.out_dir, dirs_exist_ok=True, ignore=kept)
    (context.out_dir / "smooth.txt").write_text(f"{{config.strength}} {{sorted(inputs)}}")
    return {{"strength": config.strength}}


STAGE = Stage(
    name="smooth", version=1, kind="model", config=SmoothConfig, run=run, after={after}, searchable=True
)
'''


@pytest.fixture
def smooth(tmp_path, monkeypatch):
    """A package with one stage, `smooth`: `smooth.install(after="'prune'")` installs it for this test."""
    site = tmp_path / "site"

    class Package:
        folder = site

        @staticmethod
        def install(after="'prune'", version="1.2", value="pressoir_smooth:STAGE"):
            shutil.rmtree(site, ignore_errors=True)
            info = site / f"pressoir_smooth-{version}.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: pressoir-smooth\nVersion: {version}\n"
            )
            (info / "entry_points.txt").write_text(f"[pressoir.stages]\nsmooth = {value}\n")
            (site / "pressoir_smooth.py").write_text(SMOOTH.format(after=after))
            sys.modules.pop("pressoir_smooth", None)
            importlib.invalidate_caches()
            loader._entries.cache_clear()

    monkeypatch.syspath_prepend(str(site))
    yield Package
    sys.modules.pop("pressoir_smooth", None)
    monkeypatch.undo()
    loader._entries.cache_clear()
