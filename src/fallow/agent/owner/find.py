"""Which sensors this machine has. Asked again from time to time: desktops start and end under a running agent."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable

from fallow.agent.owner.bus import Bus
from fallow.agent.owner.gpus import ForeignGpus, GpuUse
from fallow.agent.owner.load import ForeignCpu, Programs
from fallow.agent.owner.power import Battery, Heat, Metered, Price
from fallow.agent.owner.sensor import Sensor
from fallow.model.lending import LendingSettings

MOST_DISPLAYS = 8


class Finder:
    """`roots`: processes that are the agent's, with all that descends from them; `gpu_use` as in gpus.GpuUse."""

    def __init__(
        self,
        settings: LendingSettings,
        gpu_uuids: Iterable[str] = (),
        gpu_use: GpuUse | None = None,
        price: Callable[[], float | None] | None = None,
        roots: Callable[[], Iterable[int]] | None = None,
    ) -> None:
        self.settings = settings
        self._uuids, self._use, self._price = tuple(gpu_uuids), gpu_use, price
        self._roots = roots or (lambda: (os.getpid(),))
        self._session, self._system = Bus("SESSION"), Bus("SYSTEM")

    def __call__(self) -> list[Sensor]:
        """Those of input first: who is logged in is judged by what they see."""
        found: list[Sensor] = self._of_person() if self.settings.owner.watch else []
        found += [ForeignCpu(self._roots), Programs(), Battery(), Heat()]
        if sys.platform == "linux":
            found.append(Metered(self._system))
        if self._price is not None and self.settings.price.source:
            found.append(Price(self._price))
        if self._uuids and self._use is not None:
            found.append(ForeignGpus(self._uuids, self._use, self._roots))
        return found

    def _of_person(self) -> list[Sensor]:
        if sys.platform in ("darwin", "win32"):
            from fallow.agent.owner.others import MacInput, WindowsInput

            return [MacInput() if sys.platform == "darwin" else WindowsInput()]
        from fallow.agent.owner.desktop import Mutter, ScreenSaver
        from fallow.agent.owner.evdev import Evdev
        from fallow.agent.owner.logins import Logins
        from fallow.agent.owner.others import WslInput, is_wsl
        from fallow.agent.owner.screen_on import ScreenOn
        from fallow.agent.owner.wayland import Wayland, wayland_sockets
        from fallow.agent.owner.x11 import X11, displays

        found: list[Sensor] = [Mutter(self._session), ScreenSaver(self._session)]
        found += [X11(name) for name in displays()[:MOST_DISPLAYS]]
        found += [Wayland(path) for path in wayland_sockets()[:MOST_DISPLAYS]]
        found.append(Evdev())
        if is_wsl():
            found.append(WslInput())
        if self.settings.owner.full_screen:
            found.append(ScreenOn(self._session))
        return [*found, Logins(self._system)]
