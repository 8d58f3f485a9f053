"""Random speech models of every type, with wide weights and the tokenizers of their kind."""

import json
import warnings

# --- Whisper: tokens in the order of the released ones: text, the end, other special tokens, times.

LETTERS_OF_WHISPER = "abcdefghijklmnopqrstuvwxyz"
PIECES = ["Ġ", *LETTERS_OF_WHISPER, *(f"Ġ{letter}" for letter in LETTERS_OF_WHISPER)]
END = len(PIECES)
START = END + 1
LANGUAGES = {f"<|{code}|>": START + 1 + index for index, code in enumerate(("en", "fr", "de"))}
TASKS = {"translate": START + 4, "transcribe": START + 5}
NO_SPEECH, PLAIN, FIRST_TIME = START + 7, START + 8, START + 9
MULTILINGUAL = {"is_multilingual": True, "lang_to_id": LANGUAGES, "task_to_id": TASKS}
SETTINGS = {
    "decoder_start_token_id": START,
    "bos_token_id": END,
    "eos_token_id": END,
    "pad_token_id": END,
    "max_length": 16,
    "no_timestamps_token_id": PLAIN,
    "return_timestamps": False,
    "begin_suppress_tokens": [0, END],
    # A trained model writes no time stamp behind <|notimestamps|>; transformers takes one for a part's end.
    "suppress_tokens": [*range(START, FIRST_TIME + 51)],
}
TIMES = {"max_length": 40, "suppress_tokens": [*range(START, PLAIN)], "max_initial_timestamp_index": 10}
KINDS = {
    "multilingual": MULTILINGUAL,
    "128 bins, rules": {**MULTILINGUAL, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "English only": {"is_multilingual": False, "forced_decoder_ids": [[1, PLAIN]]},
    "French forced": {
        **MULTILINGUAL,
        "forced_decoder_ids": [[1, LANGUAGES["<|fr|>"]], [2, TASKS["transcribe"]]],
    },
    "language left open": {**MULTILINGUAL, "forced_decoder_ids": [[1, None], [2, TASKS["transcribe"]]]},
}


def whisper_tokenizer(folder):
    from tokenizers import AddedToken
    from transformers import WhisperTokenizerFast

    names = ["<|startoftranscript|>", *LANGUAGES, "<|translate|>", "<|transcribe|>", "<|startofprev|>"]
    names += ["<|nospeech|>", "<|notimestamps|>"]
    pieces = [*PIECES, "<|endoftext|>", *names]
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(f"Ġ {x}" for x in LETTERS_OF_WHISPER), ""])
    )
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    tokenizer = WhisperTokenizerFast(*files, pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    tokenizer.add_tokens([AddedToken(f"<|{index * 0.02:.2f}|>", normalized=False) for index in range(51)])
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|0.00|>"]) == [END, FIRST_TIME]
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def make_whisper(folder, kind, **settings):
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    size = whisper_tokenizer(folder)
    bins = 128 if "128" in kind else 80
    WhisperFeatureExtractor(feature_size=bins, chunk_length=1).save_pretrained(folder)
    sizes = {
        f"{part}_{name}": size
        for part in ("encoder", "decoder")
        for name, size in {"layers": 2, "attention_heads": 4, "ffn_dim": 128}.items()
    }
    config = WhisperConfig(
        vocab_size=size,
        num_mel_bins=bins,
        max_source_positions=50,
        max_target_positions=64,
        d_model=64,
        pad_token_id=END,
        bos_token_id=END,
        eos_token_id=END,
        decoder_start_token_id=START,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **sizes,
    )
    torch.manual_seed(17)
    model = WhisperForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:  # sinusoids would drown in wide weights; so they are wide, too
            torch.nn.init.normal_(parameter, std=0.3 if "embed" not in name else 0.6)
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(SETTINGS | KINDS[kind] | settings))


# --- CTC

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyzéèç'"]
CTC_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
CONVOLUTIONS = {"conv_dim": (16, 16), "conv_stride": (40, 8), "conv_kernel": (64, 8)}
CTC_TYPES = {
    "Wav2Vec2": CONVOLUTIONS,
    "Hubert": CONVOLUTIONS,
    "WavLM": CONVOLUTIONS,
    "Data2VecAudio": CONVOLUTIONS,
    "Wav2Vec2Bert": {"feature_projection_input_dim": 160},
}


def make_ctc(folder, kind, likes="|"):
    """A model that writes the delimiter of words where it would write the letter that it `likes`."""
    import torch
    import transformers

    known = {letter: index for index, letter in enumerate(LETTERS)}
    known["|"], known[likes] = known[likes], known["|"]
    (folder / "vocab.json").write_text(json.dumps(known))
    transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    if kind == "Wav2Vec2Bert":
        transformers.SeamlessM4TFeatureExtractor(feature_size=80).save_pretrained(folder)
    else:
        transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(LETTERS),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        pad_token_id=0,
        **CTC_SIZES,
        **CTC_TYPES[kind],
    )
    torch.manual_seed(1)
    model = getattr(transformers, f"{kind}ForCTC")(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            wide = 1.0 if "lm_head" in name else 0.4 if parameter.ndim == 2 else 0.1
            torch.nn.init.normal_(parameter, std=wide)
    model.save_pretrained(folder)


# --- those that transformers runs

STEM = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<turn>{% for part in m['content'] %}"
    "{% if part['type'] == 'audio' %}<sound>{% else %} {{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
)


def words_tokenizer(folder, count=60, **more):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *more.pop("extra", ()), *(f"w{i}" for i in range(count))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **more).save_pretrained(folder)
    return len(words)


def save_wide(make, folder, never, **settings):
    """Wide weights, so that texts differ; tokens that leave no trace in a text are `never` written."""
    import torch

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # SeamlessM4T's vocoder
        model = make()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "vocoder" not in name and "t2u" not in name:
            torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 2 else 0.15)
    model.generation_config._from_model_config = False
    # No word twice: a random model would write one for ever.
    settings |= {"suppress_tokens": list(never), "no_repeat_ngram_size": 1, "min_new_tokens": 6}
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)


def moonshine(folder, pieces):
    from transformers import MoonshineConfig, MoonshineForConditionalGeneration, Wav2Vec2FeatureExtractor

    size = words_tokenizer(folder)
    Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)
    sizes = {
        f"{part}_num_{what}": n for part in ("encoder", "decoder") for what, n in (("hidden_layers", 2),)
    }
    config = MoonshineConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        encoder_num_attention_heads=4,
        decoder_num_attention_heads=4,
        max_position_embeddings=64,
        decoder_start_token_id=1,
        **sizes,
    )
    save_wide(
        lambda: MoonshineForConditionalGeneration(config), folder, [0, 1, 3], max_length=12, eos_token_id=2
    )


def speech_to_text(folder, pieces):
    from transformers import (
        Speech2TextConfig,
        Speech2TextFeatureExtractor,
        Speech2TextForConditionalGeneration,
        Speech2TextTokenizer,
    )

    found = [piece for piece in pieces(folder / "sentencepiece.bpe.model") if not piece.startswith("<")]
    codes = [f"<lang:{code}>" for code in ("de", "fr", "it", "nl", "pt", "ro", "ru", "es")]
    names = ["<s>", "<pad>", "</s>", "<unk>", *found, *codes]
    (folder / "vocab.json").write_text(json.dumps({name: index for index, name in enumerate(names)}))
    files = str(folder / "vocab.json"), str(folder / "sentencepiece.bpe.model")
    Speech2TextTokenizer(*files, lang_codes="mustc", tgt_lang="fr").save_pretrained(folder)
    Speech2TextFeatureExtractor().save_pretrained(folder)
    config = Speech2TextConfig(
        vocab_size=len(names),
        conv_channels=32,
        max_source_positions=3000,
        max_target_positions=32,
        **STEM,
        **HEADS,
    )
    settings = {"max_length": 14, "decoder_start_token_id": 2}
    # The tokenizer finds languages in its SentencePiece model, which knows none here: all are token 0.
    save_wide(lambda: Speech2TextForConditionalGeneration(config), folder, [1, 3], **settings)


def seamless(version):
    def make(folder, pieces):
        import transformers

        pieces(folder / "sentencepiece.bpe.model")
        tokenizer = transformers.SeamlessM4TTokenizer(
            str(folder / "sentencepiece.bpe.model"), additional_special_tokens=["__eng__", "__fra__"]
        )
        tokenizer.save_pretrained(folder)
        transformers.SeamlessM4TFeatureExtractor().save_pretrained(folder)
        layers = {"encoder_layers": 2, "decoder_layers": 2, "speech_encoder_layers": 2, **HEADS}
        widths = {f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")}
        t2u = {"t2u_encoder_layers": 1, "t2u_decoder_layers": 1, "t2u_vocab_size": 20}
        t2u |= {f"t2u_{part}_ffn_dim": 32 for part in ("encoder", "decoder")}
        t2u |= {f"t2u_{part}_attention_heads": 4 for part in ("encoder", "decoder")}
        vocoder = {
            "upsample_initial_channel": 16,
            "unit_embed_dim": 8,
            "lang_embed_dim": 4,
            "spkr_embed_dim": 4,
        }
        config = getattr(transformers, f"SeamlessM4T{version}Config")(
            vocab_size=len(tokenizer),
            hidden_size=32,
            speech_encoder_intermediate_size=64,
            speech_encoder_attention_heads=4,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            decoder_start_token_id=3,
            **{"char_vocab_size": 20} if version else {},
            **{**layers, **widths, **t2u, **vocoder},
        )
        codes = {code: tokenizer.convert_tokens_to_ids(f"__{code}__") for code in ("eng", "fra")}
        model = getattr(transformers, f"SeamlessM4T{version}Model")
        settings = dict.fromkeys(("t2u_lang_code_to_id", "vocoder_lang_code_to_id"), codes)
        settings |= {"text_decoder_lang_to_code_id": codes, "max_new_tokens": 10}
        save_wide(lambda: model(config), folder, [0, 1, 2, *codes.values()], **settings)

    return make


def gemma3n(folder, pieces):
    from transformers import Gemma3nAudioFeatureExtractor, Gemma3nConfig, Gemma3nForConditionalGeneration

    from pressoir.models.gemma3n import without_vision

    extra = {"audio_token": "<sound>", "boa_token": "<begin>", "eoa_token": "<end>", "image_token": "<image>"}
    extra |= {"boi_token": "<see>", "eoi_token": "<seen>"}
    size = words_tokenizer(
        folder,
        extra=[*extra.values(), "<turn>", "Transcribe", "this", "audio.", "audio", "in", "French."],
        extra_special_tokens=extra,
        chat_template=TEMPLATE,
    )
    Gemma3nAudioFeatureExtractor().save_pretrained(folder)
    text = {
        "vocab_size": size + 8,
        "vocab_size_per_layer_input": size,
        "hidden_size": 32,
        "hidden_size_per_layer_input": 8,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "altup_num_inputs": 2,
        "laurel_rank": 4,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "max_position_embeddings": 512,
        "sliding_window": 64,
    }
    sound = {"conf_num_attention_heads": 4, "conf_num_hidden_layers": 2, "sscp_conv_channel_size": (8, 4)}
    config = Gemma3nConfig(
        text_config=text,
        audio_config={"hidden_size": 32, "vocab_size": 4, "vocab_offset": size + 4, **sound},
        vision_config={"hidden_size": 16, "vocab_size": 4, "vocab_offset": size},
        audio_token_id=4,
        image_token_id=7,
    )
    never = [0, 1, 3, *range(4, 11), *range(size, size + 8)]
    settings = {"max_new_tokens": 10, "eos_token_id": 2, "pad_token_id": 0}
    save_wide(lambda: Gemma3nForConditionalGeneration(without_vision(config)), folder, never, **settings)
    saved = json.loads((folder / "config.json").read_text())
    saved["vision_config"]["model_type"] = "gemma3n_vision"
    (folder / "config.json").write_text(json.dumps(saved))


MAKERS = {
    "moonshine": moonshine,
    "speech_to_text": speech_to_text,
    "seamless_m4t": seamless(""),
    "seamless_m4t_v2": seamless("v2"),
    "gemma3n": gemma3n,
}
