"""Programs that ask the desktop to leave the screen on: films, calls and talks, which nobody touches for hours.

Under Wayland no client sees whose window fills the screen; who watches a film is known by this alone. (Compositors with
ext-idle-notify count what the Wayland protocol inhibits as input; players of GNOME and KDE ask on the session bus.)
"""

from __future__ import annotations

from collections.abc import Callable

from fallow.agent.owner.bus import Bus
from fallow.agent.owner.sensor import Absent, Draft, Failed, Sensor

GNOME, GNOME_PATH = "org.gnome.SessionManager", "/org/gnome/SessionManager"
GNOME_INHIBITOR = "org.gnome.SessionManager.Inhibitor"
GNOME_IDLE = 8
KDE, KDE_PATH = "org.kde.Solid.PowerManagement.PolicyAgent", "/org/kde/Solid/PowerManagement/PolicyAgent"
KDE_SCREEN = 4
POWER, POWER_PATH = "org.freedesktop.PowerManagement", "/org/freedesktop/PowerManagement/Inhibit"
SOMEBODY = "a program"
LONGEST_NAME = 40


class ScreenOn(Sensor):
    name = "what keeps the screen on"
    every_s = 2.0

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._asked: list[Callable[[], str]] = []

    def open(self) -> None:
        self._asked = []
        for ask in (self._of_gnome, self._of_kde, self._of_others):
            try:
                ask()
            except Absent:
                continue
            self._asked.append(ask)
        if not self._asked:
            raise Absent

    def read(self, draft: Draft) -> None:
        draft.screen_on = next(filter(None, (ask() for ask in self._asked)), "")

    def unknown(self, draft: Draft) -> None:
        draft.screen_on = None

    def absent(self, draft: Draft) -> None:
        draft.screen_on = ""

    # ------------------------------------------------------------ the program's name; '': none

    def _of_gnome(self) -> str:
        """GNOME, MATE and Cinnamon."""
        (inhibited,) = self._bus.call(GNOME, GNOME_PATH, GNOME, "IsInhibited", "u", GNOME_IDLE)
        if not inhibited:
            return ""
        try:
            for path in self._bus.call(GNOME, GNOME_PATH, GNOME, "GetInhibitors")[0]:
                if self._bus.call(GNOME, path, GNOME_INHIBITOR, "GetFlags")[0] & GNOME_IDLE:
                    return _short(self._bus.call(GNOME, path, GNOME_INHIBITOR, "GetAppId")[0])
        except (Absent, Failed):
            # It has gone meanwhile, or does not say: it counts until the next read.
            pass
        return SOMEBODY

    def _of_kde(self) -> str:
        (inhibited,) = self._bus.call(KDE, KDE_PATH, KDE, "HasInhibition", "u", KDE_SCREEN)
        if not inhibited:
            return ""
        try:
            (found,) = self._bus.call(KDE, KDE_PATH, KDE, "ListInhibitions")
            return _short(found[0][0]) if found else SOMEBODY
        except (Absent, Failed):
            return SOMEBODY

    def _of_others(self) -> str:
        """Xfce, LXQt and others."""
        (inhibited,) = self._bus.call(POWER, POWER_PATH, f"{POWER}.Inhibit", "HasInhibit")
        return SOMEBODY if inhibited else ""


def _short(name: str) -> str:
    return "".join(letter for letter in str(name) if letter.isprintable())[:LONGEST_NAME].strip() or SOMEBODY
