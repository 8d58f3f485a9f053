"""Translation over any encoder-decoder: texts in, texts out; languages by their common codes.

====================  =================  ================================================================
model                 source language    target language
====================  =================  ================================================================
NLLB, M2M100, mBART   token beside text  first generated token
mBART-cc25            token after text   the decoder's start token
Marian                fixed by training  fixed, or a token such as `>>fra<<` before the text
T5                    task prefix ("translate English to French: "), for both
BART, Pegasus         none: they write what they were trained to write, such as a summary
====================  =================  ================================================================

Where the tokens go is what transformers' tokenizer of the model says. A folder of graphs needs no
transformers and no torch, see `pressoir.inference.tokenizers.encoder_decoder`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pressoir.errors import RecipeError
from pressoir.formats.folder import Runtime, read_json
from pressoir.formats.tokenizer_limit import MAX_TOKENS, most_source_tokens
from pressoir.inference.arguments import listed, opened
from pressoir.inference.engines.encoder_decoder import SequenceToSequence, open_sequence_to_sequence
from pressoir.inference.token_groups import token_groups
from pressoir.inference.tokenizers.encoder_decoder import Seq2SeqTokenizer, open_vocabulary
from pressoir.inference.tokenizers.shortening import finished, shortened
from pressoir.inference.tokenizers.steps import STEP

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

# How a language is written in a vocabulary: NLLB, mBART, M2M100, and Marian's models of several targets.
_TOKENS = re.compile(r"([a-z]{3}_[A-Z][a-z]{3})|([a-z]{2}_[A-Z]{2})|__([a-z]{2,3})__|>>(\w+)<<")


class DecoderStart(NamedTuple):
    """How a translation begins; see `SequenceToSequence.generate`."""

    forced_first: int | None = None
    prompt: tuple[int, ...] = ()


class Framing(NamedTuple):
    """What stands around the texts of a request."""

    prefix: str
    before: list[int]
    after: list[int]
    room: int
    """Tokens of a text at most."""
    start: DecoderStart


class Translations(NamedTuple):
    """Translations of some of several texts."""

    rows: list[int]
    """Which of the texts they are."""
    texts: list[str]
    truncated: list[bool]
    """Whether a text has more tokens than the model was given."""


class Translator:
    """An encoder-decoder, its vocabulary, and what it knows about languages."""

    def __init__(
        self,
        engine: SequenceToSequence,
        vocabulary: Seq2SeqTokenizer,
        model_type: str,
        defaults: tuple[str | None, str | None] = (None, None),
        max_source_tokens: int = MAX_TOKENS,
    ) -> None:
        self.engine, self.vocabulary, self.model_type = engine, vocabulary, model_type
        self.max_source_tokens = max_source_tokens
        self._tokens: dict[str, str] = {}  # language code: its token
        for token in vocabulary.special:
            if found := _TOKENS.fullmatch(token):
                self._tokens[next(filter(None, found.groups()))] = token
        self._frame = vocabulary.frame()
        self._language_ids = {vocabulary.id(token) for token in self._tokens.values()}
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
        limit = most_source_tokens(engine.generation.settings, settings)
        defaults = (
            settings.get("src_lang") or settings.get("source_lang"),
            settings.get("tgt_lang") or settings.get("target_lang"),
        )
        kind = str(engine.generation.settings.get("model_type"))
        return cls(engine, open_vocabulary(folder, engine.runtime), kind, defaults, limit)

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
        encoded, begin = self.encode(texts, source_language, target_language)
        order = sorted(range(len(texts)), key=lambda index: len(encoded[index]))
        results = [""] * len(texts)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            found = self._generate([encoded[index] for index in chosen], begin, max_new_tokens, num_beams)
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
    ) -> Iterator[Translations | None]:
        """Translations of a group of texts after another; None after a step of tokenising.

        A group has at most `max_tokens` source tokens, see `token_groups`; with 0, or if the engine's result
        depends on the batch, each text is run alone. `max_length` truncates a text earlier than
        `max_source_tokens`. The rest is as in `translate`.
        """
        framing = self._framing(source_language, target_language, max_length)
        encoded, cut, characters = list[list[int]](), list[bool](), 0
        for text in texts:
            ids, truncated = yield from self._encoded(text, framing)
            encoded.append(ids)
            cut.append(truncated)
            characters += len(text)
            if characters > STEP:
                yield None
                characters = 0
        budget = max_tokens if self.engine.batch_invariant else 0
        for rows in token_groups([len(ids) for ids in encoded], budget):
            found = self._generate([encoded[row] for row in rows], framing.start, max_new_tokens, num_beams)
            yield Translations(rows, found, [cut[row] for row in rows])

    def _generate(
        self, encoded: Sequence[list[int]], begin: DecoderStart, max_new_tokens: int | None, num_beams: int
    ) -> list[str]:
        options = {"max_new_tokens": max_new_tokens, "num_beams": num_beams, **begin._asdict()}
        # The language is not special to every tokenizer that has it.
        return [
            self.vocabulary.decode(ids[1:] if ids[:1] == [begin.forced_first] else ids)
            for ids in self.engine.generate(self.batch(encoded), **options)
        ]

    def encode(
        self,
        texts: Sequence[str],
        source_language: str | None = None,
        target_language: str | None = None,
        max_length: int | None = None,
    ) -> tuple[list[list[int]], DecoderStart]:
        """Source token ids of each text, and how its translation begins.

        Texts are truncated at `max_source_tokens`, or at `max_length` if that is less.

        Raises:
            RecipeError: as in `translate`.
        """
        framing = self._framing(source_language, target_language, max_length)
        return [finished(self._encoded(text, framing))[0] for text in texts], framing.start

    def _framing(self, source: str | None, target: str | None, max_length: int | None) -> Framing:
        before, after = self._frame
        prefix, start = self.instruction(source, target), DecoderStart()
        if self._beside:
            before, after, start = self._between(source, target)
        limit = min(max_length or self.max_source_tokens, self.max_source_tokens)
        return Framing(prefix, before, after, max(limit - len(before) - len(after), 0), start)

    def _encoded(self, text: str, framing: Framing) -> Generator[None, None, tuple[list[int], bool]]:
        """Token ids of a text within its frame, and whether some were cut off; in steps, see `shortened`."""
        text, room, left = framing.prefix + text, framing.room, self.vocabulary.truncation_side == "left"
        ids = self.vocabulary.encode((yield from shortened(self.vocabulary.encode, text, room, left=left)))
        kept = ids[max(len(ids) - room, 0) :] if left else ids[:room]
        return [*framing.before, *kept, *framing.after], len(ids) > room

    def instruction(self, source_language: str | None, target_language: str | None) -> str:
        """What is written before a text: T5's sentence, Marian's target, or nothing.

        Raises:
            RecipeError: as in `translate`.
        """
        if self.model_type in T5_TYPES:
            return self._task_prefix(source_language, target_language)
        if self._marian_targets:
            return f"{self._language_token(target_language, 'target_language', None)} "
        if not self._tokens:
            self._check_pair(source_language, target_language)
        return ""

    def _between(self, source: str | None, target: str | None) -> tuple[list[int], list[int], DecoderStart]:
        """The tokens around a text in one language, and how its translation into another begins."""
        before, after = self._frame
        if self._language_ids.intersection([*before, *after]):
            code = self.vocabulary.id(self._language_token(source, "source_language", self.defaults[0]))
            before, after = (
                [code if token in self._language_ids else token for token in tokens]
                for tokens in (before, after)
            )
        elif source is not None:
            raise RecipeError(
                f"source_language is {source!r}, but this model's tokenizer writes no language; omit it"
            )
        generation = self.engine.generation
        starts = self.model_type == "mbart" and bool(self._language_ids.intersection(after))  # mBART-cc25
        stated = generation.decoder_start if starts else generation.rules.forced_first
        if target or self.defaults[1] or stated not in self._language_ids:
            stated = self.vocabulary.id(self._language_token(target, "target_language", self.defaults[1]))
        return before, after, DecoderStart(prompt=(stated,)) if starts else DecoderStart(forced_first=stated)

    def batch(self, rows: Sequence[list[int]]) -> dict[str, NDArray[np.int64]]:
        """`input_ids` and `attention_mask` (rows, longest), padded on the right."""
        longest = max(map(len, rows))
        ids = np.full((len(rows), longest), self.engine.generation.rules.pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)], mask[index, : len(row)] = row, 1
        return {"input_ids": ids, "attention_mask": mask}

    def find_language(self, code: str) -> str | None:
        """The model's own code of a language; None where it has none, or several."""
        for candidate in spellings(code):
            own = [name for name in self._tokens if name.partition("_")[0] == candidate]  # mBART: fr_XX
            if candidate in self._tokens or len(own) == 1:
                return candidate if candidate in self._tokens else own[0]
        return None

    @property
    def _beside(self) -> bool:
        """Whether languages are tokens beside a text."""
        return bool(self._tokens) and self.model_type not in T5_TYPES and not self._marian_targets

    @property
    def _marian_targets(self) -> bool:
        return any(token.startswith(">>") for token in self._tokens.values())

    def _check_pair(self, source: str | None, target: str | None) -> None:
        """Languages given to a model of one fixed pair must be that pair."""
        asked = (("source_language", source), ("target_language", target))
        for (field, code), fixed in zip(asked, self.defaults, strict=True):
            if code is not None and (fixed is None or fixed not in spellings(code)):
                pair = f" pair, {self.defaults[0]} to {self.defaults[1]}" if all(self.defaults) else "s"
                raise RecipeError(f"{field} is {code!r}, but this model has fixed language{pair}; omit it")

    def _language_token(self, code: str | None, field: str, default: str | None) -> str:
        code = code or default
        known = self.languages
        if code is None:
            raise RecipeError(f"{field} is required; this model supports {', '.join(known)}")
        if (found := self.find_language(code)) is not None:
            return self._tokens[found]
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
