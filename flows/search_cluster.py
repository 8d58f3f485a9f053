"""Trials of a search on a Dask cluster, one a worker; imported only where the configuration asks for it.

The process that leads the search proposes trials and keeps the study, so no database is shared. Workers share
`PRESSOIR_HOME`: what one has built, none builds again.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager

from prefect_dask.task_runners import DaskTaskRunner, PrefectDaskFuture

from pressoir.errors import StoreError
from pressoir.evaluation.config import DaskConfig
from pressoir.flows import dask_cluster
from pressoir.flows.compress import pipeline
from pressoir.recipe_search.records import TrialOutcome
from pressoir.recipe_search.trial import Assignment
from pressoir.store.store import Store
from pressoir.tasks.search import run_trial

_WHOLE = 10**9
"""What each worker on this machine offers and each trial asks for, as if it were memory: one a worker."""


@contextmanager
def opened(config: DaskConfig, store: Store) -> Iterator[Cluster]:
    """The workers of a search.

    Raises:
        RecipeError: see `dask_cluster.running`.
    """
    with dask_cluster.running(config, _WHOLE, at_once=1) as runner:
        yield Cluster(runner, store)


class Cluster:
    """See `pressoir.flows.search.Workers`."""

    def __init__(self, runner: DaskTaskRunner, store: Store) -> None:
        offered = dask_cluster.offers(runner)
        self.size = len(offered)
        self._runner, self._store, self._part = runner, store, min(offered.values())
        self._ended = queue.SimpleQueue[int]()
        self._pending = dict[int, PrefectDaskFuture[TrialOutcome]]()

    def start(self, given: Assignment) -> None:
        """Begin a trial on a worker that has none."""
        future = dask_cluster.submit(
            self._runner, run_trial, self._part, given=given, pipeline=pipeline, home=self._store.home
        )
        self._pending[given.number] = future
        future.wrapped_future.add_done_callback(lambda _: self._ended.put(given.number))

    def next(self) -> tuple[int, TrialOutcome]:
        """Wait for a trial that has ended.

        Raises:
            StoreError: a worker cannot use the store.
        """
        number = self._ended.get()
        try:
            return number, self._pending.pop(number).result()
        except StoreError:
            raise
        except Exception as error:  # its worker died again and again
            return number, TrialOutcome(state="failed", reason=f"{type(error).__name__}: {error}")
