"""All sensors in one thread: reads what is due, opens again what failed, looks at once when a sensor has news."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import threading
from collections import Counter
from collections.abc import Callable
from time import monotonic

from fallow.agent.owner.sensor import Absent, Draft, Failed, InputSensor, Sensor
from fallow.core.owner_readings import Readings
from fallow.model.lending import LendingSettings

log = logging.getLogger("fallow.agent")

FIND_EVERY_S = 10.0
"""New displays are looked for so often, at looks."""
MOST_EMPTY = 8
"""A sensor that wakes the thread so often without news is not listened to until the next look."""


class Sensing:
    """`look` gets the readings and says in how many seconds the next are wanted; both in the thread of the sensors."""

    def __init__(
        self, find: Callable[[], list[Sensor]], settings: LendingSettings, look: Callable[[Readings], float]
    ) -> None:
        self._find, self._look = find, look
        self._draft = Draft(settings)
        self._sensors: dict[str, Sensor] = {}
        self._open: set[str] = set()
        self._due_s: dict[str, float] = {}
        self._troubles: dict[str, str] = {}
        self._found_s = float("-inf")
        self._selector = selectors.DefaultSelector()
        self._wake_out, self._wake_in = os.pipe()
        os.set_blocking(self._wake_out, False)
        os.set_blocking(self._wake_in, False)
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="owner watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Look now. From any thread."""
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._wake_in, b"!")

    def set_settings(self, settings: LendingSettings) -> None:
        self._draft.settings = settings
        self._found_s = float("-inf")
        self.wake()

    def close(self, wait_s: float = 1.0) -> None:
        """End the thread. One that hangs in a sensor is left: it is a daemon."""
        self._ended = True
        self.wake()
        self._thread.join(wait_s)

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            while not self._ended:
                wait_s = self.step()
                if not self._ended:
                    self._wait(wait_s)
        except Exception:
            log.exception("the owner watch met an error")
        finally:
            for name in list(self._open):
                self._close(name)
            self._selector.close()
            os.close(self._wake_out)
            os.close(self._wake_in)

    def step(self) -> float:
        """Read what is due and look. Returns the seconds until the next look is wanted."""
        now_s = monotonic()
        if now_s - self._found_s >= FIND_EVERY_S:
            self._found_s = now_s
            self._take_up(self._find())
        for name, sensor in list(self._sensors.items()):
            if now_s >= self._due_s[name]:
                self._read(name, sensor, now_s)
        return self._look(self._draft.readings(self._worth_saying()))

    def _worth_saying(self) -> list[str]:
        """Where one sensor tells of all input, others need not: GNOME's compositor does not say what its D-Bus does."""
        told = any(one.proves and one.idle_s is not None for one in self._draft.inputs.values())
        return [
            words
            for name, words in self._troubles.items()
            if not (told and isinstance(self._sensors.get(name), InputSensor))
        ]

    def _take_up(self, found: list[Sensor]) -> None:
        names = {sensor.name for sensor in found}
        for name in [name for name in self._sensors if name not in names]:
            self._close(name)
            self._sensors.pop(name).absent(self._draft)
            self._troubles.pop(name, None)
        for sensor in found:
            if sensor.name not in self._sensors:
                self._sensors[sensor.name], self._due_s[sensor.name] = sensor, 0.0

    def _read(self, name: str, sensor: Sensor, now_s: float) -> None:
        try:
            if name not in self._open:
                sensor.open()
                self._open.add(name)
            sensor.read(self._draft)
        except Absent:
            sensor.absent(self._draft)
            self._give_up(name, sensor.absent_s, now_s, "")
        except Exception as error:
            if not isinstance(error, Failed):
                log.exception("the sensor of the %s met an error", name)
            sensor.unknown(self._draft)
            self._give_up(name, sensor.retry_s, now_s, str(error) or f"{name}: {type(error).__name__}")
        else:
            self._troubles.pop(name, None)
            self._due_s[name] = now_s + sensor.every_s - 0.05 if sensor.every_s else 0.0

    def _give_up(self, name: str, again_s: float, now_s: float, trouble: str) -> None:
        self._close(name)
        self._due_s[name] = now_s + again_s
        if not trouble:
            self._troubles.pop(name, None)
        elif self._troubles.get(name) != trouble:
            log.warning("%s", trouble)
            self._troubles[name] = trouble

    def _close(self, name: str) -> None:
        if name in self._open:
            self._open.discard(name)
            try:
                self._sensors[name].close()
            except Exception:
                log.debug("the sensor of the %s did not close", name, exc_info=True)

    def _wait(self, wait_s: float) -> None:
        """Until the next look is due, or a sensor has news, or somebody wakes the thread."""
        deadline = monotonic() + wait_s
        empty: Counter[str] = Counter()
        while not self._ended:
            listening: dict[int, list[str]] = {self._wake_out: []}
            for name in self._open:
                if empty[name] >= MOST_EMPTY:
                    continue
                for file in self._sensors[name].files():
                    listening.setdefault(file, []).append(name)
            self._register(set(listening))
            ready = self._selector.select(max(0.0, deadline - monotonic()))
            if not ready:
                return
            for key, _ in ready:
                if key.fd == self._wake_out:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_out, 1024)
                    return
                # One descriptor may serve several sensors; each is asked, as the first takes what has come for all.
                news = False
                for name in listening.get(key.fd, ()):
                    news = self._news(name) or news
                    empty[name] += 1
                if news:
                    return

    def _register(self, wanted: set[int]) -> None:
        have = {key.fd for key in self._selector.get_map().values()}
        for file in have - wanted:
            with contextlib.suppress(KeyError, ValueError, OSError):
                self._selector.unregister(file)
        for file in wanted - have:
            self._selector.register(file, selectors.EVENT_READ)

    def _news(self, name: str) -> bool:
        """What tells of news is due at once. A sensor that fails here is found out when it is read."""
        try:
            news = self._sensors[name].news()
        except Exception:
            news = True
        if news:
            self._due_s[name] = 0.0
        return news
