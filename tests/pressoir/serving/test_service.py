"""The service on tiny models: tiers, sharing, concurrency, reloading, trouble."""

import asyncio
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from serving_http import SENTENCE, bag_of_words, configured

from pressoir.errors import RecipeError
from pressoir.inference.text_classification import TextClassifier
from pressoir.inference.text_generation import TextGenerator
from pressoir.inference.translation import Translator
from pressoir.reporting import LogReporter
from pressoir.serving.config import ServingConfig
from pressoir.serving.errors import (
    ClosingError,
    LoadError,
    RequestError,
    TimedOutError,
    UnknownTierError,
    WorkerDiedError,
)
from pressoir.serving.service import Service, TranslationService
from pressoir.serving.transcription import TranscriptionOptions
from pressoir.store.store import Store


class Recorder:
    """Everything that a service tells."""

    def __init__(self):
        self.events, self.requests, self.batches = [], [], []

    def request(self, tier, operation, outcome, seconds):
        self.requests.append((tier, operation, outcome))

    def batch(self, model, texts, waited_s, run_s):
        self.batches.append(texts)

    def event(self, event, model):
        self.events.append((event, Path(model).name))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


@pytest.fixture
def make(store):
    """`make({tier: (folder, settings)}, **fields)`: a service that is not started, in threads."""

    def make(tiers, observer=None, **fields):
        return Service(configured(store, tiers, **fields), store, observer)

    return make


OFF = {"enabled": False}


@pytest.fixture(scope="session")
def onnx_classifier(tiny_classifier, tmp_path_factory):
    """Folder of a bag-of-words classifier in ONNX, whose worker starts quickly."""
    return bag_of_words(tiny_classifier, tmp_path_factory.mktemp("onnx-classifier"))


@pytest.fixture(scope="session")
def int8_classifier(tiny_classifier, tiny_data, tmp_path_factory):
    """The tiny classifier as an ONNX graph with int8 weights and activations, its head made to matter."""
    from pressoir.models import loading
    from pressoir.recipe.sections import ExportConfig, QuantizeConfig
    from pressoir.stage import StageContext
    from pressoir.stages import export, quantize

    folder = tmp_path_factory.mktemp("int8-classifier")
    model = loading.load_classifier(tiny_classifier)
    model.classifier.weight.data *= 20
    loading.save_model(model, folder / "float")
    loading.save_tokenizer(loading.load_tokenizer(tiny_classifier), folder / "float")
    inputs = {"model": folder / "float", "data": tiny_data}
    for name, stage, config in (
        ("int8", quantize, QuantizeConfig(max_accuracy_drop=None)),
        ("onnx", export, ExportConfig()),
    ):
        for part in (name, f"{name}-work"):
            (folder / part).mkdir()
        context = StageContext(folder / name, folder / f"{name}-work", LogReporter(), seed=0, threads=1)
        stage.run(inputs, config, context)
        inputs["model"] = folder / name
    return folder / "onnx"


class TestTiers:
    def test_two_tiers_of_one_model_load_it_once_and_answer_alike(self, make, tiny_marian, tmp_path):
        copy = shutil.copytree(tiny_marian, tmp_path / "same-bytes")
        recorder = Recorder()

        async def run():
            service = make({"basic": (tiny_marian, {}), "premium": (copy, {})}, recorder, batching=OFF)
            async with service:
                basic = await service.translate(SENTENCE, "en", "fr", "basic")
                premium = await service.translate(SENTENCE, "en", "fr", tier="premium")
                assert basic == premium == Translator.open(tiny_marian, 1).translate([SENTENCE])[0]
                assert len(service.models.pool.entries) == 1

        asyncio.run(run())
        assert [event for event, _ in recorder.events] == ["loaded"]
        assert recorder.requests == [("basic", "translate", "ok"), ("premium", "translate", "ok")]

    def test_different_limits_are_honoured_on_the_shared_model(self, make, tiny_marian):
        async def run():
            tiers = {"basic": (tiny_marian, {"max_length": 5}), "premium": (tiny_marian, {"max_length": 12})}
            async with make(tiers, batching=OFF) as service:
                basic, premium = [await service.translate(SENTENCE, "en", "fr", tier=tier) for tier in tiers]
                translator = Translator.open(tiny_marian, 1)
                for answer, limit in ((basic, 5), (premium, 12)):
                    translator.max_source_tokens = limit
                    assert [answer] == translator.translate([SENTENCE], max_new_tokens=limit)
                assert basic != premium
                assert await service.translate(SENTENCE, tier="premium", max_length=5) == basic
                with pytest.raises(RequestError, match="max_length is 6, but tier 'basic' allows 5"):
                    await service.translate(SENTENCE, tier="basic", max_length=6)

        asyncio.run(run())

    def test_languages_are_mapped_and_an_unknown_one_is_told_with_those_that_are_known(self, make, tiny_nllb):
        async def run():
            tiers = {"basic": (tiny_nllb, {"source_language": "en", "target_language": "de"})}
            async with make(tiers, batching=OFF) as service:
                translator = Translator.open(tiny_nllb, 1)
                for asked, meant in (
                    ((), ("eng_Latn", "deu_Latn")),
                    (("en", "fr"), ("eng_Latn", "fra_Latn")),
                ):
                    answer = await service.translate(SENTENCE, *asked, tier="basic", max_new_tokens=6)
                    assert [answer] == translator.translate([SENTENCE], *meant, max_new_tokens=6)
                with pytest.raises(RequestError, match=r"'xx' is not supported by this model; .*deu_Latn"):
                    await service.translate(SENTENCE, "en", "xx", tier="basic")

        asyncio.run(run())

    def test_a_tier_that_does_not_exist_or_does_something_else_is_told(
        self, make, tiny_classifier, tiny_bert
    ):
        async def run():
            tiers = {"reviews": (tiny_classifier, {}), "words": (tiny_bert, {}), "more": (tiny_bert, {})}
            async with make(tiers) as service:
                with pytest.raises(UnknownTierError, match="no tier 'review'; did you mean 'reviews'"):
                    await service.classify(SENTENCE, tier="review")
                with pytest.raises(
                    UnknownTierError, match="'words' is for feature-extraction, not for text-"
                ):
                    await service.classify(SENTENCE, tier="words")
                with pytest.raises(UnknownTierError, match="specifies no tier; specify one of: words, more"):
                    await service.embed([SENTENCE])
                with pytest.raises(UnknownTierError, match="no tier supports causal-lm"):
                    service.generate(SENTENCE)
                assert sum((await service.classify(SENTENCE)).values()) == pytest.approx(1)

        asyncio.run(run())

    def test_what_cannot_be_answered_is_refused_before_the_model_is_loaded(self, make, tiny_classifier):
        recorder = Recorder()

        async def run():
            service = make({"basic": (tiny_classifier, {"max_batch": 2})}, recorder)
            for text, problem in (
                ("  ", "the text is empty"),
                (["good", ""], "text 1 is empty"),
                (["a", "b", "c"], "has 3 texts; expected 1 to 2"),
                ([], "has 0 texts"),
                ("\ud800", "is not valid Unicode text"),
                (7, "int"),
            ):
                with pytest.raises((RequestError, TypeError), match=problem):
                    await service.classify(text)
            await service.close()

        asyncio.run(run())
        assert recorder.events == []

    def test_every_task_is_served_and_sounds_too_long_are_refused(
        self, make, tiny_classifier, tiny_bert, tiny_whisper, tone
    ):
        async def run():
            tiers = {
                "reviews": (tiny_classifier, {}),
                "vectors": (tiny_bert, {}),
                "speech": (tiny_whisper, {"max_new_tokens": 4, "max_audio_s": 1.5}),
            }
            async with make(tiers) as service:
                rows = await service.classify(["the film was good", SENTENCE])
                assert rows == [
                    pytest.approx(row)
                    for row in TextClassifier.open(tiny_classifier, 1).predict(
                        ["the film was good", SENTENCE]
                    )
                ]
                vectors = await service.embed(["the film", SENTENCE, "the soup"])
                assert vectors.shape == (3, 32)
                assert vectors.dtype == np.float32
                text = await service.transcribe(tone(1.4))
                async with service.transcription(tone(1.4)) as transcription:
                    pieces = [piece async for piece in transcription]
                assert len(pieces) == 2, "a window each"
                assert "".join(pieces) == text == transcription.transcript.text
                assert transcription.transcript.duration_s == pytest.approx(1.4)
                async with service.transcription(tone(1.4)) as transcription:
                    assert await anext(transcription) == pieces[0]
                assert transcription.transcript is None, "it was ended early"
                with pytest.raises(RequestError, match="this model has no time stamps"):
                    await service.transcribe(tone(0.5), options=TranscriptionOptions(times=("segment",)))
                with pytest.raises(RequestError, match=r"2\.0 s long, and 1\.5 s are allowed"):
                    await service.transcribe(tone(2))
                with pytest.raises(RequestError, match="expected mono float32"):
                    await service.transcribe(np.zeros(16000, dtype=np.int16))
                assert (await service.info("speech"))["sampling_rate"] == 16000

        asyncio.run(run())

    def test_a_tiers_model_is_loaded_and_unloaded_by_hand(self, make, tiny_classifier):
        async def run():
            service = make({"basic": (tiny_classifier, {}), "premium": (tiny_classifier, {})})
            assert not service.models.is_loaded("basic")
            await service.models.load("basic")
            assert service.models.is_loaded("premium")
            assert list(service.models.gauges().values()) == [
                {"resident_bytes": service.models.pool.resident_bytes, "leases": 0, "waiting": 0}
            ]
            assert await service.models.unload("premium")
            assert not await service.models.unload("basic")
            assert not service.models.is_loaded("basic")
            with pytest.raises(UnknownTierError, match="no tier 'best'"):
                await service.models.load("best")
            await service.close()

        asyncio.run(run())

    def test_a_configuration_that_is_not_resolved_is_refused(self, store):
        with pytest.raises(RecipeError, match="not resolved"):
            Service(ServingConfig.model_validate({"tiers": {"a": {"model": "x"}}}), store)

    def test_the_translation_service_is_the_service(self):
        assert TranslationService is Service


class TestGeneration:
    def test_pieces_then_the_counts(self, make, tiny_llama):
        async def run():
            async with make({"story": (tiny_llama, {"max_new_tokens": 10})}) as service:
                generation = service.generate("the film was")
                pieces = [piece async for piece in generation]
                expected = TextGenerator.open(tiny_llama, 1).generate("the film was", max_new_tokens=10)
                assert pieces == list(expected)
                assert generation.usage.completion_tokens == 10
                assert generation.usage.finish_reason == "length"
                with pytest.raises(RequestError, match="max_new_tokens is 11"):
                    service.generate("the film was", max_new_tokens=11)

        asyncio.run(run())

    def test_streams_at_once_do_not_mix(self, make, tiny_llama):
        async def run():
            async with make({"story": (tiny_llama, {})}) as service:

                async def write(prompt):
                    return "".join([piece async for piece in service.generate(prompt, max_new_tokens=20)])

                prompts = ["the film was", "the soup", "bad and dull", "the song and"]
                written = await asyncio.gather(*map(write, prompts))
                generator = TextGenerator.open(tiny_llama, 1)
                assert written == ["".join(generator.generate(one, max_new_tokens=20)) for one in prompts]

        asyncio.run(run())

    def test_one_that_is_closed_early_ends_its_lease_and_its_work(self, make, tiny_llama):
        recorder = Recorder()

        async def run():
            async with make({"story": (tiny_llama, {})}, recorder) as service:
                [entry] = service.models.pool.entries.values()
                async with service.generate("the film was", max_new_tokens=200) as generation:
                    await anext(generation)
                    assert entry.leases == 1
                assert entry.leases == 0
                assert generation.usage is None
                assert entry.model.client._receivers == {}

        asyncio.run(run())
        assert recorder.requests == [("story", "generate", "cancelled")]

    def test_a_prompt_that_is_too_long_is_refused(self, make, tiny_llama):
        async def run():
            async with make({"story": (tiny_llama, {"max_length": 10})}) as service:
                with pytest.raises(RequestError, match="max_length is 10 including generated tokens"):
                    await anext(service.generate("the film was good and " * 10))

        asyncio.run(run())

    def test_its_time_counts_from_the_first_piece_to_the_last(self, make, tiny_llama):
        recorder = Recorder()

        async def run():
            async with make({"story": (tiny_llama, {})}, recorder) as service:
                with pytest.raises(TimedOutError, match=r"within 0\.001 s"):
                    async for _ in service.generate("the film was", max_new_tokens=250, timeout_s=0.001):
                        pass

        asyncio.run(run())
        assert recorder.requests == [("story", "generate", "TimedOutError")]


class TestConcurrency:
    def test_many_mixed_requests_load_each_model_once_and_answer_as_alone(
        self, make, tiny_classifier, tiny_marian, tiny_llama
    ):
        recorder = Recorder()

        async def run():
            tiers = {
                "reviews": (tiny_classifier, {}),
                "reviews-short": (tiny_classifier, {"max_length": 6}),
                "french": (tiny_marian, {"max_new_tokens": 6}),
                "french-long": (tiny_marian, {"max_new_tokens": 9}),
                "story": (tiny_llama, {"max_new_tokens": 5}),
            }
            service = make(tiers, recorder, batching={"enabled": False, "max_queue": 500})

            async def one(index):
                tier = list(tiers)[index % len(tiers)]
                if tier.startswith("reviews"):
                    return tier, await service.classify(SENTENCE, tier=tier)
                if tier.startswith("french"):
                    return tier, await service.translate(SENTENCE, tier=tier)
                return tier, "".join([piece async for piece in service.generate(SENTENCE, tier=tier)])

            # Nothing is loaded yet: the first requests meet at the loads.
            answers = await asyncio.gather(*(one(index) for index in range(200)))
            for tier in tiers:
                found = [answer for name, answer in answers if name == tier]
                assert len(found) == 40
                assert all(answer == found[0] for answer in found)
            figures = await service.models.statistics()
            assert figures["unique_models_loaded"] == 3
            assert figures["models_saved"] == 2
            await service.close()

        asyncio.run(run())
        names = {"loaded", *(event for event, _ in recorder.events)}
        assert names == {"loaded"}
        assert len(recorder.events) == 3
        assert {outcome for _, _, outcome in recorder.requests} == {"ok"}

    def test_requests_that_meet_are_batched_and_answered_alike(self, make, tiny_classifier):
        recorder = Recorder()

        async def run():
            tiers = {"basic": (tiny_classifier, {}), "premium": (tiny_classifier, {})}
            async with make(tiers, recorder) as service:
                alone = await service.classify(SENTENCE, tier="basic")
                answers = await asyncio.gather(
                    *(service.classify(SENTENCE, tier=list(tiers)[index % 2]) for index in range(40))
                )
                assert answers == [pytest.approx(alone, abs=1e-6)] * 40

        asyncio.run(run())
        assert sum(recorder.batches) == 41
        assert max(recorder.batches) > 1

    def test_rows_that_depend_on_each_other_are_computed_together_only_if_told(self, make, int8_classifier):
        texts = [" ".join(SENTENCE.split()[: 1 + index % 11]) for index in range(24)]

        async def answers(**batching):
            recorder = Recorder()
            async with make({"basic": (int8_classifier, {})}, recorder, batching=batching) as service:
                found = await asyncio.gather(*(service.classify(text) for text in texts))
            assert max(recorder.batches) > 1
            return np.array([list(row.values()) for row in found])

        expected = TextClassifier.open(int8_classifier, 1).predict(texts)
        alone = np.array([list(row.values()) for row in expected])
        together = asyncio.run(answers(batch_variant=True))
        assert np.array_equal(asyncio.run(answers()), alone)
        assert 0 < np.abs(together - alone).max() < 0.05  # one scale for all rows: near, and not the same

    def test_a_request_that_takes_too_long_is_told_and_leaves(self, make, tiny_marian):
        async def run():
            async with make({"french": (tiny_marian, {})}) as service:
                with pytest.raises(TimedOutError):
                    await service.translate([SENTENCE] * 30, timeout_s=0.001)
                [entry] = service.models.pool.entries.values()
                assert entry.leases == 0
                assert entry.model.waiting == 0
                assert await service.translate(SENTENCE)

        asyncio.run(run())


class TestStarting:
    def test_what_is_pinned_is_loaded_first_and_the_rest_as_far_as_it_is_expected_to_fit(
        self, store, tiny_classifier, tiny_bert, caplog
    ):
        recorder = Recorder()
        config = configured(store, {"a": (tiny_classifier, {}), "b": (tiny_bert, {})}, memory_budget_gb=0.5)
        pinned = config.tiers["b"].model_copy(update={"pinned": True})
        config = config.model_copy(update={"tiers": {**config.tiers, "b": pinned}})

        async def run():
            async with Service(config, store, recorder):
                assert recorder.events == [("loaded", tiny_bert.name)]

        caplog.set_level("INFO", "pressoir")
        asyncio.run(run())
        assert "2 tiers on 2 models: 0 loads saved" in caplog.text
        assert "no models are shared" in caplog.text

    def test_a_model_that_cannot_be_loaded_fails_the_start(self, store, tiny_classifier, tmp_path):
        folder = shutil.copytree(tiny_classifier, tmp_path / "model")
        config = configured(store, {"a": (folder, {})})
        (folder / "config.json").write_text("{}")

        async def run():
            service = Service(config, store)
            with pytest.raises(LoadError, match="have the digest"):
                await service.start()
            assert not service.models.ready
            with pytest.raises(ClosingError):
                await service.classify(SENTENCE)

        asyncio.run(run())


class TestReloading:
    def test_a_reload_swaps_without_losing_a_request(self, make, tiny_llama):
        recorder = Recorder()

        async def run():
            async with make({"story": (tiny_llama, {})}, recorder) as service:
                expected = "".join(TextGenerator.open(tiny_llama, 1).generate("the film", max_new_tokens=60))
                generation = service.generate("the film", max_new_tokens=60)
                first = await anext(generation)
                [old] = service.models.pool.entries.values()
                reloading = asyncio.create_task(service.models.reload())
                assert first + "".join([piece async for piece in generation]) == expected
                await reloading
                [new] = service.models.pool.entries.values()
                assert new is not old
                assert old.model.ended.done()
                assert "".join([piece async for piece in service.generate("the film", max_new_tokens=60)])

        asyncio.run(run())
        assert recorder.events.count(("replaced", tiny_llama.name)) == 1

    def test_files_that_were_altered_fail_the_reload_and_the_old_model_stays(
        self, store, tiny_classifier, tmp_path
    ):
        folder = shutil.copytree(tiny_classifier, tmp_path / "model")
        config = configured(store, {"basic": (folder, {})})

        async def run():
            async with Service(config, store) as service:
                before = await service.classify(SENTENCE)
                (folder / "tokenizer_config.json").write_text("{}")
                with pytest.raises(LoadError, match="have the digest"):
                    await service.models.reload()
                assert await service.classify(SENTENCE) == before

        asyncio.run(run())

    def test_another_configuration_takes_over_when_all_of_its_models_are_there(
        self, store, tiny_classifier, tiny_bert, tmp_path
    ):
        from pressoir.models import loading

        other = tmp_path / "other"
        loading.save_model(loading.load_classifier(tiny_bert, labels=["bad", "good"]), other)
        loading.save_tokenizer(loading.load_tokenizer(tiny_bert), other)
        old = configured(store, {"basic": (tiny_classifier, {}), "premium": (tiny_classifier, {})})
        new = configured(store, {"basic": (other, {}), "vectors": (tiny_bert, {})})

        async def run():
            async with Service(old, store) as service:
                basic, premium = map(service.models.lookup, ("basic", "premium"))
                await service.models.reload(new)
                assert set(await service.classify(SENTENCE, tier="basic")) == {"bad", "good"}
                assert (await service.embed([SENTENCE])).shape == (1, 32)
                with pytest.raises(UnknownTierError):
                    await service.classify(SENTENCE, tier="premium")
                # Tiers that were looked up before the reload lead to what is served now.
                assert set(await service.classify(SENTENCE, tier=basic)) == {"bad", "good"}
                with pytest.raises(UnknownTierError):
                    await service.classify(SENTENCE, tier=premium)
                keys = {spec.key for spec in service.models.sharing.models}
                assert set(service.models.pool.entries) == keys

        asyncio.run(run())

    def test_another_configuration_that_cannot_be_loaded_changes_nothing(
        self, store, tiny_classifier, tiny_bert, tmp_path
    ):
        broken = shutil.copytree(tiny_bert, tmp_path / "broken")
        old = configured(store, {"basic": (tiny_classifier, {})})
        new = configured(store, {"basic": (broken, {}), "vectors": (tiny_bert, {})})
        (broken / "config.json").write_text((broken / "config.json").read_text() + " ")

        async def run():
            async with Service(old, store) as service:
                before, loaded = await service.classify(SENTENCE), set(service.models.pool.entries)
                with pytest.raises(LoadError):
                    await service.models.reload(new)
                assert await service.classify(SENTENCE) == before
                assert service.models.config is old
                assert set(service.models.pool.entries) == loaded

        asyncio.run(run())


class TestProcesses:
    @pytest.mark.process
    def test_isolated_models_are_shared_survive_a_kill_and_give_their_memory_back(
        self, make, onnx_classifier
    ):
        recorder = Recorder()

        async def run():
            tiers = {"basic": (onnx_classifier, {}), "premium": (onnx_classifier, {})}
            async with make(tiers, recorder, isolation="process", batching=OFF) as service:
                pool = service.models.pool
                answers = await asyncio.gather(
                    *(service.classify(SENTENCE, tier=("basic", "premium")[n % 2]) for n in range(100))
                )
                assert answers == [TextClassifier.open(onnx_classifier, 1).predict([SENTENCE])[0]] * 100
                assert recorder.events == [("loaded", onnx_classifier.name)]
                figures = await service.models.statistics()
                [info] = figures["shared_models_info"].values()
                assert info["pss_mb"] > 20  # the worker's own, and no thread of ours
                assert figures["measured_memory_saved_mb"] == info["pss_mb"]

                [killed] = pool.entries.values()
                waiting = [asyncio.create_task(service.classify(SENTENCE, tier="basic")) for _ in range(20)]
                await asyncio.sleep(0)
                os.kill(killed.model.client.pid, signal.SIGKILL)
                await killed.model.client.ended
                results = await asyncio.gather(*waiting, return_exceptions=True)
                assert WorkerDiedError in {type(one) for one in results}
                assert all(one == answers[0] or getattr(one, "retriable", False) for one in results)
                assert await service.classify(SENTENCE, tier="premium") == answers[0]
                assert [event for event, _ in recorder.events] == ["loaded", "died", "loaded"]

                [entry] = pool.entries.values()
                assert await service.models.unload("basic")
                assert pool.resident_bytes == 0
                assert not Path(f"/proc/{entry.model.client.pid}").exists()

        asyncio.run(run())
