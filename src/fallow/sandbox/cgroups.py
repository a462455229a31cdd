"""Control groups, versions 1, 2 and hybrid: memory, processes and CPU share of one sandbox together.

A group is made for each sandbox and removed with it. As root it lies below the agent's own group (version 1) or below
the root of the tree (version 2); a plain user needs a delegated version 2 tree (`Delegate=yes` in a systemd unit), and
the agent then moves itself into a leaf of its own, since a group with processes cannot hand out controllers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from fallow.sandbox.protocol import Limits

CONTROLLERS = ("memory", "pids", "cpu")
REMOVE_WITHIN_S = 5.0
_PERIOD_US = 100_000
_FOLDER = "fallow"
_LEAF = "fallow-agent"


class Place(NamedTuple):
    """Where groups can be made: version 2 with all it offers, or a folder for each controller of version 1."""

    version: int
    parents: dict[str, Path]
    """By controller."""


class Mounted(NamedTuple):
    """One mounted hierarchy."""

    path: Path
    version: int
    controllers: frozenset[str]


def mounted(mountinfo: str) -> list[Mounted]:
    """Hierarchies in the text of /proc/self/mountinfo."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        path = Path(fields[4].replace("\\040", " "))
        if kind[0] == "cgroup2":
            found.append(Mounted(path, 2, frozenset()))
        elif kind[0] == "cgroup":
            found.append(Mounted(path, 1, frozenset(kind[2].split(",")) & frozenset(CONTROLLERS)))
    return found


def own_groups(text: str) -> dict[str, str]:
    """Controller ('' for version 2) to path, of the text of /proc/self/cgroup."""
    groups: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(",") if controllers else [""]:
            groups[name] = path
    return groups


def find_place() -> Place | None:
    """Where this process may make groups; None: nowhere."""
    try:
        hierarchies = mounted(Path("/proc/self/mountinfo").read_text())
        groups = own_groups(Path("/proc/self/cgroup").read_text())
    except OSError:
        return None
    parents: dict[str, Path] = {}
    for hierarchy in hierarchies:
        if hierarchy.version == 1:
            for controller in hierarchy.controllers:
                parent = hierarchy.path / groups.get(controller, "/").lstrip("/")
                # In a container the path may be of the host's tree, of which only a part is mounted.
                parent = parent if parent.is_dir() else hierarchy.path
                if os.access(parent, os.W_OK) and not _read_only(parent):
                    parents[controller] = parent
    if "memory" in parents:
        return Place(1, parents)
    for hierarchy in hierarchies:
        if hierarchy.version == 2 and (place := _version_2(hierarchy.path, groups.get("", "/"))):
            return place
    return Place(1, parents) if parents else None


def _read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _version_2(root: Path, own: str) -> Place | None:
    candidates = [root / own.lstrip("/")]
    if candidates[0].name == _LEAF:
        candidates = [candidates[0].parent]
    if os.geteuid() == 0:
        candidates.insert(0, root)
    for base in candidates:
        if not base.is_dir() or not os.access(base, os.W_OK) or _read_only(base):
            continue
        with contextlib.suppress(OSError):
            offered = [name for name in CONTROLLERS if name in (base / "cgroup.controllers").read_text().split()]
            if not offered:
                continue
            parent = base
            if base == root and os.geteuid() == 0:
                _hand_out(base, offered)
                parent = base / _FOLDER
                parent.mkdir(exist_ok=True)
            else:
                _move_into_leaf(base)
            _hand_out(parent, offered)
            return Place(2, dict.fromkeys(offered, parent))
    return None


def _hand_out(group: Path, controllers: list[str]) -> None:
    enabled = (group / "cgroup.subtree_control").read_text().split()
    missing = [f"+{name}" for name in controllers if name not in enabled]
    if missing:
        (group / "cgroup.subtree_control").write_text(" ".join(missing))


def _move_into_leaf(group: Path) -> None:
    """Only where nobody's processes but this one's and its children's are in the group."""
    pids = [int(line) for line in (group / "cgroup.procs").read_text().split()]
    if not pids:
        return
    mine = {os.getpid(), *(pid for pid in pids if os.getpgid(pid) == os.getpgid(0))}
    if not set(pids) <= mine:
        raise PermissionError(f"other processes share {group}")
    leaf = group / _LEAF
    leaf.mkdir(exist_ok=True)
    for pid in pids:
        (leaf / "cgroup.procs").write_text(str(pid))


class Group:
    """One sandbox's group, in every hierarchy that it needs. `bounds`: the controllers that are in force."""

    def __init__(self, place: Place, name: str, limits: Limits, beside: int = 0) -> None:
        """`beside`: processes in it that do not count toward the limit. Raises OSError, and leaves nothing behind
        then."""
        if beside and limits.processes:
            limits = msgspec.structs.replace(limits, processes=limits.processes + beside)
        self._place = place
        self._folders: list[Path] = []
        self.bounds: list[str] = []
        wanted = _wanted(place.version, limits)
        try:
            for controller, parent in place.parents.items():
                folder = parent / name
                if folder not in self._folders:
                    folder.mkdir()
                    self._folders.append(folder)
                for file, value in wanted.get(controller, ()):
                    self._write(folder / file, value)
                if wanted.get(controller):
                    self.bounds.append(controller)
        except OSError:
            self.remove()
            raise

    @staticmethod
    def _write(path: Path, value: str) -> None:
        try:
            path.write_text(value)
        except OSError:
            # Kernels without swap accounting lack these; the bound on memory itself is then in force alone.
            if "swap" not in path.name and "memsw" not in path.name:
                raise

    @property
    def takes_threads(self) -> bool:
        """Whether `inside` works: in version 1."""
        return self._place.version == 1

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread alone is in the group, and what it starts meanwhile begins there. Only where
        `takes_threads`. The kernel moves a thread at its own wish at once, while another process is moved only when
        all processors have been through its scheduler, 10 ms or more. Raises OSError."""
        try:
            for folder in self._folders:
                (folder / "tasks").write_text("0")
            yield
        finally:
            for parent in dict.fromkeys(self._place.parents.values()):
                (parent / "tasks").write_text("0")

    def add(self, pid: int) -> None:
        """A process that has no threads yet; what it starts follows it. Raises OSError."""
        for folder in self._folders:
            (folder / "cgroup.procs").write_text(str(pid))

    def pids(self) -> list[int]:
        found: set[int] = set()
        for folder in self._folders:
            with contextlib.suppress(OSError):
                found.update(int(line) for line in (folder / "cgroup.procs").read_text().split())
        return sorted(found)

    def out_of_memory(self) -> bool:
        """Whether the kernel has killed in here for want of memory."""
        return self.memory_kills() > 0

    def memory_kills(self) -> int:
        """How often it has."""
        for folder in self._folders:
            for file in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError, ValueError):
                    for line in (folder / file).read_text().splitlines():
                        key, _, value = line.partition(" ")
                        if key == "oom_kill" and int(value) > 0:
                            return int(value)
        return 0

    def remove(self) -> None:
        """Kill what is left inside, and remove the folders. Raises OSError where that cannot be done in time."""
        deadline = time.monotonic() + REMOVE_WITHIN_S
        for folder in list(self._folders):
            while True:
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    self._kill(folder)
                    time.sleep(0.002)
            self._folders.remove(folder)

    def _kill(self, folder: Path) -> None:
        """All inside, those too that are forked meanwhile, where the kernel does that (version 2 since Linux 5.14)."""
        with contextlib.suppress(OSError):
            (folder / "cgroup.kill").write_text("1")
            return
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _wanted(version: int, limits: Limits) -> dict[str, list[tuple[str, str]]]:
    wanted: dict[str, list[tuple[str, str]]] = {}
    if limits.memory_bytes:
        memory = str(limits.memory_bytes)
        wanted["memory"] = (
            [("memory.max", memory), ("memory.swap.max", "0"), ("memory.oom.group", "0")]
            if version == 2
            else [("memory.limit_in_bytes", memory), ("memory.memsw.limit_in_bytes", memory)]
        )
    if limits.processes:
        wanted["pids"] = [("pids.max", str(limits.processes))]
    if limits.cpu_share:
        quota = max(1000, int(limits.cpu_share * (os.cpu_count() or 1) * _PERIOD_US))
        wanted["cpu"] = (
            [("cpu.max", f"{quota} {_PERIOD_US}")]
            if version == 2
            else [("cpu.cfs_period_us", str(_PERIOD_US)), ("cpu.cfs_quota_us", str(quota))]
        )
    return wanted
