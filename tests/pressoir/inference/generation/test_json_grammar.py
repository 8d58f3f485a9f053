"""JSON by a schema: whatever the model and the seed, the text parses, and another library validates it."""

import json

import jsonschema
import numpy as np
import pytest

from pressoir.errors import PressoirError
from pressoir.inference.generation.json_grammar import JsonGrammars
from pressoir.inference.generation.penalties import Penalties
from pressoir.inference.text_generation import TextGenerator
from pressoir.inference.tokenizers.tokenizers import LanguageModelTokenizer, TextStream

_REVIEW = {
    "type": "object",
    "properties": {
        "label": {"enum": ["good", "bad", "größer"]},
        "score": {"type": "integer", "minimum": 0, "maximum": 10},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 3},
        "author": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/person"}]},
    },
    "required": ["label", "score", "tags", "author"],
    "additionalProperties": False,
    "$defs": {
        "person": {
            "type": "object",
            "properties": {"name": {"type": "string", "pattern": "^[A-Z][a-z]{1,6}$"}},
            "required": ["name"],
            "additionalProperties": False,
        }
    },
}
SCHEMAS = {
    "review": _REVIEW,
    "number": {"type": "number"},
    "word": {"type": "string", "maxLength": 8},
    "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "constant": {"const": {"a": [1, "🍇", None]}},
    "uuid": {"type": "string", "format": "uuid"},
    "any": {"type": "object"},
}


@pytest.fixture(scope="module")
def generator(tiny_llama):
    return TextGenerator.open(tiny_llama, 1)


@pytest.fixture(scope="module")
def byte_fallback():
    """A tokenizer as Llama 2 has it: SentencePiece-like BPE of few words and all bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *'{}[]":,abcdehlnoprstuv0123']
    merges = [("▁", "a"), ("l", "a"), ('"', ":")]
    words += ["".join(pair) for pair in merges]
    model = models.BPE({word: id for id, word in enumerate(words)}, merges, byte_fallback=True)
    backend = Tokenizer(model)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.normalizer, backend.decoder = normalizers.Replace(" ", "▁"), decoders.Sequence(steps)
    backend.add_special_tokens(["<unk>", "</s>"])
    return LanguageModelTokenizer(backend)


class Random:
    """A decoder that finds every token about as probable as any other, as a new one each time."""

    runtime, context, eos_ids = "pytorch", 4096, frozenset([1])

    def __init__(self, vocabulary, seed):
        self.vocabulary, self._rng = vocabulary, np.random.default_rng(seed)

    def forward(self, input_ids, cache=None, *, last_only=False):
        return self._rng.normal(size=(1, 1, self.vocabulary)).astype(np.float32), None


def _written(generator, schema, **options):
    found = generator.generate("the film", json_schema=schema, **options)
    return "".join(found), found.finish_reason


@pytest.mark.parametrize("kind", ["byte-level", "byte fallback"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_the_text_is_json_that_the_schema_validates_whatever_the_seed(generator, byte_fallback, kind, name):
    tokenizer, schema = generator.tokenizer if kind == "byte-level" else byte_fallback, SCHEMAS[name]
    texts = set()
    for seed in range(15):
        # A few logits more than tokens, as models have them that were padded.
        decoder = Random(len(tokenizer.token_bytes) + 3, seed)
        text, reason = _written(
            TextGenerator(decoder, tokenizer), schema, max_new_tokens=3000, temperature=1.0, seed=seed
        )
        assert reason == "stop", text
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
        texts.add(text)
    assert len(texts) > (5 if name not in ("constant", "list") else 0)


def test_characters_of_several_byte_tokens_come_whole_from_a_long_text(byte_fallback):
    text = "電影真好看🍇" * 40
    for start in range(4):
        ids = byte_fallback.encode("a" * start + text)
        stream = TextStream(byte_fallback)
        assert "".join(stream.push(id) for id in ids) + stream.rest() == byte_fallback.decode(ids)


def test_a_real_model_obeys_greedily_and_under_penalties(generator):
    for penalties in (Penalties(), Penalties(frequency=2.0, repetition=1.5, bias={70: 100.0})):
        text, reason = _written(generator, SCHEMAS["list"], max_new_tokens=200, penalties=penalties)
        assert reason == "stop"
        jsonschema.validate(json.loads(text), SCHEMAS["list"])


def test_a_limit_cuts_it_short_and_says_so(generator):
    text, reason = _written(generator, _REVIEW, max_new_tokens=5)
    assert reason == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "string", "pattern": "("}, "regex parse error"),
        ({"not": {"type": "string"}}, 'Unimplemented keys: \\["not"\\]'),
        ({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}, "uniqueItems"),
        ({"$ref": "#/nowhere"}, "does not exist"),
        ({"$ref": "http://example.com/schema"}, "http://example.com/schema"),
        ({"enum": []}, "Unsatisfiable schema"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "no text satisfies it"),
        (
            {"allOf": [{"anyOf": [{"properties": {f"a{i}{j}": {}}} for j in range(6)]} for i in range(8)]},
            "schema too large",
        ),
    ],
)
def test_a_schema_that_cannot_be_obeyed_is_refused_with_the_reason(generator, schema, message):
    with pytest.raises(
        PressoirError, match=f"response_format: the JSON schema is not supported: .*{message}"
    ):
        generator.generate("the film", json_schema=schema)


def test_a_tokenizer_whose_bytes_are_not_known_is_refused(generator, tiny_bert):
    tokenizer = LanguageModelTokenizer.open(tiny_bert)
    assert not tokenizer.token_bytes.exact
    with pytest.raises(PressoirError, match="neither byte-level nor SentencePiece-like"):
        JsonGrammars(tokenizer, 64, frozenset([1]))
