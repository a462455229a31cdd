"""Which pool a script uses: the one it is told of, the one that runs, or one of its own that ends with it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

from fallow.model.errors import PoolEnded, PoolError
from fallow.wire.address import PoolAddress, connected_address, home_dir, parse_address, running_pool
from fallow.wire.streams import fill_descriptors

START_LIMIT_S = 60.0
END_LIMIT_S = 8.0
_inherited: str | None = None
"""Address of the parent's embedded pool in a forked child."""


class FoundPool:
    """An address, and the process behind it where this script started it."""

    def __init__(self, address: PoolAddress, embedded: EmbeddedPool | None = None) -> None:
        self.address = address
        self.embedded = embedded


class EmbeddedPool:
    """The pool of this script: a child process that ends when the lifeline closes, however that happens."""

    def __init__(self) -> None:
        ready, ready_child = os.pipe()
        lifeline_child, self._lifeline = os.pipe()
        self._ready = ready
        command = [
            *(sys.executable, "-m", "fallow.cli.up", "--embedded"),
            *("--ready-fd", str(ready_child), "--lifeline-fd", str(lifeline_child)),
        ]
        slots = os.environ.get("FALLOW_SLOTS", "")
        if slots.isdigit():
            command += ["--slots", slots]
        try:
            # A session of its own: Ctrl-C in the terminal reaches the script, which then ends the pool in order.
            self.process = subprocess.Popen(
                command,
                pass_fds=(ready_child, lifeline_child),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if sys.stdout is None else None,
                stderr=subprocess.DEVNULL if sys.stderr is None else None,
                start_new_session=True,
            )
        except BaseException:
            self.abandon()
            raise
        finally:
            os.close(ready_child)
            os.close(lifeline_child)

    def wait_address(self) -> PoolAddress:
        """Block until a client can connect. Raises PoolError where the pool does not start."""
        import select

        text = b""
        deadline = time.monotonic() + START_LIMIT_S
        while not text.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._ready], [], [], left)[0]:
                raise PoolError(f"the script's own pool did not start within {START_LIMIT_S:g} s.")
            chunk = os.read(self._ready, 4096)
            if not chunk:
                code = self._end_code()
                raise PoolError(
                    f"the script's own pool could not be started (exit code {code}); what it said stands above. "
                    "`fallow up` in another terminal shows more."
                )
            text += chunk
        return parse_address(text.decode())

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def _end_code(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(2.0)
        return None

    def end(self) -> None:
        """Close the lifeline and wait until the pool is gone."""
        self.abandon()
        try:
            self.process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def abandon(self) -> None:
        """Let go of the pipes (in a forked child: without touching the parent's pool)."""
        for name in ("_lifeline", "_ready"):
            fd, self.__dict__[name] = self.__dict__[name], -1
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)


def find_pool() -> FoundPool:
    """FALLOW_URL, else what `fallow connect` remembered, else the pool that runs here, else a new embedded one (which
    starts side by side: `wait_address`). Raises PoolError."""
    fill_descriptors()
    url = os.environ.get("FALLOW_URL", "").strip()
    text = url or _inherited or connected_address()
    if text is None:
        running = running_pool() if (home_dir() / "pool.json").exists() else None
        text = running.address if running else None
    if text is not None:
        return FoundPool(parse_address(text, "FALLOW_URL" if url else ""))
    if os.name != "posix":
        raise PoolError(
            "no pool is known, and this system cannot run one by itself. Start `fallow up` on Linux or macOS and say "
            "`fallow connect TOKEN@HOST:PORT` here."
        )
    return FoundPool(PoolAddress((), ""), EmbeddedPool())


def remember_for_children(address: str | None) -> None:
    """What a forked child of this script finds."""
    global _inherited
    _inherited = address


def pool_ended() -> PoolEnded:
    return PoolEnded("the script's own pool ended under it. What its processes said last stands above.")
