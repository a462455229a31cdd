"""The price of electricity, from a file or a command of the owner's: bounded in time and in what it may say."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
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
        return parse_price(await _run(source[1:].strip(), source), source)
    try:
        with Path(source).expanduser().open("rb") as file:
            data = file.read(READ_LIMIT_BYTES)
    except OSError as error:
        raise SettingError(f"price.source {source!r} cannot be read: {error.strerror or error}.") from None
    return parse_price(data.decode(errors="replace"), source)


async def _run(command: str, source: str) -> str:
    """What the command printed. It runs as the owner, who wrote it, and not a moment longer than it may."""
    process = await asyncio.create_subprocess_shell(
        command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
        limit=READ_LIMIT_BYTES,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(COMMAND_WITHIN_S):
            data = await process.stdout.read(READ_LIMIT_BYTES)
            while len(data) < READ_LIMIT_BYTES and (more := await process.stdout.read(READ_LIMIT_BYTES - len(data))):
                data += more
            if len(data) < READ_LIMIT_BYTES:
                await process.wait()
    except TimeoutError:
        raise SettingError(f"price.source {source!r} printed no price within {COMMAND_WITHIN_S:g} s.") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode and not data:
        raise SettingError(f"price.source {source!r} ended with exit code {process.returncode} and printed nothing.")
    return data.decode(errors="replace")
