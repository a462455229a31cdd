"""The zygote: a small process that holds the worker's modules and forks workers within milliseconds.

It stays single-threaded, ends when the agent's socket closes (however that happens), and takes every worker and every
process that a task has left behind with it.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys

from fallow.worker import main as worker_main
from fallow.worker import orders, reaping
from fallow.worker.frames import FrameReader, frame

DESCRIPTORS = 4
"""Socket, shared map, stdout, stderr."""


class Zygote:
    def __init__(self, control: socket.socket, scratch: str) -> None:
        self._control = control
        self._scratch = scratch
        self._reader = FrameReader()
        self._pids: dict[int, int] = {}
        """Serial by pid."""
        self._oom_before: dict[int, int] = {}
        self._strays: set[int] = set()
        """Killed, and not reaped yet."""
        self._ending = False

    def serve(self) -> None:
        """Fork and reap until the agent is gone."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._end)
        self._send(orders.Ready(os.getpid()))
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(wake_read, select.POLLIN)
        try:
            while not self._ending:
                for descriptor, _event in poll.poll():
                    if descriptor == wake_read:
                        os.read(wake_read, 4096)
                    else:
                        self._read()
                self._reap()
        except (OSError, EOFError):
            pass
        self._shut_down()

    def _end(self, *_: object) -> None:
        self._ending = True

    def _send(self, message: orders.FromZygote) -> None:
        self._control.sendall(frame(orders.encode(message)))

    def _read(self) -> None:
        for body in self._reader.receive_with_descriptors(self._control, DESCRIPTORS * 8):
            message = orders.decode_to_zygote(body)
            if isinstance(message, orders.Spawn):
                descriptors = self._reader.descriptors[:DESCRIPTORS]
                del self._reader.descriptors[:DESCRIPTORS]
                self._spawn(message, descriptors)
            elif isinstance(message, orders.Hold):
                self._hold(message)
            else:
                self._kill(message)

    def _kill(self, order: orders.Kill) -> None:
        for pid, serial in self._pids.items():
            if serial == order.serial and order.show:
                os.kill(pid, getattr(signal, orders.SHOW_SIGNAL))
            elif serial == order.serial and order.ask:
                reaping.kill_group(pid, signal.SIGTERM)
            elif serial == order.serial:
                reaping.kill_group(pid)

    def _hold(self, order: orders.Hold) -> None:
        for pid, serial in self._pids.items():
            if serial == order.serial:
                reaping.kill_group(pid, signal.SIGSTOP if order.on else signal.SIGCONT)

    def _spawn(self, order: orders.Spawn, descriptors: list[int]) -> None:
        oom = reaping.kernel_kills()
        parent = os.getpid()
        pid = os.fork()
        if not pid:
            try:
                _become_worker(order, descriptors, parent)
            except BaseException as error:
                os.write(2, f"the worker could not begin: {type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(70)
        self._pids[pid] = order.serial
        self._oom_before[pid] = oom
        for descriptor in descriptors:
            os.close(descriptor)
        self._send(orders.Spawned(order.serial, pid))

    def _reap(self) -> None:
        while True:
            pid, code = reaping.reap(self._pids)
            if not pid:
                return
            if pid in self._strays:
                self._strays.discard(pid)
                self._strays |= reaping.kill_strays(self._pids)
            serial = self._pids.pop(pid, None)
            if serial is not None:
                oom = reaping.kernel_kills() > self._oom_before.pop(pid, 0) and code == -signal.SIGKILL
                self._strays |= reaping.kill_strays(self._pids)
                self._send(orders.Exited(serial, code, oom))

    def _shut_down(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for pid in self._pids:
            reaping.kill_group(pid)
        reaping.kill_all()
        import shutil

        shutil.rmtree(self._scratch, ignore_errors=True)


def _become_worker(order: orders.Spawn, descriptors: list[int], parent: int) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    reaping.die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    channel, shared, out, error = descriptors
    os.dup2(out, 1)
    os.dup2(error, 2)
    for low, high in _gaps(sorted((2, channel, shared))):
        os.closerange(low, high)
    set_threads(order.cpu)
    os.environ.update(order.environment)
    if "FALLOW_GPU_SHARE" in order.environment:
        from fallow.worker.gpu_share import keep_to_share

        keep_to_share()
    sys.path[:0] = order.sys_path
    if order.cwd:
        os.makedirs(order.cwd, exist_ok=True)
        os.chdir(order.cwd)
    worker_main.run_worker(channel, shared, order.scratch, order.serial)


def _gaps(kept: list[int]) -> list[tuple[int, int]]:
    most = os.sysconf("SC_OPEN_MAX")
    stops = [*kept[1:], max(kept[-1] + 1, min(most, 65536))]
    return [(low + 1, high) for low, high in zip(kept, stops, strict=True) if low + 1 < high]


THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def set_threads(cpu: int) -> None:
    """Numerical libraries read these when they are loaded; those that are loaded already are told."""
    for name in THREAD_VARIABLES:
        os.environ[name] = str(max(1, cpu))
    if "numpy" in sys.modules:
        import importlib

        try:
            threadpoolctl = importlib.import_module("threadpoolctl")
        except ImportError:
            return
        threadpoolctl.threadpool_limits(max(1, cpu))


def main(control_fd: int, parent: int, scratch: str) -> None:
    """Run in a fresh interpreter: `control_fd` is the socket to the agent, whose pid is `parent` (0: none here)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=control_fd)
    os.set_inheritable(control_fd, False)
    reaping.adopt_orphans()
    reaping.die_with_parent(signal.SIGTERM)
    if parent and os.getppid() != parent:
        return
    os.environ["FALLOW_WORKER"] = "1"
    os.makedirs(scratch, exist_ok=True)
    gc.collect()
    gc.freeze()  # so that a collection in a worker does not touch, and copy, shared pages
    Zygote(control, scratch).serve()
