"""Speech models that transformers runs itself: Moonshine, Speech2Text, SeamlessM4T v1 and v2, Gemma 3n.

Features, `generate` and text are transformers' own, in PyTorch; none of these types is exported here.

===============  ==================================================================================
type             language
===============  ==================================================================================
moonshine        none: one language a model
speech_to_text   of a multilingual model: that of the text, its first token
seamless_m4t     that of the text, needed: equal to the sound's it is transcribed, else translated
gemma3n          named in the instruction, where it is given
===============  ==================================================================================

Gemma 3n's vision tower is left out, so that sound needs neither timm nor torchvision, nor its weights.
A sound longer than 30 s is cut there, as Whisper's is.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pressoir.errors import RecipeError, SourceError
from pressoir.formats.folder import Runtime, model_type_of, read_json, runtime_of
from pressoir.inference.arguments import listed, opened
from pressoir.inference.audio import SAMPLING_RATE, Waveform
from pressoir.inference.transcript import Heard, SpeechOptions
from pressoir.inference.translation import LANGUAGES, spellings

SEAMLESS = ("seamless_m4t", "seamless_m4t_v2")
WINDOW_S = 30.0
INSTRUCTION_TOKENS = 256
"""Most tokens of a transcript by a model that follows instructions; its files name no limit."""
_LEAST_S = 0.1  # less sound gives some feature extractors no frame
_INSTRUCTION = "Transcribe this audio."
_INSTRUCTION_IN = "Transcribe this audio in {}."


class TorchModel:
    """A transformers model and its tokenizer; its weights may be moved to another device."""

    runtime: Runtime = "pytorch"
    batch_invariant = True

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    def generate(
        self, inputs: Any, max_new_tokens: int | None = None, num_beams: int = 1, **options: Any
    ) -> str:
        """The text that `generate` writes for one input of arrays (1, …), greedily or with beams."""
        import torch

        limit = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        tensors = {name: torch.as_tensor(np.asarray(array)) for name, array in inputs.items()}
        given = {name: tensor.to(self.model.device) for name, tensor in tensors.items()}
        with torch.inference_mode():
            output = self.model.generate(**given, do_sample=False, num_beams=num_beams, **limit, **options)
        # A decoder without an encoder repeats what it was given.
        start = 0 if self.model.config.is_encoder_decoder else len(inputs["input_ids"][0])
        return str(self.tokenizer.decode(output[0][start:], skip_special_tokens=True)).strip()


class TransformersSpeechModel:
    """One of the types above: mono samples in, a transcript out, window by window."""

    def __init__(self, engine: TorchModel, extract: Any, kind: str, sampling_rate: int) -> None:
        self.engine, self.extract, self.kind, self.sampling_rate = engine, extract, kind, sampling_rate

    @classmethod
    def open(cls, folder: Path, runtime: Runtime | None = None) -> TransformersSpeechModel:
        """See `SpeechRecognizer.open`."""
        kind = model_type_of(folder)
        if runtime_of(folder, runtime) != "pytorch":
            raise SourceError(
                f"{folder}: a model of type {kind!r} runs in PyTorch only; set runtime: pytorch"
            )
        from pressoir.models import loading

        load = loading.load_gemma3n if kind == "gemma3n" else loading.load_encoder_decoder
        engine = TorchModel(load(folder), loading.load_tokenizer(folder))
        settings = read_json(folder / "preprocessor_config.json")
        rate = int(settings.get("sampling_rate", SAMPLING_RATE))
        return cls(engine, loading.load_feature_extractor(folder), kind, rate)

    @property
    def takes_language(self) -> bool:
        """Whether a language decides what is written."""
        return self.kind in (*SEAMLESS, "gemma3n") or bool(self._codes())

    @property
    def needed_languages(self) -> list[str]:
        """Codes of which one must be given; none where it may be left out."""
        return sorted(self._codes()) if self.kind in SEAMLESS else []

    def iter_transcript(self, samples: Waveform, options: SpeechOptions) -> Iterator[str]:
        """See `SpeechRecognizer.iter_transcript`."""
        if options.prompt:
            raise RecipeError(f"prompt is not supported by models of type {self.kind!r}; omit it")
        if options.translate and self.kind not in SEAMLESS:
            raise RecipeError(
                f"a model of type {self.kind!r} cannot translate speech; use a multilingual Whisper or "
                "SeamlessM4T"
            )
        chosen = self.options("en" if options.translate else options.language)
        max_new_tokens = options.max_new_tokens
        if self.kind == "gemma3n" and self.engine.model.generation_config.max_new_tokens is None:
            max_new_tokens = max_new_tokens or INSTRUCTION_TOKENS
        window = round(WINDOW_S * self.sampling_rate)
        for start in range(0, len(samples), window):
            chunk = samples[start : start + window]
            short = max(0, round(_LEAST_S * self.sampling_rate) - len(chunk))
            inputs = self.extract(np.pad(chunk, (0, short)))
            if self.kind == "gemma3n":
                inputs |= self._instructed(options.language)
            yield self.engine.generate(inputs, max_new_tokens, options.num_beams, **chosen)

    def iter_segments(
        self, samples: Waveform, options: SpeechOptions, *, words: bool = False, scored: bool = True
    ) -> Iterator[Heard]:
        """See `SpeechRecognizer.iter_segments`: none of these types writes times."""
        raise RecipeError(
            f"times are not supported for models of type {self.kind!r}, which write none; use Whisper or a "
            "CTC model"
        )

    def options(self, language: str | None) -> dict[str, Any]:
        """The arguments of `generate` that choose the language.

        Raises:
            RecipeError: it is unknown to the model, missing, or the model has one language.
        """
        if self.kind == "gemma3n":
            return {}
        codes = self._codes()
        if not codes:
            if language is not None:
                raise RecipeError(
                    f"language {language!r} is specified, but this model supports one language only; omit it"
                )
            return {}
        if language is None and self.kind not in SEAMLESS:
            return {}
        code = find_language(language, list(codes))
        return {"tgt_lang": code} if self.kind in SEAMLESS else {"forced_bos_token_id": codes[code]}

    def _codes(self) -> dict[str, int]:
        """Token of each language that a text can begin with."""
        if self.kind in SEAMLESS:
            codes = getattr(self.engine.model.generation_config, "text_decoder_lang_to_code_id", None)
        else:
            codes = getattr(self.engine.tokenizer, "lang_code_to_id", None)
        return dict(codes or {})

    def _instructed(self, language: str | None) -> dict[str, Any]:
        """Token ids (1, tokens) of Gemma 3n's instruction, with as many placeholders for sound as it has."""
        tokenizer, config = self.engine.tokenizer, self.engine.model.config
        names = [LANGUAGES[code][1] for code in spellings(language or "") if code in LANGUAGES]
        text = _INSTRUCTION_IN.format(names[0] if names else language) if language else _INSTRUCTION
        content = [{"type": "audio"}, {"type": "text", "text": text}]
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        sound = tokenizer.audio_token
        placeholders = sound * int(config.audio_soft_tokens_per_image)
        prompt = prompt.replace(sound, f"\n\n{tokenizer.boa_token}{placeholders}{tokenizer.eoa_token}\n\n")
        begun = prompt.startswith(tokenizer.bos_token or "\0")
        ids = np.asarray(tokenizer(prompt, add_special_tokens=not begun)["input_ids"])[None]
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


class SeamlessTranslator:
    """SeamlessM4T from text to text, for evaluation."""

    def __init__(self, engine: TorchModel) -> None:
        self.engine = engine

    @classmethod
    def open(cls, folder: Path | str, threads: int | None = None) -> SeamlessTranslator:
        """Open a checkpoint; raises SourceError where it is none."""
        folder, _ = opened(folder, threads)
        from pressoir.models import loading

        return cls(TorchModel(loading.load_text_to_text(folder), loading.load_tokenizer(folder)))

    def encode(
        self, texts: Sequence[str], source_language: str | None, target_language: str | None
    ) -> tuple[list[list[int]], str]:
        """Source token ids of each text, padded to what its tokenizer wants, and the target's own code.

        Raises:
            RecipeError: a language is missing or unknown.
        """
        codes = list(self.engine.model.generation_config.text_decoder_lang_to_code_id)
        source, target = (find_language(code, codes) for code in (source_language, target_language))
        return [self.engine.tokenizer(text, src_lang=source)["input_ids"] for text in texts], target

    def translate(
        self,
        texts: Sequence[str] | str,
        source_language: str | None = None,
        target_language: str | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        batch_size: int = 1,
    ) -> list[str]:
        """Translations, one text at a time; the rest as in `Translator.translate`."""
        rows, target = self.encode(listed(texts), source_language, target_language)
        padding = self.engine.tokenizer.pad_token_id
        inputs = (
            {"input_ids": [row], "attention_mask": [[int(token != padding) for token in row]]} for row in rows
        )
        return [
            self.engine.generate(row_inputs, max_new_tokens, num_beams, tgt_lang=target)
            for row_inputs in inputs
        ]


def find_language(code: str | None, known: Sequence[str]) -> str:
    """A model's own code (`fra`) of a language, given so or as a common one (`fr`, `fra_Latn`).

    Raises:
        RecipeError: it is missing, or the model does not know it.
    """
    if code is None:
        raise RecipeError(f"a language is required; this model supports {', '.join(sorted(known))}")
    for candidate in (
        code,
        *(spelling for name in spellings(code) for spelling in (name, name.partition("_")[0])),
    ):
        if candidate in known:
            return candidate
    near = difflib.get_close_matches(code, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise RecipeError(
        f"language {code!r} is not supported by this model; {hint}supported: {', '.join(sorted(known))}"
    )
