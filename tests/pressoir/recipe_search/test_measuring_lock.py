"""Who measures is alone; who builds is not."""

import threading

from pressoir.recipe_search.measuring_lock import MeasurementLock


def test_builders_are_together_and_who_measures_is_alone(tmp_path):
    inside, seen = [], []
    both_build = threading.Barrier(2, timeout=30)

    def build(name):
        with MeasurementLock(tmp_path).building():
            inside.append(name)
            both_build.wait()  # only if the other is in as well
            inside.remove(name)

    def measure():
        with MeasurementLock(tmp_path).measuring():
            inside.append("measuring")
            seen.append(list(inside))
            inside.remove("measuring")

    for _ in range(20):
        threads = [threading.Thread(target=build, args=(name,)) for name in "ab"]
        threads += [threading.Thread(target=measure) for _ in range(2)] if _ else []
        for thread in threads[:2]:
            thread.start()
        for thread in threads[:2]:
            thread.join(30)
        for thread in threads[2:]:
            thread.start()
        with MeasurementLock(tmp_path).building():
            inside.append("building")
            inside.remove("building")
        for thread in threads[2:]:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
    assert seen
    assert all(one == ["measuring"] for one in seen)


def test_nobody_begins_to_build_before_who_waits_to_measure(tmp_path):
    order, building, waiting = [], threading.Event(), threading.Event()

    def build():
        with MeasurementLock(tmp_path).building():
            building.set()
            waiting.wait(30)
            order.append("first build ends")

    def measure():
        with MeasurementLock(tmp_path).measuring():
            order.append("measured")

    first = threading.Thread(target=build)
    first.start()
    assert building.wait(30)
    measuring = threading.Thread(target=measure)
    measuring.start()
    while gate_is_open(tmp_path):
        pass
    second = threading.Thread(target=lambda: enter(tmp_path, order))
    second.start()
    waiting.set()
    for thread in (first, measuring, second):
        thread.join(30)
    assert order == ["first build ends", "measured", "second build"]


def enter(folder, order):
    with MeasurementLock(folder).building():
        order.append("second build")


def gate_is_open(folder):
    import fcntl

    with (folder / "search-gate.lock").open("a") as gate:
        try:
            fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
