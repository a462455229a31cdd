"""A pool's address from a command line, a file, standard input or the environment. Other users of a machine can read
command lines: in a file or a variable its token is nobody else's to see."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from fallow.model.errors import SettingError

LENGTH_LIMIT = 4096
VARIABLE = "FALLOW_URL"
"""The pool that scripts of this environment use; here: that it works for."""


def address_from(given: str, file: str) -> str:
    """The text of the address. Raises SettingError where there is none, or two."""
    if given and file:
        raise SettingError("the address is given twice: on the command line and with --from.")
    if given:
        return given
    if not file:
        # Taken out: what is started here, tasks among it, need not know.
        if found := os.environ.pop(VARIABLE, "").strip():
            return found
        raise SettingError(
            "which pool? Give its address, as `fallow up --listen` printed it: fallow join TOKEN@HOST:PORT, or "
            f"--from FILE that holds it, or {VARIABLE} in the environment."
        )
    if file == "-":
        text = sys.stdin.readline(LENGTH_LIMIT)
    else:
        try:
            with Path(file).expanduser().open() as opened:
                about = os.fstat(opened.fileno())
                text = opened.read(LENGTH_LIMIT)
            if stat.S_ISREG(about.st_mode) and about.st_mode & 0o044 and os.name == "posix" and not _is_handed_in(file):
                print(f"fallow: others can read the pool's token in {file}: chmod 600 {file}", file=sys.stderr)
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(
                f"the address cannot be read from {file}: {getattr(error, 'strerror', error)}."
            ) from None
    words = text.split()
    if len(words) != 1:
        raise SettingError(f"{file} must hold one address, TOKEN@HOST:PORT, and nothing else.")
    return words[0]


def _is_handed_in(file: str) -> bool:
    """By systemd's LoadCredential: for this service alone, whatever the file's mode says (its group's bits are the mask
    of an access list)."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    return bool(folder) and Path(file).absolute().is_relative_to(folder)
