"""What this machine is: processors, memory, disk, Pythons, GPUs. Read only; nothing here fails for lack of a thing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Container
from pathlib import Path

import msgspec

from fallow.agent.devices.found import gpu_devices
from fallow.agent.limits.priority import give_way
from fallow.agent.memory import MEMINFO
from fallow.model.ids import NodeId
from fallow.model.node import NodeSpec

CGROUP = Path("/sys/fs/cgroup")
FIND_TIMEOUT_S = 600.0
"""Where all processors are busy, what gives way takes its time."""


def own_python() -> str:
    """Minor version of the agent's interpreter, such as '3.11'."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def probe_node(node_id: NodeId, name: str, slots: int, home: Path, version: str) -> NodeSpec:
    """Everything that is known at once; Pythons other than the agent's own are found later (find_pythons).
    slots 0: one for each processor."""
    cpus = cpu_count()
    return NodeSpec(
        node_id=node_id,
        name=name,
        slots=slots or cpus,
        cpu_count=cpus,
        memory_bytes=memory_bytes(),
        disk_free_bytes=disk_free_bytes(home),
        platform=f"{platform.system().lower()}-{platform.machine().lower()}",
        pythons=(own_python(),),
        version=version,
        devices=gpu_devices(),
        host=socket.gethostname(),
        pid=os.getpid(),
    )


def cpu_count() -> int:
    """Processors that this process may use: its affinity, cut by the control group's quota; at least 1."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:
        count = os.cpu_count() or 1
    quota = parse_cpu_max(_read(CGROUP / "cpu.max"))
    if quota is None:
        quota = _cgroup1_quota()
    if quota is not None:
        count = min(count, max(1, int(quota + 0.5)))
    return max(1, count)


def parse_cpu_max(text: str) -> float | None:
    """Processors of a cgroup v2 'cpu.max' line ('QUOTA PERIOD' in µs); None: no limit."""
    parts = text.split()
    if len(parts) != 2 or not parts[0].isdigit() or not parts[1].isdigit() or int(parts[1]) == 0:
        return None
    return int(parts[0]) / int(parts[1])


def _cgroup1_quota() -> float | None:
    quota = _read(CGROUP / "cpu/cpu.cfs_quota_us").strip()
    period = _read(CGROUP / "cpu/cpu.cfs_period_us").strip()
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)


def memory_bytes() -> int:
    """Physical memory, cut by the control group's limit; 0 where it cannot be read."""
    total = 0
    with contextlib.suppress(AttributeError, ValueError, OSError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if total <= 0:
        with contextlib.suppress(Exception):
            import psutil

            total = int(psutil.virtual_memory().total)
    for path in (CGROUP / "memory.max", CGROUP / "memory/memory.limit_in_bytes"):
        text = _read(path).strip()
        if text.isdigit() and 0 < int(text) < 1 << 60:
            total = min(total, int(text)) if total else int(text)
    return total


def memory_used_bytes() -> int:
    """Memory in use on this machine; 0 where it cannot be read."""
    try:
        total, available = MEMINFO.read(b"MemTotal:", b"MemAvailable:")
    except (OSError, ValueError, AttributeError):  # another system
        return 0
    return (total - available) * 1024


def load_average() -> float:
    """Runnable processes over the last minute; 0.0 where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0


def disk_free_bytes(folder: Path) -> int:
    """Free bytes on the disk of the folder; 0 where it cannot be read."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


# ---------------------------------------------------------------- Pythons


def uv_program() -> str | None:
    """Path of uv: the one installed beside this interpreter, else one on the PATH."""
    name = "uv.exe" if sys.platform == "win32" else "uv"
    beside = Path(sys.executable).parent / name
    if os.access(beside, os.X_OK):
        return str(beside)
    with contextlib.suppress(ImportError, FileNotFoundError):
        from uv import find_uv_bin

        return str(find_uv_bin())
    return shutil.which(name)


async def find_pythons(
    candidates: Container[str] = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14"),
) -> dict[str, str]:
    """Interpreters of other minor versions on this machine, by version ('3.12' -> path). Takes a while, since they are
    run (a second of CPU time where each is a script of a version manager's) and give way to all other work; may be
    cancelled at any time, so that an agent's end need not wait for it."""
    program = uv_program()
    if program is None:
        return {}
    found: dict[str, str] = {}
    for python in await _uv_list(program):
        minor = ".".join(python.version.split(".")[:2])
        usable = minor in candidates and minor != own_python() and python.is_common
        if usable and minor not in found and python.path and os.access(python.path, os.X_OK):
            found[minor] = python.path
    return dict(sorted(found.items()))


class _ListedPython(msgspec.Struct):
    """What `uv python list` says of an interpreter, the newest first; fields of its JSON."""

    version: str
    path: str | None = None
    implementation: str = "cpython"
    variant: str = "default"

    @property
    def is_common(self) -> bool:
        """CPython with its lock: what packages have wheels for."""
        return (
            self.implementation == "cpython" and self.variant == "default" and self.version.replace(".", "").isdigit()
        )


async def _uv_list(program: str) -> list[_ListedPython]:
    command = [program, "python", "list", "--only-installed", "--no-python-downloads", "--output-format", "json"]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=os.path.abspath(os.sep),
            env={**os.environ, "PATH": _path_past_shims(os.environ.get("PATH", ""))},
        )
    except OSError:
        return []
    give_way(process.pid)
    try:
        async with asyncio.timeout(FIND_TIMEOUT_S):
            out, _ = await process.communicate()
        return msgspec.json.decode(out, type=list[_ListedPython])
    except (TimeoutError, msgspec.MsgspecError):
        return []
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def _path_past_shims(path: str) -> str:
    """Where pyenv has put its interpreters, in place of the scripts by which it starts them: those refuse whatever is
    not chosen at the moment."""
    root = Path(os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv"))  # stays as it is without a home
    folders = [folder for folder in path.split(os.pathsep) if Path(folder) != root / "shims"]
    return os.pathsep.join([*folders, *map(str, sorted(root.glob("versions/*/bin"), reverse=True))])
