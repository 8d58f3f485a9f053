"""The analysis: who shares what, what is saved, what was narrowly missed."""

import pytest

from pressoir.serving.config import ServingConfig, TierConfig
from pressoir.serving.pool.pool_entry import PoolEntry
from pressoir.serving.pool.sharing import analyse
from pressoir.serving.pool.statistics import statistics

MB = 10**6


def tier(model, digest, **fields):
    given = {"task": "translation", "runtime": "onnxruntime", "source": f"/{model}", "size_bytes": 100 * MB}
    return TierConfig(model=model, digest=digest * 64, **{**given, **fields})


@pytest.fixture
def three_on_two():
    return analyse(
        ServingConfig(
            tiers={
                "basic": tier("nllb", "a"),
                "medium": tier("/x/other-name", "a"),
                "premium": tier("big", "b"),
            }
        )
    )


def test_tiers_of_the_same_bytes_share_whatever_they_are_called(three_on_two):
    assert [model.tiers for model in three_on_two.models] == [("basic", "medium"), ("premium",)]
    assert three_on_two.by_tier["medium"] is three_on_two.by_tier["basic"]
    assert three_on_two.loads_saved == 1
    assert three_on_two.warnings() == []
    assert three_on_two.lines() == [
        "nllb (aaaaaaaaaaaa, translation, onnxruntime): shared by basic, medium",
        "big (bbbbbbbbbbbb, translation, onnxruntime): used by premium",
        "3 tiers on 2 models: 1 load saved",
    ]


def test_a_configuration_that_shares_nothing_is_warned_of():
    sharing = analyse(ServingConfig(tiers={"basic": tier("nllb", "a"), "premium": tier("big", "b")}))
    assert sharing.warnings() == ["no models are shared: 2 tiers load 2 models"]


def test_a_single_tier_cannot_share_and_is_not_warned_of():
    assert analyse(ServingConfig(tiers={"basic": tier("nllb", "a")})).warnings() == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("org/nllb@main", "hub:org/nllb@v2"),
        ("models:/nllb@champion", "models:/nllb@challenger"),
        ("/old/nllb", "/new/nllb"),
    ],
)
def test_the_same_name_of_another_digest_is_a_near_miss(first, second):
    sharing = analyse(ServingConfig(tiers={"basic": tier(first, "a"), "premium": tier(second, "b")}))
    [near] = sharing.near_misses
    assert "basic and premium both name nllb, but" in near
    assert f"{first} has the digest aaaaaaaaaaaa and {second} bbbbbbbbbbbb" in near
    assert near in sharing.warnings()


def test_the_same_bytes_in_another_runtime_are_a_near_miss():
    tiers = {"basic": tier("nllb", "a"), "premium": tier("nllb", "a", runtime="pytorch")}
    sharing = analyse(ServingConfig(tiers=tiers))
    assert len(sharing.models) == 2
    assert "basic and premium have the same files, but load them as" in sharing.near_misses[0]


def test_the_statistics_have_the_names_and_the_sums_that_they_say(three_on_two):
    shared = three_on_two.models[0]
    entry = PoolEntry(shared, None, 150 * MB, leases=2)
    figures = statistics(three_on_two, {shared.key: entry})
    info = figures.pop("shared_models_info")
    assert figures == {
        "shared_models_count": 1,
        "total_model_types": 3,
        "unique_models_loaded": 1,
        "models_saved": 1,
        "estimated_memory_saved_mb": 100.0,
        "measured_memory_saved_mb": 150.0,
    }
    assert info["nllb"] == {
        "users": ["basic", "medium"],
        "loaded_at": entry.loaded_at.isoformat(timespec="seconds"),
        "digest": "a" * 64,
        "pss_mb": 150.0,
        "leases": 2,
    }
    assert info["big"] == {
        "users": ["premium"],
        "loaded_at": None,
        "digest": "b" * 64,
        "pss_mb": 0.0,
        "leases": 0,
    }


def test_two_models_of_one_name_are_told_apart_in_the_statistics():
    sharing = analyse(ServingConfig(tiers={"basic": tier("nllb", "a"), "premium": tier("nllb", "b")}))
    assert list(statistics(sharing, {})["shared_models_info"]) == [
        "nllb#aaaaaaaaaaaa/onnxruntime",
        "nllb#bbbbbbbbbbbb/onnxruntime",
    ]
