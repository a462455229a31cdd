"""A zygote in a sandbox: what it is shown of the machine, and its start."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fallow.agent.confined import PACKAGE, SCRATCH, Confined, user_packages
from fallow.agent.limits.writers import Writer
from fallow.agent.zygote_program import confined_environment, zygote_argv
from fallow.model.errors import SandboxUnavailable
from fallow.sandbox.protocol import Program

if TYPE_CHECKING:
    from fallow.agent.confined import Confinement
    from fallow.sandbox.protocol import Running


async def start_inside(
    confinement: Confinement,
    folder: Path,
    python: str,
    descriptor: int,
    sys_path: Sequence[str],
    cpu: int,
    network: bool,
    devices: tuple[str, ...],
    log: Path,
) -> tuple[Confined, Running]:
    """`folder`: to be made. `descriptor`: the zygote's end of its control socket. Raises SandboxUnavailable, OSError."""
    loop = asyncio.get_running_loop()

    def begin() -> tuple[Confined, Running]:
        confined = Confined(folder, confinement.limits.disk_bytes)
        # 0 for the parent: the agent has no number in there.
        program = Program(
            argv=zygote_argv(Path(python), descriptor, (PACKAGE, *sys_path), 0, SCRATCH, user_packages(python)),
            environment=confined_environment(cpu, SCRATCH),
            cwd=SCRATCH,
            descriptors=(descriptor,),
            mounts=confined.mounts(python),
            limits=confinement.limits,
            network=network,
            devices=devices,
            log=str(log),
        )
        try:
            return confined, confinement.sandbox.start(program)
        except BaseException:
            confined.close()
            raise

    starting = loop.run_in_executor(None, begin)
    try:
        confined, running = await asyncio.shield(starting)
    except asyncio.CancelledError:
        # What it starts is nobody's: waited for, since it uses the descriptor.
        with contextlib.suppress(SandboxUnavailable, OSError):
            confined, running = await starting
            await loop.run_in_executor(None, running.close)
            confined.close()
        raise
    writer = Writer(lambda: confined.held_bytes + running.disk_bytes, running.end, not confined.is_bounded)
    confinement.writers.add(writer)
    confined.on_close = lambda: confinement.writers.remove(writer)
    return confined, running
