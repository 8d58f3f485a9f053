"""Tiny random encoder-decoders and a CTC model, with tokenizers trained here; and their exports."""

import itertools
import json
import wave
from io import BytesIO

import numpy as np
import pytest

from pressoir.reporting import LogReporter

NOUNS = "film book meal hotel phone chair song tour game soup".split()
QUALITIES = "good great lovely fine bad awful dull poor".split()
TEXTS = [f"the {a} was {b} and the {c} was not" for a, b, c in itertools.product(NOUNS, QUALITIES, NOUNS)]
DIGITS = "zero one two three four five six seven eight nine".split()
SAMPLING_RATE = 16_000

_SMALL = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}


def _save(kind, config, folder, rare=(), std=0.3, **generation):
    """Save a random model of class `kind` whose logits differ enough to be compared.

    `rare` tokens, such as those that end a text or leave no trace in it, are made improbable.
    """
    import torch

    torch.manual_seed(0)
    model = kind(config)
    if generation:
        model.generation_config.update(**generation)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 2:  # convolutions, through which the sound must come
            torch.nn.init.normal_(parameter, std=0.1)
        elif parameter.ndim == 2:
            table = "embed" in name or "shared" in name  # which would drown the layers
            torch.nn.init.normal_(parameter, std=0.1 if table else std)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.05)
    if rare:
        with torch.no_grad():
            model.get_output_embeddings().weight[rare] *= 0.2
    model.save_pretrained(folder)


def _train_sentencepiece(path, vocabulary=120):
    """Write a SentencePiece model; return its pieces."""
    import sentencepiece

    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        vocab_size=vocabulary,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [processor.id_to_piece(index) for index in range(processor.get_piece_size())]


def _unigram(special, unknown):
    """A fast tokenizer of words and letters, written as SentencePiece writes them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=special, unk_token=unknown, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def tiny_nllb(built_once):
    """Folder of a random M2M100 with NLLB's kind of tokenizer, English to French by default."""
    return built_once("tiny-nllb", _tiny_nllb)


def _tiny_nllb(folder):
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizerFast

    backend = _unigram(["<s>", "<pad>", "</s>", "<unk>"], "<unk>")
    tokenizer = NllbTokenizerFast(tokenizer_object=backend, src_lang="eng_Latn", tgt_lang="fra_Latn")
    tokenizer.save_pretrained(folder)
    config = M2M100Config(
        vocab_size=len(tokenizer),
        decoder_start_token_id=2,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        **_SMALL,
    )
    rare = tokenizer.all_special_ids
    _save(M2M100ForConditionalGeneration, config, folder, rare, max_length=24)


@pytest.fixture(scope="session")
def tiny_marian(built_once):
    """Folder of a random Marian model, English to French, with its tokenizer over SentencePiece."""
    return built_once("tiny-marian", _tiny_marian)


def _tiny_marian(folder):
    from transformers import MarianConfig, MarianMTModel

    pieces = _train_sentencepiece(folder / "source.spm")
    _train_sentencepiece(folder / "target.spm")
    names = ["</s>", "<unk>", *(piece for piece in pieces if not piece.startswith("<")), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    settings = {"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "fr"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 64}))
    pad = len(names) - 1
    config = MarianConfig(
        vocab_size=len(names),
        pad_token_id=pad,
        eos_token_id=0,
        decoder_start_token_id=pad,
        **_SMALL,
    )
    _save(MarianMTModel, config, folder, std=0.6, max_length=24, forced_eos_token_id=0, bad_words_ids=[[pad]])


def _t5(folder, std, family="T5", **settings):
    import transformers
    from tokenizers import processors
    from transformers import T5TokenizerFast

    backend = _unigram(["<pad>", "</s>", "<unk>"], "<unk>")
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = T5TokenizerFast(tokenizer_object=backend, extra_ids=0)
    tokenizer.save_pretrained(folder)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        task_specific_params={"translation_en_to_fr": {"prefix": "french: "}},
        **settings,
    )
    kind = getattr(transformers, f"{family}ForConditionalGeneration")
    _save(kind, config, folder, std=std, max_length=24)


@pytest.fixture(scope="session")
def tiny_t5(built_once):
    """Folder of a random T5 of the later kind: gated feed-forward, a head of its own."""
    settings = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    return built_once("tiny-t5", lambda folder: _t5(folder, std=0.15, **settings))


@pytest.fixture(scope="session")
def tiny_first_t5(built_once):
    """Folder of a random T5 of the first kind: ReLU, a head that is the embedding."""
    return built_once("tiny-first-t5", lambda folder: _t5(folder, std=0.15))


@pytest.fixture(scope="session")
def tiny_mt5(built_once):
    """Folder of a random mT5."""
    settings = {"family": "MT5", "tie_word_embeddings": False}
    return built_once("tiny-mt5", lambda folder: _t5(folder, std=0.15, **settings))


@pytest.fixture(scope="session")
def tiny_umt5(built_once):
    """Folder of a random UMT5, whose layers have a position bias each."""
    settings = {"family": "UMT5", "tie_word_embeddings": False}
    return built_once("tiny-umt5", lambda folder: _t5(folder, std=0.2, **settings))


@pytest.fixture(scope="session")
def tiny_bart(built_once):
    """Folder of a random BART, which writes a summary, with the generation settings that those come with."""
    return built_once("tiny-bart", _tiny_bart)


def _tiny_bart(folder):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import BartConfig, BartForConditionalGeneration, BartTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    backend.post_processor = processors.RobertaProcessing(sep=("</s>", 2), cls=("<s>", 0))
    tokenizer = BartTokenizerFast(tokenizer_object=backend, model_max_length=64)
    tokenizer.save_pretrained(folder)
    config = BartConfig(vocab_size=len(tokenizer), **_SMALL)
    settings = {"min_length": 9, "no_repeat_ngram_size": 3, "length_penalty": 2.0, "early_stopping": True}
    _save(BartForConditionalGeneration, config, folder, range(5), max_length=24, num_beams=4, **settings)


def _mbart(folder, kind, start):
    from transformers import MBartConfig, MBartForConditionalGeneration

    backend = _unigram(["<s>", "<pad>", "</s>", "<unk>"], "<unk>")
    tokenizer = kind(tokenizer_object=backend, src_lang="en_XX", tgt_lang="ro_RO", model_max_length=64)
    tokenizer.save_pretrained(folder)
    begin = tokenizer.convert_tokens_to_ids("ro_RO") if start is None else start
    config = MBartConfig(vocab_size=len(tokenizer), decoder_start_token_id=begin, **_SMALL)
    rare = tokenizer.all_special_ids
    _save(MBartForConditionalGeneration, config, folder, rare, max_length=24)


@pytest.fixture(scope="session")
def tiny_mbart(built_once):
    """Folder of a random mBART of 25 languages: codes stand after the text, and start the translation."""
    from transformers import MBartTokenizerFast

    return built_once("tiny-mbart", lambda folder: _mbart(folder, MBartTokenizerFast, None))


@pytest.fixture(scope="session")
def tiny_mbart50(built_once):
    """Folder of a random mBART of 50 languages: codes stand before the text, and are generated first."""
    from transformers import MBart50TokenizerFast

    return built_once("tiny-mbart50", lambda folder: _mbart(folder, MBart50TokenizerFast, 2))


@pytest.fixture(scope="session")
def tiny_pegasus(built_once):
    """Folder of a random Pegasus."""
    return built_once("tiny-pegasus", _tiny_pegasus)


def _tiny_pegasus(folder):
    from tokenizers import processors
    from transformers import PegasusConfig, PegasusForConditionalGeneration, PegasusTokenizerFast

    backend = _unigram(["<pad>", "</s>", "<unk>"], "<unk>")
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = PegasusTokenizerFast(tokenizer_object=backend, offset=0, model_max_length=64)
    tokenizer.save_pretrained(folder)
    config = PegasusConfig(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, **_SMALL)
    settings = {"num_beams": 4, "length_penalty": 0.6, "max_length": 24, "repetition_penalty": 1.3}
    _save(PegasusForConditionalGeneration, config, folder, tokenizer.all_special_ids, **settings)


@pytest.fixture(scope="session")
def tiny_m2m100(built_once):
    """Folder of a random M2M100 with its tokenizer over SentencePiece, from English by default."""
    return built_once("tiny-m2m100", _tiny_m2m100)


def _tiny_m2m100(folder):
    from transformers import M2M100Config, M2M100ForConditionalGeneration, M2M100Tokenizer
    from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

    pieces = _train_sentencepiece(folder / "spm.model")
    names = ["<s>", "<pad>", "</s>", "<unk>", *(piece for piece in pieces if not piece.startswith("<"))]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    codes = [f"__{code}__" for code in FAIRSEQ_LANGUAGE_CODES["m2m100"]]
    tokenizer = M2M100Tokenizer(
        str(folder / "vocab.json"), str(folder / "spm.model"), src_lang="en", additional_special_tokens=codes
    )
    tokenizer.save_pretrained(folder)
    (folder / "spm.model").unlink()
    size = max(tokenizer.lang_token_to_id.values()) + 1
    config = M2M100Config(vocab_size=size, decoder_start_token_id=2, **_SMALL)
    rare = [*range(4), *range(len(names), size)]
    _save(M2M100ForConditionalGeneration, config, folder, rare, max_length=24, no_repeat_ngram_size=2)


@pytest.fixture(scope="session")
def tiny_whisper(built_once):
    """Folder of a random Whisper that hears one second at a time and writes digits."""
    return built_once("tiny-whisper", _tiny_whisper)


def _tiny_whisper(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    words = ["<pad>", "<s>", "</s>", "<unk>", *DIGITS]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(folder)
    sizes = {name: value for name, value in _SMALL.items() if name != "max_position_embeddings"}
    config = WhisperConfig(
        vocab_size=len(words),
        num_mel_bins=16,
        max_source_positions=50,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        **sizes,
    )
    _save(
        WhisperForConditionalGeneration,
        config,
        folder,
        rare=[0, 1, 2, 3],
        max_length=16,
        begin_suppress_tokens=[2],
        suppress_tokens=[3],
    )


@pytest.fixture(scope="session")
def tiny_wav2vec2(built_once):
    """Folder of a random wav2vec2 with a CTC head over letters."""
    return built_once("tiny-wav2vec2", _tiny_wav2vec2)


def _tiny_wav2vec2(folder):
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
    )

    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDE"]
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    Wav2Vec2CTCTokenizer(str(vocabulary)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    config = Wav2Vec2Config(
        vocab_size=len(letters),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=(16, 16),
        conv_stride=(40, 8),
        conv_kernel=(64, 8),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        pad_token_id=0,
    )
    _save(Wav2Vec2ForCTC, config, folder)


@pytest.fixture(scope="session")
def exported(request, built_once):
    """`exported("tiny_nllb", int8=False)`: the folder of that export, which passed its parity gate."""
    from pressoir.export import encoder_decoder
    from pressoir.recipe.sections import ExportConfig
    from pressoir.stage import StageContext

    def export(name, int8=False):
        source = {"model": request.getfixturevalue(name)}

        def make(folder):
            for part in ("out", "work"):
                (folder / part).mkdir()
            context = StageContext(folder / "out", folder / "work", LogReporter(), seed=0, threads=1)
            # Random weights of width 32 feel int8 far more than trained ones do.
            config = ExportConfig(min_label_agreement=0.85)
            figures = encoder_decoder.run(source, config, context, int8=int8)
            (folder / "figures.json").write_text(json.dumps(figures))

        folder = built_once(f"{name}-{'int8' if int8 else 'onnx'}", make)
        return folder / "out", json.loads((folder / "figures.json").read_text())

    return export


@pytest.fixture(scope="session")
def sentencepiece_model():
    """`sentencepiece_model(path)`: train a SentencePiece model, write it, return its pieces."""
    return _train_sentencepiece


@pytest.fixture(scope="session")
def tone():
    """`tone(seconds)`: a tone in noise, mono float32 at 16 kHz."""

    def make(seconds, pitch=220.0, seed=0):
        time = np.arange(int(seconds * SAMPLING_RATE)) / SAMPLING_RATE
        noise = np.random.default_rng(seed).standard_normal(len(time))
        return (0.3 * np.sin(2 * np.pi * pitch * time) + 0.01 * noise).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def write_wav():
    """`write_wav(path, samples)`: a PCM file of float samples, (samples,) or (samples, channels)."""

    def write(path, samples, rate=SAMPLING_RATE, width=2):
        samples = np.atleast_2d(np.asarray(samples, dtype=np.float64).T).T
        with wave.open(str(path), "wb") as file:
            file.setframerate(rate)
            file.setnchannels(samples.shape[1])
            file.setsampwidth(width)
            whole = np.round(samples * (2 ** (8 * width - 1) - 1)).astype("<i8") + (128 if width == 1 else 0)
            parts = whole.reshape(-1, 1).view(np.uint8)[:, :width]
            file.writeframes(np.ascontiguousarray(parts).tobytes())
        return path

    return write
