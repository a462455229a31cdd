"""What the sensors on the owner's machine say, as plain data. None means: it exists and cannot be read; the policy then
takes the worst for true. A field's default means that the machine has no such thing.

Times are seconds of one clock that goes on while the machine sleeps; shares lie between 0 and 1.
"""

from __future__ import annotations

from msgspec import Struct


class Input(Struct, frozen=True):
    """A way to tell when a person last touched the machine."""

    source: str
    """As a person says it: 'keyboard or mouse'."""
    idle_s: float | None
    proves: bool = True
    """False: input that it does not see is possible (an X server inside a Wayland session): it can tell that somebody
    is there, never that nobody is."""
    notifies: bool = False
    """It tells of input at once; nobody needs to look often."""


class Session(Struct, frozen=True):
    """Somebody who is logged in."""

    user: str
    remote: bool
    idle_s: float | None
    active: bool = True
    """In front, on its seat. Sessions in the background do not count: their screens are not shown."""
    seen_by_input: bool = False
    """Its input is what the inputs among the readings see."""


class GpuReading(Struct, frozen=True):
    """What programs other than our workers do with a GPU."""

    foreign_share: float | None = 0.0
    foreign_memory_bytes: int | None = 0


class Readings(Struct, frozen=True):
    inputs: tuple[Input, ...] = ()
    sessions: tuple[Session, ...] | None = ()
    nobody: str = ""
    """Why nobody can sit here, where that was found: 'a machine without keyboard, display and local session'."""
    full_screen: str = ""
    """The program that fills a screen."""
    screen_on: str | None = ""
    """The program that asks the desktop to leave the screen on."""
    foreign_cpu_share: float | None = 0.0
    """Of all processors together, by what does not belong to the agent."""
    programs: tuple[str, ...] | None = ()
    """Those of the named programs (settings) that run."""
    on_battery: bool | None = False
    metered: bool | None = False
    cpu_temperature_c: float | None = 0.0
    """0: no such sensor."""
    price_per_kwh: float | None = None
    gpus: dict[str, GpuReading] = {}
    """By uuid: the GPUs that are lent."""
    going_to_sleep: bool = False
    """The system said that it is about to suspend."""
    troubles: tuple[str, ...] = ()
    """What could not be read, in words with a remedy."""
