"""A plain process of the agent's user: no wall at all, for pools whose every customer is oneself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess

from fallow.model.errors import SandboxUnavailable
from fallow.model.tiers import Tier
from fallow.sandbox.protocol import Layer, Probe, Program


class PlainSandbox:
    """Mounts, devices, network and limits of a Program are not enforced, nor translated: paths are the host's."""

    name = "process"
    tier = Tier.PROCESS

    def probe(self) -> Probe:
        return Probe(
            backend=self.name,
            tier=self.tier,
            works=True,
            layers=(Layer("process", True, "a plain process of the agent's user, with all that this user may do"),),
            words="a plain process: for pools of one's own",
            network=True,
        )

    def start(self, program: Program) -> PlainRunning:
        if program.listener >= 0:
            raise SandboxUnavailable("A plain process is no sandbox, and has a network of its own.")
        log: int = subprocess.DEVNULL
        if program.log:
            log = os.open(program.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            process = subprocess.Popen(
                program.argv,
                env=program.environment,
                cwd=program.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=program.descriptors,
                start_new_session=True,
            )
        except OSError as error:
            raise SandboxUnavailable(
                f"{program.argv[0]} cannot be run: {error}.", "Check that the path exists and may be executed."
            ) from None
        finally:
            if log >= 0:
                os.close(log)
        return PlainRunning(process)


class PlainRunning:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self, timeout_s: float) -> int:
        return self._process.wait(timeout_s)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """What it has started is found by its parents and its process group: a plain process can slip away."""
        import psutil  # 15 ms, and seldom needed: a pool of one's own starts through this module

        below: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            below = psutil.Process(self._process.pid).children(recursive=True)
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        for process in below:
            with contextlib.suppress(psutil.Error):
                process.kill()

    def end(self, why: str) -> None:
        self.kill()

    why = ""
    disk_bytes = 0

    def host_pid(self, inner_pid: int) -> int:
        import psutil

        return inner_pid if psutil.pid_exists(inner_pid) else 0

    def guard(self, on: bool) -> None:
        """There are no bounds."""

    def close(self) -> None:
        if self._process.poll() is None:
            self.kill()
        self._process.wait()
