"""Short requests pass long ones, which are computed in small steps."""

import asyncio

from pressoir.serving.config import BatchingConfig
from pressoir.serving.pool.model_handle import STEP, ModelHandle
from pressoir.serving.worker.messages import Message


class Client:
    """Answers a text with its length; texts that are `held` when they are let."""

    def __init__(self):
        self.info, self.ended = {"batch_invariant": True}, asyncio.get_running_loop().create_future()
        self.let, self.steps = asyncio.Event(), []

    async def call(self, operation, *, until, texts, max_tokens, **settings):
        self.steps.append((len(texts), max_tokens))
        if max_tokens == STEP:
            await self.let.wait()
        return Message("result", body={"lengths": list(map(len, texts)), "truncated": [False] * len(texts)})


def handle():
    return ModelHandle(Client(), BatchingConfig(max_tokens=4096), lambda *batch: None)


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_short_request_does_not_wait_for_a_long_one():
    async def run():
        for long in (["the film was good"] * 1000, ["字" * 100_000] * 16, ["字" * 100_000]):
            model = handle()
            waiting = asyncio.create_task(model.answer("classify", long, max_length=128))
            await settle()
            assert await model.answer("classify", ["good"], max_length=128) == [(4, False)]
            assert not waiting.done()
            assert model.client.steps == [(len(long), STEP), (1, 4096)]
            model.client.let.set()
            assert await waiting == [(len(text), False) for text in long]

    asyncio.run(run())


def test_one_long_request_at_a_time_and_those_that_wait_count():
    async def run():
        model = handle()
        long = ["the film was good"] * 1000
        waiting = [asyncio.create_task(model.answer("classify", long)) for _ in range(3)]
        await settle()
        assert model.client.steps == [(1000, STEP)]
        assert model.waiting == 2
        model.client.let.set()
        assert len(await asyncio.gather(*waiting)) == 3

    asyncio.run(run())


def test_a_few_texts_of_usual_length_go_with_the_short_ones():
    async def run():
        model = handle()
        assert len(await model.answer("classify", ["the film was good and the soup was cold"] * 16)) == 16
        assert model.client.steps == [(16, 4096)]

    asyncio.run(run())
