"""Random models of several kinds and sizes, their exports, and data for them: what they take is real."""

from __future__ import annotations

import collections
import contextlib
import io
import itertools
import json
import random
import wave
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from pressoir.evaluation.config import DataSetConfig
from pressoir.recipe.sections import DataConfig
from pressoir.system.runtime import available_cpus

SEED = 0
RATE = 16_000
WORDS = 3000
LABELS = ("bad", "good")

Make = Callable[[Path], None]


def words(count: int = WORDS) -> list[str]:
    """Made-up words of one to three syllables."""
    rng, found = random.Random(SEED), dict[str, None]()
    while len(found) < count:
        found["".join(rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(rng.randint(1, 4)))] = (
            None
        )
    return list(found)


def vocabulary(size: int, special: Sequence[str]) -> list[str]:
    """Special tokens, the words, and names that stand in no text, up to `size`."""
    known = [*special, *words()]
    return [*known, *(f"<unused{i}>" for i in range(size - len(known)))]


def word_tokenizer(folder: Path, size: int, special: dict[str, str], template: str = "$A") -> None:
    """A tokenizer of whole words."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    backend = word_backend(size, list(dict.fromkeys(special.values())), special["unk_token"])
    ids = backend.get_vocab()
    used = [(name, ids[name]) for name in template.split() if name in ids]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)


def word_backend(size: int, special: Sequence[str], unknown: str = "<unk>") -> Any:
    """A `tokenizers.Tokenizer` of whole words, special ones first."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    ids = {name: i for i, name in enumerate(vocabulary(size, special))}
    backend = Tokenizer(models.WordLevel(ids, unknown))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


def save(kind: Any, config: Any, folder: Path, dtype: str = "float32", **generation: Any) -> None:
    """A random model in safetensors."""
    import torch

    torch.manual_seed(SEED)
    model = kind(config)
    for name, value in {**generation, "_from_model_config": False}.items() if generation else ():
        setattr(model.generation_config, name, value)
    model.to(getattr(torch, dtype)).save_pretrained(folder)


def bert(hidden: int, layers: int, names: int = 30_522) -> Make:
    """A classifier."""

    def make(folder: Path) -> None:
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(
            vocab_size=names,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            intermediate_size=4 * hidden,
            id2label=dict(enumerate(LABELS)),
        )
        save(BertForSequenceClassification, config, folder)
        special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        word_tokenizer(folder, names, special, "[CLS] $A [SEP]")

    return make


_LM = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def llama(hidden: int, layers: int, names: int, dtype: str = "float32") -> Make:
    """A causal LM with grouped queries and an untied head."""

    def make(folder: Path) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=names,
            hidden_size=hidden,
            intermediate_size=hidden * 11 // 4 // 64 * 64,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=max(1, hidden // 128),
            max_position_embeddings=1024,
            tie_word_embeddings=False,
        )
        save(LlamaForCausalLM, config, folder, dtype)
        word_tokenizer(folder, names, _LM)

    return make


def gpt2(hidden: int, layers: int, names: int) -> Make:
    """A causal LM whose head is its embedding."""

    def make(folder: Path) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=names,
            n_embd=hidden,
            n_layer=layers,
            n_head=hidden // 64,
            bos_token_id=1,
            eos_token_id=2,
        )
        save(GPT2LMHeadModel, config, folder)
        word_tokenizer(folder, names, _LM)

    return make


def whisper(hidden: int, layers: int, names: int, seconds: int, bins: int = 80) -> Make:
    """A speech model of a fixed window."""

    def make(folder: Path) -> None:
        from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

        special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        word_tokenizer(folder, names, special)
        WhisperFeatureExtractor(feature_size=bins, chunk_length=seconds).save_pretrained(folder)
        config = WhisperConfig(
            vocab_size=names,
            num_mel_bins=bins,
            d_model=hidden,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=hidden // 64,
            decoder_attention_heads=hidden // 64,
            encoder_ffn_dim=4 * hidden,
            decoder_ffn_dim=4 * hidden,
            max_source_positions=50 * seconds,
            max_target_positions=448,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            begin_suppress_tokens=None,
        )
        save(WhisperForConditionalGeneration, config, folder, max_length=24, begin_suppress_tokens=[2])

    return make


def wav2vec2(hidden: int, layers: int) -> Make:
    """A CTC model over letters."""

    def make(folder: Path) -> None:
        from transformers import (
            Wav2Vec2Config,
            Wav2Vec2CTCTokenizer,
            Wav2Vec2FeatureExtractor,
            Wav2Vec2ForCTC,
        )

        folder.mkdir(exist_ok=True)
        letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
        path = folder / "vocab.json"
        path.write_text(json.dumps({letter: i for i, letter in enumerate(letters)}), encoding="utf-8")
        Wav2Vec2CTCTokenizer(str(path)).save_pretrained(folder)
        Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
        config = Wav2Vec2Config(
            vocab_size=len(letters),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            intermediate_size=4 * hidden,
            pad_token_id=0,
        )
        save(Wav2Vec2ForCTC, config, folder)

    return make


def _unigram(names: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [(name if name.startswith("<") else f"▁{name}", -float(i % 97)) for i, name in enumerate(names)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=3))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return backend


def _pair(hidden: int, layers: int) -> dict[str, int]:
    return {
        "d_model": hidden,
        "encoder_layers": layers,
        "decoder_layers": layers,
        "encoder_attention_heads": hidden // 64,
        "decoder_attention_heads": hidden // 64,
        "encoder_ffn_dim": 4 * hidden,
        "decoder_ffn_dim": 4 * hidden,
        "max_position_embeddings": 512,
    }


def nllb(hidden: int, layers: int, names: int) -> Make:
    """A translation model of many languages."""

    def make(folder: Path) -> None:
        from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizerFast

        backend = _unigram(vocabulary(names, ["<s>", "<pad>", "</s>", "<unk>"]))
        tokenizer = NllbTokenizerFast(tokenizer_object=backend, src_lang="eng_Latn", tgt_lang="fra_Latn")
        tokenizer.save_pretrained(folder)
        config = M2M100Config(
            vocab_size=len(tokenizer),
            decoder_start_token_id=2,
            bos_token_id=0,
            pad_token_id=1,
            eos_token_id=2,
            **_pair(hidden, layers),
        )
        save(M2M100ForConditionalGeneration, config, folder, max_length=200)

    return make


def marian(hidden: int, layers: int, names: int) -> Make:
    """A translation model of one pair, whose tokenizer exists only in Python."""

    def make(folder: Path) -> None:
        import sentencepiece
        from transformers import MarianConfig, MarianMTModel

        folder.mkdir(exist_ok=True)
        trained = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts(500, 20)),
            model_writer=trained,
            vocab_size=2000,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        for name in ("source.spm", "target.spm"):
            (folder / name).write_bytes(trained.getvalue())
        processor = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
        pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
        known = ["</s>", "<unk>", *(piece for piece in pieces if not piece.startswith("<"))]
        known += [*(f"<unused{i}>" for i in range(names - len(known) - 1)), "<pad>"]
        (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(known)}))
        settings = {"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "fr"}
        (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 512}))
        pad = len(known) - 1
        config = MarianConfig(
            vocab_size=len(known),
            pad_token_id=pad,
            eos_token_id=0,
            decoder_start_token_id=pad,
            **_pair(hidden, layers),
        )
        save(MarianMTModel, config, folder, max_length=200, bad_words_ids=[[pad]])

    return make


def bart(family: str, hidden: int, layers: int, names: int) -> Make:
    """A model of BART's kind: `Bart`, `MBart` or `Pegasus`, as transformers spells its classes."""

    def make(folder: Path) -> None:
        import transformers

        special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        if family == "MBart":
            backend = _unigram(vocabulary(names, ["<s>", "<pad>", "</s>", "<unk>"]))
            codes = {"src_lang": "en_XX", "tgt_lang": "fr_XX"}
            transformers.MBart50TokenizerFast(tokenizer_object=backend, **codes).save_pretrained(folder)
        else:
            word_tokenizer(folder, names, special, "<s> $A </s>" if family == "Bart" else "$A </s>")
        ids = (
            {"bos_token_id": 0, "pad_token_id": 1}
            if family == "MBart"
            else {"bos_token_id": 1, "pad_token_id": 0}
        )
        config = getattr(transformers, f"{family}Config")(
            vocab_size=names + 60,
            decoder_start_token_id=2,
            eos_token_id=2,
            forced_eos_token_id=2,
            **ids,
            **_pair(hidden, layers),
        )
        kind = getattr(transformers, f"{family}ForConditionalGeneration")
        save(kind, config, folder, max_length=200)

    return make


def t5(hidden: int, layers: int, names: int, family: str = "T5", **settings: Any) -> Make:
    """A translation model with relative positions; `family` as transformers spells its classes."""

    def make(folder: Path) -> None:
        import transformers
        from transformers import T5TokenizerFast

        backend = _unigram(vocabulary(names, ["<pad>", "</s>", "<s>", "<unk>"]))
        tokenizer = T5TokenizerFast(tokenizer_object=backend, extra_ids=0)
        tokenizer.save_pretrained(folder)
        config = getattr(transformers, f"{family}Config")(
            vocab_size=len(tokenizer),
            d_model=hidden,
            d_kv=64,
            d_ff=4 * hidden,
            num_layers=layers,
            num_heads=hidden // 64,
            decoder_start_token_id=0,
            **settings,
        )
        save(getattr(transformers, f"{family}ForConditionalGeneration"), config, folder, max_length=200)

    return make


# --- exports ------------------------------------------------------------------------------------------------


def _context(folder: Path) -> Any:
    from pressoir.reporting import LogReporter
    from pressoir.stage import StageContext

    work = folder.with_name(f"{folder.name}.work")
    for path in (folder, work):
        path.mkdir(exist_ok=True)
    return StageContext(folder, work, LogReporter(), seed=SEED, threads=available_cpus())


def _text_data(folder: Path) -> Path:
    from pressoir.data import sentences

    place = folder.parent / "splits"
    if not place.exists():
        place.mkdir()
        sentences.save(sentences.load(classification(folder.parent), SEED), place, max_tokens=64)
    return place


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """A block in which exports skip their parity checks: what a graph takes does not depend on them."""
    from pressoir.export import causal_lm, classifier, encoder_decoder
    from pressoir.inference.parity import Parity

    parity = Parity(windows=0, window=0, prompts=1, new_tokens=0)
    figures = collections.defaultdict(float)
    with (
        mock.patch.object(classifier, "check_parity", return_value=figures),
        mock.patch.object(encoder_decoder, "check_parity", return_value=figures),
        mock.patch.object(causal_lm, "compare", lambda found, *_: dict.fromkeys(found, parity)),
    ):
        yield


def exported(source: Path, folder: Path) -> None:
    """ONNX of whatever the checkpoint is."""
    from pressoir.formats.folder import task_of
    from pressoir.recipe.sections import ExportConfig
    from pressoir.stages import export

    data = {"data": _text_data(folder)} if task_of(source) == "text-classification" else {}
    with unchecked():
        export.run({"model": source, **data}, ExportConfig(), _context(folder))


def int8(source: Path, folder: Path) -> None:
    """An int8 encoder-decoder or CTC model in ONNX."""
    from pressoir.export import encoder_decoder
    from pressoir.recipe.sections import ExportConfig

    with unchecked():
        encoder_decoder.run({"model": source}, ExportConfig(), _context(folder), int8=True)


def quantised(scheme: str) -> Callable[[Path, Path], None]:
    """A checkpoint in fewer bits."""

    def make(source: Path, folder: Path) -> None:
        from pressoir.recipe.sections import QuantizeConfig
        from pressoir.stages import quantize

        given = {"max_accuracy_drop": None} if scheme == "int8" else {"algorithm": "rtn"}
        inputs = {"model": source}
        if scheme == "int8":
            inputs["data"] = _text_data(folder)
        quantize.run(inputs, QuantizeConfig(scheme=scheme, **given), _context(folder))

    return make


def texts(count: int, longest: int) -> list[str]:
    """Random texts; two of three have `longest` words, so that a second batch has the shape of the first."""
    rng, known = random.Random(SEED), words()
    lengths = [longest if i % 3 else rng.randint(3, longest) for i in range(count)]
    return [" ".join(rng.choice(known) for _ in range(length)) for length in lengths]


def classification(folder: Path, longest: int = 60) -> DataConfig:
    """Sentences of two classes."""
    rows = [f"{text}\t{LABELS[i % 2]}" for i, text in enumerate(texts(700, longest))]
    parts = {"train": rows[:300], "validation": rows[300:400], "test": rows[400:]}
    place = folder / f"sentences-{longest}"
    place.mkdir(exist_ok=True)
    for split, part in parts.items():
        (place / f"{split}.tsv").write_text("\n".join(["text\tlabel", *part]) + "\n", encoding="utf-8")
    return DataConfig(source="files", **{split: place / f"{split}.tsv" for split in parts})


def sounds(folder: Path, seconds: int) -> Path:
    """WAV files of noise, all as long."""
    import numpy as np

    place = folder / f"sounds-{seconds}"
    place.mkdir(exist_ok=True)
    rng, entries = np.random.default_rng(SEED), []
    for index in range(40):
        samples = rng.integers(-3000, 3000, seconds * RATE).astype("<i2")
        with wave.open(str(place / f"{index}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(samples.tobytes())
        entries.append({"audio": f"{index}.wav", "text": "one two"})
    (place / "manifest.json").write_text(json.dumps(entries), encoding="utf-8")
    return place / "manifest.json"


def data_of(task: str, folder: Path, size: int) -> DataSetConfig:
    """Data of a task; `size` is words of the longest text, or seconds of every sound."""
    fields: dict[str, Any] = {}
    if task == "text-classification":
        fields["classification"] = classification(folder, size)
    elif task == "automatic-speech-recognition":
        fields["manifest"] = sounds(folder, size)
    elif task == "translation":
        for name in ("source", "reference"):
            fields[name] = folder / f"{name}-{size}.txt"
            fields[name].write_text("\n".join(texts(60, size)) + "\n", encoding="utf-8")
    elif task == "feature-extraction":
        lines = texts(80, size)
        fields["pairs"] = folder / f"pairs-{size}.tsv"
        fields["pairs"].write_text("".join(f"{a}\t{b}\t0.5\n" for a, b in itertools.pairwise(lines)))
    else:
        fields["text"] = folder / f"text-{size}.txt"
        fields["text"].write_text("\n".join(texts(size * 1000, 20)), encoding="utf-8")
    return DataSetConfig(task=task, **fields)
