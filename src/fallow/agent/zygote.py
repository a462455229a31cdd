"""The agent's side of a zygote: starts it in an environment's interpreter, asks it for workers, hears how they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fallow.agent.memory import FILLED_BYTES_PER_S, MachineMemory, choose_victim, private_bytes, reserve_bytes
from fallow.agent.pulse import RIDE_S
from fallow.agent.worker_api import WorkerCallbacks
from fallow.agent.worker_files import WorkerMap
from fallow.agent.worker_process import POLL_MOST_S, POLL_S, TIMEOUT_PRECISION, Process
from fallow.agent.zygote_program import plain_program
from fallow.model.errors import EnvironmentFailed, SandboxUnavailable
from fallow.sandbox.plain import PlainSandbox
from fallow.sandbox.protocol import OwnKernel
from fallow.worker import orders
from fallow.worker.frames import FrameReader, frame

if TYPE_CHECKING:
    from fallow.agent.confined import Confined, Confinement
    from fallow.sandbox.protocol import Running

START_WITHIN_S = 60.0
END_WITHIN_S = 10.0

INSIDE_SCRATCH = "/scratch"
"""As agent.confined has it, which plain pools do not load."""

SPAWN_ATTEMPTS = 2
KILL_WITHIN_S = 2.0
"""A sandbox whose worker has not ended so long after the zygote was told to kill it is ended as a whole."""
CONTROL_FRAME_BYTES = 64 * 1024
"""What the zygote of a sandbox may say at once."""


class _ZygoteLost(Exception):
    pass


class Zygote:
    """Forks workers. Starts again by itself when it was lost. Use from one event loop."""

    def __init__(
        self,
        python: Path,
        sys_path: Sequence[str],
        scratch: Path,
        cpu: int,
        confinement: Confinement | None = None,
        network: bool = False,
        devices: Sequence[str] = (),
    ) -> None:
        self._python = python
        self._confinement = confinement
        self._network = network
        self._devices = tuple(devices)
        self.confined: Confined | None = None
        """What the sandbox sees; None for a plain process."""
        self._sys_path = tuple(sys_path)
        self._scratch = scratch
        self._folders: list[Path] = []
        """One for each start: an old zygote may be removing its own while the new one begins."""
        self._cpu = cpu
        self._loop = asyncio.get_running_loop()
        self._process: Running | None = None
        self._past: list[Confined] = []
        """Of sandboxes that were lost: results may still be taken from their folders."""
        self._control: socket.socket | None = None
        self._reader = FrameReader()
        self._ready: asyncio.Future[None] | None = None
        self._spawning: dict[int, asyncio.Future[int]] = {}
        self._workers: dict[int, Process] = {}
        self._serial = 0
        self._log: Path | None = None
        self._starting = asyncio.Lock()
        self._poll_handle: asyncio.TimerHandle | None = None
        self._poll_wait_s = 0.0
        """For how long it was set."""
        self._memory: MachineMemory | None = None
        self._memory_kills = 0

    @property
    def pid(self) -> int:
        """0 while none runs."""
        return self._process.pid if self._process is not None else 0

    @property
    def is_alive(self) -> bool:
        return self._control is not None

    @property
    def workers(self) -> list[Process]:
        return list(self._workers.values())

    # ------------------------------------------------ start and end

    async def start(self) -> None:
        """Raises EnvironmentFailed with the interpreter's own words, SandboxUnavailable with the remedy."""
        async with self._starting:
            if self.is_alive:
                return
            await self._launch()
            assert self._ready is not None
            try:
                await asyncio.wait_for(asyncio.shield(self._ready), START_WITHIN_S)
            except TimeoutError:
                words = f"{self._python} did not start a worker within {START_WITHIN_S:g} s. {self._last_words()}"
                self._lost()
                raise EnvironmentFailed(words) from None

    async def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        if self._folders:
            self._scratch = self._folders[0].with_name(f"{self._folders[0].name}-{len(self._folders)}")
        self._folders.append(self._scratch)
        self._scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._log = self._scratch / "zygote.log"
        try:
            if self._confinement is None:
                # Pools of one's own: nothing waits for another thread here.
                self._process = PlainSandbox().start(
                    plain_program(self._python, theirs.fileno(), self._sys_path, self._cpu, self._scratch, self._log)
                )
            else:
                self._process = await self._start_confined(self._confinement, theirs.fileno())
        except SandboxUnavailable as error:
            ours.close()
            if self._confinement is not None:
                raise
            raise EnvironmentFailed(str(error)) from None
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._control = ours
        self._reader = FrameReader(CONTROL_FRAME_BYTES) if self.confined is not None else FrameReader()
        self._ready = self._loop.create_future()
        # Whoever waited for it may have gone: that is nothing to complain about when the agent ends.
        self._ready.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._loop.add_reader(ours.fileno(), self._readable)

    async def _start_confined(self, confinement: Confinement, descriptor: int) -> Running:
        from fallow.agent.zygote_inside import start_inside

        if self._process is not None:
            await self._loop.run_in_executor(None, self._process.close)
        if self.confined is not None:
            self._past.append(self.confined)
        self._memory_kills = 0
        assert self._log is not None
        self.confined, running = await start_inside(
            confinement, self._scratch / "inside", str(self._python), descriptor, self._sys_path, self._cpu,
            self._network, self._devices, self._log,
        )  # fmt: skip
        return running

    def _last_words(self) -> str:
        if self._log is None:
            return ""
        with contextlib.suppress(OSError):
            return self._log.read_text(errors="replace")[-2000:].strip()
        return ""

    async def stop(self) -> None:
        """End the zygote and all its workers, and wait for that."""
        process = self._process
        self._lost()
        if process is None or self.confined is not None:
            await self._loop.run_in_executor(None, self._clean)
            return
        for _ in range(int(END_WITHIN_S / 0.005)):
            if process.poll() is not None:
                break
            await asyncio.sleep(0.005)
        self._clean()

    close = stop

    def kill(self) -> None:
        """End everything at once, without waiting for more than the kernel."""
        process = self._process
        self._lost()
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_WITHIN_S)
            self._clean()

    def guard(self, on: bool) -> None:
        """See sandbox.protocol.Running; whatever is started anew is looked at."""
        if self._process is not None and self.is_alive:
            self._process.guard(on)

    def end_sandbox(self) -> None:
        """End everything that runs in there. Results may still be taken from its folder; a new worker begins afresh."""
        self._lost()

    def _clean(self) -> None:
        if self._process is not None:
            self._process.close()
        for confined in (*self._past, self.confined):
            if confined is not None:
                confined.close()
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _lost(self) -> None:
        """The control socket is closed, by either side: the zygote ends, and every worker with it."""
        control, self._control = self._control, None
        if control is None:
            return
        self._loop.remove_reader(control.fileno())
        control.close()
        if self._poll_handle is not None:
            self._poll_handle.cancel()
            self._poll_handle = None
        process = self._process
        status = process.poll() if process is not None else None
        words = "the zygote of the workers has ended" + (f" (status {status})" if status is not None else "")
        if self.confined is not None and process is not None and (why := process.why):
            words = f"the sandbox of the job was ended: {why}"
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(
                EnvironmentFailed(f"{self._python} could not start a worker. {self._last_words() or words}")
            )
        for future in self._spawning.values():
            if not future.done():
                future.set_exception(_ZygoteLost(f"{words} while it started a worker. {self._last_words()}"))
        self._spawning.clear()
        workers, self._workers = self._workers, {}
        if self.confined is not None and process is not None:
            process.kill()
        for worker in workers.values():
            # Linux kills the worker itself when its parent ends, but not what its task has started.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if worker.pid and self.confined is None:
                    os.killpg(worker.pid, signal.SIGKILL)
            worker.ended(-signal.SIGKILL, False, words)

    # ------------------------------------------------ workers

    async def start_worker(
        self,
        slot: int,
        callbacks: WorkerCallbacks,
        cpu: int = 0,
        sys_path: Sequence[str] = (),
        cwd: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> Process:
        """Fork a worker (a few ms). `cpu`: BLAS and OpenMP threads (0: the zygote's). `sys_path`: folders that come
        first when its tasks import. `cwd`: empty for a folder of its own, which goes with it. Raises
        EnvironmentFailed."""
        for attempt in range(SPAWN_ATTEMPTS):
            await self.start()
            try:
                return await self._fork(slot, callbacks, cpu, sys_path, cwd, environment)
            except _ZygoteLost as error:  # a zygote that was killed just now is no fault of the environment
                if attempt == SPAWN_ATTEMPTS - 1:
                    raise EnvironmentFailed(str(error)) from None
        raise AssertionError("not reached")

    async def _fork(
        self,
        slot: int,
        callbacks: WorkerCallbacks,
        cpu: int,
        sys_path: Sequence[str],
        cwd: str,
        environment: Mapping[str, str] | None,
    ) -> Process:
        control = self._control
        if control is None:
            raise _ZygoteLost("the zygote of the workers has ended")
        self._serial += 1
        serial = self._serial
        ours, theirs = socket.socketpair()
        shared = WorkerMap()
        out_read, out_write = os.pipe()
        error_read, error_write = os.pipe()
        for descriptor in (out_read, error_read):
            os.set_blocking(descriptor, False)
        spawned: asyncio.Future[int] = self._loop.create_future()
        self._spawning[serial] = spawned
        worker = Process(
            self, serial, slot, callbacks, ours, shared, out_read, error_read, str(self._scratch), self.confined
        )
        self._workers[serial] = worker
        scratch = str(self._scratch) if self.confined is None else INSIDE_SCRATCH
        cwd = cwd or f"{scratch}/worker-{serial}"
        order = orders.Spawn(serial, cpu or self._cpu, scratch, tuple(sys_path), cwd, dict(environment or {}))
        try:
            socket.send_fds(
                control,
                [frame(orders.encode(order))],
                [theirs.fileno(), shared.descriptor, out_write, error_write],
            )
        except OSError:
            self._lost()
        finally:
            theirs.close()
            for descriptor in (out_write, error_write, shared.descriptor):
                os.close(descriptor)
        if self.confined is not None:  # what runs in there may have been tampered with
            try:
                await asyncio.wait_for(asyncio.shield(spawned), START_WITHIN_S)
            except TimeoutError:
                self._lost()
        await spawned
        return worker

    def kill_worker(self, serial: int) -> None:
        """SIGKILL to the worker and its group, by the zygote: it knows that the number is still the worker's."""
        self._send(orders.Kill(serial))
        self.expect_end(serial)

    def expect_end(self, serial: int) -> None:
        """The worker is as good as gone. A zygote in a sandbox may have been stopped by what runs there: then it does
        not say so, and the sandbox is ended."""
        if self.confined is not None:
            self._loop.call_later(KILL_WITHIN_S, self._make_sure, serial)

    def _make_sure(self, serial: int) -> None:
        if serial in self._workers and self.is_alive:
            self._lost()

    def ask_worker(self, serial: int) -> None:
        """SIGTERM to the worker and its group."""
        self._send(orders.Kill(serial, ask=True))

    def show_worker(self, serial: int) -> None:
        """Have the worker print where it is, for the detail of its death."""
        self._send(orders.Kill(serial, show=True))

    def hold_worker(self, serial: int, on: bool) -> None:
        """Stop the worker and its group where they are, or let them go on."""
        self._send(orders.Hold(serial, on))

    def _send(self, message: orders.ToZygote) -> None:
        if self._control is not None:
            try:
                self._control.sendall(frame(orders.encode(message)))
            except OSError:
                self._lost()

    def _readable(self) -> None:
        control = self._control
        if control is None:
            return
        try:
            frames = self._reader.receive(control)
            messages = [orders.decode_from_zygote(body) for body in frames]
        except (EOFError, OSError, ValueError, msgspec.DecodeError):
            # (Only one whose memory was tampered with says what cannot be read.)
            self._lost()
            return
        for message in messages:
            self._heard(message)

    def _heard(self, message: orders.FromZygote) -> None:
        if isinstance(message, orders.Ready):
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(None)
        elif isinstance(message, orders.Spawned):
            pid = self._host_pid(message.pid)
            worker = self._workers.get(message.serial)
            if worker is not None:
                worker.started(pid, message.pid)
            future = self._spawning.pop(message.serial, None)
            if future is not None and not future.done():
                future.set_result(pid)
        else:
            worker = self._workers.pop(message.serial, None)
            if worker is not None:
                oom = message.oom or self._memory_killed()
                worker.ended(-signal.SIGKILL if oom else message.status, oom, "")

    def _memory_killed(self) -> bool:
        """Whether the machine's kernel has ended something of a sandbox's own kernel since the last look."""
        if self.confined is None or not isinstance(self._process, OwnKernel):
            return False
        before, self._memory_kills = self._memory_kills, self._process.memory_kills()
        return self._memory_kills > before

    def _host_pid(self, pid: int) -> int:
        """0 where it is not known: gone already, or no process of the sandbox."""
        if self.confined is None or self._process is None:
            return pid
        return self._process.host_pid(pid)

    def private_bytes(self, worker: Process) -> int:
        """Memory that a worker holds, without files that it maps; 0 where it is gone."""
        if self.confined is not None and isinstance(self._process, OwnKernel):
            return self._process.private_bytes(worker.inner_pid)
        return private_bytes(worker.pid)

    # ------------------------------------------------ the watch

    def watch(self, timeout_s: float = 0.0, limited: bool = False) -> None:
        """Look at the shared maps from now on, until no worker runs an order. `timeout_s`: of the tasks of the order
        that begins now; 0: none. `limited`: they have a memory limit."""
        if not self.is_alive:
            return
        if self._poll_handle is None:
            self._poll_handle = self._loop.call_later(POLL_S, self._poll)
        elif (
            limited or 0 < timeout_s < POLL_MOST_S / TIMEOUT_PRECISION
        ) and self._poll_handle.when() > self._loop.time() + POLL_S:
            self._poll_handle.cancel()
            self._poll_handle = self._loop.call_later(POLL_S, self._poll)
        elif self._poll_wait_s > 2 * RIDE_S and self._poll_handle.when() - self._loop.time() <= RIDE_S:
            self._poll_handle.cancel()
            self._poll()

    def _poll(self) -> None:
        self._poll_handle, self._poll_wait_s = None, 0.0
        running = [worker for worker in self._workers.values() if worker.running]
        if running:
            wait_s = min(worker.check() for worker in running)
            wait_s = min(wait_s, self._guard_memory(running))
            if self.is_alive and self._poll_handle is None:
                self._poll_wait_s = wait_s
                self._poll_handle = self._loop.call_later(wait_s, self._poll)

    def _guard_memory(self, running: list[Process]) -> float:
        """End who uses most where memory runs out. Returns in how many seconds it may be short at the earliest."""
        if self._memory is None:
            self._memory = MachineMemory()
        memory = self._memory
        memory.refresh()
        if choose_victim(memory.available, memory.total, {0: memory.total}) is None:
            # The usual case, without a look at each worker.
            return max(POLL_S, (memory.available - reserve_bytes(memory.total)) / FILLED_BYTES_PER_S)
        used = {number: self.private_bytes(worker) for number, worker in enumerate(running)}
        victim = choose_victim(memory.available, memory.total, used)
        if victim is not None:
            running[victim].kill(
                "memory",
                f"the machine is out of memory ({memory.available:,} of {memory.total:,} bytes are left), and this "
                f"worker used the most: {used[victim]:,} bytes",
            )
        return POLL_S


async def start_zygote(
    python: Path | str = "",
    sys_path: Sequence[str] = (),
    scratch: Path | str = "",
    cpu: int = 1,
    confinement: Confinement | None = None,
    network: bool = False,
    devices: Sequence[str] = (),
) -> Zygote:
    """Start a zygote with the interpreter `python` (empty: this one). `scratch`: in it a folder is made, and removed
    with the zygote's end; workers keep large results there. `confinement`: in a sandbox, with these devices, and with
    the network where `network` is set. Raises EnvironmentFailed and SandboxUnavailable."""
    parent = Path(scratch or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="zygote-", dir=parent))
    zygote = Zygote(Path(python or sys.executable), sys_path, folder, cpu, confinement, network, devices)
    try:
        await zygote.start()
    except BaseException:
        await zygote.close()
        raise
    return zygote
