"""The machine's power, network and heat: battery, metered connections, the CPU's temperature, the price."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import psutil

from fallow.agent.owner.bus import Bus
from fallow.agent.owner.sensor import Absent, Draft, Failed, Sensor

NETWORK_MANAGER = "org.freedesktop.NetworkManager"
NETWORK_MANAGER_PATH = "/org/freedesktop/NetworkManager"
METERED_YES, METERED_GUESS_YES = 1, 3
CPU_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "acpitz")
"""The first of these that the machine has."""


class Battery(Sensor):
    name = "battery"
    every_s = 1.0

    def unknown(self, draft: Draft) -> None:
        draft.on_battery = None

    def read(self, draft: Draft) -> None:
        try:
            battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
        except (OSError, RuntimeError, ValueError) as error:
            raise Failed(f"the battery cannot be read ({error})") from error
        draft.on_battery = (
            False if battery is None else None if battery.power_plugged is None else not battery.power_plugged
        )


class Metered(Sensor):
    """NetworkManager knows, or guesses: phones and some mobile networks say so. Without it nothing is metered."""

    name = "metered network"
    every_s = 30.0
    retry_s = absent_s = 30.0

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._changed: deque[Any] | None = None

    def open(self) -> None:
        self._value()
        self._generation = self._bus.generation
        self._changed = self._bus.subscribe(
            NETWORK_MANAGER, "org.freedesktop.DBus.Properties", "PropertiesChanged", NETWORK_MANAGER_PATH
        )

    def _value(self) -> int:
        return int(self._bus.property(NETWORK_MANAGER, NETWORK_MANAGER_PATH, NETWORK_MANAGER, "Metered"))

    def unknown(self, draft: Draft) -> None:
        draft.metered = None

    def absent(self, draft: Draft) -> None:
        draft.metered = False

    def files(self) -> list[int]:
        file = self._bus.file()
        return [file] if file is not None else []

    def news(self) -> bool:
        self._bus.pump()
        return bool(self._changed)

    def read(self, draft: Draft) -> None:
        if self._bus.generation != self._generation:
            raise Failed("the system bus was lost")
        draft.metered = self._value() in (METERED_YES, METERED_GUESS_YES)
        if self._changed is not None:
            self._changed.clear()


class Heat(Sensor):
    name = "temperature of the CPU"
    every_s = 5.0
    absent_s = 300.0
    """A machine does not come by such a sensor; a driver may be loaded."""

    def unknown(self, draft: Draft) -> None:
        draft.cpu_temperature_c = None

    def absent(self, draft: Draft) -> None:
        draft.cpu_temperature_c = 0.0

    def read(self, draft: Draft) -> None:
        try:
            chips: dict[str, list[Any]] = getattr(psutil, "sensors_temperatures", dict)()
        except (OSError, RuntimeError, ValueError) as error:
            raise Failed(f"temperatures cannot be read ({error})") from error
        chip = next((name for name in CPU_CHIPS if chips.get(name)), None)
        if chip is None:
            if draft.cpu_temperature_c:
                raise Failed("the CPU's temperature sensor has gone")
            raise Absent
        draft.cpu_temperature_c = max(float(one.current) for one in chips[chip])


class Price(Sensor):
    """The price of electricity, as another part of the agent reads it from time to time."""

    name = "price of electricity"
    every_s = 5.0

    def __init__(self, price: Callable[[], float | None]) -> None:
        self._price = price

    def unknown(self, draft: Draft) -> None:
        draft.price_per_kwh = None

    def read(self, draft: Draft) -> None:
        draft.price_per_kwh = self._price()
