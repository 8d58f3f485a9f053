"""Translation over any encoder-decoder: texts in, texts out; languages by their common codes.

=================  =================  ===================================================================
model              source language    target language
=================  =================  ===================================================================
NLLB, M2M100       first token        first generated token
Marian             fixed by training  fixed, or a token such as `>>fra<<` before the text
T5                 task prefix ("translate English to French: "), for both
=================  =================  ===================================================================

A folder with a `tokenizer.json` needs no transformers and no torch. Marian's and M2M100's tokenizers exist
only in Python (SentencePiece), and bring both.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressoir.errors import RecipeError
from pressoir.formats.folder import Runtime, read_json
from pressoir.inference.arguments import listed, opened
from pressoir.inference.engines.encoder_decoder import SequenceToSequence, open_sequence_to_sequence
from pressoir.inference.token_groups import token_groups
from pressoir.inference.tokenizers.encoder_decoder import Seq2SeqTokenizer, open_vocabulary

MAX_SOURCE_TOKENS = 512  # where the model's own limit is not given

T5_TYPES = ("t5", "mt5", "umt5")

# ISO 639-1 code: code of FLORES-200 (NLLB), English name.
LANGUAGES: dict[str, tuple[str, str]] = {
    "ar": ("arb_Arab", "Arabic"),
    "bg": ("bul_Cyrl", "Bulgarian"),
    "bn": ("ben_Beng", "Bengali"),
    "ca": ("cat_Latn", "Catalan"),
    "cs": ("ces_Latn", "Czech"),
    "cy": ("cym_Latn", "Welsh"),
    "da": ("dan_Latn", "Danish"),
    "de": ("deu_Latn", "German"),
    "el": ("ell_Grek", "Greek"),
    "en": ("eng_Latn", "English"),
    "es": ("spa_Latn", "Spanish"),
    "et": ("est_Latn", "Estonian"),
    "fa": ("pes_Arab", "Persian"),
    "fi": ("fin_Latn", "Finnish"),
    "fr": ("fra_Latn", "French"),
    "ga": ("gle_Latn", "Irish"),
    "he": ("heb_Hebr", "Hebrew"),
    "hi": ("hin_Deva", "Hindi"),
    "hr": ("hrv_Latn", "Croatian"),
    "hu": ("hun_Latn", "Hungarian"),
    "id": ("ind_Latn", "Indonesian"),
    "is": ("isl_Latn", "Icelandic"),
    "it": ("ita_Latn", "Italian"),
    "ja": ("jpn_Jpan", "Japanese"),
    "ko": ("kor_Hang", "Korean"),
    "lt": ("lit_Latn", "Lithuanian"),
    "lv": ("lvs_Latn", "Latvian"),
    "ms": ("zsm_Latn", "Malay"),
    "nl": ("nld_Latn", "Dutch"),
    "no": ("nob_Latn", "Norwegian"),
    "pl": ("pol_Latn", "Polish"),
    "pt": ("por_Latn", "Portuguese"),
    "ro": ("ron_Latn", "Romanian"),
    "ru": ("rus_Cyrl", "Russian"),
    "sk": ("slk_Latn", "Slovak"),
    "sl": ("slv_Latn", "Slovenian"),
    "sr": ("srp_Cyrl", "Serbian"),
    "sv": ("swe_Latn", "Swedish"),
    "sw": ("swh_Latn", "Swahili"),
    "ta": ("tam_Taml", "Tamil"),
    "th": ("tha_Thai", "Thai"),
    "tr": ("tur_Latn", "Turkish"),
    "uk": ("ukr_Cyrl", "Ukrainian"),
    "ur": ("urd_Arab", "Urdu"),
    "vi": ("vie_Latn", "Vietnamese"),
    "zh": ("zho_Hans", "Chinese"),
}

# How a language stands in a vocabulary: NLLB, M2M100, and Marian's models of several targets.
_TOKENS = re.compile(r"([a-z]{3}_[A-Z][a-z]{3})|__([a-z]{2,3})__|>>(\w+)<<")


class Translator:
    """An encoder-decoder, its vocabulary, and what it knows about languages."""

    def __init__(
        self,
        engine: SequenceToSequence,
        vocabulary: Seq2SeqTokenizer,
        model_type: str,
        defaults: tuple[str | None, str | None] = (None, None),
        max_source_tokens: int = MAX_SOURCE_TOKENS,
    ) -> None:
        self.engine, self.vocabulary, self.model_type = engine, vocabulary, model_type
        self.max_source_tokens = max_source_tokens
        self._tokens = {}  # language code: its token
        for token in vocabulary.special:
            if found := _TOKENS.fullmatch(token):
                self._tokens[next(filter(None, found.groups()))] = token
        self._prefixes: dict[str, dict[str, Any]] = (
            engine.generation.settings.get("task_specific_params") or {}
        )
        self.defaults = defaults

    @classmethod
    def open(
        cls, folder: Path | str, threads: int | None = None, runtime: Runtime | None = None
    ) -> Translator:
        """Open a model folder: ONNX Runtime where it has the graphs, else PyTorch; `runtime` insists.

        Raises:
            SourceError: the folder has no such model, or no tokenizer.
        """
        folder, threads = opened(folder, threads)
        engine = open_sequence_to_sequence(folder, threads, runtime)
        path = folder / "tokenizer_config.json"
        settings = read_json(path) if path.exists() else {}
        limits = [
            settings.get("model_max_length") or MAX_SOURCE_TOKENS,
            engine.generation.settings.get("max_position_embeddings") or MAX_SOURCE_TOKENS,
            MAX_SOURCE_TOKENS,
        ]
        defaults = (
            settings.get("src_lang") or settings.get("source_lang"),
            settings.get("tgt_lang") or settings.get("target_lang"),
        )
        kind = str(engine.generation.settings.get("model_type"))
        return cls(engine, open_vocabulary(folder), kind, defaults, int(min(limits)))

    @property
    def languages(self) -> list[str]:
        """Codes of the languages that the model's vocabulary has; empty where the pair is fixed."""
        return sorted(self._tokens)

    def translate(
        self,
        texts: Sequence[str] | str,
        source_language: str | None = None,
        target_language: str | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        batch_size: int = 16,
    ) -> list[str]:
        """Translations, in the order of `texts`; a text is cut after `max_source_tokens` tokens.

        A language is a code of the model's own (`fra_Latn`) or a common one (`fr`); without one, the
        tokenizer's default is taken. `max_new_tokens` is by default the model's own limit. An engine whose
        result depends on the batch (dynamic int8 activations) is run one text at a time.

        Raises:
            RecipeError: a language is unknown, missing, or given to a model that translates one pair.
        """
        texts = listed(texts)
        size = batch_size if self.engine.batch_invariant else 1
        encoded, forced = self.encode(texts, source_language, target_language)
        order = sorted(range(len(texts)), key=lambda index: len(encoded[index]))
        results = [""] * len(texts)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            found = self._generate([encoded[index] for index in chosen], forced, max_new_tokens, num_beams)
            for index, text in zip(chosen, found, strict=True):
                results[index] = text
        return results

    def iter_translations(
        self,
        texts: Sequence[str],
        source_language: str | None = None,
        target_language: str | None = None,
        *,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        max_tokens: int = 0,
    ) -> Iterator[tuple[list[int], list[str]]]:
        """Translations of a group of texts after another, and which rows of `texts` they are.

        A group has at most `max_tokens` source tokens, see `token_groups`; with 0, or if the engine's result
        depends on the batch, each text is run alone. `max_length` truncates a text earlier than
        `max_source_tokens`. The rest is as in `translate`.
        """
        encoded, forced = self.encode(texts, source_language, target_language, max_length)
        budget = max_tokens if self.engine.batch_invariant else 0
        for rows in token_groups([len(ids) for ids in encoded], budget):
            yield rows, self._generate([encoded[row] for row in rows], forced, max_new_tokens, num_beams)

    def _generate(
        self, encoded: Sequence[list[int]], forced: int | None, max_new_tokens: int | None, num_beams: int
    ) -> list[str]:
        generated = self.engine.generate(
            self.batch(encoded), max_new_tokens=max_new_tokens, num_beams=num_beams, forced_first=forced
        )
        # The language is not special to every tokenizer that has it.
        return [self.vocabulary.decode(ids[1:] if ids[:1] == [forced] else ids) for ids in generated]

    def encode(
        self,
        texts: Sequence[str],
        source_language: str | None = None,
        target_language: str | None = None,
        max_length: int | None = None,
    ) -> tuple[list[list[int]], int | None]:
        """Source token ids of each text, and the token that the translation must begin with, if any.

        Texts are truncated at `max_source_tokens`, or at `max_length` if that is less.

        Raises:
            RecipeError: as in `translate`.
        """
        eos = min(self.engine.generation.rules.eos_ids)
        before: list[int] = []
        prefix, forced = "", None
        if self.model_type in T5_TYPES:
            prefix = self._task_prefix(source_language, target_language)
        elif self._marian_targets:
            prefix = f"{self._language_token(target_language, 'target_language', None)} "
        elif self._tokens:
            source = self._language_token(source_language, "source_language", self.defaults[0])
            target = self.engine.generation.rules.forced_first
            if target_language or self.defaults[1] or target is None:
                token = self._language_token(target_language, "target_language", self.defaults[1])
                target = self.vocabulary.id(token)
            before, forced = [self.vocabulary.id(source)], target
        else:
            self._check_pair(source_language, target_language)
        limit = min(max_length or self.max_source_tokens, self.max_source_tokens)
        room = limit - len(before) - 1
        return [[*before, *self.vocabulary.encode(prefix + text)[:room], eos] for text in texts], forced

    def batch(self, rows: Sequence[list[int]]) -> dict[str, NDArray[np.int64]]:
        """`input_ids` and `attention_mask` (rows, longest), padded on the right."""
        longest = max(map(len, rows))
        ids = np.full((len(rows), longest), self.engine.generation.rules.pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)], mask[index, : len(row)] = row, 1
        return {"input_ids": ids, "attention_mask": mask}

    @property
    def _marian_targets(self) -> bool:
        return any(token.startswith(">>") for token in self._tokens.values())

    def _check_pair(self, source: str | None, target: str | None) -> None:
        """Languages given to a model of one fixed pair must be that pair."""
        asked = (("source_language", source), ("target_language", target))
        for (field, code), fixed in zip(asked, self.defaults, strict=True):
            if code is not None and (fixed is None or fixed not in spellings(code)):
                pair = f", {self.defaults[0]} to {self.defaults[1]}" if all(self.defaults) else ""
                raise RecipeError(
                    f"{field} is {code!r}, but this model translates one fixed language pair{pair}; omit it"
                )

    def _language_token(self, code: str | None, field: str, default: str | None) -> str:
        code = code or default
        known = self.languages
        if code is None:
            raise RecipeError(f"{field} is required; this model supports {', '.join(known)}")
        for candidate in spellings(code):
            if candidate in self._tokens:
                return self._tokens[candidate]
        near = difflib.get_close_matches(code, known, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise RecipeError(
            f"{field} {code!r} is not supported by this model; {hint}supported: {', '.join(known)}"
        )

    def _task_prefix(self, source: str | None, target: str | None) -> str:
        """T5's instruction; empty where no language is given, for the text may hold its own."""
        if source is None and target is None:
            return ""
        codes = []
        for field, code in (("source_language", source), ("target_language", target)):
            common = next((name for name in spellings(code or "") if name in LANGUAGES), None)
            if common is None:
                raise RecipeError(
                    f"{field} {code!r} is not supported; T5 models support {', '.join(sorted(LANGUAGES))}"
                )
            codes.append(common)
        stated = self._prefixes.get(f"translation_{codes[0]}_to_{codes[1]}", {}).get("prefix")
        names = [LANGUAGES[code][1] for code in codes]
        return str(stated or f"translate {names[0]} to {names[1]}: ")


def spellings(code: str) -> list[str]:
    """How a language may be written: as given, by its ISO 639-1 code, by FLORES-200's, by ISO 639-3."""
    short = {flores: iso for iso, (flores, _) in LANGUAGES.items()}.get(code, code)
    flores = LANGUAGES[short][0] if short in LANGUAGES else code
    return list(dict.fromkeys([code, short, flores, flores.partition("_")[0]]))
