"""Tries the bubblewrap sandbox on this machine, wall by wall, from inside."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fallow.model.errors import SandboxUnavailable
from fallow.model.tiers import Tier
from fallow.sandbox.bounded_folder import LEAST_BYTES, BoundedFolder, NoBoundedFolder
from fallow.sandbox.cgroups import Place
from fallow.sandbox.egress import egress_layer
from fallow.sandbox.protocol import Layer, Limits, Mount, Probe, Program, Running
from fallow.sandbox.system import interpreter

if TYPE_CHECKING:
    from fallow.sandbox.bubblewrap import BubblewrapSandbox

PROBE_WITHIN_S = 20.0

_INSIDE = """
import ctypes, json, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
status = dict(line.split(':', 1) for line in open('/proc/self/status').read().splitlines() if ':' in line)
def denied(action):
    try:
        action()
    except OSError:
        return True
    return False
interfaces = [line.split(':')[0].strip() for line in open('/proc/net/dev').read().splitlines()[2:]]
json.dump({
    'user': os.getuid() != 0 and int(status['CapEff'], 16) == 0 and int(status['CapBnd'], 16) == 0,
    'namespaces': os.getpid() < 10 and denied(lambda: open('/root-canary', 'w')),
    'seccomp': status['Seccomp'].strip() == '2' and libc.unshare(0x10000000) != 0
        and denied(lambda: socket.socket(16, socket.SOCK_RAW, 0)),
    'landlock': denied(lambda: os.listdir('/run')),
    'network': interfaces in (['lo'], []),
    'kernel': [os.uname().release, os.uname().version] != sys.argv[2:],
}, open(sys.argv[1], 'w'))
"""


def probe_bubblewrap(sandbox: BubblewrapSandbox, place: Place | None) -> Probe:
    """Layers that must work: user, namespaces, seccomp, network. Landlock and control groups may be missing, and are
    then reported: what stands in for them is in force."""
    try:
        layers = (*probe_layers(sandbox, place), egress := egress_layer())
    except SandboxUnavailable as error:
        return Probe(
            backend=sandbox.name,
            tier=Tier.PROCESS,
            works=False,
            layers=(Layer("namespaces", False, error.message, error.remedy),),
            words=error.message,
            remedy=error.remedy,
        )
    missing = [layer.name for layer in layers[:3] if not layer.works] + ([] if layers[4].works else ["network"])
    works = not missing
    return Probe(
        backend=sandbox.name,
        tier=Tier.ISOLATED if works else Tier.PROCESS,
        works=works,
        layers=layers,
        words="bubblewrap keeps programs apart"
        if works
        else f"bubblewrap runs, but these do not hold: {', '.join(missing)}",
        remedy="" if works else "Update the kernel and bubblewrap, or choose podman or gvisor.",
        network=works and egress.works,
        proxy=works,
    )


class Started(Running, Protocol):
    """A Jail's."""

    @property
    def bounds(self) -> tuple[str, ...]: ...


class Starter(Protocol):
    def start(self, program: Program) -> Started: ...


def probe_layers(sandbox: Starter, place: Place | None, own_kernel: bool = False) -> tuple[Layer, ...]:
    """A trial program's walls, as it found them from inside: user, namespaces, seccomp, landlock, network, limits,
    disk. `own_kernel`: that it is not the machine's is looked at in place of Landlock. Raises SandboxUnavailable where
    it cannot be run."""
    folder = Path(tempfile.mkdtemp(prefix="fallow-probe-"))
    try:
        answer, bounds = _run_inside(sandbox, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return (
        _layer(answer, "user", "no capability, and not root", "Report this machine: a capability was left."),
        _layer(answer, "namespaces", "own processes, files, names and users", ""),
        _layer(answer, "seccomp", "system calls that reach the kernel's depths are refused", ""),
        _layer(answer, "kernel", "system calls are answered by a kernel that is not the machine's", "")
        if own_kernel
        else _layer(
            answer,
            "landlock",
            "files that are not shown stay closed even if a mount were wrong",
            "Linux 5.13 or later with `landlock` in the kernel's list of security modules has it.",
        ),
        _layer(answer, "network", "no network, not even the host's loopback", ""),
        _control_groups(bounds, place),
        _disk(folder.parent),
    )


def _run_inside(sandbox: Starter, folder: Path) -> tuple[dict[str, bool], tuple[str, ...]]:
    log = folder / "log"
    about = os.uname()
    scratch = folder / "scratch"
    scratch.mkdir()
    report = scratch / "report"
    running = sandbox.start(
        Program(
            argv=(interpreter(), "-I", "-S", "-c", _INSIDE, str(report), about.release, about.version),
            environment={},
            cwd=str(scratch),
            mounts=(Mount(str(scratch), writable=True),),
            limits=Limits(memory_bytes=512 << 20, processes=64, cpu_share=0.9),
            log=str(log),
        )
    )
    try:
        bounds = running.bounds
        try:
            status = running.wait(PROBE_WITHIN_S)
        except subprocess.TimeoutExpired:
            raise SandboxUnavailable(f"A trial program did not end within {PROBE_WITHIN_S:g} s.") from None
    finally:
        running.close()
    try:
        return dict(json.loads(report.read_bytes()[: 1 << 16])), bounds
    except (OSError, ValueError):
        said = log.read_text(errors="replace")[-500:] if log.exists() else ""
        raise SandboxUnavailable(f"A trial program failed in the sandbox (status {status}). {said}") from None


def _layer(answer: dict[str, bool], name: str, words: str, remedy: str) -> Layer:
    works = answer.get(name) is True
    return Layer(name, works, words if works else f"not in force: {words}", "" if works else remedy)


def _disk(parent: Path) -> Layer:
    """Whether the folder of results is bounded or watched: tried."""
    words = "/tmp and /dev/shm are bounded by size; one file by a limit of the kernel; the folder of results "
    try:
        BoundedFolder(parent, LEAST_BYTES).close()
    except NoBoundedFolder as error:
        watched = "is watched, and what exceeds its limit is ended within a fraction of a second"
        return Layer("disk", True, f"{words}{watched} (no file system of its own: {error})")
    return Layer("disk", True, f"{words}is a file system of its own, which ends where it may")


def _control_groups(bounds: tuple[str, ...], place: Place | None) -> Layer:
    if place is None or "memory" not in bounds:
        return Layer(
            "limits",
            False,
            "no control group bounds memory: rlimits do for each process, and what all hold together is measured",
            "Start the agent with `fallow service install` (its unit has Delegate=yes), or as root.",
        )
    return Layer("limits", True, f"control groups version {place.version}: {', '.join(sorted(bounds))}; and rlimits")
