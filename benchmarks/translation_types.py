"""The types of translation model that `model_types.py` compares, and what transformers writes of each."""

from __future__ import annotations

import importlib.util
import json
import re
import urllib.request
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import loopback

from pressoir.inference.translation import T5_TYPES, Translator

TINY = Path(__file__).parents[1] / "tests" / "pressoir" / "conftest.py"
THREADS = 1

Texts = list[str]


@dataclass(frozen=True)
class Translation:
    """A type of translation model, and a tiny random one of it; or a model that is given."""

    name: str
    write: Callable[[Any, Path], object] | None
    """Writes a checkpoint into a folder, given the module that has the tests' tiny models."""
    languages: tuple[str | None, str | None] = (None, None)
    embeddings: float = 1.0
    """Factor of the token embeddings, and `cross` of the cross-attention: so that the input matters."""
    cross: float = 1.0
    folder: Path | None = None
    source: Path | None = None
    request: dict[str, Any] = field(default_factory=dict)
    exported: Literal[True] = True
    beams: Literal[True] = True

    def make(self, work: Path) -> Path:
        """See `Type`."""
        if self.folder is not None:
            return self.folder
        assert self.write is not None
        folder = work / re.sub(r"\W+", "-", self.name)
        folder.mkdir()
        self.write(tiny_models(), folder)
        _widen(folder, self)
        return folder

    def inputs(self, most: int) -> Texts:
        """See `Type`."""
        if self.source is not None:
            return self.source.read_text(encoding="utf-8").split("\n")[:most]
        texts: Texts = tiny_models().TEXTS
        return texts[:: len(texts) // most][:most]

    def expected(self, folder: Path, inputs: Sequence[str], num_beams: int) -> tuple[Texts, int]:
        """See `Type`."""
        import torch
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Recommended: pip install sacremoses")
            tokenizer = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
        prefix, options = self._asked(folder, tokenizer)
        tokens: set[int] = set()
        texts: Texts = []
        for text in inputs:
            encoded = tokenizer(prefix + text, return_tensors="pt", truncation=True)
            encoded.pop("token_type_ids", None)
            with torch.inference_mode():
                ids = model.generate(**encoded, num_beams=num_beams, do_sample=False, **options)[0]
            tokens.update(ids.tolist())
            texts.append(tokenizer.decode(ids, skip_special_tokens=True).strip())
        return texts, len(tokens)

    def _asked(self, folder: Path, tokenizer: Any) -> tuple[str, dict[str, Any]]:
        """A T5's instruction, and how transformers is told the languages."""
        ours = Translator.open(folder, THREADS, "pytorch")
        source, target = (given or own for given, own in zip(self.languages, ours.defaults, strict=True))
        options: dict[str, Any] = {}
        if hasattr(tokenizer, "src_lang") and source:
            tokenizer.src_lang = source
            kind = type(tokenizer).__name__
            code = tokenizer.convert_tokens_to_ids(f"__{target}__" if "M2M" in kind else target)
            options["decoder_start_token_id" if kind.startswith("MBartT") else "forced_bos_token_id"] = code
        return ours.instruction(*self.languages) if ours.model_type in T5_TYPES else "", options

    def written(self, folder: Path, runtime: Any, inputs: Sequence[str], num_beams: int) -> Texts:
        """See `Type`."""
        translator = Translator.open(folder, THREADS, runtime)
        return translator.translate(inputs, *self.languages, num_beams=num_beams)

    def answered(self, port: int, tier: str, inputs: Sequence[str]) -> Texts:
        """See `Type`."""
        languages = dict(zip(("source_language", "target_language"), self.languages, strict=True))
        body = {"tier": tier, **{key: code for key, code in languages.items() if code}}
        return [_ask(port, {**body, "text": text}) for text in inputs]


def given(folder: Path, source: Path) -> Translation:
    """A model that exists, and a file of texts, one a line."""
    return Translation(folder.name, None, folder=folder, source=source)


def _t5(family: str, std: float) -> Callable[[Any, Path], object]:
    gated = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    return lambda tiny, folder: tiny._t5(folder, std=std, family=family, **gated)


def _mbart(kind: str, start: int | None) -> Callable[[Any, Path], object]:
    def make(tiny: Any, folder: Path) -> None:
        import transformers

        tiny._mbart(folder, getattr(transformers, kind), start)

    return make


TYPES = (
    Translation("NLLB", lambda tiny, folder: tiny._tiny_nllb(folder), ("eng_Latn", "fra_Latn"), 4, 2),
    Translation("M2M100", lambda tiny, folder: tiny._tiny_m2m100(folder), ("en", "fr")),
    Translation("mBART (25)", _mbart("MBartTokenizerFast", None), ("en_XX", "ro_RO")),
    Translation("mBART (50)", _mbart("MBart50TokenizerFast", 2), ("en_XX", "fr_XX")),
    Translation("Marian", lambda tiny, folder: tiny._tiny_marian(folder), (None, None), 3, 3),
    Translation("BART", lambda tiny, folder: tiny._tiny_bart(folder)),
    Translation("Pegasus", lambda tiny, folder: tiny._tiny_pegasus(folder)),
    Translation("T5", lambda tiny, folder: tiny._t5(folder, std=0.15), ("en", "fr")),
    Translation("T5 v1.1", _t5("T5", 0.15), ("en", "fr")),
    Translation("mT5", _t5("MT5", 0.15), ("en", "fr")),
    Translation("UMT5", _t5("UMT5", 0.2), ("en", "fr")),
)


@cache
def tiny_models() -> Any:
    """The tests' tiny models."""
    spec = importlib.util.spec_from_file_location("tiny_models", TINY)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{TINY} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _widen(folder: Path, kind: Translation) -> None:
    from pressoir.models import loading

    model = loading.load_encoder_decoder(folder)
    for name, parameter in model.named_parameters():
        if "shared" in name or "embed_tokens" in name:
            parameter.data *= kind.embeddings
        if "encoder_attn" in name and parameter.ndim == 2:
            parameter.data *= kind.cross
    loading.save_model(model, folder)


def _ask(port: int, body: dict[str, Any]) -> str:
    request = urllib.request.Request(
        f"http://{loopback.HOST}:{port}/translate",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return str(json.load(answer)["translations"][0])
