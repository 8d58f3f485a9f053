"""One attempt: what the journal lacks, the longest first, in batches as large as memory lets be."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pressoir.errors import DataError, PressoirError, ShardError, UnreachableError
from pressoir.evaluation.child import __main__ as child
from pressoir.evaluation.config import DataSetConfig
from pressoir.evaluation.jobs import (
    Job,
    Loaded,
    Progress,
    Remote,
    parse,
    prediction_settings,
    wanted_batch_size,
)
from pressoir.evaluation.journal import Journal, Prediction
from pressoir.formats.folder import runtime_of
from pressoir.system.allowance import BatchSize, data_limit, is_out_of_memory, peak_resident_bytes

MB = 10**6


class Recorded:
    """A model that notes its batches; more than `most` samples together are too much for it."""

    together = True

    def __init__(self, most=100, error=None):
        self.most, self.error, self.tried = most, error or MemoryError("no"), []

    def length(self, sample):
        return sample.length

    def predict(self, samples):
        self.tried.append([sample.id for sample in samples])
        if len(samples) > self.most:
            raise self.error
        return [{"similarity": sample.length / 100} for sample in samples]


@pytest.fixture
def make_job(tmp_path):
    """A job over pairs of the given lengths; their ids are 0, 1, …"""

    def make(lengths, **fields):
        pairs = tmp_path / "pairs.tsv"
        pairs.write_text("".join(f"{'x' * length}\ty\t0\n" for length in lengths))
        data = DataSetConfig(task="feature-extraction", pairs=pairs)
        given = {"model": "m", "folder": tmp_path, "task": data.task, "data": data, "key": "k"}
        return Job(**{**given, "journal": tmp_path / "j.sqlite", "batch_size": 4, "attempt": 1, **fields})

    return make


def attempt(job, model):
    """How it ended, and what was told on the way."""
    told = []
    end = child.run(job, told.append, lambda *_: model)
    return end, told


def stored(job):
    journal = Journal(job.journal)
    found = list(journal.predictions(job.key))
    journal.close()
    return found


class TestAttempt:
    def test_the_longest_samples_go_first_and_every_batch_is_told_of_before_it_begins(self, make_job):
        job, model = make_job([10, 40, 20, 40, 30], batch_size=2), Recorded()
        end, told = attempt(job, model)
        assert model.tried == [["1", "3"], ["4", "2"], ["0"]]
        assert (end.verdict, end.batch_size) == ("ok", 2)
        assert [(one.done, one.total, one.batch_size) for one in told if isinstance(one, Progress)] == [
            *((0, 5, 0), (0, 5, 2), (2, 5, 2), (4, 5, 1), (5, 5, 0))
        ]
        assert sum(isinstance(one, Loaded) for one in told) == 1
        assert [one.sample for one in stored(job)] == list("01234")
        assert {one.sample: one.batch_size for one in stored(job)} == {**dict.fromkeys("1342", 2), "0": 1}

    def test_what_the_journal_has_is_left_out(self, make_job):
        job, model = make_job([10, 20, 30]), Recorded()
        journal = Journal(job.journal)
        journal.add(job.key, 0, [Prediction("1", {"similarity": 7}, 0.1, 1)])
        journal.close()
        end, told = attempt(job, model)
        assert model.tried == [["2", "0"]]
        assert (end.verdict, told[0].done, told[-1].done) == ("ok", 1, 3)
        assert {one.sample: one.value["similarity"] for one in stored(job)}["1"] == 7

    @pytest.mark.parametrize("done", [1, 2, 3, 4])
    def test_what_is_left_goes_in_the_batches_that_it_would_have_gone_in(self, make_job, done):
        lengths = [40, 40, 20, 20, 20, 20, 10, 10, 10, 10, 10, 10, 10, 10, 5]
        whole, rest = Recorded(), Recorded()
        attempt(make_job(lengths, batch_size=2, max_batch_size=8, key="whole"), whole)
        job = make_job(lengths, batch_size=2, max_batch_size=8)
        journal = Journal(job.journal)
        for batch in whole.tried[:done]:
            journal.add(job.key, 0, [Prediction(name, {"similarity": 1}, 0.1, 1) for name in batch])
        journal.close()
        attempt(job, rest)
        assert len(whole.tried) > 3
        assert rest.tried == whole.tried[done:]

    def test_with_nothing_left_the_model_is_not_even_loaded(self, make_job):
        job = make_job([10, 20])
        attempt(job, Recorded())

        def refuse(*_):
            raise AssertionError("loaded")

        told = []
        end = child.run(job, told.append, refuse)
        assert (end.verdict, end.batch_size) == ("ok", None)
        assert [(one.done, one.total) for one in told] == [(2, 2)]

    def test_samples_that_go_alone_are_said_to_go_alone(self, make_job):
        job, model = make_job([10, 10, 10]), Recorded()
        model.together = False
        end, told = attempt(job, model)
        assert model.tried == [["0", "1", "2"]]
        assert end.batch_size == 1
        assert {one.batch_size for one in stored(job)} == {1}
        assert told[2].batch_size == 1

    def test_too_large_a_batch_is_halved_then_once_tried_larger(self, make_job):
        job, model = make_job([10] * 40, batch_size=16), Recorded(most=6)
        end, _ = attempt(job, model)
        assert [len(batch) for batch in model.tried[:4]] == [16, 8, 4, 6]
        assert {len(batch) for batch in model.tried[4:-1]} == {6}
        assert (end.verdict, end.batch_size) == ("ok", 6)
        assert len(stored(job)) == 40

    def test_at_a_single_sample_it_is_given_up_and_what_was_done_is_kept(self, make_job):
        class Narrow(Recorded):
            def predict(self, samples):
                self.most = 0 if samples[0].length <= 10 else 2
                return super().predict(samples)

        job = make_job([30, 30, 10, 10])
        end, _ = attempt(job, Narrow())
        assert end.verdict == "skipped_oom"
        assert "a single sample does not fit" in end.detail
        assert [one.sample for one in stored(job)] == ["0", "1"]

    def test_another_error_ends_it_with_the_end_of_its_traceback(self, make_job):
        job, model = make_job([10] * 6), Recorded(most=0, error=ValueError("wrong shape"))
        end, _ = attempt(job, model)
        assert end.verdict == "exception"
        assert end.detail.endswith("ValueError: wrong shape")
        assert "in predict" in end.detail
        assert list(map(len, model.tried)) == [4, 1, 1, 1], "three samples fail alone, too"

    def test_a_bad_sample_costs_itself_alone(self, make_job):
        class Picky(Recorded):
            def predict(self, samples):
                self.tried.append([sample.id for sample in samples])
                if bad := {"2", "9"} & {sample.id for sample in samples}:
                    raise DataError(f"{min(bad)}.wav is damaged")
                return [{"similarity": 0.5} for _ in samples]

        job, model = make_job([10] * 10), Picky()
        end, told = attempt(job, model)
        assert end.verdict == "ok"
        assert end.detail == (
            "2 samples failed on their own and are not scored: "
            "2: DataError: 2.wav is damaged; 9: DataError: 9.wav is damaged"
        )
        assert [one.sample for one in stored(job)] == list("01345678")
        assert (told[-1].done, told[-1].total) == (8, 10)
        assert model.tried == [list("0123"), *map(list, "0123"), list("4567"), list("89"), ["8"], ["9"]]

    def test_first_samples_that_all_fail_do_not_end_it_where_others_worked_before(self, make_job):
        job, model = make_job([10] * 5), Recorded(most=0, error=ValueError("wrong shape"))
        journal = Journal(job.journal)
        journal.add(job.key, 0, [Prediction("1", {"similarity": 7}, 0.1, 1)])
        journal.close()
        end, _ = attempt(job, model)
        assert end.verdict == "ok"
        assert end.detail.startswith("4 samples failed on their own")
        assert end.detail.endswith("; and 1 more")

    def test_many_in_a_row_that_fail_end_it(self, make_job):
        class Breaking(Recorded):
            def predict(self, samples):
                if len(self.tried) >= 2:
                    raise ValueError("device-side assert")
                return super().predict(samples)

        end, _ = attempt(make_job([10] * 40), Breaking())
        assert end.verdict == "exception"
        assert end.detail.endswith("ValueError: device-side assert")

    def test_a_server_that_is_gone_ends_it_at_once(self, make_job):
        model = Recorded(most=0, error=UnreachableError("no answer"))
        end, _ = attempt(make_job([10] * 5), model)
        assert (end.verdict, len(model.tried)) == ("unreachable", 1)

    def test_a_servers_want_of_memory_is_not_the_childs(self, make_job):
        remote = Remote(url="http://127.0.0.1:1", model="m")
        end, _ = attempt(
            make_job([10, 20], remote=remote), Recorded(most=0, error=PressoirError("out of memory"))
        )
        assert (end.verdict, end.detail.splitlines()[-1].endswith("out of memory")) == ("exception", True)
        end, _ = attempt(make_job([10, 20]), Recorded(most=0, error=PressoirError("out of memory")))
        assert end.verdict == "skipped_oom"

    def test_what_is_wrong_with_the_files_is_a_verdict_of_its_own(self, make_job):
        def damaged(*_):
            raise ShardError("shard_00.safetensors is truncated")

        end = child.run(make_job([10]), lambda _: None, damaged)
        assert (end.verdict, end.detail) == ("damaged", "shard_00.safetensors is truncated")

    def test_no_memory_for_loading_is_no_damage(self, make_job):
        def too_large(*_):
            try:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            except RuntimeError as error:
                raise ShardError("it does not load") from error

        end = child.run(make_job([10]), lambda _: None, too_large)
        assert end.verdict == "skipped_oom"

    def test_a_truncated_safetensors_file_is_named(self, make_job, tiny_bert, tmp_path):
        folder = tmp_path / "cut"
        folder.mkdir()
        for path in tiny_bert.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        end = child.run(make_job([10], folder=folder), lambda _: None)
        assert end.verdict == "damaged"
        assert str(weights) in end.detail

    def test_data_that_cannot_be_read_are_no_fault_of_the_model(self, make_job, tmp_path):
        job = make_job([10])
        (tmp_path / "pairs.tsv").write_text("no tabs\n")
        end = child.run(job, lambda _: None)
        assert end.verdict == "exception"
        assert "line 1" in end.detail


class TestProcess:
    @pytest.mark.process
    def test_what_libraries_print_does_not_get_between_the_messages(self, make_job, tmp_path):
        job = make_job([10, 10], folder=tmp_path / "none")
        path = tmp_path / "job.json"
        path.write_text(job.model_dump_json())
        program = (
            "import os, sys\n"
            "from pressoir.evaluation.child import __main__ as child\n"
            "class Model:\n"
            "    together = True\n"
            "    def length(self, sample): return 1\n"
            "    def predict(self, samples):\n"
            "        print('chatter'); os.write(1, b'native chatter')\n"
            "        return [0 for _ in samples]\n"
            "sys.exit(child.main(sys.argv[1:], lambda *_: Model()))\n"
        )
        answer = subprocess.run(
            [sys.executable, "-c", program, str(path)],
            capture_output=True,
            text=True,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        events = [json.loads(line)["event"] for line in answer.stdout.splitlines()]
        assert events == ["progress", "loaded", "progress", "progress", "end"]
        assert "native chatter" in answer.stderr
        assert "chatter\n" in answer.stderr

    def test_a_line_that_is_no_message_is_passed_over(self):
        assert parse(b'{"event": "progress", "done": 1, "total": 2, "batch_size": 3}').done == 1
        for line in (b"", b"chatter", b'{"event": "prog', b'{"event": "other"}', b'{"event": "end"}'):
            assert parse(line) is None


class TestBatchSize:
    def sizes(self, total, most, fits, lengths=None):
        """Sizes that are tried until all went through, `fits(count, longest)` saying which do."""
        lengths = sorted(lengths or [10] * total, reverse=True)
        size, waiting, tried = BatchSize(most, lengths[0]), list(range(total)), []
        while waiting:
            count = len(size.take(waiting, lengths))
            tried.append(count)
            if fits(count, lengths[0]):
                size.worked(count, lengths[0])
                waiting, lengths = waiting[count:], lengths[count:]
            elif not size.failed(count, lengths[0]):
                return [*tried, None]
            assert len(tried) < 100
        return tried

    @pytest.mark.parametrize(
        ("fit", "tried"),
        [
            (16, [16, 16, 8]),
            (8, [16, 8, 12, 8, 8, 8, 8]),
            (12, [16, 8, 12, 12, 8]),
            (1, [16, 8, 4, 2, 1, 1]),
            (0, [16, 8, 4, 2, 1, None]),
        ],
    )
    def test_it_halves_and_then_bisects_once(self, fit, tried):
        found = self.sizes(40, 16, lambda count, _: count <= fit)
        assert found[: len(tried)] == tried

    def test_shorter_samples_go_together_up_to_the_same_sum_of_lengths(self):
        size = BatchSize(2, 100, most=16)
        assert len(size.take(range(99), [100] * 99)) == 2
        assert len(size.take(range(99), [50] * 99)) == 4
        assert len(size.take(range(99), [1] * 99)) == 16
        assert len(BatchSize(2, 100).take(range(99), [1] * 99)) == 2

    def test_memory_that_gets_less_on_the_way_halves_what_had_worked(self):
        left = iter([8, 8, 3, 3, *[3] * 50])
        found = self.sizes(40, 8, lambda count, _: count <= next(left))
        assert found[:6] == [8, 8, 8, 4, 2, 3]


class TestOutOfMemory:
    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            OSError(errno.ENOMEM, "Cannot allocate memory"),
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
            RuntimeError("could not create a primitive"),
            Exception("bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 3145728"),
            Exception("std::bad_alloc"),
            RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        ],
    )
    def test_every_library_says_it_in_its_own_way(self, error):
        assert is_out_of_memory(error)

    def test_the_librarys_own_message_is_known(self):
        import torch

        with pytest.raises(RuntimeError) as caught:
            torch.empty(1 << 60, dtype=torch.uint8)
        assert is_out_of_memory(caught.value)

    def test_other_errors_are_others(self):
        assert not is_out_of_memory(ValueError("the shapes (2, 3) and (4, 5) do not match"))
        assert not is_out_of_memory(OSError(errno.ENOENT, "no such file"))


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mapped memory on Linux alone")
class TestDataLimit:
    def resident(self):
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def test_an_allocation_beyond_the_allowance_fails_and_the_limit_ends_with_the_block(self, tmp_path):
        with data_limit(self.resident() + 100 * MB, tmp_path):
            np.ones(50 * MB, dtype=np.uint8)
            with pytest.raises(MemoryError):
                np.ones(150 * MB, dtype=np.uint8)
        np.ones(150 * MB, dtype=np.uint8)

    def test_weights_that_are_mapped_but_not_read_yet_count(self, tmp_path):
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(bytes(80 * MB))
        mapped = np.memmap(weights, dtype=np.uint8, mode="r")
        with data_limit(self.resident() + 100 * MB, tmp_path), pytest.raises(MemoryError):
            np.ones(50 * MB, dtype=np.uint8)
        assert int(mapped[::4096].sum()) == 0  # now it is read: part of what is resident
        with data_limit(self.resident() + 100 * MB, tmp_path):
            np.ones(50 * MB, dtype=np.uint8)

    def test_no_allowance_is_no_limit(self, tmp_path):
        with data_limit(0, tmp_path):
            np.ones(10 * MB, dtype=np.uint8)

    def test_the_peak_is_this_process_own(self):
        before = peak_resident_bytes()
        assert before >= self.resident() * 0.9
        np.ones(before + 20 * MB - self.resident(), dtype=np.uint8)
        assert peak_resident_bytes() > before


class TestJobs:
    def test_a_folder_with_a_graph_is_run_in_onnx_runtime_unless_told_otherwise(self, tmp_path):
        assert runtime_of(tmp_path) == "pytorch"
        (tmp_path / "encoder_model.onnx").touch()
        assert runtime_of(tmp_path) == "onnxruntime"
        assert runtime_of(tmp_path, "pytorch") == "pytorch"

    def test_embeddings_take_eight_pairs_by_default(self):
        assert wanted_batch_size("feature-extraction", None, 16) == 8
        assert wanted_batch_size("feature-extraction", None, 4) == 4
        assert wanted_batch_size("feature-extraction", 32, 16) == 32
        assert wanted_batch_size("translation", None, 16) == 16

    def test_only_what_a_task_uses_decides_its_predictions(self, make_job):
        job = make_job([10])

        def settings(task, **generation):
            data = DataSetConfig.model_construct(task=task, source_language=None, target_language=None)
            changed = job.generation.model_copy(update=generation)
            return prediction_settings(data, changed, "pytorch")

        for task in ("text-classification", "feature-extraction", "causal-lm"):
            assert settings(task, num_beams=4) == settings(task)
        assert settings("translation", num_beams=4) != settings("translation")
        assert settings("causal-lm", window=64) != settings("causal-lm")
        assert settings("translation", window=64) == settings("translation")

    def test_fewer_samples_are_another_attempt_under_the_same_predictions(self, make_job):
        whole, part = make_job([10]), make_job([10], samples=1)
        assert whole.key == part.key
        assert whole.attempt_key != part.attempt_key
