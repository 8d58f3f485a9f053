"""The tokenizers of Marian and M2M100 over SentencePiece alone, without transformers and torch.

Neither has a `tokenizer.json`: pieces come from a SentencePiece model, their ids from `vocab.json`. What is
read here is the layout that transformers' `save_pretrained` writes today (every added token in
`tokenizer_config.json`); a folder in another one is left to transformers. Texts and ids are those of
`MarianTokenizer` and `M2M100Tokenizer`, added tokens within a text included. Neither normalises punctuation:
transformers makes Marian's normaliser, but no tokenizer calls it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pressoir.errors import SourceError
from pressoir.formats.folder import read_json
from pressoir.inference.tokenizers.tokenizers import clean_up, content

SETTINGS = "tokenizer_config.json"
MARIAN, M2M100 = "MarianTokenizer", "M2M100Tokenizer"
_SPECIAL = [f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
# Languages of M2M100 and of its kin of WMT 2021, in the order of their ids: they follow the vocabulary's.
_LANGUAGES = {
    "m2m100": (
        "af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha "
        "he hi hr ht hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne "
        "nl no ns oc or pa pl ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk ur uz vi wo "
        "xh yi yo zh zu"
    ),
    "wmt21": "en ha is ja cs ru zh de",
}


def is_readable(folder: Path) -> bool:
    """Whether a folder's tokenizer is one that `SentencePieceTokenizer` reads."""
    path = folder / SETTINGS
    settings = read_json(path) if path.exists() else {}
    added = settings.get("added_tokens_decoder")
    return (
        settings.get("tokenizer_class") in (MARIAN, M2M100)
        and isinstance(added, dict)
        and not any(
            token.get(flag) for token in added.values() for flag in ("lstrip", "rstrip", "single_word")
        )
        and not settings.get("sp_model_kwargs")
        and not settings.get("split_special_tokens")
        and str(settings.get("language_codes", "m2m100")) in _LANGUAGES
        and all((folder / name).exists() for name in _files(settings))
    )


class SentencePieceTokenizer:
    """Marian's or M2M100's tokenizer; see `Seq2SeqTokenizer`.

    Raises:
        SourceError: a file is broken.
    """

    def __init__(self, folder: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        settings = read_json(folder / SETTINGS)
        self._marian = settings["tokenizer_class"] == MARIAN
        vocabulary, *models = _files(settings)
        try:
            known: dict[str, int] = read_json(folder / vocabulary)
            spoken = read_json(folder / models.pop()) if settings.get("separate_vocabs") else known
            self._source, self._target = (
                SentencePieceProcessor(model_file=str(folder / name)) for name in (models[0], models[-1])
            )
            self._add(settings, known, spoken)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
            raise SourceError(f"{folder} has no tokenizer that can be loaded: {error!r}") from error
        self._cleans = bool(settings.get("clean_up_tokenization_spaces"))
        self.truncation_side = str(settings.get("truncation_side") or "right")

    def _add(self, settings: dict[str, Any], known: dict[str, int], spoken: dict[str, int]) -> None:
        """Tokens beside the pieces: added ones, which are no text's pieces, and languages."""
        added = {content(token): int(key) for key, token in settings["added_tokens_decoder"].items()}
        codes = [] if self._marian else _LANGUAGES[settings.get("language_codes", "m2m100")].split()
        languages = {f"__{code}__": len(known) + index for index, code in enumerate(codes)}
        self._unknown = content(settings.get("unk_token")) or "<unk>"
        self._unknown_id = known[self._unknown]
        self._ids = {**known, **languages, **added}
        self._tokens = {key: token for group in (spoken, languages, added) for token, key in group.items()}
        self._added, longest_first = set(added), sorted(added, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        named = [settings.get(name) for name in _SPECIAL]
        self._skipped = set(map(content, [*named, *(settings.get("additional_special_tokens") or ())]))
        self._skipped_ids = {self.id(token) for token in self._skipped if token is not None}
        targets = [token for token in known if token.startswith(">>")]
        self.special = list(dict.fromkeys([*targets, *added, *languages]))
        source = languages.get(f"__{settings.get('src_lang') or 'en'}__")
        end = self.id(content(settings.get("eos_token")) or "</s>")
        self._frame: tuple[list[int], list[int]] = ([] if source is None else [source], [end])

    def frame(self) -> tuple[list[int], list[int]]:
        """See `Seq2SeqTokenizer.frame`."""
        return self._frame

    def encode(self, text: str) -> list[int]:
        """See `Seq2SeqTokenizer.encode`."""
        tokens: list[str] = []
        for chunk in filter(None, self._split.split(text)):
            tokens += [chunk] if chunk in self._added else self._pieces(chunk)
        return [self.id(token) for token in tokens]

    def decode(self, ids: Sequence[int], strip: bool = True) -> str:
        """See `Seq2SeqTokenizer.decode`."""
        groups: list[list[str] | str] = []  # pieces, or an added token
        for token in (self._tokens.get(key, self._unknown) for key in ids if key not in self._skipped_ids):
            if token in self._skipped:
                continue
            if token in self._added:
                groups.append(token)
            elif groups and isinstance(groups[-1], list):
                groups[-1].append(token)
            else:
                groups.append([token])
        texts = [group if isinstance(group, str) else self._text(group) for group in groups]
        text = " ".join(text for text in texts if text)
        text = clean_up(text) if self._cleans else text
        return text.strip() if strip else text

    def id(self, token: str) -> int:
        """See `Seq2SeqTokenizer.id`; the unknown token's, where there is none."""
        return self._ids.get(token, self._unknown_id)

    def _pieces(self, text: str) -> list[str]:
        """SentencePiece's pieces; Marian's target language at the start (`>>fra<<`) is one."""
        code, end = "", text.find("<<") + 2
        if self._marian and text.startswith(">>") and end > 1:
            code, text = text[:end], text[end:]
        return [*filter(None, [code]), *self._source.encode(text, out_type=str)]

    def _text(self, pieces: list[str]) -> str:
        text = str(self._target.decode_pieces(pieces))
        return (text.replace("\N{LOWER ONE EIGHTH BLOCK}", " ") if self._marian else text).strip()


def _files(settings: dict[str, Any]) -> list[str]:
    """The vocabulary, the SentencePiece models, and the target's vocabulary, if it has its own."""
    if settings["tokenizer_class"] == M2M100:
        return ["vocab.json", "sentencepiece.bpe.model"]
    own = ["target_vocab.json"] if settings.get("separate_vocabs") else []
    return ["vocab.json", "source.spm", "target.spm", *own]
