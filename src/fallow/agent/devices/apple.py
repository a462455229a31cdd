"""Apple's GPUs, as system_profiler tells. Memory is the machine's own: three quarters of it may be a GPU's."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from fallow.model.node import Device

COMMAND = ("system_profiler", "-json", "SPDisplaysDataType")
TIMEOUT_S = 20.0
USABLE_SHARE = 0.75


def apple_devices(memory_bytes: int) -> tuple[Device, ...]:
    """Takes seconds. () on other systems and where the program fails."""
    if sys.platform != "darwin":
        return ()
    try:
        done = subprocess.run(COMMAND, capture_output=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_displays(done.stdout, memory_bytes)


def parse_displays(text: bytes, memory_bytes: int) -> tuple[Device, ...]:
    """The GPUs of system_profiler's answer; () if it makes no sense."""
    try:
        entries: Any = json.loads(text)["SPDisplaysDataType"]
        return tuple(
            Device(
                kind="gpu",
                model=str(entry.get("sppci_model") or "Apple GPU"),
                memory_bytes=int(memory_bytes * USABLE_SHARE),
                vendor="apple",
                driver=str(entry.get("spdisplays_mtlgpufamilysupport") or ""),
            )
            for entry in entries
            if "apple" in str(entry.get("spdisplays_vendor", "")).lower()
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return ()
