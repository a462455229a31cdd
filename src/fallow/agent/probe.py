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
from collections.abc import Iterable
from pathlib import Path

from fallow.agent.devices.found import gpu_devices
from fallow.agent.memory import MEMINFO
from fallow.model.ids import NodeId
from fallow.model.node import NodeSpec

CGROUP = Path("/sys/fs/cgroup")
PYTHONS_LIMIT = 16
FIND_TIMEOUT_S = 20.0


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
    candidates: Iterable[str] = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14"),
) -> dict[str, str]:
    """Interpreters of other minor versions on this machine, by version ('3.12' -> path). Takes a while, since they are
    run (seconds of CPU time where each is a script of a version manager's), behind all other work; may be cancelled at
    any time, so that an agent's end need not wait for it."""
    found: dict[str, str] = {}
    program = uv_program()
    for version in candidates:
        if version == own_python() or len(found) >= PYTHONS_LIMIT:
            continue
        path = await _uv_find(program, version) if program else shutil.which(f"python{version}")
        if path:
            found[version] = path
    return found


async def _uv_find(program: str, version: str) -> str | None:
    command = [program, "python", "find", "--no-python-downloads", "--no-project", "--system", version]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=os.path.abspath(os.sep),
        )
    except OSError:
        return None
    with contextlib.suppress(OSError, AttributeError):  # Windows has no such call
        os.setpriority(os.PRIO_PROCESS, process.pid, 19)
    try:
        async with asyncio.timeout(FIND_TIMEOUT_S):
            out, _ = await process.communicate()
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    path = out.decode(errors="replace").strip()
    return path if process.returncode == 0 and path and os.access(path, os.X_OK) else None
