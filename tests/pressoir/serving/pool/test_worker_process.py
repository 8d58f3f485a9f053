"""A model in a process of its own: answers, streams, cancellation, trouble, and its end."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from fake_worker import COMMAND, MB

from pressoir.serving.errors import InferenceError, LoadError, RequestError, WorkerDiedError
from pressoir.serving.pool import process
from pressoir.serving.pool.process import ProcessClient

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def fake_command(monkeypatch):
    monkeypatch.setattr(process, "COMMAND", COMMAND)


@asynccontextmanager
async def opened(name="model", **options):
    model = await ProcessClient.open({"name": name, "threads": 3}, timeout_s=60, **options)
    try:
        yield model
    finally:
        await model.close()


async def collect(stream):
    return [message async for message in stream]


def alive(pid):
    return Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() != b""


class TestAnswers:
    def test_texts_and_arrays_come_back_as_they_went(self):
        async def run():
            async with opened() as model:
                array = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
                answer = await model.call("echo", array, text="żółw 🐢", number=0.1 + 0.2, nothing=None)
                assert answer.body == {"text": "żółw 🐢", "number": 0.1 + 0.2, "nothing": None}
                np.testing.assert_array_equal(answer.array, array)

        asyncio.run(run())

    def test_many_requests_at_once_each_get_their_own_answer(self):
        async def run():
            async with opened() as model:
                answers = await asyncio.gather(*(model.call("echo", number=n) for n in range(500)))
                assert [answer.body["number"] for answer in answers] == list(range(500))

        asyncio.run(run())

    def test_it_knows_its_threads_and_what_it_prints_harms_nobody(self):
        async def run():
            async with opened() as model:
                await model.call("shout")
                answer = await model.call("pid")
                assert answer.body == {"pid": model.pid, "threads": "3"}
                assert model.info["name"] == "model"

        asyncio.run(run())

    def test_a_mistake_of_the_request_and_a_fault_of_the_model_are_told_apart(self):
        async def run():
            async with opened() as model:
                with pytest.raises(RequestError, match="not like this"):
                    await model.call("refuse")
                with pytest.raises(
                    RequestError, match="does not support dance; it supports classify, count, die"
                ):
                    await model.call("dance")
                with pytest.raises(InferenceError, match="ZeroDivisionError: a bug") as failed:
                    await model.call("fail")
                assert not failed.value.retriable
                with pytest.raises(InferenceError, match="more memory than available") as failed:
                    await model.call("exhaust")
                assert failed.value.retriable
                assert (await model.call("echo", still="there")).body == {"still": "there"}

        asyncio.run(run())


class TestStreams:
    def test_pieces_come_in_order_and_then_the_result(self):
        async def run():
            async with opened() as model:
                messages = [message async for message in model.stream("count", to=3)]
                assert [message.body.get("text") for message in messages] == ["0 ", "1 ", "2 ", None]
                assert messages[-1].body == {"counted": 3}

        asyncio.run(run())

    def test_a_short_request_does_not_wait_for_a_long_stream(self):
        async def run():
            async with opened() as model:
                stream = model.stream("count", to=10**9)
                assert (await anext(stream)).body == {"text": "0 "}
                assert (await model.call("echo", x=1)).body == {"x": 1}
                await stream.aclose()

        asyncio.run(run())

    def test_a_stream_that_is_closed_stops_in_the_worker(self):
        async def run():
            async with opened() as model:
                stream = model.stream("count", to=10**9)
                await anext(stream)
                await stream.aclose()
                await model.call("echo")  # is answered after the cancellation was read
                received = []
                model._receive = received.append
                await asyncio.sleep(0.05)
                assert received == []

        asyncio.run(run())

    def test_a_call_that_is_cancelled_is_dropped(self):
        async def run():
            async with opened() as model:
                call = asyncio.create_task(model.call("count", to=10**9))
                await model.call("echo")
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
                await model.call("echo")
                assert model._receivers == {}

        asyncio.run(run())


class TestLoading:
    def test_what_cannot_be_loaded_is_told_and_leaves_no_process(self):
        async def run():
            with pytest.raises(LoadError, match="its files are damaged") as failed:
                await ProcessClient.open({"name": "damaged", "threads": 1}, timeout_s=60)
            assert not failed.value.retriable

        asyncio.run(run())

    def test_a_crash_while_loading_is_told_with_the_last_lines_of_the_log(self):
        async def run():
            with pytest.raises(LoadError, match=r"(?s)ended while loading .*SIG.*terrible things"):
                await ProcessClient.open({"name": "crashes", "threads": 1}, timeout_s=60)

        asyncio.run(run())

    def test_one_that_takes_too_long_is_ended(self):
        async def run():
            with pytest.raises(LoadError, match="hangs was not loaded within"):
                await ProcessClient.open({"name": "hangs", "threads": 1}, timeout_s=1)

        asyncio.run(run())


class TestWatchdog:
    async def hanging(self, model, until):
        """A stream whose second step hangs, and is at it."""
        stream = model.stream("hang", until=until)
        await anext(stream)
        while not model._worker.steps.current:
            await asyncio.sleep(0.01)
        return stream

    def test_a_worker_at_a_step_whose_time_is_over_is_ended_and_what_waited_is_told_so(self, caplog):
        async def run():
            told = []
            async with opened(grace_s=0.01, on_stuck=lambda: told.append("stuck")) as model:
                stream = await self.hanging(model, until=0.0)
                waiting = asyncio.create_task(model.call("echo"))
                await asyncio.sleep(0)
                await stream.aclose()
                with pytest.raises(WorkerDiedError) as died:
                    await waiting
                assert died.value.stuck
                assert told == ["stuck"]
                assert await model.ended == "killed by SIGKILL"

        asyncio.run(run())
        assert caplog.text.count("ending the worker of model: a step of a request outlasts its timeout") == 1

    def test_a_step_has_the_whole_time_of_its_request_though_the_client_is_gone(self):
        async def run():
            async with opened(grace_s=0.0) as model:
                stream = await self.hanging(model, until=asyncio.get_running_loop().time() + 3600)
                await stream.aclose()
                await asyncio.sleep(0.05)
                assert not model.ended.done()
                model._worker.kill()

        asyncio.run(run())

    def test_a_worker_that_takes_the_cancellation_is_left_alone(self):
        async def run():
            async with opened(grace_s=0.0) as model:
                call = asyncio.create_task(model.call("count", to=10**9, until=0.0))
                await model.call("echo")
                model._grace_s = 3600  # what is looked for then is looked for below
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
                await model.call("echo")  # is answered after the cancellation was read
                model._end_if_stuck(1)
                assert (await model.call("pid")).body["pid"] == model.pid

        asyncio.run(run())

    def test_another_request_that_is_cancelled_does_not_end_a_worker_that_is_busy(self):
        async def run():
            async with opened(grace_s=0.0) as model:
                stream = await self.hanging(model, until=None)
                call = asyncio.create_task(model.call("echo", until=0.0))
                await asyncio.sleep(0)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
                await asyncio.sleep(0.05)
                assert not model.ended.done()
                await stream.aclose()
                model._worker.kill()

        asyncio.run(run())


class TestEnd:
    def test_a_worker_that_is_killed_fails_every_request_and_says_that_it_is_gone(self):
        async def run():
            async with opened() as model:
                stream = model.stream("count", to=10**9, sleep_s=0.001)
                await anext(stream)
                calls = [asyncio.create_task(model.call("count", to=10**9)) for _ in range(20)]
                await model.call("echo")
                os.kill(model.pid, signal.SIGKILL)
                failures = await asyncio.gather(*calls, return_exceptions=True)
                assert {type(one) for one in failures} == {WorkerDiedError}
                assert "killed by SIGKILL" in str(failures[0])
                assert failures[0].retriable
                with pytest.raises(WorkerDiedError):
                    await collect(stream)
                assert await model.ended == "killed by SIGKILL"
                with pytest.raises(WorkerDiedError):
                    await model.call("echo")

        asyncio.run(run())

    def test_one_that_dies_of_a_request_leaves_its_last_words_in_the_log(self, caplog):
        async def run():
            async with opened() as model:
                with pytest.raises(WorkerDiedError):
                    await model.call("die")

        asyncio.run(run())
        assert "last words" in caplog.text

    def test_closing_ends_the_process_and_its_memory_is_back(self):
        async def run():
            async with opened("large") as model:
                assert await model.measure() > 100 * MB
                pid = model.pid
                assert alive(pid)
                await model.close()
                assert not alive(pid)
                assert await model.measure() == 0
                assert await model.ended == ""

        asyncio.run(run())

    def test_it_does_not_outlive_its_parent_whatever_it_is_doing(self):
        program = f"""
            import asyncio, os
            from pressoir.serving.pool import process
            process.COMMAND = {COMMAND!r}

            async def run():
                model = await process.ProcessClient.open({{"name": "model", "threads": 1}}, timeout_s=60)
                print(model.pid, flush=True)
                stream = model.stream("hang")
                await anext(stream)
                os.kill(os.getpid(), 9)

            asyncio.run(run())
        """
        parent = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
        )
        assert parent.returncode == -signal.SIGKILL, parent.stderr
        pid = int(parent.stdout)

        async def gone():
            async with asyncio.timeout(60):
                while alive(pid):
                    await asyncio.sleep(0.01)

        asyncio.run(gone())
