"""A worker that hangs at a request is ended, and nobody else notices but by the time it takes."""

import asyncio

import pytest
from fake_worker import COMMAND
from serving_http import bag_of_words, configured

from pressoir.serving.errors import TimedOutError, WorkerDiedError
from pressoir.serving.http.metrics import Metrics
from pressoir.serving.pool import process
from pressoir.serving.service import Service
from pressoir.store.store import Store

pytestmark = pytest.mark.process


@pytest.fixture
def make(monkeypatch, tmp_path):
    """`make(folder)`: a service of one tier whose workers do what `fake_worker` says, and its counters."""
    monkeypatch.setattr(process, "COMMAND", COMMAND)

    def make(folder):
        store, metrics = Store(tmp_path / "home"), Metrics()
        config = configured(store, {"tier": (folder, {})}, isolation="process", step_grace_s=0.01)
        return Service(config, store, metrics), metrics

    return make


def events(metrics):
    """How often each event of the model was counted."""
    lines = metrics.text().decode().splitlines()
    found = [line for line in lines if line.startswith("pressoir_model_events_total")]
    return {line.partition('event="')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in found}


def test_texts_that_waited_are_answered_by_the_reloaded_model(make, tiny_classifier, tmp_path):
    (tmp_path / "model").mkdir()
    service, metrics = make(bag_of_words(tiny_classifier, tmp_path / "model"))

    async def run():
        async with service:
            hanging = asyncio.create_task(service.classify("hang", timeout_s=0.3))
            await asyncio.sleep(0)
            waiting = [asyncio.create_task(service.classify(["good", "bad"])) for _ in range(20)]
            with pytest.raises(TimedOutError):
                await hanging
            assert await asyncio.gather(*waiting) == [[{"sure": 1.0}] * 2] * 20

    asyncio.run(run())
    assert events(metrics) == {"loaded": 2.0, "stuck": 1.0, "died": 1.0}


def test_a_stream_that_has_begun_fails_and_one_that_has_not_is_begun_again(make, tiny_llama):
    service, metrics = make(tiny_llama)

    async def everything(generation):
        async with generation:
            return [piece async for piece in generation]

    async def run():
        async with service:
            begun = service.generate("more")
            assert await anext(begun) == "more"
            hanging = asyncio.create_task(everything(service.generate("hang", timeout_s=0.3)))
            [entry] = service.models.pool.entries.values()
            steps = entry.model.client._worker.steps
            while steps.current != 3:  # after the example and what has begun
                await asyncio.sleep(0.01)
            waiting = asyncio.create_task(everything(service.generate("short")))
            with pytest.raises(TimedOutError):
                await hanging
            with pytest.raises(WorkerDiedError):
                await everything(begun)
            assert await waiting == ["short"]

    asyncio.run(run())
    assert events(metrics) == {"loaded": 2.0, "stuck": 1.0, "died": 1.0}


def test_what_hangs_twice_is_told_of_and_not_tried_again(make, tiny_classifier, tmp_path):
    (tmp_path / "model").mkdir()
    service, metrics = make(bag_of_words(tiny_classifier, tmp_path / "model"))

    async def run():
        async with service:
            hanging = [
                asyncio.create_task(service.classify("hang", timeout_s=timeout_s, max_length=length))
                for timeout_s, length in ((0.3, 8), (30, 7))  # not in one batch
            ]
            with pytest.raises(TimedOutError):
                await hanging[0]
            while events(metrics)["loaded"] < 2:
                await asyncio.sleep(0.01)
            [entry] = service.models.pool.entries.values()
            client = entry.model.client
            while client._worker.steps.current != 2:
                await asyncio.sleep(0.01)
            client._end_if_stuck(2)
            with pytest.raises(WorkerDiedError):
                await hanging[1]

    asyncio.run(run())


def test_threads_cannot_be_ended_which_is_said_at_the_start(tiny_classifier, tmp_path, caplog):
    store = Store(tmp_path / "home")
    config = configured(store, {"tier": (tiny_classifier, {})}, isolation="thread")

    async def run():
        async with Service(config, store):
            pass

    asyncio.run(run())
    assert caplog.text.count("a request that does not end cannot be stopped") == 1
