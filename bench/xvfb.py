"""A real X server that shows nothing: for measurements of what watches for a machine's owner."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
from collections.abc import Iterator

START_LIMIT_S = 60.0


@contextlib.contextmanager
def x_server() -> Iterator[str]:
    """Xvfb with a display of its own choice, whose name is given (':7'). Raises SystemExit where it does not start."""
    out, into = os.pipe()
    command = ["Xvfb", "-displayfd", str(into), "-screen", "0", "640x480x24", "-nolisten", "tcp", "-noreset"]
    process = subprocess.Popen(command, pass_fds=(into,), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(into)
    try:
        said = b""
        while not said.endswith(b"\n"):
            piece = os.read(out, 16) if select.select([out], [], [], START_LIMIT_S)[0] else b""
            if not piece:
                raise SystemExit("bench: Xvfb does not start")
            said += piece
        yield f":{int(said)}"
    finally:
        os.close(out)
        process.terminate()
        process.wait()
