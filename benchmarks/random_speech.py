"""Random speech models of the types that `random_models` does not make, in sizes where memory shows."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import random_models as rm

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
NEW_TOKENS = 24
# A chat template with a place for the sound.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% for part in m['content'] %}"
    "{% if part['type'] == 'audio' %}<sound>{% else %} {{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
)


def ctc(kind: str, hidden: int, layers: int) -> rm.Make:
    """A CTC model over letters; `kind` as transformers spells its classes, such as `Hubert`."""

    def make(folder: Path) -> None:
        import transformers

        folder.mkdir(exist_ok=True)
        (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(LETTERS)}))
        transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
        if kind == "Wav2Vec2Bert":
            transformers.SeamlessM4TFeatureExtractor(feature_size=80).save_pretrained(folder)
        else:
            transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=len(LETTERS),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            intermediate_size=4 * hidden,
            pad_token_id=0,
        )
        rm.save(getattr(transformers, f"{kind}ForCTC"), config, folder)

    return make


def _heads_and_layers(hidden: int, layers: int) -> dict[str, int]:
    sizes = {"layers": layers, "attention_heads": hidden // 64, "ffn_dim": 4 * hidden}
    return {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in sizes.items()}


def _pieces(path: Path) -> list[str]:
    """Train a SentencePiece model; return its pieces."""
    import sentencepiece

    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(rm.texts(500, 20)),
        model_writer=trained,
        vocab_size=2000,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path.write_bytes(trained.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    return [processor.id_to_piece(index) for index in range(processor.get_piece_size())]


def moonshine(hidden: int, layers: int, names: int) -> rm.Make:
    """A Moonshine."""

    def make(folder: Path) -> None:
        from transformers import MoonshineConfig, MoonshineForConditionalGeneration, Wav2Vec2FeatureExtractor

        special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        rm.word_tokenizer(folder, names, special)
        Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)
        config = MoonshineConfig(
            vocab_size=names,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            encoder_num_hidden_layers=layers,
            decoder_num_hidden_layers=layers,
            encoder_num_attention_heads=hidden // 64,
            decoder_num_attention_heads=hidden // 64,
            decoder_start_token_id=1,
        )
        rm.save(MoonshineForConditionalGeneration, config, folder, max_length=NEW_TOKENS, eos_token_id=2)

    return make


def speech_to_text(hidden: int, layers: int, names: int) -> rm.Make:
    """A Speech2Text."""

    def make(folder: Path) -> None:
        import transformers

        folder.mkdir(exist_ok=True)
        known = [piece for piece in _pieces(folder / "sentencepiece.bpe.model") if not piece.startswith("<")]
        known = ["<s>", "<pad>", "</s>", "<unk>", *known]
        known += [f"<unused{i}>" for i in range(names - len(known))]
        (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(known)}))
        files = str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model")
        transformers.Speech2TextTokenizer(*files).save_pretrained(folder)
        transformers.Speech2TextFeatureExtractor().save_pretrained(folder)
        config = transformers.Speech2TextConfig(
            vocab_size=names, d_model=hidden, decoder_start_token_id=2, **_heads_and_layers(hidden, layers)
        )
        kind = transformers.Speech2TextForConditionalGeneration
        rm.save(kind, config, folder, max_length=NEW_TOKENS)

    return make


def seamless(version: str, hidden: int, layers: int, names: int) -> rm.Make:
    """A SeamlessM4T (`version` is empty, or `v2`), whose parts that speak are small: they are not used."""

    def make(folder: Path) -> None:
        import transformers

        folder.mkdir(exist_ok=True)
        _pieces(folder / "sentencepiece.bpe.model")
        tokenizer = transformers.SeamlessM4TTokenizer(
            str(folder / "sentencepiece.bpe.model"), additional_special_tokens=["__eng__", "__fra__"]
        )
        tokenizer.save_pretrained(folder)
        transformers.SeamlessM4TFeatureExtractor().save_pretrained(folder)
        spoken = {"t2u_encoder_layers": 1, "t2u_decoder_layers": 1, "t2u_vocab_size": 20}
        spoken |= {f"t2u_{part}_ffn_dim": 32 for part in ("encoder", "decoder")}
        spoken |= {f"t2u_{part}_attention_heads": 1 for part in ("encoder", "decoder")}
        spoken |= {"upsample_initial_channel": 16, "unit_embed_dim": 8, "lang_embed_dim": 4}
        config = getattr(transformers, f"SeamlessM4T{version}Config")(
            vocab_size=names,
            hidden_size=hidden,
            speech_encoder_layers=layers,
            speech_encoder_intermediate_size=4 * hidden,
            speech_encoder_attention_heads=hidden // 64,
            spkr_embed_dim=4,
            **({"char_vocab_size": 20} if version else {}),
            **_heads_and_layers(hidden, layers),
            **spoken,
        )
        codes = {code: tokenizer.convert_tokens_to_ids(f"__{code}__") for code in ("eng", "fra")}
        maps = ("t2u_lang_code_to_id", "vocoder_lang_code_to_id", "text_decoder_lang_to_code_id")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            kind = getattr(transformers, f"SeamlessM4T{version}Model")
            rm.save(kind, config, folder, max_new_tokens=NEW_TOKENS, **dict.fromkeys(maps, codes))

    return make


def gemma3n(hidden: int, layers: int, names: int) -> rm.Make:
    """A Gemma 3n that hears, without its vision tower."""

    def make(folder: Path) -> None:
        from transformers import (
            Gemma3nAudioFeatureExtractor,
            Gemma3nConfig,
            Gemma3nForConditionalGeneration,
            PreTrainedTokenizerFast,
        )

        from pressoir.models.gemma3n import without_vision

        extra = {"audio_token": "<sound>", "boa_token": "<begin>", "eoa_token": "<end>"}
        extra |= {"image_token": "<image>", "boi_token": "<see>", "eoi_token": "<seen>"}
        special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        backend = rm.word_backend(names, [*special.values(), *extra.values()])
        PreTrainedTokenizerFast(
            tokenizer_object=backend, extra_special_tokens=extra, chat_template=TEMPLATE, **special
        ).save_pretrained(folder)
        Gemma3nAudioFeatureExtractor().save_pretrained(folder)
        text = {
            "vocab_size": names + 8,
            "vocab_size_per_layer_input": names,
            "hidden_size": hidden,
            "hidden_size_per_layer_input": 64,
            "intermediate_size": 4 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden // 64,
            "num_key_value_heads": max(1, hidden // 128),
            "head_dim": 64,
            "num_kv_shared_layers": 0,
            "layer_types": ["sliding_attention", "full_attention"] * (layers // 2),
            "activation_sparsity_pattern": [0.0] * layers,
        }
        sound = {"hidden_size": hidden, "conf_num_attention_heads": hidden // 64}
        sound |= {"conf_num_hidden_layers": layers, "vocab_size": 4, "vocab_offset": names + 4}
        config = Gemma3nConfig(
            text_config=text,
            audio_config=sound,
            vision_config={"hidden_size": 16, "vocab_size": 4, "vocab_offset": names},
            audio_token_id=4,
            image_token_id=7,
        )

        def hearing(config: Any) -> Any:
            return Gemma3nForConditionalGeneration(without_vision(config))

        rm.save(hearing, config, folder, max_new_tokens=NEW_TOKENS, eos_token_id=2, pad_token_id=0)
        saved = json.loads((folder / "config.json").read_text())
        saved["vision_config"]["model_type"] = "gemma3n_vision"
        (folder / "config.json").write_text(json.dumps(saved))

    return make
