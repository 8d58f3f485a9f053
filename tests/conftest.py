"""A tiny random BERT and a few sentences, made once: most tests run on them in milliseconds."""

import os
import random
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")

import pytest

from pressoir.stages import StageContext

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
def tiny_bert(tmp_path_factory):
    """Folder of a random 4-layer BERT without a head (hidden 32, 4 heads, FFN 64) and its tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-bert")
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
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A saved data folder of 400/80/80 learnable sentences, beside the TSV files it came from."""
    from pressoir import data
    from pressoir.sections import DataConfig

    folder = tmp_path_factory.mktemp("tiny-data")
    rows = sentences(560)
    for split, part in {"train": rows[:400], "validation": rows[400:480], "test": rows[480:]}.items():
        lines = ["text\tlabel", *(f"{text}\t{['negative', 'positive'][label]}" for text, label in part)]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = DataConfig(source="files", **{s: folder / f"{s}.tsv" for s in ("train", "validation", "test")})
    splits, dropped = data.load(config, seed=0)
    data.save(splits, dropped, folder, max_tokens=32)
    return folder


@pytest.fixture(scope="session")
def tiny_classifier(tiny_bert, tmp_path_factory):
    """Folder of a classifier (random encoder, random head, BERT type) with its tokenizer."""
    from pressoir import models

    folder = tmp_path_factory.mktemp("tiny-classifier")
    models.save_model(models.load_classifier(tiny_bert, labels=["negative", "positive"]), folder)
    models.save_tokenizer(models.load_tokenizer(tiny_bert), folder)
    return folder


@pytest.fixture
def reporter():
    return RecordingReporter()


@pytest.fixture
def context(tmp_path, reporter):
    """A stage context in a temporary folder: `out/` and `work/`."""
    for name in ("out", "work"):
        (tmp_path / name).mkdir()
    return StageContext(Path(tmp_path / "out"), Path(tmp_path / "work"), reporter, seed=0, threads=2)


# A skipped test proves nothing: in CI every skip must stand here, by a part of its reason.
ALLOWED_SKIPS = {
    "cannot mount": "tests of a full or read-only disk mount a tmpfs, which needs root",
}


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
