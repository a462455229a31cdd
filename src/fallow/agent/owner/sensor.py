"""What a sensor is. All sensors of a node share one thread (`sensing`): they must answer in a fraction of a second."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from fallow.core.owner_readings import GpuReading, Input, Readings, Session
from fallow.model.lending import LendingSettings


class Absent(Exception):
    """What the sensor reads is not on this machine now; it may come."""


class Failed(Exception):
    """It is there and cannot be read: the message says what, and what helps."""


@dataclass
class Draft:
    """Readings as they are gathered. Sensors write their own part; parts of sensors that are not due stay."""

    settings: LendingSettings
    inputs: dict[str, Input] = field(default_factory=dict)
    sessions: tuple[Session, ...] | None = ()
    nobody: str = ""
    full_screen: dict[str, str] = field(default_factory=dict)
    screen_on: str | None = ""
    foreign_cpu_share: float | None = 0.0
    programs: tuple[str, ...] | None = ()
    on_battery: bool | None = False
    metered: bool | None = False
    cpu_temperature_c: float | None = 0.0
    price_per_kwh: float | None = None
    gpus: dict[str, GpuReading] = field(default_factory=dict)
    going_to_sleep: bool = False

    def readings(self, troubles: Iterable[str] = ()) -> Readings:
        return Readings(
            inputs=tuple(self.inputs.values()),
            sessions=self.sessions,
            nobody=self.nobody,
            full_screen=next(filter(None, self.full_screen.values()), ""),
            screen_on=self.screen_on,
            foreign_cpu_share=self.foreign_cpu_share,
            programs=self.programs,
            on_battery=self.on_battery,
            metered=self.metered,
            cpu_temperature_c=self.cpu_temperature_c,
            price_per_kwh=self.price_per_kwh,
            gpus=dict(self.gpus),
            going_to_sleep=self.going_to_sleep,
            troubles=tuple(troubles),
        )


class Sensor:
    """Opened, read when due, closed. A sensor that raises is closed and opened again later."""

    name = "sensor"
    """As a person says it; unique on the node."""
    every_s = 0.0
    """Between reads; 0: at each look."""
    retry_s = 10.0
    """After Failed."""
    absent_s = 10.0
    """After Absent."""

    def open(self) -> None:
        """Raises Absent or Failed."""

    def read(self, draft: Draft) -> None:
        """Write what is true now into the draft. Raises Absent or Failed."""
        raise NotImplementedError

    def unknown(self, draft: Draft) -> None:
        """Write that this sensor's part cannot be read."""

    def absent(self, draft: Draft) -> None:
        """Write that there is no such thing here."""

    def files(self) -> list[int]:
        """Descriptors that become readable when there is news: then `news` is called, and all that is due is read."""
        return []

    def news(self) -> bool:
        """Take what has come. True: look now."""
        return True

    def close(self) -> None:
        pass


class InputSensor(Sensor):
    """Tells when a person last touched the machine."""

    def unknown(self, draft: Draft) -> None:
        draft.inputs[self.name] = Input(self.name, None)

    def absent(self, draft: Draft) -> None:
        draft.inputs.pop(self.name, None)


def clock_s() -> float:
    """A clock that goes on while the machine sleeps, where the system has one: a sleep shows as a jump."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)
