"""The batching queue: who goes together, who waits, who leaves."""

import asyncio

import pytest

from pressoir.serving.errors import InferenceError, QueueFullError, WorkerDiedError
from pressoir.serving.pool.batching import BatchQueue, estimate_tokens
from pressoir.serving.pool.model_handle import ConcurrencyLimiter


class Engine:
    """Answers a text with itself in capitals; holds every batch until it is let."""

    def __init__(self):
        self.batches, self.let, self.cancelled = [], asyncio.Event(), 0
        self.poison = None

    async def __call__(self, key, texts, until):
        self.batches.append((key, list(texts)))
        try:
            await self.let.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.poison in texts:
            raise InferenceError("it cannot")
        return [text.upper() for text in texts]

    @property
    def texts(self):
        return [texts for _, texts in self.batches]


def queue_of(engine, **settings):
    return BatchQueue(engine, **{"max_tokens": 1000, "max_delay_s": 0.0, "max_queue": 100, **settings})


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)


async def submit(queue, *texts, key="k"):
    """Tasks that wait for an answer, one a text, each begun before the next."""
    tasks = []
    for text in texts:
        tasks.append(asyncio.create_task(queue.submit(key, [text])))
        await settle()
    return tasks


class TestBatches:
    def test_an_idle_model_is_used_at_once_and_who_comes_meanwhile_goes_together(self):
        async def run():
            engine = Engine()
            queue = queue_of(engine)
            tasks = await submit(queue, "a", "b", "c", "d")
            assert engine.texts == [["a"]]
            assert len(queue) == 3
            engine.let.set()
            assert await asyncio.gather(*tasks) == [["A"], ["B"], ["C"], ["D"]]
            assert engine.texts == [["a"], ["b", "c", "d"]]

        asyncio.run(run())

    def test_only_what_has_the_same_settings_goes_together_the_longest_waiting_first(self):
        async def run():
            engine = Engine()
            queue = queue_of(engine)
            first = await submit(queue, "a")
            others = [
                *await submit(queue, "b", key="x"),
                *await submit(queue, "c", key="y"),
                *await submit(queue, "d", key="x"),
            ]
            engine.let.set()
            await asyncio.gather(*first, *others)
            assert engine.batches[1:] == [("x", ["b", "d"]), ("y", ["c"])]

        asyncio.run(run())

    def test_a_batch_stays_within_its_tokens_with_the_padding_counted(self):
        async def run():
            engine = Engine()
            long, short = "x" * 88, "y"
            assert (estimate_tokens(long), estimate_tokens(short)) == (31, 2)
            queue = queue_of(engine, max_tokens=70)
            tasks = await submit(queue, "a", short, short, long, short)
            engine.let.set()
            await asyncio.gather(*tasks)
            # A third text beside the long one would make 93 tokens.
            assert engine.texts == [["a"], [short, short], [long, short]]

        asyncio.run(run())

    def test_a_text_longer_than_the_budget_goes_alone(self):
        async def run():
            engine = Engine()
            queue = queue_of(engine, max_tokens=10)
            tasks = await submit(queue, "a", "x" * 300, "b")
            engine.let.set()
            await asyncio.gather(*tasks)
            assert engine.texts == [["a"], ["x" * 300], ["b"]]

        asyncio.run(run())

    def test_a_batch_stays_within_its_texts(self):
        async def run():
            engine = Engine()
            queue = queue_of(engine, max_texts=2)
            tasks = await submit(queue, *"abcde")
            engine.let.set()
            await asyncio.gather(*tasks)
            assert engine.texts == [["a"], ["b", "c"], ["d", "e"]]

        asyncio.run(run())

    def test_with_batching_off_everybody_goes_alone(self):
        async def run():
            engine = Engine()
            queue = queue_of(engine, together=False)
            tasks = await submit(queue, "a", "b", "c")
            engine.let.set()
            await asyncio.gather(*tasks)
            assert engine.texts == [["a"], ["b"], ["c"]]

        asyncio.run(run())

    def test_a_batch_that_is_not_full_waits_for_more(self):
        async def run():
            engine = Engine()
            queue = queue_of(engine, max_delay_s=60.0, max_tokens=6)
            tasks = await submit(queue, "a", "b")
            engine.let.set()
            await settle()
            assert engine.texts == [["a"]]
            tasks += await submit(queue, "c", "d", "e")  # four of two tokens each are too much
            await asyncio.gather(*tasks[:4])
            assert engine.texts == [["a"], ["b", "c", "d"]]
            tasks[4].cancel()

        asyncio.run(run())

    def test_requests_of_several_texts_get_their_own_answers(self):
        async def run():
            engine = Engine()
            queue = queue_of(engine)
            await submit(queue, "a")
            pair, one = (asyncio.create_task(queue.submit("k", texts)) for texts in (["b", "c"], ["d"]))
            engine.let.set()
            assert await asyncio.gather(pair, one) == [["B", "C"], ["D"]]

        asyncio.run(run())

    def test_each_batch_is_told_of(self):
        async def run():
            batches = []
            engine = Engine()
            engine.let.set()
            queue = queue_of(engine, watch=lambda *figures: batches.append(figures))
            await queue.submit("k", ["a", "b"])
            await settle()
            [(texts, waited_s, run_s)] = batches
            assert texts == 2
            assert waited_s >= 0
            assert run_s >= 0

        asyncio.run(run())


class TestLeaving:
    def test_a_cancelled_request_leaves_the_queue_and_is_never_run(self):
        async def run():
            engine = Engine()
            queue = queue_of(engine)
            tasks = await submit(queue, "a", "b", "c")
            tasks[1].cancel()
            await settle()
            assert len(queue) == 1
            engine.let.set()
            assert await tasks[2] == ["C"]
            assert engine.texts == [["a"], ["c"]]

        asyncio.run(run())

    def test_a_request_whose_time_is_up_leaves_the_queue(self):
        async def run():
            engine = Engine()
            queue = queue_of(engine)
            [first] = await submit(queue, "a")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await queue.submit("k", ["b"])
            assert len(queue) == 0
            engine.let.set()
            assert await first == ["A"]

        asyncio.run(run())

    def test_a_batch_that_nobody_waits_for_is_cancelled_and_the_next_one_runs(self):
        async def run():
            engine = Engine()
            queue = queue_of(engine)
            first, second = await submit(queue, "a", "b")
            first.cancel()
            await settle()
            assert engine.cancelled == 1
            assert engine.texts == [["a"], ["b"]]
            engine.let.set()
            assert await second == ["B"]
            assert await queue.submit("k", ["c"]) == ["C"]

        asyncio.run(run())

    def test_a_batch_that_somebody_still_waits_for_goes_on(self):
        async def run():
            engine = Engine()
            queue = queue_of(engine)
            tasks = await submit(queue, "a", "b", "c")
            engine.let.set()
            await tasks[0]
            engine.let.clear()
            await settle()
            tasks[1].cancel()
            await settle()
            engine.let.set()
            assert await tasks[2] == ["C"]
            assert engine.cancelled == 0

        asyncio.run(run())


class TestTrouble:
    def test_a_full_queue_turns_away_and_says_when_to_come_back(self):
        async def run():
            engine = Engine()
            queue = queue_of(engine, max_queue=2)
            tasks = await submit(queue, "a", "b", "c")
            with pytest.raises(QueueFullError, match="2 requests are already waiting") as refused:
                await queue.submit("k", ["d"])
            assert refused.value.retry_after_s > 0
            assert refused.value.retriable
            engine.let.set()
            await asyncio.gather(*tasks)
            assert await queue.submit("k", ["d"]) == ["D"]

        asyncio.run(run())

    def test_one_request_that_fails_does_not_spoil_its_batch(self):
        async def run():
            engine = Engine()
            engine.poison = "bad"
            queue = queue_of(engine)
            tasks = await submit(queue, "a", "b", "bad", "c")
            engine.let.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [results[0], results[1], results[3]] == [["A"], ["B"], ["C"]]
            assert str(results[2]) == "it cannot"

        asyncio.run(run())

    def test_when_the_model_dies_everybody_is_told_and_nobody_hangs(self):
        async def run():
            async def dead(key, texts, until):
                await asyncio.sleep(0)
                raise WorkerDiedError("gone")

            queue = queue_of(dead)
            tasks = [asyncio.create_task(queue.submit("k", [text])) for text in "abcdefgh"]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(one) for one in results] == [WorkerDiedError] * 8
            assert len(queue) == 0

        asyncio.run(run())


class TestSlots:
    def test_a_few_at_a_time_some_wait_and_more_are_turned_away(self):
        async def run():
            limiter, let, inside = ConcurrencyLimiter(2, 1), asyncio.Event(), []

            async def hold(name):
                async with limiter.slot():
                    inside.append(name)
                    await let.wait()

            tasks = [asyncio.create_task(hold(name)) for name in "abc"]
            await settle()
            assert inside == ["a", "b"]
            assert limiter.waiting == 1
            with pytest.raises(QueueFullError):
                await hold("d")
            tasks[2].cancel()
            await settle()
            assert limiter.waiting == 0
            let.set()
            await asyncio.gather(*tasks[:2])
            await hold("e")
            assert inside == ["a", "b", "e"]

        asyncio.run(run())
