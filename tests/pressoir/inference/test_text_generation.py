"""Text generation: the tokens are transformers' own, pieces are whole characters, stops are never given."""

import json
import math
import random
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from pressoir.errors import DataError, PressoirError, SourceError
from pressoir.inference.generation.penalties import Penalties
from pressoir.inference.generation.sampling import Sampler
from pressoir.inference.text_generation import TextGenerator, _until, negative_log_likelihood
from pressoir.inference.tokenizers.tokenizers import LanguageModelTokenizer
from pressoir.models.loading import load_causal_lm

PROMPTS = ("the film was", "the hotel was cold and", "x", "die Ü-Straße 🍇 and")
TEXT = "the film was good and the hotel was cold and poor\nthe soup was lovely and superb\n" * 20


class Scripted:
    """A decoder that writes given tokens, whatever it reads; it keeps what it is given."""

    runtime, vocabulary, context, eos_ids = "pytorch", 320, 64, frozenset([1])

    def __init__(self, tokens, logit=5.0):
        self.tokens, self.logit, self.given = list(tokens), logit, []

    def forward(self, input_ids, cache=None, *, last_only=False):
        position = cache or 0
        self.given.append(input_ids.tolist())
        logits = np.zeros((1, 1, self.vocabulary), dtype=np.float32)
        logits[..., self.tokens[position % len(self.tokens)]] = self.logit
        return logits, position + 1


class Uniform(Scripted):
    """A decoder that knows nothing."""

    def forward(self, input_ids, cache=None, *, last_only=False):
        self.given.append(input_ids.tolist())
        return np.zeros((*input_ids.shape, self.vocabulary), dtype=np.float32), None


@pytest.fixture
def tokenizer(tiny_llama):
    return LanguageModelTokenizer.open(tiny_llama)


@pytest.fixture
def writing(tokenizer):
    """A generator that writes a given text."""
    return lambda text: TextGenerator(Scripted([*tokenizer.encode(text), 1]), tokenizer)


@pytest.fixture(params=["pytorch", "onnxruntime"])
def generator(request, lm_and_graph):
    """Each tiny causal LM in each runtime."""
    return TextGenerator.open(lm_and_graph[request.param == "onnxruntime"], threads=1)


# Tokens


def test_greedy_tokens_are_those_of_transformers(generator, lm_and_graph):
    model, tokenizer = load_causal_lm(lm_and_graph[0]), AutoTokenizer.from_pretrained(lm_and_graph[0])
    for prompt in PROMPTS:
        given = tokenizer(prompt, return_tensors="pt")
        expected = model.generate(**given, max_new_tokens=40, do_sample=False, pad_token_id=2)[0]
        new = expected[given["input_ids"].shape[1] :].tolist()
        assert list(generator.generate_ids(given["input_ids"][0].tolist(), 40)) == [t for t in new if t != 1]


def test_a_text_is_what_its_tokens_decode_to(generator):
    for prompt in PROMPTS:
        ids = generator.tokenizer.encode(prompt)
        new = list(generator.generate_ids(ids, 40))
        whole = generator.tokenizer.decode([*ids, *new])
        assert prompt + "".join(generator.generate(prompt, max_new_tokens=40)) == whole


def test_each_token_is_computed_once(tokenizer):
    decoder = Scripted([50, 60, 70, 80])
    assert list(TextGenerator(decoder, tokenizer).generate_ids([5, 6, 7], 4)) == [50, 60, 70, 80]
    assert decoder.given == [[[5, 6, 7]], [[50]], [[60]], [[70]]]


# Ends


def test_generation_ends_at_an_end_token_and_does_not_give_it(tokenizer):
    generator = TextGenerator(Scripted([50, 60, 1, 70]), tokenizer)
    assert list(generator.generate_ids([5], 10)) == [50, 60]


def test_generation_ends_after_max_new_tokens_or_when_the_context_is_full(tokenizer):
    generator = TextGenerator(Scripted([50]), tokenizer)
    assert len(list(generator.generate_ids([5] * 10, 7))) == 7
    assert len(list(generator.generate_ids([5] * 60, 7))) == 4  # of a context of 64
    assert len(list(generator.generate_ids([5] * 63, 7))) == 1


@pytest.mark.parametrize("whole", ["one two three END four", "ENDone", "one twoEN three", "one END two END"])
@pytest.mark.parametrize("stop", [("END",), ("zzz", "END"), "END"])
def test_a_stop_text_is_never_given_nor_what_follows_it(writing, whole, stop):
    pieces = list(writing(whole).generate("the", stop=stop))
    assert "".join(pieces) == whole.split("END")[0]
    assert "" not in pieces


def test_a_stop_text_is_found_though_its_characters_come_in_several_tokens(writing, tokenizer):
    assert len(tokenizer.encode("END")) > 1
    assert "".join(writing("abEND").generate("the", stop=["bEND"])) == "a"


def test_the_stop_text_that_begins_first_ends_the_text(writing):
    assert "".join(writing("one two three").generate("the", stop=["three", "two"])) == "one "
    assert "".join(writing("abababac").generate("the", stop=["ababac"])) == "ab"


@pytest.mark.parametrize("seed", range(20))
def test_a_text_ends_at_the_first_stop_text_that_is_complete_however_it_is_cut_into_pieces(seed):
    draw = random.Random(seed)
    text = "".join(draw.choices("ab", k=60))
    stops = ["".join(draw.choices("ab", k=draw.randint(1, 7))) for _ in range(draw.randint(1, 4))]
    ends = [(text.index(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    end, size = min(ends, default=(len(text), 0))
    pieces, rest = [], text
    while rest:
        count = draw.randint(1, 9)
        pieces, rest = [*pieces, rest[:count]], rest[count:]
    found = list(_until(iter(pieces), stops))
    assert "".join(found) == text[: end + size]
    assert all(found), "no empty pieces"


def test_what_only_began_like_a_stop_text_is_given_at_the_end(writing):
    assert "".join(writing("one EN").generate("the", stop=["END"])) == "one EN"


# Pieces


def test_no_piece_ends_within_a_character(writing):
    whole = "héllo 🍇 wörld — 日本語, naïve 👩‍👩‍👧 ok"
    pieces = list(writing(whole).generate("the"))
    assert "".join(pieces) == whole
    assert len(pieces) > 10
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_that_stays_incomplete_is_given_at_the_end_as_transformers_does(tokenizer):
    half = tokenizer.encode("🍇")[:2]
    tokens = [*tokenizer.encode("ab"), *half, 1]
    pieces = list(TextGenerator(Scripted(tokens), tokenizer).generate("the"))
    assert "".join(pieces) == "ab\ufffd"
    assert pieces[-1] == "\ufffd"


def test_broken_characters_in_between_are_kept_too(tokenizer):
    half = tokenizer.encode("🍇")[:2]
    tokens = [*half, *tokenizer.encode("ab"), *half, *tokenizer.encode("é"), 1]
    generator = TextGenerator(Scripted(tokens), tokenizer)
    assert "".join(generator.generate("the")) == "\ufffdab\ufffdé"


def test_the_first_piece_keeps_the_space_that_a_text_of_its_own_would_not_have():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"▁the": 2, "▁film": 3, "▁was": 4}, unk_token="▁the"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = LanguageModelTokenizer(backend)
    assert tokenizer.decode([3, 4]) == "film was"
    pieces = list(TextGenerator(Scripted([3, 4, 1]), tokenizer).generate("the"))
    assert pieces == [" film", " was"]


def test_a_long_text_is_not_decoded_from_its_start_again_and_again(writing):
    whole = "the film was good and 🍇 the soup was dull, " * 20
    generator = writing(whole)
    generator.decoder.context = 10_000
    lengths, decode = [], generator.tokenizer.decode
    generator.tokenizer.decode = lambda ids: lengths.append(len(ids)) or decode(ids)
    assert "".join(generator.generate("the", max_new_tokens=5000)) == whole
    assert max(lengths) < 100


# What is refused


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "the prompt is empty"),
        ("the film " * 64, {}, r"has \d+ tokens, but the context of the model is 64 .* to 63 tokens at most"),
        ("the", {"max_new_tokens": 0}, "max_new_tokens is 0; specify at least 1"),
        ("the", {"stop": ["a", ""]}, "a stop sequence is empty"),
        ("the", {"temperature": -1.0}, r"temperature is -1.0; expected at least 0 \(0: greedy\)"),
        ("the", {"temperature": math.nan}, "temperature is nan"),
        ("the", {"top_k": -1}, "top_k is -1"),
        ("the", {"top_p": 0.0, "seed": -3}, "top_p is 0.0; .*; seed is -3"),
    ],
)
def test_what_cannot_be_generated_is_refused_before_any_work(tokenizer, prompt, options, message):
    generator = TextGenerator(Scripted([50]), tokenizer)
    with pytest.raises(PressoirError, match=message):
        generator.generate(prompt, **options)
    assert generator.decoder.given == []


@pytest.mark.parametrize("logit", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(tokenizer, logit):
    with pytest.raises(PressoirError, match="not finite; its weights are corrupt"):
        list(TextGenerator(Scripted([50], logit), tokenizer).generate_ids([5], 4))


# Sampling


def _allowed(logits, draws=3000, **options):
    sampler = Sampler(temperature=1.0, **options)
    return {sampler(logits) for _ in range(draws)}


@pytest.mark.parametrize(
    "options", [{"top_k": 5}, {"top_p": 0.6}, {"top_k": 7, "top_p": 0.7}, {"min_p": 0.2}]
)
def test_the_tokens_drawn_from_are_those_of_transformers(options):
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(0).normal(size=30, scale=1.5).astype(np.float32)
    scores = torch.from_numpy(logits)[None]
    warpers = (("top_k", TopKLogitsWarper), ("top_p", TopPLogitsWarper), ("min_p", MinPLogitsWarper))
    for name, warper in warpers:
        if name in options:
            scores = warper(options[name])(None, scores)
    expected = {int(token) for token in torch.isfinite(scores[0]).nonzero()}
    assert 1 < len(expected) < 20
    assert _allowed(logits, **options) == expected


def test_tokens_are_drawn_by_their_probability_at_the_temperature():
    logits = np.array([0.0, 1.0, 2.0, -1.0], dtype=np.float32)
    sampler = Sampler(temperature=2.0, seed=1)
    drawn = np.bincount([sampler(logits) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(drawn, np.exp(logits / 2) / np.exp(logits / 2).sum(), atol=0.015)


def test_the_same_seed_gives_the_same_text_and_another_seed_another(generator):
    def text(seed):
        return "".join(generator.generate("the film", max_new_tokens=20, temperature=1.5, seed=seed))

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) > 1


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"temperature": 1e-9}, {"temperature": 2.0, "top_k": 1}]
)
def test_the_limits_of_sampling_are_greedy(generator, options):
    ids = generator.tokenizer.encode("the film")
    assert list(generator.generate_ids(ids, 12, **options)) == list(generator.generate_ids(ids, 12))


# Penalties


def test_penalties_are_those_of_transformers_and_of_openais_formula():
    from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

    logits = np.random.default_rng(0).normal(size=30, scale=2).astype(np.float32)
    prompt, generated = [3, 4, 4], [7, 9, 7, 7]
    before = logits.copy()
    for penalty in (1.3, 0.7):
        processor = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty)])
        expected = processor(torch.tensor([prompt + generated]), torch.from_numpy(logits)[None])[0].numpy()
        assert (expected != logits).sum() == 4
        np.testing.assert_array_equal(Penalties(repetition=penalty)(logits, prompt, generated), expected)
    counts = torch.bincount(torch.tensor(generated), minlength=30).numpy()
    expected = logits - counts * 0.5 - (counts > 0) * 0.25
    expected[2] += 3
    found = Penalties(frequency=0.5, presence=0.25, bias={2: 3})(logits, prompt, generated)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(logits, before)


def test_a_text_under_a_repetition_penalty_is_transformers_own(generator, lm_and_graph):
    model, tokenizer = load_causal_lm(lm_and_graph[0]), AutoTokenizer.from_pretrained(lm_and_graph[0])
    given = tokenizer("the film was", return_tensors="pt")
    options = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 2, "repetition_penalty": 1.5}
    expected = model.generate(**given, **options)[0].tolist()
    plain = "".join(generator.generate("the film was", max_new_tokens=30))
    found = "".join(
        generator.generate("the film was", max_new_tokens=30, penalties=Penalties(repetition=1.5))
    )
    assert "the film was" + found == tokenizer.decode(expected, skip_special_tokens=True)
    assert found != plain


def test_a_bias_chooses_or_forbids_a_token(generator):
    ids = generator.tokenizer.encode("the film")
    token = next(iter(generator.generate_ids(ids, 1)))
    for bias, chosen in (({70: 100.0}, {70}), ({token: -100.0}, set(range(320)) - {token})):
        continuation = generator.generate(ids, max_new_tokens=1, penalties=Penalties(bias=bias), top_scores=0)
        list(continuation)
        [scored] = continuation.take_scored()
        assert bytes(scored["bytes"]) in {generator.tokenizer.token_bytes[one] for one in chosen}
    with pytest.raises(PressoirError, match="the model has no token 320; its tokens are 0 to 319"):
        generator.generate("the", penalties=Penalties(bias={320: 1.0}))


# Scores of tokens


def test_scores_of_generated_tokens_are_the_log_softmax_of_transformers_logits(generator, lm_and_graph):
    model, tokenizer = load_causal_lm(lm_and_graph[0]), AutoTokenizer.from_pretrained(lm_and_graph[0])
    given = tokenizer("the film was", return_tensors="pt")["input_ids"]
    # These change the tokens (none is special), and not their scores.
    penalties = Penalties(frequency=1.5, bias=dict.fromkeys(range(3), -100.0))
    continuation = generator.generate(
        "the film was", max_new_tokens=12, temperature=2.0, penalties=penalties, top_scores=3
    )
    text = "".join(continuation)
    scored = continuation.take_scored()
    assert len(scored) == 12
    assert "".join(token["text"] for token in scored) == text
    assert bytes(byte for token in scored for byte in token["bytes"]).decode(errors="replace") == text
    names = [generator.tokenizer.token_bytes[id] for id in range(320)]
    ids = given[0].tolist()
    for token in scored:
        with torch.inference_mode():
            expected = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].double(), -1)
        values, tokens = expected.topk(3)
        found = [value for _, _, value in token["likeliest"]]
        assert found == pytest.approx(values.tolist(), abs=1e-4)
        assert [bytes(one) for _, one, _ in token["likeliest"]] == [names[id] for id in tokens.tolist()]
        id = names.index(bytes(token["bytes"]))
        assert token["log_probability"] == pytest.approx(expected[id].item(), abs=1e-4)
        ids.append(id)


def test_the_tokens_of_a_stop_text_have_no_scores_and_an_end_token_has(writing):
    continuation = writing("one two three").generate("the", stop=["two"], top_scores=0)
    assert "".join(continuation) == "one "
    assert "".join(token["text"] for token in continuation.take_scored()).startswith("one")
    continuation = writing("one").generate("the", top_scores=0)
    pieces, taken = [], []
    for piece in continuation:
        pieces.append(piece)
        taken += continuation.take_scored()
        assert "".join(token["text"] for token in taken) == "".join(pieces)
    [end] = continuation.take_scored()
    assert end["text"] == ""
    assert end["bytes"] == []
    assert end["start"] == len("one")


@pytest.mark.parametrize("kind", ["byte-level", "byte fallback"])
def test_the_bytes_of_tokens_are_what_they_decode_to(tokenizer, kind):
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    if kind == "byte fallback":
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "é"]
        model = models.BPE({word: id for id, word in enumerate(words)}, [("▁", "a")], byte_fallback=True)
        backend = Tokenizer(model)
        backend.normalizer, backend.decoder = normalizers.Replace(" ", "▁"), decoders.Sequence(steps)
        backend.add_special_tokens(["</s>"])
        backend.add_tokens([AddedToken("<tool>", special=False)])
        tokenizer = LanguageModelTokenizer(backend)
    found = tokenizer.token_bytes
    assert found.exact
    for text in ("a film a", "é 🍇 ü\n\x00", "a" * 9):
        ids = tokenizer.encode(text)
        assert b"".join(found[id] for id in ids).decode() == text
        assert tokenizer.decode(ids) == text
    for id in range(len(found)):
        if id not in found.special:
            assert found[id].decode(errors="replace") == tokenizer.decode([id])
    assert all(found[id] == b"" for id in found.special)
    [first, *_] = [id for id in range(len(found)) if found[id] == "🍇".encode()[:1]]
    assert found.name(first) == "bytes:\\xf0"


# Perplexity


def test_perplexity_is_exp_of_the_mean_negative_log_likelihood(generator, lm_and_graph):
    model = load_causal_lm(lm_and_graph[0])
    ids = AutoTokenizer.from_pretrained(lm_and_graph[0])(TEXT)["input_ids"]
    losses = []
    for start in range(0, len(ids) - 31, 32):
        window = torch.tensor([ids[start : start + 32]])
        with torch.inference_mode():
            losses.append(model(window, labels=window).loss.item())  # the mean over 31 tokens
    assert len(losses) > 8  # more than one forward pass takes
    found = generator.perplexity(TEXT, window=32)
    assert found.nll == pytest.approx(np.mean(losses), rel=1e-5)
    assert found.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    assert found.tokens == 31 * len(losses)


def test_a_model_that_knows_nothing_is_as_perplexed_as_it_has_tokens(tokenizer):
    generator, told = TextGenerator(Uniform([]), tokenizer), []
    found = generator.perplexity(TEXT, window=16, max_windows=11, progress=lambda *done: told.append(done))
    assert found.value == pytest.approx(320)
    assert found.tokens == 11 * 15
    assert told == [(8, 11), (11, 11)]
    ids = tokenizer.encode(TEXT)
    given = [window for batch in generator.decoder.given for window in batch]
    assert given == [ids[i : i + 16] for i in range(0, 11 * 16, 16)]


def test_one_forward_pass_never_gives_more_logits_than_fit(tokenizer, monkeypatch):
    monkeypatch.setattr("pressoir.inference.text_generation.LOGITS_BYTES", 3 * 16 * 320 * 4)
    generator = TextGenerator(Uniform([]), tokenizer)
    generator.perplexity(TEXT, window=16, max_windows=7)
    assert [len(batch) for batch in generator.decoder.given] == [3, 3, 1]


def test_the_likelihood_of_large_logits_does_not_overflow():
    logits = np.array([[[1e4, 0.0, -1e4]]], dtype=np.float32)
    found = [float(negative_log_likelihood(logits, np.array([[token]]))[0, 0]) for token in range(3)]
    assert found == [0.0, 1e4, 2e4]


@pytest.mark.parametrize("window", [1, 65])
def test_a_window_that_does_not_fit_is_refused(tokenizer, window):
    with pytest.raises(PressoirError, match=f"a window of {window} tokens does not fit .* 2 to 64"):
        TextGenerator(Scripted([50]), tokenizer).perplexity(TEXT, window=window)


def test_a_text_shorter_than_a_window_is_refused(tokenizer):
    with pytest.raises(DataError, match="fewer than one window of 64"):
        TextGenerator(Scripted([50]), tokenizer).perplexity("the film", window=64)


def test_a_broken_model_has_no_perplexity(tokenizer):
    decoder = Uniform([])
    decoder.forward = lambda ids, cache=None: (np.full((*ids.shape, 320), np.nan, dtype=np.float32), None)
    with pytest.raises(PressoirError, match="not finite"):
        TextGenerator(decoder, tokenizer).perplexity(TEXT, window=16)


# Tokenizers

HARD = [*PROMPTS, "", "  two  spaces ", "<s>the</s> film", "\n\ttabs\n", "the film was good and " * 60]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tokenizer_class": "GPT2Tokenizer"},
        {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True},
        {"tokenizer_class": "LlamaTokenizer"},
        {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "add_eos_token": True},
        {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False},
        {"tokenizer_class": "GPTNeoXTokenizer"},
        {"tokenizer_class": "GPTNeoXTokenizer", "add_bos_token": True},
        {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {}},
        {"bos_token": "<new>"},
        {"tokenizer_class": None},
    ],
    ids=str,
)
def test_ids_are_those_of_transformers(tiny_llama, tmp_path, settings):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    path = folder / "tokenizer_config.json"
    kept = {**json.loads(path.read_text(encoding="utf-8")), **settings}
    path.write_text(json.dumps({k: v for k, v in kept.items() if v is not None}), encoding="utf-8")
    light, full = LanguageModelTokenizer.open(folder), AutoTokenizer.from_pretrained(folder)
    for text in HARD:
        ids = full(text)["input_ids"]
        assert light.encode(text) == ids
        assert light.decode(ids) == full.decode(ids, skip_special_tokens=True)


def test_nothing_is_cut_or_padded_though_the_file_says_so(tiny_llama, tmp_path):
    from tokenizers import Tokenizer

    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(8)
    backend.enable_padding(length=20)
    backend.save(str(folder / "tokenizer.json"))
    full = AutoTokenizer.from_pretrained(tiny_llama)
    for text in HARD:
        assert LanguageModelTokenizer.open(folder).encode(text) == full(text)["input_ids"]


def test_a_folder_without_a_tokenizer_is_refused(tiny_llama, tmp_path):
    shutil.copyfile(tiny_llama / "config.json", tmp_path / "config.json")
    with pytest.raises(SourceError, match="no tokenizer that transformers can load"):
        LanguageModelTokenizer.open(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{", encoding="utf-8")
    with pytest.raises(SourceError, match=r"tokenizer_config\.json, line 1: not valid JSON"):
        LanguageModelTokenizer.open(tmp_path)
