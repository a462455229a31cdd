"""Bubblewrap, seccomp, Landlock, and control groups or rlimits: the default for strangers' code.

The order of a start: bwrap begins in its control group, or waits until it is in it; it makes namespaces and mounts; the
launcher inside sets limits, closes descriptors, applies Landlock and becomes the program. bwrap never runs as root, and
nothing of the agent's environment or descriptors is passed on.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import subprocess
import time
from typing import Any, NoReturn

import psutil

from fallow.model.errors import SandboxUnavailable
from fallow.model.tiers import Tier
from fallow.sandbox.bwrap_arguments import Descriptors, bound_paths, bwrap_arguments, launcher_command, launcher_plan
from fallow.sandbox.bwrap_binary import find_bwrap
from fallow.sandbox.cgroups import Group, Place, find_place
from fallow.sandbox.egress import NAME_SERVERS, Egress
from fallow.sandbox.identity import Identity, choose_identity, own_identity
from fallow.sandbox.jail import Jail
from fallow.sandbox.launcher_code import packed_launcher
from fallow.sandbox.protocol import Probe, Program
from fallow.sandbox.remedies import remedy_for
from fallow.sandbox.seccomp import filter_program
from fallow.sandbox.spawner import spawner
from fallow.sandbox.sweep import owner_prefix
from fallow.sandbox.system import system_view
from fallow.sandbox.tree import children
from fallow.sandbox.watch import Watch
from fallow.sandbox.writable import hand_over, watched

START_WITHIN_S = 30.0


class BubblewrapSandbox:
    """`without` leaves layers out, so that tests can show what each is for: seccomp, landlock, cgroups, rlimits,
    network, egress, userns, bounds, watch, processes, mounts, descriptors, identity (of an agent that is root),
    capabilities."""

    name = "bubblewrap"
    tier = Tier.ISOLATED

    def __init__(self, without: frozenset[str] = frozenset()) -> None:
        self._without = without
        self._place: Place | None = None
        self._looked = False
        self._probe: Probe | None = None

    def probe(self) -> Probe:
        if self._probe is None:
            from fallow.sandbox.bwrap_probe import probe_bubblewrap

            self._probe = probe_bubblewrap(self, self.place())
        return self._probe

    def place(self) -> Place | None:
        """Where control groups are made; None: rlimits alone are in force."""
        if not self._looked:
            self._place = None if "cgroups" in self._without else find_place()
            self._looked = True
        return self._place

    def start(self, program: Program) -> Jail:
        identity = choose_identity() if "identity" not in self._without else own_identity()
        bwrap = find_bwrap(identity.changed)
        return _Start(bwrap, identity, program, self.place(), self._without).run()


class _Start:
    """One start, with everything that must be undone if it fails."""

    def __init__(
        self, bwrap: str, identity: Identity, program: Program, place: Place | None, without: frozenset[str]
    ) -> None:
        self._bwrap = bwrap
        self._identity = identity
        self._program = program
        self._place = place
        self._without = without
        self._passed: list[int] = []
        """Descriptors that only bwrap needs; ours are closed when it has started."""
        self._kept: list[int] = []
        self._group: Group | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._staged: dict[str, str] = {}
        self._egress: Egress | None = None

    def run(self) -> Jail:
        try:
            return self._run()
        except BaseException:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
            if self._group is not None:
                self._group.remove()
            if self._egress is not None:
                self._egress.close()
            for descriptor in self._kept:
                os.close(descriptor)
            raise
        finally:
            spawner().unstage(self._staged)
            for descriptor in self._passed:
                os.close(descriptor)
            self._passed.clear()

    def _run(self) -> Jail:
        program = self._program
        if self._place is not None:
            try:
                # bwrap itself is in it too: beside what runs inside it waits on the host.
                beside = 1 if self._place.version == 1 else 0
                self._group = Group(self._place, f"{owner_prefix()}{secrets.token_hex(6)}", program.limits, beside)
            except OSError as error:
                raise SandboxUnavailable(
                    f"No control group can be made: {error}.", "Let the agent's user own its cgroup (Delegate=yes)."
                ) from None
        memory_bounded = self._group is not None and "memory" in self._group.bounds
        if self._identity.changed:
            hand_over(program, self._identity)
        if program.network:
            self._egress = Egress(self._identity, "egress" not in self._without)
        view = system_view(NAME_SERVERS if program.network else ())
        if self._identity.changed:
            self._staged = spawner().stage(bound_paths(program, view))
        info_read, info = self._pipe()
        block, block_write = os.pipe()
        self._passed.append(block)
        self._kept.append(block_write)
        status_read, status = self._pipe()
        log_read, log = self._pipe()
        plan = launcher_plan(program, view, memory_bounded, self._without, not self._identity.changed)
        plan_file = self._memory_file(packed_launcher(plan))
        seccomp = -1
        if "seccomp" not in self._without:
            seccomp = self._memory_file(
                filter_program(shared_memory=memory_bounded, owners_user=not self._identity.changed)
            )
        arguments = bwrap_arguments(
            program,
            view,
            Descriptors(info, block, seccomp),
            lambda path: self._staged.get(path, path),
            lambda content: self._memory_file(content.encode()),
            self._without,
        )
        packed = self._memory_file(b"\0".join(os.fsencode(argument) for argument in arguments) + b"\0")
        inside = self._egress.prefix if self._egress is not None else []
        self._spawn([*inside, self._bwrap, "--args", str(packed), "--", *launcher_command(status, plan_file)], log)
        init_pid = self._read_info(info_read, log_read)
        try:
            if self._group is not None and not self._group.takes_threads:
                self._group.add(init_pid)
        except ProcessLookupError:
            self._refuse("bubblewrap could not set up the sandbox", log_read)
        self._set_priorities(init_pid)
        os.write(block_write, b"1")
        self._await_launch(status_read, log_read)
        # None where it has ended already: then there is nothing to signal either.
        below = children(init_pid) or [init_pid]
        return self._jail(init_pid, below[0], log_read)

    def _jail(self, init_pid: int, pid: int, log: int) -> Jail:
        assert self._process is not None
        program, limits = self._program, self._program.limits
        memory_bounded = self._group is not None and "memory" in self._group.bounds
        undo = self._egress.close if self._egress is not None else None
        jail = Jail(self._process, init_pid, pid, self._group, undo)
        self._kept.remove(log)
        for descriptor in self._kept:
            os.close(descriptor)
        self._kept.clear()
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
            by_user=not self._identity.changed or not memory_bounded,
        )
        return jail

    # ------------------------------------------------ pieces

    def _pipe(self) -> tuple[int, int]:
        """Reading end, kept; writing end, passed on."""
        reading, writing = os.pipe()
        self._kept.append(reading)
        self._passed.append(writing)
        return reading, writing

    def _memory_file(self, content: bytes) -> int:
        descriptor = os.memfd_create("fallow", os.MFD_CLOEXEC)
        self._passed.append(descriptor)
        os.write(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    def _spawn(self, command: list[str], log: int) -> None:
        identity = self._identity
        become: dict[str, Any] = {}
        if identity.changed:
            become = {"user": identity.user, "group": identity.group, "extra_groups": []}
        try:
            group = self._group
            self._process = spawner().popen(
                command,
                group.inside() if group is not None and group.takes_threads else None,
                env={},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(*self._passed, *self._program.descriptors, *self._listener()),
                start_new_session=True,
                **become,
            )
        except OSError as error:
            raise SandboxUnavailable(f"bubblewrap cannot be run: {error}.", remedy_for(str(error))) from None
        # Whoever waits at the other end must see that bwrap has gone.
        for descriptor in self._passed:
            os.close(descriptor)
        self._passed.clear()

    def _read_info(self, info: int, log: int) -> int:
        text = _read_until(info, b"}")
        try:
            return int(json.loads(text)["child-pid"])
        except (ValueError, KeyError):
            self._refuse("bubblewrap could not make a sandbox", log)

    def _await_launch(self, status: int, log: int) -> None:
        words = _read_until(status, b"")
        if not words:
            self._refuse("bubblewrap could not set up the sandbox", log)
        if wrong := words.removeprefix(b"+"):
            raise SandboxUnavailable(
                f"The sandbox could not start {self._program.argv[0]}: {wrong.decode(errors='replace')}."
            )

    def _refuse(self, what: str, log: int) -> NoReturn:
        words = _read_until(log, b"", 1.0).decode(errors="replace").strip()[-1000:]
        raise SandboxUnavailable(f"{what}: {words or 'it said nothing'}.", remedy_for(words))

    def _listener(self) -> tuple[int, ...]:
        return (self._program.listener,) if self._program.listener >= 0 else ()

    def _set_priorities(self, pid: int) -> None:
        limits = self._program.limits
        with contextlib.suppress(psutil.Error, OSError):
            if limits.nice:
                os.setpriority(os.PRIO_PROCESS, pid, limits.nice)
            if limits.idle_io:
                psutil.Process(pid).ionice(psutil.IOPRIO_CLASS_IDLE)


def _read_until(descriptor: int, mark: bytes, within_s: float = START_WITHIN_S) -> bytes:
    """Until the mark (with a mark) or the end. Raises SandboxUnavailable when neither comes in time."""
    data = b""
    deadline = time.monotonic() + within_s
    while not (mark and mark in data):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            if mark or not within_s < START_WITHIN_S:
                raise SandboxUnavailable(f"The sandbox did not start within {within_s:g} s.")
            break
        chunk = os.read(descriptor, 1 << 16)
        if not chunk:
            break
        data += chunk
    return data
