"""Podman with runc, for an agent that is root: a container of an image that is here, a root folder, or the host's /usr.

The program runs as a user that nothing else is, with the launcher as process 1: it sets our own limits, Landlock and
filter of system calls beneath podman's, and ends all when the agent is gone. Control groups are ours, as with
bubblewrap: the launcher waits for its plan until it is in them.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import os
import resource
import secrets
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from fallow.model.errors import SandboxUnavailable
from fallow.model.lending import SandboxSettings
from fallow.model.tiers import Tier
from fallow.sandbox.bwrap_arguments import HOSTNAME, OPEN_FILES, TMP_BYTES, launcher_plan
from fallow.sandbox.cgroups import Group, Place, find_place
from fallow.sandbox.container_root import Bind, ContainerRoot, container_root, hidden_of_sys
from fallow.sandbox.egress import NAME_SERVERS, Egress, egress_layer
from fallow.sandbox.identity import Identity, choose_identity
from fallow.sandbox.jail import ORDER, Jail
from fallow.sandbox.launcher_code import packed_plan
from fallow.sandbox.protocol import Layer, Probe, Program
from fallow.sandbox.seccomp import filter_program
from fallow.sandbox.spawner import spawner
from fallow.sandbox.sweep import owner_prefix
from fallow.sandbox.system import LAUNCHER_FOLDER, interpreter
from fallow.sandbox.tree import children
from fallow.sandbox.watch import Watch
from fallow.sandbox.writable import hand_over, watched

START_WITHIN_S = 60.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INSTALL = "Install podman and runc (`sudo apt install podman runc`), or choose bubblewrap."
_ARRANGE = (
    "import os,sys; n=int(sys.argv[1]); f=[int(x) for x in sys.argv[2:2+n]]\n"
    "for i,x in enumerate(f): os.dup2(x,3+i)\n"
    "os.closerange(3+n,1+max([3+n,*f])); os.execv(sys.argv[2+n],sys.argv[2+n:])"
)
"""Podman passes descriptors from 3 on. Those given lie above all that these could overwrite."""
_ABOVE = 64


class PodmanSandbox:
    name = "podman"
    tier = Tier.ISOLATED

    def __init__(self, settings: SandboxSettings | None = None, without: frozenset[str] = frozenset()) -> None:
        """`without` leaves layers out, so that tests can show what each is for: seccomp, landlock, cgroups, rlimits,
        network, bounds, watch."""
        self._without = without
        self._settings = settings or SandboxSettings(backend="podman")
        self._probe: Probe | None = None
        self._place: Place | None = None
        self._looked = False

    def probe(self) -> Probe:
        if self._probe is None:
            self._probe = self._try()
        return self._probe

    def _try(self) -> Probe:
        from fallow.sandbox.bwrap_probe import probe_layers

        try:
            layers = probe_layers(self, self.place())
        except SandboxUnavailable as error:
            wall = Layer("container", False, error.message, error.remedy)
            return Probe(self.name, Tier.PROCESS, False, (wall,), error.message, error.remedy)
        egress = egress_layer()
        missing = [layer.name for layer in layers if not layer.works and layer.name not in ("landlock", "limits")]
        if missing:
            words = f"podman runs, but these do not hold: {', '.join(missing)}"
            return Probe(self.name, Tier.PROCESS, False, (*layers, egress), words, "Choose bubblewrap.")
        words = "podman keeps programs apart"
        return Probe(self.name, self.tier, True, (*layers, egress), words, network=egress.works, proxy=True)

    def place(self) -> Place | None:
        if not self._looked:
            self._place = None if "cgroups" in self._without else find_place()
            self._looked = True
        return self._place

    def start(self, program: Program) -> PodmanJail:
        if os.geteuid() != 0:
            raise SandboxUnavailable("podman is used by an agent that is root.", "As a plain user, choose bubblewrap.")
        tools = {name: shutil.which(name, path=_PATH) for name in ("podman", "runc")}
        if missing := [name for name, path in tools.items() if not path]:
            raise SandboxUnavailable(f"{' and '.join(missing)} not found.", _INSTALL)
        identity = choose_identity()
        try:
            root = container_root(program, HOSTNAME, self._settings.rootfs or self._settings.image)
        except OSError as error:
            raise SandboxUnavailable(f"No root for a container can be made: {error}.") from None
        start = _Start(str(tools["podman"]), self._settings, program, identity, root, self.place(), self._without)
        return start.run()


class _Start:
    def __init__(
        self,
        podman: str,
        settings: SandboxSettings,
        program: Program,
        identity: Identity,
        root: ContainerRoot,
        place: Place | None,
        without: frozenset[str],
    ) -> None:
        self._without = without
        self._podman = podman
        self._settings = settings
        self._program = program
        self._identity = identity
        self._root = root
        self._place = place
        self._name = f"{owner_prefix()}{secrets.token_hex(6)}"
        self._group: Group | None = None
        self._egress: Egress | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._open: set[int] = set()
        self._life = -1
        self._folder = ""

    def run(self) -> PodmanJail:
        try:
            return self._run()
        except BaseException:
            self._end()
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                subprocess.run([self._podman, "rm", "-f", "-t", "0", self._name], capture_output=True, timeout=60)
            if self._group is not None:
                self._group.remove()
            self._root.remove()
            raise
        finally:
            for descriptor in self._open:
                os.close(descriptor)

    def _run(self) -> PodmanJail:
        program = self._program
        if self._place is not None:
            try:
                self._group = Group(self._place, self._name, program.limits)
            except OSError as error:
                raise SandboxUnavailable(f"No control group can be made: {error}.") from None
        if program.network:
            # Another user than the program's: its rules are that user's to change.
            self._egress = Egress(choose_identity(), "egress" not in self._without)
        hand_over(program, self._identity)
        status, status_write = self._pipe()
        plan_read, plan = self._pipe()
        life, self._life = self._pipe()
        self._open.discard(self._life)
        log, log_write = self._pipe()
        wanted = [*program.descriptors, *((program.listener,) if program.listener >= 0 else ())]
        given = [status_write, plan_read, life, *wanted]
        self._folder = tempfile.mkdtemp(prefix=f"{owner_prefix()}podman-")
        pid_file = Path(self._folder) / "pid"
        self._spawn(
            given,
            podman_arguments(
                program,
                self._root,
                self._settings,
                self._identity,
                self._name,
                str(pid_file),
                len(given),
                self._egress.namespace if self._egress is not None else "",
                self._without,
            ),
            log_write,
        )
        for descriptor in (status_write, plan_read, life, log_write):
            os.close(descriptor)
            self._open.discard(descriptor)
        init_pid = self._await_pid(pid_file, log)
        memory_bounded = self._group is not None and "memory" in self._group.bounds
        with contextlib.suppress(ProcessLookupError):
            if self._group is not None:
                self._group.add(init_pid)
            if program.limits.nice:
                os.setpriority(os.PRIO_PROCESS, init_pid, program.limits.nice)
        made = launcher_plan(program, self._root.view, memory_bounded, self._without)
        made["cwd"] = program.cwd
        made["renumber"] = [[6 + index, number] for index, number in enumerate(wanted)]
        if "seccomp" not in self._without:
            made["seccomp"] = filter_program(shared_memory=memory_bounded)
        with contextlib.suppress(BrokenPipeError), os.fdopen(os.dup(plan), "wb") as file:
            file.write(packed_plan(made))
        os.close(plan)
        self._open.discard(plan)
        self._await_launch(status, log)
        assert self._process is not None
        os.set_blocking(self._life, False)
        jail = PodmanJail(self._process, init_pid, self._group, self._undo, self._life)
        self._open.discard(log)
        limits = program.limits
        is_watched = "watch" not in self._without
        looked_at = watched(program, memory_bounded)
        jail.watch = Watch(
            init_pid,
            looked_at.folders,
            looked_at.disk_bytes if is_watched else 0,
            limits.memory_bytes if is_watched and not memory_bounded else 0,
            ("/tmp", "/dev/shm") if is_watched else (),
            log,
            program.log,
            jail.kill,
            looked_at.bounded,
            kernel=is_watched,
            by_user=not memory_bounded,
        )
        return jail

    def _undo(self) -> None:
        self._end()
        self._root.remove()

    def _end(self) -> None:
        if self._egress is not None:
            self._egress.close()
        if self._life >= 0:
            os.close(self._life)
            self._life = -1
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _pipe(self) -> tuple[int, int]:
        reading, writing = os.pipe()
        self._open |= {reading, writing}
        return reading, writing

    def _spawn(self, given: list[int], command: list[str], log: int) -> None:
        high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE + len(given)) for descriptor in given]
        try:
            numbers = [str(len(high)), *map(str, high)]
            self._process = spawner().popen(
                [interpreter(), "-I", "-S", "-c", _ARRANGE, *numbers, self._podman, *command],
                env={"PATH": _PATH, "HOME": "/root"},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=high,
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxUnavailable(f"podman cannot be run: {error}.", _INSTALL) from None
        finally:
            for descriptor in high:
                os.close(descriptor)

    def _await_pid(self, pid_file: Path, log: int) -> int:
        assert self._process is not None
        deadline = time.monotonic() + START_WITHIN_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                return int(pid_file.read_text())
            if self._process.poll() is not None:
                self._refuse("podman could not make a container", log)
            time.sleep(0.005)
        raise SandboxUnavailable(f"podman made no container within {START_WITHIN_S:g} s.")

    def _await_launch(self, status: int, log: int) -> None:
        assert self._process is not None
        data = b""
        deadline = time.monotonic() + START_WITHIN_S
        while b"\n" not in data:
            if time.monotonic() > deadline or (self._process.poll() is not None and not _ready(status, 0.0)):
                self._refuse("podman could not start the program", log)
            if _ready(status, 0.05):
                chunk = os.read(status, 4096)
                if not chunk:
                    self._refuse("podman could not start the program", log)
                data += chunk
        words = data.partition(b"\n")[0].decode(errors="replace")
        if words != "+":
            raise SandboxUnavailable(f"The sandbox could not start {self._program.argv[0]}: {words}.")

    def _refuse(self, what: str, log: int) -> NoReturn:
        said = os.read(log, 1 << 16).decode(errors="replace").strip()[-600:] if _ready(log, 1.0) else ""
        raise SandboxUnavailable(f"{what}: {said or 'it said nothing'}.", "Choose bubblewrap, or mend podman.")


class PodmanJail(Jail):
    """`init_pid` is the launcher, whose child the program is."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        init_pid: int,
        group: Group | None,
        undo: Callable[[], None],
        life: int,
    ) -> None:
        """`life`: the pipe to the launcher, without blocking; `undo` closes it."""
        # (No child any more: it has ended already, and its first process is about to.)
        super().__init__(process, init_pid, next(iter(children(init_pid)), init_pid), group, undo)
        self._life = life

    def signal(self, number: int) -> None:
        """Through the launcher: it knows its child whatever becomes of numbers, and whenever it is asked."""
        if self._undo is not None:
            with contextlib.suppress(OSError):
                os.write(self._life, ORDER.pack(number, 0))


def _ready(descriptor: int, within_s: float) -> bool:
    return bool(select.select([descriptor], [], [], within_s)[0])


def podman_arguments(
    program: Program,
    root: ContainerRoot,
    settings: SandboxSettings,
    identity: Identity,
    name: str,
    pid_file: str,
    descriptors: int,
    namespace: str = "",
    without: frozenset[str] = frozenset(),
) -> list[str]:
    """What follows `podman`. `namespace`: the network's; '': none. Descriptors from 3 on: status, plan, life, and the
    program's."""
    arguments = ["--cgroup-manager=cgroupfs", "--runtime=runc", "run", "--rm", "--name", name, "--pidfile", pid_file]
    arguments += ["--preserve-fds", str(descriptors), "--cgroups=no-conmon", "--cgroupns", "private"]
    if namespace:
        arguments += ["--network", f"ns:{namespace}", *(f"--dns={address}" for address in NAME_SERVERS)]
    else:
        arguments += ["--network", "none" if "network" not in without else "host"]
    arguments += ["--ipc", "private", "--pid", "private", "--uts", "private"]
    arguments += ["--hostname", HOSTNAME, "--no-hosts", "--passwd=false", "--log-driver", "passthrough", "--pull=never"]
    if "bounds" not in without:
        arguments += ["--read-only", "--read-only-tmpfs=false"]
    arguments += ["--cap-drop", "all", "--systemd=false", "--http-proxy=false"]
    arguments += ["--security-opt", "no-new-privileges", "--security-opt", "mask=" + ":".join(hidden_of_sys())]
    if "seccomp" in without:
        arguments += ["--security-opt", "seccomp=unconfined"]
    arguments += ["--user", f"{identity.user}:{identity.group}", "--workdir", "/", "--entrypoint", ""]
    for limit, kind, most in (
        ("nofile", resource.RLIMIT_NOFILE, OPEN_FILES),
        ("nproc", resource.RLIMIT_NPROC, OPEN_FILES),
    ):
        # (Podman itself asks for more than an agent may have whose own bounds are low.)
        hard = resource.getrlimit(kind)[1]
        most = most if "rlimits" not in without else 8 * most
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        arguments += ["--ulimit", f"{limit}={bound}:{bound}"]
    tmp_bytes = root.tmp_bytes if "bounds" not in without else 16 * TMP_BYTES
    arguments += ["--tmpfs", f"/tmp:rw,nosuid,nodev,size={tmp_bytes},mode=1777"]
    arguments += ["--shm-size", f"{root.shm_bytes}b"]
    for bind in root.binds:
        arguments += ["--mount", _mount(bind)]
    for device in program.devices:
        arguments += ["--device", device]
    arguments += [settings.image] if settings.image else ["--rootfs", settings.rootfs or root.folder]
    return [*arguments, interpreter(), "-I", "-S", f"{LAUNCHER_FOLDER}/launcher.py", "3", "4", "5"]


def _mount(bind: Bind) -> str:
    text = io.StringIO()
    # Private: nothing that the machine mounts later comes in.
    fields = ["type=bind", f"src={bind.source}", f"dst={bind.target}", "bind-propagation=private"]
    csv.writer(text, lineterminator="").writerow([*fields, "ro=false" if bind.writable else "ro=true"])
    return text.getvalue()
