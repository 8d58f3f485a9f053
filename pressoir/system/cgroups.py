"""The control groups that limit a process, whichever version of them the machine has.

A container is a cgroup. What psutil and `/proc/meminfo` report inside it is the host's, so a process that
plans by them plans too much and is killed. The limits of a process are those of its own cgroup and of every
ancestor; an ancestor's is shared with all its other children.

Where they are read:

- `/proc/<pid>/cgroup` names the process's cgroup: a line `4:memory:/a/b` for each version-1 controller, one
  line `0::/a/b` for version 2. Hybrid machines have both; each controller is in one of them, so all are read.
- `/proc/self/mountinfo` says where each hierarchy is mounted and which cgroup is that mount's root. Inside a
  container the two often disagree (the path is the host's, the mount is the container's own): then the root
  of the mount is the closest cgroup that can be seen.

Every function takes the file system's root, so that a machine can be a folder in a test. A file that does not
exist is no limit; one that cannot be read is skipped and listed in `notes`.

Sources: Linux kernel documentation, admin-guide/cgroup-v2.rst and admin-guide/cgroup-v1/memory.rst; proc(5),
cgroups(7), cgroup_namespaces(7).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")
_UNLIMITED = 1 << 60
"""Version 1 writes "no limit" as the largest 64-bit number, rounded down to a page (9223372036854771712 with
pages of 4 KiB); no machine has an exbibyte."""


class Files:
    """Reads small kernel files under a root; remembers which could not be read."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.notes: list[str] = []

    def shown(self, path: Path) -> str:
        """The path as the machine itself would name it."""
        return "/" + path.relative_to(self.root).as_posix()

    def note(self, text: str) -> None:
        """Record a finding to report with the result, once."""
        if text not in self.notes:
            self.notes.append(text)

    def text(self, path: Path) -> str | None:
        """The content of a file; None where there is none, or (noted) where it cannot be read."""
        try:
            return path.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
            return None
        except OSError as error:
            self.note(f"{self.shown(path)} is not readable ({error.strerror or error}), skipped")
            return None

    def is_folder(self, path: Path) -> bool:
        """Whether there is such a folder that can be looked into."""
        try:
            return path.is_dir()
        except OSError:
            return False

    def bytes_limit(self, path: Path) -> int | None:
        """A number of bytes; None for "no limit", for a missing file, and (noted) for any other text."""
        value = (self.text(path) or "max").strip()
        if value == "max":
            return None
        if not value.lstrip("-").isdigit():
            self.note(f"{self.shown(path)} holds {value[:40]!r}, which is not a number, skipped")
            return None
        number = int(value)
        return number if 0 <= number < _UNLIMITED else None

    def table(self, path: Path) -> dict[str, int]:
        """Lines `name 123` or `name: 123 kB` as a mapping; the kernel's kB are KiB and come as bytes."""
        found = {}
        for line in (self.text(path) or "").splitlines():
            if match := re.match(r"([\w()]+):?\s+(\d+)( kB)?$", line):
                found[match[1]] = int(match[2]) * (1024 if match[3] else 1)
        return found


@dataclass(frozen=True)
class Hierarchy:
    """The cgroups of a process in one hierarchy."""

    version: int
    """1 or 2."""
    folders: tuple[Path, ...]
    """The process's own first, then its ancestors, up to the root of the mount."""


@dataclass(frozen=True)
class CpuLimit:
    """The tightest CPU quota over a process."""

    cpus: float
    """CPU seconds it may use in a second."""
    folder: Path
    """The cgroup that says so."""
    source: str
    """The file that says so."""


@dataclass(frozen=True)
class _Mount:
    version: int
    controllers: frozenset[str]
    root: PurePosixPath
    folder: Path


def hierarchies(controller: str, files: Files, pid: int | str = "self") -> tuple[Hierarchy, ...]:
    """The version-1 hierarchy of `controller` and the version-2 hierarchy, where they are mounted.

    A process that does not exist, or a system without cgroups, has none. In version 2 a cgroup may lack the
    controller's files; its ancestors may have them.
    """
    if not (files.root / "proc" / str(pid)).exists():
        return ()
    paths = _paths(controller, files, pid)
    found = []
    for version in (1, 2):
        mounts = [
            mount
            for mount in _mounts(files)
            if mount.version == version and (version == 2 or controller in mount.controllers)
        ]
        chains = [_chain(mount, paths.get(version), files, pid) for mount in mounts]
        # A hierarchy that is mounted twice: the mount that shows more ancestors.
        if whole := [chain for chain in chains if chain is not None]:
            found.append(Hierarchy(version, max(whole, key=len)))
        elif mounts:
            path = paths.get(version)
            files.note(
                f"cgroup {path or 'path'} of process {pid} is not below {files.shown(mounts[0].folder)}; "
                "the limits of the mount root are used"
            )
            found.append(Hierarchy(version, (mounts[0].folder,)))
    return tuple(found)


def cpu_limit(root: Path = ROOT, pid: int | str = "self") -> CpuLimit | None:
    """The tightest quota among a process's cgroup and its ancestors; None where there is none."""
    files, limits = Files(root), []
    for hierarchy in hierarchies("cpu", files, pid):
        for folder in hierarchy.folders:
            if hierarchy.version == 2:
                source = folder / "cpu.max"
                quota, _, period = (files.text(source) or "max").strip().partition(" ")
            else:
                source = folder / "cpu.cfs_quota_us"
                quota = (files.text(source) or "-1").strip()
                period = (files.text(folder / "cpu.cfs_period_us") or "").strip()
            if quota.isdigit() and int(quota):
                length = int(period) if period.isdigit() and int(period) else 100_000  # the kernel's default
                limits.append(CpuLimit(int(quota) / length, folder, files.shown(source)))
    return min(limits, key=lambda limit: limit.cpus, default=None)


def cpu_seconds(folder: Path) -> float | None:
    """CPU seconds that a cgroup and its descendants have used so far; None where it does not tell."""
    files = Files(folder)
    if (usage := files.table(folder / "cpu.stat").get("usage_usec")) is not None:
        return usage / 1e6
    nanoseconds = (files.text(folder / "cpuacct.usage") or "").strip()
    return int(nanoseconds) / 1e9 if nanoseconds.isdigit() else None


def _paths(controller: str, files: Files, pid: int | str) -> dict[int, PurePosixPath]:
    """Path of the process's cgroup, by the version of the hierarchy."""
    paths = {}
    for line in (files.text(files.root / "proc" / str(pid) / "cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths[2] = PurePosixPath(path)
        elif controller in controllers.split(","):
            paths[1] = PurePosixPath(path)
    return paths


def _mounts(files: Files) -> list[_Mount]:
    """Mounted cgroup hierarchies. Their paths are ours, whichever process is asked about."""
    mounts = []
    for line in (files.text(files.root / "proc" / "self" / "mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if len(left) < 5 or len(right) < 3 or right[0] not in ("cgroup", "cgroup2"):
            continue
        mounts.append(
            _Mount(
                version=2 if right[0] == "cgroup2" else 1,
                controllers=frozenset(right[2].split(",")),
                root=PurePosixPath(_unescaped(left[3])),
                folder=files.root / _unescaped(left[4]).lstrip("/"),
            )
        )
    return mounts


def _unescaped(field: str) -> str:
    """Spaces and the like stand in mountinfo as octal numbers (`\\040`)."""
    return re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), field)


def _chain(
    mount: _Mount, path: PurePosixPath | None, files: Files, pid: int | str
) -> tuple[Path, ...] | None:
    """Folders from the cgroup `path` up to the mount's; None if that cgroup is not to be seen there."""
    if path is None or ".." in path.parts:
        return None
    if ".." in mount.root.parts:
        folder = _below_an_outer_mount(mount, path, files, pid)
    else:
        folder = mount.folder / path.relative_to(mount.root) if path.is_relative_to(mount.root) else None
    if folder is None or not files.is_folder(folder):
        return None
    folders = [folder]
    while folders[-1] != mount.folder:
        parent = folders[-1].parent
        if mount.version == 1 and (files.text(parent / "memory.use_hierarchy") or "1").strip() == "0":
            break  # before Linux 5.11 a version-1 parent could be set not to count its children
        folders.append(parent)
    return tuple(folders)


def _below_an_outer_mount(mount: _Mount, path: PurePosixPath, files: Files, pid: int | str) -> Path | None:
    """The process's folder in a mount that was made outside of our cgroup namespace.

    Such a mount's root is shown as `/../..`: how many levels above the namespace's, but not by which names.
    So the folder is the one at that depth that lists the process.
    """
    number = (files.text(files.root / "proc" / str(pid) / "stat") or "").partition(" ")[0]
    above = mount.root.parts.count("..")
    if len(mount.root.parts) != above + 1 or not number:  # a sibling of the namespace: /../other
        return None
    below = path.relative_to("/")
    for folder in sorted(mount.folder.glob("/".join(["*"] * above))):
        if number in (files.text(folder / below / "cgroup.procs") or "").split():
            return folder / below
    return None
