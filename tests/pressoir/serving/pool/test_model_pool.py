"""The pool: one load for all who ask, leases, eviction by bytes, replacement, death."""

import asyncio

import pytest

from pressoir.serving.errors import BudgetError, ClosingError, LoadError
from pressoir.serving.pool.pool import ModelPool
from pressoir.serving.pool.sharing import ModelSpec

MB = 10**6


def spec(name, size=0):
    return ModelSpec(
        digest=name * 64,
        task="text-classification",
        runtime="onnxruntime",
        source=f"/models/{name}",
        size_bytes=size,
        names=(name,),
        tiers=(name,),
    )


A, B, C = spec("a"), spec("b"), spec("c")


class FakeModel:
    def __init__(self, one, bytes_):
        self.spec, self.bytes = one, bytes_
        self.ended = asyncio.get_running_loop().create_future()
        self.closed = False

    async def measure(self):
        await asyncio.sleep(0)
        return 0 if self.closed else self.bytes

    async def close(self):
        await asyncio.sleep(0)
        self.closed = True
        if not self.ended.done():
            self.ended.set_result("")

    def die(self):
        self.ended.set_result("killed")


class Loader:
    """Opens fake models of 100 MB, when it is let; notes what it opened."""

    def __init__(self, bytes_=100 * MB):
        self.bytes, self.opened, self.let = bytes_, [], asyncio.Event()
        self.begun = 0
        self.let.set()
        self.error = None

    async def __call__(self, one):
        self.begun += 1
        await self.let.wait()
        await asyncio.sleep(0)
        if self.error:
            raise self.error
        model = FakeModel(one, self.bytes)
        self.opened.append(model)
        return model

    @property
    def names(self):
        return [model.spec.name for model in self.opened]


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


def pool_of(loader, **settings):
    events = []
    pool = ModelPool(loader, on_event=lambda event, one: events.append((event, one.name)), **settings)
    return pool, events


async def use(pool, one, hold=None):
    async with pool.lease(one) as model:
        if hold is not None:
            await hold.wait()
        return model


class TestSingleFlight:
    def test_many_first_requests_make_one_load_and_get_the_same_model(self):
        async def run():
            loader = Loader()
            pool, events = pool_of(loader)
            models = await asyncio.gather(*(use(pool, A) for _ in range(50)))
            assert set(models) == set(loader.opened)
            assert loader.names == ["a"]
            assert events == [("loaded", "a")]
            await pool.close()

        asyncio.run(run())

    def test_a_failed_load_fails_all_who_wait_and_is_tried_again_by_the_next(self):
        async def run():
            loader = Loader()
            loader.error = LoadError("broken")
            pool, events = pool_of(loader)
            failures = await asyncio.gather(*(use(pool, A) for _ in range(10)), return_exceptions=True)
            assert [str(one) for one in failures] == ["broken"] * 10
            assert events == [("failed", "a")]
            loader.error = None
            assert (await use(pool, A)).spec is A
            await pool.close()

        asyncio.run(run())

    def test_one_who_gives_up_does_not_take_the_load_from_the_others(self):
        async def run():
            loader = Loader()
            loader.let.clear()
            pool, _ = pool_of(loader)
            first, second = (asyncio.create_task(use(pool, A)) for _ in range(2))
            await settle()
            first.cancel()
            await settle()
            loader.let.set()
            assert (await second).spec is A
            assert first.cancelled()
            assert loader.begun == 1
            await pool.close()

        asyncio.run(run())

    def test_different_models_are_loaded_side_by_side(self):
        async def run():
            loader = Loader()
            loader.let.clear()
            pool, _ = pool_of(loader, budget_bytes=1000 * MB)
            tasks = [asyncio.create_task(use(pool, one)) for one in (A, B)]
            await settle()
            loader.let.set()
            await asyncio.gather(*tasks)
            assert sorted(loader.names) == ["a", "b"]
            await pool.close()

        asyncio.run(run())


class TestBudget:
    def test_the_model_used_the_longest_ago_goes_when_another_needs_its_room(self):
        async def run():
            loader = Loader()
            pool, events = pool_of(loader, budget_bytes=250 * MB)
            for one in (A, B, A, C):
                await use(pool, one)
            assert [name for event, name in events if event == "evicted"] == ["b"]
            assert sorted(entry.spec.name for entry in pool.entries.values()) == ["a", "c"]
            assert loader.opened[1].closed
            assert pool.resident_bytes == 200 * MB
            await pool.close()

        asyncio.run(run())

    def test_a_leased_model_is_never_evicted_but_waited_for(self):
        async def run():
            loader, hold = Loader(), asyncio.Event()
            pool, events = pool_of(loader, budget_bytes=150 * MB)
            holding = asyncio.create_task(use(pool, A, hold))
            await settle()
            waiting = asyncio.create_task(use(pool, B))
            await settle()
            assert loader.names == ["a"]
            assert not loader.opened[0].closed
            hold.set()
            await asyncio.gather(holding, waiting)
            assert events == [("loaded", "a"), ("evicted", "a"), ("loaded", "b")]
            await pool.close()

        asyncio.run(run())

    def test_a_load_that_waits_for_room_is_given_up_when_nobody_wants_it_any_more(self):
        async def run():
            loader, hold = Loader(), asyncio.Event()
            pool, _ = pool_of(loader, budget_bytes=150 * MB)
            holding = asyncio.create_task(use(pool, A, hold))
            await settle()
            waiting = asyncio.create_task(use(pool, B))
            await settle()
            waiting.cancel()
            await settle()
            hold.set()
            await holding
            await settle()
            assert loader.names == ["a"]
            assert (await use(pool, B)).spec is B
            await pool.close()

        asyncio.run(run())

    def test_a_pinned_model_stays_and_what_has_no_room_beside_it_is_refused(self):
        async def run():
            loader = Loader()
            pool, _ = pool_of(loader, budget_bytes=150 * MB, pinned=[A.key])
            await use(pool, A)
            with pytest.raises(BudgetError, match=r"b needs 100 MB.* 150 MB .*beside 100 MB of pinned"):
                await use(pool, B)
            assert [model.spec.name for model in loader.opened if not model.closed] == ["a"]
            await pool.close()

        asyncio.run(run())

    def test_what_is_too_large_is_measured_once_and_then_refused_before_it_is_loaded(self):
        async def run():
            loader = Loader(300 * MB)
            pool, _ = pool_of(loader, budget_bytes=250 * MB)
            for _ in range(2):
                with pytest.raises(BudgetError, match=r"needs 300 MB.* 250 MB"):
                    await use(pool, A)
            assert loader.names == ["a"]
            assert loader.opened[0].closed
            await pool.close()

        asyncio.run(run())

    def test_a_model_that_takes_nothing_of_its_own_fits_any_budget_that_is_not_spent(self):
        async def run():
            pool, _ = pool_of(Loader(0), budget_bytes=MB)
            assert await use(pool, A)
            await pool.close()

        asyncio.run(run())

    def test_an_estimate_alone_does_not_refuse(self):
        async def run():
            pool, _ = pool_of(Loader(50 * MB), budget_bytes=60 * MB)
            large = spec("d", size=500 * MB)
            assert (await use(pool, large)).spec is large
            await pool.close()

        asyncio.run(run())

    def test_models_that_grow_while_they_work_make_idle_ones_go(self):
        async def run():
            loader = Loader()
            pool, events = pool_of(loader, budget_bytes=250 * MB)
            await use(pool, A)
            async with pool.lease(B) as model:
                model.bytes = 200 * MB
                await pool.measure()
                assert ("evicted", "a") in events
                assert pool.resident_bytes == 200 * MB
            await pool.close()

        asyncio.run(run())


class TestReplacing:
    def test_the_old_one_serves_until_the_new_one_is_there_and_ends_with_its_last_lease(self):
        async def run():
            loader, hold = Loader(), asyncio.Event()
            pool, events = pool_of(loader)
            async with pool.lease(A) as old:
                replacing = asyncio.create_task(pool.replace(A, drain_s=60))
                await settle()
                new = await use(pool, A)
                assert new is not old
                assert not old.closed
                assert not replacing.done()
            await replacing
            assert old.closed
            assert not new.closed
            assert ("replaced", "a") in events
            hold.set()
            await pool.close()

        asyncio.run(run())

    def test_if_the_new_one_cannot_be_loaded_the_old_one_stays(self):
        async def run():
            loader = Loader()
            pool, _ = pool_of(loader)
            old = await use(pool, A)
            loader.error = LoadError("broken")
            with pytest.raises(LoadError, match="broken"):
                await pool.replace(A, drain_s=60)
            assert await use(pool, A) is old
            assert not old.closed
            await pool.close()

        asyncio.run(run())

    def test_a_budget_without_room_for_both_is_told_and_the_old_one_stays(self):
        async def run():
            loader = Loader()
            pool, _ = pool_of(loader, budget_bytes=150 * MB)
            old = await use(pool, A)
            with pytest.raises(BudgetError, match="no room for a second instance of a"):
                await pool.replace(A, drain_s=60)
            assert await use(pool, A) is old
            await pool.close()

        asyncio.run(run())

    def test_a_replacement_that_meets_a_first_load_leaves_one_model(self):
        async def run():
            loader = Loader()
            loader.let.clear()
            pool, _ = pool_of(loader)
            tasks = [asyncio.create_task(use(pool, A)), asyncio.create_task(pool.replace(A, drain_s=60))]
            await settle()
            loader.let.set()
            await asyncio.gather(*tasks)
            await settle()
            assert [model.closed for model in loader.opened].count(False) == 1
            assert not (await use(pool, A)).closed
            await pool.close()

        asyncio.run(run())

    def test_who_does_not_end_in_time_loses_the_model(self):
        async def run():
            pool, _ = pool_of(Loader())
            async with pool.lease(A) as model:
                assert await pool.unload(A.key, drain_s=0)
                assert model.closed
            assert not await pool.unload(A.key, drain_s=0)
            await pool.close()

        asyncio.run(run())


class TestEnd:
    def test_a_model_that_dies_is_loaded_again_by_the_next_lease(self):
        async def run():
            loader = Loader()
            pool, events = pool_of(loader)
            (await use(pool, A)).die()
            assert await use(pool, A) is loader.opened[1]
            assert events == [("loaded", "a"), ("died", "a"), ("loaded", "a")]
            await pool.close()

        asyncio.run(run())

    def test_closing_waits_for_leases_then_ends_everything(self):
        async def run():
            loader, hold = Loader(), asyncio.Event()
            pool, _ = pool_of(loader)
            holding = asyncio.create_task(use(pool, A, hold))
            await use(pool, B)
            closing = asyncio.create_task(pool.close(drain_s=60))
            await settle()
            assert {model.spec.name: model.closed for model in loader.opened} == {"a": False, "b": True}
            with pytest.raises(ClosingError):
                await use(pool, A)
            hold.set()
            await asyncio.gather(holding, closing)
            assert all(model.closed for model in loader.opened)

        asyncio.run(run())

    def test_who_waits_for_a_load_is_told_that_the_pool_closes(self):
        async def run():
            loader = Loader()
            loader.let.clear()
            pool, _ = pool_of(loader)
            waiting = asyncio.create_task(use(pool, A))
            await settle()
            await pool.close()
            with pytest.raises(ClosingError):
                await waiting

        asyncio.run(run())
