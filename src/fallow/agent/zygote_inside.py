"""A zygote in a sandbox: what it is shown of the machine, and its start."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fallow.agent.confined import PACKAGE, SCRATCH, Confined, user_packages
from fallow.agent.gate import Gate, received
from fallow.agent.limits.writers import Writer
from fallow.agent.zygote_program import confined_environment, zygote_argv
from fallow.model.errors import SandboxUnavailable
from fallow.sandbox.protocol import LISTENER_PORT, Program

if TYPE_CHECKING:
    from fallow.agent.confined import Confinement
    from fallow.sandbox.protocol import Running

_PROXY = f"http://127.0.0.1:{LISTENER_PORT}"
_LOCAL = "localhost,127.0.0.1,::1"
PROXY_VARIABLES = {
    **{name: _PROXY for word in ("http_proxy", "https_proxy") for name in (word, word.upper())},
    **{"no_proxy": _LOCAL, "NO_PROXY": _LOCAL},
}
"""By which programs find the way out, where the sandbox has no network of its own."""


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
    """`folder`: to be made. `descriptor`: the zygote's end of its control socket.

    Raises SandboxUnavailable, OSError."""
    loop = asyncio.get_running_loop()
    proxied = network and not confinement.sandbox.probe().network
    ours, theirs = socket.socketpair()

    def begin() -> tuple[Confined, Running]:
        confined = Confined(folder, confinement.limits.disk_bytes)
        # 0 for the parent: the agent has no number in there.
        program = Program(
            argv=zygote_argv(Path(python), descriptor, (PACKAGE, *sys_path), 0, SCRATCH, user_packages(python)),
            environment=confined_environment(cpu, SCRATCH) | (PROXY_VARIABLES if proxied else {}),
            cwd=SCRATCH,
            descriptors=(descriptor,),
            mounts=confined.mounts(python),
            limits=confinement.limits,
            network=network and not proxied,
            listener=theirs.fileno() if proxied else -1,
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
    finally:
        theirs.close()
        way = received(ours) if proxied else None
        ours.close()
    gate = Gate(ports=None)
    if way is not None:
        await gate.serve(way)
    writer = Writer(lambda: confined.held_bytes + running.disk_bytes, running.end, not confined.is_bounded)
    confinement.writers.add(writer)

    def closed() -> None:
        confinement.writers.remove(writer)
        if way is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and the gate with it
                loop.call_soon_threadsafe(gate.end)

    confined.on_close = closed
    return confined, running
