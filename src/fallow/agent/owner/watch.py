"""The owner's watch of a node: from readings to slots that stop and start.

Sensors and policy live in a thread of their own (`sensing`); what they decide is done on the agent's loop. Should that
thread fall silent, nobody knows whether the owner is there, and everything stops.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from fallow.agent.owner.find import Finder
from fallow.agent.owner.gpus import GpuUse
from fallow.agent.owner.sensing import Sensing
from fallow.agent.owner.sensor import clock_s
from fallow.core.owner_policy import CPU, Decision, ManualPause, OwnerState, look
from fallow.core.owner_readings import Readings
from fallow.model.lending import LendingSettings

log = logging.getLogger("fallow.agent")

SILENT_AFTER_S = 4.0
"""So long after a look was due: the sensors hang."""
FRESH_S = 1.5
"""Who asks is told what was seen so long ago at most."""
LOOK_WAITS = 25
SILENT = "the sensors that watch for the owner do not answer"
STARTING = "the sensors that watch for the owner have not yet been read"


class Stoppable(Protocol):
    """What the watch needs of a node."""

    def preempt(self, slots: Iterable[int] | None, reason: str, grace_s: float) -> None: ...

    def allow(self, slots: Iterable[int] | None) -> None: ...

    @property
    def is_at_work(self) -> bool: ...


class Watch:
    """`slot_gpus`: the uuids of the GPUs that each slot holds now, for all slots of the node; None: there are no GPUs.
    `withhold`: told which GPUs must be given to nobody. `price`: for a kWh as it was last read; None: unknown."""

    def __init__(
        self,
        node: Stoppable,
        settings: LendingSettings,
        gpu_uuids: Iterable[str] = (),
        gpu_use: GpuUse | None = None,
        slot_gpus: Callable[[], Mapping[int, Iterable[str]]] | None = None,
        withhold: Callable[[frozenset[str]], None] | None = None,
        price: Callable[[], float | None] | None = None,
    ) -> None:
        self._node, self._settings = node, settings
        self._slot_gpus, self._withhold = slot_gpus, withhold
        self._find = Finder(settings, gpu_uuids, gpu_use, price)
        self._sensing = Sensing(self._find, settings, self._look)
        self._lock = threading.Lock()
        self._state = OwnerState()
        self._decision: Decision | None = None
        self._readings = Readings()
        self._looked_s = time.monotonic()
        self._next_look_s = 10.0
        """The first look imports what sensors need."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_at_work = True
        self._stopped: set[int] | None = None
        """Slots that are stopped; None: all."""
        self._all_stopped = False
        self._is_silent = False
        self._told: object = None

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """On the agent's loop. Nothing runs before the first look has found that it may."""
        self._loop = asyncio.get_running_loop()
        self._stop_all(STARTING)
        self._sensing.start()

    def close(self) -> None:
        self._loop = None
        self._sensing.close()

    def set_settings(self, settings: LendingSettings) -> None:
        """In force at once."""
        self._settings = self._find.settings = settings
        self._sensing.set_settings(settings)

    # ------------------------------------------------------------ the owner's words

    def pause(self, for_s: float = math.inf) -> None:
        """Stop everything, for so many seconds or until `resume`. Done before this returns."""
        with self._lock:
            self._state = replace(self._state, pause=ManualPause(clock_s() + for_s))
            self._told = None
        self._stop_all("by your word")
        self._sensing.wake()

    def pause_gpu(self, uuid: str, for_s: float = math.inf) -> None:
        """The same for one GPU, at the next look, which is now."""
        with self._lock:
            pauses = {**self._state.gpu_pauses, uuid: ManualPause(clock_s() + for_s)}
            self._state = replace(self._state, gpu_pauses=pauses)
            self._told = None
        self._sensing.wake()

    def resume(self) -> None:
        """End all pauses by word. What else keeps the machine for its owner still does."""
        with self._lock:
            self._state = replace(self._state, pause=None, gpu_pauses={})
            # Whatever the next look finds is done: it may find what it found before the pause.
            self._told = None
        self._sensing.wake()

    # ------------------------------------------------------------ looks, in the sensors' thread

    def _look(self, readings: Readings) -> float:
        local = time.localtime()
        minute = (local.tm_wday * 24 + local.tm_hour) * 60 + local.tm_min
        with self._lock:
            self._state, decision = look(self._state, readings, self._settings, clock_s(), minute, self._is_at_work)
            told = tuple((name, one.allowed, one.causes) for name, one in self._state.devices.items())
            self._decision, self._readings = decision, readings
            self._looked_s, self._next_look_s = time.monotonic(), decision.next_look_s
            is_news = told != self._told
            self._told = told
        if is_news or self._slot_gpus is not None or self._is_silent:
            loop = self._loop
            if loop is not None:
                try:
                    loop.call_soon_threadsafe(self._apply, decision)
                except RuntimeError:
                    log.debug("the agent's loop has ended")
        return decision.next_look_s

    # ------------------------------------------------------------ deeds, on the agent's loop

    def _apply(self, decision: Decision) -> None:
        if self._loop is None:
            return
        with self._lock:
            if self._decision is not decision:
                # A later look is on its way, or the owner has spoken since.
                decision = self._decision or decision
            if self._state.pause is not None and decision.paused == "":
                return
        self._is_silent = False
        blocked = frozenset(name for name, one in decision.devices.items() if name != CPU and not one.allowed)
        if self._withhold is not None:
            self._withhold(blocked)
        if decision.paused:
            self._stop_all(decision.paused)
            return
        held = {} if self._slot_gpus is None else {number: set(uuids) for number, uuids in self._slot_gpus().items()}
        stop = {number: why for number, uuids in held.items() if (why := _why_stop(decision, uuids))}
        if not held and not decision.cpu.allowed:
            self._stop_all(decision.cpu.reason)
            return
        grace_s = self._settings.owner.grace_s
        before = set(held) if self._all_stopped else self._stopped or set()
        for number in sorted(set(stop) - before):
            self._node.preempt([number], stop[number], grace_s)
        if self._all_stopped and not stop:
            self._node.allow(None)
        elif opened := sorted(before - set(stop)):
            self._node.allow(opened)
        self._stopped, self._all_stopped = set(stop), False

    def _stop_all(self, reason: str) -> None:
        self._node.preempt(None, reason, self._settings.owner.grace_s)
        self._stopped, self._all_stopped = None, True

    def work_begins(self) -> None:
        """Whoever came back while nothing of the pool's ran here is found out now. On the agent's loop."""
        if not self._is_at_work:
            self._is_at_work = True
            self._look_now()

    def _look_now(self) -> None:
        with self._lock:
            self._looked_s, self._next_look_s = time.monotonic(), 0.0
        self._sensing.wake()

    async def look_again(self) -> None:
        """For somebody who asks: look now where the last look is older than a moment, and wait for it, though not for
        long. On the agent's loop."""
        before = self._decision
        if before is None or self._is_silent or time.monotonic() - self._looked_s < FRESH_S:
            return
        self._look_now()
        for _ in range(LOOK_WAITS):
            if self._decision is not before:
                return
            await asyncio.sleep(0.02)

    def check(self) -> None:
        """Whether the sensors answer. On the agent's loop, about every second."""
        if self._loop is None:
            return
        self._is_at_work = self._node.is_at_work
        late_s = time.monotonic() - self._looked_s - self._next_look_s
        if late_s > SILENT_AFTER_S and not self._is_silent:
            self._is_silent = True
            log.error("%s", SILENT)
            self._stop_all(SILENT)

    # ------------------------------------------------------------ for `fallow node status`

    @property
    def reason(self) -> str:
        """Why nothing may run now, in the words of the last look; '': something may."""
        if self._decision is None or self._is_silent:
            return SILENT if self._is_silent else STARTING
        return self._decision.paused

    def status(self) -> dict[str, Any]:
        """Plain data: `paused`, `reason`, `since_unix_s`, `devices` by name ('cpu', or a GPU's uuid) with the same
        three, `readings` (core.owner_readings.Readings), `troubles` (what cannot be read, with a remedy), `notes`."""
        with self._lock:
            decision, readings, pause = self._decision, self._readings, self._state.pause
        shift_s = time.time() - clock_s()
        if decision is None or self._is_silent:
            return {
                "paused": True,
                "reason": self.reason,
                "since_unix_s": time.time(),
                "devices": {},
                "readings": {},
                "troubles": [],
                "notes": [],
                "paused_by_owner": pause is not None,
                "resume_unix_s": None,
            }
        devices = {
            name: {"paused": not one.allowed, "reason": one.reason, "since_unix_s": one.since_s + shift_s}
            for name, one in decision.devices.items()
        }
        notes = [f"nobody sits here: {readings.nobody}"] if readings.nobody else []
        if not self._settings.owner.watch:
            notes.append("input and sessions are not looked at (owner.watch = false)")
        until_s = pause.until_s + shift_s if pause is not None and pause.until_s < math.inf else None
        return {
            "paused": bool(decision.paused),
            "reason": decision.paused,
            "since_unix_s": devices[CPU]["since_unix_s"],
            "devices": devices,
            "readings": msgspec.to_builtins(readings),
            "troubles": list(readings.troubles),
            "notes": notes,
            "paused_by_owner": pause is not None,
            "resume_unix_s": until_s,
        }


def _why_stop(decision: Decision, uuids: set[str]) -> str:
    """Why a slot that holds these GPUs must stop; '': it may run. One that holds none needs the CPU's leave."""
    for uuid in sorted(uuids):
        device = decision.devices.get(uuid, decision.cpu)
        if not device.allowed:
            return device.reason
    return "" if uuids or decision.cpu.allowed else decision.cpu.reason
