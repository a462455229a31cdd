"""gVisor, for an agent that is root: a kernel of its own, in user space, between strangers' code and the machine's.

`runsc` hands a container nothing but standard input and output, in whatever version. Standard input is therefore a
socket: over it the launcher inside gets its plan, the program's descriptors, and signals. The program runs as a user
that nothing else is, under our own limits and filter of system calls, which gVisor's kernel enforces; gVisor itself is
in our control group. All of it ends with `runsc`, and that with the agent.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import secrets
import select
import shutil
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import NoReturn

import msgspec
import psutil

from fallow.model.errors import SandboxUnavailable
from fallow.model.lending import SandboxSettings
from fallow.model.tiers import Tier
from fallow.sandbox.bwrap_arguments import HOSTNAME, launcher_plan
from fallow.sandbox.cgroups import Group, Place, find_place
from fallow.sandbox.container_root import ContainerRoot, container_root
from fallow.sandbox.egress import PROXY_WORDS
from fallow.sandbox.gvisor_bundle import container, known_options, known_platforms, runsc_options
from fallow.sandbox.gvisor_jail import GvisorJail, end_tree, sentry
from fallow.sandbox.gvisor_way import WayOut
from fallow.sandbox.identity import Identity, choose_identity
from fallow.sandbox.launcher_code import packed_plan
from fallow.sandbox.protocol import LISTENER_PORT, Layer, Limits, Probe, Program
from fallow.sandbox.seccomp import filter_program
from fallow.sandbox.spawner import spawner
from fallow.sandbox.sweep import own_folder, owner_prefix
from fallow.sandbox.system import interpreter
from fallow.sandbox.tree import memory_device
from fallow.sandbox.watch import Watch
from fallow.sandbox.writable import hand_over, watched

START_WITHIN_S = 60.0
TRIAL_WITHIN_S = 10.0
"""Of one platform: those that do not work may hang."""
KERNEL_BYTES = 96 << 20
"""What gVisor itself may take beside what the program may."""
KERNEL_THREADS = 256
THREADS_PER_PROCESS = 64
"""Of the machine's, for one process inside: each thread of gVisor's kernel that has run it (by `ptrace`) keeps one for
that. Where they run out gVisor ends; how many processes there are inside it counts itself."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INSTALL = "Install gVisor's runsc (`sudo apt install runsc`, or from https://gvisor.dev), or choose bubblewrap."
_GATE = (
    "import ctypes,os,sys; ctypes.CDLL(None).prctl(1,9,0,0,0); "
    "os.getppid()==int(sys.argv[1]) and os.read(0,1) and os.execv(sys.argv[2],sys.argv[2:])"
)
"""Ends with the agent, and becomes runsc when the agent has put it into its control group."""
_UNKNOWN_LIMITS = ("msgqueue", "sigpending", "rtprio", "nice")
"""gVisor's kernel has no such limits: it has no such queues and priorities, or bounds them itself."""


class GvisorSandbox:
    name = "gvisor"
    tier = Tier.KERNEL

    def __init__(
        self, settings: SandboxSettings | None = None, runsc: str = "", without: frozenset[str] = frozenset()
    ) -> None:
        """`runsc`: the program; '': as found. `without` leaves layers out, so that tests can show what each is for:
        seccomp, cgroups, rlimits, network, bounds, watch."""
        self.without = without
        self.rootfs = settings.rootfs if settings is not None else ""
        self._runsc = runsc
        self._platform = ""
        self._known: frozenset[str] = frozenset()
        self._probe: Probe | None = None
        self._found: Place | None = None
        self._looked = False

    def without_also(self, layers: frozenset[str]) -> GvisorSandbox:
        """The same, as it was probed, with these left out."""
        made = copy.copy(self)
        made.without, made._looked = self.without | layers, False
        return made

    def probe(self) -> Probe:
        if self._probe is None:
            self._probe = self._try()
        return self._probe

    @property
    def platform(self) -> str:
        """How system calls are caught, as the probe found it."""
        return self._platform

    def place(self) -> Place | None:
        """Where control groups are made; None: rlimits alone are in force."""
        if not self._looked:
            self._found = None if "cgroups" in self.without else find_place()
            self._looked = True
        return self._found

    def _try(self) -> Probe:
        from fallow.sandbox.bwrap_probe import probe_layers

        try:
            offered = self._look()
        except SandboxUnavailable as error:
            return _failed(self.name, error)
        first: SandboxUnavailable | None = None
        for platform in offered:
            self._platform = platform
            try:
                layers = probe_layers(_Trial(self), self.place(), own_kernel=True)
            except SandboxUnavailable as error:
                first = first or error
                continue
            return self._judge(layers)
        self._platform = ""
        return _failed(self.name, first or SandboxUnavailable("runsc names no platform that is known here.", _INSTALL))

    def _judge(self, layers: tuple[Layer, ...]) -> Probe:
        egress = Layer("egress", True, PROXY_WORDS)
        missing = [layer.name for layer in layers if not layer.works and layer.name != "limits"]
        if missing:
            self._platform = ""
            words = f"gVisor runs, but these do not hold: {', '.join(missing)}"
            remedy = "Update runsc, or choose bubblewrap."
            return Probe(self.name, Tier.PROCESS, False, (*layers, egress), words, remedy, devices=False)
        return Probe(
            self.name,
            self.tier,
            True,
            (*layers, egress),
            f"gVisor keeps programs apart, with a kernel of their own ({self._platform})",
            proxy=True,
            devices=False,
        )

    def _look(self) -> tuple[str, ...]:
        """What this runsc can do: its platforms, in the order of trial. Raises SandboxUnavailable."""
        if os.geteuid() != 0:
            raise SandboxUnavailable("gVisor is used by an agent that is root.", "As a plain user, choose bubblewrap.")
        self._runsc = self._runsc or shutil.which("runsc", path=_PATH) or ""
        if not self._runsc:
            raise SandboxUnavailable("runsc not found.", _INSTALL)
        try:
            # (Old versions list their options on standard error.)
            said = subprocess.run(
                [self._runsc, "flags"], capture_output=True, text=True, timeout=TRIAL_WITHIN_S, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SandboxUnavailable(f"{self._runsc} cannot be run: {error}.", _INSTALL) from None
        words = said.stdout + said.stderr
        self._known = known_options(words)
        return known_platforms(words)

    def start(self, program: Program, within_s: float = START_WITHIN_S) -> GvisorJail:
        if program.network:
            # Its kernel would have to run outside its own walls for that: as root, in the machine's user namespace.
            raise SandboxUnavailable("gVisor gives no network of its own here.", "Choose bubblewrap for it.")
        if program.devices:
            raise SandboxUnavailable("gVisor gives no devices here.", "For jobs that need a GPU choose bubblewrap.")
        if not self._platform and not (probe := self.probe()).works:
            raise SandboxUnavailable(probe.words, probe.remedy)
        identity = choose_identity()
        try:
            root = container_root(program, HOSTNAME, self.rootfs)
        except OSError as error:
            raise SandboxUnavailable(f"No root for a container can be made: {error}.") from None
        return _Start(self, program, identity, root, within_s).run()

    def command(self, folder: str, name: str) -> list[str]:
        """What runs the container that is described in the folder."""
        network = "host" if "network" in self.without else "none"
        options = runsc_options(self._known, self._platform, f"{folder}/state", network)
        return [self._runsc, *options, "run", "--bundle", folder, name]


class _Trial:
    """Starts that are not waited for longer than a trial may take."""

    def __init__(self, sandbox: GvisorSandbox) -> None:
        self._sandbox = sandbox

    def start(self, program: Program) -> GvisorJail:
        return self._sandbox.start(program, TRIAL_WITHIN_S)


def _failed(name: str, error: SandboxUnavailable) -> Probe:
    wall = Layer("kernel", False, error.message, error.remedy)
    return Probe(name, Tier.PROCESS, False, (wall,), error.message, error.remedy)


class _Start:
    """One start, with everything that must be undone if it fails."""

    def __init__(
        self,
        sandbox: GvisorSandbox,
        program: Program,
        identity: Identity,
        root: ContainerRoot,
        within_s: float,
    ) -> None:
        self._sandbox = sandbox
        self._program = program
        self._identity = identity
        self._root = root
        self._until_s = time.monotonic() + within_s
        self._name = f"{owner_prefix()}{secrets.token_hex(6)}"
        self._folder = ""
        self._group: Group | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._open: set[int] = set()
        self._control: socket.socket | None = None
        self._way: WayOut | None = None

    def run(self) -> GvisorJail:
        try:
            return self._run()
        except BaseException:
            if self._process is not None:
                end_tree(self._process)
            if self._control is not None:
                self._control.close()
            if self._group is not None:
                self._group.remove()
            self._undo()
            raise
        finally:
            for descriptor in self._open:
                os.close(descriptor)

    def _run(self) -> GvisorJail:
        program, limits = self._program, self._program.limits
        sandbox = self._sandbox
        place = sandbox.place()
        if place is not None:
            try:
                self._group = Group(place, self._name, with_kernel(limits))
            except OSError as error:
                raise SandboxUnavailable(f"No control group can be made: {error}.") from None
        memory_bounded = self._group is not None and "memory" in self._group.bounds
        hand_over(program, self._identity)
        self._folder = own_folder("gvisor-")
        (Path(self._folder) / "state").mkdir()
        described = container(self._root, sandbox.rootfs or self._root.folder, self._identity, sandbox.without)
        (Path(self._folder) / "config.json").write_text(json.dumps(described))
        log, log_write = os.pipe()
        self._open |= {log, log_write}
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = self._spawn(theirs.fileno(), log_write)
        os.close(log_write)
        self._open.discard(log_write)
        self._put_in_place(self._process.pid)
        self._send(b"+", ())
        carried: tuple[int, ...] = ()
        if program.listener >= 0:
            self._way = WayOut(self._folder, program.listener)
            carried = (self._way.inner.fileno(),)
        self._send(_packed(self._plan(memory_bounded)), (*program.descriptors, *carried))
        if self._way is not None:
            self._way.inner.close()
        self._await_launch(log)
        self._control.setblocking(False)
        jail = GvisorJail(self._process, sentry(self._process.pid), self._group, self._undo, self._control)
        self._open.discard(log)
        is_watched = "watch" not in sandbox.without
        looked_at = watched(program, memory_bounded)
        jail.watch = Watch(
            self._process.pid,
            looked_at.folders,
            looked_at.disk_bytes if is_watched else 0,
            limits.memory_bytes + KERNEL_BYTES if is_watched and limits.memory_bytes and not memory_bounded else 0,
            (),
            log,
            program.log,
            jail.kill,
            looked_at.bounded | {memory_device()},
        )
        return jail

    def _plan(self, memory_bounded: bool) -> dict[str, object]:
        without = self._sandbox.without
        plan = launcher_plan(self._program, self._root.view, memory_bounded, without | {"landlock"})
        rlimits = plan["limits"]
        assert isinstance(rlimits, dict)
        plan["limits"] = {name: value for name, value in rlimits.items() if name not in _UNKNOWN_LIMITS}
        plan["cwd"] = self._program.cwd
        plan["listener"] = None
        plan["carried"] = LISTENER_PORT if self._program.listener >= 0 else 0
        if "seccomp" not in without:
            plan["seccomp"] = filter_program(shared_memory=memory_bounded)
        return plan

    def _spawn(self, control: int, log: int) -> subprocess.Popen[bytes]:
        command = self._sandbox.command(self._folder, self._name)
        try:
            return spawner().popen(
                [interpreter(), "-I", "-S", "-c", _GATE, str(os.getpid()), *command],
                env={"PATH": _PATH, "HOME": "/root"},
                cwd="/",
                stdin=control,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxUnavailable(f"gVisor cannot be run: {error}.", _INSTALL) from None

    def _put_in_place(self, pid: int) -> None:
        """Before it becomes runsc: its control group and priority are those of all that it starts."""
        limits = self._program.limits
        with contextlib.suppress(ProcessLookupError):
            if self._group is not None:
                self._group.add(pid)
        with contextlib.suppress(psutil.Error, OSError):
            if limits.nice:
                os.setpriority(os.PRIO_PROCESS, pid, limits.nice)
            if limits.idle_io:
                psutil.Process(pid).ionice(psutil.IOPRIO_CLASS_IDLE)

    def _send(self, data: bytes, descriptors: tuple[int, ...]) -> None:
        assert self._control is not None
        self._control.settimeout(max(0.1, self._until_s - time.monotonic()))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
            # (Whatever is wrong is told by what does not come back.)
            sent = socket.send_fds(self._control, [data], descriptors)
            self._control.sendall(data[sent:])

    def _await_launch(self, log: int) -> None:
        assert self._process is not None
        assert self._control is not None
        data = b""
        while b"\n" not in data:
            left = self._until_s - time.monotonic()
            if left <= 0:
                self._refuse("gVisor did not start the program in time", log)
            if select.select([self._control], [], [], min(left, 0.25))[0]:
                piece = b""
                with contextlib.suppress(ConnectionResetError):
                    piece = self._control.recv(4096)
                if not piece:
                    self._refuse("gVisor could not start the program", log)
                data += piece
            elif self._process.poll() is not None:
                self._refuse("gVisor could not start the program", log)
        words = data.partition(b"\n")[0].decode(errors="replace")
        if words != "+":
            raise SandboxUnavailable(f"The sandbox could not start {self._program.argv[0]}: {words}.")

    def _refuse(self, what: str, log: int) -> NoReturn:
        said = ""
        if select.select([log], [], [], 1.0)[0]:
            said = os.read(log, 1 << 16).decode(errors="replace").strip()[-600:]
        raise SandboxUnavailable(f"{what}: {said or 'it said nothing'}.", "Update runsc, or choose bubblewrap.")

    def _undo(self) -> None:
        if self._way is not None:
            self._way.close()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._root.remove()


def _packed(plan: dict[str, object]) -> bytes:
    data = packed_plan(plan)
    return struct.pack("<Q", len(data)) + data


def with_kernel(limits: Limits) -> Limits:
    """Of the control group, which holds gVisor's kernel too; the program's own are kept by that kernel."""
    return msgspec.structs.replace(
        limits,
        memory_bytes=limits.memory_bytes and limits.memory_bytes + KERNEL_BYTES,
        processes=limits.processes and THREADS_PER_PROCESS * limits.processes + KERNEL_THREADS,
    )
