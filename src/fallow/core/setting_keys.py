"""The keys of the settings file node.toml: what each means, how its value is written, and what it may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from fallow.core import quantities as q
from fallow.model.lending import LendingSettings
from fallow.model.tiers import TIER_WORDS, Tier


class Kind(Struct, frozen=True):
    """How a value is written. `read` raises ValueError with what is expected; `numbers`: bare numbers will do."""

    name: str
    read: Callable[[Any], Any]
    write: Callable[[Any], Any]


def _of_text(read: Callable[[str], Any], expected: str) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(f"expected {expected}")
        return read(str(value))

    return convert


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e12:
        raise ValueError("expected a number, 0 or more")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("expected a whole number, 0 or more")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\n" in value:
        raise ValueError("expected text in quotes")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise ValueError('expected a list of names, such as ["blender", "steam"]')
    return tuple(item.strip() for item in value)


def _hours(value: Any) -> Any:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError('expected a list such as ["mon-fri 18:00-08:00", "sat,sun 00:00-24:00"]')
    return tuple(q.read_hours(item) for item in value)


def _choice(*words: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in words:
            raise ValueError(f"expected one of {', '.join(repr(word) for word in words)}")
        return str(value)

    return convert


def _tier(value: Any) -> Tier:
    return TIER_WORDS[_choice(*TIER_WORDS)(value)]


FLAG = Kind("flag", _flag, bool)
NUMBER = Kind("number", _number, float)
WHOLE = Kind("whole", _whole, int)
TEXT = Kind("text", _text, str)
TEXTS = Kind("list", _texts, list)
HOURS = Kind("list", _hours, lambda hours: [q.write_hours(one) for one in hours])
SIZE = Kind("size", _of_text(q.read_size, "a size such as '20 GB'"), q.write_size)
RATE = Kind("rate", _of_text(q.read_rate, "a rate such as '5 MB/s'"), q.write_rate)
TIME = Kind("time", _of_text(q.read_time, "a time such as '3 min'"), q.write_time)
SHARE = Kind("share", _of_text(q.read_share, "a share such as '25 %'"), q.write_share)
DEGREES = Kind("degrees", _of_text(q.read_degrees, "a temperature such as '85 C'"), q.write_degrees)
WATTS = Kind("watts", _of_text(q.read_watts, "a power such as '200 W'"), q.write_watts)
BACKEND = Kind("choice", _choice("auto", "process", "bubblewrap", "podman", "gvisor"), str)
TIER = Kind("choice", _tier, lambda tier: Tier(tier).word)


class Key(Struct, frozen=True):
    """One line of the file. `least` and `most` bound the value in the field's own unit."""

    section: str
    name: str
    field: str
    kind: Kind
    about: str
    least: float = 0.0
    most: float = float("inf")

    @property
    def path(self) -> str:
        return f"{self.section}.{self.name}"

    def of(self, settings: LendingSettings) -> Any:
        """The value as the file writes it."""
        return self.kind.write(getattr(getattr(settings, self.section), self.field))

    def read(self, value: Any) -> Any:
        """The field's value. Raises ValueError with what is expected."""
        found = self.kind.read(value)
        if isinstance(found, (int, float)) and not isinstance(found, bool) and not self.least <= found <= self.most:
            least, most = self.kind.write(self.least), self.kind.write(self.most) if self.most < 1e300 else ""
            raise ValueError(f"expected at least {least}{f' and at most {most}' if most else ''}")
        return found


SECTIONS: Mapping[str, str] = {
    "owner": "When the machine is yours. Work stops within two seconds of what any of these say.",
    "share": "How much of the machine is lent. 0 means all of it.",
    "gpu": "Graphics cards. The limits are held by pausing the work for parts of each second.",
    "heat": "The processor's temperature.",
    "price": "Electricity: work only while it is cheap.",
    "sandbox": "What keeps the work away from what is yours.",
    "earn": "What an hour of work is worth, to show in `fallow node status`. Nothing is paid by these figures.",
}

KEYS: tuple[Key, ...] = (
    Key("owner", "watch", "watch", FLAG, "false: nobody sits here (a server); input and sessions are not looked at"),
    Key("owner", "idle", "idle_s", TIME, "you are away after so long without input"),
    Key("owner", "gpu_idle", "gpu_idle_s", TIME, "the same for graphics cards"),
    Key("owner", "busy_cpu", "busy_cpu_share", SHARE, "your programs use more than this: work pauses", 0.0, 1.0),
    Key("owner", "resume_cpu", "resume_cpu_share", SHARE, "it goes on when they use less than this", 0.0, 1.0),
    Key("owner", "settle", "settle_s", TIME, "what made work pause must have been over for so long"),
    Key("owner", "foreign_gpu", "foreign_gpu_share", SHARE, "another program's use that pauses a GPU", 0.0, 1.0),
    Key("owner", "foreign_gpu_memory", "foreign_gpu_memory_bytes", SIZE, "another program's memory that pauses a GPU"),
    Key("owner", "full_screen", "full_screen", FLAG, "a program that fills the screen, or keeps it on, pauses work"),
    Key("owner", "remote_sessions", "remote_sessions", FLAG, "whoever is logged in from elsewhere counts as you"),
    Key("owner", "on_battery", "on_battery", FLAG, "work goes on while the machine runs on its battery"),
    Key("owner", "on_metered", "on_metered", FLAG, "work goes on while the network is paid for by volume"),
    Key("owner", "exclusive_programs", "exclusive_programs", TEXTS, "while one of these runs, nothing else does"),
    Key("owner", "gpu_exclusive_programs", "gpu_exclusive_programs", TEXTS, "the same for graphics cards"),
    Key("owner", "hours", "hours", HOURS, 'work only then, as in ["mon-fri 18:00-08:00", "sat,sun 00:00-24:00"]'),
    Key("owner", "grace", "grace_s", TIME, "from the notice to a task until it is killed", 0.0, 1.5),
    Key("share", "slots", "slots", WHOLE, "tasks at a time; takes effect when the agent starts", 0, 4096),
    Key("share", "cpu", "cpu_share", SHARE, "of all processors together", 0.0, 1.0),
    Key("share", "memory", "memory_bytes", SIZE, "of all tasks together"),
    Key("share", "disk", "disk_bytes", SIZE, "environments, code, data and what tasks write, together"),
    Key("share", "nice", "nice", WHOLE, "priority of the work: 19 is the lowest", 0, 19),
    Key("share", "idle_io", "idle_io", FLAG, "work reads and writes only when nobody else does"),
    Key("share", "up", "up_bytes_per_s", RATE, "of the network, from here"),
    Key("share", "down", "down_bytes_per_s", RATE, "of the network, to here"),
    Key("gpu", "lend", "lend", FLAG, "false: no graphics card is lent"),
    Key("gpu", "models", "models", TEXTS, "only those whose name holds one of these; none: all"),
    Key("gpu", "power_limit", "power_limit_w", WATTS, "of each, on average"),
    Key("gpu", "temperature_limit", "temperature_limit_c", DEGREES, "of each", 0.0, 120.0),
    Key("heat", "cpu_limit", "cpu_limit_c", DEGREES, "work pauses above this", 0.0, 120.0),
    Key("heat", "resume_below", "resume_below_c", DEGREES, "and goes on below this", 0.0, 120.0),
    Key("price", "source", "source", TEXT, "a file with the price of a kWh, or '!' and a command that prints it"),
    Key("price", "limit_per_kwh", "limit_per_kwh", NUMBER, "work only while the price is at most this"),
    Key("price", "every", "every_s", TIME, "how often it is read", 5.0),
    Key("sandbox", "backend", "backend", BACKEND, "auto, process, bubblewrap, podman or gvisor"),
    Key("sandbox", "least", "least", TIER, "nothing runs below it: process, isolated, kernel or machine"),
    Key("sandbox", "network", "network", FLAG, "jobs that ask may reach public addresses, and those alone"),
    Key("sandbox", "task_disk", "task_disk_bytes", SIZE, "what the tasks of one worker may write", 10**6),
    Key("sandbox", "max_processes", "max_processes", WHOLE, "that the tasks of one worker may start", 8, 1 << 20),
    Key("sandbox", "index_hosts", "index_hosts", TEXTS, "your package index, if its address is not public"),
    Key("sandbox", "rootfs", "rootfs", TEXT, "podman, gvisor: a folder with a root file system"),
    Key("sandbox", "image", "image", TEXT, "podman: an image that is here already"),
    Key("earn", "cpu_per_hour", "cpu_per_hour", NUMBER, "of one CPU slot"),
    Key("earn", "gpu_per_hour", "gpu_per_hour", NUMBER, "of one GPU; 0: what marketplaces ask for its model"),
    Key("earn", "currency", "currency", TEXT, "of both"),
)
BY_PATH: Mapping[str, Key] = {key.path: key for key in KEYS}
