"""Who is logged in, here and from elsewhere: logind, else utmp, else terminals that programs run on."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from fallow.agent.owner.bus import Bus
from fallow.agent.owner.evdev import person_devices
from fallow.agent.owner.sensor import Absent, Draft, Sensor
from fallow.agent.owner.x11 import displays, owner_uid
from fallow.core.owner_readings import Session

LOGIND = "org.freedesktop.login1"
MANAGER = "org.freedesktop.login1.Manager"
SESSION = "org.freedesktop.login1.Session"
PATH = "/org/freedesktop/login1"
UTMP = ("/run/utmp", "/var/run/utmp")
FULL_EVERY_S = 30.0
WALK_EVERY_S = 30.0
WALK_ANYWAY_S = 300.0
"""The same while nobody was on a console, and nothing was typed on any since."""
CONSOLES_MAJOR, CONSOLES_END = 4, 64
"""Device numbers of tty1 to tty63; serial lines follow."""
NOBODY_LOGGED_IN = "nobody is logged in here"
SERVER = "a machine without keyboard, display and local session"


class Logins(Sensor):
    """Sessions with how long each is idle, and whether nobody can sit here at all."""

    name = "who is logged in"
    every_s = 1.0

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._generation = -1
        self._changes: list[deque[Any]] = []
        self._sleep: deque[Any] | None = None
        self._known: list[dict[str, Any]] = []
        self._known_s = 0.0
        self._consoles: list[Session] | None = None
        self._walked_s = self._asked_s = 0.0
        self._typed_s = 0.0

    def open(self) -> None:
        self._known_s = 0.0
        self._consoles = None

    def unknown(self, draft: Draft) -> None:
        draft.sessions, draft.nobody = None, ""

    def absent(self, draft: Draft) -> None:
        draft.sessions, draft.nobody = (), ""

    # ------------------------------------------------------------ reading

    def read(self, draft: Draft) -> None:
        try:
            sessions = self._of_logind(draft)
            by_logind = True
        except Absent:
            by_logind = False
            sessions = _of_utmp() if any(os.path.exists(path) for path in UTMP) else self._on_consoles()
        seen = {one.source for one in draft.inputs.values() if one.proves and one.idle_s is not None}
        draft.sessions = tuple(_with_sight(session, bool(seen), draft) for session in sessions)
        local = any(not session.remote for session in sessions)
        strangers = [*_displays_of_persons(), *(name for name in draft.inputs if "(Wayland " in name)]
        if not by_logind:
            draft.sessions += tuple(_unread(strangers, draft))
        draft.nobody = ""
        if not local and not strangers:
            if not person_devices():
                draft.nobody = SERVER
            elif by_logind:
                draft.nobody = NOBODY_LOGGED_IN

    def _on_consoles(self) -> list[Session]:
        """A walk over all processes: not often."""
        now_s = time.monotonic()
        if self._consoles is None or now_s - self._asked_s >= WALK_EVERY_S:
            typed_s, self._asked_s = _last_typed_s(), now_s
            if self._consoles != [] or typed_s != self._typed_s or now_s - self._walked_s >= WALK_ANYWAY_S:
                self._consoles, self._walked_s, self._typed_s = _of_terminals(), now_s, typed_s
        return self._consoles

    def _of_logind(self, draft: Draft) -> list[Session]:
        self._bus.connect()
        if self._generation != self._bus.generation:
            # A call that finds nobody raises Absent before anything is subscribed to.
            self._bus.call(LOGIND, PATH, MANAGER, "ListSessions")
            self._changes = [
                self._bus.subscribe(LOGIND, MANAGER, "SessionNew"),
                self._bus.subscribe(LOGIND, MANAGER, "SessionRemoved"),
                self._bus.subscribe(LOGIND, "org.freedesktop.DBus.Properties", "PropertiesChanged", PATH),
            ]
            self._sleep = self._bus.subscribe(LOGIND, MANAGER, "PrepareForSleep")
            self._generation, self._known_s = self._bus.generation, 0.0
        self._bus.pump()
        while self._sleep:
            draft.going_to_sleep = bool(self._sleep.popleft().body[0])
        if any(self._changes) or not self._known_s or time.monotonic() - self._known_s > FULL_EVERY_S:
            for queue in self._changes:
                queue.clear()
            self._known = self._list()
            self._known_s = time.monotonic()
        return [_session(one) for one in self._known]

    def _list(self) -> list[dict[str, Any]]:
        found = []
        (rows,) = self._bus.call(LOGIND, PATH, MANAGER, "ListSessions")
        for _, _, _, _, path in rows:
            try:
                one = self._bus.properties(LOGIND, path, SESSION)
            except Absent:
                continue  # It has ended meanwhile.
            if one.get("Class", "user") == "user" and one.get("State") != "closing":
                found.append(one)
        return found

    def files(self) -> list[int]:
        file = self._bus.file() if self._known_s else None
        return [file] if file is not None else []

    def news(self) -> bool:
        self._bus.pump()
        return bool(self._sleep) or any(self._changes)


def _session(one: dict[str, Any]) -> Session:
    """Of logind's properties. A terminal's idle time is read from the terminal; a desktop's only where it hints."""
    idle_s: float | None = terminal_idle_s(str(one.get("TTY", "")))
    if idle_s is None and one.get("IdleHint"):
        idle_s = max(0.0, time.time() - float(one.get("IdleSinceHint", 0)) / 1e6)
    remote = bool(one.get("Remote"))
    return Session(str(one.get("Name", "somebody")), remote, idle_s, active=remote or bool(one.get("Active", True)))


def _with_sight(session: Session, seen: bool, draft: Draft) -> Session:
    """Mark sessions whose input the sensors see: the agent's own user's desktop, or all that sit here (evdev)."""
    if not seen or session.remote:
        return session
    whole_seat = any("/dev/input" in name and one.proves for name, one in draft.inputs.items())
    if whole_seat or session.user == _own_name():
        return Session(session.user, False, session.idle_s, session.active, seen_by_input=True)
    return session


def _unread(displays: list[str], draft: Draft) -> list[Session]:
    """Displays that do not let the agent in, where no list of logins tells whose they are."""
    unread = [name for name, one in draft.inputs.items() if one.idle_s is None]
    whole_seat = any("/dev/input" in name and one.proves for name, one in draft.inputs.items())
    found = [name for name in displays if any(one.endswith(f"(X11 {name})") for one in unread)]
    return [Session(f"somebody at display {name}", False, None, seen_by_input=whole_seat) for name in found]


def _own_name() -> str:
    try:
        return str(psutil.Process().username())
    except (psutil.Error, KeyError):
        return ""


def terminal_idle_s(terminal: str) -> float | None:
    """Since something was last typed there; None where that cannot be read. The system keeps it to some seconds."""
    if not terminal or terminal.startswith(":"):
        return None
    try:
        return max(0.0, time.time() - os.stat(Path("/dev", terminal)).st_atime)
    except OSError:
        return None


def _of_utmp() -> list[Session]:
    found = []
    for user in psutil.users():
        terminal, host = user.terminal or "", user.host or ""
        remote = bool(host) and not host.startswith(":") and host != "localhost"
        found.append(Session(user.name, remote, terminal_idle_s(terminal)))
    return found


def _of_terminals() -> list[Session]:
    """Users of programs on the consoles of this machine: containers and small systems keep no list of logins."""
    found: dict[int, Session] = {}
    for pid, number in _console_programs():
        try:
            process = psutil.Process(pid)
            if "getty" not in process.name():
                user = process.username() or "somebody"
                found[number] = Session(user, False, terminal_idle_s(f"tty{number}"))
        except (psutil.Error, KeyError):
            continue
    return list(found.values())


def _last_typed_s() -> float:
    """When something was last typed on any console; 0: there is none."""
    last_s = 0.0
    for number in range(1, CONSOLES_END):
        try:
            last_s = max(last_s, os.stat(f"/dev/tty{number}").st_atime)
        except OSError:
            continue
    return last_s


def _console_programs() -> Iterator[tuple[int, int]]:
    """(pid, number of the console) of programs that run on one. A few microseconds a process: there may be many."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
                    device = int(file.read(4096).rpartition(b")")[2].split(None, 5)[4])
            except (OSError, ValueError, IndexError):
                continue
            if os.major(device) == CONSOLES_MAJOR and 0 < os.minor(device) < CONSOLES_END:
                yield int(name), os.minor(device)


def _displays_of_persons() -> list[str]:
    """Displays that may be somebody's desktop; the login screen's own (a system user's) is nobody's."""
    if os.environ.get("WAYLAND_DISPLAY"):
        return [os.environ["WAYLAND_DISPLAY"]]
    own = os.getuid()
    return [name for name in displays() if (uid := owner_uid(name)) is None or uid >= 1000 or uid == own]
