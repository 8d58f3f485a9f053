"""What may be generated: Pressoir's rules change scores as transformers' own logits processors do."""

import numpy as np
import pytest

from pressoir.inference.generation.rules import Rules, Timestamps

VOCABULARY, EOS, PAD = 12, 2, 0
SETTINGS = {
    "nothing": {},
    "min_length": {"min_length": 6},
    "min_new_tokens": {"min_new_tokens": 3},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.4},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "no token twice": {"no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 3},
    "bad_words_ids": {"bad_words_ids": [[5], [7, 8], [3, 4, 5], [EOS]]},
    "sequence_bias": {"sequence_bias": [[[5], -1.5], [[7, 8], 2.5], [[4, 3, 8], -3.0], [[9, 8], 1.0]]},
    "forced tokens": {"forced_bos_token_id": 6, "forced_eos_token_id": EOS, "min_length": 9},
    "suppressed": {"suppress_tokens": [4, 5], "begin_suppress_tokens": [1, EOS]},
    "suppressed after a forced first": {"begin_suppress_tokens": [1, EOS], "forced_bos_token_id": 6},
    "length decay": {"exponential_decay_length_penalty": (2, 1.3)},
    "renormalized": {"renormalize_logits": True, "suppress_tokens": [4]},
    "several": {
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 2,
        "encoder_no_repeat_ngram_size": 2,
        "bad_words_ids": [[3, 1]],
        "min_length": 4,
        "suppress_tokens": [9],
        "renormalize_logits": True,
    },
}


def by_transformers(settings, scores, sequences, prompt, limit, sources):
    """Scores after all of the processors that `generate` makes of a generation configuration."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig

    sizes = {
        "d_model": 8,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 8,
        "decoder_ffn_dim": 8,
    }
    model = BartForConditionalGeneration(
        BartConfig(vocab_size=VOCABULARY, encoder_attention_heads=1, decoder_attention_heads=1, **sizes)
    )
    config = GenerationConfig(**settings, max_length=prompt + limit, eos_token_id=EOS)
    config._eos_token_tensor = torch.tensor([EOS])
    processors = model._get_logits_processor(
        config, input_ids_seq_length=prompt, encoder_input_ids=torch.tensor(sources), device="cpu"
    )
    return processors(torch.tensor(sequences), torch.tensor(scores.copy())).numpy()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("prompt", [1, 3])
def test_scores_are_those_of_transformers_processors(name, prompt):
    generator = np.random.default_rng(sum(map(ord, name)))
    rules = Rules.read(SETTINGS[name], frozenset([EOS]), PAD)
    limit, changed = 8, 0
    sources = generator.integers(3, VOCABULARY, (3, 30)).tolist()
    for generated in range(limit):
        sequences = generator.integers(3, VOCABULARY, (3, prompt + generated)).tolist()
        scores = generator.standard_normal((3, VOCABULARY)).astype(np.float32)
        expected = by_transformers(SETTINGS[name], scores, sequences, prompt, limit, sources)
        actual = rules.apply(scores, sequences, prompt=prompt, limit=limit, sources=sources)
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
        changed += not np.array_equal(actual, scores)
    assert (changed > 0) == (name != "nothing")


@pytest.mark.parametrize("latest_first", [None, 4])
@pytest.mark.parametrize("width", [1.0, 4.0])
def test_time_stamps_are_those_of_transformers_processor(latest_first, width):
    import torch
    from transformers import GenerationConfig, WhisperTimeStampLogitsProcessor

    end, first, size = 20, 24, 60  # text, the end and other special tokens, times
    config = GenerationConfig(
        eos_token_id=end, no_timestamps_token_id=first - 1, max_initial_timestamp_index=latest_first
    )
    processor, rules = (
        WhisperTimeStampLogitsProcessor(config, begin_index=3),
        Timestamps(first, end, latest_first),
    )
    generator, forced = np.random.default_rng(0), 0
    for length in (0, 1, 2, 3, 8):
        for _ in range(30):
            kinds = generator.random((4, length)) < 0.5
            times = np.sort(generator.integers(first, size, (4, length)))
            tokens = np.where(kinds, times, generator.integers(0, end, (4, length)))
            scores = (width * generator.standard_normal((4, size))).astype(np.float32)
            prompt = np.tile([21, 22, 5], (4, 1))
            given = torch.from_numpy(np.concatenate([prompt, tokens], axis=1))
            expected = processor(given, torch.from_numpy(scores)).numpy()
            own = scores.copy()
            rules.apply(own, tokens.tolist())
            np.testing.assert_array_equal(own, expected)
            forced += int(np.isinf(expected[:, :first]).all(axis=1).sum())
    assert forced > 50


def test_rules_of_the_source_do_not_apply_to_sound():
    rules = Rules.read(
        {"encoder_no_repeat_ngram_size": 1, "encoder_repetition_penalty": 2.0}, frozenset([EOS]), PAD
    )
    scores = np.ones((1, VOCABULARY), dtype=np.float32)
    np.testing.assert_array_equal(rules.apply(scores, [[1, 5]], prompt=1, limit=9), scores)


def test_rules_leave_the_scores_they_were_given_alone():
    given = np.arange(VOCABULARY, dtype=np.float32)[None]
    Rules(frozenset([EOS]), suppressed=(1,)).apply(given, [[1]], prompt=1, limit=9)
    np.testing.assert_array_equal(given[0], np.arange(VOCABULARY))


@pytest.mark.parametrize(
    "setting",
    [
        {"num_beam_groups": 2, "diversity_penalty": 0.5},
        {"penalty_alpha": 0.6},
        {"dola_layers": "high"},
        {"force_words_ids": [[5]]},
        {"guidance_scale": 1.5},
        {"stop_strings": ["end"]},
        {"max_time": 2.0},
        {"token_healing": True},
        {"watermarking_config": {"bias": 2.5}},
    ],
)
def test_a_setting_that_would_change_the_text_is_refused_by_name(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}: .* is not supported; remove it"):
        Rules.read(setting, frozenset([EOS]), PAD)


def test_settings_that_change_nothing_are_no_fault():
    plain = {"num_beam_groups": 1, "diversity_penalty": 0.0, "guidance_scale": 1.0, "penalty_alpha": None}
    sampling = {"do_sample": True, "temperature": 0.3, "top_k": 5, "num_beams": 4}
    assert Rules.read({**plain, **sampling}, frozenset([EOS]), PAD) == Rules(frozenset([EOS]), PAD)
