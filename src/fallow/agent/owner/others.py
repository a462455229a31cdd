"""macOS and Windows, and Windows seen from inside WSL2.

macOS: CoreGraphics tells the seconds since the last input, without any permission; `ioreg` (HIDIdleTime, nanoseconds)
where it cannot be loaded. Windows: GetLastInputInfo is of the session that asks, so the agent must run in the owner's.
Under WSL2, Windows' input is read by one PowerShell that runs as long as the agent and prints a line a second.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from fallow.agent.owner.sensor import Absent, Draft, Failed, InputSensor, clock_s
from fallow.core.owner_readings import Input

TICKS = 1 << 32
CORE_GRAPHICS = "/System/Library/Frameworks/CoreGraphics.framework/CoreGraphics"
ANY_INPUT, COMBINED_STATE = 0xFFFFFFFF, 0
FULL_SCREEN_STATES = (3, 4)
"""QUNS_RUNNING_D3D_FULL_SCREEN and QUNS_PRESENTATION_MODE."""
LINE_WAIT_S = 10.0
POWERSHELL = "powershell.exe"
SCRIPT = r"""
Add-Type @'
using System; using System.Runtime.InteropServices;
public static class Fallow {
  [StructLayout(LayoutKind.Sequential)] public struct Info { public uint Size; public uint Time; }
  [DllImport("user32.dll")] static extern bool GetLastInputInfo(ref Info info);
  [DllImport("shell32.dll")] static extern int SHQueryUserNotificationState(out int state);
  public static string Line() {
    Info info = new Info(); info.Size = 8;
    if (!GetLastInputInfo(ref info)) return "unknown 0";
    int state; if (SHQueryUserNotificationState(out state) != 0) state = 0;
    return unchecked((uint)Environment.TickCount - info.Time) + " " + state;
  }
}
'@
while ($true) { [Console]::Out.WriteLine([Fallow]::Line()); [Console]::Out.Flush(); Start-Sleep -Milliseconds 500 }
"""


def idle_of_ioreg(text: str) -> float | None:
    """Seconds without input, of what `ioreg -c IOHIDSystem` prints; None where it says nothing of it."""
    found = re.search(r'"HIDIdleTime"\s*=\s*(\d+)', text)
    return int(found[1]) / 1e9 if found else None


def idle_of_ticks(now: int, last: int) -> float:
    """Seconds between two readings of Windows' tick count, which starts anew after 49.7 days."""
    return ((now - last) % TICKS) / 1000


def state_of_line(line: str) -> tuple[float | None, bool]:
    """(seconds without input, whether a program fills the screen) of a line of the helper in PowerShell."""
    idle, _, state = line.strip().partition(" ")
    if not idle.isdigit():
        return None, False
    return int(idle) / 1000, state.isdigit() and int(state) in FULL_SCREEN_STATES


class MacInput(InputSensor):
    name = "keyboard or mouse (macOS)"

    def open(self) -> None:
        try:
            graphics = ctypes.CDLL(CORE_GRAPHICS)
            self._seconds: Any = graphics.CGEventSourceSecondsSinceLastEventType
            self._seconds.argtypes, self._seconds.restype = (ctypes.c_int32, ctypes.c_uint32), ctypes.c_double
        except (OSError, AttributeError):
            self._seconds, self.every_s = None, 1.0

    def read(self, draft: Draft) -> None:
        if self._seconds is not None:
            idle_s: float | None = float(self._seconds(COMBINED_STATE, ANY_INPUT))
        else:
            try:
                answer = subprocess.run(
                    ["/usr/sbin/ioreg", "-c", "IOHIDSystem", "-d", "4"], capture_output=True, text=True, timeout=2
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise Failed(f"ioreg does not tell of input ({error})") from error
            idle_s = idle_of_ioreg(answer.stdout)
        if idle_s is None:
            raise Failed("ioreg does not tell of input (no HIDIdleTime)")
        draft.inputs[self.name] = Input("keyboard or mouse", idle_s)


class WindowsInput(InputSensor):
    name = "keyboard or mouse (Windows)"

    def open(self) -> None:
        libraries: Any = getattr(ctypes, "windll", None)
        if libraries is None:
            raise Absent
        self._user, self._kernel, self._shell = libraries.user32, libraries.kernel32, libraries.shell32
        self._kernel.GetTickCount.restype = ctypes.c_uint32

    def read(self, draft: Draft) -> None:
        info = (ctypes.c_uint32 * 2)(8, 0)
        if not self._user.GetLastInputInfo(ctypes.byref(info)):
            raise Failed("Windows does not tell of input: run the agent in the owner's session, not as a service")
        idle_s = idle_of_ticks(self._kernel.GetTickCount(), info[1])
        draft.inputs[self.name] = Input("keyboard or mouse", idle_s)
        state = ctypes.c_int(0)
        fills = self._shell.SHQueryUserNotificationState(ctypes.byref(state)) == 0 and state.value in FULL_SCREEN_STATES
        draft.full_screen[self.name] = "a program" if fills else ""


@cache
def is_wsl() -> bool:
    try:
        return "microsoft" in Path("/proc/sys/kernel/osrelease").read_text().lower()
    except OSError:
        return False


class WslInput(InputSensor):
    """The input of the Windows around WSL2."""

    name = "keyboard or mouse (Windows around WSL)"

    def __init__(
        self, command: tuple[str, ...] = (POWERSHELL, "-NoProfile", "-NonInteractive", "-Command", SCRIPT)
    ) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise Failed(
                f"{self._command[0]} cannot be started from WSL ({error.strerror}): Windows' input is not seen; "
                "allow interop in /etc/wsl.conf"
            ) from error
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._rest = b""
        self._state: tuple[float | None, bool] = (None, False)
        self._heard_s = clock_s()

    def files(self) -> list[int]:
        return []

    def read(self, draft: Draft) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        file = self._process.stdout.fileno()
        try:
            while data := os.read(file, 1 << 16):
                *lines, self._rest = (self._rest + data).split(b"\n")
                if lines:
                    self._state, self._heard_s = state_of_line(lines[-1].decode("ascii", "replace")), clock_s()
        except BlockingIOError:
            pass
        else:
            raise Failed("the helper that reads Windows' input has ended")
        age_s = clock_s() - self._heard_s
        idle_s, fills = self._state
        if age_s > LINE_WAIT_S:
            raise Failed("the helper that reads Windows' input is silent")
        draft.inputs[self.name] = Input("keyboard or mouse", None if idle_s is None else idle_s + age_s)
        draft.full_screen[self.name] = "a program" if fills else ""

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
