"""Memory and CPU limits on machines of every kind: fake ones are folders, a real cgroup if allowed."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pressoir.system import memory
from pressoir.system.cgroups import Files, cpu_limit, cpu_seconds, hierarchies
from pressoir.system.memory import effective_memory, memory_pressure, process_tree, pss_bytes

GB = 1024**3
V1_UNLIMITED = 9223372036854771712
V1 = "35 32 0:29 {root} {folder} rw,relatime - cgroup cgroup rw,{controllers}"
V2 = "42 32 0:36 {root} {folder} rw,relatime shared:9 - cgroup2 cgroup2 rw"


class Machine:
    """A fake machine: files under a folder."""

    def __init__(self, root, total=16 * GB, available=12 * GB, swap=2 * GB):
        self.root = root
        lines = {
            "MemTotal": total,
            "MemFree": GB,
            "MemAvailable": available,
            "SwapTotal": swap,
            "SwapFree": swap,
        }
        self.write("proc/meminfo", "".join(f"{name}:  {value // 1024} kB\n" for name, value in lines.items()))
        self.write("proc/stat", "cpu 0\n")
        self.mounts, self.paths = ["24 1 8:1 / / rw - ext4 /dev/sda1 rw"], []
        (root / "proc/self").mkdir()
        self._save()

    def write(self, path, content):
        path = self.root / path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else f"{content}\n")

    def _save(self):
        self.write("proc/self/mountinfo", "\n".join(self.mounts) + "\n")
        self.write("proc/self/cgroup", "\n".join(self.paths) + "\n")

    def v1(self, path, *, root="/", folder="/sys/fs/cgroup/memory", controllers="memory"):
        (self.root / folder.lstrip("/").replace("\\040", " ")).mkdir(parents=True, exist_ok=True)
        self.mounts.append(V1.format(root=root, folder=folder, controllers=controllers))
        self.paths.append(f"4:{controllers}:{path}")
        self._save()

    def v2(self, path, *, root="/", folder="/sys/fs/cgroup"):
        (self.root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        self.mounts.append(V2.format(root=root, folder=folder))
        self.paths.append(f"0::{path}")
        self._save()

    def limit_v1(self, cgroup, limit, usage=0, inactive=0, total_inactive=None, **more):
        folder = f"/sys/fs/cgroup/memory{cgroup}"
        self.write(f"{folder}/memory.limit_in_bytes", limit)
        self.write(f"{folder}/memory.usage_in_bytes", usage)
        stat = {"inactive_file": inactive, "total_inactive_file": total_inactive, **more}
        lines = [f"{name} {value}\n" for name, value in stat.items() if value is not None]
        self.write(f"{folder}/memory.stat", "".join(lines))

    def limit_v2(self, cgroup, limit="max", usage=0, inactive=0, folder="/sys/fs/cgroup"):
        self.write(f"{folder}{cgroup}/memory.max", limit)
        self.write(f"{folder}{cgroup}/memory.current", usage)
        self.write(f"{folder}{cgroup}/memory.stat", f"anon 5\ninactive_file {inactive}\nactive_file 7\n")

    def memory(self, pid="self"):
        return effective_memory(self.root, pid)


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_without_cgroups_it_is_the_machines(machine):
    found = machine.memory()
    assert (found.total_bytes, found.available_bytes) == (16 * GB, 12 * GB)
    assert (found.limit_bytes, found.limit_source, found.available_source) == (None, "machine", "machine")
    assert (found.effective_bytes, found.used_percent) == (16 * GB, 25.0)
    assert (found.swap_total_bytes, found.swap_free_bytes) == (2 * GB, 2 * GB)
    assert found.cgroups == found.notes == ()


def test_version_2_leaves_limit_minus_usage_plus_inactive_files(machine):
    machine.v2("/app")
    machine.limit_v2("/app", 4 * GB, usage=3 * GB, inactive=GB)
    found = machine.memory()
    assert (found.limit_bytes, found.limit_source) == (4 * GB, "/sys/fs/cgroup/app/memory.max")
    assert (found.available_bytes, found.available_source) == (2 * GB, "/sys/fs/cgroup/app/memory.max")
    assert found.used_percent == 50.0
    assert found.cgroups == ("/sys/fs/cgroup/app", "/sys/fs/cgroup")
    assert found.notes == ()


def test_version_1_takes_the_inactive_files_of_the_descendants(machine):
    machine.v1("/app")
    machine.limit_v1("/app", 4 * GB, usage=3 * GB, inactive=GB // 4, total_inactive=GB)
    assert machine.memory().available_bytes == 2 * GB
    machine.limit_v1("/app", 4 * GB, usage=3 * GB, inactive=GB // 4)
    assert machine.memory().available_bytes == GB + GB // 4


@pytest.mark.parametrize("version", [1, 2])
def test_an_ancestor_with_less_left_decides_though_its_limit_is_larger(machine, version):
    for cgroup, limit, usage in (("/pod/app", 4 * GB, GB), ("/pod", 8 * GB, 7 * GB)):
        (machine.limit_v1 if version == 1 else machine.limit_v2)(cgroup, limit, usage=usage)
    (machine.v1 if version == 1 else machine.v2)("/pod/app")
    found = machine.memory()
    assert found.limit_bytes == 4 * GB
    assert "/pod/app/" in found.limit_source
    assert found.available_bytes == GB
    assert "/pod/memory." in found.available_source
    assert found.used_percent == 75.0


def test_a_limit_in_an_ancestor_alone_is_found(machine):
    machine.v2("/user.slice/user-1000.slice/session-3.scope")
    machine.limit_v2("/user.slice/user-1000.slice/session-3.scope", "max")
    machine.limit_v2("/user.slice", 2 * GB, usage=GB)
    found = machine.memory()
    assert found.limit_source == "/sys/fs/cgroup/user.slice/memory.max"
    assert found.available_bytes == GB


@pytest.mark.parametrize(
    "limit", [V1_UNLIMITED, 9223372036854710272, 9223372036854775807, 18446744073709551615, -1]
)
def test_every_way_that_version_1_writes_no_limit(machine, limit):
    machine.v1("/app")
    machine.limit_v1("/app", limit, usage=3 * GB)
    machine.limit_v1("", limit, usage=5 * GB)
    found = machine.memory()
    assert (found.limit_bytes, found.available_bytes, found.notes) == (None, 12 * GB, ())


def test_max_is_no_limit_in_version_2(machine):
    machine.v2("/app")
    machine.limit_v2("/app", "max", usage=3 * GB)
    assert machine.memory().limit_bytes is None


def test_a_limit_above_the_machines_ram_is_none(machine):
    machine.v2("/app")
    machine.limit_v2("/app", 64 * GB, usage=3 * GB)
    found = machine.memory()
    assert (found.limit_bytes, found.limit_source, found.available_bytes) == (None, "machine", 12 * GB)


def test_the_machine_decides_where_it_has_less_than_the_limit_leaves(machine):
    machine.v2("/app")
    machine.limit_v2("/app", 15 * GB, usage=GB)
    found = machine.memory()
    assert (found.limit_bytes, found.available_bytes) == (15 * GB, 12 * GB)
    assert found.available_source == "machine"


def test_a_usage_above_the_limit_leaves_nothing_rather_than_less(machine):
    machine.v2("/app")
    machine.limit_v2("/app", GB, usage=2 * GB)
    assert machine.memory().available_bytes == 0
    assert machine.memory().used_percent == 100.0


def test_memory_high_counts_as_a_limit_and_is_told_to_be_a_soft_one(machine):
    machine.v2("/app")
    machine.limit_v2("/app", 4 * GB, usage=GB)
    machine.write("/sys/fs/cgroup/app/memory.high", 3 * GB)
    found = machine.memory()
    assert (found.limit_bytes, found.available_bytes) == (3 * GB, 2 * GB)
    assert found.limit_source == "/sys/fs/cgroup/app/memory.high"
    assert any("soft limit" in note for note in found.notes)


def test_the_soft_limit_of_version_1_is_none(machine):
    machine.v1("/app")
    machine.limit_v1("/app", V1_UNLIMITED, usage=GB)
    machine.write("/sys/fs/cgroup/memory/app/memory.soft_limit_in_bytes", 2 * GB)
    assert machine.memory().limit_bytes is None


def test_a_hybrid_machine_has_memory_in_either_version(machine):
    machine.v1("/app")
    machine.v2("/app", folder="/sys/fs/cgroup/unified")
    (machine.root / "sys/fs/cgroup/unified/app").mkdir()
    machine.limit_v1("/app", 4 * GB, usage=GB)
    assert machine.memory().available_bytes == 3 * GB
    machine.limit_v2("/app", 2 * GB, usage=GB, folder="/sys/fs/cgroup/unified")
    assert machine.memory().limit_source == "/sys/fs/cgroup/unified/app/memory.max"


def test_controllers_mounted_together_are_told_apart_from_others_by_whole_name(machine):
    machine.v1("/b", folder="/sys/fs/cgroup/memory", controllers="cpuset,memory")
    machine.limit_v1("/b", 3 * GB)
    machine.v1("/a", folder="/sys/fs/cgroup/other", controllers="memory_other")
    machine.write("/sys/fs/cgroup/other/a/memory.limit_in_bytes", GB)
    assert machine.memory().limit_source == "/sys/fs/cgroup/memory/b/memory.limit_in_bytes"


class TestNamespaces:
    """A container's /proc/self/cgroup and its mounts often name different roots."""

    def test_a_path_that_is_not_below_the_mount_falls_back_to_its_root_and_says_so(self, machine):
        machine.v1("/docker/0123abcd")
        machine.limit_v1("", 2 * GB, usage=GB)
        found = machine.memory()
        assert (found.limit_bytes, found.available_bytes) == (2 * GB, GB)
        assert found.limit_source == "/sys/fs/cgroup/memory/memory.limit_in_bytes"
        assert any("/docker/0123abcd" in note and "root" in note for note in found.notes)

    def test_a_mount_of_the_containers_own_cgroup_is_its_root(self, machine):
        machine.v1("/docker/0123abcd/worker", root="/docker/0123abcd")
        machine.limit_v1("/worker", GB, usage=0)
        machine.limit_v1("", 2 * GB, usage=0)
        found = machine.memory()
        assert found.limit_source == "/sys/fs/cgroup/memory/worker/memory.limit_in_bytes"
        assert found.notes == ()

    @pytest.mark.parametrize("path", ["/../other", "/.."])
    def test_a_path_outside_of_the_namespace_never_leaves_the_mount(self, machine, path):
        machine.v2(path)
        machine.limit_v2("", 2 * GB)
        machine.write("/sys/fs/other/memory.max", GB)
        machine.write("/sys/fs/memory.max", GB)
        found = machine.memory()
        assert found.cgroups == ("/sys/fs/cgroup",)
        assert found.limit_bytes == 2 * GB

    def test_a_mount_made_outside_of_the_namespace_is_searched_for_the_process(self, machine):
        machine.v2("/worker", root="/../..")
        machine.write("/proc/self/stat", "4711 (python) S 1\n")
        for pod, pid in (("first", 47110), ("second", 4711), ("third", 1)):
            machine.limit_v2(f"/pods/{pod}/worker", 4 * GB)
            machine.limit_v2(f"/pods/{pod}", 2 * GB)
            machine.write(f"/sys/fs/cgroup/pods/{pod}/worker/cgroup.procs", f"12\n{pid}\n")
        found = machine.memory()
        assert found.limit_source == "/sys/fs/cgroup/pods/second/memory.max"
        assert found.notes == ()

    def test_a_folder_of_the_same_name_in_somebody_elses_mount_is_not_ours(self, machine):
        machine.v2("/system.slice/a", root="/docker/0123abcd")
        machine.limit_v2("/system.slice/a", GB)
        machine.limit_v2("", 2 * GB)
        assert machine.memory().limit_bytes == 2 * GB

    def test_version_1_tells_of_a_limit_above_the_mount(self, machine):
        machine.v1("/", controllers="memory")
        machine.limit_v1("", V1_UNLIMITED, usage=GB, hierarchical_memory_limit=3 * GB)
        found = machine.memory()
        assert (found.limit_bytes, found.available_bytes) == (3 * GB, 2 * GB)
        assert "hierarchical_memory_limit" in found.limit_source
        assert any("not visible" in note for note in found.notes)

    def test_a_limit_that_is_visible_anyway_is_not_told_twice(self, machine):
        machine.v1("/")
        machine.limit_v1("", 3 * GB, usage=GB, hierarchical_memory_limit=3 * GB)
        found = machine.memory()
        assert found.limit_source == "/sys/fs/cgroup/memory/memory.limit_in_bytes"
        assert found.notes == ()

    def test_of_two_mounts_the_one_that_shows_more_ancestors_counts(self, machine):
        machine.v2("/pod/app", folder="/inner", root="/pod/app")
        machine.limit_v2("", 4 * GB, folder="/inner")
        machine.mounts.append(V2.format(root="/", folder="/sys/fs/cgroup"))
        machine._save()
        machine.limit_v2("/pod/app", 4 * GB)
        machine.limit_v2("/pod", 2 * GB)
        assert machine.memory().limit_bytes == 2 * GB

    def test_a_mount_point_with_a_space(self, machine):
        machine.v1("/app", folder="/mnt/my\\040cgroups")
        machine.write("/mnt/my cgroups/app/memory.limit_in_bytes", GB)
        machine.write("/mnt/my cgroups/app/memory.usage_in_bytes", 0)
        assert machine.memory().limit_source == "/mnt/my cgroups/app/memory.limit_in_bytes"

    def test_another_process_is_read_through_our_mounts(self, machine):
        machine.v2("/ours")
        machine.write("/proc/77/cgroup", "0::/theirs\n")
        machine.limit_v2("/ours", 4 * GB)
        machine.limit_v2("/theirs", GB)
        assert machine.memory(77).limit_bytes == GB
        assert machine.memory().limit_bytes == 4 * GB


def test_a_parent_that_does_not_count_its_children_does_not_limit_them(machine):
    machine.v1("/parent/app")
    machine.limit_v1("/parent/app", 4 * GB)
    machine.limit_v1("/parent", GB)
    machine.write("/sys/fs/cgroup/memory/parent/memory.use_hierarchy", 0)
    assert machine.memory().limit_bytes == 4 * GB
    machine.write("/sys/fs/cgroup/memory/parent/memory.use_hierarchy", 1)
    assert machine.memory().limit_bytes == GB


class TestUnreadable:
    @pytest.fixture
    def deny(self, monkeypatch):
        """Files whose name is given raise a permission error; chmod does not stop root."""
        denied = set()
        read = Path.read_text

        def read_text(path, *words, **options):
            if path.name in denied:
                raise PermissionError(13, "Permission denied", str(path))
            return read(path, *words, **options)

        monkeypatch.setattr(Path, "read_text", read_text)
        return denied.add

    def test_an_unreadable_limit_is_skipped_and_told_and_the_ancestors_still_count(self, machine, deny):
        machine.v2("/pod/app")
        machine.limit_v2("/pod/app", GB)
        machine.write("/sys/fs/cgroup/pod/memory.high", 3 * GB)
        machine.write("/sys/fs/cgroup/pod/memory.current", GB)
        deny("memory.max")
        found = machine.memory()
        assert (found.limit_bytes, found.available_bytes) == (3 * GB, 2 * GB)
        assert "/sys/fs/cgroup/pod/app/memory.max is not readable (Permission denied), skipped" in found.notes

    def test_without_the_usage_the_whole_limit_counts_as_free_and_that_is_told(self, machine, deny):
        machine.v2("/app")
        machine.limit_v2("/app", 4 * GB, usage=3 * GB)
        deny("memory.current")
        found = machine.memory()
        assert found.available_bytes == 4 * GB
        assert any("memory.current reports no usage" in note for note in found.notes)

    def test_without_memory_stat_nothing_counts_as_reclaimable(self, machine, deny):
        machine.v2("/app")
        machine.limit_v2("/app", 4 * GB, usage=3 * GB, inactive=GB)
        deny("memory.stat")
        assert machine.memory().available_bytes == GB

    def test_without_the_processs_cgroup_the_roots_of_the_mounts_are_read(self, machine, deny):
        machine.v2("/app")
        machine.limit_v2("", 4 * GB, usage=GB)
        deny("cgroup")
        found = machine.memory()
        assert found.limit_bytes == 4 * GB
        assert any("/proc/self/cgroup is not readable" in note for note in found.notes)

    def test_a_file_that_holds_no_number_is_skipped_and_told(self, machine):
        machine.v2("/app")
        machine.limit_v2("/app", "plenty")
        found = machine.memory()
        assert found.limit_bytes is None
        assert found.notes == (
            "/sys/fs/cgroup/app/memory.max holds 'plenty', which is not a number, skipped",
        )


class TestSwap:
    def test_version_2_limits_it(self, machine):
        machine.v2("/app")
        machine.limit_v2("/app", 4 * GB)
        machine.write("/sys/fs/cgroup/app/memory.swap.max", GB)
        machine.write("/sys/fs/cgroup/app/memory.swap.current", GB // 4)
        found = machine.memory()
        assert (found.swap_total_bytes, found.swap_free_bytes) == (GB, GB - GB // 4)

    def test_a_cgroup_without_swap_has_none(self, machine):
        machine.v2("/app")
        machine.write("/sys/fs/cgroup/app/memory.swap.max", 0)
        found = machine.memory()
        assert (found.swap_total_bytes, found.swap_free_bytes) == (0, 0)

    def test_version_1_limits_memory_and_swap_together(self, machine):
        machine.v1("/app")
        machine.limit_v1("/app", 4 * GB, usage=GB, total_swap=GB // 2)
        machine.write("/sys/fs/cgroup/memory/app/memory.memsw.limit_in_bytes", 5 * GB)
        machine.write("/sys/fs/cgroup/memory/app/memory.memsw.usage_in_bytes", 3 * GB)
        found = machine.memory()
        assert (found.swap_total_bytes, found.swap_free_bytes) == (GB, GB // 2)
        assert (found.limit_bytes, found.available_bytes) == (4 * GB, 2 * GB)

    def test_version_1_without_limits_leaves_the_machines(self, machine):
        machine.v1("/app")
        machine.limit_v1("/app", V1_UNLIMITED, usage=GB)
        machine.write("/sys/fs/cgroup/memory/app/memory.memsw.limit_in_bytes", V1_UNLIMITED)
        machine.write("/sys/fs/cgroup/memory/app/memory.memsw.usage_in_bytes", GB)
        assert machine.memory().swap_free_bytes == 2 * GB


def test_where_there_is_no_proc_psutil_tells(tmp_path):
    found = effective_memory(tmp_path)
    assert found.total_bytes == psutil.virtual_memory().total
    assert (found.limit_source, found.cgroups) == ("machine", ())


def test_lxc_may_tell_more_available_than_there_is(tmp_path):
    assert Machine(tmp_path, total=2 * GB, available=12 * GB).memory().available_bytes == 2 * GB


class TestCpuLimit:
    def quota_v2(self, machine, cgroup, text):
        machine.write(f"/sys/fs/cgroup{cgroup}/cpu.max", text + "\n")

    def test_there_is_none_where_nothing_says_so(self, machine):
        assert cpu_limit(machine.root) is None
        machine.v2("/app")
        self.quota_v2(machine, "/app", "max 100000")
        assert cpu_limit(machine.root) is None

    def test_the_tightest_ancestor_of_version_2_counts(self, machine):
        machine.v2("/pod/app")
        self.quota_v2(machine, "/pod/app", "400000 100000")
        self.quota_v2(machine, "/pod", "150000 100000")
        found = cpu_limit(machine.root)
        assert (found.cpus, found.source) == (1.5, "/sys/fs/cgroup/pod/cpu.max")

    def test_the_tightest_ancestor_of_version_1_counts(self, machine):
        machine.v1("/pod/app", folder="/sys/fs/cgroup/cpu,cpuacct", controllers="cpu,cpuacct")
        for cgroup, quota in (("/pod/app", -1), ("/pod", 50_000), ("", -1)):
            machine.write(f"/sys/fs/cgroup/cpu,cpuacct{cgroup}/cpu.cfs_quota_us", quota)
            machine.write(f"/sys/fs/cgroup/cpu,cpuacct{cgroup}/cpu.cfs_period_us", 20_000)
        found = cpu_limit(machine.root)
        assert (found.cpus, found.source) == (2.5, "/sys/fs/cgroup/cpu,cpuacct/pod/cpu.cfs_quota_us")

    def test_a_missing_period_is_the_kernels_default(self, machine):
        machine.v2("/app")
        self.quota_v2(machine, "/app", "300000")
        assert cpu_limit(machine.root).cpus == 3.0

    def test_cpu_time_used_is_told_by_either_version(self, machine):
        machine.write("/v2/cpu.stat", "usage_usec 2500000\nuser_usec 1\n")
        machine.write("/v1/cpuacct.usage", 1_500_000_000)
        machine.write("/v1/cpu.stat", "nr_periods 0\n")
        assert cpu_seconds(machine.root / "v2") == 2.5
        assert cpu_seconds(machine.root / "v1") == 1.5
        assert cpu_seconds(machine.root) is None


class TestPressure:
    TEXT = "some avg10=12.50 avg60=3.00 avg300=0.10 total=9\nfull avg10=4.00 avg60=1.00 avg300=0.00 total=3\n"

    def test_the_machines_comes_first_then_the_cgroups(self, machine):
        machine.v2("/app")
        machine.write("/proc/pressure/memory", self.TEXT.replace("12.50", "0.00"))
        machine.write("/sys/fs/cgroup/app/memory.pressure", self.TEXT)
        of_machine, of_cgroup = memory_pressure(machine.root)
        assert (of_machine.source, of_machine.some_avg10) == ("/proc/pressure/memory", 0.0)
        assert of_cgroup.source == "/sys/fs/cgroup/app/memory.pressure"
        assert (of_cgroup.some_avg10, of_cgroup.some_avg60) == (12.5, 3.0)
        assert (of_cgroup.full_avg10, of_cgroup.full_avg60) == (4.0, 1.0)

    def test_a_kernel_without_it_tells_none(self, machine):
        assert memory_pressure(machine.root) == ()
        machine.write("/proc/pressure/memory", "")
        assert memory_pressure(machine.root) == ()


class TestProcesses:
    def add(self, machine, pid, parent, name="python", pss=None, rss=None, state="S"):
        machine.write(f"/proc/{pid}/stat", f"{pid} ({name}) {state} {parent} 1 1 0\n")
        if pss is not None:
            machine.write(
                f"/proc/{pid}/smaps_rollup", f"55-7f ---p 0 0 0 [rollup]\nRss: 900 kB\nPss:  {pss} kB\n"
            )
        if rss is not None:
            machine.write(f"/proc/{pid}/status", f"Name:\t{name}\nVmHWM:\t  9999 kB\nVmRSS:\t  {rss} kB\n")

    def test_a_tree_is_the_process_its_children_and_theirs(self, machine):
        self.add(machine, 10, 1, pss=100)
        self.add(machine, 11, 10, pss=20)
        self.add(machine, 12, 11, pss=3)
        self.add(machine, 13, 1, pss=5000)
        tree = process_tree(10, machine.root)
        assert [one.pid for one in tree] == [10, 11, 12]
        assert [one.bytes for one in tree] == [100 * 1024, 20 * 1024, 3 * 1024]
        assert pss_bytes(10, machine.root) == 123 * 1024
        assert pss_bytes(10, machine.root, children=False) == 100 * 1024

    def test_where_the_pss_may_not_be_read_it_is_the_rss_and_that_is_told(self, machine):
        self.add(machine, 10, 1, pss=100, rss=900)
        self.add(machine, 11, 10, rss=50)
        assert [one.measure for one in process_tree(10, machine.root)] == ["pss", "rss"]
        assert pss_bytes(10, machine.root) == 150 * 1024

    def test_a_process_that_has_ended_takes_nothing(self, machine):
        self.add(machine, 10, 1, state="Z")
        assert process_tree(10, machine.root) == process_tree(99, machine.root) == ()
        assert pss_bytes(10, machine.root) == pss_bytes(99, machine.root, children=False) == 0

    def test_a_child_that_ends_meanwhile_is_left_out(self, machine):
        self.add(machine, 10, 1, pss=100)
        self.add(machine, 11, 10)
        assert [one.pid for one in process_tree(10, machine.root)] == [10]

    def test_a_name_may_hold_parentheses_but_no_control_characters(self, machine):
        self.add(machine, 10, 1, name="a) S 5 (b\x1b[31m", pss=1)
        (found,) = process_tree(10, machine.root)
        assert found.name == "a) S 5 (b?[31m"

    def test_this_process_takes_memory(self):
        (found, *_) = process_tree(os.getpid())
        assert found.pid == os.getpid()
        assert 0 < pss_bytes(os.getpid(), children=False) <= psutil.Process().memory_info().rss * 1.2


class TestGpu:
    @pytest.fixture
    def nvidia_smi(self, tmp_path, monkeypatch):
        def install(script):
            program = tmp_path / "bin" / "nvidia-smi"
            program.parent.mkdir()
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
            monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

        monkeypatch.delitem(sys.modules, "torch", raising=False)
        return install

    def test_nvidia_smi_tells_them(self, nvidia_smi):
        nvidia_smi("echo '81559, 1024, 37, NVIDIA H100 80GB HBM3'; echo '16384, 0, [N/A], Tesla T4'")
        first, second = memory.gpu_memory()
        assert (first.name, first.total_bytes, first.used_bytes) == (
            "NVIDIA H100 80GB HBM3",
            81559 * 1024**2,
            1024 * 1024**2,
        )
        assert (first.busy_percent, second.busy_percent) == (37.0, None)

    @pytest.mark.parametrize(
        "script", ["exit 9", "echo No devices were found", "echo '[N/A], [N/A], 0, GB10'"]
    )
    def test_none_where_it_fails_or_tells_no_memory(self, nvidia_smi, script):
        nvidia_smi(script)
        assert memory.gpu_memory() == ()

    def test_none_where_it_is_not_installed(self, nvidia_smi, monkeypatch):
        monkeypatch.setenv("PATH", "/nowhere")
        assert memory.gpu_memory() == ()

    def test_a_torch_that_uses_the_gpu_is_asked_and_no_other(self, nvidia_smi, monkeypatch):
        class Cuda:
            initialized = True

            def is_initialized(self):
                return self.initialized

            def device_count(self):
                return 1

            def mem_get_info(self, index):
                assert self.initialized, "this would take GPU memory"
                return 3 * GB, 4 * GB

            def get_device_name(self, index):
                return "fake"

        class Torch:
            cuda = Cuda()

        nvidia_smi("echo '1, 1, 1, other'")
        monkeypatch.setitem(sys.modules, "torch", Torch())
        (found,) = memory.gpu_memory()
        assert (found.name, found.total_bytes, found.used_bytes) == ("fake", 4 * GB, GB)
        Torch.cuda.initialized = False
        (found,) = memory.gpu_memory()
        assert found.name == "other"


@pytest.mark.process
class TestRealCgroup:
    """What the kernel itself says, in cgroups made for the test."""

    @pytest.fixture
    def cgroup(self):
        """Makes a limited cgroup below the root of a controller's mount, and another in it.

        Takes the controller and, by version, the file of the limit with what to write there; gives that
        file and the inner cgroup. Skips where that is not allowed.
        """
        made = []

        def make(controller, limits):
            for hierarchy in hierarchies(controller, Files()):
                name, text = limits[hierarchy.version]
                outer = hierarchy.folders[-1] / f"pressoir-test-{os.getpid()}"
                with contextlib.suppress(OSError):
                    for folder in (outer, outer / "inner"):
                        folder.mkdir()
                        made.append(folder)
                    if (outer / name).exists():
                        (outer / name).write_text(text)
                        return outer / name, outer / "inner"
            pytest.skip("cannot make a cgroup")

        yield make
        for folder in reversed(made):
            folder.rmdir()

    PROGRAM = """
import json, sys
from pathlib import Path
(Path(sys.argv[1]) / "cgroup.procs").write_text("0")
from pressoir.system.memory import effective_memory
from pressoir.system.runtime import available_cpus
before = effective_memory()
held = bytearray(b"x") * 60_000_000
after = effective_memory()
print(json.dumps({
    "limit": after.limit_bytes, "source": after.limit_source, "least": after.available_source,
    "before": before.available_bytes, "after": after.available_bytes, "cpus": available_cpus(),
}))
"""

    def run_inside(self, folder):
        program = [sys.executable, "-c", self.PROGRAM, str(folder)]
        return json.loads(subprocess.run(program, capture_output=True, text=True, check=True).stdout)

    def test_the_limit_of_a_real_ancestor_and_what_is_left_of_it(self, cgroup):
        limit = 256 << 20
        file, inner = cgroup(
            "memory", {1: ("memory.limit_in_bytes", str(limit)), 2: ("memory.max", str(limit))}
        )
        found = self.run_inside(inner)
        assert (found["limit"], found["source"], found["least"]) == (limit, str(file), str(file))
        assert 55_000_000 < found["before"] - found["after"] < 120_000_000  # 60 MB were taken
        assert 0 < found["after"] < limit - 60_000_000

    def test_the_quota_of_a_real_cgroup_limits_the_cpus(self, cgroup):
        _, inner = cgroup("cpu", {1: ("cpu.cfs_quota_us", "100000"), 2: ("cpu.max", "100000 100000")})
        assert self.run_inside(inner)["cpus"] == 1
