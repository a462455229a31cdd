"""Memory of processes and of the machine."""

from __future__ import annotations

import os
import sys

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def private_bytes(pid: int) -> int:
    """Resident memory of a process without files that it maps (those are shared). 0 if it is gone."""
    if sys.platform == "linux":
        try:
            with open(f"/proc/{pid}/statm") as file:
                fields = file.read().split()
        except OSError:
            return 0
        return (int(fields[1]) - int(fields[2])) * _PAGE_BYTES
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
