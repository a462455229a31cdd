"""What desktops say on the session bus: GNOME's IdleMonitor, and ScreenSaver's idle time (KDE and others)."""

from __future__ import annotations

from collections import deque
from typing import Any

from fallow.agent.owner.bus import Bus
from fallow.agent.owner.sensor import Absent, Draft, Failed, InputSensor, clock_s
from fallow.core.owner_readings import Input

MUTTER = "org.gnome.Mutter.IdleMonitor"
MUTTER_PATH = "/org/gnome/Mutter/IdleMonitor/Core"
SCREEN_SAVER = "org.freedesktop.ScreenSaver"
SCREEN_SAVER_PATHS = ("/org/freedesktop/ScreenSaver", "/ScreenSaver")
ARM_AFTER_S = 2.0
UNIT_AFTER_S, UNIT_SLACK_S = 2.0, 1.5
SECONDS_AFTER_S, SECONDS_READS = 5.0, 4
"""Milliseconds taken for seconds would make a typing owner absent: that takes more to believe."""


class Mutter(InputSensor):
    """GNOME, under Wayland and X11, remote desktops included. A watch tells of the first input after a rest."""

    name = "keyboard or mouse (GNOME)"

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._fired: deque[Any] | None = None
        self._watch: int | None = None
        self._stirred = False

    def open(self) -> None:
        self._idle_s()
        self._generation = self._bus.generation
        self._watch = None
        self._fired = self._bus.subscribe(MUTTER, MUTTER, "WatchFired")

    def _idle_s(self) -> float:
        return float(self._bus.call(MUTTER, MUTTER_PATH, MUTTER, "GetIdletime")[0]) / 1000

    def files(self) -> list[int]:
        file = self._bus.file() if self._watch is not None else None
        return [file] if file is not None else []

    def news(self) -> bool:
        self._bus.pump()
        while self._fired:
            message = self._fired.popleft()
            if message.body and message.body[0] == self._watch:
                self._watch, self._stirred = None, True
        return self._stirred

    def read(self, draft: Draft) -> None:
        if self._bus.generation != self._generation:
            raise Failed("the session bus was lost")
        idle_s = self._idle_s()
        if self.news():
            idle_s, self._stirred = min(idle_s, 0.0), False
        elif self._watch is None and idle_s >= ARM_AFTER_S:
            self._watch = int(self._bus.call(MUTTER, MUTTER_PATH, MUTTER, "AddUserActiveWatch")[0])
        draft.inputs[self.name] = Input("keyboard or mouse", idle_s, notifies=self._watch is not None)


class ScreenSaver(InputSensor):
    """`GetSessionIdleTime` counts seconds by its specification and milliseconds in KDE: how it grows tells which.
    Until that is known, the smaller is taken for true. A count that has never grown tells nothing: KDE's is 0 for ever
    under Wayland, where its compositor tells."""

    name = "keyboard or mouse (ScreenSaver)"

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._path = ""

    def open(self) -> None:
        self._grows = False
        self._per_s: float | None = None
        self._first: tuple[float, float] | None = None
        for path in SCREEN_SAVER_PATHS:
            try:
                self._count(path)
            except Absent:
                continue
            except Failed as refused:
                # GNOME has the method and does not support it; Mutter tells there.
                if "not supported" in str(refused).lower() or "not implemented" in str(refused).lower():
                    continue
                raise
            self._path = path
            return
        raise Absent

    def _count(self, path: str) -> float:
        return float(self._bus.call(SCREEN_SAVER, path, SCREEN_SAVER, "GetSessionIdleTime")[0])

    def _begin(self, now_s: float, count: float) -> None:
        self._first, self._units, self._reads = (now_s, count), {1000.0, 1.0}, 0

    def _find_unit(self, now_s: float, count: float) -> None:
        """Who types keeps either count small, so that each read must agree with the unit."""
        if self._first is None:
            self._begin(now_s, count)
            return
        passed_s, grown = now_s - self._first[0], count - self._first[1]
        self._units = {unit for unit in self._units if abs(grown / unit - passed_s) <= UNIT_SLACK_S}
        self._reads += 1
        if not self._units:
            self._begin(now_s, count)
        elif self._units == {1000.0} and passed_s >= UNIT_AFTER_S:
            self._per_s = 1000.0
        elif self._units == {1.0} and passed_s >= SECONDS_AFTER_S and self._reads >= SECONDS_READS:
            self._per_s = 1.0

    def read(self, draft: Draft) -> None:
        now_s, count = clock_s(), self._count(self._path)
        if self._per_s is None:
            self._find_unit(now_s, count)
        self._grows = self._grows or count > 0
        idle_s = count / (self._per_s or 1000.0) if self._grows else None
        draft.inputs[self.name] = Input("keyboard or mouse", idle_s)
