"""A real X server, a real D-Bus daemon, and what desktops and systems would answer on it."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fallow.agent.owner.sensor import Draft, Sensor
from fallow.core.owner_readings import Readings
from fallow.model.lending import LendingSettings

from .dbus_service import Services

DEADLINE_S = 30.0


@pytest.fixture
def quiet_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing of the desktop that the tests may run on."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "DBUS_SESSION_BUS_ADDRESS", "DBUS_SYSTEM_BUS_ADDRESS", "XAUTHORITY"):
        monkeypatch.delenv(name, raising=False)
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setattr("fallow.agent.owner.bus.SYSTEM_SOCKETS", ())
    monkeypatch.setattr("fallow.agent.owner.x11.SOCKETS", str(tmp_path / "no-displays"))
    return runtime


def _need(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed (Debian packages xvfb, xdotool, dbus-daemon): {program} is really run")
    return found


class XServer:
    def __init__(self) -> None:
        out, into = os.pipe()
        self.process = subprocess.Popen(
            [_need("Xvfb"), "-displayfd", str(into), "-screen", "0", "640x480x24", "-nolisten", "tcp", "-noreset"],
            pass_fds=(into,),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(into)
        said = b""
        try:
            # To the end of the line: the server dies of a pipe that closes under it.
            while not said.endswith(b"\n"):
                assert select.select([out], [], [], DEADLINE_S)[0], "Xvfb did not start"
                said += os.read(out, 16)
        finally:
            os.close(out)
        self.display = f":{int(said)}"

    def press(self, key: str = "a") -> None:
        self.run("key", key)

    def run(self, *words: str) -> None:
        subprocess.run(
            [_need("xdotool"), *words], env={**os.environ, "DISPLAY": self.display}, check=True, timeout=DEADLINE_S
        )

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(DEADLINE_S)


@pytest.fixture
def x_server(quiet_environment: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[XServer]:
    _need("xdotool")
    server = XServer()
    monkeypatch.setenv("DISPLAY", server.display)
    yield server
    server.end()


@pytest.fixture
def bus(quiet_environment: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a session's bus with nothing on it yet."""
    daemon = subprocess.Popen(
        [_need("dbus-daemon"), "--session", "--nofork", "--print-address=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert daemon.stdout is not None
    address = daemon.stdout.readline().decode().strip()
    assert address, "dbus-daemon did not start"
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
    yield address
    daemon.terminate()
    daemon.wait(DEADLINE_S)
    daemon.stdout.close()


@pytest.fixture
def services(bus: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    """That bus is the system's too."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus)
    found = Services(bus)
    yield found
    found.close()


@pytest.fixture
def read() -> Callable[..., Readings]:
    """Read sensors once, as `sensing` does, and give what they said."""

    def readings(*sensors: Sensor, draft: Draft | None = None) -> Readings:
        draft = draft or Draft(LendingSettings())
        for sensor in sensors:
            sensor.read(draft)
        return draft.readings()

    return readings


def wait_for_news(sensor: Sensor, timeout_s: float = DEADLINE_S) -> bool:
    """Until the sensor says that somebody is there."""
    while True:
        ready, _, _ = select.select(sensor.files(), [], [], timeout_s)
        assert ready, f"{sensor.name} had no news within {timeout_s:g} s"
        if sensor.news():
            return True


def poll(what: str, condition: Callable[[], Any], timeout_s: float = DEADLINE_S) -> Any:
    """Ask again and again, a little apart, until the answer is true."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        select.select([], [], [], 0.02)


__all__ = ["DEADLINE_S", "XServer", "poll", "wait_for_news"]
