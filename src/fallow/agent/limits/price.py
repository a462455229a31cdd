"""The price of electricity, from a file or a command of the owner's: bounded in time and in what it may say."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import signal
import subprocess
import time
from pathlib import Path

from fallow.model.errors import SettingError

COMMAND_WITHIN_S = 20.0
READ_LIMIT_BYTES = 4096
_NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)?(?:[eE][-+]?\d+)?")


def parse_price(text: str, source: str) -> float:
    """The first number of the text (a price may be negative). Raises SettingError."""
    match = _NUMBER.search(text)
    if match is None:
        said = text.strip()[:60]
        raise SettingError(f"price.source {source!r} {f'says {said!r}' if said else 'is empty'}: there is no number.")
    return float(match[0].replace(",", "."))


async def read_price(source: str) -> float:
    """The price for a kWh. Raises SettingError in words when it cannot be had: whoever asks is to take it for too
    high."""
    if source.startswith("!"):
        return parse_price(await asyncio.to_thread(_run, source[1:].strip(), source), source)
    try:
        with Path(source).expanduser().open("rb") as file:
            data = file.read(READ_LIMIT_BYTES)
    except OSError as error:
        raise SettingError(f"price.source {source!r} cannot be read: {error.strerror or error}.") from None
    return parse_price(data.decode(errors="replace"), source)


def _run(command: str, source: str) -> str:
    """What the command printed. It runs as the owner, who wrote it, and not a moment longer than it may. Blocks."""
    process = subprocess.Popen(
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    deadline = time.monotonic() + COMMAND_WITHIN_S
    data = b""
    try:
        while len(data) < READ_LIMIT_BYTES:
            if not select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise SettingError(f"price.source {source!r} printed no price within {COMMAND_WITHIN_S:g} s.")
            piece = os.read(process.stdout.fileno(), READ_LIMIT_BYTES - len(data))
            if not piece:
                break
            data += piece
        if not data:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        code = process.poll()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    if code and not data:
        raise SettingError(f"price.source {source!r} ended with exit code {code} and printed nothing.")
    return data.decode(errors="replace")
