"""What every sandbox does. Backends: plain process, bubblewrap, podman, gVisor."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from msgspec import Struct

from fallow.model.tiers import Tier

LISTENER_PORT = 1080


class Limits(Struct, frozen=True):
    """For everything in one sandbox together; where only rlimits are in force, for each of its processes. 0: none."""

    memory_bytes: int = 0
    processes: int = 256
    cpu_share: float = 0.0
    """Of all processors together."""
    disk_bytes: int = 2 * 10**9
    """What may be written, over all writable places together as far as the backend can."""
    nice: int = 0
    idle_io: bool = False


class Mount(Struct, frozen=True):
    """A host folder or file that the sandbox sees at `target` (the same path where empty)."""

    source: str
    target: str = ""
    writable: bool = False
    bounded: int = 0
    """The device of a file system that holds no more than it may (`BoundedFolder`): nobody need look. 0: it does."""


class Program(Struct, frozen=True):
    """What to start. Nothing of the agent's environment, descriptors or files is passed on but what stands here."""

    argv: tuple[str, ...]
    environment: dict[str, str]
    cwd: str
    descriptors: tuple[int, ...] = ()
    """Inherited under the same numbers."""
    mounts: tuple[Mount, ...] = ()
    limits: Limits = Limits()
    network: bool = False
    """Public addresses only; False: none at all, not even the host's loopback."""
    listener: int = -1
    """A Unix socket that is sent a listening socket: what that accepts are connections that the program makes to port
    LISTENER_PORT of the loopback inside, whatever becomes of them outside. -1: none."""
    devices: tuple[str, ...] = ()
    """Device nodes, such as /dev/nvidia0."""
    log: str = ""
    """File that takes what it prints; '': nowhere."""


class Layer(Struct, frozen=True):
    """One wall of a sandbox, as it was probed. `remedy`: what to do where it does not work."""

    name: str
    works: bool
    words: str = ""
    remedy: str = ""


class Probe(Struct, frozen=True):
    """What a backend can do on this machine: tried, not read from settings."""

    backend: str
    tier: Tier
    """PROCESS where it does not work."""
    works: bool
    layers: tuple[Layer, ...] = ()
    words: str = ""
    remedy: str = ""
    network: bool = False
    """It can give public addresses alone."""
    proxy: bool = False
    """It has a `listener`: what a program says there may be carried to public addresses by the agent."""
    devices: bool = True
    """It can show GPUs."""


class Running(Protocol):
    """A program in its sandbox."""

    @property
    def pid(self) -> int:
        """The program itself, as the host numbers it."""

    def poll(self) -> int | None:
        """Exit status as of subprocess.Popen, or None."""

    def wait(self, timeout_s: float) -> int:
        """Raises subprocess.TimeoutExpired."""

    def signal(self, number: int) -> None:
        """To the program itself; nothing where it has ended."""

    def kill(self) -> None:
        """End everything inside, at once."""

    def end(self, why: str) -> None:
        """As `kill`, and `why` says so."""

    @property
    def why(self) -> str:
        """What all of it was ended for, by whoever looks at its bounds or by `end`; '': nothing that is known."""

    @property
    def disk_bytes(self) -> int:
        """What it holds in folders of the host, when that was looked at last; 0 where nothing needs to look."""

    def host_pid(self, inner_pid: int) -> int:
        """The host's number of a process inside; 0 where it is gone."""

    def guard(self, on: bool) -> None:
        """Whether bounds are looked at that nothing but looking holds (disk, and memory without control groups): on
        until told otherwise. Off is for a sandbox in reserve, in which nobody's code but ours has run yet."""

    def close(self) -> None:
        """Kill what is left, and leave no folder, control group or process behind."""


@runtime_checkable
class OwnKernel(Protocol):
    """What a Running has besides where its processes are none of the host's, and end together."""

    def memory_kills(self) -> int:
        """How many processes the machine's kernel has ended for want of memory: inside, such a one just ends."""

    def private_bytes(self, inner_pid: int) -> int:
        """Memory that a process inside holds, without files; 0 where it is gone or not known yet."""


class Sandbox(Protocol):
    """A backend. Starting blocks for a few milliseconds."""

    @property
    def name(self) -> str: ...

    @property
    def tier(self) -> Tier: ...

    def probe(self) -> Probe:
        """Try it, in well under a second where it can; the answer is kept."""

    def start(self, program: Program) -> Running:
        """Raises SandboxUnavailable with the remedy, never falls back to less."""
