"""Timing in turns: each model answers a few sentences, then the next, so that all meet the same machine."""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from pressoir.data.texts import Text
from pressoir.inference.engines.classifier import Engine
from pressoir.recipe.sections import BenchmarkConfig
from pressoir.reporting import Reporter

if TYPE_CHECKING:
    from pressoir.inference.text_classification import TextClassifier


TURN = 10
"""Sentences timed in one turn of a model; half as many before them are not timed."""
BATCHES_A_TURN = 2
TOKENIZED = 300
"""Sentences over which a tokenizer's median is taken, at most."""
Inputs = Mapping[str, NDArray[np.int64]]
Figure = TypeVar("Figure")


def time_classifiers(
    classifiers: Sequence[TextClassifier],
    sample: Sequence[Text],
    texts: Sequence[Text],
    config: BenchmarkConfig,
    reporter: Reporter,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Time all models, in turn, on each sentence of `sample`, and on batches of `texts` in their own order.

    Returns milliseconds a sentence, (models, sentences), and sentences a second in batches, (models,).
    """
    engines = [classifier.engine for classifier in classifiers]
    latency_ms = time_in_turn(
        engines,
        [[classifier.encode([text]) for text in sample] for classifier in classifiers],
        config.warmup,
        lambda done, total: reporter.progress(done, total, "latency"),
    )
    size, cycle = config.throughput_batch_size, itertools.cycle(texts)
    batches = [list(itertools.islice(cycle, size)) for _ in range(config.throughput_batches)]
    batch_ms = time_in_turn(
        engines,
        [[classifier.encode(batch) for batch in batches] for classifier in classifiers],
        min(config.warmup, 1),
        lambda done, total: reporter.progress(done, total, "throughput"),
        turn=BATCHES_A_TURN,
    )  # (models, batches)
    return latency_ms, size * len(batches) / (batch_ms.sum(axis=1) / 1e3)


def time_in_turn(
    engines: Sequence[Engine],
    batches: Sequence[Sequence[Inputs]],
    warmup: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    clock: Callable[[], int] = time.perf_counter_ns,
    turn: int = TURN,
) -> NDArray[np.float64]:
    """Time every engine on every one of its `batches[engine]`, in turn; return milliseconds (engines,
    batches).

    Each engine is first called `warmup` times. Then, at each of its turns, it runs half as many batches as a
    turn has, those before, untimed, and the next `turn` ones timed. `progress` counts turns.
    """
    for engine, own in zip(engines, batches, strict=True):
        for call in range(warmup):
            engine.run(own[call % len(own)])
    count = len(batches[0])

    def timed(engine: int, number: int) -> list[float]:
        run, own, first = engines[engine].run, batches[engine], number * turn
        for batch in range(first - max(1, turn // 2), first):
            run(own[batch % count])
        times = []
        for inputs in own[first : first + turn]:
            start = clock()
            run(inputs)
            times.append((clock() - start) / 1e6)
        return times

    taken = in_turn(len(engines), math.ceil(count / turn), timed, progress)
    return np.asarray([list(itertools.chain.from_iterable(own)) for own in taken], dtype=np.float64)


def in_turn(
    models: int, items: int, call: Callable[[int, int], Figure], progress: Callable[[int, int], None]
) -> list[list[Figure]]:
    """`call(model, item)` for every item on every model, in turn; return what it gave (models, items).

    For each item the models come in the next order of `turns`. `progress` is called with the number of
    items done and of all.
    """
    results: list[dict[int, Figure]] = [{} for _ in range(models)]
    orders = turns(models)
    collecting = gc.isenabled()
    gc.disable()  # a collection would be charged to whichever model it falls upon
    try:
        for item in range(items):
            for model in orders[item % len(orders)]:
                results[model][item] = call(model, item)
            progress(item + 1, items)
    finally:
        if collecting:
            gc.enable()
    return [[own[item] for item in range(items)] for own in results]


def turns(count: int) -> list[list[int]]:
    """Orders of `count` models in which each comes right after every other equally often (a Williams
    square)."""
    zigzag = [(k + 1) // 2 if k % 2 else -(k // 2) for k in range(count)]  # 0, 1, -1, 2, -2, …
    rows = [[(k + shift) % count for k in zigzag] for shift in range(count)]
    return rows if count % 2 == 0 else rows + [row[::-1] for row in rows]


def drift(times: NDArray[np.float64]) -> float:
    """How much a model's median changes with time; of several models the largest.

    Of successive fifths of its `times` (models, items), the largest median less the smallest, as a fraction
    of the median of all. 0 where there are fewer than ten items: too few to measure a drift.
    """
    blocks = min(5, times.shape[1] // 5)
    if blocks < 2:
        return 0.0
    medians = np.stack([np.median(block, axis=1) for block in np.array_split(times, blocks, axis=1)])
    return float(((medians.max(axis=0) - medians.min(axis=0)) / np.median(times, axis=1)).max())


def sentences_to_time(texts: Sequence[Text], count: int, seed: int) -> list[Text]:
    """`count` sentences in random order, each once before any twice."""
    rng, chosen = np.random.default_rng(seed), list[int]()
    while len(chosen) < count:
        chosen += rng.permutation(len(texts)).tolist()
    return [texts[index] for index in chosen[:count]]


def tokenization_ms(classifier: TextClassifier, sample: Sequence[Text], item: int) -> float:
    """Time to encode one sentence, after another that is not timed."""
    classifier.encode([sample[item - 1]])
    start = time.perf_counter_ns()
    classifier.encode([sample[item]])
    return (time.perf_counter_ns() - start) / 1e6
